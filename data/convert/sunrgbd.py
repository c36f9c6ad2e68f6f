"""SUN RGB-D as VoteNet exports it: ``{image,depth,calib,label}/NNNNNN.{jpg,mat,txt,txt}``.

`depth` holds points with colours in an upright frame (x right, y forward, z up), which becomes our `lidar` frame (x
forward, y left, z up): the floor is level. `calib` holds two lines, the tilt R and the intrinsics K, both written
column by column: camera axes are R transposed applied to the upright point, then y down and z forward.
A label line: class, 2D box (left, top, width, height), centre (3), half width, half length, half height, direction (2).
Points get the class of the box that they lie in, "background" outside of all; boxes of other classes than the ten are
ignored.

Each frame is a log of its own, without time and pose. Ids up to 5050 are "val", as in the set's own split.

Source: Song et al., SUN RGB-D (CVPR 2015); Qi et al., VoteNet (ICCV 2019), supplementary, for the layout.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import scipy.io
from jaxtyping import Float
from scipy.io.matlab import MatReadError

from common.ranges import at_least
from data.convert.base import NO_CAMERA, FrameConverter, check_cameras
from data.convert.box_labels import boxes_from_rows, labels_from_boxes
from data.convert.poses import nearest_rotation
from data.convert.raw_files import check_image_fits, read_bytes, read_image
from data.convert.rgbd import MIN_DEPTH_M, colour_bytes, luminance
from data.geometry import rigid
from data.sample import IGNORE_LABEL, Boxes, CameraView, Sample
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

CLASS_NAMES = (
    *(
        "background",
        "bed",
        "table",
        "sofa",
        "chair",
        "toilet",
        "desk",
        "dresser",
        "night_stand",
        "bookshelf",
        "bathtub",
    ),
)
_CAMERA = "image"
_LAST_TEST_ID = 5050
_MAT_ERRORS = (MatReadError, KeyError, NotImplementedError, OSError, TypeError, ValueError, struct.error, zlib.error)
"""What scipy's reader raises on damaged files."""
_MAT_HEADER, _MAT_COMPRESSED, _MAT_MATRIX = 128, 15, 14
_MAT_NUMBERS = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 12, 13})
"""Types of numbers in a MATLAB file; others nest, or hold text."""
_MAX_MAT_BYTES = 256 << 20
"""Far above a frame's points."""
_T_LIDAR_UPRIGHT = rigid(np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]), np.zeros(3))
_CAM_FROM_TILTED = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])


@dataclass(frozen=True, kw_only=True)
class SunRgbdConverter(FrameConverter):
    """Settings and reader of SUN RGB-D.

    Attributes:
        source: VoteNet's folder `sunrgbd_trainval`.
        cameras: () or ("image",), or ("none",) for points only.
        every_point: every n-th point of a frame is kept: 4 leaves some 65,000.
    """

    source: str
    every_point: int = 4
    cameras: tuple[str, ...] = ()

    set_name: ClassVar[str] = "sunrgbd"
    measures_intensity: ClassVar[bool] = False
    _later: ClassVar[tuple[str, ...]] = ("cameras",)
    class_names: ClassVar[tuple[str, ...]] = CLASS_NAMES
    box_categories: ClassVar[tuple[str, ...]] = CLASS_NAMES[1:]

    def __post_init__(self) -> None:
        check_cameras(self, _CAMERA)
        at_least(self, every_point=1)

    @cached_property
    def _logs(self) -> dict[str, None]:
        """Ids of the frames, each a log."""
        files = [*Path(self.source).glob("depth/*.mat"), *Path(self.source).glob("image/*.jpg")]
        names = sorted({path.stem for path in files if path.stem.isdecimal()})
        if not names:
            raise ShardError(
                f"{self.source} holds no SUN RGB-D frames in VoteNet's layout: expected depth/NNNNNN.mat, "
                "image/NNNNNN.jpg, calib/NNNNNN.txt and label/NNNNNN.txt"
            )
        return dict.fromkeys(names)

    def camera_names(self) -> tuple[str, ...]:
        """The colour camera."""
        return () if self.cameras == NO_CAMERA else (_CAMERA,)

    def split_of(self, log: str) -> str:
        """Ids up to 5050 are the set's test frames, here "val"."""
        return "val" if int(log) <= _LAST_TEST_ID else "train"

    def notes(self) -> tuple[str, ...]:
        """What had to be assumed."""
        return ("frames have no times and no poses",)

    def _reader(self, log: str) -> Callable[[str], Sample]:
        return self._read

    def _read(self, name: str) -> Sample:
        root = Path(self.source)
        image = read_image(root / "image" / f"{name}.jpg")
        table = _read_points(root / "depth" / f"{name}.mat")[:: self.every_point]
        K, T_cam_lidar = read_calibration(root / "calib" / f"{name}.txt")
        check_image_fits(root / "image" / f"{name}.jpg", K, image.shape[:2])
        boxes = read_boxes(root / "label" / f"{name}.txt")
        points = (table[:, :3].astype(np.float64) @ _T_LIDAR_UPRIGHT[:3, :3].T).astype(np.float32)
        labels, instances = labels_from_boxes(points, boxes, CLASS_NAMES.index("background"))
        view = CameraView(
            name=_CAMERA,
            min_depth_m=MIN_DEPTH_M,
            image_size=(image.shape[0], image.shape[1]),
            K=K,
            T_cam_ego=T_cam_lidar,
            T_world_ego=np.eye(4),
            timestamp_us=0,
            image=image,
        )
        return Sample(
            key=name,
            log=name,
            timestamp_us=0,
            points_lidar=points,
            intensity=luminance(table[:, 3:6].astype(np.float64)),
            colors=colour_bytes(table[:, 3:6].astype(np.float64) * 255),
            T_ego_lidar=np.eye(4),
            T_world_ego=np.eye(4),
            cameras=(view,) if self.camera_names() else (),
            labels=labels,
            instances=instances,
            boxes=boxes,
        )


