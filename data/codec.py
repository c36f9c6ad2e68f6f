"""One `Sample` as the members of a WebDataset record, and back.

The format is written down in docs/shards.md. Decoding trusts nothing: sizes are checked before anything is allocated,
arrays are read without pickle, and every kind of damage is named by one of `REASONS`.
"""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from data.geometry import project, transform, visible
from data.sample import Boxes, CameraView, Sample

SCHEMA_VERSION = 1
"""Raised by one whenever a reader of the version before would misread or refuse a set."""

REASONS = (
    "shard-missing",  # the tar cannot be opened or read
    "tar-broken",  # truncated, or not a tar at the stated offset
    "checksum",  # readable, but not the bytes that were written
    "member-missing",  # a file of the sample is not there
    "meta-broken",  # meta.json is no JSON, or a field has another type than documented
    "calibration-missing",  # intrinsics, extrinsics or a pose are absent
    "calibration-singular",  # not finite, not invertible, or not a rotation
    "array-broken",  # an .npy of another type, shape or length than documented
    "points-not-finite",  # NaN or infinity in a coordinate or an intensity
    "empty-sweep",  # no points
    "image-broken",  # an image that cannot be decoded whole
    "image-size",  # an image, superpixels or depth of another size than stated
)
"""Every reason for which a sample can be refused."""

MAX_SAMPLE_BYTES = 1 << 30
"""Far above any sweep with its images; larger numbers come from a damaged manifest."""

_MAX_IMAGE_SIDE_PX = 16384
_DEPTH_UNIT_M = 0.01
_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_CAMERA = re.compile(r"[A-Za-z0-9_]+\Z")
_BOX_COLUMNS = 11


