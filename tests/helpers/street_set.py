"""A tiny set of the street world with superpixels: ground, objects and views that fit each other, made in seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from data.preparing.superpixels import SuperpixelConfig, segment
from data.sample import Sample
from data.storage.manifest import SetInfo
from data.storage.shard_writer import join_manifest, write_shard
from data.street.classes import CLASS_NAMES
from data.street.config import StreetCameraConfig, StreetConfig, StreetLidarConfig
from data.street.log import generate_log

STREET_WORLD = StreetConfig(
    num_logs=4,
    frames_per_log=3,
    frame_rate_hz=20.0,
    val_share=0.25,
    view_range_m=60.0,
    lidar=StreetLidarConfig(beams=16, azimuths=144),
    cameras=StreetCameraConfig(image_size=(64, 128)),
)
"""Nine training samples of some 2,000 points, a twentieth of a second apart within a log, each with three images."""

SUPERPIXELS = SuperpixelConfig(num_segments=40)


def write_street_set(path: Path | str, world: StreetConfig = STREET_WORLD) -> str:
    """A finished shard set, one shard a log."""
    root = Path(path)
    root.mkdir(parents=True, exist_ok=True)
    tables = [
        write_shard(root / f"shard-{number:06d}.tar", list(_log(world, number))) for number in range(world.num_logs)
    ]
    info = SetInfo(
        set_name="synthetic",
        camera_names=world.cameras.names,
        class_names=CLASS_NAMES,
        box_categories=CLASS_NAMES,
        logs=tuple(world.log_name(number) for number in range(world.num_logs)),
        splits=tuple(world.split_of_index(number) for number in range(world.num_logs)),
        superpixels=SUPERPIXELS.record(),
    )
    join_manifest(str(root), info, tables)
    return str(root)


def _log(world: StreetConfig, number: int) -> Iterator[Sample]:
    for sample in generate_log(world, number):
        cameras = []
        for camera in sample.cameras:
            assert camera.image is not None
            cameras.append(dataclasses.replace(camera, superpixels=segment(camera.image, SUPERPIXELS)))
        yield dataclasses.replace(sample, cameras=tuple(cameras))
