"""A data set of your own: frames from a python program become shards, which any method then trains on.

    python examples/own_data.py runs/own/shards
    tandem inspect runs/own/shards --out look
    tandem pretrain configs/pretrain/slidr_street.yaml data.shards=runs/own/shards

The frames here are made up: a wall of coloured stripes that the vehicle drives towards. Replace `frames` with a reader
of your own logs. docs/custom_data.md explains every field, the coordinate frames, and how to read in parallel.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from data.preparing.samples import prepare_samples
from data.sample import CameraView, Sample

K = np.array([[200.0, 0.0, 159.5], [0.0, 200.0, 79.5], [0.0, 0.0, 1.0]])  # pixels; (0, 0) is the first pixel's centre
HEIGHT, WIDTH = 160, 320
T_CAM_EGO = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])  # ego x forward = camera z


def wall(distance_m: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [N, 3] in metres, their intensities [N] from 0 to 1, and the image [H, W, 3] of a striped wall."""
    y, z = rng.uniform(-8, 8, 4000), rng.uniform(-3, 3, 4000)
    stripes = np.arange(-8, 9, 2)
    colours = np.random.default_rng(0).integers(40, 255, (len(stripes) + 1, 3))  # the same wall in every frame
    y_of_column = -(np.arange(WIDTH) - K[0, 2]) / K[0, 0] * distance_m
    row = colours[np.searchsorted(stripes, y_of_column)].astype(np.uint8)
    points = np.stack([np.full_like(y, distance_m), y, z], axis=1)
    return points, colours[np.searchsorted(stripes, y)].mean(axis=1) / 255, np.tile(row, (HEIGHT, 1, 1))


def frames(log: str, count: int) -> Iterator[Sample]:
    """One drive at 10 m/s, ten frames a second."""
    rng = np.random.default_rng(0)
    for index in range(count):
        T_world_ego = np.eye(4)
        T_world_ego[0, 3] = float(index)  # metres driven
        time_us = 100_000 * index
        points, intensity, image = wall(30.0 - index, rng)
        camera = CameraView(
            name="front",
            image_size=(HEIGHT, WIDTH),
            K=K,
            T_cam_ego=T_CAM_EGO,
            T_world_ego=T_world_ego,
            timestamp_us=time_us,
            image=image,
        )
        yield Sample(
            key=f"{log}_{index:04d}",
            log=log,
            timestamp_us=time_us,
            points_lidar=points.astype(np.float32),
            intensity=intensity.astype(np.float32),
            T_ego_lidar=np.eye(4),  # the LiDAR sits at the vehicle's origin
            T_world_ego=T_world_ego,
            cameras=(camera,),
        )


if __name__ == "__main__":
    summary = prepare_samples(frames("drive-0001", 20), sys.argv[1])
    pairs = summary.manifest.num_pairs.mean()
    print(f"{len(summary.manifest)} samples, {pairs:.0f} of 4000 points of a sample fall on a pixel")
