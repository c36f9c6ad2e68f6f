"""SemanticPOSS: ``dataset/sequences/NN/{velodyne/NNNNNN.bin, labels/NNNNNN.label, tag/NNNNNN.tag}``, NN from 00 to 05.

Six drives on a university's campus with a 40-beam Hesai Pandora, no images. The files are laid out as SemanticKITTI's;
intensities are 0 to 255 and become 0 to 1. `tag` (which cells of the range image have a point) is not read. Poses are
read where `poses.txt` is there, through `Tr` of `calib.txt`, or as poses of the LiDAR where there is no `calib.txt`.

Source: Pan et al., SemanticPOSS (IV 2020); the class map of 13 classes is the one of its benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from common.ranges import some_of
from data.convert.base import check_cameras
from data.convert.kitti import common as kitti
from data.convert.kitti.sequences import SequenceCalibration, SequenceConverter, class_table, poses_file

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

_LAST = 5


@dataclass(frozen=True, kw_only=True)
class SemanticPossConverter(SequenceConverter):
    """Settings and reader of SemanticPOSS.

    Attributes:
        source: folder that holds `dataset/sequences` (or `sequences`).
        cameras: () or ("none",): there are none.
        val_sequences: numbers of the sequences of the split "val"; all others are "train".
    """

    val_sequences: tuple[int, ...] = (2,)
    cameras: tuple[str, ...] = ()

    set_name: ClassVar[str] = "semanticposs"
    _later: ClassVar[tuple[str, ...]] = ("cameras",)
    class_names: ClassVar[tuple[str, ...]] = tuple(CLASS_WORDS)
    _data_set: ClassVar[str] = "SemanticPOSS"
    _last_sequence: ClassVar[int] = _LAST
    _label_table: ClassVar[Int[np.ndarray, " words"]] = class_table(CLASS_WORDS, IGNORED_WORDS)
    _max_intensity: ClassVar[float] = 255.0

    def __post_init__(self) -> None:
        check_cameras(self)
        some_of(self, val_sequences=range(_LAST + 1))

    def split_of(self, log: str) -> str:
        """By `val_sequences`."""
        return "val" if int(log) in self.val_sequences else "train"

    def notes(self) -> tuple[str, ...]:
        """What is absent, and what stands in for it."""
        sequences = self._logs.items()
        absent = {
            "poses: ego poses are identity": [log for log, path in sequences if poses_file(path) is None],
            "times.txt: 10 Hz assumed": [log for log, path in sequences if not (path / "times.txt").is_file()],
            "labels": [log for log, path in sequences if not any((path / "labels").glob("*.label"))],
        }
        return tuple(f"no {what} ({', '.join(logs)})" for what, logs in absent.items() if logs)

    def _calibration(self, log: str) -> SequenceCalibration:
        path = self._logs[log] / "calib.txt"
        if poses_file(self._logs[log]) is None or not path.is_file():
            return SequenceCalibration(np.eye(4), {})  # poses, if any, are the LiDAR's
        return SequenceCalibration(kitti.homogeneous(kitti.entry(kitti.read_calibration(path), "Tr", (3, 4))), {})
