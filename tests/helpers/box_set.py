"""A set whose frames hold boxes with points in them; a point's intensity names its frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.geometry import transform
from data.sample import Boxes, Sample
from data.storage.manifest import SetInfo
from data.storage.shard_writer import join_manifest, write_shard
from tests.helpers.samples import CAMERA_NAMES, CLASS_NAMES, make_sample

CAR, PEDESTRIAN = CLASS_NAMES.index("car"), CLASS_NAMES.index("pedestrian")
SIZES = {CAR: (4.0, 2.0, 1.6), PEDESTRIAN: (0.6, 0.6, 1.8)}
POINTS_EACH = {CAR: 20, PEDESTRIAN: 8}


def frame_of(intensity: np.ndarray) -> np.ndarray:
    """Number of the frame that points of such an intensity were recorded in."""
    return np.rint(intensity * 100).astype(int)


def box_frame(number: int, classes: Sequence[int] | None = None, *, background: int = 150) -> Sample:
    """Objects of the given classes (drawn: one to three cars, up to two pedestrians), apart from each other, on z = -1.

    Points of the background lie on the ground at z = -1.2, or above all objects.
    """
    rng = np.random.default_rng(number)
    if classes is None:
        classes = [CAR] * int(rng.integers(1, 4)) + [PEDESTRIAN] * int(rng.integers(0, 3))
    # In the cells of a coarse grid: objects of one frame never touch, those of two frames often do.
    cells = rng.permutation(25)[: len(classes)]
    centers = np.stack((cells // 5 * 8.0 - 16, cells % 5 * 8.0 - 16, np.zeros(len(cells))), axis=1)
    centers += rng.uniform(-1.5, 1.5, centers.shape) * (1, 1, 0)
    sizes = np.array([SIZES[kind] for kind in classes]).reshape(-1, 3)
    centers[:, 2] = -1 + sizes[:, 2] / 2
    yaws = rng.uniform(-np.pi, np.pi, len(classes))
    parts = []
    for kind, center, size, yaw in zip(classes, centers, sizes, yaws, strict=True):
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
        turn[:3, 3] = center
        parts.append(transform(turn, rng.uniform(-0.45, 0.45, (POINTS_EACH[kind], 3)) * size))
    sample = make_sample(rng, key=f"log-000_{number:06d}", frame=number, num_points=background, depth=False)
    scene = sample.points_lidar.copy()
    scene[:, 2] = np.where(np.arange(background) % 2, -1.2, 3.0)
    points = np.concatenate((scene, *parts)).astype(np.float32)
    return dataclasses.replace(
        sample,
        points_lidar=points,
        intensity=np.full(len(points), number / 100, dtype=np.float32),
        labels=None,
        instances=None,
        boxes=Boxes(
            centers_m=centers,
            sizes_m=sizes,
            yaws=yaws,
            velocities_mps=np.stack((np.cos(yaws), np.sin(yaws)), axis=1) * 3,
            classes=np.array(classes, dtype=np.int32),
            track_ids=np.arange(len(classes)),
        ),
    )


def write_frames(path: Path, frames: Sequence[Sample]) -> str:
    """A finished set of one log, its split "train"."""
    path.mkdir(parents=True, exist_ok=True)
    tables = [
        write_shard(path / f"shard-{number:06d}.tar", list(frames[start : start + 4]))
        for number, start in enumerate(range(0, len(frames), 4))
    ]
    info = SetInfo(
        set_name="boxes", camera_names=CAMERA_NAMES, class_names=CLASS_NAMES, logs=("log-000",), splits=("train",)
    )
    join_manifest(str(path), info, tables)
    return str(path)
