"""Rooms in the layout of S3DIS: prepared, learnt from by the presets, judged, and the other area's objects found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from configs.detection import FinetuneConfig
from engine.distributed import World
from launchers.cli import main as tandem
from launchers.finetuning.run import train_run
from launchers.training.train import load_any_run
from tests.helpers.layouts.s3dis import write_room
from tests.helpers.pretrain_run import CONFIGS

COLOURS = {"floor": (120, 90, 60), "chair": (200, 30, 30), "table": (30, 60, 200)}


def furnished(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A floor with chairs and tables on a grid of places, so that none touches another; each class has its colour."""
    sizes = {"floor": (6.0, 6.0, 0.02), "chair": (0.5, 0.5, 0.9), "table": (1.0, 0.8, 0.7)}
    places = [(x, y) for x in (0.5, 2.3, 4.1) for y in (0.5, 2.3, 4.1)]
    kinds = ["floor", *rng.choice(["chair", "table"], len(places)).tolist()]
    objects = {}
    for number, (kind, (x, y)) in enumerate(zip(kinds, [(0.0, 0.0), *places], strict=True)):
        low = np.array([x, y, 0.0 if kind == "floor" else 0.05])
        points = rng.uniform(low, low + sizes[kind], (1500 if kind == "floor" else 250, 3)).round(3)
        colours = np.clip(np.array(COLOURS[kind]) + rng.integers(-15, 16, points.shape), 0, 255)
        objects[f"{kind}_{number}"] = np.concatenate([points, colours], axis=1)
    return objects


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> str:
    root, rng = tmp_path_factory.mktemp("s3dis"), np.random.default_rng(0)
    for area, name in ((1, "office_1"), (1, "office_2"), (2, "office_1"), (5, "office_1")):
        write_room(root / "source", area, name, furnished(rng))
    shards = str(root / "shards")
    assert tandem(["prepare", "s3dis", str(root / "source"), shards, "--workers", "1"]) == 0
    return shards


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s3dis_semantic", "s3dis_instance"])
def test_presets_learn_rooms(name: str, rooms: str, world: World, tmp_path: Path) -> None:
    overrides = [
        f"run_dir={tmp_path / name}",
        f"data.shards={rooms}",
        "data.voxel.size=[0.1,0.1,0.1]",
        "data.micro_batch_size=2",
        "data.num_workers=0",
        "model.backbone={preset: res16unet_tiny, in_channels: 3, bn_momentum: 0.2}",
        "model.classes=[floor,chair,table]",
        "optim={name: adamw, lr: 5.0e-3}",
        "schedule.steps=60",
        "data.augment.points.elastic_m=[[0.8, 0.2]]",
        "judge.every_steps=0",
        "checkpoint.every_steps=0",
        "monitor={picture_every: 0, tensorboard: false, progress: false}",
    ]
    if name == "s3dis_instance":
        overrides += [
            "model.things=[chair,table]",
            "model.radius_m=0.15",
            "model.min_voxels=10",
            "judge.benchmarks=[semantic,instances]",
        ]
    config = load_any_run(str(CONFIGS.parent / "finetune" / f"{name}.yaml"), overrides, kind=FinetuneConfig)
    assert train_run(config).status == "finished"
    (line,) = (json.loads(text) for text in (tmp_path / name / "detections.jsonl").read_text().splitlines())
    assert line["split"] == "val"
    assert line["benchmarks"]["semantic"]["headline"]["mIoU"] > 70
    if name == "s3dis_instance":
        assert line["benchmarks"]["instances"]["headline"]["AP50"] > 50
