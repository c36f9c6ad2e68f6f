"""Frame messages of Waymo's first format, without TensorFlow.

The schema below names the fields in use only; protobuf passes over the others. Range images lie inside as
zlib-compressed messages of their own.

Source: the official dataset.proto and label.proto for names and numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from jaxtyping import Float32, Int32

from common.protobuf_schema import message_classes
from data.convert.waymo import frame as waymo
from data.convert.waymo.frame import CAMERAS, LASERS, CameraCalibration, LaserCalibration, RawCamera, RawFrame, RawLaser
from data.storage.damage import DamagedError

_MAX_UNZIPPED_BYTES = 1 << 26
"""A range image with six channels has 4 MB."""

# ---- schema
_SCHEMA: dict[str, str] = {
    "Transform": "transform=1:double*",
    # Packed repeated floats are the floats' bytes, one after another: read as such they need no loop.
    "MatrixFloat": "data=1:bytes shape=2:MatrixShape",
    "MatrixInt32": "data=1:int32* shape=2:MatrixShape",
    "MatrixShape": "dims=1:int32*",
    "CameraCalibration": "name=1:int32 intrinsic=2:double* extrinsic=3:Transform width=4:int32 height=5:int32",
    "LaserCalibration": "name=1:int32 beam_inclinations=2:double* beam_inclination_min=3:double "
    "beam_inclination_max=4:double extrinsic=5:Transform",
    "Context": "name=1:string camera_calibrations=2:CameraCalibration* laser_calibrations=3:LaserCalibration*",
    "CameraImage": "name=1:int32 image=2:bytes pose=3:Transform pose_timestamp=5:double",
    "RangeImage": "range_image_compressed=2:bytes range_image_pose_compressed=4:bytes "
    "segmentation_label_compressed=6:bytes",
    "Laser": "name=1:int32 ri_return1=2:RangeImage ri_return2=3:RangeImage",
    "Box": "center_x=1:double center_y=2:double center_z=3:double width=4:double length=5:double height=6:double "
    "heading=7:double",
    "Metadata": "speed_x=1:double speed_y=2:double speed_z=5:double",
    "Label": "box=1:Box metadata=2:Metadata type=3:int32 id=4:string detection_difficulty_level=5:int32 "
    "num_lidar_points_in_box=7:int32",
    "Frame": "context=1:Context timestamp_micros=2:int64 pose=3:Transform images=4:CameraImage* lasers=5:Laser* "
    "laser_labels=6:Label*",
}
"""As `message_classes` takes it."""

_CLASSES = message_classes("tandem.waymo", _SCHEMA)


def _parse(kind: str, data: bytes, what: str) -> Any:
    try:
        return _CLASSES[kind].FromString(data)
    except (DecodeError, RecursionError) as error:
        raise DamagedError("meta-broken", f"{what} is no {kind} message: {error}") from error


# ---- frames
def raw_frame(message: bytes, what: str, parts: waymo.WaymoParts) -> RawFrame:
    """The given parts of a serialised Frame message; `what` names the frame in messages.

    Raises:
        DamagedError: no such message, or a part in it is damaged.
    """
    frame = _parse("Frame", message, what)
    lasers = {
        waymo.name_of(LASERS, entry.name): _laser_calibration(entry, what) for entry in frame.context.laser_calibrations
    }
    images = {waymo.name_of(CAMERAS, image.name): image for image in frame.images}
    scans = {waymo.name_of(LASERS, laser.name): laser for laser in frame.lasers}
    read = {name: _laser(scans[name], lasers, name, what, parts) for name in parts.lasers if name in scans}
    return RawFrame(
        timestamp_us=frame.timestamp_micros,
        T_world_vehicle=waymo.matrix(f"{what}: pose", _doubles(frame.pose.transform)),
        top=waymo.calibration_of("top", lasers),
        lasers={name: laser for name, laser in read.items() if laser is not None},
        cameras={
            name: RawCamera(
                jpeg=images[name].image,
                T_world_vehicle=waymo.matrix(f"{what}: pose of image {name}", _doubles(images[name].pose.transform)),
                time_s=images[name].pose_timestamp,
            )
            for name in parts.cameras
            if name in images
        },
        camera_calibrations={
            waymo.name_of(CAMERAS, entry.name): _camera_calibration(entry, what)
            for entry in frame.context.camera_calibrations
        },
        boxes=_boxes(frame.laser_labels),
    )


def _doubles(values: Any) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(values, dtype=np.float64)


def _laser_calibration(entry: Any, what: str) -> LaserCalibration:
    return LaserCalibration(
        T_vehicle_laser=waymo.matrix(f"{what}: extrinsic of laser {entry.name}", _doubles(entry.extrinsic.transform)),
        inclinations=_doubles(entry.beam_inclinations),
        inclination_range=(entry.beam_inclination_min, entry.beam_inclination_max),
    )


def _camera_calibration(entry: Any, what: str) -> CameraCalibration:
    intrinsics = _doubles(entry.intrinsic)
    if intrinsics.size != 9:
        detail = f"{what}: {intrinsics.size} intrinsics of camera {entry.name}, expected 9"
        raise DamagedError("calibration-missing", detail)
    return CameraCalibration(
        intrinsics=intrinsics,
        T_vehicle_cam=waymo.matrix(f"{what}: extrinsic of camera {entry.name}", _doubles(entry.extrinsic.transform)),
        image_size=(entry.height, entry.width),
    )


def _laser(
    laser: Any, calibrations: Mapping[str, LaserCalibration], name: str, what: str, parts: waymo.WaymoParts
) -> RawLaser | None:
    images = [image for image in (laser.ri_return1, laser.ri_return2) if image.range_image_compressed]
    returns = tuple(_floats(image.range_image_compressed, 4, what) for image in images[: parts.num_returns])
    if not returns:
        return None
    pose = laser.ri_return1.range_image_pose_compressed
    return RawLaser(
        calibration=waymo.calibration_of(name, calibrations),
        returns=returns,
        segmentation=tuple(
            _integers(image.segmentation_label_compressed, 2, what)
            if parts.segmentation and image.segmentation_label_compressed
            else None
            for image in images[: parts.num_returns]
        ),
        pose=_floats(pose, 6, what) if pose else None,
    )


def _unzip(data: bytes, what: str) -> bytes:
    stream = zlib.decompressobj()
    try:
        unzipped = stream.decompress(data, _MAX_UNZIPPED_BYTES)
    except zlib.error as error:
        raise DamagedError("array-broken", f"{what}: a range image is no zlib stream: {error}") from error
    if not stream.eof:
        raise DamagedError("array-broken", f"{what}: a range image is cut, or larger than {_MAX_UNZIPPED_BYTES} bytes")
    return unzipped


def _floats(data: bytes, channels: int, what: str) -> Float32[np.ndarray, "H W C"]:
    content = _parse("MatrixFloat", _unzip(data, what), what)
    if len(content.data) % 4:
        raise DamagedError("array-broken", f"{what}: a range image of {len(content.data)} bytes")
    image: Float32[np.ndarray, "H W C"] = _shaped(np.frombuffer(content.data, "<f4"), content.shape, channels, what)
    return image


def _integers(data: bytes, channels: int, what: str) -> Int32[np.ndarray, "H W C"]:
    content = _parse("MatrixInt32", _unzip(data, what), what)
    image: Int32[np.ndarray, "H W C"] = _shaped(np.array(content.data, dtype=np.int32), content.shape, channels, what)
    return image


def _shaped(values: Any, stated: Any, channels: int, what: str) -> Any:
    shape = tuple(stated.dims)
    if not (len(shape) == 3 and min(shape) > 0 and shape[2] == channels and np.prod(shape) == values.size):
        raise DamagedError("array-broken", f"{what}: {values.size} values of shape {shape}, expected {channels} a cell")
    return values.reshape(shape)


def _boxes(labels: Any) -> waymo.RawBoxes:
    rows, velocities, counts = [], [], []
    for label in labels:
        box, speed = label.box, label.metadata
        rows.append((box.center_x, box.center_y, box.center_z, box.length, box.width, box.height, box.heading))
        known = label.HasField("metadata")
        counts.append(label.num_lidar_points_in_box if label.HasField("num_lidar_points_in_box") else -1)
        velocities.append((speed.speed_x, speed.speed_y, speed.speed_z) if known else (np.nan,) * 3)
    return waymo.RawBoxes(
        table=np.array(rows, dtype=np.float64).reshape(-1, 7),
        velocities=np.array(velocities, dtype=np.float64).reshape(-1, 3),
        types=np.array([label.type for label in labels], dtype=np.int64),
        ids=tuple(label.id for label in labels),
        num_points=np.array(counts, dtype=np.int64),
        difficulties=np.array([label.detection_difficulty_level or -1 for label in labels], dtype=np.int64),
    )
