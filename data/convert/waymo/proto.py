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
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from jaxtyping import Float32, Int32

from data.convert.waymo.frame import (
    CAMERAS,
    LASERS,
    CameraCalibration,
    LaserCalibration,
    RawBoxes,
    RawCamera,
    RawFrame,
    RawLaser,
    WaymoParts,
    calibration_of,
    matrix,
)
from data.storage.encode import DamagedError

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
"""Message -> its fields: name=number:type, a star for repeated ones."""

_SCALARS = {
    "double": descriptor_pb2.FieldDescriptorProto.TYPE_DOUBLE,
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
}
_PACKAGE = "tandem.waymo"


def _message_classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="tandem_waymo.proto", package=_PACKAGE, syntax="proto2")
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for text in fields.split():
            field_name, _, rest = text.partition("=")
            number, _, kind = rest.partition(":")
            field = message.field.add(name=field_name, number=int(number))
            field.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            if kind.rstrip("*") in _SCALARS:
                field.type = _SCALARS[kind.rstrip("*")]
            else:
                field.type, field.type_name = field.TYPE_MESSAGE, f".{_PACKAGE}.{kind.rstrip('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _SCHEMA}


_CLASSES = _message_classes()


def _parse(kind: str, data: bytes, what: str) -> Any:
    try:
        return _CLASSES[kind].FromString(data)
    except (DecodeError, RecursionError) as error:
        raise DamagedError("meta-broken", f"{what} is no {kind} message: {error}") from error


# ---- frames
def raw_frame(message: bytes, what: str, wanted: WaymoParts) -> RawFrame:
    """The parts of a Frame message that are wanted.

    Args:
        message: serialised.
        what: the frame's name, for messages.
        wanted: which parts.

    Raises:
        DamagedError: no such message, or a part in it is damaged.
    """
    frame = _parse("Frame", message, what)
    lasers = {_name(LASERS, entry.name): _laser_calibration(entry, what) for entry in frame.context.laser_calibrations}
    images = {_name(CAMERAS, image.name): image for image in frame.images}
    scans = {_name(LASERS, laser.name): laser for laser in frame.lasers}
    read = {name: _laser(scans[name], lasers, name, what, wanted) for name in wanted.lasers if name in scans}
    return RawFrame(
        timestamp_us=frame.timestamp_micros,
        T_world_vehicle=matrix(f"{what}: pose", _doubles(frame.pose.transform)),
        top=calibration_of("top", lasers),
        lasers={name: laser for name, laser in read.items() if laser is not None},
        cameras={name: _camera(images[name], name, what) for name in wanted.cameras if name in images},
        camera_calibrations={
            _name(CAMERAS, entry.name): _camera_calibration(entry, what) for entry in frame.context.camera_calibrations
        },
        boxes=_boxes(frame.laser_labels),
    )


def _name(names: Mapping[str, int], number: int) -> str:
    return next((name for name, value in names.items() if value == number), f"unknown_{number}")


def _doubles(values: Any) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(values, dtype=np.float64)


def _laser_calibration(entry: Any, what: str) -> LaserCalibration:
    return LaserCalibration(
        T_vehicle_laser=matrix(f"{what}: extrinsic of laser {entry.name}", _doubles(entry.extrinsic.transform)),
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
        T_vehicle_cam=matrix(f"{what}: extrinsic of camera {entry.name}", _doubles(entry.extrinsic.transform)),
        image_size=(entry.height, entry.width),
    )


def _camera(image: Any, name: str, what: str) -> RawCamera:
    return RawCamera(
        jpeg=image.image,
        T_world_vehicle=matrix(f"{what}: pose of image {name}", _doubles(image.pose.transform)),
        time_s=image.pose_timestamp,
    )


def _laser(
    laser: Any, calibrations: Mapping[str, LaserCalibration], name: str, what: str, wanted: WaymoParts
) -> RawLaser | None:
    images = [image for image in (laser.ri_return1, laser.ri_return2) if image.range_image_compressed]
    returns = tuple(_floats(image.range_image_compressed, 4, what) for image in images[: wanted.num_returns])
    if not returns:
        return None
    pose = laser.ri_return1.range_image_pose_compressed
    return RawLaser(
        calibration=calibration_of(name, calibrations),
        returns=returns,
        segmentation=tuple(
            _integers(image.segmentation_label_compressed, 2, what)
            if wanted.segmentation and image.segmentation_label_compressed
            else None
            for image in images[: wanted.num_returns]
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
    values = np.frombuffer(content.data, "<f4")
    image: Float32[np.ndarray, "H W C"] = _shaped(values, content.shape.dims, channels, what)
    return image


def _integers(data: bytes, channels: int, what: str) -> Int32[np.ndarray, "H W C"]:
    content = _parse("MatrixInt32", _unzip(data, what), what)
    values = np.array(content.data, dtype=np.int32)
    image: Int32[np.ndarray, "H W C"] = _shaped(values, content.shape.dims, channels, what)
    return image


def _shaped(values: Any, dims: Any, channels: int, what: str) -> Any:
    shape = tuple(dims)
    fits = len(shape) == 3 and min(shape) > 0 and shape[2] == channels and np.prod(shape) == values.size
    if not fits:
        raise DamagedError("array-broken", f"{what}: {values.size} values of shape {shape}, expected {channels} a cell")
    return values.reshape(shape)


def _boxes(labels: Any) -> RawBoxes:
    rows, velocities = [], []
    for label in labels:
        box, speed = label.box, label.metadata
        rows.append((box.center_x, box.center_y, box.center_z, box.length, box.width, box.height, box.heading))
        known = label.HasField("metadata")
        velocities.append((speed.speed_x, speed.speed_y, speed.speed_z) if known else (np.nan,) * 3)
    return RawBoxes(
        table=np.array(rows, dtype=np.float64).reshape(-1, 7),
        velocities=np.array(velocities, dtype=np.float64).reshape(-1, 3),
        types=np.array([label.type for label in labels], dtype=np.int64),
        ids=tuple(label.id for label in labels),
        num_points=np.array([_or_unknown(label, "num_lidar_points_in_box") for label in labels], dtype=np.int64),
        difficulties=np.array([label.detection_difficulty_level or -1 for label in labels], dtype=np.int64),
    )


def _or_unknown(label: Any, field: str) -> int:
    return int(getattr(label, field)) if label.HasField(field) else -1
