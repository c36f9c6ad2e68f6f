"""SemanticKITTI: ``dataset/sequences/NN/{velodyne, labels, image_2, image_3, calib.txt, poses.txt, times.txt}``.

Sweeps, images and calibration are those of KITTI odometry; labels and poses are SemanticKITTI's. Labels become the 19
classes of the single-scan benchmark: moving objects count as their kind, other structures and objects are ignored.
The ego frame is the LiDAR's, as odometry gives no other; images and sweep of a frame share one pose and one time.

Source: Behley et al., SemanticKITTI (ICCV 2019) and its published class map; Geiger et al., KITTI (CVPR 2012).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from common.ranges import some_of
from data.convert.base import Converter, Skipped
from data.convert.files import layout_error, read_image
from data.convert.kitti import common as kitti
from data.convert.kitti.sequences import Track, class_table, find_sequences, frame_names, poses_file, read_labels
from data.sample import CameraView, Sample
from data.storage.encode import DamagedError

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

_TABLE = class_table(CLASS_WORDS, IGNORED_WORDS)
_NAME = "SemanticKITTI"
_VAL = "08"
_LAST_TRAIN, _LAST = 10, 21
_PROJECTIONS = {"image_2": "P2", "image_3": "P3"}
_NO_CAMERA = ("none",)


@dataclass(frozen=True, kw_only=True)
class SemanticKittiConverter(Converter):
    """Settings and reader of SemanticKITTI.

    Attributes:
        source: folder that holds `dataset/sequences` (or `sequences`).
        cameras: which of image_2 (left colour) and image_3 (right colour); () for those that every sequence has,
            which may be none; ("none",) for sweeps only.
    """

    source: str
    cameras: tuple[str, ...] = ()

    set_name: ClassVar[str] = "semantickitti"
    class_names: ClassVar[tuple[str, ...]] = tuple(CLASS_WORDS)

    def __post_init__(self) -> None:
        if self.cameras != _NO_CAMERA:
            some_of(self, "or none alone", cameras=_PROJECTIONS)

    @cached_property
    def _sequences(self) -> dict[str, Path]:
        return find_sequences(self.source, _NAME, _LAST)

    @cached_property
    def _camera_names(self) -> tuple[str, ...]:
        if self.cameras == _NO_CAMERA:
            return ()
        for camera in self.cameras:
            for folder in self._sequences.values():
                if not (folder / camera).is_dir():
                    raise layout_error(self.source, _NAME, f"{camera}/ of KITTI odometry's colour images", folder)
        return self.cameras or tuple(
            name for name in _PROJECTIONS if all((path / name).is_dir() for path in self._sequences.values())
        )

    def logs(self) -> tuple[str, ...]:
        """Sequences by number."""
        return tuple(self._sequences)

    def camera_names(self) -> tuple[str, ...]:
        """The cameras that are read, () for sweeps only."""
        return self._camera_names

    def split_of(self, log: str) -> str:
        """The benchmark's: 08 is "val", 11 to 21, whose labels are not public, "test"."""
        if log == _VAL:
            return "val"
        return "train" if int(log) <= _LAST_TRAIN else "test"

    def num_frames(self, log: str) -> int:
        """Frames that have a sweep or an image."""
        return len(frame_names(self._sequences[log], self._camera_names))

    def notes(self) -> tuple[str, ...]:
        """What is absent, and what stands in for it."""
        found = [] if self._camera_names else ["no images: sweeps only"]
        unposed = [log for log, path in self._sequences.items() if poses_file(path) is None]
        if unposed:
            found.append(f"no poses: ego poses are identity ({kitti.some(unposed)})")
        untimed = [log for log, path in self._sequences.items() if not (path / "times.txt").is_file()]
        if untimed:
            found.append(f"no times.txt: 10 Hz assumed ({kitti.some(untimed)})")
        for log, path in self._sequences.items():
            labels = {file.stem for file in (path / "labels").glob("*.label")}
            unlabelled = sum(name not in labels for name in frame_names(path))
            if unlabelled and self.split_of(log) != "test":
                found.append(f"sequence {log}: {unlabelled} sweeps without labels")
        return tuple(found)

    def frames(self, log: str, start: int, stop: int) -> Iterator[Sample | Skipped]:
        """Frames in order of number; a damaged one is named and left out."""
        folder = self._sequences[log]
        names = frame_names(folder, self._camera_names)
        try:
            calibration = _Calibration(folder, self._camera_names)
        except DamagedError as error:
            yield from (Skipped.of(error, f"{log}_{name}") for name in names[start:stop])
            return
        track = Track(folder=folder, names=tuple(names), T_cam_lidar=calibration.T_rect0_lidar)
        for name in names[start:stop]:
            try:
                yield _read_frame(folder, name, calibration, track)
            except DamagedError as error:
                yield Skipped.of(error, f"{log}_{name}")


class _Calibration:
    """`calib.txt`: P0 to P3 project from the rectified frame of camera 0, Tr brings LiDAR points there.

    Read where something needs it: poses or cameras. `calib.txt` of the archives of images has no Tr, that of the
    archive of calibrations has.
    """

    def __init__(self, folder: Path, cameras: tuple[str, ...]) -> None:
        self.T_rect0_lidar: Float[np.ndarray, "4 4"] | None = None
        self.K: dict[str, Float[np.ndarray, "3 3"]] = {}
        self.T_cam_lidar: dict[str, Float[np.ndarray, "4 4"]] = {}
        if not cameras and poses_file(folder) is None:
            return
        values = kitti.read_calibration(folder / "calib.txt")
        self.T_rect0_lidar = kitti.homogeneous(kitti.entry(values, "Tr", (3, 4)))
        for camera in cameras:
            P = kitti.entry(values, _PROJECTIONS[camera], (3, 4))
            self.K[camera], T_cam_rect0 = kitti.split_projection(P)
            self.T_cam_lidar[camera] = T_cam_rect0 @ self.T_rect0_lidar


def _read_frame(folder: Path, name: str, calibration: _Calibration, track: Track) -> Sample:
    sweep = kitti.read_sweep(folder / "velodyne" / f"{name}.bin")
    label_path = folder / "labels" / f"{name}.label"
    labels, instances = read_labels(label_path, len(sweep), _TABLE) if label_path.is_file() else (None, None)
    T_world_ego, timestamp_us = track.T_world_lidar(name), track.time_us(name)
    cameras = []
    for camera, K in calibration.K.items():
        image = read_image(folder / camera / f"{name}.png")
        view = CameraView(
            name=camera,
            image_size=(image.shape[0], image.shape[1]),
            K=K,
            T_cam_ego=calibration.T_cam_lidar[camera],
            T_world_ego=T_world_ego,
            timestamp_us=timestamp_us,
            image=image,
        )
        cameras.append(view)
    return Sample(
        key=f"{folder.name}_{name}",
        log=folder.name,
        timestamp_us=timestamp_us,
        points_lidar=np.ascontiguousarray(sweep[:, :3]),
        intensity=np.clip(sweep[:, 3], 0, 1),
        T_ego_lidar=np.eye(4),
        T_world_ego=T_world_ego,
        cameras=tuple(cameras),
        labels=labels,
        instances=instances,
    )
