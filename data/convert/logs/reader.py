"""Samples of one recording: its sweeps with each camera's nearest image, poses and places of sensors."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from data.convert.base import Skipped, read_or_skip
from data.convert.custom.formats import LogCalibration, LogCamera
from data.convert.logs.base import CameraInfo, LogSettings, Message, Picture, Recording, Topic, Transform
from data.convert.logs.cameras import is_rectified, read_camera_info
from data.convert.logs.fields import header_of
from data.convert.logs.motion import Motion, Pose, on_the_way
from data.convert.logs.pairing import ReadSettings, near, stamp_of
from data.convert.logs.pictures import read_picture
from data.convert.logs.sweeps import SweepReader
from data.convert.logs.transforms import read_transforms
from data.convert.logs.videos import Videos
from data.convert.logs.window import Held, Window, span, windows
from data.sample import CameraView, Sample
from data.storage.damage import DamagedError
from data.storage.decode import decode_jpeg

logger = logging.getLogger(__name__)

_TURN_NS = 200_000_000
"""How far the times of a sweep's points may lie from its stamp."""
_LOOKED_AT = 2000
"""Messages of transforms among which the vehicle's first pose is looked for."""
_SAME = 1e-6
"""Entries of transforms that differ by less are equal."""


def moving_topics(recording: Recording, topics: LogSettings) -> tuple[str, ...]:
    """Topics whose messages are needed beside each sweep for the poses; the others are read once as a whole."""
    moving = [topic for topic in topics.transforms if not _is_read_whole(recording.topics[topic])]
    return (*moving, *([topics.odometry] if topics.odometry else []))


def _is_read_whole(topic: Topic) -> bool:
    """Whether transforms are so few that all of them can be read at once."""
    seconds = ((topic.last_ns or 0) - (topic.first_ns or 0)) / 1e9
    return topic.name.endswith("tf_static") or topic.count <= max(seconds / 2, 1)


