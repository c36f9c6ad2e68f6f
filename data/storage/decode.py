"""The members of a WebDataset record as a `Sample`: the way back from `data.storage.encode`.

Trusts nothing: sizes are checked before anything is allocated, arrays are read without pickle, and every kind of
damage is named.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Float, Integer, UInt8

from common.constants import MIN_DEPTH_M
from data.runs import Runs
from data.sample import CameraView, Sample
from data.storage.box_record import decode_boxes
from data.storage.damage import DamagedError
from data.storage.encode import DEPTH_UNIT_M, READABLE_VERSIONS, check_image_size, check_sample, is_camera_name
from data.storage.run_lengths import SizeError, read_runs
from data.storage.untrusted import parse_json, parse_npy

_MOST_MIN_DEPTH_M = 1000
_MAX_META_BYTES = 1 << 20
"""Far above any calibration."""

Images = bool | Literal["encoded"]
SuperpixelForm = bool | Literal["runs"]
"""Whether the images or superpixels of a sample are read, and as what: see `DecodeSpec`."""


@dataclass(frozen=True, kw_only=True)
class DecodeSpec:
    """Which optional parts of a sample are decoded; points and calibration always are.

    Attributes:
        images: pixels; "encoded": the JPEGs, for callers that need only a part of the pixels.
        superpixels: of each pixel; "runs": as run lengths, likewise (sets of version 1 have them by pixel anyhow).
        labels: classes, instances and boxes of the points.
        image_labels: class of each pixel.
    """

    images: Images = True
    superpixels: SuperpixelForm = True
    labels: bool = True
    depth: bool = False
    image_labels: bool = False


def decode_sample(key: str, members: Mapping[str, bytes], parts: DecodeSpec) -> Sample:
    """The sample that `encode_sample` wrote, with float32 points and the parts that are asked for.

    Raises:
        DamagedError: with the first of `REASONS` that applies.
    """
    meta = _decode_meta(members)
    # Also of parts that are not decoded: a cut sample is damaged whatever is asked for.
    absent = sorted(set(meta["members"]) - set(members))
    if absent:
        raise DamagedError("member-missing", ", ".join(absent))
    points = _decode_npy("points.npy", members, "<f4", (None, 4))
    num_points = points.shape[0]
    labels = instances = boxes = None
    if parts.labels and "labels.npy" in members:
        labels = _decode_npy("labels.npy", members, "|u1", (num_points,))
    if parts.labels and "instances.npy" in members:
        instances = _decode_npy("instances.npy", members, "<u2", (num_points,)).astype(np.int32)
    if parts.labels:
        boxes = decode_boxes(
            lambda name, dtype, shape: _decode_optional(name, members, dtype, shape), meta["schema_version"]
        )
    if boxes is not None:
        boxes = dataclasses.replace(boxes, camera=_name_or_none(meta, "boxes_camera"))
    sample = Sample(
        key=key,
        log=meta["log"],
        timestamp_us=meta["timestamp_us"],
        points_lidar=np.ascontiguousarray(points[:, :3]),
        intensity=np.ascontiguousarray(points[:, 3]),
        T_ego_lidar=_matrix(meta, "T_ego_lidar", 4),
        T_world_ego=_matrix(meta, "T_world_ego", 4),
        cameras=tuple(_decode_camera(entry, members, parts) for entry in meta["cameras"]),
        labels=labels,
        instances=instances,
        boxes=boxes,
        times_s=_decode_optional("times_s.npy", members, "<f4", (num_points,)),
        elongations=_decode_optional("elongations.npy", members, "<f4", (num_points,)),
        colors=_decode_optional("colors.npy", members, "|u1", (num_points, 3)),
        token=_name_or_none(meta, "token"),
    )
    check_sample(sample)
    return sample


def _decode_meta(members: Mapping[str, bytes]) -> dict[str, Any]:
    if "meta.json" not in members:
        raise DamagedError("member-missing", "meta.json")
    try:
        meta = parse_json(members["meta.json"], _MAX_META_BYTES)
    except ValueError as error:  # JSON and UTF-8 errors alike
        raise DamagedError("meta-broken", str(error)) from error
    types = {"schema_version": int, "log": str, "timestamp_us": int, "cameras": list, "members": list}
    if not isinstance(meta, dict):
        raise DamagedError("meta-broken", f"meta.json holds a {type(meta).__name__}, expected an object")
    for name, kind in types.items():
        if not isinstance(meta.get(name), kind):
            raise DamagedError("meta-broken", f"{name} is {meta.get(name)!r}, expected {kind.__name__}")
    if meta["schema_version"] not in READABLE_VERSIONS:
        raise DamagedError("meta-broken", f"schema_version {meta['schema_version']}, expected {READABLE_VERSIONS}")
    if not all(isinstance(entry, dict) for entry in meta["cameras"]):
        raise DamagedError("meta-broken", "an entry of cameras is no object")
    if not all(isinstance(name, str) for name in meta["members"]):
        raise DamagedError("meta-broken", "an entry of members is no string")
    return meta


def _name_or_none(meta: Mapping[str, Any], name: str) -> str | None:
    value = meta.get(name)
    if value is not None and not isinstance(value, str):
        raise DamagedError("meta-broken", f"{name} is {value!r:.100}, expected a name")
    return value


def _matrix(holder: Mapping[str, Any], name: str, side: int) -> Float[np.ndarray, "side side"]:
    value = holder.get(name)
    if value is None:
        raise DamagedError("calibration-missing", name)
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DamagedError("meta-broken", f"{name}: {error}") from error
    if matrix.shape != (side, side):
        raise DamagedError("meta-broken", f"{name} has shape {matrix.shape}, expected {side}x{side}")
    return matrix


def _decode_camera(entry: Mapping[str, Any], members: Mapping[str, bytes], parts: DecodeSpec) -> CameraView:
    name, size = entry.get("name"), entry.get("image_size")
    if not (isinstance(name, str) and is_camera_name(name) and isinstance(entry.get("timestamp_us"), int)):
        raise DamagedError("meta-broken", f"a camera's name is {name!r}, its time {entry.get('timestamp_us')!r}")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)):
        raise DamagedError("meta-broken", f"{name}: image_size is {size!r}, expected [height, width]")
    if f"{name}.jpg" not in members:
        raise DamagedError("member-missing", f"{name}.jpg")
    image_size = (size[0], size[1])
    check_image_size(name, *image_size)
    image = jpeg = superpixels = runs = depth_m = labels = None
    if parts.images:
        jpeg = members[f"{name}.jpg"]
        check_jpeg(f"{name}.jpg", jpeg, image_size)
    if jpeg is not None and parts.images != "encoded":
        image, jpeg = decode_jpeg(f"{name}.jpg", jpeg), None
    if parts.superpixels:
        superpixels, runs = _decode_superpixels(name, members, image_size)
    if runs is not None and parts.superpixels != "runs":
        superpixels, runs = runs.plane(), None
    if parts.depth and f"{name}.depth.png" in members:
        plane = _decode_plane(f"{name}.depth.png", members, image_size)
        depth_m = plane.astype(np.float32) * np.float32(DEPTH_UNIT_M)
    if parts.image_labels and f"{name}.labels.png" in members:
        labels = _decode_plane(f"{name}.labels.png", members, image_size)
        if labels.dtype != np.uint8:
            raise DamagedError("image-broken", f"{name}.labels.png is {labels.dtype}, expected uint8")
    return CameraView(
        name=name,
        image_size=image_size,
        K=_matrix(entry, "K", 3),
        T_cam_ego=_matrix(entry, "T_cam_ego", 4),
        T_world_ego=_matrix(entry, "T_world_ego", 4),
        timestamp_us=entry["timestamp_us"],
        min_depth_m=_min_depth(name, entry.get("min_depth_m", MIN_DEPTH_M)),
        image=image,
        jpeg=jpeg,
        superpixels=superpixels,
        superpixel_runs=runs,
        ignored_px=_rectangles(name, entry.get("ignored_px")),
        depth_m=depth_m,
        labels=labels,
    )


def _min_depth(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_MIN_DEPTH_M:
        raise DamagedError("meta-broken", f"{name}: min_depth_m is {value!r}, expected 0 to {_MOST_MIN_DEPTH_M}")
    return float(value)


def _rectangles(name: str, value: Any) -> Float[np.ndarray, "rects 4"] | None:
    if value is None:
        return None
    try:
        rectangles = np.array(value, dtype=np.float64).reshape(len(value), 4)
    except (TypeError, ValueError, OverflowError) as error:
        raise DamagedError("meta-broken", f"{name}: ignored_px: {error}") from error
    return rectangles


def _decode_superpixels(
    camera: str, members: Mapping[str, bytes], size: tuple[int, int]
) -> tuple[Integer[np.ndarray, "H W"] | None, Runs | None]:
    """As a plane or as runs, as they are stored; neither where there are none."""
    name = f"{camera}.superpixels.npy.gz"
    if name in members:
        try:
            return None, read_runs(members[name], size)
        except SizeError as error:
            raise DamagedError("image-size", f"{name}: {error}") from error
        except ValueError as error:
            raise DamagedError("image-broken", f"{name}: {error}") from error
    name = f"{camera}.superpixels.png"  # version 1
    return (_decode_plane(name, members, size) if name in members else None), None


def check_jpeg(name: str, data: bytes, size: tuple[int, int]) -> None:
    """Refuse, without decoding, a JPEG that is cut or has another size (height, width) than stated.

    Raises:
        DamagedError: what is wrong.
    """
    # libjpeg fills what is missing with grey and only prints a line, so a cut file is found by its end mark.
    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise DamagedError("image-broken", f"{name} ends before its end-of-image mark")
    _expect_size(name, jpeg_size(data), size)


def decode_jpeg(name: str, data: bytes, reduction: int = 1) -> UInt8[np.ndarray, "h w 3"]:
    """A JPEG's pixels as RGB, as stored (EXIF orientation is not applied).

    Reduced, each block of `reduction` x `reduction` pixels becomes their average, taken from the low frequencies that
    the file stores anyway: half the size takes half the time. Sides are rounded up; `reduction` is 1, 2, 4 or 8.

    Raises:
        DamagedError: cut, larger than any camera's image, or no JPEG.
    """
    size = jpeg_size(data)
    check_jpeg(name, data, size)
    check_image_size(name, *size)
    reduced = (-(-size[0] // reduction), -(-size[1] // reduction))
    try:
        # Not strict: real files hold what libjpeg only warns of.
        image = simplejpeg.decode_jpeg(data, "RGB", min_height=reduced[0], min_width=reduced[1], strict=False)
    except ValueError as error:
        raise DamagedError("image-broken", f"{name}: {error}") from error
    _expect_size(name, image.shape[:2], reduced)
    return np.asarray(image)


def _decode_plane(name: str, members: Mapping[str, bytes], size: tuple[int, int]) -> np.ndarray:
    data = members[name]
    if b"IEND" not in data[-12:]:
        raise DamagedError("image-broken", f"{name} is no whole PNG")
    height, width = png_size(data)
    check_image_size(name, height, width)
    _expect_size(name, (height, width), size)
    try:
        plane = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DamagedError("image-broken", f"{name}: {error}") from error
    if plane is None:
        raise DamagedError("image-broken", f"{name} cannot be decoded")
    if plane.ndim != 2 or plane.dtype not in (np.uint8, np.uint16):
        raise DamagedError("image-broken", f"{name} is {plane.dtype} with shape {plane.shape}, expected grey")
    return np.asarray(plane)


def _expect_size(name: str, got: tuple[int, int], stated: tuple[int, int]) -> None:
    if got != stated:
        raise DamagedError("image-size", f"{name} is {got[0]}x{got[1]}, stated {stated[0]}x{stated[1]}")


PNG_MARK = b"\x89PNG\r\n\x1a\n"


def png_size(data: bytes) -> tuple[int, int]:
    """Height and width from a PNG's header, without decoding.

    Raises:
        DamagedError: no PNG, or cut in its header.
    """
    if len(data) < 24 or not data.startswith(PNG_MARK):
        raise DamagedError("image-broken", "not a PNG, or cut in its header")
    width, height = struct.unpack(">II", data[16:24])
    return height, width


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width from a JPEG's frame header, without decoding.

    Raises:
        DamagedError: no frame header before the scan data.
    """
    position = _frame_header(data)
    height, width = struct.unpack(">HH", data[position + 5 : position + 9])
    return height, width


