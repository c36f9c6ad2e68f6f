"""`tandem pretrain` goes on with another number of processes: same global batch, same order of samples, same losses.

Stated tolerance of SLidR in float32 at toy size: the losses of the two updates behind the change are within 1e-4 of
the undisturbed run's, and the ends of both within 1 % of the way between (`test_ranks.py` says why more than rounding).
"""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from common.run_files import list_checkpoints
from configs.load import ConfigError
from data.loading.loader import build_loader
from engine.checkpoint import load_weights
from engine.distributed import World
from launchers.training.micro_batch import choose_micro_batch
from launchers.training.train import load_run, train
from tests.helpers.pretrain_run import UNCACHED, arguments, pretrain_here, spawn_ranks
from tests.helpers.toy_run import finish, losses, metrics, stop_at


def sizes(micro_batch_size: int, world_size: int, accumulation_steps: int = 1) -> dict[str, int]:
    return {
        "micro_batch_size": micro_batch_size,
        "world_size": world_size,
        "accumulation_steps": accumulation_steps,
    }


# ---- which micro-batch
@pytest.mark.parametrize(
    ("before", "now", "setting", "expected"),
    [
        pytest.param(sizes(6, 2), sizes(6, 2), (6, 1), 6, id="same"),
        pytest.param(sizes(6, 2), sizes(6, 1), (6, 1), 12, id="2 to 1"),
        pytest.param(sizes(6, 2), sizes(6, 3), (6, 1), 4, id="2 to 3"),
        pytest.param(sizes(6, 2), sizes(6, 4), (6, 1), 3, id="2 to 4"),
        pytest.param(sizes(12, 1), sizes(6, 3), (6, 1), 4, id="2 to 1 to 3: the setting is what was configured"),
        pytest.param(sizes(4, 3), sizes(6, 2), (6, 1), 6, id="2 to 3 to 2"),
        pytest.param(sizes(6, 2, 2), sizes(6, 4, 2), (6, 2), 3, id="with accumulation"),
        pytest.param(sizes(6, 2), sizes(6, 1, 2), (6, 1), 6, id="accumulation in the place of a process"),
        pytest.param(sizes(6, 2), sizes(2, 3, 2), (6, 1), 2, id="both chosen by hand"),
    ],
)
def test_the_global_batch_is_kept(
    before: dict[str, int], now: dict[str, int], setting: tuple[int, int], expected: int
) -> None:
    assert choose_micro_batch(before, now, setting) == expected


