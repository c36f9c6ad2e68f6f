"""What nuScenes' tables say of the objects of key frames, in the terms of its metric: in the world, as annotated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from data.convert.nuscenes.index import LIDAR, NuscenesIndex, rotations
from data.convert.nuscenes.names import ATTRIBUTES, BOX_CATEGORIES, MINI, OFFICIAL
from data.convert.nuscenes.tables import read_table
from engine.detection.frames import TrueObjects
from engine.scores import JudgeError

SPLITS = {**OFFICIAL, **MINI}
"""Name of a split -> its scenes."""


def read_truth(folder: Path, keys: Sequence[str] | None, split: str | None) -> list[TrueObjects]:
    """Objects of key frames; the key of a frame is its sample's token.

    Args:
        folder: of the tables, such as v1.0-trainval; no sensor file is read.
        keys: samples that are wanted; None: all of the split.
        split: scenes that are wanted; None: all of the tables.

    Raises:
        JudgeError: there is no such sample or split.
        ShardError: a table is missing or damaged.
    """
    if split is not None and split not in SPLITS:
        raise JudgeError(f"no split {split!r} of nuScenes; expected one of {', '.join(SPLITS)}")
    scenes = read_table(folder, "scene", "name", "token")
    index = NuscenesIndex(folder, (LIDAR,), [token for _, token in scenes], whole=())
    frames = {
        bytes(index.sample_tokens[row["sample"]]).decode("ascii"): row
        for number, (name, _) in enumerate(scenes)
        if split is None or name in SPLITS[split]
        for row in index.frames(number, 0)
    }
    wanted = list(frames) if keys is None else list(keys)
    missing = [key for key in wanted if key not in frames]
    if missing or not wanted:
        which = f"sample {missing[0]} is not" if missing else f"no scene of split {split} is"
        raise JudgeError(f"{which} in {folder}: judge with the tables of the split that was predicted")
    return [_objects(key, frames[key], index.annotations(int(frames[key]["sample"]))) for key in wanted]


def _objects(key: str, frame: np.void, rows: Shaped[np.ndarray, " n"]) -> TrueObjects:
    headings = rotations(rows["rotation"])[:, :, 0]
    yaws = np.arctan2(headings[:, 1], headings[:, 0])
    return TrueObjects(
        key=key,
        boxes=np.column_stack([rows["center"], rows["size"][:, [1, 0, 2]], yaws]),  # stored as width, length, height
        categories=tuple(BOX_CATEGORIES[number] if number >= 0 else "" for number in rows["category"].tolist()),
        origin_m=np.array(frame["translation"], dtype=np.float64),
        velocities_mps=rows["velocity"][:, :2].copy(),
        attributes=tuple(ATTRIBUTES[number] if number >= 0 else "" for number in rows["attribute"].tolist()),
        num_lidar_points=rows["num_points"].astype(np.int64),
        num_radar_points=rows["num_radar_points"].astype(np.int64),
    )
