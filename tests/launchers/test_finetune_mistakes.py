"""Settings and sets that do not go together end `tandem finetune` before it trains, with the setting and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.detection import FinetuneConfig
from engine.distributed import World
from launchers.cli import TRY_AGAIN
from launchers.cli import main as tandem
from launchers.finetuning.judging import Judging
from launchers.training.train import load_any_run
from tests.helpers.finetune_run import arguments, finetune_here
from tests.helpers.pretrain_run import CONFIGS
from tests.helpers.toy_detector import known
from tests.helpers.toy_run import losses

STREET = CONFIGS.parent / "finetune" / "centerpoint_street.yaml"
MISTAKES = {
    "class of no set": ("model.classes=[car,tram]", "no class 'tram'", "Set model.classes"),
    "class to put in": ("data.sampling.counts={cars: 2}", "data.sampling.counts: got 'cars'", "did you mean 'car'"),
    "more labels than there are": (
        "data.fraction={kind: random, count: 100}",
        "data.fraction: count is 100",
        "only 9 samples",
    ),
    "benchmark": ("judge.benchmarks=[kity]", "judge.benchmarks: got 'kity', expected any of", "did you mean 'kitti'?"),
    "benchmark of points": (
        "judge.benchmarks=[panoptic_nuscenes]",
        "judge.benchmarks: got 'panoptic_nuscenes', expected any of",
        "it judges segmentation, and the network does detection",
    ),
    "benchmark of other classes": (
        "model.classes=[building]",
        "judge.benchmarks=kitti: none of the detector's classes (building) is judged by kitti",
        "choose a benchmark of these classes",
    ),
    "split": ("judge.split=test", "judge.split: got 'test'", "expected one of train, val"),
    "init that is not there": (
        "init=/nowhere/run",
        "init=/nowhere/run",
        "does not exist; expected 'random', the folder",
    ),
    "init that is no weights": (f"init={STREET}", "cannot be read as safetensors", "tandem export"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_it_ends_before_it_trains(
    name: str, street_set: str, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    override, *fragments = MISTAKES[name]
    own = [f"run_dir={tmp_path / 'run'}", f"data.shards={street_set}", f"data.objects_folder={tmp_path}"]
    quick = ["engine.device=cpu", "data.num_workers=0", "schedule.steps=1", "judge.benchmarks=[kitti]"]
    assert tandem(["finetune", str(STREET), *own, *quick, override]) not in (0, TRY_AGAIN)
    told = " ".join(capsys.readouterr().err.split())
    for fragment in fragments:
        assert fragment in told, told
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_weights_of_another_network(street_set: str, world: World, one_thread: None, tmp_path: Path) -> None:
    finetune_here(tmp_path / "run", street_set, "schedule.steps=1", "judge.benchmarks=[]")
    with pytest.raises(ValueError, match=r"init=.*not those of model\.backbone as it is set; set model\.backbone as"):
        finetune_here(tmp_path / "other", street_set, f"init={tmp_path / 'run'}", "model.backbone.preset=res16unet18")


def test_no_box_at_all_is_a_run(street_set: str, world: World, one_thread: None, tmp_path: Path) -> None:
    """Frames without boxes, and boxes that the settings leave out, are background."""
    finetune_here(tmp_path / "run", street_set, "schedule.steps=1", "data.boxes.min_points=100000")
    assert losses(tmp_path / "run") == [0.0]  # the toy's loss is about boxes alone


def test_what_a_benchmark_lacks_is_told_before_the_training(toy_set: str, world: World, tmp_path: Path) -> None:
    """Not after days of it, at the first judgement: this set knows neither truncation nor image boxes."""
    with known():
        path, *rest = arguments(tmp_path / "run", toy_set, "judge.benchmarks=[kitti]")
        config = load_any_run(path, rest, kind=FinetuneConfig)
    with pytest.raises(
        ValueError, match=r"judge\.benchmarks=kitti, judge\.split=val: frame .* have no .*choose a benchmark"
    ):
        Judging(config, world, steps_per_epoch=1.0)