@pytest.mark.parametrize(
    ("before", "now", "setting", "message"),
    [
        pytest.param(
            sizes(6, 2),
            sizes(6, 5),
            (6, 1),
            r"takes 12 samples per update \(6 x 2 processes x 1 micro-batches\), but 5 processes cannot share them "
            r"equally; start it on 1, 2, 3, 4, 6 or 12 processes, or begin in another run folder",
            id="does not divide",
        ),
        pytest.param(
            sizes(3, 2, 2),
            sizes(3, 4, 2),
            (3, 2),
            r"but 3 samples x 4 processes x 2 micro-batches make 24; data.micro_batch_size=3 "
            r"engine.accumulation_steps=1, or data.micro_batch_size=1 engine.accumulation_steps=3 keeps it",
            id="divides without accumulation",
        ),
        pytest.param(
            sizes(6, 2),
            sizes(8, 3),
            (6, 1),
            r"8 samples x 3 processes x 1 micro-batches make 24; data.micro_batch_size=4 engine.accumulation_steps=1, "
            r"or data.micro_batch_size=2 engine.accumulation_steps=2",
            id="changed by hand",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_with_what_works(
    before: dict[str, int], now: dict[str, int], setting: tuple[int, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_micro_batch(before, now, setting)


# ---- order of samples
def keys_of_updates(
    toy_set: str, world_size: int, accumulation_steps: int, updates: range
) -> list[tuple[tuple[str, ...], list[Any]]]:
    """Samples of each update in the order of the stream, and where augmentation put their first points."""
    micro = 12 // world_size // accumulation_steps
    overrides = [*UNCACHED, f"data.micro_batch_size={micro}"]
    path, *rest = arguments("unused", toy_set, *overrides)
    config = load_run(path, rest)
    ranks = [
        build_loader(
            config.data, spec=config.method.batch_spec(), seed=config.seed, rank=rank, world_size=world_size
        ).batches(updates.start * accumulation_steps)
        for rank in range(world_size)
    ]
    found = []
    for _ in updates:
        batches = [next(rank) for _ in range(accumulation_steps) for rank in ranks]
        keys = tuple(itertools.chain.from_iterable(batch.keys for batch in batches))
        found.append((keys, [float(batch.points.double().sum()) for batch in batches]))
    return found


@pytest.mark.parametrize(("world_size", "accumulation_steps"), [(1, 1), (3, 1), (4, 1), (1, 2), (2, 3)])
def test_updates_hold_the_same_samples_in_the_same_order(
    toy_set: str, world_size: int, accumulation_steps: int
) -> None:
    """Left behind update 2 by two processes, taken up by others; augmentations are the same ones too."""
    expected = keys_of_updates(toy_set, 2, 1, range(2, 5))
    got = keys_of_updates(toy_set, world_size, accumulation_steps, range(2, 5))
    assert [keys for keys, _ in got] == [keys for keys, _ in expected]
    assert [sum(sums) for _, sums in got] == pytest.approx([sum(sums) for _, sums in expected], rel=1e-12)
    assert len({keys for keys, _ in got}) == 3


# ---- the verb
GATHERED = (*UNCACHED, "method.gather_negatives=true", "optim.name=sgd", "optim.lr=0.002")
"""With negatives from all ranks the loss does not depend on their number."""


def pretend_two_processes(run_dir: Path) -> None:
    """Turn a checkpoint of one process with 4 samples into one of two with 2 each (stage 0: nothing else differs)."""
    (saved,) = list_checkpoints(run_dir)
    state, config = (json.loads((saved / f"{name}.json").read_text()) for name in ("state", "config"))
    state["engine"] |= {"world_size": 2, "micro_batch_size": 2}
    config["data"]["micro_batch_size"] = 2
    (saved / "state.json").write_text(json.dumps(state))
    (saved / "config.json").write_text(json.dumps(config))
    files = json.loads((saved / "files.json").read_text())
    kept = {name: entry for name, entry in files.items() if not name.endswith(".json")}
    (saved / "files.json").write_text(json.dumps(kept))


def test_the_micro_batch_is_derived_and_said(
    toy_set: str, world: World, one_thread: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = ("schedule.steps=4", "checkpoint.every_steps=2")
    pretrain_here(tmp_path / "whole", toy_set, *GATHERED, *steps, "data.micro_batch_size=4")
    cut = stop_at(tmp_path / "whole", tmp_path / "cut", 2)
    pretend_two_processes(cut)
    with pytest.raises(
        ConfigError, match=r"takes 4 samples per update .*3 samples x 1 processes .* make 3; data.micro"
    ):
        pretrain_here(cut, toy_set, *GATHERED, *steps, "data.micro_batch_size=3")
    caplog.set_level(logging.INFO, logger="tandem")
    pretrain_here(cut, toy_set, *GATHERED, *steps, "data.micro_batch_size=2")
    assert "continuing on 1 processes instead of 2: micro-batch 2 -> 4 keeps the global batch of 4" in caplog.text
    assert "gather_negatives" not in caplog.text
    assert losses(cut) == losses(tmp_path / "whole")  # one process as before, in truth: bit for bit
    assert "micro_batch_size: 2" in (cut / "config.yaml").read_text()  # the setting, not what was derived from it


def test_losses_that_depend_on_the_processes_are_announced(
    toy_set: str, world: World, one_thread: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = (*UNCACHED, "engine.sync_bn=false")
    pretrain_here(tmp_path, toy_set, *options, "schedule.steps=2", "data.micro_batch_size=4")
    pretend_two_processes(tmp_path)
    caplog.clear()
    pretrain_here(tmp_path, toy_set, *options, "schedule.steps=3", "data.micro_batch_size=2")
    for name in ("method.gather_negatives=false", "engine.sync_bn=false"):
        assert f"{name}: " in caplog.text


STAGES, STEPS, STOP = (0, 1, 2, 3), 3, 1
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}
ON = {1: (0, 3), 3: (1, 2), 4: (0, 3)}
"""Stages that go on with so many processes; `tests/engine/test_reshard.py` has all of both."""


@pytest.mark.slow
def test_slidr_goes_on_as_one_three_or_four(
    toy_set: str, world: World, one_thread: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also 2 -> 1 -> 3 with a change of stage; the config says 6 samples a process throughout."""

    def command(run_dir: Path, stage: int) -> list[str]:
        options = ("data.micro_batch_size=6", f"schedule.steps={STEPS}", "checkpoint.keep=9")
        more = (f"engine.zero_stage={stage}", f"checkpoint.every_steps={STOP}", "engine.zero3_persistent_numel=500")
        return arguments(run_dir, toy_set, *GATHERED, *options, *more)

    finish(spawn_ranks([command(tmp_path / f"{s}", s) for s in STAGES], world_size=2), timeout_s=280)
    pairs: list[tuple[Path, Path]] = []
    for size, stages in ON.items():
        cuts = {stop_at(tmp_path / f"{s}", tmp_path / f"{s}-{size}", STOP): s for s in stages}
        if size == 3:
            cuts[stop_at(tmp_path / "3-1", tmp_path / "3-1-3", 2 * STOP)] = 1
        jobs = [command(cut, stage) for cut, stage in cuts.items()]
        if size == 1:  # here: a process less to start
            with caplog.at_level(logging.INFO, logger="tandem"):
                for path, *overrides in jobs:
                    train(load_run(path, overrides))
            said = caplog.text
        else:
            said = finish(spawn_ranks(jobs, world_size=size), timeout_s=280)[0]
        assert f"continuing on {size} processes instead of 2: micro-batch 6 -> {12 // size} keeps" in said
        pairs += [(cut, tmp_path / cut.name.split("-")[0]) for cut in cuts]
    worst = 0.0
    for cut, whole in pairs:
        assert [line["step"] for line in metrics(cut)] == list(range(1, STEPS + 1))
        assert losses(cut) == pytest.approx(losses(whole), rel=1e-4), cut.name
        worst = max(worst, *(abs(a / b - 1) for a, b in zip(losses(cut), losses(whole), strict=True)))
        ends = [load_weights(path) for path in (list_checkpoints(cut)[0], list_checkpoints(whole)[0])]
        begin = load_weights(whole / "checkpoints" / f"step_{STOP:08d}")
        names = [name for name in begin if not name.startswith("teacher") and name.split(".")[-1] not in STATISTICS]
        mine, other, before = (torch.cat([w[name].flatten().double() for name in names]) for w in (*ends, begin))
        assert (mine - other).norm() < 0.01 * (other - before).norm(), cut.name
    assert len(pairs) == 7
    print(f"largest relative difference of a loss: {worst:.1e}")
