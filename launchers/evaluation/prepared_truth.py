"""A prepared set as ground truth of files of results: its objects where, and under the names that, those files have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data.loading.detection_frames import frame_truth
from data.storage.manifest import load_manifest
from data.storage.reader import SampleError, SampleReader
from data.storage.store import MANIFEST_NAME
from data.views.truth import FrameTruth
from engine.detection.formats import kitti as kitti_files
from engine.detection.formats.once import once_boxes
from engine.detection.frames import TrueObjects
from engine.scores import JudgeError
from launchers.evaluation.detections import moved, true_objects
from launchers.evaluation.submission import KEYS, kitti_camera


def is_prepared(folder: Path) -> bool:
    """Whether a folder is a set that `tandem prepare` made."""
    return (folder / MANIFEST_NAME).is_file()


def read_truth(folder: Path, benchmark: str, keys: Sequence[str] | None, split: str | None) -> list[TrueObjects]:
    """Labelled objects of a set's frames, as they would be read from the benchmark's own files.

    Args:
        folder: of the set.
        benchmark: whose files of results are judged.
        keys: frames that are wanted, by the benchmark's names; None: all of the split that somebody has labelled.
        split: of the set; None: all of it.

    Raises:
        JudgeError: no such split or frame, or a frame is damaged or has no name in the benchmark.
        ShardError: the set cannot be read.
    """
    manifest = load_manifest(str(folder))
    if split is not None and not {*split.split("+")} <= {*manifest.splits}:
        raise JudgeError(
            f"--split: got {split!r}, expected one of {', '.join(sorted({*manifest.splits}))}, or several joined by +, "
            f"of {folder}"
        )
    indices = np.arange(len(manifest)) if split is None else manifest.indices(split)
    reader, frames = SampleReader(manifest), dict[str, TrueObjects]()
    for index in indices.tolist():
        try:
            frame = frame_truth(reader, index)
        except SampleError as error:
            raise JudgeError(f"{folder}: {error}; prepare the set again, or name the others in --frames") from error
        key = KEYS[benchmark](frame)
        if key is None or (keys is not None and key not in keys):
            continue
        true = true_objects(frame, manifest, benchmark)
        if true is not None:
            frames[key] = dataclasses.replace(_PLACES[benchmark](true, frame), key=key)
    missing = [] if keys is None else [key for key in keys if key not in frames]
    if missing or not frames:
        what = f"frame {missing[0]} is not" if missing else "no frame with labels is"
        raise JudgeError(f"{what} in {folder}{'' if split is None else f', split {split}'}")
    return list(frames.values()) if keys is None else [frames[key] for key in keys]


def _at_the_camera(true: TrueObjects, frame: FrameTruth) -> TrueObjects:
    rows = kitti_files.camera_boxes(true.boxes, kitti_camera(frame).T_rect0_lidar)
    return dataclasses.replace(true, boxes=kitti_files.upright_boxes(rows), origin_m=np.zeros(3))


def _at_the_vehicle(true: TrueObjects, frame: FrameTruth) -> TrueObjects:
    boxes = moved(true.boxes, frame.T_ego_lidar.astype(np.float64))
    return dataclasses.replace(true, boxes=boxes, origin_m=np.zeros(3))


def _in_onces_frame(true: TrueObjects, frame: FrameTruth) -> TrueObjects:
    return dataclasses.replace(true, boxes=once_boxes(true.boxes), origin_m=np.zeros(3))


_PLACES: Mapping[str, Callable[[TrueObjects, FrameTruth], TrueObjects]] = {
    "kitti": _at_the_camera,
    "nuscenes": lambda true, frame: true,
    "waymo": _at_the_vehicle,
    "once": _in_onces_frame,
    "argoverse2": _at_the_vehicle,
}
"""Benchmark -> the objects in the frame of reference of its files."""
