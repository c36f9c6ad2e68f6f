"""Writes frames of the street world as the Waymo Open Dataset publishes them: TFRecord segments and v2 Parquet folders.

A street sweep becomes range images of five lasers: each point goes into the cell whose ray passes nearest, the top
laser's in the vehicle pose of that cell's own firing. What a reader must get back (`WaymoTruth`) is computed here cell
by cell from the published formulas, in plain python floats, from the float32 numbers that are written.

Nothing of the converter is used: messages, CRCs and tables are made from the published descriptions.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.sample import Sample
from tests.helpers.street_logs import CLASS_NAMES

CAMERAS = ("front", "front_left", "front_right", "side_left", "side_right")
"""Numbers 1 to 5 of the files."""

LASERS = ("top", "front", "side_left", "side_right", "rear")
"""Numbers 1 to 5 of the files."""

# Street class -> number in segmentation.proto; what is absent is undefined there.
_CLASS_NUMBER = {
    "road": 18,
    "parking": 20,
    "sidewalk": 22,
    "terrain": 21,
    "building": 14,
    "vegetation": 15,
    "trunk": 16,
    "pole": 10,
    "sign": 8,
    "car": 1,
    "truck": 2,
    "bus": 3,
    "pedestrian": 7,
    "cyclist": 6,
}
_BOX_NUMBER = {"car": 1, "truck": 1, "bus": 1, "pedestrian": 2, "cyclist": 4}

_CAMERA_AXES = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""From x right, y down, z forward to x forward, y left, z up."""

_WORLD_ORIGIN_M = np.array([-25211.0, 42391.0, -160.0])
"""Far from zero, as the set's own coordinates are."""

_TURN_S = 0.1
_DISTORTION = (0.04, -0.33, 0.001, -0.0016, 0.0)


@dataclass(frozen=True, kw_only=True)
class WaymoOptions:
    """What is written.

    Attributes:
        segment: context name.
        shapes: rows, columns of the range images: top laser, the others.
        speed_mps: of the vehicle along x during a turn.
        yaw_rate: of the vehicle, rad/s.
        segmented: frames that have point classes.
        distorted: give the cameras' lenses distortion.
        jpeg_quality: of the images.
        without_images: cameras that are left out of each frame.
        without_ranges: write no range images, as in copies that were stripped of them.
        rows_a_group: of the Parquet files.
    """

    segment: str = "1024360143612057520_3580_000_3600_000"
    shapes: tuple[tuple[int, int], tuple[int, int]] = ((16, 180), (12, 60))
    speed_mps: float = 12.0
    yaw_rate: float = 0.2
    segmented: tuple[int, ...] = (0, 2)
    distorted: bool = False
    jpeg_quality: int = 92
    without_images: tuple[str, ...] = ()
    without_ranges: bool = False
    rows_a_group: int = 7


@dataclass(kw_only=True)
class WaymoTruth:
    """What a reader must find in a frame.

    Attributes:
        points_vehicle: laser by laser (as `LASERS`), return by return, row by row.
        street_index: point of the street sweep that each one stands for.
        intensity: as written, before any scaling.
        laser: index into `LASERS` of each point.
        returned: 0 first, 1 second return.
        no_label_zone: whether the point's cell is in one.
        class_number: as in segmentation.proto; 0 also where the frame has no segmentation.
        instance: as written.
        T_world_vehicle: pose of the frame.
        timestamp_us: of the frame.
        box_ids: name of each box's object.
    """

    points_vehicle: list[tuple[float, float, float]] = field(default_factory=list)
    street_index: list[int] = field(default_factory=list)
    intensity: list[float] = field(default_factory=list)
    laser: list[int] = field(default_factory=list)
    returned: list[int] = field(default_factory=list)
    no_label_zone: list[bool] = field(default_factory=list)
    class_number: list[int] = field(default_factory=list)
    instance: list[int] = field(default_factory=list)
    T_world_vehicle: np.ndarray = field(default_factory=lambda: np.eye(4))
    timestamp_us: int = 0
    box_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _LaserImages:
    """Range images of a laser, one a return."""

    returns: list[np.ndarray]
    segmentation: list[np.ndarray]
    pose: np.ndarray | None