class DamagedError(Exception):
    """A sample cannot be used; `reason` is one of `REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """How members are compressed.

    Attributes:
        jpeg_quality: 1 to 100; 95 leaves errors of about one grey level at twice the bytes of 85.
        png_level: zlib level of superpixels and depth, 0 to 9.
    """

    jpeg_quality: int = 95
    png_level: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality is {self.jpeg_quality}, expected 1 to 100")
        if not 0 <= self.png_level <= 9:
            raise ValueError(f"png_level is {self.png_level}, expected 0 to 9")


# ------------------------------------------------------------------------------------------------ checks
def check_sample(sample: Sample) -> None:
    """Refuse what no training step could use; the same test before writing and after reading.

    Raises:
        DamagedError: empty sweep, non-finite points, unusable calibration, or parts that disagree in size.
        ValueError: a key or camera name that a WebDataset member name cannot carry (a converter's mistake).
    """
    if not _KEY.match(sample.key):
        raise ValueError(f"sample key {sample.key!r}: expected letters, digits, '-' and '_' only")
    num_points = sample.points_lidar.shape[0]
    if num_points == 0:
        raise DamagedError("empty-sweep", "0 points")
    if not (np.isfinite(sample.points_lidar).all() and np.isfinite(sample.intensity).all()):
        bad = int((~np.isfinite(sample.points_lidar)).any(axis=1).sum())
        raise DamagedError("points-not-finite", f"{bad} of {num_points} points have a non-finite coordinate")
    for name, values in (("labels", sample.labels), ("instances", sample.instances)):
        if values is not None and values.shape != (num_points,):
            raise DamagedError("array-broken", f"{name} {values.shape} for {num_points} points")
    _check_rigid("T_ego_lidar", sample.T_ego_lidar)
    _check_rigid("T_world_ego", sample.T_world_ego)
    for camera in sample.cameras:
        _check_camera(camera)


def _check_camera(camera: CameraView) -> None:
    if not _CAMERA.match(camera.name):
        raise ValueError(f"camera name {camera.name!r}: expected letters, digits and '_' only")
    K = camera.K
    usable = K.shape == (3, 3) and bool(np.isfinite(K).all()) and abs(np.linalg.det(K)) > 1e-6
    if not usable:
        raise DamagedError("calibration-singular", f"{camera.name}: intrinsics {K.tolist()}")
    _check_rigid(f"{camera.name}.T_cam_ego", camera.T_cam_ego)
    _check_rigid(f"{camera.name}.T_world_ego", camera.T_world_ego)
    height, width = camera.image_size
    if not (0 < height <= _MAX_IMAGE_SIDE_PX and 0 < width <= _MAX_IMAGE_SIDE_PX):
        raise DamagedError("image-size", f"{camera.name}: {height}x{width}")
    planes = (("image", camera.image), ("superpixels", camera.superpixels), ("depth", camera.depth_m))
    for name, plane in planes:
        if plane is not None and plane.shape[:2] != (height, width):
            detail = f"{camera.name}: {name} is {plane.shape[:2]}, stated {height}x{width}"
            raise DamagedError("image-size", detail)


def _check_rigid(name: str, T: Float[np.ndarray, "..."]) -> None:
    """A rotation and a translation; determinants of real calibrations are 1 within 1e-4."""
    rigid = T.shape == (4, 4) and bool(np.isfinite(T).all()) and np.allclose(T[3], (0, 0, 0, 1))
    if not rigid or abs(np.linalg.det(T[:3, :3]) - 1) > 0.01:
        raise DamagedError("calibration-singular", f"{name} is no rigid transform: {T.tolist()}")


def count_pairs(sample: Sample) -> int:
    """Number of (point, camera) pairs with the default visibility rule; a point seen twice counts twice."""
    total = 0
    for camera in sample.cameras:
        uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
        total += int(visible(uv, depth, camera.image_size).sum())
    return total


# ---------------------------------------------------------------------------------------------- encoding
def encode_sample(sample: Sample, config: CodecConfig) -> dict[str, bytes]:
    """Members by name without the key, e.g. ``points.npy`` or ``front.jpg``; the same sample gives the same bytes.

    Raises:
        DamagedError: the sample fails `check_sample`.
        ValueError: an image is absent, or a value does not fit its stored type.
    """
    check_sample(sample)
    points = np.concatenate([sample.points_lidar, sample.intensity[:, None]], axis=1)
    members = {"points.npy": _npy(points.astype("<f4"))}
    for camera in sample.cameras:
        members |= _encode_camera(camera, config)
    if sample.labels is not None:
        members["labels.npy"] = _npy(sample.labels.astype("u1"))
    if sample.instances is not None:
        members["instances.npy"] = _npy(_as_uint16("instances", sample.instances))
    if sample.boxes is not None:
        members["boxes.npy"] = _npy(_box_table(sample.boxes))
    members["meta.json"] = _encode_meta(sample, sorted(members))
    return members


def _encode_camera(camera: CameraView, config: CodecConfig) -> dict[str, bytes]:
    if camera.image is None:
        raise ValueError(f"camera {camera.name!r} has no image; shards are written from whole samples")
    bgr = cv2.cvtColor(camera.image, cv2.COLOR_RGB2BGR)
    png = [cv2.IMWRITE_PNG_COMPRESSION, config.png_level]
    members = {f"{camera.name}.jpg": _imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality])}
    if camera.superpixels is not None:
        ids = _as_uint16(f"{camera.name}: superpixels", camera.superpixels)
        small = ids.astype(np.uint8) if int(ids.max()) < 256 else ids
        members[f"{camera.name}.superpixels.png"] = _imencode(".png", small, png)
    if camera.depth_m is not None:
        centimetres = np.clip(np.rint(camera.depth_m / _DEPTH_UNIT_M), 0, np.iinfo(np.uint16).max)
        members[f"{camera.name}.depth.png"] = _imencode(".png", centimetres.astype(np.uint16), png)
    return members


def _imencode(extension: str, image: np.ndarray, options: list[int]) -> bytes:
    done, data = cv2.imencode(extension, image, options)
    if not done:
        raise ValueError(f"OpenCV could not encode an image of shape {image.shape} as {extension}")
    return bytes(data.tobytes())


def _as_uint16(name: str, values: Int[np.ndarray, "..."]) -> np.ndarray:
    if values.size and not (int(values.min()) >= 0 and int(values.max()) <= np.iinfo(np.uint16).max):
        raise ValueError(f"{name} run from {values.min()} to {values.max()}, expected 0 to 65535")
    return values.astype("<u2")


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _box_table(boxes: Boxes) -> Float[np.ndarray, "boxes 11"]:
    columns = (
        boxes.centers_m,
        boxes.sizes_m,
        boxes.yaws[:, None],
        boxes.velocities_mps,
        boxes.classes[:, None],
        boxes.track_ids[:, None],
    )
    return np.concatenate(columns, axis=1).astype("<f8")


def _encode_meta(sample: Sample, members: list[str]) -> bytes:
    meta = {
        "schema_version": SCHEMA_VERSION,
        "log": sample.log,
        "timestamp_us": int(sample.timestamp_us),
        "T_ego_lidar": sample.T_ego_lidar.tolist(),
        "T_world_ego": sample.T_world_ego.tolist(),
        "cameras": [
            {
                "name": camera.name,
                "image_size": [int(side) for side in camera.image_size],
                "K": camera.K.tolist(),
                "T_cam_ego": camera.T_cam_ego.tolist(),
                "T_world_ego": camera.T_world_ego.tolist(),
                "timestamp_us": int(camera.timestamp_us),
            }
            for camera in sample.cameras
        ],
        "members": members,
    }
    return json.dumps(meta, allow_nan=False).encode()


# ---------------------------------------------------------------------------------------------- decoding
@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which optional parts of a sample are decoded; points and calibration always are."""

    images: bool = True
    superpixels: bool = True
    labels: bool = True
    depth: bool = False


def decode_sample(key: str, members: Mapping[str, bytes], wanted: Wanted) -> Sample:
    """The sample that `encode_sample` wrote, with float32 points and the parts that are wanted.

    Raises:
        DamagedError: with the first of `REASONS` that applies.
    """
    meta = _decode_meta(members)
    absent = sorted(set(meta["members"]) - set(members))
    if absent:
        raise DamagedError("member-missing", ", ".join(absent))
    points = _decode_npy("points.npy", members, "<f4", (None, 4))
    num_points = points.shape[0]
    labels = instances = boxes = None
    if wanted.labels and "labels.npy" in members:
        labels = _decode_npy("labels.npy", members, "|u1", (num_points,))
    if wanted.labels and "instances.npy" in members:
        instances = _decode_npy("instances.npy", members, "<u2", (num_points,)).astype(np.int32)
    if wanted.labels and "boxes.npy" in members:
        boxes = _boxes(_decode_npy("boxes.npy", members, "<f8", (None, _BOX_COLUMNS)))
    sample = Sample(
        key=key,
        log=meta["log"],
        timestamp_us=meta["timestamp_us"],
        points_lidar=np.ascontiguousarray(points[:, :3]),
        intensity=np.ascontiguousarray(points[:, 3]),
        T_ego_lidar=_matrix(meta, "T_ego_lidar", 4),
        T_world_ego=_matrix(meta, "T_world_ego", 4),
        cameras=tuple(_decode_camera(entry, members, wanted) for entry in meta["cameras"]),
        labels=labels,
        instances=instances,
        boxes=boxes,
    )
    check_sample(sample)
    return sample


def _decode_meta(members: Mapping[str, bytes]) -> dict[str, Any]:
    if "meta.json" not in members:
        raise DamagedError("member-missing", "meta.json")
    try:
        meta = json.loads(members["meta.json"])
    except ValueError as error:  # JSON and UTF-8 errors alike
        raise DamagedError("meta-broken", str(error)) from error
    types = {"schema_version": int, "log": str, "timestamp_us": int, "cameras": list, "members": list}
    if not isinstance(meta, dict):
        raise DamagedError("meta-broken", f"meta.json holds a {type(meta).__name__}, expected an object")
    for name, kind in types.items():
        if not isinstance(meta.get(name), kind):
            raise DamagedError("meta-broken", f"{name} is {meta.get(name)!r}, expected {kind.__name__}")
    if meta["schema_version"] != SCHEMA_VERSION:
        raise DamagedError("meta-broken", f"schema_version {meta['schema_version']}, expected {SCHEMA_VERSION}")
    if not all(isinstance(entry, dict) for entry in meta["cameras"]):
        raise DamagedError("meta-broken", "an entry of cameras is no object")
    if not all(isinstance(name, str) for name in meta["members"]):
        raise DamagedError("meta-broken", "an entry of members is no string")
    return meta


def _matrix(holder: Mapping[str, Any], name: str, side: int) -> Float[np.ndarray, "side side"]:
    value = holder.get(name)
    if value is None:
        raise DamagedError("calibration-missing", name)
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DamagedError("meta-broken", f"{name}: {error}") from error
    if matrix.shape != (side, side):
        raise DamagedError("meta-broken", f"{name} has shape {matrix.shape}, expected {side}x{side}")
    return matrix


def _decode_camera(entry: Mapping[str, Any], members: Mapping[str, bytes], wanted: Wanted) -> CameraView:
    name, size = entry.get("name"), entry.get("image_size")
    if not (isinstance(name, str) and isinstance(entry.get("timestamp_us"), int)):
        raise DamagedError("meta-broken", f"a camera's name is {name!r}, its time {entry.get('timestamp_us')!r}")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)):
        raise DamagedError("meta-broken", f"{name}: image_size is {size!r}, expected [height, width]")
    if f"{name}.jpg" not in members:
        raise DamagedError("member-missing", f"{name}.jpg")
    image_size = (size[0], size[1])
    image = superpixels = depth_m = None
    if wanted.images:
        image = _decode_image(f"{name}.jpg", members, image_size)
    if wanted.superpixels and f"{name}.superpixels.png" in members:
        superpixels = _decode_plane(f"{name}.superpixels.png", members, image_size).astype(np.int32)
    if wanted.depth and f"{name}.depth.png" in members:
        plane = _decode_plane(f"{name}.depth.png", members, image_size)
        depth_m = plane.astype(np.float32) * np.float32(_DEPTH_UNIT_M)
    return CameraView(
        name=name,
        image_size=image_size,
        K=_matrix(entry, "K", 3),
        T_cam_ego=_matrix(entry, "T_cam_ego", 4),
        T_world_ego=_matrix(entry, "T_world_ego", 4),
        timestamp_us=entry["timestamp_us"],
        image=image,
        superpixels=superpixels,
        depth_m=depth_m,
    )


