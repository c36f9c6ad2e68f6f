"""One `Sample` as the members of a WebDataset record; `data.storage.decode` is the way back.

The format is written down in docs/shards.md. What may go wrong with a sample, when it is made or when it is read, is
named by one of `REASONS`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Integer

from common.constants import MIN_DEPTH_M
from common.ranges import between
from data.geometry import project, transform, visible
from data.sample import IGNORE_LABEL, CameraView, Sample
from data.storage.box_record import are_rectangles, check_boxes, encode_boxes, whole_numbers
from data.storage.damage import DamagedError
from data.storage.run_lengths import encode_runs, npy_bytes

SCHEMA_VERSION = 3
"""Raised by one whenever a reader of the version before would misread or refuse a set."""

READABLE_VERSIONS = (1, 2, 3)
"""Sets of version 1 store superpixels as PNG, those of versions 1 and 2 fewer details of boxes."""

MAX_COORDINATE_M = 2000.0
"""Along each axis of the LiDAR frame: twice the reach of the farthest-seeing LiDAR of any vehicle. What lies beyond is
a flipped bit, another unit, or points in map coordinates; at 2 mm it would also not fit the cells of `voxelize`."""

MAX_TIME_S = 60.0
"""From a point to its sweep: above any number of sweeps that is put together; milliseconds are beyond it."""

MAX_ELONGATION = 1000.0
"""Above the elongation of any pulse, in whatever unit."""

MAX_POINTS = 1 << 24
"""Above whole rooms from terrestrial scanners (some 10 million), hundreds of times a sweep."""

INTENSITY_SLACK = 1e-3
"""Rounding that an intensity may lie beyond 0 to 1."""

MAX_SAMPLE_BYTES = 1 << 30
"""Far above any sweep with its images; larger numbers come from a damaged manifest."""

MAX_IMAGE_SIDE_PX = 16384
MAX_IMAGE_PIXELS = 1 << 26
"""Several times those of any camera in use. A few bytes of a compressed image can stand for any number of pixels."""
DEPTH_UNIT_M = 0.01
_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_CAMERA = re.compile(r"[A-Za-z0-9_]+\Z")
_MAX_INTRINSICS = 1e12
"""Above focal lengths in pixels, so that nothing computed from them overflows."""
_MAX_POSITION_M = 1e8
"""Above map coordinates (UTM, geocentric), and float64 still resolves a micrometre there."""
_MAX_EXTRINSICS_M = 1000.0
"""Above the distance of any sensor from the origin of its vehicle or roadside; millimetres of most are beyond it."""
_ROTATION_SLACK = 1e-2
"""Entries of R R^T - I; those of real calibrations are below 1e-4."""


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """How members are compressed.

    Attributes:
        jpeg_quality: of images that the source does not have as JPEG (those are stored unchanged); 95 leaves errors of
            about one grey level at twice the bytes of 85.
        png_level: zlib level of superpixels, depth and labels of pixels.
    """

    jpeg_quality: int = 95
    png_level: int = 3

    def __post_init__(self) -> None:
        between(self, jpeg_quality=(1, 100), png_level=(0, 9))


# ---- checks
def check_sample(sample: Sample) -> None:
    """Refuse what no training step could use; the same test before writing and after reading.

    A sample is refused whole, also for a single value: which of its other values are right is not known then.

    Raises:
        DamagedError: empty sweep, points or intensities that no LiDAR measures, unusable calibration, values out of
            their range, or parts that disagree in size.
        ValueError: a key or camera name that a WebDataset member name cannot carry (a converter's mistake).
    """
    if not _KEY.match(sample.key):
        raise ValueError(f"sample key {sample.key!r}: expected letters, digits, '-' and '_' only")
    num_points = sample.points_lidar.shape[0]
    if num_points == 0:
        raise DamagedError("empty-sweep", "0 points")
    if num_points > MAX_POINTS:
        raise DamagedError("too-large", f"{num_points} points, expected at most {MAX_POINTS}")
    _check_points(sample.points_lidar, sample.intensity)
    _check_time("timestamp_us", sample.timestamp_us)
    for name in ("labels", "instances", "times_s", "elongations"):
        values = getattr(sample, name)
        if values is not None and values.shape != (num_points,):
            raise DamagedError("array-broken", f"{name} {values.shape} for {num_points} points")
    if sample.colors is not None and sample.colors.shape != (num_points, 3):
        raise DamagedError("array-broken", f"colors {sample.colors.shape} for {num_points} points")
    _check_measured("times_s", sample.times_s, (-MAX_TIME_S, MAX_TIME_S))
    _check_measured("elongations", sample.elongations, (0.0, MAX_ELONGATION))
    if sample.boxes is not None:
        check_boxes(sample.boxes, MAX_COORDINATE_M)
        if sample.boxes.camera not in (None, *(camera.name for camera in sample.cameras)):
            raise DamagedError("boxes-broken", f"2D boxes of the camera {sample.boxes.camera!r}, which is not there")
    if sample.token is not None and not _KEY.match(sample.token):
        raise DamagedError("meta-broken", f"token {sample.token!r:.100}, expected letters, digits, '-' and '_' only")
    _check_rigid("T_ego_lidar", sample.T_ego_lidar, _MAX_EXTRINSICS_M)
    _check_rigid("T_world_ego", sample.T_world_ego, _MAX_POSITION_M)
    for camera in sample.cameras:
        _check_camera(camera)


@dataclass(frozen=True, kw_only=True)
class SetBounds:
    """What the samples of a set may hold.

    Attributes:
        camera_names: in the set's order; a sample may lack some.
        num_classes: of labels and boxes; None where the set names none.
        num_categories: of `Boxes.categories`; 0 where the set names none.
        most_segments: superpixels of an image at most; None where the set does not say.
    """

    camera_names: tuple[str, ...]
    num_classes: int | None
    num_categories: int = 0
    most_segments: int | None = None


def check_fits_set(sample: Sample, bounds: SetBounds) -> None:
    """Refuse what the set says that it does not have; as `check_sample`, before writing and after reading.

    Raises:
        DamagedError: a camera, a class, a category of a box or a superpixel that the set does not have.
    """
    names, known = [camera.name for camera in sample.cameras], bounds.camera_names
    if names != [name for name in known if name in names]:
        raise DamagedError("cameras-unknown", f"{', '.join(names)}; the set has {', '.join(known) or 'none'}")
    planes = [("labels", sample.labels), ("classes of boxes", None if sample.boxes is None else sample.boxes.classes)]
    planes += [(f"labels of {camera.name}", camera.labels) for camera in sample.cameras]
    for what, values in planes:
        if values is not None and bounds.num_classes is not None:
            _check_classes(what, values, bounds.num_classes)
    categories = None if sample.boxes is None else sample.boxes.categories
    if categories is not None and categories.size and categories.max() >= bounds.num_categories:
        detail = f"category {categories.max()} of a box; the set names {bounds.num_categories} kinds of boxes"
        raise DamagedError("labels-range", detail)
    for camera in sample.cameras:
        if bounds.most_segments is not None:
            number = camera.num_superpixels
            if number > bounds.most_segments:
                detail = f"{number} superpixels, the manifest states {bounds.most_segments} at most"
                raise DamagedError("superpixel-ids", f"{camera.name}: {detail}")


def _check_points(points: Float[np.ndarray, "N 3"], intensity: Float[np.ndarray, " N"]) -> None:
    # Of every sample that is read, so in one pass each: the extremes of what holds NaN are NaN, and no range holds NaN.
    near = points.min() >= -MAX_COORDINATE_M and points.max() <= MAX_COORDINATE_M
    if near and intensity.min() >= -INTENSITY_SLACK and intensity.max() <= 1 + INTENSITY_SLACK:
        return
    finite = np.isfinite(points).all(axis=1) & np.isfinite(intensity)
    if not finite.all():
        detail = f"{int((~finite).sum())} of {len(points)} points have a non-finite coordinate or intensity"
        raise DamagedError("points-not-finite", detail)
    far = (np.abs(points) > MAX_COORDINATE_M).any(axis=1)
    if far.any():
        example = ", ".join(f"{value:g}" for value in points[far][0])
        detail = f"{int(far.sum())} of {len(points)} points are beyond {MAX_COORDINATE_M:g} m, such as ({example}) m"
        raise DamagedError("points-range", detail)
    wrong = (intensity < -INTENSITY_SLACK) | (intensity > 1 + INTENSITY_SLACK)
    spread = f"from {intensity.min():g} to {intensity.max():g}, expected 0 to 1"
    raise DamagedError("intensity-range", f"{int(wrong.sum())} of {len(points)} intensities: {spread}")


def _check_measured(name: str, values: Float[np.ndarray, " N"] | None, bounds: tuple[float, float]) -> None:
    if values is None or (values.min() >= bounds[0] and values.max() <= bounds[1]):
        return
    if not np.isfinite(values).all():
        raise DamagedError("points-not-finite", f"{int((~np.isfinite(values)).sum())} of {len(values)} {name}")
    spread = f"from {values.min():g} to {values.max():g}, expected {bounds[0]:g} to {bounds[1]:g}"
    raise DamagedError("points-range", f"{name} {spread}")


def _check_time(name: str, value: int) -> None:
    if not -(1 << 63) <= value < 1 << 63:  # JSON's integers have no bound, the sample table has
        raise DamagedError("meta-broken", f"{name} does not fit 64 bits")


def _check_classes(what: str, labels: Integer[np.ndarray, "..."], num_classes: int) -> None:
    wrong = (labels != IGNORE_LABEL) & ((labels >= num_classes) | (labels < 0))
    if wrong.any():
        detail = f"{int(wrong.sum())} {what} such as {int(labels[wrong][0])}; the set has {num_classes} classes"
        raise DamagedError("labels-range", detail)


def is_camera_name(name: str) -> bool:
    """True where a member's name can carry it."""
    return _CAMERA.match(name) is not None


def check_image_size(name: str, height: int, width: int) -> None:
    """Refuse an image that no camera takes, before memory is asked for.

    Raises:
        DamagedError: a side or the number of pixels is out of range.
    """
    sides_fit = 0 < height <= MAX_IMAGE_SIDE_PX and 0 < width <= MAX_IMAGE_SIDE_PX
    if not sides_fit or height * width > MAX_IMAGE_PIXELS:
        raise DamagedError("image-size", f"{name}: {height}x{width}")


def _check_camera(camera: CameraView) -> None:
    if not is_camera_name(camera.name):
        raise ValueError(f"camera name {camera.name!r}: expected letters, digits and '_' only")
    K = camera.K
    usable = (
        K.shape == (3, 3)
        and bool((np.abs(K) < _MAX_INTRINSICS).all())
        and abs(np.linalg.det(K)) > 1e-6
        and bool(K[0, 0] > 0 and K[1, 1] > 0)  # a mirrored image would be paired the wrong way round
        and bool((np.abs(K[2] - (0, 0, 1)) < 1e-6).all())
    )
    if not usable:
        detail = f"{camera.name}: intrinsics {K.tolist()}, expected focal lengths above 0 and a last row of 0 0 1"
        raise DamagedError("calibration-singular", detail)
    _check_time(f"{camera.name}.timestamp_us", camera.timestamp_us)
    _check_rigid(f"{camera.name}.T_cam_ego", camera.T_cam_ego, _MAX_EXTRINSICS_M)
    _check_rigid(f"{camera.name}.T_world_ego", camera.T_world_ego, _MAX_POSITION_M)
    height, width = camera.image_size
    check_image_size(camera.name, height, width)
    planes = (
        ("image", camera.image),
        ("superpixels", camera.superpixels),
        ("depth", camera.depth_m),
        ("labels", camera.labels),
    )
    for name, plane in planes:
        if plane is not None and plane.shape[:2] != (height, width):
            detail = f"{camera.name}: {name} is {plane.shape[:2]}, stated {height}x{width}"
            raise DamagedError("image-size", detail)
    ignored = camera.ignored_px
    if ignored is not None and not (ignored.ndim == 2 and ignored.shape[1] == 4 and are_rectangles(ignored).all()):
        detail = f"{camera.name}: ignored_px {ignored.tolist()}, expected rectangles left, top, right, bottom"
        raise DamagedError("boxes-broken", detail)
    depth = camera.depth_m
    if depth is not None and not (depth.min() >= 0 and depth.max() < np.inf):
        raise DamagedError("depth-range", f"{camera.name}: depth from {depth.min():g} to {depth.max():g} m")


def _check_rigid(name: str, T: Float[np.ndarray, "..."], max_m: float) -> None:
    """A rotation, and a translation of at most `max_m` along each axis."""
    rigid = (
        T.shape == (4, 4)
        and bool((np.abs(T) <= max_m).all())
        and bool((np.abs(T[3] - (0, 0, 0, 1)) < 1e-6).all())
        and abs(np.linalg.det(T[:3, :3]) - 1) <= _ROTATION_SLACK
        and float(np.abs(T[:3, :3] @ T[:3, :3].T - np.eye(3)).max()) <= _ROTATION_SLACK
    )
    if not rigid:
        detail = f"{name} is no rotation with a translation of at most {max_m:g} m: {T.tolist()}"
        raise DamagedError("calibration-singular", detail)


def count_pairs(sample: Sample) -> int:
    """Number of (point, camera) pairs, one pixel inside the image; a point seen twice counts twice."""
    total = 0
    for camera in sample.cameras:
        uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
        total += int(visible(uv, depth, camera.image_size, min_depth_m=camera.min_depth_m).sum())
    return total


def count_labelled(sample: Sample) -> int:
    """Number of points with a class."""
    return 0 if sample.labels is None else int((sample.labels != IGNORE_LABEL).sum())


# ---- encoding
def encode_sample(sample: Sample, config: CodecConfig) -> dict[str, bytes]:
    """Members by name without the key, e.g. ``points.npy`` or ``front.jpg``; the same sample gives the same bytes.

    Raises:
        DamagedError: the sample fails `check_sample`.
        ValueError: an image is absent, or a value does not fit its stored type.
    """
    check_sample(sample)
    points = np.concatenate([sample.points_lidar, sample.intensity[:, None]], axis=1)
    members = {"points.npy": npy_bytes(points.astype("<f4"))}
    for camera in sample.cameras:
        members |= _encode_camera(camera, config)
    for name, values in (("times_s", sample.times_s), ("elongations", sample.elongations)):
        if values is not None:
            members[f"{name}.npy"] = npy_bytes(values.astype("<f4"))
    if sample.colors is not None:
        members["colors.npy"] = npy_bytes(sample.colors.astype("u1"))
    if sample.labels is not None:
        members["labels.npy"] = npy_bytes(sample.labels.astype("u1"))
    if sample.instances is not None:
        members["instances.npy"] = npy_bytes(whole_numbers("instances", sample.instances, "<u2"))
    if sample.boxes is not None:
        members |= encode_boxes(sample.boxes)
    members["meta.json"] = _encode_meta(sample, sorted(members))
    return members


def _encode_camera(camera: CameraView, config: CodecConfig) -> dict[str, bytes]:
    png = [cv2.IMWRITE_PNG_COMPRESSION, config.png_level]
    members = {f"{camera.name}.jpg": camera.jpeg or _encode_jpeg(camera, config)}
    if camera.superpixels is not None:
        ids = whole_numbers(f"{camera.name}: superpixels", camera.superpixels, "<u2")
        members[f"{camera.name}.superpixels.npy.gz"] = encode_runs(ids, config.png_level)
    if camera.depth_m is not None:
        centimetres = np.clip(np.rint(camera.depth_m / DEPTH_UNIT_M), 0, np.iinfo(np.uint16).max)
        members[f"{camera.name}.depth.png"] = _imencode(".png", centimetres.astype(np.uint16), png)
    if camera.labels is not None:
        members[f"{camera.name}.labels.png"] = _imencode(".png", camera.labels.astype(np.uint8), png)
    return members


def _encode_jpeg(camera: CameraView, config: CodecConfig) -> bytes:
    if camera.image is None:
        raise ValueError(f"camera {camera.name!r} has no image; shards are written from whole samples")
    bgr = cv2.cvtColor(camera.image, cv2.COLOR_RGB2BGR)
    return _imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality])