@dataclass(frozen=True)
class _Frame:
    """What both formats write down."""

    sample: Sample
    T_world_vehicle: np.ndarray
    timestamp_us: int
    lasers: dict[str, _LaserImages]
    segmented: bool
    boxes: list[dict[str, Any]]


# ---- calibration
def laser_calibration(name: str, options: WaymoOptions) -> dict[str, Any]:
    """Extrinsics, and inclinations in ascending order: listed for the top laser, limits for the others."""
    place, yaw = {
        "top": ((1.43, 0.0, 2.184), 2.58),
        "front": ((4.07, 0.0, 0.69), 0.01),
        "side_left": ((3.25, 1.03, 0.98), 1.57),
        "side_right": ((3.25, -1.03, 0.98), -1.55),
        "rear": ((-1.16, 0.0, 0.47), 3.13),
    }[name]
    T = np.eye(4)
    T[:3, :3] = _rotation(0.004, -0.006, yaw)
    T[:3, 3] = place
    if name != "top":
        return {"T": T, "values": None, "min": -math.pi / 2, "max": math.pi / 6}
    steps = np.linspace(0, 1, options.shapes[0][0])
    values = np.radians(-24 + 27 * steps**0.8)  # unevenly spaced
    return {"T": T, "values": values, "min": float(values[0]) - 0.005, "max": float(values[-1]) + 0.005}


def _inclination(calibration: Mapping[str, Any], row: int, height: int) -> float:
    """Of a row; the first row is the highest beam."""
    beam = height - 1 - row
    if calibration["values"] is not None:
        return float(calibration["values"][beam])
    low, high = calibration["min"], calibration["max"]
    return float(low + (beam + 0.5) / height * (high - low))


def _azimuth(calibration: Mapping[str, Any], column: int, width: int) -> float:
    """Of a column in the laser's frame; column 0 looks back, then the laser turns clockwise."""
    yaw = math.atan2(calibration["T"][1, 0], calibration["T"][0, 0])
    return ((width - column - 0.5) / width * 2 - 1) * math.pi - yaw


def _rotation(roll: float, pitch: float, yaw: float) -> np.ndarray:
    about_x = np.array([[1, 0, 0], [0, math.cos(roll), -math.sin(roll)], [0, math.sin(roll), math.cos(roll)]])
    about_y = np.array([[math.cos(pitch), 0, math.sin(pitch)], [0, 1, 0], [-math.sin(pitch), 0, math.cos(pitch)]])
    about_z = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def _euler(R: np.ndarray) -> tuple[float, float, float]:
    return math.atan2(R[2, 1], R[2, 2]), -math.asin(R[2, 0]), math.atan2(R[1, 0], R[0, 0])


def _world(T: np.ndarray) -> np.ndarray:
    moved: np.ndarray = T.copy()
    moved[:3, 3] += _WORLD_ORIGIN_M
    return moved


