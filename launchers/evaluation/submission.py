"""What a detector found, in the files that benchmarks take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from configs.load import ArgumentError
from data.geometry import rigid
from data.storage.manifest import Manifest
from data.views.truth import FrameTruth
from engine.detection.formats import argoverse2 as argoverse2_files
from engine.detection.formats import kitti as kitti_files
from engine.detection.formats import waymo as waymo_files
from engine.detection.frames import FoundObjects
from launchers.evaluation.detections import JudgedFrame, benchmark_classes, found_objects, moved, select

_CAM2_FROM_CAM0_M = (0.059849, -0.000358, 0.002746)
"""What P2 adds to a place in the rectified frame of camera 0: those of other recording days differ by some 2 mm. Sets
hold the left colour camera's place only. Source: KITTI, calibration of 2011-09-26."""


def write_submission(
    folder: Path, benchmark: str, frames: Sequence[JudgedFrame], manifest: Manifest, classes: Sequence[str]
) -> Path:
    """Write found objects as a benchmark takes them.

    Args:
        folder: made if it is not there.
        benchmark: one of `FORMATS`.
        frames: of a split.
        manifest: of its set.
        classes: names of the detector's classes in the set.

    Returns:
        The file or folder to hand in.

    Raises:
        ArgumentError: the benchmark has no such files here; or a frame lacks what they need.
    """
    if benchmark not in FORMATS:
        raise ArgumentError(f"--submission: no files of {benchmark} can be written here, only of {', '.join(FORMATS)}")
    names = benchmark_classes(classes, manifest, benchmark)
    found = [found_objects(frame.found, frame.truth, names, benchmark) for frame in frames]
    return FORMATS[benchmark](folder, found, [frame.truth for frame in frames])


def _kitti(folder: Path, found: Sequence[FoundObjects], truths: Sequence[FrameTruth]) -> Path:
    """Objects of classes that KITTI has no type for are left out."""
    names = {name.lower(): name for name in kitti_files.TYPES}
    known = [select(frame, np.array([name.lower() in names for name in frame.classes], np.bool_)) for frame in found]
    spelt = {name: names[name.lower()] for frame in known for name in frame.classes}
    kitti_files.write_found(folder / "data", known, [_kitti_camera(truth) for truth in truths], names=spelt)
    return folder / "data"


def _kitti_camera(frame: FrameTruth) -> kitti_files.KittiCamera:
    if not frame.cameras:
        raise ArgumentError(f"--submission: frame {frame.key} has no camera; KITTI's files hold boxes in the image")
    camera = frame.cameras[0]
    T_cam_lidar: Float64[np.ndarray, "4 4"] = frame.T_cam_lidar(camera).astype(np.float64)
    return kitti_files.KittiCamera(
        K=camera.K.astype(np.float64),
        T_cam_lidar=T_cam_lidar,
        T_rect0_lidar=rigid(np.eye(3), -np.array(_CAM2_FROM_CAM0_M)) @ T_cam_lidar,
        image_size=camera.image_size,
    )


def _waymo(folder: Path, found: Sequence[FoundObjects], truths: Sequence[FrameTruth]) -> Path:
    keys = [waymo_files.frame_key(truth.log, truth.timestamp_us) for truth in truths]
    folder.mkdir(parents=True, exist_ok=True)
    waymo_files.write_found(folder / "objects.bin", _at_the_vehicle(found, truths, keys))
    return folder / "objects.bin"


def _argoverse2(folder: Path, found: Sequence[FoundObjects], truths: Sequence[FrameTruth]) -> Path:
    # The key of a frame ends in its nanoseconds, which the set's microseconds have lost.
    keys = [argoverse2_files.frame_key(truth.log, int(truth.key.rpartition("_")[2])) for truth in truths]
    argoverse2_files.write_found(folder / "detections.feather", _at_the_vehicle(found, truths, keys))
    return folder / "detections.feather"


def _at_the_vehicle(
    found: Sequence[FoundObjects], truths: Sequence[FrameTruth], keys: Sequence[str]
) -> list[FoundObjects]:
    """Objects with the benchmark's keys and boxes in the vehicle's frame."""
    return [
        dataclasses.replace(frame, key=key, boxes=moved(frame.boxes, truth.T_ego_lidar.astype(np.float64)))
        for frame, truth, key in zip(found, truths, keys, strict=True)
    ]


FORMATS: Mapping[str, Callable[[Path, Sequence[FoundObjects], Sequence[FrameTruth]], Path]] = {
    "kitti": _kitti,
    "waymo": _waymo,
    "argoverse2": _argoverse2,
}
"""Benchmark -> writer of its files: (folder, found objects, their frames)."""
