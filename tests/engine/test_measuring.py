"""What is measured while a run trains: when, what it leaves behind, and what a stop or a kill in its middle does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine.distributed import World
from engine.pretrain import PretrainSummary, pretrain
from tests.helpers.toy_objective import ToyObjective, ToySource
from tests.helpers.toy_run import losses, settings, stop_at, weights


class KilledError(Exception):
    """In the place of a kill."""


class Probe:
    """Measures every third step; keeps its record beside the run, as a measurement has to."""

    def __init__(self, record: Path, during: Callable[[int], None] = lambda step: None) -> None:
        self._record, self._during = record, during
        self.begun: list[int] = []

    @property
    def taken(self) -> list[int]:
        return [int(line) for line in self._record.read_text().split()] if self._record.exists() else []

    def begin(self, step: int) -> None:
        self.begun.append(step)
        self._record.write_text("\n".join(str(s) for s in self.taken if s <= step))

    def due(self, step: int, *, last: bool) -> bool:
        return (last or step % 3 == 0) and step not in self.taken

    def __call__(self, objective: nn.Module, step: int, stopped: Callable[[], bool]) -> Mapping[str, float] | None:
        assert not objective.training
        assert not torch.is_grad_enabled()
        torch.rand(3)  # takes from the run's random numbers
        for buffer in objective.buffers():
            buffer.zero_()
        self._during(step)
        if stopped():
            return None
        self._record.write_text("\n".join(map(str, [*self.taken, step])))
        return {"probe": float(step)}


def run(folder: Path, probe: Probe | None, **overrides: dict[str, Any]) -> PretrainSummary:
    source = ToySource(rank=0, world_size=1)
    return pretrain(
        ToyObjective(),
        source,
        settings(**overrides),
        folder,
        micro_batch_size=source.micro_batch_size,
        fingerprint={},
        resolved_config={},
        measurement=probe,
    )


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return losses(one) == losses(other) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_measured_at_its_pace_without_a_trace(world: World, tmp_path: Path) -> None:
    run(tmp_path / "plain", None)
    probe = Probe(tmp_path / "record")
    assert run(tmp_path / "run", probe, monitor={"tensorboard": True}).status == "finished"
    assert probe.taken == [3, 6, 8]
    assert same(tmp_path / "plain", tmp_path / "run")
    assert run(tmp_path / "run", probe).status == "finished", "nothing is owed"
    assert probe.taken == [3, 6, 8]
    assert probe.begun == [0, 8]


@pytest.mark.parametrize("at", [6, 8])
def test_killed_while_it_measured(world: World, tmp_path: Path, at: int) -> None:
    """The step is measured when the run goes on, from the checkpoint that was written before."""

    def kill(step: int) -> None:
        if step == at:
            raise KilledError

    run(tmp_path / "plain", None)
    record = tmp_path / "record"
    with pytest.raises(KilledError):
        run(tmp_path / "run", Probe(record, kill))
    assert Probe(record).taken == [s for s in (3, 6) if s < at]
    again = Probe(record)
    assert run(tmp_path / "run", again).status == "finished"
    assert again.begun == [at]
    assert again.taken == [3, 6, 8]
    assert same(tmp_path / "plain", tmp_path / "run")


@pytest.mark.parametrize("at", [6, 8])
def test_stopped_while_it_measured(world: World, tmp_path: Path, at: int) -> None:
    record = tmp_path / "record"

    def stop(step: int) -> None:
        if step == at:
            os.kill(os.getpid(), signal.SIGUSR1)

    summary = run(tmp_path / "run", Probe(record, stop))
    assert (summary.status, summary.signal, summary.step) == ("preempted", "SIGUSR1", at)
    again = Probe(record)
    assert run(tmp_path / "run", again).status == "finished"
    assert again.taken == [3, 6, 8]


def test_what_was_measured_beyond_the_checkpoint_is_measured_again(world: World, tmp_path: Path) -> None:
    record = tmp_path / "record"
    run(tmp_path / "whole", Probe(record))
    cut = stop_at(tmp_path / "whole", tmp_path / "cut", 3)
    again = Probe(record)
    run(cut, again)
    assert again.taken == [3, 6, 8]
    assert again.begun == [3]
