"""A scene as MCAP with Foxglove's schemas, as protocol buffers (extra [foxglove]).

Topics: /tf, /lidar/<cloud> (PointCloud), /lidar/boxes (SceneUpdate), and for each camera /camera/<name>/image
(CompressedImage), /calibration (CameraCalibration), /pairs (ImageAnnotations) and /superpixels, the image with their
borders. Times are those of the sensors. Every field that is a message is there, also where it holds zeros alone:
Foxglove's JSON schemas require them, and readers that go by those get nothing of a field that protobuf left out.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from common.files import replacing
from configs.load import ArgumentError
from launchers.drawing.canvas import jpeg_bytes
from launchers.drawing.scene_description import Cloud, Scene, SceneBoxes, SceneCamera, SceneFrame, quaternion
from launchers.drawing.scenes import superpixel_view

_MESSAGES = (
    *("CameraCalibration", "CompressedImage", "FrameTransforms", "ImageAnnotations", "PointCloud", "SceneUpdate"),
    *("PackedElementField", "PointsAnnotation"),
)
_PIXEL_CORNER = 0.5
"""Foxglove's annotations count from the corner of the top-left pixel; its calibrations, as ROS's, from its centre."""
_BOX_ALPHA = 0.35


def write_foxglove(scene: Scene, path: Path) -> int:
    """Write an .mcap file, whole or not at all; returns the number of frames.

    Raises:
        ArgumentError: the libraries are not installed.
    """
    schemas, writer_type = _import()
    frames = 0
    with replacing(path, durable=False) as temporary, temporary.open("wb") as file:
        writer = writer_type(file)
        writer.add_metadata("scene", {"title": scene.title})
        out = _Writer(writer, schemas)
        for frame in scene.frames:
            out.write(frame)
            frames += 1
        writer.finish()
    return frames


def _import() -> tuple[Mapping[str, Any], Any]:
    """Message classes by name, and the writer."""
    try:
        names = {name: importlib.import_module(f"foxglove_schemas_protobuf.{name}_pb2") for name in _MESSAGES}
        writer = importlib.import_module("mcap_protobuf.writer")
    except ImportError as error:
        raise ArgumentError(
            f"--foxglove needs mcap and Foxglove's schemas ({error}): pip install 'tandem-pretrain[foxglove]'"
        ) from error
    return {name: getattr(module, name) for name, module in names.items()}, writer.Writer


class _Writer:
    """Messages of a scene's frames."""

    def __init__(self, writer: Any, schemas: Mapping[str, Any]) -> None:
        self._writer, self._schemas, self._sent = writer, schemas, 0
        self._posed: set[int] = set()

    def write(self, frame: SceneFrame) -> None:
        """All of a frame."""
        tf = self._schemas["FrameTransforms"]()
        self._pose(tf, frame.time_us, frame.T_world_ego)
        self._transform(tf, frame.time_us, "ego", "lidar", frame.T_ego_lidar)
        self._send("/tf", tf, frame.time_us)
        for cloud in frame.clouds:
            self._send(f"/lidar/{cloud.name}", self._cloud(cloud, frame.time_us), frame.time_us)
        if frame.boxes is not None:
            self._send("/lidar/boxes", self._boxes(frame.boxes, frame.time_us), frame.time_us)
        for camera in frame.cameras:
            self._camera(camera)

    def _send(self, topic: str, message: Any, time_us: int) -> None:
        self._writer.write_message(
            topic, message, log_time=time_us * 1000, publish_time=time_us * 1000, sequence=self._sent
        )
        self._sent += 1

    def _pose(self, tf: Any, time_us: int, T_world_ego: np.ndarray) -> None:
        """Where the vehicle is; the first one of each time, since two that differ are no pose to who reads them."""
        if time_us not in self._posed:
            self._posed.add(time_us)
            self._transform(tf, time_us, "world", "ego", T_world_ego)

    def _transform(self, tf: Any, time_us: int, parent: str, child: str, T: np.ndarray) -> None:
        one = tf.transforms.add(parent_frame_id=parent, child_frame_id=child)
        _stamp(one.timestamp, time_us)
        one.translation.x, one.translation.y, one.translation.z = T[:3, 3].tolist()
        one.rotation.x, one.rotation.y, one.rotation.z, one.rotation.w = quaternion(T)

    def _cloud(self, cloud: Cloud, time_us: int) -> Any:
        message = self._schemas["PointCloud"](frame_id="lidar")
        _stamp(message.timestamp, time_us)
        message.pose.position.SetInParent()
        message.pose.orientation.w = 1.0
        numbers = self._schemas["PackedElementField"]
        columns: list[tuple[str, str]] = [(name, "<f4") for name in ("x", "y", "z", *cloud.values)]
        columns += [(name, "u1") for name in ("red", "green", "blue", "alpha")]
        rows = np.zeros(len(cloud.points), dtype=columns)
        for axis, name in enumerate("xyz"):
            rows[name] = cloud.points[:, axis]
        for name, values in cloud.values.items():
            rows[name] = values
        for channel, name in enumerate(("red", "green", "blue")):
            rows[name] = cloud.colours[:, channel]
        rows["alpha"] = 255
        for name, kind in columns:
            offset = rows.dtype.fields[name][1] if rows.dtype.fields else 0
            message.fields.add(name=name, offset=offset, type=numbers.FLOAT32 if kind == "<f4" else numbers.UINT8)
        message.point_stride = rows.dtype.itemsize
        message.data = rows.tobytes()
        return message

    def _boxes(self, boxes: SceneBoxes, time_us: int) -> Any:
        message = self._schemas["SceneUpdate"]()
        # One entity of a fixed name: the next one replaces it, also where that has no boxes.
        entity = message.entities.add(id="boxes", frame_id="lidar", frame_locked=True)
        _stamp(entity.timestamp, time_us)
        entity.lifetime.SetInParent()  # 0: until it is replaced
        for number, name in enumerate(boxes.names):
            cube, text = entity.cubes.add(), entity.texts.add(text=name, billboard=True, font_size=0.6)
            x, y, z = boxes.centers_m[number].tolist()
            cube.pose.position.x, cube.pose.position.y, cube.pose.position.z = x, y, z
            yaw = float(boxes.yaws[number])
            cube.pose.orientation.z, cube.pose.orientation.w = np.sin(yaw / 2), np.cos(yaw / 2)
            cube.size.x, cube.size.y, cube.size.z = boxes.sizes_m[number].tolist()
            _colour(cube.color, boxes.colours[number], _BOX_ALPHA)
            text.pose.position.x, text.pose.position.y = x, y
            text.pose.position.z = z + float(boxes.sizes_m[number, 2]) / 2 + 0.5
            text.pose.orientation.w = 1.0
            _colour(text.color, boxes.colours[number])
        return message

    def _camera(self, camera: SceneCamera) -> None:
        frame_id, at = f"camera/{camera.name}", camera.time_us
        tf = self._schemas["FrameTransforms"]()
        self._pose(tf, at, camera.T_world_ego)
        self._transform(tf, at, "world", frame_id, camera.T_world_cam)
        self._send("/tf", tf, at)
        height, width = camera.image_size
        calibration = self._schemas["CameraCalibration"](frame_id=frame_id, width=width, height=height)
        _stamp(calibration.timestamp, at)
        calibration.K.extend(camera.K.ravel().tolist())
        calibration.R.extend(np.eye(3).ravel().tolist())
        calibration.P.extend(np.c_[camera.K, np.zeros(3)].ravel().tolist())
        self._send(f"/camera/{camera.name}/calibration", calibration, at)
        self._send(f"/camera/{camera.name}/image", self._image(camera.jpeg, frame_id, at), at)
        if camera.superpixels is not None:
            encoded = np.frombuffer(camera.jpeg, np.uint8)
            image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
            assert image is not None  # the reader has looked at it
            view = superpixel_view(np.ascontiguousarray(image[..., ::-1]), camera.superpixels, target_width=width)
            self._send(f"/camera/{camera.name}/superpixels", self._image(jpeg_bytes(view), frame_id, at), at)
        self._send(f"/camera/{camera.name}/pairs", self._pairs(camera), at)

    def _image(self, jpeg: bytes, frame_id: str, time_us: int) -> Any:
        message = self._schemas["CompressedImage"](frame_id=frame_id, data=jpeg, format="jpeg")
        _stamp(message.timestamp, time_us)
        return message

    def _pairs(self, camera: SceneCamera) -> Any:
        message = self._schemas["ImageAnnotations"]()
        points = message.points.add(type=self._schemas["PointsAnnotation"].POINTS, thickness=3.0)
        for stamp in (message.timestamp, points.timestamp):
            _stamp(stamp, camera.time_us)
        for colour in (points.outline_color, points.fill_color):  # each point has its own
            colour.SetInParent()
        for (u, v), rgb in zip((camera.pairs_uv + _PIXEL_CORNER).tolist(), camera.pairs_colours, strict=True):
            points.points.add(x=u, y=v)
            _colour(points.outline_colors.add(), rgb)
        return message


def _stamp(timestamp: Any, time_us: int) -> None:
    timestamp.seconds, rest = divmod(time_us, 1_000_000)
    timestamp.nanos = rest * 1000


def _colour(message: Any, colour: UInt8[np.ndarray, " 3"], alpha: float = 1.0) -> None:
    message.r, message.g, message.b = (colour / 255).tolist()
    message.a = alpha