def _decode_image(name: str, members: Mapping[str, bytes], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    data = members[name]
    # libjpeg fills what is missing with grey and only prints a line, so a cut file is found by its end mark.
    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise DamagedError("image-broken", f"{name} ends before its end-of-image mark")
    _expect_size(name, jpeg_size(data), size)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    bgr = _imdecode(name, data, flags)
    _expect_size(name, bgr.shape[:2], size)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))


def _decode_plane(name: str, members: Mapping[str, bytes], size: tuple[int, int]) -> np.ndarray:
    data = members[name]
    if len(data) < 24 or data[:8] != b"\x89PNG\r\n\x1a\n" or b"IEND" not in data[-12:]:
        raise DamagedError("image-broken", f"{name} is no whole PNG")
    width, height = struct.unpack(">II", data[16:24])
    _expect_size(name, (height, width), size)
    plane = _imdecode(name, data, cv2.IMREAD_UNCHANGED)
    if plane.ndim != 2 or plane.dtype not in (np.uint8, np.uint16):
        raise DamagedError("image-broken", f"{name} is {plane.dtype} with shape {plane.shape}, expected grey")
    return plane


def _expect_size(name: str, got: tuple[int, int], stated: tuple[int, int]) -> None:
    if got != stated:
        raise DamagedError("image-size", f"{name} is {got[0]}x{got[1]}, stated {stated[0]}x{stated[1]}")


