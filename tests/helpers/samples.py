"""Tiny random samples and shard sets for everyone's tests: complete, consistent, and made in milliseconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from data.geometry import rigid, yaw_rotation
from data.sample import IGNORE_LABEL, Boxes, CameraView, Sample
from data.storage.manifest import SetInfo
from data.storage.shard_writer import join_manifest, write_shard

CLASS_NAMES = ("road", "building", "car", "pedestrian")
CAMERA_NAMES = ("front", "left")
SEGMENT_SIDE_PX = 16
# Camera axes (x right, y down, z forward) in the ego frame (x forward, y left, z up).
EGO_TO_CAM = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])


def make_camera(
    rng: np.random.Generator,
    name: str,
    *,
    yaw: float = 0.0,
    image_size: tuple[int, int] = (48, 96),
    T_world_ego: np.ndarray | None = None,
    timestamp_us: int = 0,
    superpixels: bool = True,
    depth: bool = True,
    image_labels: bool = False,
) -> CameraView:
    """A 90 degree wide camera looking along `yaw`, with smooth random colours and square superpixels.

    Classes of pixels, where asked for, are those of the colours' brightness, so that they can be learnt.
    """
    height, width = image_size
    blocks = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    image = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    rows, columns = np.arange(height) // SEGMENT_SIDE_PX, np.arange(width) // SEGMENT_SIDE_PX
    ids = rows[:, None] * (columns[-1] + 1) + columns[None, :]
    bright = (image.mean(axis=2) * len(CLASS_NAMES) / 256).astype(np.uint8)
    bright[0] = IGNORE_LABEL
    focal = width / 2
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    T_ego_cam_yaw = rigid(yaw_rotation(yaw), np.array([0.5, 0.0, 1.5]))
    T_cam_ego = rigid(EGO_TO_CAM, np.zeros(3)) @ np.linalg.inv(T_ego_cam_yaw)
    return CameraView(
        name=name,
        image_size=image_size,
        K=K,
        T_cam_ego=T_cam_ego,
        T_world_ego=np.eye(4) if T_world_ego is None else T_world_ego,
        timestamp_us=timestamp_us,
        image=image,
        superpixels=ids.astype(np.int32) if superpixels else None,
        depth_m=(rng.integers(100, 5000, image_size) / 100).astype(np.float32) if depth else None,
        labels=bright if image_labels else None,
    )


def make_sample(
    rng: np.random.Generator,
    *,
    key: str = "log-000_000000",
    log: str = "log-000",
    frame: int = 0,
    num_points: int = 400,
    image_size: tuple[int, int] = (48, 96),
    labels: bool = True,
    superpixels: bool = True,
    depth: bool = True,
    image_labels: bool = False,
) -> Sample:
    """Points all around the ego, two cameras, ego moving 1 m along x a frame, cameras 10 ms after the sweep."""
    azimuth = rng.uniform(-np.pi, np.pi, num_points)
    range_m = rng.uniform(3, 40, num_points)
    points = np.stack([range_m * np.cos(azimuth), range_m * np.sin(azimuth), rng.uniform(-1.5, 3, num_points)], axis=1)
    timestamp_us = 1_000_000 + 100_000 * frame
    cameras = tuple(
        make_camera(
            rng,
            name,
            yaw=number * np.pi / 2,
            image_size=image_size,
            T_world_ego=rigid(np.eye(3), np.array([frame + 0.1, 0.0, 0.0])),
            timestamp_us=timestamp_us + 10_000,
            superpixels=superpixels,
            depth=depth,
            image_labels=image_labels,
        )
        for number, name in enumerate(CAMERA_NAMES)
    )
    classes = rng.integers(0, len(CLASS_NAMES), num_points).astype(np.uint8)
    classes[:: max(num_points // 10, 1)] = IGNORE_LABEL
    return Sample(
        key=key,
        log=log,
        timestamp_us=timestamp_us,
        points_lidar=points.astype(np.float32),
        intensity=rng.uniform(0, 1, num_points).astype(np.float32),
        T_ego_lidar=rigid(np.eye(3), np.array([0.0, 0.0, 1.8])),
        T_world_ego=rigid(np.eye(3), np.array([float(frame), 0.0, 0.0])),
        cameras=cameras,
        labels=classes if labels else None,
        instances=np.where(classes == 2, 7, 0).astype(np.int32) if labels else None,
        boxes=make_boxes(rng, 2) if labels else None,
    )


def make_boxes(rng: np.random.Generator, count: int) -> Boxes:
    """Cars at random places."""
    return Boxes(
        centers_m=rng.uniform(-20, 20, (count, 3)),
        sizes_m=np.tile([4.0, 1.8, 1.6], (count, 1)),
        yaws=rng.uniform(-np.pi, np.pi, count),
        velocities_mps=np.full((count, 2), np.nan),
        classes=np.full(count, 2, np.int32),
        track_ids=np.arange(count, dtype=np.int32),
    )


def full_sample(rng: np.random.Generator | None = None, num_boxes: int = 2) -> Sample:
    """A sample of 400 points that has all that a set can have; of the second box it is unknown."""
    rng = np.random.default_rng(0) if rng is None else rng
    sample = make_sample(rng)
    unknown = np.arange(num_boxes) == 1
    numbers: dict[str, Any] = {
        **{name: np.where(unknown, -1, 3) for name in ("num_points", "difficulties", "attributes", "categories")},
        **{name: np.where(unknown, -1, 2) for name in ("num_radar_points", "occlusions")},
    }
    boxes = dataclasses.replace(
        make_boxes(rng, num_boxes),
        **numbers,
        truncations=np.where(unknown, np.nan, 0.3),
        image_boxes_px=np.where(unknown[:, None], np.nan, [1.25, 2.1, 30.7, 27.1]),
        alphas=np.where(unknown, np.nan, -1.57),
        camera=CAMERA_NAMES[1],
    )
    first = dataclasses.replace(sample.cameras[0], ignored_px=np.array([[0.5, 1, 20, 30], [5, 5, 5, 9]]))
    return dataclasses.replace(
        sample,
        boxes=boxes,
        cameras=(first, *sample.cameras[1:]),
        token="8f3e",
        times_s=np.linspace(0, 0.45, 400, dtype=np.float32),
        elongations=np.linspace(0, 1.5, 400, dtype=np.float32),
        colors=rng.integers(0, 256, (400, 3)).astype(np.uint8),
    )


def toy_log(number: int, frames: int, **options: bool | int) -> list[Sample]:
    """Frames of one log, a function of the log's number alone."""
    rng = np.random.default_rng(number)
    log = f"log-{number:03d}"
    return [
        make_sample(rng, key=f"{log}_{frame:06d}", log=log, frame=frame, **options)  # type: ignore[arg-type]
        for frame in range(frames)
    ]


def write_toy_set(
    path: Path | str, num_logs: int = 3, frames_per_log: int = 4, *, bare_frames: int = 0, **options: bool | int
) -> str:
    """A finished shard set, one shard a log; the last log is the split "val", the others are "train".

    The last `bare_frames` of each log have no classes. Options go to `make_sample`, e.g. `labels=False`.
    """
    root = Path(path)
    root.mkdir(parents=True, exist_ok=True)
    tables = [
        write_shard(root / f"shard-{number:06d}.tar", [*kept, *(dataclasses.replace(s, labels=None) for s in bare)])
        for number in range(num_logs)
        for log in [toy_log(number, frames_per_log, **options)]
        for kept, bare in [(log[: frames_per_log - bare_frames], log[frames_per_log - bare_frames :])]
    ]
    labelled = bool(options.get("labels", True))
    info = SetInfo(
        set_name="toy",
        camera_names=CAMERA_NAMES,
        class_names=CLASS_NAMES if labelled else (),
        logs=tuple(f"log-{number:03d}" for number in range(num_logs)),
        splits=("train",) * (num_logs - 1) + ("val",),
    )
    join_manifest(str(root), info, tables)
    return str(root)
