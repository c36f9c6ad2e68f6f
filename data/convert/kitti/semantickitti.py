"""SemanticKITTI: ``dataset/sequences/NN/{velodyne, labels, image_2, image_3, calib.txt, poses.txt, times.txt}``.

Sweeps, images and calibration are those of KITTI odometry; labels and poses are SemanticKITTI's. Labels become the 19
classes of the single-scan benchmark: moving objects count as their kind, other structures and objects are ignored.
The ego frame is the LiDAR's, as odometry gives no other; images and sweep of a frame share one pose and one time.

Source: Behley et al., SemanticKITTI (ICCV 2019) and its published class map; Geiger et al., KITTI (CVPR 2012).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from data.convert.base import check_cameras
from data.convert.kitti import common as kitti
from data.convert.kitti.sequences import SequenceCalibration, SequenceConverter, class_table, poses_file
from data.convert.raw_files import layout_error

CLASS_WORDS: dict[str, tuple[int, ...]] = {
    "car": (10, 252),
    "bicycle": (11,),
    "motorcycle": (15,),
    "truck": (18, 258),
    "other-vehicle": (13, 16, 20, 256, 257, 259),
    "person": (30, 254),
    "bicyclist": (31, 253),
    "motorcyclist": (32, 255),
    "road": (40, 60),
    "parking": (44,),
    "sidewalk": (48,),
    "other-ground": (49,),
    "building": (50,),
    "fence": (51,),
    "vegetation": (70,),
    "trunk": (71,),
    "terrain": (72,),
    "pole": (80,),
    "traffic-sign": (81,),
}
"""Evaluation class -> label words; 252 and above are moving objects."""

IGNORED_WORDS = (0, 1, 52, 99)
"""Unlabelled, outlier, other structure, other object."""

_VAL = "08"
_LAST_TRAIN = 10
_PROJECTIONS = {"image_2": "P2", "image_3": "P3"}


@dataclass(frozen=True, kw_only=True)
class SemanticKittiConverter(SequenceConverter):
    """Settings and reader of SemanticKITTI.

    Attributes:
        source: folder that holds `dataset/sequences` (or `sequences`).
        cameras: which of image_2 (left colour) and image_3 (right colour); () for those that every sequence has,
            which may be none; ("none",) for sweeps only.
    """

    cameras: tuple[str, ...] = ()

    set_name: ClassVar[str] = "semantickitti"
    class_names: ClassVar[tuple[str, ...]] = tuple(CLASS_WORDS)
    _data_set: ClassVar[str] = "SemanticKITTI"
    _last_sequence: ClassVar[int] = 21
    _label_table: ClassVar[Int[np.ndarray, " words"]] = class_table(CLASS_WORDS, IGNORED_WORDS)

    def __post_init__(self) -> None:
        check_cameras(self, *_PROJECTIONS)

    @cached_property
    def _camera_names(self) -> tuple[str, ...]:
        return kitti.camera_names(
            self.cameras,
            _PROJECTIONS,
            lambda camera: (folder / camera for folder in self._logs.values()),
            lambda folder: layout_error(
                self.source, self._data_set, f"{folder.name}/ of KITTI odometry's colour images", folder.parent
            ),
        )

    def split_of(self, log: str) -> str:
        """The benchmark's: 08 is "val", 11 to 21, whose labels are not public, "test"."""
        if log == _VAL:
            return "val"
        return "train" if int(log) <= _LAST_TRAIN else "test"

    def notes(self) -> tuple[str, ...]:
        """What is absent, and what stands in for it."""
        notes = [] if self._camera_names else ["no images: sweeps only"]
        unposed = [log for log, path in self._logs.items() if poses_file(path) is None]
        untimed = [log for log, path in self._logs.items() if not (path / "times.txt").is_file()]
        notes += kitti.absent("poses: ego poses are identity", unposed)
        notes += kitti.absent("times.txt: 10 Hz assumed", untimed)
        for log, path in self._logs.items():
            labelled = {file.stem for file in (path / "labels").glob("*.label")}
            sweeps = kitti.numbered((path / "velodyne").glob("*.bin"))
            num_unlabelled = sum(name not in labelled for name in sweeps)
            if num_unlabelled and self.split_of(log) != "test":
                notes.append(f"sequence {log}: {num_unlabelled} sweeps without labels")
        return tuple(notes)

    def _calibration(self, log: str) -> SequenceCalibration:
        """P0 to P3 project from the rectified frame of camera 0, Tr brings LiDAR points there."""
        folder, names = self._logs[log], self._camera_names
        # Read only where needed: calib.txt of the archives of images has no Tr, that of the calibrations' archive has.
        if not names and poses_file(folder) is None:
            return SequenceCalibration(None, {})
        values = kitti.read_calibration(folder / "calib.txt")
        T_rect0_lidar = kitti.homogeneous(kitti.entry(values, "Tr", (3, 4)))
        cameras = {}
        for camera in names:
            K, T_cam_rect0 = kitti.split_projection(kitti.entry(values, _PROJECTIONS[camera], (3, 4)))
            cameras[camera] = (K, T_cam_rect0 @ T_rect0_lidar)
        return SequenceCalibration(T_rect0_lidar, cameras)
