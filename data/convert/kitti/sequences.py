"""Folders of sequences as KITTI odometry has them, and label words as SemanticKITTI writes them.

``dataset/sequences/NN/{velodyne/NNNNNN.bin, labels/NNNNNN.label, poses.txt, times.txt}``, shared by SemanticKITTI and
SemanticPOSS. A label file holds one 32-bit word a point: class in the low 16 bits, object in the high 16 bits.

Source: Geiger et al., KITTI (CVPR 2012), odometry development kit; Behley et al., SemanticKITTI (ICCV 2019).
"""

from __future__ import annotations

import functools
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from data.convert.base import FrameConverter
from data.convert.intensity import scaled_intensity
from data.convert.kitti.common import FRAME_PERIOD_US, image_file, inverse, read_sweep, recorded
from data.convert.raw_files import FrameLines, layout_error, numbers_of, read_frame_lines, read_records, read_view
from data.geometry import rigid
from data.sample import IGNORE_LABEL, Sample
from data.storage.damage import DamagedError

_WORDS = 1 << 16
_UNKNOWN = -1
_MAX_TIME_S = 1e12
"""Beyond it, microseconds do not fit 64 bits."""


# ---- labels
def class_table(classes: Mapping[str, tuple[int, ...]], ignored: tuple[int, ...]) -> Int[np.ndarray, " words"]:
    """Class of each possible label word: index into `classes`, IGNORE_LABEL, or -1 for words that the set has not.

    Args:
        classes: evaluation class -> the set's words for it.
        ignored: words of points that the benchmark does not count.
    """
    table = np.full(_WORDS, _UNKNOWN, dtype=np.int16)
    table[list(ignored)] = IGNORE_LABEL
    for index, words in enumerate(classes.values()):
        table[list(words)] = index
    return table


def read_labels(
    path: Path, num_points: int, table: Int[np.ndarray, " words"]
) -> tuple[UInt8[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Class and object of each point of a sweep, by a table from `class_table`.

    Raises:
        DamagedError: the file is missing, is not one word a point, or has a word that the set does not know.
    """
    words = read_records(path, "<u4", 1)[:, 0]
    if len(words) != num_points:
        raise DamagedError("array-broken", f"{path}: {len(words)} labels for {num_points} points")
    classes = table[words & 0xFFFF]
    unknown = classes == _UNKNOWN
    if unknown.any():
        word = int(words[unknown][0] & 0xFFFF)
        raise DamagedError("array-broken", f"{path}: {int(unknown.sum())} points of class {word}, unknown to this set")
    return classes.astype(np.uint8), (words >> 16).astype(np.int32)


# ---- sequences
class SequenceCalibration(NamedTuple):
    """`T_cam_lidar` as `Track`'s, and K and T_cam_ego of each camera; ego is the LiDAR, as odometry gives no other."""

    T_cam_lidar: Float[np.ndarray, "4 4"] | None
    cameras: Mapping[str, tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "4 4"]]]


@dataclass(frozen=True, kw_only=True)
class SequenceConverter(FrameConverter):
    """What SemanticKITTI and SemanticPOSS share: one log a sequence, sweeps with labels where a file has them.

    Attributes:
        source: folder that holds `dataset/sequences` (or `sequences`).
    """

    source: str

    _data_set: ClassVar[str]
    _last_sequence: ClassVar[int]
    _label_table: ClassVar[Int[np.ndarray, " words"]]
    _max_intensity: ClassVar[float] = 1.0

    @cached_property
    def _logs(self) -> dict[str, Path]:
        """Folder of each sequence that has sweeps, by its two digits."""
        root = Path(self.source)
        inside = root / "sequences" if (root / "sequences").is_dir() else root / "dataset" / "sequences"
        sequences = {
            path.name: path
            for path in sorted(inside.glob("*"))
            if re.fullmatch(r"\d\d", path.name) and (path / "velodyne").is_dir()
        }
        beyond = [name for name in sequences if int(name) > self._last_sequence]
        if not sequences or beyond:
            expected = f"NN/velodyne/NNNNNN.bin with NN from 00 to {self._last_sequence:02d}"
            raise layout_error(self.source, self._data_set, expected, inside if inside.is_dir() else root)
        return sequences

    def _frames(self, log: str) -> list[tuple[str, str]]:
        names = recorded(self._logs[log] / "velodyne", (self._logs[log] / camera for camera in self.camera_names()))
        return [(f"{log}_{name}", name) for name in names]

    @abstractmethod
    def _calibration(self, log: str) -> SequenceCalibration:
        """What poses and cameras of a sequence need of `calib.txt`.

        Raises:
            DamagedError: it is missing or damaged.
        """

    def _reader(self, log: str) -> Callable[[str], Sample]:
        folder, calibration = self._logs[log], self._calibration(log)
        names = tuple(name for _, name in self._frames(log))
        track = Track(folder=folder, names=names, T_cam_lidar=calibration.T_cam_lidar)

        def read(name: str) -> Sample:
            path, label_path = folder / "velodyne" / f"{name}.bin", folder / "labels" / f"{name}.label"
            sweep, labels, instances = read_sweep(path), None, None
            if label_path.is_file():
                labels, instances = read_labels(label_path, len(sweep), self._label_table)
            T_world_ego, timestamp_us = track.T_world_lidar(name), track.time_us(name)
            views = [
                read_view(camera, image_file(folder / camera, name), K, T_cam_ego, T_world_ego, timestamp_us)
                for camera, (K, T_cam_ego) in calibration.cameras.items()
            ]
            return Sample(
                key=f"{log}_{name}",
                log=log,
                timestamp_us=timestamp_us,
                points_lidar=np.ascontiguousarray(sweep[:, :3]),
                intensity=scaled_intensity(sweep[:, 3], self._max_intensity, str(path)),
                T_ego_lidar=np.eye(4),
                T_world_ego=T_world_ego,
                cameras=tuple(views),
                labels=labels,
                instances=instances,
            )

        return read


