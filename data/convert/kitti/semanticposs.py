"""SemanticPOSS: ``dataset/sequences/NN/{velodyne/NNNNNN.bin, labels/NNNNNN.label, tag/NNNNNN.tag}``, NN from 00 to 05.

Six drives on a university's campus with a 40-beam Hesai Pandora, no images. The files are laid out as SemanticKITTI's;
intensities are 0 to 255 and become 0 to 1. `tag` (which cells of the range image have a point) is not read. Poses are
read where `poses.txt` is there, through `Tr` of `calib.txt`, or as poses of the LiDAR where there is no `calib.txt`.

Source: Pan et al., SemanticPOSS (IV 2020); the class map of 13 classes is the one of its benchmark.
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
from data.convert.kitti import common as kitti
from data.convert.kitti.sequences import Track, class_table, find_sequences, frame_names, poses_file, read_labels
from data.sample import Sample
from data.storage.encode import DamagedError

CLASS_WORDS: dict[str, tuple[int, ...]] = {
    "people": (4, 5),
    "rider": (6,),
    "car": (7,),
    "trunk": (8,),
    "plants": (9,),
    "traffic-sign": (10, 11, 12),
    "pole": (13,),
    "trashcan": (14,),
    "building": (15,),
    "cone-stone": (16,),
    "fence": (17,),
    "bike": (21,),
    "ground": (22,),
}
"""Evaluation class -> label words: one and several people are one class, so are three kinds of signs."""

IGNORED_WORDS = (0, 1, 2, 3, 18, 19, 20)
"""Unlabelled, and words without a name that a few points have."""

_TABLE = class_table(CLASS_WORDS, IGNORED_WORDS)
_NAME = "SemanticPOSS"
_LAST = 5
_MAX_INTENSITY = 255.0


@dataclass(frozen=True, kw_only=True)
class SemanticPossConverter(Converter):
    """Settings and reader of SemanticPOSS.

    Attributes:
        source: folder that holds `dataset/sequences` (or `sequences`).
        val_sequences: numbers of the sequences of the split "val"; all others are "train".
    """

    source: str
    val_sequences: tuple[int, ...] = (2,)

    set_name: ClassVar[str] = "semanticposs"
    class_names: ClassVar[tuple[str, ...]] = tuple(CLASS_WORDS)

    def __post_init__(self) -> None:
        some_of(self, val_sequences=range(_LAST + 1))

    @cached_property
    def _sequences(self) -> dict[str, Path]:
        return find_sequences(self.source, _NAME, _LAST)

    def logs(self) -> tuple[str, ...]:
        """Sequences by number."""
        return tuple(self._sequences)

    def camera_names(self) -> tuple[str, ...]:
        """The set has no images."""
        return ()

    def split_of(self, log: str) -> str:
        """By `val_sequences`."""
        return "val" if int(log) in self.val_sequences else "train"

    def num_frames(self, log: str) -> int:
        """Sweeps of a sequence."""
        return len(frame_names(self._sequences[log]))

    def notes(self) -> tuple[str, ...]:
        """What is absent, and what stands in for it."""
        sequences = self._sequences.items()
        absent = {
            "poses: ego poses are identity": [log for log, path in sequences if poses_file(path) is None],
            "times.txt: 10 Hz assumed": [log for log, path in sequences if not (path / "times.txt").is_file()],
            "labels": [log for log, path in sequences if not any((path / "labels").glob("*.label"))],
        }
        return tuple(f"no {what} ({', '.join(logs)})" for what, logs in absent.items() if logs)

    def frames(self, log: str, start: int, stop: int) -> Iterator[Sample | Skipped]:
        """Frames in order of number; a damaged one is named and left out."""
        folder = self._sequences[log]
        names = frame_names(folder)
        try:
            track = Track(folder=folder, names=tuple(names), T_cam_lidar=_pose_frame(folder))
        except DamagedError as error:
            yield from (Skipped.of(error, f"{log}_{name}") for name in names[start:stop])
            return
        for name in names[start:stop]:
            try:
                yield _read_frame(folder, name, track)
            except DamagedError as error:
                yield Skipped.of(error, f"{log}_{name}")


def _pose_frame(folder: Path) -> Float[np.ndarray, "4 4"]:
    """LiDAR to the frame of `poses.txt`."""
    path = folder / "calib.txt"
    if poses_file(folder) is None or not path.is_file():
        return np.eye(4)
    return kitti.homogeneous(kitti.entry(kitti.read_calibration(path), "Tr", (3, 4)))


def _read_frame(folder: Path, name: str, track: Track) -> Sample:
    sweep = kitti.read_sweep(folder / "velodyne" / f"{name}.bin")
    label_path = folder / "labels" / f"{name}.label"
    labels, instances = read_labels(label_path, len(sweep), _TABLE) if label_path.is_file() else (None, None)
    return Sample(
        key=f"{folder.name}_{name}",
        log=folder.name,
        timestamp_us=track.time_us(name),
        points_lidar=np.ascontiguousarray(sweep[:, :3]),
        intensity=np.clip(sweep[:, 3] / np.float32(_MAX_INTENSITY), 0, 1),
        T_ego_lidar=np.eye(4),
        T_world_ego=track.T_world_lidar(name),
        cameras=(),
        labels=labels,
        instances=instances,
    )
