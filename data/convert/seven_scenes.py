"""7-Scenes: ``<scene>/seq-NN/frame-NNNNNN.{color.png,depth.png,pose.txt}``, TrainSplit.txt and TestSplit.txt beside.

Depth is in millimetres, 65535 where invalid; a pose maps camera to world. The set names no calibration between the
colour and the depth camera of its Kinect: both are taken for one camera of 585 px focal length, as its page proposes,
so that edges can be off by some pixels. Frames have no times; they are 1/30 s apart.

Source: Shotton et al., Scene Coordinate Regression Forests (CVPR 2013); the set's readme.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from common.printable import listed
from common.ranges import at_least, positive
from data.convert.base import NO_CAMERA, FrameConverter, check_cameras, unique_logs
from data.convert.poses import nearest_rotation
from data.convert.raw_files import read_image
from data.convert.rgbd import MIN_DEPTH_M, T_CAM_LIDAR, depth_points, read_depth
from data.sample import CameraView, Sample
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

_CAMERA = "color"
_FRAME_PERIOD_US = 33_333
_INVALID_DEPTH = (0, 65535)
_PLAUSIBLE_ASPECT = (0.8, 1.5)
"""Width of the image by its focal length: 1.09 for the set's camera; opening angles of 44 to 74 degrees."""
_SPLIT_FILES = {"TrainSplit.txt": "train", "TestSplit.txt": "val"}


@dataclass(frozen=True, kw_only=True)
class SevenScenesConverter(FrameConverter):
    """Settings and reader of 7-Scenes.

    Attributes:
        source: folder that holds the scenes' folders.
        focal_px: focal length of the 640 x 480 camera; its principal point is (320, 240).
        every_pixel: points are made of every n-th row and column: 2 gives up to 76,800 a frame.
        max_depth_m: deeper points are left out.
        cameras: () or ("color",), or ("none",) for points only.
    """

    source: str
    focal_px: float = 585.0
    every_pixel: int = 2
    max_depth_m: float = 10.0
    cameras: tuple[str, ...] = ()

    set_name: ClassVar[str] = "7scenes"
    measures_intensity: ClassVar[bool] = False
    _later: ClassVar[tuple[str, ...]] = ("cameras",)

    def __post_init__(self) -> None:
        check_cameras(self, _CAMERA)
        at_least(self, every_pixel=1)
        positive(self, "focal_px", "max_depth_m")

    @cached_property
    def _logs(self) -> dict[str, Path]:
        folders = sorted(p for p in Path(self.source).glob("*/seq-*") if any(p.glob("frame-*.depth.png")))
        if not folders:
            raise ShardError(
                f"{self.source} holds no 7-Scenes sequence: expected <scene>/seq-NN/frame-NNNNNN.depth.png (each "
                "scene's seq-NN.zip unpacked beside its split files)"
            )
        return unique_logs((f"{path.parent.name}_{path.name}", path, path) for path in folders)

    @cached_property
    def _splits(self) -> dict[str, str]:
        """Split of each sequence that a split file names ("sequence3" is seq-03)."""
        splits = {}
        for scene in {path.parent for path in self._logs.values()}:
            for name, split in _SPLIT_FILES.items():
                path = scene / name
                text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
                for number in re.findall(r"sequence(\d{1,3})\b", text):
                    splits[f"{scene.name}_seq-{int(number):02d}"] = split
        return splits

    def camera_names(self) -> tuple[str, ...]:
        """The colour camera."""
        return () if self.cameras == NO_CAMERA else (_CAMERA,)

    def split_of(self, log: str) -> str:
        """As the split files say, else "train"."""
        return self._splits.get(log, "train")

    def _frames(self, log: str) -> list[tuple[str, str]]:
        # Depth or colour: a frame that lacks one of the two is counted as skipped, not silently left out.
        names = {path.name.split(".")[0] for path in self._logs[log].glob("frame-*.*.*g")}
        return [(f"{log}_{name}", name) for name in sorted(names)]

    def notes(self) -> tuple[str, ...]:
        """What had to be assumed."""
        notes = ["colour and depth taken for one camera", "frames 1/30 s apart"]
        absent = sorted(set(self._logs) - set(self._splits))
        if absent:
            notes.append(f"in no split file, so train: {listed(absent)}")
        return tuple(notes)

    def _reader(self, log: str) -> Callable[[str], Sample]:
        return functools.partial(self._read, log)

    def _read(self, log: str, name: str) -> Sample:
        key = f"{log}_{name}"
        folder = self._logs[log]
        colours = [p for p in (folder / f"{name}.color.png", folder / f"{name}.color.jpg") if p.is_file()]
        image = read_image(colours[0] if colours else folder / f"{name}.color.png")
        depth = read_depth(folder / f"{name}.depth.png", unit_m=1e-3, invalid=_INVALID_DEPTH)
        if depth.shape != image.shape[:2]:
            raise DamagedError("image-size", f"{key}: depth {depth.shape}, colour {image.shape[:2]}")
        height, width = depth.shape
        if not _PLAUSIBLE_ASPECT[0] <= width / self.focal_px <= _PLAUSIBLE_ASPECT[1]:
            detail = f"{key} is {height}x{width}, a focal length of {self.focal_px:g} px is that of another size"
            raise DamagedError("image-size", f"{detail}; give the images as published (480x640), or set focal_px")
        K = np.array([[self.focal_px, 0, width / 2], [0, self.focal_px, height / 2], [0, 0, 1]])
        points, intensity, colors = depth_points(depth, image, K, every=self.every_pixel, max_depth_m=self.max_depth_m)
        T_world_ego = _read_pose(folder / f"{name}.pose.txt") @ T_CAM_LIDAR
        timestamp_us = int(name.removeprefix("frame-")) * _FRAME_PERIOD_US
        view = CameraView(
            name=_CAMERA,
            min_depth_m=MIN_DEPTH_M,
            image_size=(height, width),
            K=K,
            T_cam_ego=T_CAM_LIDAR,
            T_world_ego=T_world_ego,
            timestamp_us=timestamp_us,
            image=image,
            depth_m=depth,
        )
        return Sample(
            key=key,
            log=log,
            timestamp_us=timestamp_us,
            points_lidar=points,
            intensity=intensity,
            colors=colors,
            T_ego_lidar=np.eye(4),
            T_world_ego=T_world_ego,
            cameras=(view,) if self.camera_names() else (),
        )


def _read_pose(path: Path) -> Float[np.ndarray, "4 4"]:
    """Camera to world.

    Raises:
        DamagedError: the file is missing or holds no rigid 4 x 4 matrix.
    """
    if not path.is_file():
        raise DamagedError("calibration-missing", str(path))
    try:
        T = np.array(path.read_text(encoding="utf-8").split(), dtype=np.float64).reshape(4, 4)
    except ValueError as error:
        raise DamagedError("calibration-missing", f"{path}: expected 16 numbers: {error}") from error
    if not np.isfinite(T).all() or abs(np.linalg.det(T[:3, :3]) - 1) > 1e-2:
        raise DamagedError("calibration-singular", f"{path}: {T.tolist()}")
    T[:3, :3] = nearest_rotation(T[:3, :3])
    return T
