"""`tandem finetune`: a detector's training is a run like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.distributed import World
from engine.metric_names import LR
from tests.helpers.finetune_run import arguments, finetune_here, spawn_ranks
from tests.helpers.toy_run import losses, metrics, weights
from tests.launchers.test_resume import kill_after

STEPS, EVERY = 8, 3


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
