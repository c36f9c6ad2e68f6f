"""The tables of nuScenes joined into two arrays on disk: frames with their poses, and annotations with velocities.

Made once, in the process that plans the work: v1.0-trainval takes about a minute (see docs/datasets/nuscenes.md). The
arrays lie in a temporary folder that goes with the object; copies of it in worker processes map the same files, so that
a worker holds the pages that it looks at and nothing more.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.spatial.transform import Rotation

from data.convert.nuscenes.names import ATTRIBUTES, BOX_CATEGORIES, CLASS_OF
from data.convert.nuscenes.tables import read_columns, read_table
from data.convert.raw_files import layout_error
from data.geometry import rigid
from data.sample import IGNORE_LABEL
from data.storage.shard import ShardError

LIDAR = "LIDAR_TOP"
_TOKEN = 32  # characters of a token
_FILE = 112  # and of a file name
_MAX_GAP_S = 1.5
"""Neighbouring annotations farther apart give no velocity; twice that from the one before to the one after."""

FRAME = np.dtype(
    [
        ("time_us", "<i8"),
        ("sample", "<i4"),
        ("sensor", "<i4"),
        ("size", "<i4", (2,)),
        ("key", "?"),
        ("rotation", "<f8", (4,)),
        ("translation", "<f8", (3,)),
        ("token", f"S{_TOKEN}"),
        ("file", f"S{_FILE}"),
    ]
)
"""A row of sample_data with its ego pose (NaN: the table lacks it). `sensor`: row of calibrated_sensor in use."""

ANNOTATION = np.dtype(
    [
        ("sample", "<i4"),
        ("instance", "<i4"),
        ("num_points", "<i4"),
        ("num_radar_points", "<i4"),
        ("class", "u1"),
        ("category", "i1"),
        ("attribute", "i1"),
        ("center", "<f8", (3,)),
        ("size", "<f8", (3,)),
        ("rotation", "<f8", (4,)),
        ("velocity", "<f8", (3,)),
    ]
)
"""A row of sample_annotation, in the world; `size` is width, length, height; rotations are quaternions w x y z."""


class NuscenesIndex:
    """Frames by scene and channel in order of time, and annotations by sample.

    Attributes:
        channels: LIDAR_TOP and the cameras.
        T_ego_sensor: extrinsics of each calibrated sensor.
        K: its intrinsics, NaN for the LiDAR.
        num_without_sweep: key frames of which sample_data has no sweep.
        sample_tokens: of each key frame (`sample` of its frames), ASCII.
    """

    def __init__(
        self, folder: Path, channels: tuple[str, ...], scenes: Sequence[str], *, whole: Collection[str]
    ) -> None:
        """Read the tables in `folder` (e.g. v1.0-mini); `scenes` are tokens, in the order in which they are asked for.

        Frames that are no key frames are left out, but of the channels in `whole`.

        Raises:
            ShardError: a table is missing, damaged, or refers to what another one lacks.
        """
        self.channels = channels
        self._path = tempfile.mkdtemp(prefix="tandem-nuscenes-")
        self._disk = weakref.finalize(self, shutil.rmtree, self._path, ignore_errors=True)
        try:
            sensors = _Sensors(folder, channels)
            self.T_ego_sensor, self.K = sensors.T_ego_sensor, sensors.K
            samples = _Samples(folder, scenes)
            self.sample_tokens = _text(list(samples.number), _TOKEN)
            self._build_frames(_read_frames(folder, sensors, samples, whole), sensors, samples, len(scenes))
            self._build_annotations(_read_annotations(folder, samples), len(samples.times_us))
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise ShardError(f"the tables in {folder} do not fit together: {error!r}") from error
        self._map()

    def __getstate__(self) -> dict[str, Any]:
        """A copy maps the files of the first one, which must outlive it."""
        of_this_process = ("_disk", "_frames", "_annotations")
        return {name: value for name, value in self.__dict__.items() if name not in of_this_process}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def frames(self, scene: int, channel: int) -> Shaped[np.ndarray, " n"]:
        """Rows of `FRAME`, in order of time, by the numbers of the scene and of the channel in their lists."""
        group = scene * len(self.channels) + channel
        return np.asarray(self._frames[self._frame_starts[group] : self._frame_starts[group + 1]])

    def annotations(self, sample: int) -> Shaped[np.ndarray, " n"]:
        """Rows of `ANNOTATION` of one key frame (`sample` of its frames)."""
        return np.asarray(self._annotations[self._annotation_starts[sample] : self._annotation_starts[sample + 1]])

    @property
    def num_annotations(self) -> int:
        """Of all scenes."""
        return len(self._annotations)

    def _map(self) -> None:
        self._frames = np.load(os.path.join(self._path, "frames.npy"), mmap_mode="r")
        self._annotations = np.load(os.path.join(self._path, "annotations.npy"), mmap_mode="r")

    def _build_frames(
        self, frames: Shaped[np.ndarray, " n"], sensors: _Sensors, samples: _Samples, num_scenes: int
    ) -> None:
        channel = sensors.channel[frames["sensor"]]
        groups = samples.scenes[frames["sample"]].astype(np.int64) * len(self.channels) + channel
        self.num_without_sweep = len(samples.times_us) - int((frames["key"] & (channel == 0)).sum())
        order = np.lexsort((frames["time_us"], groups))
        self._frame_starts = np.searchsorted(groups[order], np.arange(num_scenes * len(self.channels) + 1))
        np.save(os.path.join(self._path, "frames.npy"), frames[order])

    def _build_annotations(self, annotations: Shaped[np.ndarray, " n"], num_samples: int) -> None:
        order = np.argsort(annotations["sample"], kind="stable")
        self._annotation_starts = np.searchsorted(annotations["sample"][order], np.arange(num_samples + 1))
        np.save(os.path.join(self._path, "annotations.npy"), annotations[order])


def rotations(quaternions: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 3 3"]:
    """Rotation matrices of quaternions w x y z of any length but 0."""
    return np.asarray(Rotation.from_quat(np.roll(quaternions, -1, axis=1)).as_matrix()).reshape(-1, 3, 3)


def _text(values: Sequence[str], width: int) -> Shaped[np.ndarray, " n"]:
    """ASCII text of at most `width` characters."""
    texts = np.array(values, dtype="S")
    if texts.dtype.itemsize > width:
        raise ValueError(f"{max(values, key=len)!r} is longer than {width} characters")
    return texts.astype(f"S{width}")


class _Sensors:
    """calibrated_sensor: those of the channels in use."""

    def __init__(self, folder: Path, channels: tuple[str, ...]) -> None:
        names = dict(read_table(folder, "sensor", "token", "channel"))
        missing = [name for name in channels if name not in names.values()]
        if missing:
            named = ", ".join(sorted(names.values())) or "nothing"
            expected = f"{', '.join(missing)} in sensor.json (which names {named})"
            raise layout_error(folder.parent, "nuScenes", expected, folder)
        columns = ("token", "sensor_token", "rotation", "translation", "camera_intrinsic")
        rows = [row for row in read_table(folder, "calibrated_sensor", *columns) if names[row[1]] in channels]
        self.number = {row[0]: number for number, row in enumerate(rows)}
        self.names = [names[row[1]] for row in rows]
        self.channel = np.array([channels.index(name) for name in self.names], dtype=np.int64)
        turns = rotations(np.array([row[2] for row in rows], dtype=np.float64).reshape(-1, 4))
        shifts = np.array([row[3] for row in rows], dtype=np.float64).reshape(-1, 3)
        self.T_ego_sensor = np.array([rigid(turn, shift) for turn, shift in zip(turns, shifts, strict=True)])
        self.K = np.array([row[4] or np.full((3, 3), np.nan) for row in rows], dtype=np.float64).reshape(-1, 3, 3)


class _Samples:
    """sample: scene and time of each key frame."""

    def __init__(self, folder: Path, scenes: Sequence[str]) -> None:
        numbers = {token: number for number, token in enumerate(scenes)}
        rows = read_table(folder, "sample", "token", "timestamp", "scene_token")
        self.number = {row[0]: number for number, row in enumerate(rows)}
        self.times_us = np.array([row[1] for row in rows], dtype=np.int64)
        self.scenes = np.array([numbers[row[2]] for row in rows], dtype=np.int32)


def _read_frames(
    folder: Path, sensors: _Sensors, samples: _Samples, whole: Collection[str]
) -> Shaped[np.ndarray, " n"]:
    columns = ("calibrated_sensor_token", "is_key_frame", "sample_token", "timestamp", "height", "width")
    every = {token for token, number in sensors.number.items() if sensors.names[number] in whole}
    blocks, poses = [np.zeros(0, FRAME)], [np.zeros(0, f"S{_TOKEN}")]
    for block in read_columns(folder, "sample_data", *columns, "token", "filename", "ego_pose_token"):
        keys = zip(block[0], block[1], strict=True)
        use = [row for row, (sensor, key) in enumerate(keys) if sensor in (sensors.number if key else every)]
        used = ([column[row] for row in use] for column in block)
        sensor, key, sample, time_us, height, width, token, file, pose = used
        rows = np.zeros(len(use), FRAME)
        rows["sensor"] = [sensors.number[name] for name in sensor]
        rows["key"] = key
        rows["sample"] = [samples.number[name] for name in sample]
        rows["time_us"] = time_us
        rows["size"] = np.array([height, width], dtype=np.int32).T
        rows["token"] = _text(token, _TOKEN)
        rows["file"] = _text(file, _FILE)
        blocks.append(rows)
        poses.append(_text(pose, _TOKEN))
    frames = np.concatenate(blocks)
    del blocks  # at full size each copy of all sweeps is a third of a gigabyte
    frames["rotation"], frames["translation"] = _read_poses(folder, np.concatenate(poses))
    return frames


def _read_poses(
    folder: Path, tokens: Shaped[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "n 4"], Float[np.ndarray, "n 3"]]:
    """Quaternion and translation of each pose, NaN where the table has none."""
    unique, places = np.unique(tokens, return_inverse=True)
    turns, shifts = np.full((len(unique), 4), np.nan), np.full((len(unique), 3), np.nan)
    for names, rotation, translation in read_columns(folder, "ego_pose", "token", "rotation", "translation"):
        at = _find(unique, np.array(names, dtype="S"))
        use = np.flatnonzero(at >= 0)
        turns[at[use]] = np.array([rotation[row] for row in use], dtype=np.float64).reshape(-1, 4)
        shifts[at[use]] = np.array([translation[row] for row in use], dtype=np.float64).reshape(-1, 3)
    return turns[places], shifts[places]


def _find(ordered: Shaped[np.ndarray, " m"], values: Shaped[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Where each value stands in `ordered`, -1 for nowhere."""
    if len(ordered) == 0:
        return np.full(len(values), -1)
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.where(ordered[at] == values, at, -1)


