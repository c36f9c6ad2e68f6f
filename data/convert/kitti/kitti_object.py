"""KITTI 3D object detection, the training folder: ``training/{velodyne,image_2,calib,label_2}``.

Points get labels from the 3D boxes: background, Car, Pedestrian, Cyclist. Ignored (`IGNORE_LABEL`) are points

- outside the left colour image and in no box: KITTI labels nothing there, so "background" would be wrong;
- in boxes of Van, Truck, Tram, Misc and Person_sitting: neither background nor one of the three;
- that project into a DontCare rectangle and lie in no box of the three: far or crowded objects without boxes.

Without a folder `label_2`, frames have no labels.

Each frame is a log of its own, as frames come shuffled from many drives, and has no known time or ego pose.

Splits: the 3712/3769 lists that papers use are not shipped. Give them as `train_list` and `val_list`; otherwise every
`val_every`-th frame is "val", which puts frames of one drive on both sides and makes figures look better than they are.

Source: Geiger et al., Are we ready for Autonomous Driving? (CVPR 2012); the object development kit's readme.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from common.ranges import at_least
from data.convert.base import NO_CAMERA, FrameConverter, check_cameras
from data.convert.box_labels import boxes_from_rows, labels_from_boxes
from data.convert.intensity import check_intensity
from data.convert.kitti import common as kitti
from data.convert.raw_files import layout_error, read_bytes, read_view
from data.geometry import project, transform, visible
from data.sample import IGNORE_LABEL, Boxes, Sample
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

CLASS_NAMES = ("background", "Car", "Pedestrian", "Cyclist")
BOX_CATEGORIES = (*CLASS_NAMES[1:], "Van", "Truck", "Tram", "Misc", "Person_sitting")
"""Types of label_2 that stand for one object. The metric counts a Van neither for nor against Car, nor Person_sitting
for Pedestrian."""
_CAMERA = "image_2"


@dataclass(frozen=True, kw_only=True)
class KittiObjectConverter(FrameConverter):
    """Settings and reader of KITTI object.

    Attributes:
        source: folder that holds `training`.
        train_list: text file with one frame id a line (``000123``); with `val_list` it replaces the default rule, and
            frames in neither are left out.
        val_list: as `train_list`.
        val_every: without lists, frames whose id is a multiple of it are "val"; 0 puts all into "train".
        cameras: () or ("image_2",), or ("none",) for sweeps only; labels need the image's size all the same.
    """

    source: str
    train_list: str | None = None
    val_list: str | None = None
    val_every: int = 5
    cameras: tuple[str, ...] = ()

    set_name: ClassVar[str] = "kitti-object"
    _later: ClassVar[tuple[str, ...]] = ("cameras",)
    class_names: ClassVar[tuple[str, ...]] = CLASS_NAMES
    box_categories: ClassVar[tuple[str, ...]] = BOX_CATEGORIES

    def __post_init__(self) -> None:
        check_cameras(self, _CAMERA)
        at_least(self, val_every=0)
        if (self.train_list is None) != (self.val_list is None):
            raise ValueError("train_list and val_list must be given together")

    @property
    def _folder(self) -> Path:
        return Path(self.source) / "training"

    @cached_property
    def _logs(self) -> dict[str, str]:
        """Split of each frame in use."""
        images = [self._folder / _CAMERA] if self.camera_names() else []
        names = kitti.recorded(self._folder / "velodyne", images)
        if not names:
            raise layout_error(self.source, "KITTI object", "training/{velodyne,image_2,calib,label_2}/NNNNNN.*")
        if self.train_list is None or self.val_list is None:
            is_val = {name: self.val_every > 0 and int(name) % self.val_every == 0 for name in names}
            return {name: "val" if val else "train" for name, val in is_val.items()}
        splits = dict.fromkeys(_read_list(self.train_list), "train")
        both = sorted(set(splits) & set(_read_list(self.val_list)))
        if both:
            raise ShardError(f"frame {both[0]} is in train_list and in val_list")
        splits |= dict.fromkeys(_read_list(self.val_list), "val")
        return {name: splits[name] for name in sorted(splits) if name in names}

    def camera_names(self) -> tuple[str, ...]:
        """The left colour camera."""
        return () if self.cameras == NO_CAMERA else (_CAMERA,)

    def split_of(self, log: str) -> str:
        """Split of a frame by list or rule."""
        return self._logs[log]

    def notes(self) -> tuple[str, ...]:
        """How the frames were split."""
        notes = ["frames have no times and no ego poses"]
        if not self._labelled:
            notes.append("no label_2: sweeps without labels and boxes")
        if self.train_list is None:
            notes.append(f"no split lists: every {self.val_every}th frame is val" if self.val_every else "no val split")
        else:
            total = len(set(_read_list(self.train_list)) | set(_read_list(self.val_list or "")))
            if total > len(self._logs):
                notes.append(f"{total - len(self._logs)} of {total} listed frames are not in the source")
        return tuple(notes)

    def _reader(self, log: str) -> Callable[[str], Sample]:
        return functools.partial(_read_frame, self._folder, bool(self.camera_names()), self._labelled)

    @property
    def _labelled(self) -> bool:
        return (self._folder / "label_2").is_dir()


def _read_list(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").split()
    except OSError as error:
        raise ShardError(f"cannot read the split list {path}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class _Calibration:
    K: Float[np.ndarray, "3 3"]
    T_cam_lidar: Float[np.ndarray, "4 4"]
    T_rect0_lidar: Float[np.ndarray, "4 4"]
    T_ego_lidar: Float[np.ndarray, "4 4"]


def _read_calibration(path: Path) -> _Calibration:
    values = kitti.read_calibration(path)
    K, T_cam_rect0 = kitti.split_projection(kitti.entry(values, "P2", (3, 4)))
    T_cam0_lidar = kitti.homogeneous(kitti.entry(values, "Tr_velo_to_cam", (3, 4)))
    T_rect0_lidar = kitti.rotation(kitti.entry(values, "R0_rect", (3, 3))) @ T_cam0_lidar
    T_velo_imu = kitti.homogeneous(kitti.entry(values, "Tr_imu_to_velo", (3, 4)))
    return _Calibration(
        K=K,
        T_cam_lidar=T_cam_rect0 @ T_rect0_lidar,
        T_rect0_lidar=T_rect0_lidar,
        T_ego_lidar=kitti.inverse("Tr_imu_to_velo", T_velo_imu),
    )


@dataclass(frozen=True, kw_only=True)
class ObjectLabels:
    """A parsed label_2 file.

    Attributes:
        boxes: in the LiDAR frame; other types than the three have class IGNORE_LABEL. As the file has them: truncation,
            occlusion (0 visible, 1 partly, 2 largely occluded, 3 not known), 2D box in the left colour image with its
            decimals, observation angle alpha; -1 and NaN where the file has its marks for "unknown" (-1, -10).
        dont_care_px: rectangles left, top, right, bottom.
    """

    boxes: Boxes
    dont_care_px: Float[np.ndarray, "rectangles 4"]


def read_labels(path: Path, T_rect0_lidar: Float[np.ndarray, "4 4"]) -> ObjectLabels:
    """Boxes and DontCare rectangles of a frame.

    KITTI gives the centre of a box's bottom face in the rectified frame of camera 0 (y down) and its rotation about
    that y; the small tilt between that frame and the LiDAR's (about a degree) is not kept in the box.

    Raises:
        DamagedError: the file is missing or a line has another form.
    """
    text = read_bytes(path).decode("utf-8", errors="replace")
    T_lidar_rect0 = kitti.inverse("velo_to_rect", T_rect0_lidar)
    kinds: list[str] = []
    rows, rectangles = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        kind, *words = line.split() or [""]
        if not kind:
            continue
        try:
            values = [float(value) for value in words]
        except ValueError as error:
            raise DamagedError("meta-broken", f"{path}, line {number}: {error}") from error
        if len(values) < 14 or not (kind in BOX_CATEGORIES or kind == "DontCare"):
            raise DamagedError("meta-broken", f"{path}, line {number}: {line!r} is no object label")
        if kind == "DontCare":
            rectangles.append(values[3:7])
            continue
        if values[1] not in (-1, 0, 1, 2, 3):
            raise DamagedError("meta-broken", f"{path}, line {number}: occlusion {words[1]}, expected 0 to 3 or -1")
        kinds.append(kind)
        rows.append(values[:14])
    boxes = _boxes(kinds, np.array(rows, dtype=np.float64).reshape(-1, 14), T_lidar_rect0)
    return ObjectLabels(boxes=boxes, dont_care_px=np.array(rectangles, dtype=np.float64).reshape(-1, 4))


def _boxes(kinds: Sequence[str], rows: Float[np.ndarray, "boxes 14"], T_lidar_rect0: Float[np.ndarray, "4 4"]) -> Boxes:
    """Boxes of the numbers after each line's type."""
    truncation, occlusion, alpha = rows.T[:3]
    categories = np.array([BOX_CATEGORIES.index(kind) for kind in kinds], dtype=np.int32)
    classes = [CLASS_NAMES.index(kind) if kind in CLASS_NAMES else IGNORE_LABEL for kind in kinds]
    return dataclasses.replace(
        boxes_from_rows([_box_row(values, T_lidar_rect0) for values in rows], classes),
        categories=categories,
        truncations=np.where(truncation == -1, np.nan, truncation),
        occlusions=occlusion.astype(np.int32),
        image_boxes_px=rows[:, 3:7],
        alphas=np.where(alpha == -10, np.nan, alpha),
    )


