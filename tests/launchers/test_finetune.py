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
from tests.helpers.toy_run import losses, metrics, stop_at, weights
from tests.launchers.test_resume import kill_after

STEPS, EVERY = 8, 3


def detections(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of detections.jsonl without times."""
    lines = [json.loads(line) for line in (run_dir / "detections.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in {"time", "seconds"}} for line in lines]


def test_stopped_continued_and_judged_on_the_way(
    street_set: str, world: World, one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine samples, two an update: epochs end with the 5th and the 9th update. A kill in the second judgement."""
    common = ("schedule.steps=9", "checkpoint.every_steps=4")
    finetune_here(tmp_path / "plain", street_set, *common, "judge.benchmarks=[]")
    finetune_here(tmp_path / "whole", street_set, *common)
    assert losses(tmp_path / "plain") == losses(tmp_path / "whole")
    lines = detections(tmp_path / "whole")
    assert [line["step"] for line in lines] == [5, 9]
    assert lines[0]["frames"] == 3
    assert lines[0]["benchmarks"]["toy"] != lines[1]["benchmarks"]["toy"]

    cut = stop_at(tmp_path / "whole", tmp_path / "cut", 4)
    finetune_here(cut, street_set, *common)
    assert losses(cut) == losses(tmp_path / "whole")
    assert detections(cut) == lines, "what was judged beyond the checkpoint is judged again"

    (cut / "detections.jsonl").write_text(json.dumps({"step": 5}) + "\n")  # a kill before the last line
    assert finetune_here(cut, street_set, *common).status == "finished"
    assert detections(cut)[1:] == lines[1:]
    monkeypatch.setattr("launchers.training.train.build_loader", lambda *_, **__: pytest.fail("nothing is left to do"))
    assert finetune_here(cut, street_set, *common).status == "finished"


@pytest.mark.slow
def test_killed_and_continued_bit_for_bit(street_set: str, world: World, one_thread: None, tmp_path: Path) -> None:
    """Through the turn of onecycle's rate and momentum, with drop-out, augmentation and AdamW."""
    common = (f"schedule.steps={STEPS}", f"checkpoint.every_steps={EVERY}")
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