def jpeg_coding(data: bytes) -> tuple[bool, int]:
    """Whether a JPEG is baseline, the kind that every decoder reads, and how many components its pixels have.

    Raises:
        DamagedError: as `jpeg_size`.
    """
    position = _frame_header(data)
    return data[position + 1] == 0xC0, data[position + 9] if position + 9 < len(data) else 0


def _frame_header(data: bytes) -> int:
    """Where a JPEG's frame header begins."""
    position = 2
    while data[:2] == b"\xff\xd8" and position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        # C4, C8 and CC lie in the frame-header range but are tables and extensions.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return position
        # The stated length counts its own two bytes, but not the marker's.
        position += 2 + int(struct.unpack(">H", data[position + 2 : position + 4])[0])
    raise DamagedError("image-broken", "not a JPEG, or cut before its frame header")


def _decode_optional(
    name: str, members: Mapping[str, bytes], dtype: str, shape: tuple[int | None, ...]
) -> np.ndarray | None:
    return _decode_npy(name, members, dtype, shape) if name in members else None


def _decode_npy(name: str, members: Mapping[str, bytes], dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """An array of exactly this type and shape (None: any length); never unpickles, never over-allocates."""
    if name not in members:
        raise DamagedError("member-missing", name)
    try:
        array = parse_npy(members[name])
    except ValueError as error:
        raise DamagedError("array-broken", f"{name}: {error}") from error
    fits = len(array.shape) == len(shape) and all(
        want is None or got == want for got, want in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype.str != dtype:
        detail = f"{name} is {array.dtype.str} {array.shape}, expected {dtype} {shape}"
        raise DamagedError("array-broken", detail)
    return array
