"""Detectors that follow a pre-training run: what is planned, what is refused, what the report makes of them."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.detection import FinetuneConfig
from configs.load import ConfigError, load
from configs.runs import dump_run
from configs.schema import FollowConfig, PretrainConfig, SweepConfig
from engine.detection.judge import BENCHMARKS
from engine.downstream.metrics import METRICS
from launchers.cluster.plan_detectors import with_detectors
from launchers.cluster.plan_submission import Point
from launchers.reporting.collect import collect
from launchers.reporting.table import DETECTION_HEADER, detection_rows, groups, markdown, notes
from launchers.runs.files import find_runs
from launchers.sweep import points
from launchers.training.train import load_any_run
from tests.helpers.pretrain_run import REPOSITORY

TOWER = (
    "method.backbone={name: voxelnet, preset: second_tiny, in_channels: 4, bn_momentum: 0.1, "
    "grid_min: [-128, -128, -12], grid_max: [128, 128, 12], voxel_size_m: [0.2, 0.2, 0.2]}"
)
VOXELS = (
    "data.voxel.features=xyz_intensity",
    "data.voxel.range_min=[-25.6,-25.6,-2.4]",
    "data.voxel.range_max=[25.6,25.6,2.4]",
)
SECOND = str(REPOSITORY / "configs" / "finetune" / "second_street.yaml")
SEGCONTRAST = str(REPOSITORY / "configs" / "pretrain" / "segcontrast_street.yaml")


def point(run_dir: Path, *overrides: str, tower: str = TOWER, **follow: Any) -> Point:
    config = load_any_run(SEGCONTRAST, [f"run_dir={run_dir}", *VOXELS, tower, *overrides], kind=PretrainConfig)
    assert isinstance(config, PretrainConfig)
    asked = FollowConfig(configs=(SECOND,), **follow)
    return Point(config=dataclasses.replace(config, evaluate=asked))


def test_a_training_for_each_number_of_labels_and_seed_random_ones_shared(tmp_path: Path) -> None:
    first = point(tmp_path / "a", "seed=3", fractions=(10, 0))
    second = point(tmp_path / "b", "seed=3", fractions=(10, 0))
    made = with_detectors([first, second])
    assert made[:2] == (first, second)
    assert [p.run_dir.relative_to(tmp_path).parent.as_posix() for p in made[2:]] == [
        *["a/detectors"] * 2,
        *["random_detectors"] * 2,
        *["b/detectors"] * 2,
    ]
    configs = [p.config for p in made[2:]]
    assert all(isinstance(config, FinetuneConfig) and config.seed == 3 for config in configs)
    few, everything = configs[:2]
    assert isinstance(few, FinetuneConfig)
    assert isinstance(everything, FinetuneConfig)
    assert few.init == str(tmp_path / "a")
    assert (few.data.fraction.kind, few.data.fraction.count, few.data.fraction.seed) == ("random", 10, 3)
    assert everything.data.fraction.kind == "all"
    random = configs[2]
    assert random == dataclasses.replace(few, init="random", run_dir=random.run_dir)
    assert [p.after for p in made[2:]] == [tmp_path / "a"] * 2 + [None] * 2 + [tmp_path / "b"] * 2

    seeds = with_detectors([point(tmp_path / "a", fractions=(10,), seeds=(0, 1))])
    assert [p.config.seed for p in seeds[1:]] == [0, 1, 0, 1]
    # Asked for by name as well, as `tandem requeue` does: still once, and behind its run.
    assert with_detectors([first, *made[2:4]]) == with_detectors([first])


def test_a_detector_that_the_run_cannot_fill_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"does not fit the run.*\n?.*set model.backbone as the source has it"
    ) as caught:
        with_detectors([point(tmp_path, tower="method.backbone={preset: res16unet_tiny, in_channels: 4}")])
    assert '"preset": "second_tiny"' in str(caught.value)
    with pytest.raises(ConfigError, match=r"data.voxel.reduce: got mean, expected first"):
        with_detectors([point(tmp_path, "data.voxel.reduce=first")])
    with pytest.raises(ConfigError, match=r"second_street.yaml: judge.benchmarks: got \[\], expected one at least"):
        with_detectors([point(tmp_path, detector_overrides=("judge.benchmarks=[]",))])


# ---- the table


@functools.cache
def second() -> FinetuneConfig:
    config = load_any_run(SECOND, kind=FinetuneConfig)
    assert isinstance(config, FinetuneConfig)
    return config


def write_detector(folder: Path, *, init: str, seed: int, value: float | None, count: int = 10, **other: Any) -> None:
    """What a finished training leaves, with one figure."""
    folder.mkdir(parents=True)
    base = second()
    fraction = dataclasses.replace(base.data.fraction, kind="random", count=count, seed=seed)
    data = dataclasses.replace(base.data, fraction=fraction)
    config = dataclasses.replace(base, seed=seed, run_dir=str(folder), init=init, data=data)
    (folder / "config.yaml").write_text(dump_run(config))
    began = {"event": "begin", "time": 1.0, "job": None, "host": "h", "pid": 1, "world_size": 1, "nodes": None}
    ended = {"event": "end", "time": 2.0, "status": "finished", "step": 2}
    (folder / "attempts.jsonl").write_text(f"{json.dumps(began)}\n{json.dumps(ended)}\n")
    random = init == "random"
    start = {
        "source": init,
        "identity": "random" if random else f"{init}/step_2 abc",
        "name": "random" if random else init.partition("-")[0],
        "pretraining": "" if random else f"2 steps, seed {seed}",
        "setting": "" if random else init.partition("-")[0],
        "pretrain_seeds": [] if random else [seed],
        "teacher": "",
        "leak": "none",
    }
    (folder / "init.json").write_text(json.dumps(start))
    verdict = {"unit": "%", "headline": {"3D AP R40, moderate": value}}
    line = {"step": 2, "time": 1.7e9, "seconds": 1.0, "set": "synthetic", "data": "abc", "split": "val"}
    line |= {"frames": 40, "left_out": 0, "benchmarks": {"kitti": verdict}, **other}
    (folder / "detections.jsonl").write_text(json.dumps({"step": 1, "benchmarks": {}}) + "\n" + json.dumps(line) + "\n")


def test_one_table_of_methods_detectors_and_labels(tmp_path: Path) -> None:
    """Three paired seeds: gains of 9, 10 and 11 are beyond chance, those of -20, 0 and 20 are not."""
    for seed, value in enumerate((20.0, 30.0, 40.0)):
        random = tmp_path / "random_detectors" / f"ten-seed{seed}-k"
        write_detector(random, init="random", seed=seed, value=value)
        for method, gain in (("good", 9 + seed), ("even", 20 * (seed - 1))):
            follower = tmp_path / f"{method}-{seed}" / "detectors" / "ten"
            write_detector(follower, init=f"{method}-{seed}", seed=seed, value=value + gain)
    write_detector(tmp_path / "good-0" / "detectors" / "two", init="good-0", seed=0, value=5.0, count=2)
    write_detector(tmp_path / "good-1" / "detectors" / "none", init="good-1", seed=1, value=None, count=2)

    sources = collect([tmp_path])
    rows = detection_rows(groups(sources.results, sources.labels))
    figures = [(row[1], row[2], row[4], row[5], row[6], beyond) for row, beyond in rows]
    assert figures == [
        ("2 frames", "good", "5.0", "–", "1", False),
        ("10 frames", "random", "30.0 ± 10.0", "–", "3", False),
        ("10 frames", "even", "30.0 ± 30.0", "+0.0 ± 20.0 ?", "3", False),
        ("10 frames", "good", "40.0 ± 11.0", "+10.0 ± 1.0", "3", True),
    ]
    assert rows[0][0][0] == "second on second_tiny"
    assert rows[0][0][3] == "3D AP R40 % (synthetic, kitti)"
    text = markdown(sources.results, sources.labels)
    assert text.count("| " + " | ".join(DETECTION_HEADER) + " |") == 1
    assert "| **good** |" in text
    assert "| **even** |" not in text
    assert any("better than random initialisation by more than chance" in note for note in notes(sources.results))

    # Of one run: its own detectors and the random ones that they are compared with.
    (one,) = [r for r in collect([tmp_path / "good-2"]).results if r.pretrained]
    assert (one.seeds, one.values) == ((2,), (51.0,))
    assert {r.init for r in collect([tmp_path / "good-2"]).results} == {"good", "random"}
    assert set(find_runs(tmp_path / "good-2")) >= {tmp_path / "good-2" / "detectors" / "ten"}


def test_trainings_that_differ_in_more_than_the_start_are_not_compared(tmp_path: Path) -> None:
    write_detector(tmp_path / "a", init="good-0", seed=0, value=50.0)
    write_detector(tmp_path / "b", init="random", seed=0, value=40.0, data="of another set")
    write_detector(tmp_path / "c", init="random", seed=0, value=30.0, frames=39)
    gains = {row[2]: row[5] for row, _ in detection_rows(groups(collect([tmp_path]).results))}
    assert gains == {"good": "–", "random": "–"}


def test_damaged_verdicts_are_told_and_the_others_shown(tmp_path: Path) -> None:
    write_detector(tmp_path / "a", init="random", seed=0, value=50.0)
    write_detector(tmp_path / "b", init="random", seed=1, value=50.0)
    (tmp_path / "b" / "detections.jsonl").write_text('{"step": 2, "benchmarks": 3}\n')
    sources = collect([tmp_path])
    assert [r.seeds for r in sources.results] == [(0,)]
    assert any("its verdicts cannot be read" in why for trouble in sources.trouble for why in trouble.why)


def test_every_benchmark_has_a_figure_in_tables() -> None:
    assert {f"detection_{name}" for name in BENCHMARKS} <= set(METRICS)


@pytest.mark.slow
def test_street_sweep_pretrains_the_network_that_each_detector_needs() -> None:
    """Six methods and networks, three numbers of labels; two detectors from random weights. One of the three seeds."""
    sweep = load(SweepConfig, REPOSITORY / "configs" / "sweep" / "detectors_street.yaml")
    assert sweep.grid == {"seed": (0, 1, 2)}
    made = with_detectors(points(dataclasses.replace(sweep, grid={"seed": (0,)})))
    trainings = [p for p in made if p.follows]
    assert (len(made) - len(trainings), len(trainings)) == (6, 6 * 3 + 2 * 3)


# ---- by itself


SWEEP: dict[str, Any] = {
    "base": SEGCONTRAST,
    "overrides": [
        *VOXELS,
        TOWER,
        "data.micro_batch_size=2",
        "data.num_workers=0",
        "engine={device: cpu, precision: fp32}",
        "schedule={steps: 2, warmup_steps: 0}",
        "checkpoint={every_steps: 0}",
        "monitor={picture_every: 0, tensorboard: false}",
        f"evaluate.configs=[{SECOND}]",
        "evaluate.fractions=[4]",
    ],
    "points": [["seed=0"]],
}


def detector_overrides(shards: str) -> str:
    small = ["data.micro_batch_size=2", "data.num_workers=0", "schedule.steps=2", "checkpoint.every_steps=0"]
    small += [f"data.shards={shards}", "judge.every_epochs=0", "judge.benchmarks=[nuscenes]", "engine.device=cpu"]
    return f"evaluate.detector_overrides={json.dumps(small)}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pretraining_then_a_detector_by_itself(street_set: str, tmp_path: Path) -> None:
    root = tmp_path / "sweep"
    sweep = {**SWEEP, "root": str(root), "overrides": [*SWEEP["overrides"], detector_overrides(street_set)]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    words = ("sweep", str(tmp_path / "sweep.yaml"), f"data.shards={street_set}", "--local")
    command = [sys.executable, "-m", "launchers.cli", *words]
    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
    text = (root / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| second on second_tiny | 4 frames |")]
    assert [row.split(" | ")[2] for row in rows] == ["random", "segcontrast"], text
    start = json.loads((root / "seed_0/detectors/second-street-4-frames-seed0/init.json").read_text())
    assert "backbone.encoder" in start["filled"]

    said = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert said.stdout.count("finished before") == 3
    assert "nothing left to do" in said.stdout
