"""`rosbag` and `mcap`: anyone's recordings, as the robot or the vehicle wrote them. docs/recordings.md describes it.

SRC is a recording (a .bag, a .db3, an .mcap, a bag's folder), or a folder of recordings, each of which is a log.

Each sweep of the first LiDAR becomes a sample with each camera's nearest image in time. The ego pose of the sweep and
of each image is interpolated to its own time, so that what the vehicle drove in between is in the projection.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from common.constants import MIN_DEPTH_M
from common.ranges import at_least, expect, one_of, positive
from data.convert.base import NO_CAMERA, Converter, Skipped, unique_logs
from data.convert.custom.formats import LogCalibration, read_calibration
from data.convert.logs.base import LogSettings, Recording
from data.convert.logs.first_settings import guess
from data.convert.logs.open import find_recordings, open_recording
from data.convert.logs.overview import look_over
from data.convert.logs.pairing import ReadSettings
from data.convert.logs.reader import LogReader, frame_key
from data.convert.logs.survey import Survey, survey
from data.convert.logs.topics_file import check_topics, read_topics
from data.sample import Sample
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

_CAMERA_NAME = re.compile(r"[A-Za-z0-9_]+\Z")


@dataclass(frozen=True, kw_only=True)
class RecordingConverter(Converter):
    """Settings and reader of recordings.

    Attributes:
        source: a recording, or a folder of them.
        topics: YAML file that says which topics are what, as `tandem inspect RECORDING --settings FILE.yaml` writes
            it; "": by their types, where that leaves no choice.
        calibration: file in the form of `custom`'s calibration.json, stronger than what the recordings say of the first
            LiDAR and the cameras, for recordings without transforms or camera info; "" without.
        cameras: which, in this order; () for all that the topics name; ("none",) for sweeps only.
        val_logs: logs of the split "val"; all others are "train".
        every: only each n-th sweep becomes a sample.
        intensity_max: the intensity that becomes 1; larger ones are clipped to it. None: the sensor measures none.
        image_max: the value of 16-bit images that becomes 255; None for 8-bit ones.
        deskew: move each point by the vehicle's motion from its own time to the sweep's stamp; for drivers that do not
            do so themselves and that give each point a time.
        keep_times: store how long before the sweep's stamp each point was measured.
        stamps: sensors are paired by the stamps of their messages ("header"), or by when these were written
            ("written"), where the sensors have clocks of their own.
        max_image_gap_ms: a sweep whose nearest image of any camera is further away in time is skipped.
        max_lidar_gap_ms: the same for the nearest sweep of each other LiDAR.
        max_pose_gap_ms: poses further apart are not interpolated between.
        max_delay_ms: what is written later than this before or after a sweep does not belong to it.
        min_depth_m: points nearer to a camera's plane make no pair with its pixels; indoors less than 1 m is right.
        drives_forward: poses by which a log's vehicle drives backwards or sideways are refused; False where one really
            does.
    """

    source: str
    topics: str = ""
    calibration: str = ""
    cameras: tuple[str, ...] = ()
    val_logs: tuple[str, ...] = ()
    every: int = 1
    intensity_max: float | None = 255.0
    image_max: float | None = None
    deskew: bool = False
    keep_times: bool = False
    stamps: Literal["header", "written"] = "header"
    max_image_gap_ms: float = 60.0
    max_lidar_gap_ms: float = 60.0
    max_pose_gap_ms: float = 500.0
    max_delay_ms: float = 500.0
    min_depth_m: float = MIN_DEPTH_M
    drives_forward: bool = True

    def __post_init__(self) -> None:
        positive(self, "max_image_gap_ms", "max_lidar_gap_ms", "max_pose_gap_ms", "max_delay_ms", "min_depth_m")
        positive(self, *(name for name in ("intensity_max", "image_max") if getattr(self, name) is not None))
        at_least(self, every=1)
        one_of(self, stamps=("header", "written"))
        alone = self.cameras == NO_CAMERA or NO_CAMERA[0] not in self.cameras
        expect(self, "cameras", alone, "names of the topics file, or none alone")

    def settings(self) -> dict[str, Any]:
        """Those that the samples depend on: what files say, not where they are; not `drives_forward`."""
        own = {name: value for name, value in super().settings().items() if name != "drives_forward"}
        if self.topics:
            own["topics"] = dataclasses.asdict(self._named_topics)
        if self.calibration:
            own["calibration"] = _text_of(self.calibration)
        return own

    # ---- what is there
    @cached_property
    def _named_topics(self) -> LogSettings:
        return read_topics(Path(self.topics))

    @cached_property
    def _calibration(self) -> LogCalibration | None:
        try:
            return read_calibration(Path(self.calibration)) if self.calibration else None
        except DamagedError as error:
            raise ShardError(error.detail) from error

    @cached_property
    def _surveys(self) -> dict[str, Survey]:
        """By log. Indexes of hundreds of gigabytes are read once, and sent to the workers."""
        found = find_recordings(self.source)
        named = ((_log_name(name), paths[0], paths) for name, paths in found.items())
        return {name: self._survey(name, paths) for name, paths in unique_logs(named).items()}

    def _survey(self, name: str, paths: tuple[Path, ...]) -> Survey:
        with open_recording(paths) as recording:
            if self.topics:
                topics, left_out = self._named_topics, tuple[str, ...]()
            else:
                first = guess(look_over(recording))
                topics = first.without_choice(paths[0])
                left_out = tuple(f"{field}: {said}" for field, several in first.left_out.items() for said in several)
            check_topics(topics, recording.topics, self.topics or paths[0])
            found = survey(name, paths, recording, self._chosen(topics, name), self._read_settings(), self.every)
            return dataclasses.replace(found, notes=(*(f"{name}: {said}" for said in left_out), *found.notes))

    def _chosen(self, topics: LogSettings, log: str) -> LogSettings:
        """The topics with those cameras only that are read."""
        names = () if self.cameras == NO_CAMERA else self.cameras or tuple(topics.cameras)
        for name in names:
            if name not in topics.cameras:
                known = ", ".join(topics.cameras) or "none"
                raise ShardError(f"{self.source}: log {log} has no camera {name!r}, its cameras are {known}")
            if not _CAMERA_NAME.match(name):
                raise ShardError(f"{self.source}: camera {name!r}: expected letters, digits and '_' only")
        infos = {name: topics.camera_infos[name] for name in names if name in topics.camera_infos}
        return dataclasses.replace(topics, cameras={name: topics.cameras[name] for name in names}, camera_infos=infos)

    def camera_names(self) -> tuple[str, ...]:
        """The same in every log: a set has one list of cameras."""
        if self.cameras == NO_CAMERA:
            return ()
        first, *others = self._surveys.items()
        for log, found in others:
            if tuple(found.topics.cameras) != tuple(first[1].topics.cameras):
                raise ShardError(
                    f"{self.source}: log {log} has the cameras {list(found.topics.cameras)}, {first[0]} has "
                    f"{list(first[1].topics.cameras)}; choose with cameras=[...] those that are in every log"
                )
        return tuple(first[1].topics.cameras)

    def logs(self) -> tuple[str, ...]:
        """Names of the recordings, by name."""
        unknown = sorted(set(self.val_logs) - set(self._surveys))
        if unknown:
            known = ", ".join(self._surveys)
            raise ShardError(f"val_logs names {unknown[0]!r}, which is not in {self.source} ({known})")
        return tuple(self._surveys)

    def split_of(self, log: str) -> str:
        """As `val_logs` says."""
        return "val" if log in self.val_logs else "train"

    def num_frames(self, log: str) -> int:
        """Sweeps of the first LiDAR that lie between poses and images, by the recording's index; each n-th of them."""
        return len(self._surveys[log].numbers)

    def frames(self, log: str, start: int, stop: int) -> Iterator[Sample | Skipped]:
        """Sweeps in the order in which they were written; a damaged or lost one is named and left out."""
        found = self._surveys[log]
        numbers = found.numbers[start:stop]
        if not numbers:
            return
        try:
            reader = self._reader(log)
        except DamagedError as error:
            yield from (Skipped.of(error, frame_key(log, number), log) for number in numbers)
            return
        yield from reader.items(found.written_ns, numbers)

    def _reader(self, log: str) -> LogReader:
        """The log's reader, kept for the next part of the same log."""
        found = self._surveys[log]
        if _KEPT.get("survey") is not found:
            forget_reader()
            recording = _KEPT["recording"] = open_recording(found.paths)
            _KEPT["reader"] = LogReader(log, recording, found.topics, self._read_settings(), self._calibration)
            _KEPT["survey"] = found
        reader: LogReader = _KEPT["reader"]
        return reader

    def _read_settings(self) -> ReadSettings:
        names = [field.name for field in dataclasses.fields(ReadSettings) if field.name != "by_header"]
        return ReadSettings(**{name: getattr(self, name) for name in names}, by_header=self.stamps == "header")

    def notes(self) -> tuple[str, ...]:
        """What was left out, and what recordings lack."""
        notes = [note for found in self._surveys.values() for note in found.notes]
        return (*notes, *(["intensity_max is null, every intensity is 0"] if self.intensity_max is None else []))


@dataclass(frozen=True, kw_only=True)
class RosbagConverter(RecordingConverter):
    """Bags of ROS 1 and ROS 2."""

    set_name: ClassVar[str] = "rosbag"


@dataclass(frozen=True, kw_only=True)
class McapConverter(RecordingConverter):
    """MCAP files."""

    set_name: ClassVar[str] = "mcap"


_KEPT: dict[str, Any] = {}
"""The recording that this process has open, and its reader: opening a long one reads its index."""


def forget_reader() -> None:
    """Close the recording that this process has open, if there is one."""
    recording: Recording | None = _KEPT.pop("recording", None)
    _KEPT.clear()
    if recording is not None:
        recording.close()


def _log_name(name: str) -> str:
    """A recording's name as that of a log: letters, digits, '-' and '_'."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ShardError(f"{path} cannot be read: {error}") from error