def _imdecode(name: str, data: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DamagedError("image-broken", f"{name}: {error}") from error
    if image is None:
        raise DamagedError("image-broken", f"{name} cannot be decoded")
    return np.asarray(image)


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width from a JPEG's frame header, without decoding.

    Raises:
        DamagedError: no frame header before the scan data.
    """
    position = 2
    while data[:2] == b"\xff\xd8" and position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        # C4, C8 and CC lie in the frame-header range but are tables and extensions.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            return height, width
        position += 2 + int(struct.unpack(">H", data[position + 2 : position + 4])[0])
    raise DamagedError("image-broken", "not a JPEG, or cut before its frame header")


def _decode_npy(name: str, members: Mapping[str, bytes], dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """An array of exactly this type and shape (None: any length); never unpickles, never over-allocates."""
    if name not in members:
        raise DamagedError("member-missing", name)
    stream = io.BytesIO(members[name])
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("not version 1.0")
        got_shape, fortran, got_dtype = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, SyntaxError, TypeError) as error:
        raise DamagedError("array-broken", f"{name}: {error}") from error
    fits = len(got_shape) == len(shape) and all(
        want is None or got == want for got, want in zip(got_shape, shape, strict=True)
    )
    if not fits or fortran or got_dtype.str != dtype:
        detail = f"{name} is {got_dtype.str} {got_shape}, expected {dtype} {shape}"
        raise DamagedError("array-broken", detail)
    body = members[name][stream.tell() :]
    if len(body) != int(np.prod(got_shape, dtype=np.int64)) * got_dtype.itemsize:
        raise DamagedError("array-broken", f"{name}: {len(body)} bytes for {dtype} {got_shape}")
    array: np.ndarray = np.frombuffer(body, got_dtype).reshape(got_shape).copy()
    return array


def _boxes(table: Float[np.ndarray, "boxes 11"]) -> Boxes:
    return Boxes(
        centers_m=table[:, 0:3],
        sizes_m=table[:, 3:6],
        yaws=table[:, 6],
        velocities_mps=table[:, 7:9],
        classes=table[:, 9].astype(np.int32),
        track_ids=table[:, 10].astype(np.int32),
    )