def poses_file(folder: Path) -> Path | None:
    """Poses of a sequence: its own `poses.txt`, else KITTI odometry's `dataset/poses/NN.txt`; None where there is none.

    SemanticKITTI brings a file of its own (from SLAM) for every sequence, odometry one (from GPS) for 00 to 10.
    """
    candidates = (folder / "poses.txt", folder.parent.parent / "poses" / f"{folder.name}.txt")
    return next((path for path in candidates if path.is_file()), None)


@dataclass(frozen=True, kw_only=True)
class Track:
    """Where and when a sequence's frames are.

    Lines of `poses.txt` and `times.txt` belong to frames 0, 1, ...; where a sequence is numbered from another frame on
    and has as many lines as frames, to those in turn.

    Attributes:
        folder: of the sequence.
        names: of its frames.
        T_cam_lidar: of the camera in whose frame the poses are; None where there are no poses to bring into ours.
    """

    folder: Path
    names: tuple[str, ...]
    T_cam_lidar: Float[np.ndarray, "4 4"] | None

    @cached_property
    def _poses(self) -> FrameLines[Float[np.ndarray, " 12"]] | None:
        path = poses_file(self.folder)
        return None if path is None else read_frame_lines(path, functools.partial(numbers_of, columns=12))

    @cached_property
    def _times_s(self) -> FrameLines[float] | None:
        path = self.folder / "times.txt"
        return read_frame_lines(path, float) if path.is_file() else None

    def time_us(self, name: str) -> int:
        """Since the start of the sequence; by 10 Hz without `times.txt`.

        Raises:
            DamagedError: the frame's line of `times.txt` is damaged or absent.
        """
        if self._times_s is None:
            return int(name) * FRAME_PERIOD_US
        time_s = self._times_s[self._line("times", name, len(self._times_s))]
        if not abs(time_s) < _MAX_TIME_S:
            raise DamagedError("meta-broken", f"times.txt says {time_s} s for frame {name}")
        return round(time_s * 1e6)

    def T_world_lidar(self, name: str) -> Float[np.ndarray, "4 4"]:  # noqa: N802
        """Pose of a sweep; the world is the LiDAR frame at the origin of the poses, that of the first sweep.

        Raises:
            DamagedError: the frame's line of the poses is damaged or absent, or the calibration is damaged.
        """
        if self._poses is None or self.T_cam_lidar is None:
            return np.eye(4)
        pose = self._poses[self._line("poses", name, len(self._poses))].reshape(3, 4)
        T_cam0_cam = rigid(pose[:, :3], pose[:, 3])
        return np.asarray(inverse("Tr", self.T_cam_lidar) @ T_cam0_cam @ self.T_cam_lidar)

    def _line(self, what: str, name: str, num_lines: int) -> int:
        line = int(name) - (int(self.names[0]) if num_lines == len(self.names) else 0)
        if not 0 <= line < num_lines:
            detail = f"{self.folder}: {what} of {num_lines} frames, none for frame {name}"
            raise DamagedError("calibration-missing" if what == "poses" else "meta-broken", detail)
        return line