def _read_points(path: Path) -> Float[np.ndarray, "N 6"]:
    try:
        plain = unpacked_mat(read_bytes(path))
        # Its stubs know of no open files.
        table = scipy.io.loadmat(io.BytesIO(plain), variable_names=["instance"])["instance"]  # type: ignore[arg-type]
    except _MAT_ERRORS as error:
        raise DamagedError("array-broken", f"{path}: {error}") from error
    if table.ndim != 2 or table.shape[1] != 6 or not np.issubdtype(table.dtype, np.floating):
        raise DamagedError("array-broken", f"{path}: {table.dtype} {table.shape}, expected N rows of x y z r g b")
    return np.asarray(table)


def unpacked_mat(data: bytes) -> bytes:
    """A MATLAB file (version 5) without compression and with no more in it than that: what the library reads safely.

    Compressed, a few kilobytes can stand for gigabytes, and the library allocates what an element's header states.

    Raises:
        ValueError: another version, or an element that is cut or far larger than any frame.
    """
    if len(data) < _MAT_HEADER or data[124:128] != b"\x00\x01IM":
        raise ValueError("no MATLAB file of version 5")
    parts, position = [data[:_MAT_HEADER]], _MAT_HEADER
    while position < len(data):
        kind, size = struct.unpack("<II", data[position : position + 8].ljust(8, b"\0"))  # a cut tag is refused below
        content = data[position + 8 : position + 8 + size]
        position += 8 + size
        if kind == _MAT_COMPRESSED:
            stream = zlib.decompressobj()
            element = stream.decompress(content, _MAX_MAT_BYTES)
            if not stream.eof:
                raise ValueError("a compressed element is cut or far too large")
        else:
            element = struct.pack("<II", kind, size) + content
        if struct.unpack("<II", element[:8].ljust(8, b"\0")) != (_MAT_MATRIX, len(element) - 8):
            raise ValueError("an element is no whole matrix")
        _check_parts(element)
        parts.append(element)
    return b"".join(parts)


def _check_parts(element: bytes) -> None:
    """A matrix is a row of parts, padded to eight bytes; none may reach beyond it."""
    position = 8
    while position < len(element):
        kind, size = struct.unpack("<II", element[position : position + 8].ljust(8, b"\0"))
        if kind >> 16:  # up to four bytes inside of the tag itself
            kind, size = kind & 0xFFFF, 0
        position += 8 + -(-size // 8) * 8
        if kind not in _MAT_NUMBERS or position > len(element) + 7:
            raise ValueError("a matrix holds other than numbers, or fewer than it states")


def read_calibration(path: Path) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "4 4"]]:
    """Intrinsics, and T_cam_lidar of our level LiDAR frame.

    Raises:
        DamagedError: the file is missing or has another form.
    """
    if not path.is_file():
        raise DamagedError("calibration-missing", str(path))
    try:
        lines = [np.array(line.split(), dtype=np.float64) for line in path.read_text().splitlines() if line.strip()]
        tilt, K = (line.reshape(3, 3, order="F") for line in lines[:2])
    except ValueError as error:
        raise DamagedError("calibration-missing", f"{path}: expected two lines of 9 numbers: {error}") from error
    if abs(np.linalg.det(tilt) - 1) > 1e-2 or abs(np.linalg.det(K)) < 1e-6:
        raise DamagedError("calibration-singular", f"{path}: tilt {tilt.tolist()}, K {K.tolist()}")
    T_cam_upright = rigid(_CAM_FROM_TILTED @ nearest_rotation(tilt).T, np.zeros(3))
    return K.copy(), np.asarray(T_cam_upright @ np.linalg.inv(_T_LIDAR_UPRIGHT))


def read_boxes(path: Path) -> Boxes:
    """Boxes in our LiDAR frame, with the 2D boxes that people drew.

    Kinds beside the ten, of which there are hundreds, have class IGNORE_LABEL and category -1.

    Raises:
        DamagedError: the file is missing or a line has another form.
    """
    if not path.is_file():
        raise DamagedError("member-missing", str(path))
    rows, classes, rectangles = [], [], []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        name, *rest = line.split() or [""]
        if not name:
            continue
        try:
            left, top, across, down, x, y, z, width, length, height, along_x, along_y = (
                float(value) for value in rest[:12]
            )
        except ValueError as error:
            raise DamagedError("meta-broken", f"{path}, line {number}: {line!r}: {error}") from error
        # Upright x is right and y forward: our x is their y, our y their -x.
        rows.append([y, -x, z, 2 * length, 2 * width, 2 * height, float(np.arctan2(-along_x, along_y))])
        rectangles.append([left, top, left + across, top + down])
        classes.append(CLASS_NAMES.index(name) if name in CLASS_NAMES[1:] else IGNORE_LABEL)
    boxes = boxes_from_rows(rows, classes)
    return dataclasses.replace(
        boxes,
        categories=np.where(boxes.classes == IGNORE_LABEL, -1, boxes.classes - 1),
        image_boxes_px=np.array(rectangles, dtype=np.float64).reshape(-1, 4),
    )
