"""A detector of images: trained, stopped, continued, judged; frames without points are looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from configs.detection import FinetuneConfig
from data.storage.reader import SampleReader
from engine.distributed import World
from launchers.evaluation.detections import detect, no_points
from launchers.finetuning.judging import JudgedSet
from launchers.finetuning.run import train_run
from launchers.training.train import load_any_run
from models.detection.base import Detector
from tests.helpers.toy_run import losses, stop_at, weights

SETTINGS = (
    "data.image_size=[64,128]",
    "data.num_workers=0",
    "data.micro_batch_size=2",
    "model.head.channels=16",
    "model.head.limits_px=[16,32]",
    "model.nms.min_score=0.0",
    "model.nms.num_after=5",
    "model.merge.max_iou=1.0",
    "judge.benchmarks=[nuscenes]",
    "judge.split=train",
    "judge.limit=2",
    "engine.device=cpu",
    "schedule.steps=4",
    "checkpoint.every_steps=2",
    "checkpoint.every_min=0",
    "checkpoint.keep=9",
    "monitor.log_every=1",
    "monitor.tensorboard=false",
    "monitor.progress=false",
)


def config_of(run_dir: Path, shards: str, *overrides: str) -> FinetuneConfig:
    own = [*SETTINGS, *overrides, f"run_dir={run_dir}", f"data.shards={shards}"]
    config = load_any_run("fcos3d_street", own, kind=FinetuneConfig)
    assert isinstance(config, FinetuneConfig)
    return config


def run(run_dir: Path, shards: str) -> None:
    assert train_run(config_of(run_dir, shards)).status == "finished"


def test_frames_without_points_in_the_grid_are_looked_at(street_set: str, one_thread: None) -> None:
    far = "data.voxel.range_min=[500,500,500]", "data.voxel.range_max=[501,501,501]"
    config = config_of(Path("unused"), street_set, *far)
    torch.manual_seed(0)
    detector, judged = config.model.build().eval(), JudgedSet.of(config)
    assert isinstance(detector, Detector)
    reader, device = SampleReader(judged.manifest), torch.device("cpu")
    with torch.no_grad():
        frames = detect(detector, reader, judged.indices, judged.data, batch_size=2, device=device)
        assert frames is not None
        assert [len(frame.found.scores) for frame in frames] == [15, 15]  # three images of 5 each
        # What a rank looks at whose frames are all damaged.
        found = detector.detect(no_points(judged.data, images=True))
    assert (found.sample == 0).all()


@pytest.mark.slow
def test_trained_stopped_continued_and_judged(street_set: str, world: World, one_thread: None, tmp_path: Path) -> None:
    run(tmp_path / "whole", street_set)
    cut = stop_at(tmp_path / "whole", tmp_path / "cut", 2)
    run(cut, street_set)
    assert losses(cut) == losses(tmp_path / "whole")
    wanted, got = weights(tmp_path / "whole"), weights(cut)
    assert all(torch.equal(got[name], value) for name, value in wanted.items())
    (line,) = (json.loads(text) for text in (tmp_path / "whole" / "detections.jsonl").read_text().splitlines())
    assert (line["frames"], line["left_out"]) == (2, 0)