class LogReader:
    """One log: what its frames share is loaded, and frames are read in one pass over the part of it that holds them."""

    def __init__(
        self,
        name: str,
        recording: Recording,
        topics: LogSettings,
        settings: ReadSettings,
        calibration: LogCalibration | None,
    ) -> None:
        """Load what the frames share.

        Args:
            name: of the log.
            recording: open.
            topics: which are what.
            settings: how samples are made.
            calibration: of the first LiDAR and the cameras, stronger than what the recording says; None without.

        Raises:
            DamagedError: a calibration is missing or damaged, and so each of the frames.
        """
        self.name = name
        self._recording, self._topics, self._settings = recording, topics, settings
        self._calibration = calibration
        self._sweeps = SweepReader(recording, topics, settings)
        self._videos = Videos(recording, topics.cameras.values())
        self._moving = moving_topics(recording, topics)
        self._always = self._read_always()
        self._heads = {topic: self._head(topic) for topic in (*topics.lidars, *topics.cameras.values())}
        self._infos: dict[str, CameraInfo] = {}
        self._places: dict[str, Pose] = {}
        if calibration is None:
            self._infos = {camera: self._read_info(camera) for camera in topics.cameras}
        else:
            for camera in topics.cameras:
                if camera not in calibration.cameras:
                    known = ", ".join(calibration.cameras) or "none"
                    detail = f"the calibration has no camera {camera!r}, it has {known}"
                    raise DamagedError("calibration-missing", detail)
            self._places[header_of(self._heads[topics.lidars[0]])[2]] = calibration.T_ego_lidar
        self._origin = self._first_position()

    # ---- what frames share
    def _head(self, name: str) -> Message:
        message = next(iter(self._recording.messages([name])), None)
        if message is None:
            problems = "; ".join(self._recording.problems[:2])
            detail = f"topic {name} has no message that can be read"
            raise DamagedError("member-missing", f"{detail}{f' ({problems})' if problems else ''}")
        return message

    def _read_always(self) -> list[Transform]:
        """Transforms that hold always: of static topics, and those that are given once in a long time."""
        found: dict[tuple[str, str], Transform] = {}
        whole = [name for name in self._topics.transforms if name not in self._moving]
        for message in self._recording.messages(whole) if whole else ():
            for stated in self._transforms(message):
                found.setdefault((stated.parent, stated.child), stated)
                first = found[stated.parent, stated.child]
                if np.abs(first.T_parent_child - stated.T_parent_child).max() > _SAME:
                    detail = f"{stated.parent} -> {stated.child} is given anew in {message.topic}, with another place"
                    raise DamagedError("meta-broken", f"{detail}: was the recording put together of two?")
        return [replace(stated, stamp_ns=None) for stated in found.values()]

    def _read_info(self, camera: str) -> CameraInfo:
        images = self._topics.cameras[camera]
        name = self._topics.camera_infos.get(camera)
        if name is None:
            remedy = f"name one in the topics file (camera_infos: {{{camera}: TOPIC}}), or give calibration=FILE.json"
            raise DamagedError(
                "calibration-missing", f"camera {camera} ({images}) has no topic of camera info: {remedy}"
            )
        topic = self._recording.topics[name]
        return read_camera_info(topic, self._head(name), rectified=is_rectified(images))

    def _first_position(self) -> Float[np.ndarray, " 3"]:
        """Where the log begins: far coordinates would cost the precision of what is computed of them later."""
        topics = self._topics
        if topics.odometry:
            return self._transforms(self._head(topics.odometry))[0].T_parent_child[:3, 3]
        if not topics.world_frame:
            return np.zeros(3)
        seen = list(self._always)
        for message in itertools.islice(self._recording.messages(list(self._moving)), _LOOKED_AT):
            seen += self._transforms(message)
            known = {stated.child: stated for stated in seen}
            T, frame = np.eye(4), topics.ego_frame
            while frame in known and frame != topics.world_frame:
                T, frame = known[frame].T_parent_child @ T, known[frame].parent
            if frame == topics.world_frame:
                return np.asarray(T[:3, 3])
        return np.zeros(3)

    def _transforms(self, message: Message) -> list[Transform]:
        topic = self._recording.topics[message.topic]
        stated = read_transforms(topic, message, ego_frame=self._topics.ego_frame)
        if self._settings.by_header:
            return stated
        return [one if one.stamp_ns is None else replace(one, stamp_ns=message.written_ns) for one in stated]

    # ---- frames
    def reach_ns(self) -> dict[str, int]:
        """Topic -> how long before and after a sweep its messages may be written and belong to it."""
        settings, topics = self._settings, self._topics
        image, lidar, pose = (
            round(gap * 1e6) for gap in (settings.max_image_gap_ms, settings.max_lidar_gap_ms, settings.max_pose_gap_ms)
        )
        late = settings.max_delay_ns
        reach = {topic: late + max(image, lidar, _TURN_NS) + pose for topic in self._moving}
        reach |= {topic: late + image for topic in topics.cameras.values()}
        reach |= {topic: late + lidar for topic in topics.lidars[1:]}
        return {**reach, topics.lidars[0]: 0}

    def items(self, written_ns: Any, numbers: Sequence[int]) -> Iterator[Sample | Skipped]:
        """One item for each of these sweeps, by their numbers in the topic, in order.

        Args:
            written_ns: when each message of the topic was written.
            numbers: of the sweeps that are asked for, ascending.
        """
        reach = self.reach_ns()
        start, stop, _ = span(written_ns, numbers, reach)
        around = self._recording.messages(list(reach), start, stop)
        messages = self._held(itertools.chain(self._videos.before(start), around))
        for window in windows(messages, self._topics.lidars[0], written_ns, numbers, reach):
            key = frame_key(self.name, window.number)
            yield read_or_skip(functools.partial(self._sample, key, window), key, self.name)

    def _held(self, messages: Iterable[Message]) -> Iterator[Held[Any]]:
        decoders = self._videos.decoders()
        written_ns, told = 0, set[str]()
        for message in messages:
            written_ns = message.written_ns
            if message.topic in decoders:
                for picture in decoders.read(message):
                    yield self._shown(message.topic, written_ns, picture)
                continue
            try:
                if message.topic in self._moving:
                    content: Any = self._transforms(message)
                    stamp_ns = message.written_ns
                else:
                    content, stamp_ns = message, stamp_of(message, self._settings.by_header)
            except DamagedError as error:  # those who need it will miss it, and say so
                if message.topic not in told:
                    logger.warning("%s: %s; further ones of the topic are not named", self.name, error.detail)
                    told.add(message.topic)
                continue
            yield Held(topic=message.topic, written_ns=message.written_ns, stamp_ns=stamp_ns, content=content)
        for topic, picture in decoders.rest():
            yield self._shown(topic, written_ns, picture)

    def _shown(self, topic: str, written_ns: int, picture: Picture) -> Held[Any]:
        """A picture of a video, which comes out when later frames are written where the stream has B-frames."""
        stamp_ns = picture.stamp_ns if self._settings.by_header else written_ns
        return Held(topic=topic, written_ns=written_ns, stamp_ns=stamp_ns, content=picture)

    def _sample(self, key: str, window: Window[Any]) -> Sample:
        sweep, before, topics = window.sweep, window.before, self._topics
        if sweep is None:
            problem = self._recording.problems[-1] if self._recording.problems else "a damaged part?"
            raise DamagedError("member-missing", f"message {window.number} of {topics.lidars[0]} is lost ({problem})")
        if before is not None and sweep.stamp_ns <= before.stamp_ns:
            how = "the same stamp as" if sweep.stamp_ns == before.stamp_ns else "a stamp before that of"
            detail = f"message {window.number} of {topics.lidars[0]} has {how} the message before it"
            raise DamagedError(
                "meta-broken", f"{detail}, {sweep.stamp_ns} ns (stamps=written goes by times of writing)"
            )
        motion = self._motion(window)
        points, intensity, times_s = self._sweeps.points(window, sweep, motion)
        stamp_ns = sweep.stamp_ns
        return Sample(
            key=key,
            log=self.name,
            timestamp_us=microseconds(stamp_ns),
            points_lidar=points,
            intensity=intensity,
            T_ego_lidar=motion.sensor(header_of(sweep.content)[2], stamp_ns),
            T_world_ego=motion.ego_at(stamp_ns),
            cameras=tuple(self._view(camera, window, sweep, motion) for camera in topics.cameras),
            times_s=times_s,
        )

    def _motion(self, window: Window[Any]) -> Motion:
        topics = self._topics
        stated = {topic: [one for held in window.around[topic] for one in held.content] for topic in self._moving}
        odometry = stated.pop(topics.odometry, [])
        frames = [topics.ego_frame, *(one.child for one in odometry[:1]), *self._sensor_frames]
        transforms = on_the_way([*self._always, *(one for several in stated.values() for one in several)], frames)
        if topics.odometry and not odometry:
            raise DamagedError("calibration-missing", f"no message of {topics.odometry} within reach of the sweep")
        return Motion(
            transforms,
            odometry,
            ego_frame=topics.ego_frame,
            world_frame=topics.world_frame,
            max_gap_ms=self._settings.max_pose_gap_ms,
            origin_m=self._origin,
            places=self._places,
        )

    @functools.cached_property
    def _sensor_frames(self) -> tuple[str, ...]:
        frames = [header_of(head)[2] for head in self._heads.values()]
        return tuple(dict.fromkeys([*frames, *(info.frame for info in self._infos.values())]))

    # ---- images
    def _view(self, name: str, window: Window[Any], sweep: Held[Any], motion: Motion) -> CameraView:
        topic = self._topics.cameras[name]
        gap_ms = self._settings.max_image_gap_ms
        found = near(topic, window, sweep, self._settings, max_gap_ms=gap_ms, what="image", setting="max_image_gap_ms")
        picture = found.content
        if not isinstance(picture, Picture):
            picture = read_picture(self._recording.topics[topic], picture, white=self._settings.image_max)
        camera = self._camera(name, picture.frame, found.stamp_ns, motion)
        jpeg, image = picture.jpeg, picture.rgb
        where = f"{topic} at {found.stamp_ns} ns"
        if image is None:
            image = _decoded(where, jpeg)
        if image.shape[:2] != camera.image_size:
            detail = f"{where} is {image.shape[:2]} (height, width), its calibration is for {camera.image_size}"
            raise DamagedError("image-size", detail)
        if camera.distortion is not None:
            jpeg, image = None, camera.undistorted(image)
        return CameraView(
            name=name,
            image_size=camera.image_size,
            K=camera.K,
            T_cam_ego=camera.T_cam_ego,
            T_world_ego=motion.ego_at(found.stamp_ns),
            timestamp_us=microseconds(found.stamp_ns),
            min_depth_m=self._settings.min_depth_m,
            image=image,
            jpeg=jpeg,
        )

    def _camera(self, name: str, frame: str, time_ns: int, motion: Motion) -> LogCamera:
        if self._calibration is not None:
            return self._calibration.cameras[name]
        info = self._infos[name]
        T_cam_ego = np.linalg.inv(motion.sensor(info.frame or frame, time_ns))
        if info.T_cam_frame is not None:
            T_cam_ego = info.T_cam_frame @ T_cam_ego
        return LogCamera(
            K=info.K,
            image_size=info.image_size,
            T_cam_ego=T_cam_ego,
            distortion=info.distortion,
            model=info.model,
            white=None,
        )


def _decoded(where: str, jpeg: bytes | None) -> UInt8[np.ndarray, "H W 3"]:
    assert jpeg is not None  # a picture has one of the two
    return decode_jpeg(where, jpeg)


def frame_key(log: str, number: int) -> str:
    """Key of a sample: by the number of its sweep in the topic, since stamps of a recording may occur twice."""
    return f"{log}_{number:06d}"


def microseconds(time_ns: int) -> int:
    """The nearest microsecond."""
    return (time_ns + 500) // 1000
