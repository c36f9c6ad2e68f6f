"""ScanNet: exported frames (RGB-D video of 1513 rooms' scans), whole scans as released, or VoteNet's .npy scans.

Frames, as the set's own exporter writes them::

    SRC/[scans/]<scan>/{color/N.jpg, depth/N.png, pose/N.txt, intrinsic/intrinsic_{color,depth}.txt}
    SRC/[scans/]<scan>/label-filt/N.png    optional: the set's raw category of each pixel of the colour image
    SRC/scannetv2-labels.combined.tsv      needed with label-filt
    SRC/[scans/]<scan>/label/N.png         optional, instead: NYU40 ids (as in the 25k frames)

Colour is brought onto the depth camera's pixels (640 x 480), so that image, depth, labels and superpixels share one
grid; both cameras are taken to be in one place, as the set's own tools do. Frames of which the tracking was lost have
an infinite pose and are left out. Scans::

    SRC/<scan>_{vert,sem_label,ins_label,bbox}[_all].npy

are whole rooms as samples without a camera: vertices, NYU40 ids, objects, boxes with upright z. The same of the meshes
that the set releases is read with `meshes`: `data.convert.scannet.meshes`.

Source: Dai et al., ScanNet (CVPR 2017) and the set's tools; Qi et al., VoteNet (ICCV 2019) for the layout of scans.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from common.ranges import at_least, positive
from data.convert.base import NO_CAMERA, FrameConverter, check_cameras
from data.convert.poses import nearest_rotation
from data.convert.raw_files import check_image_fits, layout_error, read_image, read_numbers, read_plane
from data.convert.rgbd import MIN_DEPTH_M, T_CAM_LIDAR, depth_points, measured, read_depth
from data.convert.scannet.classes import BOX_CATEGORIES, CLASS_NAMES, SCAN, evaluated_classes, split_of
from data.convert.scannet.meshes import mesh_folders, read_mesh
from data.convert.scannet.scans import read_scan, scan_files
from data.geometry import rigid
from data.sample import CameraView, Sample
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

_CAMERA = "color"
_FRAME_PERIOD_US = 33_333
_LABEL_PLANE = "an image of labels, 8 or 16 bit"
_LABEL_TABLE = "scannetv2-labels.combined.tsv"
_EXPECTED = (
    "scene<room>_<visit>/{color,depth,pose,intrinsic} (exported frames, also inside scans/), or "
    "scene<room>_<visit>_vert.npy (VoteNet's scans)"
)
_EXPECTED_MESH = "scene<room>_<visit>/scene<room>_<visit>_vh_clean_2.ply (released scans, also inside scans/)"


@dataclass(frozen=True, kw_only=True)
class ScanNetConverter(FrameConverter):
    """Settings and reader of ScanNet.

    Attributes:
        source: folder of the scans' folders, or of the .npy files.
        every_frame: frames: of 30 a second, those whose numbers are at least this far apart are used.
        every_pixel: frames: points are made of every n-th row and column: 2 gives up to 76,800 a frame.
        max_depth_m: frames: deeper points are left out.
        cameras: frames: () or ("color",), or ("none",) for points only.
        meshes: read the released mesh of each scan instead of frames.
    """

    source: str
    every_frame: int = 20
    every_pixel: int = 2
    max_depth_m: float = 10.0
    cameras: tuple[str, ...] = ()
    meshes: bool = False

    set_name: ClassVar[str] = "scannet"
    measures_intensity: ClassVar[bool] = False
    _later: ClassVar[tuple[str, ...]] = ("cameras", "meshes")
    class_names: ClassVar[tuple[str, ...]] = CLASS_NAMES
    box_categories: ClassVar[tuple[str, ...]] = BOX_CATEGORIES

    def __post_init__(self) -> None:
        check_cameras(self, _CAMERA)
        at_least(self, every_frame=1, every_pixel=1)
        positive(self, "max_depth_m")

    @cached_property
    def _folders(self) -> dict[str, Path]:
        """Folder of each scan with exported frames; {} for whole scans."""
        root = Path(self.source)
        if self.meshes:
            return {}
        if not root.is_dir():
            raise layout_error(self.source, "ScanNet", _EXPECTED)
        base = root / "scans" if (root / "scans").is_dir() else root
        folders = {path.name: path for path in sorted(base.iterdir()) if path.is_dir() and SCAN.match(path.name)}
        for folder in folders.values():
            missing = [name for name in ("color", "depth", "pose", "intrinsic") if not (folder / name).is_dir()]
            if missing:
                expected = f"{missing[0]}/ (export the scan's .sens with all of color, depth, poses and intrinsics)"
                raise layout_error(self.source, "ScanNet", expected, folder)
        return folders

    @cached_property
    def _logs(self) -> dict[str, Path]:
        """Where each scan lies."""
        root = Path(self.source)
        logs = mesh_folders(root) if self.meshes else self._folders or dict.fromkeys(scan_files(root), root)
        if not logs:
            raise layout_error(self.source, "ScanNet", _EXPECTED_MESH if self.meshes else _EXPECTED)
        return logs

    @cached_property
    def _nyu40_of_raw(self) -> np.ndarray | None:
        """NYU40 id of each raw category; None where no scan has raw categories."""
        if not any((folder / "label-filt").is_dir() for folder in self._folders.values()):
            return None
        tables = [Path(self.source) / _LABEL_TABLE, Path(self.source).parent / _LABEL_TABLE]
        path = next((path for path in tables if path.is_file()), None)
        if path is None:
            expected = f"{_LABEL_TABLE} (the set's table of categories: label-filt holds raw ones)"
            raise layout_error(self.source, "ScanNet", expected)
        return _read_label_table(path)

    def camera_names(self) -> tuple[str, ...]:
        """The colour camera; none in whole scans."""
        return (_CAMERA,) if self._folders and self.cameras != NO_CAMERA else ()

    def split_of(self, log: str) -> str:
        """The official one."""
        return split_of(log)

    def _frames(self, log: str) -> list[tuple[str, Any]]:
        """Numbers of the frames in use; a whole scan is one frame."""
        if not self._folders:
            return [(log, log)]
        stems = {path.stem for kind in ("color", "depth") for path in (self._folders[log] / kind).iterdir()}
        numbers: list[int] = []
        for number in sorted(int(stem) for stem in stems if stem.isdecimal()):
            if not numbers or number >= numbers[-1] + self.every_frame:
                numbers.append(number)
        return [(f"{log}_{number:06d}", number) for number in numbers]

    def notes(self) -> tuple[str, ...]:
        """What had to be assumed."""
        if not self._folders:
            return ("whole scans: no cameras, intensity is the luminance of the colours",)
        bare = [n for n, f in self._folders.items() if not (f / "label").is_dir() and not (f / "label-filt").is_dir()]
        unlabelled = [f"{len(bare)} of {len(self._folders)} scans have no labels, the first: {bare[0]}"] if bare else []
        return ("frames 1/30 s apart", "colour and depth camera in one place", *unlabelled)

    def _reader(self, log: str) -> Callable[[Any], Sample]:
        if self.meshes:
            return lambda _: read_mesh(self._logs[log])
        return functools.partial(self._read, log) if self._folders else functools.partial(read_scan, Path(self.source))

    def _read(self, log: str, number: int) -> Sample:
        folder = self._folders[log]
        T_world_ego = _read_pose(folder / "pose" / f"{number}.txt") @ T_CAM_LIDAR
        depth = read_depth(folder / "depth" / f"{number}.png", unit_m=1e-3, invalid=(0, 65535))
        K_depth, K_color = (
            _read_intrinsics(folder / "intrinsic" / f"intrinsic_{kind}.txt") for kind in ("depth", "color")
        )
        colour = read_image(folder / "color" / f"{number}.jpg")
        check_image_fits(folder / "color" / f"{number}.jpg", K_color, colour.shape[:2])
        check_image_fits(folder / "depth" / f"{number}.png", K_depth, depth.shape)
        image = on_depth_grid(colour, K_color, K_depth, depth.shape)
        labels = self._image_labels(folder, number, K_color, K_depth, depth.shape)
        points, intensity, colors = depth_points(
            depth, image, K_depth, every=self.every_pixel, max_depth_m=self.max_depth_m
        )
        v, u = measured(depth, every=self.every_pixel, max_depth_m=self.max_depth_m)
        view = CameraView(
            name=_CAMERA,
            min_depth_m=MIN_DEPTH_M,
            image_size=(depth.shape[0], depth.shape[1]),
            K=K_depth,
            T_cam_ego=T_CAM_LIDAR,
            T_world_ego=T_world_ego,
            timestamp_us=number * _FRAME_PERIOD_US,
            image=image,
            depth_m=depth,
            labels=labels,
        )
        return Sample(
            key=f"{log}_{number:06d}",
            log=log,
            timestamp_us=number * _FRAME_PERIOD_US,
            points_lidar=points,
            intensity=intensity,
            colors=colors,
            T_ego_lidar=np.eye(4),
            T_world_ego=T_world_ego,
            cameras=(view,) if self.camera_names() else (),
            labels=None if labels is None else labels[v, u],
        )

    def _image_labels(
        self,
        folder: Path,
        number: int,
        K_color: Float[np.ndarray, "3 3"],
        K_depth: Float[np.ndarray, "3 3"],
        size: tuple[int, ...],
    ) -> UInt8[np.ndarray, "H W"] | None:
        """Class of each pixel of the depth grid; None where the scan has no labels."""
        raw = folder / "label-filt"
        if raw.is_dir():
            categories = read_plane(raw / f"{number}.png", _LABEL_PLANE, np.uint8, np.uint16)
            assert self._nyu40_of_raw is not None
            nyu40 = self._nyu40_of_raw[np.minimum(categories, len(self._nyu40_of_raw) - 1)]
        elif (folder / "label").is_dir():
            nyu40 = read_plane(folder / "label" / f"{number}.png", _LABEL_PLANE, np.uint8, np.uint16).astype(np.int32)
        else:
            return None
        classes = evaluated_classes(nyu40)
        if classes.shape == tuple(size):
            return classes
        return _warped(classes, K_color, K_depth, size, cv2.INTER_NEAREST)


# ---- parts
_MAX_FACTOR = 16
"""Between the focal lengths of the two cameras; it is about two."""


def on_depth_grid(
    image: UInt8[np.ndarray, "h w 3"],
    K_color: Float[np.ndarray, "3 3"],
    K_depth: Float[np.ndarray, "3 3"],
    size: tuple[int, ...],
) -> UInt8[np.ndarray, "H W 3"]:
    """A colour image as the depth camera would have taken it from the same place.

    It has about twice the resolution, so it is first shrunk by a whole factor, over areas: without, fine texture would
    turn into noise.
    """
    focal_color, focal_depth = float(K_color[0, 0]), float(K_depth[0, 0])
    if not 0 < focal_color < _MAX_FACTOR * focal_depth:
        raise DamagedError("calibration-singular", f"focal lengths of {focal_color} and {focal_depth} pixels")
    factor = max(1, int(focal_color / focal_depth))
    if factor > 1:
        small = (image.shape[1] // factor, image.shape[0] // factor)
        image = np.asarray(cv2.resize(image, small, interpolation=cv2.INTER_AREA))
        half = (factor - 1) / 2  # centres of pixels: factor * (u + 1/2) - 1/2
        K_color = np.array([[1, 0, -half], [0, 1, -half], [0, 0, factor]]) @ K_color / factor
    return _warped(image, K_color, K_depth, size, cv2.INTER_LINEAR)


def _warped(
    plane: np.ndarray,
    K_from: Float[np.ndarray, "3 3"],
    K_to: Float[np.ndarray, "3 3"],
    size: tuple[int, ...],
    interpolation: int,
) -> np.ndarray:
    """An image through other intrinsics; the border is continued."""
    to_source = K_from @ np.linalg.inv(K_to)
    flags = interpolation | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(plane, to_source[:2], (size[1], size[0]), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    )


def _read_intrinsics(path: Path) -> Float[np.ndarray, "3 3"]:
    table = _read_matrix(path)
    if abs(np.linalg.det(table[:3, :3])) < 1e-6 or not np.isfinite(table).all():
        raise DamagedError("calibration-singular", f"{path}: {table.tolist()}")
    return np.array(table[:3, :3])


def _read_matrix(path: Path) -> Float[np.ndarray, "4 4"]:
    if not path.is_file():
        raise DamagedError("calibration-missing", str(path))
    table = read_numbers(path, 4)
    if table.shape != (4, 4):
        raise DamagedError("calibration-missing", f"{path}: {table.shape[0]} lines of 4 numbers, expected 4")
    return table


def _read_pose(path: Path) -> Float[np.ndarray, "4 4"]:
    """Camera to world.

    Raises:
        DamagedError: missing; infinite, as where tracking was lost; or no rotation.
    """
    T = _read_matrix(path)
    if not np.isfinite(T).all():
        raise DamagedError("calibration-singular", f"{path}: no pose, the set's tracking was lost here")
    if abs(np.linalg.det(T[:3, :3]) - 1) > 1e-2:
        raise DamagedError("calibration-singular", f"{path}: {T.tolist()}")
    return rigid(nearest_rotation(T[:3, :3]), T[:3, 3])


def _read_label_table(path: Path) -> np.ndarray:
    """NYU40 id of each raw category; 0 for those that the table does not name."""
    text = path.read_text(encoding="utf-8", errors="replace")
    ids: dict[int, int] = {}
    for row in csv.DictReader(io.StringIO(text), delimiter="\t"):
        try:
            ids[int(row["id"])] = int(row["nyu40id"])
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{path}: expected columns id and nyu40id of whole numbers, got {row}") from error
    if not ids or not 0 <= min(ids) <= max(ids) < 65536:
        raise ShardError(f"{path}: expected categories from 0 to 65535, got {len(ids)} of them")
    table = np.zeros(max(ids) + 2, dtype=np.int32)
    for raw, nyu40 in ids.items():
        table[raw] = nyu40
    return table
