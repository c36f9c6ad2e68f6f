"""`tandem finetune`: a detector's training is a run like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.distributed import World
from engine.metric_names import LR
from tests.helpers.finetune_run import arguments, finetune_here, spawn_ranks
from tests.helpers.toy_run import finish, losses, metrics, stop_at, weights
from tests.launchers.test_resume import kill_after

STEPS, EVERY = 8, 3

SEGMENTER = (
    *(
        "model.name=panoptic",
        "model.classes=[road,building,vegetation,car,pedestrian]",
        "model.things=[car,pedestrian]",
    ),
    *("model.backbone.preset=res16unet_tiny", "model.backbone.in_channels=1", "judge.benchmarks=[panoptic_nuscenes]"),
)
every_kind = pytest.mark.parametrize("kind", ["detector", "segmenter"])


def of_kind(kind: str, *options: str) -> tuple[str, ...]:
    """Settings of the toy detector, or of a segmenter in its place."""
    return options if kind == "detector" else (*(one for one in options if "dropout" not in one), *SEGMENTER)


def detections(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of detections.jsonl without times."""
    lines = [json.loads(line) for line in (run_dir / "detections.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in {"time", "seconds"}} for line in lines]


@every_kind
def test_stopped_continued_and_judged_on_the_way(
    kind: str, street_set: str, world: World, one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four samples, two an update: epochs end with the 2nd and the 4th update."""
    common = of_kind(kind, "data.limit=4", "schedule.steps=4", "checkpoint.every_steps=1", "checkpoint.keep=4")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finetune_here(whole, street_set, *common)
    lines = detections(whole)
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[0]["frames"] == 3
    assert lines[0]["benchmarks"] != lines[1]["benchmarks"]
    parts = ["norm", "head"] if kind == "detector" else ["class_head", "offset_head"]
    assert json.loads((whole / "init.json").read_text())["random"] == ["backbone", *parts]

    stop_at(whole, cut, 3)
    (cut / "detections.jsonl").write_text((whole / "detections.jsonl").read_text())
    finetune_here(cut, street_set, *common)
    assert losses(cut) == losses(whole)
    assert detections(cut) == lines, "what was judged beyond the checkpoint is judged again"

    (cut / "detections.jsonl").write_text(json.dumps({"step": 2}) + "\n")  # a kill before the last line
    assert finetune_here(cut, street_set, *common).status == "finished"
    assert detections(cut)[1:] == lines[1:]
    monkeypatch.setattr("launchers.training.train.build_loader", lambda *_, **__: pytest.fail("nothing is left to do"))
    assert finetune_here(cut, street_set, *common).status == "finished"


@pytest.mark.slow
@every_kind
def test_killed_and_continued_bit_for_bit(
    kind: str, street_set: str, world: World, one_thread: None, tmp_path: Path
) -> None:
    """Through the turn of onecycle's rate and momentum, with drop-out, augmentation and AdamW."""
    common = of_kind(kind, f"schedule.steps={STEPS}", f"checkpoint.every_steps={EVERY}")
    finetune_here(tmp_path / "whole", street_set, *common)
    cut = tmp_path / "cut"
    (process,) = spawn_ranks([arguments(cut, street_set, *common)])
    kill_after(process, cut, EVERY + 1)
    assert len(metrics(cut)) < STEPS
    summary = finetune_here(cut, street_set, *common)
    assert summary.status == "finished"
    assert losses(cut) == losses(tmp_path / "whole")
    rates = [line[LR] for line in metrics(cut)]
    assert rates[0] == pytest.approx(0.001)
    assert max(rates) == rates[int(0.4 * STEPS)] == pytest.approx(0.01)
    expected, got = weights(tmp_path / "whole"), weights(cut)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.slow
@every_kind
def test_two_one_and_three_processes_at_any_stage(
    kind: str, street_set: str, world: World, one_thread: None, tmp_path: Path
) -> None:
    """Six samples an update on 2 processes, then 1, then 3; ZeRO 2, 0, 3: losses and judgements as of one process."""
    common = ("data.limit=6", "model.dropout=0", "schedule.steps=6", "checkpoint.every_steps=2", "optim.lr=0.001")
    common = of_kind(kind, *common, "engine.zero3_persistent_numel=0", "data.augment.points.enabled=false")
    run = tmp_path / "elastic"
    micro = "data.micro_batch_size=3"
    for processes, stage, steps in ((2, 2, 2), (1, 0, 4), (3, 3, 6)):
        own = (micro, f"engine.zero_stage={stage}", f"schedule.steps={steps}", "schedule.kind=constant")
        own += ("schedule.momentum_range=null",)
        if processes == 1:
            finetune_here(run, street_set, *common, *own)
        else:
            finish(spawn_ranks([arguments(run, street_set, *common, *own)], world_size=processes), timeout_s=280)
    whole = tmp_path / "constant"
    own = ("data.micro_batch_size=6", "schedule.kind=constant", "schedule.momentum_range=null")
    finetune_here(whole, street_set, *common, *own)
    # A segmenter's means and its Lovasz term are of each rank's own points, as in the released code.
    assert losses(run) == pytest.approx(losses(whole), rel=1e-3 if kind == "detector" else 0.05)
    ours, theirs = detections(run), detections(whole)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    if kind == "segmenter":
        return
    for mine, one in zip(ours, theirs, strict=True):
        for benchmark, verdict in one["benchmarks"].items():
            for name, value in verdict["headline"].items():
                assert mine["benchmarks"][benchmark]["headline"][name] == pytest.approx(value, rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["panoptic", "instance"])
def test_segmenters_at_stage_three(name: str, street_set: str, tmp_path: Path) -> None:
    """With every weight split over two processes: losses and judgements as with none split."""
    common = (*SEGMENTER, "data.limit=4", "schedule.steps=3", "engine.zero3_persistent_numel=0", f"model.name={name}")
    common += ("data.augment.points.enabled=false", "data.micro_batch_size=1")
    runs = {stage: tmp_path / f"stage{stage}" for stage in (0, 3)}
    jobs = [arguments(run, street_set, *common, f"engine.zero_stage={stage}") for stage, run in runs.items()]
    finish(spawn_ranks(jobs, world_size=2), timeout_s=280)
    assert losses(runs[3]) == pytest.approx(losses(runs[0]), rel=1e-5)
    assert len(losses(runs[3])) == 3
    for split, whole in zip(detections(runs[3]), detections(runs[0]), strict=True):
        for benchmark, verdict in whole["benchmarks"].items():
            assert split["benchmarks"][benchmark]["headline"] == pytest.approx(verdict["headline"], rel=1e-3)