def _imencode(extension: str, image: np.ndarray, options: list[int]) -> bytes:
    done, data = cv2.imencode(extension, image, options)
    if not done:
        raise ValueError(f"OpenCV could not encode an image of shape {image.shape} as {extension}")
    return bytes(data.tobytes())


def _encode_meta(sample: Sample, members: list[str]) -> bytes:
    boxes_camera = None if sample.boxes is None else sample.boxes.camera
    meta = {
        "schema_version": SCHEMA_VERSION,
        "log": sample.log,
        "timestamp_us": int(sample.timestamp_us),
        "T_ego_lidar": sample.T_ego_lidar.tolist(),
        "T_world_ego": sample.T_world_ego.tolist(),
        # These two only where there are any: other sets keep their bytes.
        **({} if sample.token is None else {"token": sample.token}),
        **({} if boxes_camera is None else {"boxes_camera": boxes_camera}),
        "cameras": [
            {
                "name": camera.name,
                "image_size": [int(side) for side in camera.image_size],
                "K": camera.K.tolist(),
                "T_cam_ego": camera.T_cam_ego.tolist(),
                "T_world_ego": camera.T_world_ego.tolist(),
                "timestamp_us": int(camera.timestamp_us),
                # Only where it is another: sets of vehicles keep their bytes.
                **({} if camera.min_depth_m == MIN_DEPTH_M else {"min_depth_m": camera.min_depth_m}),
                **({} if camera.ignored_px is None else {"ignored_px": camera.ignored_px.tolist()}),
            }
            for camera in sample.cameras
        ],
        "members": members,
    }
    return json.dumps(meta, allow_nan=False).encode()
