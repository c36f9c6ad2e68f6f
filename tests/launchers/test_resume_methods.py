"""Every method's street run trains, continues bit for bit, and learns the same where ZeRO splits its weights.

What a method draws and what it keeps between updates must be in its checkpoints; what it does with its networks must be
possible when their weights are gathered for each call. One undisturbed run of each method is what all tests look at.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from common.run_files import list_checkpoints, step_of
from configs.load import ConfigError
from engine.checkpoint import load_weights
from engine.distributed import World
from engine.pretrain import PretrainSummary
from launchers.runs.attempts import read_attempts
from launchers.training.train import train
from models.methods import METHODS
from tests.helpers.street_run import street_config
from tests.helpers.toy_run import losses

STEPS = 3
OPTIONS = (f"schedule.steps={STEPS}", "checkpoint.every_steps=1", f"checkpoint.keep={STEPS}")

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("whole", sorted(METHODS), indirect=True)]


@dataclass(frozen=True)
class Whole:
    """The undisturbed run of a method, and the set that it read."""

    name: str
    shards: str
    folder: Path
    summary: PretrainSummary


def weights_at(folder: Path, step: int) -> dict[str, torch.Tensor]:
    (checkpoint,) = (c for c in list_checkpoints(folder) if step_of(c) == step)
    return load_weights(checkpoint)


@pytest.fixture(scope="module")
def whole(
    request: pytest.FixtureRequest, street_set: str, world: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Whole]:
    """As its users start it: from YAML through loader, teacher cache and engine, a picture of each kind at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    pictures = (f"monitor.picture_every={STEPS}", "monitor.tensorboard=true")
    summary = train(street_config(name, street_set, f"run_dir={folder}", *OPTIONS, *pictures))
    yield Whole(name=name, shards=street_set, folder=folder, summary=summary)
    torch.set_num_threads(threads)


def test_it_trains(whole: Whole) -> None:
    assert (whole.summary.status, whole.summary.step, whole.summary.skipped) == ("finished", STEPS, 0)
    values = losses(whole.folder)
    assert all(math.isfinite(value) for value in values)
    assert len(set(values)) == STEPS  # the first is 0 where a queue of negatives is still empty


def test_it_continues_bit_for_bit(whole: Whole, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(whole.folder, cut)
    for checkpoint in list_checkpoints(cut):
        if step_of(checkpoint) == STEPS:
            shutil.rmtree(checkpoint)
    train(street_config(whole.name, whole.shards, f"run_dir={cut}", *OPTIONS))
    assert read_attempts(cut)[-1].resumed == STEPS - 1
    wanted, got = weights_at(whole.folder, STEPS), weights_at(cut, STEPS)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    assert losses(cut) == losses(whole.folder)


def test_stage_three_learns_the_same_or_is_refused_by_name(whole: Whole, tmp_path: Path) -> None:
    """On one process the collectives do nothing, but weights come and go and gradients are cut into shares."""
    split_up = ("engine.zero_stage=3", "engine.zero3_persistent_numel=0")
    try:
        train(street_config(whole.name, whole.shards, f"run_dir={tmp_path}", *OPTIONS, *split_up))
    except ConfigError as error:
        assert "engine.zero_stage=3 does not work with" in str(error)  # noqa: PT017
        return
    split, plain = weights_at(tmp_path, 2), weights_at(whole.folder, 2)
    assert split.keys() == plain.keys()
    # Sums in another order can turn the sign of a gradient near 0, which AdamW makes a whole step of.
    apart = sum(float((split[key].double() - plain[key].double()).square().sum()) for key in plain) ** 0.5
    size = sum(float(value.double().square().sum()) for value in plain.values()) ** 0.5
    assert apart <= 1e-3 * size
