"""Overrides that bring any pre-training config down to toy size, found from the config itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.fidelity import missing_values
from launchers.training.train import load_run
from models.image.resnet_encoder import ResNetEncoderConfig
from models.lidar.base import BackboneConfig
from models.lidar.voxelnet import VoxelNetConfig

# Grids with limits, in the cells of 0.5 m that toy runs have.
_BOUNDED = {
    "method.backbone.grid_min": [-128, -128, -8],
    "method.backbone.grid_max": [128, 128, 16],
    "data.voxel.range_min": [-64, -64, -4],
    "data.voxel.range_max": [64, 64, 8],
}
_SMALL_TEACHER = "resnet18"
_SMALL_QUEUE = 64
_SMALL_CLUSTER = 3


def toy_overrides(path: Path) -> tuple[str, ...]:
    """Overrides (without shards, which come from outside) that make a run of the file small on any shards.

    Networks are their families' toys, large teachers become ResNet-18, queues get short, clusters sparse, sweeps
    match from afar, nothing is thinned, limited grids get the toy cells' limits; a first stage is treated likewise and
    takes two updates.
    """
    config = load_run(str(path), missing_values(path))
    found: dict[str, Any] = dict(_shrunk(config.method, "method"))
    if isinstance(config.method.tower("backbone"), VoxelNetConfig):
        found |= _BOUNDED
    if config.data.augment.points.keep_share != (1.0, 1.0):
        found["data.augment.points.keep_share"] = [1.0, 1.0]
    if "rgb" in config.data.voxel.features:  # the toy sets have no colours
        found["data.voxel.features"] = "xyz_intensity"
        found |= {f"method.{name}.in_channels": 4 for name in config.method.point_networks()}
    if config.data.expected_superpixels is not None:
        found["data.expected_superpixels"] = None  # the toy sets have their own
    if config.first is not None:
        first = Path(config.first.config)
        given = dict(override.split("=", 1) for override in config.first.overrides)
        quiet = {"monitor.log_every": "1", "monitor.picture_every": "0", "monitor.tensorboard": "false"}
        quiet |= {"schedule.steps": "2", "schedule.warmup_steps": "0", "engine.precision": "fp32"}
        quiet |= {"data.image_size": "[48,96]", "data.micro_batch_size": "2", "data.num_workers": "0"}
        quiet |= {"monitor.progress": "false"}
        small = dict(override.split("=", 1) for override in toy_overrides(first))
        both = given | quiet | small
        found["first.overrides"] = [f"{name}={value}" for name, value in both.items()]
    asked = (override for override in missing_values(path) if not override.startswith("data.shards"))
    return (*asked, *(f"{name}={json.dumps(value)}" for name, value in found.items()))


def _shrunk(section: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not dataclasses.is_dataclass(section):
        return
    toy = section.toy() if isinstance(section, BackboneConfig) else section
    for field in dataclasses.fields(section):
        value, small = getattr(section, field.name), getattr(toy, field.name)
        if small != value:
            yield f"{name}.{field.name}", small
        elif field.name == "preset" and isinstance(section, ResNetEncoderConfig):
            yield f"{name}.preset", "resnet10_tiny"
        elif field.name == "min_points":
            yield f"{name}.{field.name}", _SMALL_CLUSTER
        elif f"{name}.{field.name}".endswith((".clusters.radius_m", ".match_radius_m")):
            yield f"{name}.{field.name}", 1.0
        elif field.name == "min_overlap":
            yield f"{name}.{field.name}", 0.1
        elif field.name == "queue_size":
            yield f"{name}.{field.name}", _SMALL_QUEUE
        elif field.name == "teacher" and value.name != "efficientnet_lite0":
            yield f"{name}.teacher.name", _SMALL_TEACHER
        else:
            yield from _shrunk(value, f"{name}.{field.name}")