def _matrix(T: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.asarray(points @ T[:3, :3].T + T[:3, 3])


# ---- range images
def _column_poses(T_world_vehicle: np.ndarray, width: int, options: WaymoOptions) -> np.ndarray:
    """roll, pitch, yaw, x, y, z of the vehicle at each column's firing, as float32."""
    rows = []
    for column in range(width):
        seconds = ((column + 0.5) / width - 0.5) * _TURN_S
        motion = np.eye(4)
        motion[:3, :3] = _rotation(0, 0, options.yaw_rate * seconds)
        motion[0, 3] = options.speed_mps * seconds
        T = T_world_vehicle @ motion
        rows.append([*_euler(T[:3, :3]), *T[:3, 3]])
    return np.array(rows, dtype=np.float32)


def _pose_matrix(pose: np.ndarray) -> np.ndarray:
    roll, pitch, yaw, x, y, z = (float(value) for value in pose)
    T = np.eye(4)
    T[:3, :3] = _rotation(roll, pitch, yaw)
    T[:3, 3] = (x, y, z)
    return T


def _cells(
    points_vehicle: np.ndarray, calibration: Mapping[str, Any], shape: tuple[int, int], motions: list[np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and range of each point. `motions`: T_vehicle_firing of each column."""
    height, width = shape
    azimuths = np.array([_azimuth(calibration, column, width) for column in range(width)])
    inclinations = np.array([_inclination(calibration, row, height) for row in range(height)])
    T_laser_vehicle = np.linalg.inv(calibration["T"])
    local = points_vehicle
    for _ in range(1 if motions is None else 4):  # the column says where the vehicle is, which says which column
        xyz = _matrix(T_laser_vehicle, local)
        angle = np.arctan2(xyz[:, 1], xyz[:, 0])
        turn = np.angle(np.exp(1j * (angle[:, None] - azimuths)))
        column = np.argmin(np.abs(turn), axis=1)
        if motions is not None:
            local = np.stack(
                [_matrix(np.linalg.inv(motions[c]), p[None])[0] for c, p in zip(column, points_vehicle, strict=True)]
            )
    xyz = _matrix(T_laser_vehicle, local)
    distance = np.linalg.norm(xyz, axis=1)
    row = np.argmin(np.abs(np.arcsin(xyz[:, 2] / distance)[:, None] - inclinations), axis=1)
    return row, column, distance


def _laser_images(
    sample: Sample, name: str, T_world_vehicle: np.ndarray, options: WaymoOptions, segmented: bool, truth: WaymoTruth
) -> _LaserImages:
    """Fills one laser's range images from the street points and appends what they mean to the truth."""
    height, width = shape = options.shapes[0 if name == "top" else 1]
    calibration = laser_calibration(name, options)
    points = _matrix(sample.T_ego_lidar, sample.points_lidar.astype(np.float64))
    near = np.linalg.norm(points - calibration["T"][:3, 3], axis=1) < (100.0 if name == "top" else 15.0)
    chosen = np.flatnonzero(near)
    poses = _column_poses(T_world_vehicle, width, options) if name == "top" else None
    inverse = np.linalg.inv(T_world_vehicle)
    motions = None if poses is None else [inverse @ _pose_matrix(pose) for pose in poses]
    rows, columns, ranges = _cells(points[chosen], calibration, shape, motions)
    images = [np.full((height, width, 4), -1.0, dtype=np.float32) for _ in range(2)]
    labels = [np.zeros((height, width, 2), dtype=np.int32) for _ in range(2)]
    owner = np.full((2, height, width), -1)
    for index, row, column, distance in zip(chosen, rows, columns, ranges, strict=True):
        if owner[0, row, column] >= 0:
            continue
        for number in range(2):
            # Every fifth cell has a second return, half a metre behind the first.
            if number == 1 and (row + column) % 5:
                continue
            intensity = float(sample.intensity[index]) * (40.0 if index % 17 == 0 else 1.0) / (1 + number)
            zone = 1.0 if points[index, 1] > 12 else -1.0
            images[number][row, column] = (distance + 0.5 * number, intensity, 0.3 * number, zone)
            owner[number, row, column] = index
            if name == "top" and segmented:
                assert sample.labels is not None
                assert sample.instances is not None
                kind = _CLASS_NUMBER.get(CLASS_NAMES[sample.labels[index]], 0)
                labels[number][row, column] = (int(sample.instances[index]) * 1000, kind)
    grid = None if poses is None else np.broadcast_to(poses, (height, width, 6)).copy()
    for number in range(2):
        _extend_truth(truth, name, number, images[number], labels[number], owner[number], calibration, motions)
    return _LaserImages(returns=images, segmentation=labels if name == "top" else [], pose=grid)


def _extend_truth(
    truth: WaymoTruth,
    name: str,
    number: int,
    image: np.ndarray,
    labels: np.ndarray,
    owner: np.ndarray,
    calibration: Mapping[str, Any],
    motions: list[np.ndarray] | None,
) -> None:
    height, width, _ = image.shape
    T = calibration["T"]
    for row in range(height):
        for column in range(width):
            distance, intensity, _, zone = (float(value) for value in image[row, column])
            if distance <= 0:
                continue
            up, around = _inclination(calibration, row, height), _azimuth(calibration, column, width)
            ray = (math.cos(around) * math.cos(up), math.sin(around) * math.cos(up), math.sin(up))
            point = [sum(T[i, j] * distance * ray[j] for j in range(3)) + T[i, 3] for i in range(3)]
            if motions is not None:
                M = motions[column]
                point = [sum(M[i, j] * point[j] for j in range(3)) + M[i, 3] for i in range(3)]
            truth.points_vehicle.append((point[0], point[1], point[2]))
            truth.street_index.append(int(owner[row, column]))
            truth.intensity.append(intensity)
            truth.laser.append(LASERS.index(name))
            truth.returned.append(number)
            truth.no_label_zone.append(zone > 0)
            truth.instance.append(int(labels[row, column, 0]))
            truth.class_number.append(int(labels[row, column, 1]))


# ---- frames
def _frames(samples: Sequence[Sample], options: WaymoOptions) -> tuple[list[_Frame], list[WaymoTruth]]:
    frames, truths = [], []
    for number, sample in enumerate(samples):
        T = _world(sample.T_world_ego)
        time_us = 1_553_735_853_462_203 + sample.timestamp_us
        truth = WaymoTruth(T_world_vehicle=T, timestamp_us=time_us)
        segmented = number in options.segmented
        lasers = {}
        if not options.without_ranges:
            lasers = {name: _laser_images(sample, name, T, options, segmented, truth) for name in LASERS}
        boxes = _boxes(sample, T, truth)
        truth.box_ids = [box["id"] for box in boxes]
        frames.append(_Frame(sample, T, time_us, lasers, segmented, boxes))
        truths.append(truth)
    return frames, truths


def _boxes(sample: Sample, T_world_vehicle: np.ndarray, truth: WaymoTruth) -> list[dict[str, Any]]:
    """In the vehicle frame, velocities along the world's axes."""
    boxes = sample.boxes
    assert boxes is not None
    turn = math.atan2(sample.T_ego_lidar[1, 0], sample.T_ego_lidar[0, 0])
    rows = []
    for index in range(len(boxes.yaws)):
        center = _matrix(sample.T_ego_lidar, boxes.centers_m[index : index + 1])[0]
        yaw = float(boxes.yaws[index]) + turn
        velocity = sample.T_ego_lidar[:2, :2] @ np.nan_to_num(boxes.velocities_mps[index])
        half = boxes.sizes_m[index] / 2
        inside = 0
        for x, y, z in truth.points_vehicle:
            dx, dy, dz = x - center[0], y - center[1], z - center[2]
            along = dx * math.cos(yaw) + dy * math.sin(yaw)
            across = dy * math.cos(yaw) - dx * math.sin(yaw)
            inside += abs(along) <= half[0] and abs(across) <= half[1] and abs(dz) <= half[2]
        rows.append(
            {
                "center": [float(value) for value in center],
                "size": [float(value) for value in boxes.sizes_m[index]],
                "heading": math.remainder(yaw, 2 * math.pi),
                "speed": [float(v) for v in T_world_vehicle[:3, :3] @ np.array([*velocity, 0.0])],
                "type": _BOX_NUMBER[CLASS_NAMES[int(boxes.classes[index])]],
                "id": f"object_{int(boxes.track_ids[index]):04d}",
                "points": int(inside),
                "difficulty": 2 if index % 3 == 0 else 0,
            }
        )
    return rows


def _intrinsics(camera_index: int, sample: Sample, options: WaymoOptions) -> list[float]:
    K = sample.cameras[camera_index].K
    distortion = _DISTORTION if options.distorted else (0.0,) * 5
    # Pixels count from the image's corner.
    return [K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5, *distortion]


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return bytes(data.tobytes())


def _pose_seconds(frame: _Frame, camera_index: int) -> float:
    camera = frame.sample.cameras[camera_index]
    return (frame.timestamp_us + camera.timestamp_us - frame.sample.timestamp_us) / 1e6


# ---- version 1
def crc32c(data: bytes) -> int:
    """CRC-32C, bit by bit from its polynomial (through a table of bytes)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _crc_entry(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC_TABLE = tuple(_crc_entry(byte) for byte in range(256))


def record(message: bytes) -> bytes:
    """A message as a TFRecord has it."""

    def masked(data: bytes) -> bytes:
        crc = crc32c(data)
        return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(message))
    return length + masked(length) + message + masked(message)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _double(number: int, value: float) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", value)


def _float(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)


def _bytes(number: int, content: bytes | str) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _transform(number: int, T: np.ndarray) -> bytes:
    return _bytes(number, b"".join(_double(1, float(value)) for value in T.ravel()))


def _matrix_message(array: np.ndarray) -> bytes:
    """MatrixFloat or MatrixInt32, compressed."""
    if array.dtype == np.float32:
        content = array.astype("<f4").tobytes()
    else:
        content = b"".join(_varint(int(value)) for value in array.ravel())
    shape = b"".join(_int(1, side) for side in array.shape)
    return zlib.compress(_bytes(1, content) + _bytes(2, shape), 1)


def _range_image(images: _LaserImages, number: int, segmented: bool) -> bytes:
    message = _bytes(2, _matrix_message(images.returns[number]))
    # Camera projections, which a reader may leave alone.
    message += _bytes(3, _matrix_message(np.zeros((*images.returns[number].shape[:2], 6), np.int32)))
    if number == 0 and images.pose is not None:
        message += _bytes(4, _matrix_message(images.pose))
    if segmented and images.segmentation:
        message += _bytes(6, _matrix_message(images.segmentation[number]))
    return message


def _context(frame: _Frame, options: WaymoOptions) -> bytes:
    message = _bytes(1, options.segment)
    for index, camera in enumerate(frame.sample.cameras):
        height, width = camera.image_size
        part = _int(1, CAMERAS.index(camera.name) + 1)
        part += b"".join(_double(2, value) for value in _intrinsics(index, frame.sample, options))
        part += _transform(3, np.linalg.inv(camera.T_cam_ego) @ np.linalg.inv(_CAMERA_AXES))
        message += _bytes(2, part + _int(4, width) + _int(5, height) + _int(6, 2))
    for name in reversed(LASERS):  # in the set they are in no order
        calibration = laser_calibration(name, options)
        values = [] if calibration["values"] is None else calibration["values"]
        part = _int(1, LASERS.index(name) + 1) + b"".join(_double(2, float(value)) for value in values)
        part += _double(3, calibration["min"]) + _double(4, calibration["max"])
        message += _bytes(3, part + _transform(5, calibration["T"]))
    return message


def _image(frame: _Frame, index: int, options: WaymoOptions) -> bytes:
    camera = frame.sample.cameras[index]
    assert camera.image is not None
    seconds = _pose_seconds(frame, index)
    message = _int(1, CAMERAS.index(camera.name) + 1) + _bytes(2, _jpeg(camera.image, options.jpeg_quality))
    message += _transform(3, _world(camera.T_world_ego))
    message += _bytes(4, b"".join(_float(axis, 0.0) for axis in (1, 2, 3)))
    return message + _double(5, seconds) + _double(6, 0.003) + _double(7, seconds - 0.02) + _double(8, seconds + 0.02)


def _label(box: Mapping[str, Any]) -> bytes:
    (x, y, z), (length, width, height) = box["center"], box["size"]
    shape = {1: x, 2: y, 3: z, 4: width, 5: length, 6: height, 7: box["heading"]}
    message = _bytes(1, b"".join(_double(number, value) for number, value in shape.items()))
    speed = {1: box["speed"][0], 2: box["speed"][1], 3: 0.0, 4: 0.0, 5: box["speed"][2], 6: 0.0}
    message += _bytes(2, b"".join(_double(number, value) for number, value in speed.items()))
    message += _int(3, box["type"]) + _bytes(4, box["id"])
    if box["difficulty"]:
        message += _int(5, box["difficulty"])
    return message + _int(7, box["points"])


def _frame_message(frame: _Frame, options: WaymoOptions) -> bytes:
    message = _bytes(1, _context(frame, options)) + _int(2, frame.timestamp_us) + _transform(3, frame.T_world_vehicle)
    for index, camera in enumerate(frame.sample.cameras):
        if camera.name not in options.without_images:
            message += _bytes(4, _image(frame, index, options))
    for name, images in frame.lasers.items():
        part = _int(1, LASERS.index(name) + 1)
        part += b"".join(_bytes(2 + number, _range_image(images, number, frame.segmented)) for number in range(2))
        message += _bytes(5, part)
    for box in frame.boxes:
        message += _bytes(6, _label(box))
    # A no-label zone, in the world frame, and a field that this reader's schema does not name.
    corners = b"".join(_double(axis, 1.0) for axis in (1, 2))
    return message + _bytes(7, corners + _bytes(3, "zone")) + _bytes(11, _double(1, 0.5))


def write_waymo_v1(
    folder: Path, samples: Sequence[Sample], options: WaymoOptions | None = None
) -> tuple[Path, list[WaymoTruth]]:
    """One TFRecord segment.

    Args:
        folder: SRC, or its training, validation or testing.
        samples: frames with five cameras.
        options: how.

    Returns:
        The file, and what its frames hold.
    """
    options = options or WaymoOptions()
    frames, truths = _frames(samples, options)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"segment-{options.segment}_with_camera_labels.tfrecord"
    path.write_bytes(b"".join(record(_frame_message(frame, options)) for frame in frames))
    return path, truths


# ---- version 2
_FLOATS, _INTS, _DIMS = pa.list_(pa.float32()), pa.list_(pa.int32()), pa.list_(pa.int32(), 3)
_DOUBLE, _TRANSFORM = pa.float64(), pa.list_(pa.float64(), 16)


def _write_table(
    root: Path, folder: str, options: WaymoOptions, schema: Mapping[str, pa.DataType], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Rows hold values for the columns after the segment's name."""
    columns = {"key.segment_context_name": pa.string(), **schema}
    table = [{"key.segment_context_name": options.segment, **row} for row in rows]
    data = pa.Table.from_pylist(table, schema=pa.schema(list(columns.items())))
    (root / folder).mkdir(parents=True, exist_ok=True)
    pq.write_table(data, root / folder / f"{options.segment}.parquet", row_group_size=options.rows_a_group)


def _image_columns(prefix: str, returns: int, values: pa.DataType) -> dict[str, pa.DataType]:
    names = [f"{prefix}.range_image_return{number + 1}" for number in range(returns)]
    return {f"{name}.{part}": kind for name in names for part, kind in (("values", values), ("shape", _DIMS))}


def _image_values(prefix: str, images: Sequence[np.ndarray]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for number, image in enumerate(images):
        row[f"{prefix}.range_image_return{number + 1}.values"] = image.ravel()
        row[f"{prefix}.range_image_return{number + 1}.shape"] = list(image.shape)
    return row


def _write_lasers(root: Path, frames: Sequence[_Frame], options: WaymoOptions) -> None:
    time, laser = "key.frame_timestamp_micros", "key.laser_name"
    keys = {time: pa.int64(), laser: pa.int8()}
    sweeps, poses, labels = [], [], []
    for frame in frames:
        for name, images in frame.lasers.items():
            key = {time: frame.timestamp_us, laser: LASERS.index(name) + 1}
            sweeps.append(key | _image_values("[LiDARComponent]", images.returns))
            if images.pose is not None:
                poses.append(key | _image_values("[LiDARPoseComponent]", [images.pose]))
            if frame.segmented and images.segmentation:
                labels.append(key | _image_values("[LiDARSegmentationLabelComponent]", images.segmentation))
    _write_table(root, "lidar", options, keys | _image_columns("[LiDARComponent]", 2, _FLOATS), sweeps)
    _write_table(root, "lidar_pose", options, keys | _image_columns("[LiDARPoseComponent]", 1, _FLOATS), poses)
    columns = _image_columns("[LiDARSegmentationLabelComponent]", 2, _INTS)
    _write_table(root, "lidar_segmentation", options, keys | columns, labels)
    prefix = "[LiDARCalibrationComponent]"
    rows = []
    for name in reversed(LASERS):
        calibration = laser_calibration(name, options)
        values = calibration["values"]
        rows.append(
            {
                laser: LASERS.index(name) + 1,
                f"{prefix}.extrinsic.transform": calibration["T"].ravel().tolist(),
                f"{prefix}.beam_inclination.min": calibration["min"],
                f"{prefix}.beam_inclination.max": calibration["max"],
                f"{prefix}.beam_inclination.values": None if values is None else values.tolist(),
            }
        )
    schema = {
        laser: pa.int8(),
        f"{prefix}.extrinsic.transform": _TRANSFORM,
        f"{prefix}.beam_inclination.min": _DOUBLE,
        f"{prefix}.beam_inclination.max": _DOUBLE,
        f"{prefix}.beam_inclination.values": pa.list_(_DOUBLE),
    }
    _write_table(root, "lidar_calibration", options, schema, rows)


def _write_cameras(root: Path, frames: Sequence[_Frame], options: WaymoOptions) -> None:
    time, camera_key = "key.frame_timestamp_micros", "key.camera_name"
    prefix = "[CameraImageComponent]"
    rows = []
    for frame in frames:
        for index, camera in enumerate(frame.sample.cameras):
            if camera.name in options.without_images:
                continue
            assert camera.image is not None
            row = {
                time: frame.timestamp_us,
                camera_key: CAMERAS.index(camera.name) + 1,
                f"{prefix}.image": _jpeg(camera.image, options.jpeg_quality),
                f"{prefix}.pose.transform": _world(camera.T_world_ego).ravel().tolist(),
                f"{prefix}.pose_timestamp": _pose_seconds(frame, index),
            }
            rows.append(row)
    schema = {
        time: pa.int64(),
        camera_key: pa.int8(),
        f"{prefix}.image": pa.binary(),
        f"{prefix}.pose.transform": _TRANSFORM,
        f"{prefix}.pose_timestamp": _DOUBLE,
    }
    _write_table(root, "camera_image", options, schema, rows)
    prefix = "[CameraCalibrationComponent]"
    names = ("f_u", "f_v", "c_u", "c_v", "k1", "k2", "p1", "p2", "k3")
    rows = []
    for index, camera in enumerate(frames[0].sample.cameras):
        values = dict(zip(names, _intrinsics(index, frames[0].sample, options), strict=True))
        rows.append(
            {
                camera_key: CAMERAS.index(camera.name) + 1,
                **{f"{prefix}.intrinsic.{name}": float(value) for name, value in values.items()},
                f"{prefix}.extrinsic.transform": (np.linalg.inv(camera.T_cam_ego) @ np.linalg.inv(_CAMERA_AXES))
                .ravel()
                .tolist(),
                f"{prefix}.width": camera.image_size[1],
                f"{prefix}.height": camera.image_size[0],
                f"{prefix}.rolling_shutter_direction": 2,
            }
        )
    schema = {
        camera_key: pa.int8(),
        **{f"{prefix}.intrinsic.{name}": _DOUBLE for name in names},
        f"{prefix}.extrinsic.transform": _TRANSFORM,
        f"{prefix}.width": pa.int32(),
        f"{prefix}.height": pa.int32(),
        f"{prefix}.rolling_shutter_direction": pa.int8(),
    }
    _write_table(root, "camera_calibration", options, schema, rows)


def _write_poses_and_boxes(root: Path, frames: Sequence[_Frame], options: WaymoOptions) -> None:
    time, thing = "key.frame_timestamp_micros", "key.laser_object_id"
    column = "[VehiclePoseComponent].world_from_vehicle.transform"
    poses = [{time: frame.timestamp_us, column: frame.T_world_vehicle.ravel().tolist()} for frame in frames]
    _write_table(root, "vehicle_pose", options, {time: pa.int64(), column: _TRANSFORM}, poses)
    prefix = "[LiDARBoxComponent]"
    doubles = [f"box.{part}.{axis}" for part in ("center", "size") for axis in "xyz"]
    doubles += ["box.heading", *(f"speed.{axis}" for axis in "xyz")]
    rows = []
    for frame in frames:
        for box in frame.boxes:
            values = [*box["center"], *box["size"], box["heading"], *box["speed"]]
            row = {f"{prefix}.{name}": value for name, value in zip(doubles, values, strict=True)}
            row |= {f"{prefix}.type": box["type"], f"{prefix}.num_lidar_points_in_box": box["points"]}
            level = {f"{prefix}.difficulty_level.detection": box["difficulty"]}
            rows.append({time: frame.timestamp_us, thing: box["id"]} | row | level)
    schema = {
        time: pa.int64(),
        thing: pa.string(),
        **{f"{prefix}.{name}": _DOUBLE for name in doubles},
        f"{prefix}.type": pa.int8(),
        f"{prefix}.num_lidar_points_in_box": pa.int64(),
        f"{prefix}.difficulty_level.detection": pa.int8(),
    }
    _write_table(root, "lidar_box", options, schema, rows)


def write_waymo_v2(
    root: Path, samples: Sequence[Sample], options: WaymoOptions | None = None
) -> tuple[Path, list[WaymoTruth]]:
    """One segment of the Parquet folders.

    Args:
        root: SRC, or its training, validation or testing.
        samples: frames with five cameras.
        options: how.

    Returns:
        `root`, and what the frames hold.
    """
    options = options or WaymoOptions()
    frames, truths = _frames(samples, options)
    _write_lasers(root, frames, options)
    _write_cameras(root, frames, options)
    _write_poses_and_boxes(root, frames, options)
    return root, truths