def _read_annotations(folder: Path, samples: _Samples) -> Shaped[np.ndarray, " n"]:
    categories, named = (read_table(folder, table, "token", "name") for table in ("category", "attribute"))
    kinds = {
        token: (CLASS_OF.get(name, IGNORE_LABEL), BOX_CATEGORIES.index(name) if name in BOX_CATEGORIES else -1)
        for token, name in categories
    }
    attributes = {token: ATTRIBUTES.index(name) for token, name in named if name in ATTRIBUTES}
    objects = {
        token: (number, *kinds[category])
        for number, (token, category) in enumerate(read_table(folder, "instance", "token", "category_token"))
    }
    columns = ("sample_token", "instance_token", "num_lidar_pts", "num_radar_pts", "attribute_tokens")
    places = ("translation", "size", "rotation")
    blocks, links = [np.zeros(0, ANNOTATION)], [np.zeros((0, 3), f"S{_TOKEN}")]
    for block in read_columns(folder, "sample_annotation", *columns, *places, "token", "prev", "next"):
        sample, instance, num_points, num_radar_points, attribute, center, size, rotation, *chain = block
        rows = np.zeros(len(sample), ANNOTATION)
        rows["sample"] = [samples.number[name] for name in sample]
        known = np.array([objects[name] for name in instance]).reshape(-1, 3)
        rows["instance"], rows["class"], rows["category"] = known.T
        rows["num_points"], rows["num_radar_points"] = num_points, num_radar_points
        rows["attribute"] = [next((attributes[n] for n in names if n in attributes), -1) for names in attribute]
        rows["center"], rows["size"], rows["rotation"] = center, size, rotation
        blocks.append(rows)
        links.append(np.stack([_text(names, _TOKEN) for names in chain], axis=1))
    annotations = np.concatenate(blocks)
    del blocks  # as above
    annotations["velocity"] = _velocities(annotations, np.concatenate(links), samples.times_us)
    return annotations


def _velocities(
    annotations: Shaped[np.ndarray, " n"], links: Shaped[np.ndarray, "n 3"], times_us: Int[np.ndarray, " samples"]
) -> Float[np.ndarray, "n 3"]:
    """From the annotation before to the one after, or to or from the object's own where it has one neighbour only.

    `links` are the tokens of each annotation, of the one before and of the one after ("" for none).

    Source: NuScenes.box_velocity of the development kit.
    """
    order = np.argsort(links[:, 0])
    before, after = (_find(links[order, 0], links[:, column]) for column in (1, 2))
    rows = np.arange(len(annotations))
    first, last = (np.where(at >= 0, order[at], rows) if len(rows) else rows for at in (before, after))
    both = (before >= 0) & (after >= 0)
    times = times_us[annotations["sample"]]
    seconds = (times[last] - times[first]) * 1e-6
    known = (first != last) & (seconds > 0) & (seconds <= np.where(both, 2 * _MAX_GAP_S, _MAX_GAP_S))
    moved = annotations["center"][last] - annotations["center"][first]
    return np.where(known[:, None], moved / np.where(known, seconds, 1.0)[:, None], np.nan)
