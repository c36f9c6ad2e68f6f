"""NYU Depth v2 as works on depth unpack it: ``sync/<scene>/{rgb,sync_depth}_NNNNN.*`` and ``official_splits``.

The set itself is raw recordings of a Kinect and a MATLAB file of 1,449 labelled frames. What is read here are the
pairs of images that Lee et al. made of both: `sync` holds about 24,000 frames of the training scenes,
`official_splits/test` the 654 labelled test frames and `official_splits/train` the 795 labelled training frames (by the
kind of room). Depth is in millimetres, in the colour camera's frame, 0 where unknown; frames have neither poses nor
times.

Intrinsics are those of the colour camera in the set's toolbox. Its images have a border of some pixels without picture.

Source: Silberman et al., Indoor Segmentation and Support Inference from RGBD Images (ECCV 2012); the layout: Lee et
al., From Big to Small (2019), released scripts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from common.ranges import at_least, one_of, positive
from data.convert.base import NO_CAMERA, FrameConverter, check_cameras, unique_logs
from data.convert.raw_files import layout_error, read_image
from data.convert.rgbd import MIN_DEPTH_M, T_CAM_LIDAR, depth_points, read_depth
from data.sample import CameraView, Sample
from data.storage.damage import DamagedError

_CAMERA = "rgb"
_SIZE = (480, 640)
_K = np.array([[518.8579, 0.0, 325.5824], [0.0, 519.4696, 253.7362], [0.0, 0.0, 1.0]])
_TRAIN = {"sync": "sync", "labelled": "official_splits/train"}
_TEST = "official_splits/test"


class _Scene(NamedTuple):
    folder: Path
    split: str


@dataclass(frozen=True, kw_only=True)
class NyuConverter(FrameConverter):
    """Settings and reader of NYU Depth v2.

    Attributes:
        source: folder that holds `sync` and `official_splits`.
        train: the training frames: "sync", or "labelled", the 795 of official_splits.
        every_frame: of each training scene the first of so many frames; its frames follow each other closely.
        every_pixel: points are made of every n-th row and column: 2 gives up to 76,800 a frame.
        max_depth_m: deeper points are left out.
        cameras: () or ("rgb",), or ("none",) for points only.
    """

    source: str
    train: Literal["sync", "labelled"] = "sync"
    every_frame: int = 1
    every_pixel: int = 2
    max_depth_m: float = 10.0
    cameras: tuple[str, ...] = ()

    set_name: ClassVar[str] = "nyu"
    measures_intensity: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_cameras(self, _CAMERA)
        one_of(self, train=_TRAIN)
        at_least(self, every_frame=1, every_pixel=1)
        positive(self, "max_depth_m")

    @cached_property
    def _logs(self) -> dict[str, _Scene]:
        found = [
            (prefix + folder.name, folder, _Scene(folder, split))
            for part, prefix, split in ((_TRAIN[self.train], "", "train"), (_TEST, "test_", "val"))
            for folder in sorted((Path(self.source) / part).glob("*"))
            if any(folder.glob("sync_depth_*.png"))
        ]
        if not found:
            expected = f"{_TRAIN[self.train]}/<scene>/{{rgb_NNNNN.jpg,sync_depth_NNNNN.png}} or {_TEST}/<scene>/..."
            raise layout_error(self.source, "NYU Depth v2", expected)
        return unique_logs(found)

    def camera_names(self) -> tuple[str, ...]:
        """The colour camera."""
        return () if self.cameras == NO_CAMERA else (_CAMERA,)

    def split_of(self, log: str) -> str:
        """The 654 test frames are "val"."""
        return self._logs[log].split

    def _frames(self, log: str) -> list[tuple[str, str]]:
        # Depth or colour: a frame that lacks one of the two is counted as skipped, not silently left out.
        scene = self._logs[log]
        files = (*scene.folder.glob("rgb_*.*"), *scene.folder.glob("sync_depth_*.png"))
        names = sorted({path.stem.rpartition("_")[2] for path in files})
        every = self.every_frame if scene.split == "train" else 1
        return [(f"{log}_{name}", name) for name in names[::every]]

    def notes(self) -> tuple[str, ...]:
        """What had to be assumed, and which part is absent."""
        notes = ["frames have no times and no poses", "intrinsics of the set's toolbox"]
        splits = {scene.split for scene in self._logs.values()}
        absent = [part for part, split in ((_TRAIN[self.train], "train"), (_TEST, "val")) if split not in splits]
        return (*notes, *(f"no {part}" for part in absent))

    def _reader(self, log: str) -> Callable[[str], Sample]:
        return functools.partial(self._read, log)

    def _read(self, log: str, name: str) -> Sample:
        key, folder = f"{log}_{name}", self._logs[log].folder
        colours = [path for path in sorted(folder.glob(f"rgb_{name}.*")) if path.suffix in (".jpg", ".png")]
        image = read_image(colours[0] if colours else folder / f"rgb_{name}.jpg")
        depth = read_depth(folder / f"sync_depth_{name}.png", unit_m=1e-3, invalid=(0,))
        if (depth.shape, image.shape[:2]) != (_SIZE, _SIZE):
            detail = f"{key}: depth {depth.shape}, colour {image.shape[:2]}, expected {_SIZE}"
            raise DamagedError("image-size", f"{detail}; its intrinsics are those of that size")
        points, intensity, colors = depth_points(depth, image, _K, every=self.every_pixel, max_depth_m=self.max_depth_m)
        view = CameraView(
            name=_CAMERA,
            min_depth_m=MIN_DEPTH_M,
            image_size=_SIZE,
            K=_K,
            T_cam_ego=T_CAM_LIDAR,
            T_world_ego=np.eye(4),
            timestamp_us=0,
            image=image,
            depth_m=depth,
        )
        return Sample(
            key=key,
            log=log,
            timestamp_us=0,
            points_lidar=points,
            intensity=intensity,
            colors=colors,
            T_ego_lidar=np.eye(4),
            T_world_ego=np.eye(4),
            cameras=(view,) if self.camera_names() else (),
        )