def _box_row(values: Float[np.ndarray, " 14"], T_lidar_rect0: Float[np.ndarray, "4 4"]) -> list[float]:
    """Centre, size and yaw in the LiDAR frame; `values` are the numbers after the type."""
    height, width, length = values[7:10]
    bottom = values[10:13]
    rotation_y = values[13]
    center = transform(T_lidar_rect0, (bottom - [0, height / 2, 0])[None])[0]
    # At rotation_y = 0 a car points along the camera's x; positive turns x towards -z.
    heading = T_lidar_rect0[:3, :3] @ np.array([np.cos(rotation_y), 0.0, -np.sin(rotation_y)])
    return [*center.tolist(), length, width, height, float(np.arctan2(heading[1], heading[0]))]


def _read_frame(folder: Path, pictured: bool, labelled: bool, name: str) -> Sample:
    """A frame; with its image in it if `pictured`, with labels and boxes if `labelled`."""
    calibration = _read_calibration(folder / "calib" / f"{name}.txt")
    path = folder / "velodyne" / f"{name}.bin"
    sweep = kitti.read_sweep(path)
    check_intensity(sweep[:, 3], 1.0, str(path))
    T_cam_ego = calibration.T_cam_lidar @ np.linalg.inv(calibration.T_ego_lidar)
    views, boxes, labels, instances = [], None, None, None
    points = np.ascontiguousarray(sweep[:, :3])
    if pictured or labelled:  # labels say nothing beyond the image
        image = kitti.image_file(folder / _CAMERA, name)
        views = [read_view(_CAMERA, image, calibration.K, T_cam_ego, np.eye(4), 0)]
    if labelled:
        truth = read_labels(folder / "label_2" / f"{name}.txt", calibration.T_rect0_lidar)
        boxes = truth.boxes
        labels, instances = labels_from_boxes(points, boxes, CLASS_NAMES.index("background"))
        objects = (labels > 0) & (labels != IGNORE_LABEL)
        labels[_unlabelled(points, calibration, views[0].image_size, truth.dont_care_px, objects)] = IGNORE_LABEL
        views = [dataclasses.replace(views[0], ignored_px=truth.dont_care_px)]
    return Sample(
        key=name,
        log=name,
        timestamp_us=0,
        points_lidar=points,
        intensity=np.ascontiguousarray(sweep[:, 3]),
        T_ego_lidar=calibration.T_ego_lidar,
        T_world_ego=np.eye(4),
        cameras=tuple(views) if pictured else (),
        labels=labels,
        instances=instances,
        boxes=boxes,
    )


def _unlabelled(
    points: Float[np.ndarray, "N 3"],
    calibration: _Calibration,
    image_size: tuple[int, int],
    dont_care_px: Float[np.ndarray, "rectangles 4"],
    objects: Bool[np.ndarray, " N"],
) -> Bool[np.ndarray, " N"]:
    """Points in no object that are outside the image or in a DontCare rectangle: the labels say nothing of them."""
    uv, depth = project(calibration.K, transform(calibration.T_cam_lidar, points))
    unknown = ~visible(uv, depth, image_size, min_depth_m=0.0, border_px=0.0)
    with np.errstate(invalid="ignore"):  # points behind the camera have no pixel
        for left, top, right, bottom in dont_care_px:
            unknown |= (uv[:, 0] >= left) & (uv[:, 0] <= right) & (uv[:, 1] >= top) & (uv[:, 1] <= bottom)
    return np.asarray(unknown & ~objects)
