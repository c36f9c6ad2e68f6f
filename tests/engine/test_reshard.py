"""A run that goes on with another number of processes or at another ZeRO stage.

Pure functions first: states are cut the slow, obvious way (whole parameters padded and split as DeepSpeed does) and
compared. Then the real engine: the same losses as the run that was never interrupted. Stated tolerance in float32:
1e-5 relative for every loss, 1e-5 for every weight.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.run_files import list_checkpoints
from engine import deepspeed_config
from engine.checkpoint import read_rank_state, read_state
from engine.deepspeed_config import EngineConfig, quiet_deepspeed
from engine.distributed import World
from engine.errors import CheckpointError
from engine.optim import OptimConfig, build_optimizer
from engine.reshard import OptimizerState, cut_weights, recut_optimizer, saved_layout
from engine.rng import get_rng_state, seed_everything
from engine.zero import SHARD_KEYS, ZeroEngine
from engine.zero_layout import Layout, Param
from tests.helpers.toy_objective import ToyObjective
from tests.helpers.toy_run import finish, losses, metrics, run_toy, spawn, stop_at, weights

KEYS = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}


# ---- slow reference
def flat_state(layout: Layout, part: int, whole: dict[str, Tensor], padding: float) -> list[Tensor]:
    """Buffers of one process, by padding and splitting whole tensors."""
    buffers = []
    for group in layout.groups:
        flats = [whole[p.name].flatten() for p in group]
        if layout.stage == 0:
            buffers += flats
        elif layout.stage == 3:
            shares = [padded(flat, layout.world_size, padding).chunk(layout.world_size)[part] for flat in flats]
            buffers += stretches(shares, layout.sub_group_numel)
        else:
            buffers.append(padded(torch.cat(flats), 2 * layout.world_size, padding).chunk(layout.world_size)[part])
    return buffers


def padded(flat: Tensor, multiple: int, value: float) -> Tensor:
    return torch.cat([flat, torch.full((-len(flat) % multiple,), value)])


def stretches(shares: list[Tensor], numel: int) -> list[Tensor]:
    done: list[list[Tensor]] = [[]]
    for share in shares:
        if sum(map(len, done[-1])) >= numel:
            done.append([])
        done[-1].append(share)
    return [torch.cat(stretch) for stretch in done]


def optimizer_state(layout: Layout, part: int, entries: dict[str, dict[str, Tensor]], padding: float) -> OptimizerState:
    """What torch's optimizer over these buffers would save after 7 steps."""
    flat = {key: flat_state(layout, part, whole, padding) for key, whole in entries.items()}
    numbers = [[n for n, b in enumerate(layout.buffers(part)) if b.group == g] for g in range(len(layout.groups))]
    state = {n: {"step": torch.tensor(7.0)} | {key: flat[key][n] for key in flat} for ids in numbers for n in ids}
    return {"state": state, "param_groups": [{"lr": 0.1 * g, "params": ids} for g, ids in enumerate(numbers)]}


shapes = st.lists(st.integers(1, 5), min_size=0, max_size=3).map(tuple)
groups_of_shapes = st.lists(st.lists(shapes, min_size=1, max_size=5), min_size=1, max_size=3)
sizes = st.tuples(st.sampled_from([0, 1, 2, 3]), st.integers(1, 8))  # stage, processes
stretch_numels = st.integers(1, 60)


def some_params(grouped: list[list[tuple[int, ...]]]) -> tuple[tuple[Param, ...], ...]:
    return tuple(
        tuple(Param(name=f"p{g}.{n}", shape=shape) for n, shape in enumerate(group)) for g, group in enumerate(grouped)
    )


def numbered(groups: tuple[tuple[Param, ...], ...], keys: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    """Every element of every entry is another number."""
    entries: dict[str, dict[str, Tensor]] = {}
    for number, key in enumerate(keys):
        first = 10_000.0 * number
        entries[key] = {}
        for p in (p for group in groups for p in group):
            entries[key][p.name] = torch.arange(first, first + p.numel).view(p.shape)
            first += p.numel
    return entries


@settings(max_examples=200, deadline=None)
@given(groups_of_shapes, sizes, sizes, stretch_numels, st.sampled_from(sorted(KEYS)))
def test_cut_anew_equals_cut_from_the_whole(
    grouped: list[list[tuple[int, ...]]], old: tuple[int, int], new: tuple[int, int], stretch: int, name: str
) -> None:
    """Any stages, 1 to 8 processes; what stood in the padding (NaN here) comes through nowhere."""
    groups = some_params(grouped)
    before, now = (Layout(groups=groups, stage=s, world_size=n, sub_group_numel=stretch) for s, n in (old, new))
    entries = numbered(groups, KEYS[name])
    saved = [optimizer_state(before, part, entries, math.nan) for part in range(before.parts)]
    whole_shapes = [p.shape for group in groups for p in group]
    for part in range(now.parts):
        got = recut_optimizer(before, now, part, saved.__getitem__)
        expected = optimizer_state(now, part, entries, 0.0)
        assert got["param_groups"] == expected["param_groups"]
        assert got["state"].keys() == expected["state"].keys()
        for number, values in expected["state"].items():
            assert got["state"][number].keys() == values.keys()
            for key, value in values.items():
                whole = now.stage == 0 and key != "step"
                assert torch.equal(got["state"][number][key], value.view(whole_shapes[number]) if whole else value)
        first = next(iter(entries.values()))
        for mine, flat in zip(
            cut_weights(now, part, first.__getitem__), flat_state(now, part, first, 0.0), strict=True
        ):
            assert torch.equal(mine, flat)


@settings(max_examples=50, deadline=None)
@given(groups_of_shapes, st.lists(sizes, min_size=2, max_size=5), stretch_numels)
def test_a_chain_of_layouts_ends_where_it_began(
    grouped: list[list[tuple[int, ...]]], chain: list[tuple[int, int]], stretch: int
) -> None:
    groups = some_params(grouped)
    begin, *others = (Layout(groups=groups, stage=s, world_size=n, sub_group_numel=stretch) for s, n in chain)
    entries = numbered(groups, KEYS["adamw"])
    original = [optimizer_state(begin, part, entries, 0.0) for part in range(begin.parts)]
    states, before = original, begin
    for now in (*others, begin):
        states = [recut_optimizer(before, now, part, states.__getitem__) for part in range(now.parts)]
        before = now
    for mine, first in zip(states, original, strict=True):
        for number, values in first["state"].items():
            assert all(torch.equal(mine["state"][number][k].flatten(), v.flatten()) for k, v in values.items())


GROUPS = ((Param(name="a", shape=(3, 2)), Param(name="b", shape=(4,))), (Param(name="c", shape=()),))


def layout(stage: int, world_size: int) -> Layout:
    return Layout(groups=GROUPS, stage=stage, world_size=world_size, sub_group_numel=100)


def whole_entries(keys: tuple[str, ...] = KEYS["adamw"]) -> dict[str, dict[str, Tensor]]:
    return {key: {p.name: torch.rand(p.shape) for group in GROUPS for p in group} for key in keys}


def test_what_is_not_touched_is_not_read() -> None:
    before, now, read = layout(1, 4), layout(1, 2), []
    saved = [optimizer_state(before, part, whole_entries(), 0.0) for part in range(4)]

    def reading(part: int) -> OptimizerState:
        read.append(part)
        return saved[part]

    recut_optimizer(before, now, 1, reading)
    assert read == [0, 1, 2]  # elements 6 to 9 of 10 in shares of 4; rank 0 for the settings of the groups


def test_a_state_before_the_first_update_is_empty() -> None:
    saved = optimizer_state(layout(2, 2), 0, {}, 0.0) | {"state": {}}
    assert recut_optimizer(layout(2, 2), layout(3, 3), 1, lambda _: saved)["state"] == {}


def test_states_that_do_not_fit_are_refused() -> None:
    before, now = layout(0, 1), layout(1, 2)
    good = optimizer_state(before, 0, whole_entries(), 0.0)
    for change, message in (
        ({1: {}}, r"state of b has the entries \[\], other parameters of its group \['exp_avg', .*continue with"),
        ({1: good["state"][1] | {"step": torch.tensor(3.0)}}, "step of b is 3, of other parameters of its group 7"),
        ({1: good["state"][1] | {"exp_avg": torch.zeros(5)}}, r"exp_avg around b has 5 elements, expected 4"),
    ):
        bad = good | {"state": good["state"] | change}
        with pytest.raises(CheckpointError, match=message):
            cut_for_both(before, now, bad)


def cut_for_both(before: Layout, now: Layout, state: OptimizerState) -> None:
    for part in range(2):
        recut_optimizer(before, now, part, lambda _: state)


def test_other_parameters_are_refused_by_name(tmp_path: Path) -> None:
    now, engine = layout(1, 3), {"zero_stage": 1, "world_size": 2}
    same = saved_layout({"engine": engine, "parameters": json.loads(json.dumps(now.record()))}, now, tmp_path)
    assert same == layout(1, 2)
    assert saved_layout({"engine": engine}, now, tmp_path) == layout(1, 2)  # early checkpoints name no parameters
    for record, message in (
        ([["a 3x2", "b 5"], ["c scalar"]], "b 5 in the checkpoint, b 4 now"),
        (
            [["a 3x2"], ["c scalar"]],
            "2 parameters in 2 groups and now has 3 in 2 .*c scalar in the checkpoint, b 4 now",
        ),
        ([["a 3x2", "b 4", "c scalar"]], "in 1 groups .*their groups"),
    ):
        with pytest.raises(CheckpointError, match=message):
            saved_layout({"engine": engine, "parameters": record}, now, tmp_path)


def test_new_processes_draw_their_own_numbers() -> None:
    seen = set()
    for rank, step in ((0, 0), (1, 0), (0, 40), (1, 40), (0, 41)):
        seed_everything(3, rank, step)
        seen.add(tuple(get_rng_state()["numpy"][1][:4]))
        state = torch.get_rng_state()
        seed_everything(3, rank, step)
        assert torch.equal(torch.get_rng_state(), state)
    assert len(seen) == 5


# ---- the real engine
@pytest.mark.parametrize("stretch", [10**9, 40])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_has_the_buffers_that_are_computed(
    stage: int, stretch: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deepspeed_config, "SUB_GROUP_NUMEL", stretch)
    monkeypatch.setattr("engine.zero.SUB_GROUP_NUMEL", stretch)
    objective = ToyObjective()
    optimizer = build_optimizer(objective, OptimConfig(decay_norms_and_biases=False), 0.1)
    config = EngineConfig(zero_stage=stage, device="cpu", zero3_persistent_numel=0)
    with quiet_deepspeed():
        engine = ZeroEngine(objective, optimizer, config, world, micro_batch_size=4)
        try:
            assert len(engine.layout.groups) == 2
            buffers = engine.layout.buffers(0)
            assert (len(buffers) > 2) == (stage in (0,) or (stage == 3 and stretch == 40))
            if stage > 0:
                sizes = [len(flat) for flat in engine.shard()[SHARD_KEYS[stage][1]]]
                assert sizes == [sum(p.numel for p in b.pieces) for b in buffers]
        finally:
            engine.close()


STAGES = (0, 1, 2, 3)
GLOBAL_BATCH, STEPS, STOP = 12, 8, 3


def job(run_dir: Path, stage: int, world_size: int, *, name: str = "sgd", **more: Any) -> dict[str, Any]:
    optim = {"name": name, "lr": 0.05 if name == "sgd" else 0.01, "decay_norms_and_biases": False}
    accumulation = more.pop("accumulation_steps", 1)
    engine = {"zero_stage": stage, "clip_norm": 0.5, "accumulation_steps": accumulation} | more.pop("engine", {})
    return {
        "run_dir": str(run_dir),
        "settings": {
            "engine": engine,
            "optim": optim,
            "schedule": {"steps": more.pop("steps", STEPS)},
            "checkpoint": {"every_steps": STOP, "keep": 9},
            "monitor": {"log_every": more.pop("log_every", 1)},
        },
        "source": {"micro_batch_size": GLOBAL_BATCH // world_size // accumulation},
    } | more


def assert_continues(cut: Path, whole: Path) -> float:
    """Same losses and weights within the tolerance; gives the largest relative difference of a loss."""
    assert [line["step"] for line in metrics(cut)] == list(range(1, STEPS + 1))
    assert losses(cut)[:STOP] == losses(whole)[:STOP]
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-5)
    expected, got = weights(whole), weights(cut)
    # In front of BatchNorm a bias has no effect, so its gradient is rounding, which AdamW blows up to whole steps.
    free = {"backbone.first.bias", "backbone.norm.running_mean"} if "adamw" in cut.name else set()
    for name, value in expected.items():
        if name not in free:
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5, msg=f"{cut.name}: {name}")
    return max(abs(a / b - 1) for a, b in zip(losses(cut), losses(whole), strict=True))


@pytest.mark.slow
def test_two_processes_go_on_as_one(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At each stage, and from each stage to another; a window of metrics that spans the change."""
    moves = [(stage, stage) for stage in STAGES] + [(0, 3), (3, 0), (1, 3), (3, 2), (2, 1)]
    logs = job(tmp_path / "window", 1, 2, log_every=4)
    finish(spawn([job(tmp_path / f"whole{stage}", stage, 2) for stage in STAGES] + [logs], world_size=2))
    with caplog.at_level(logging.INFO, logger="tandem"):
        for before, after in moves:
            cut = stop_at(tmp_path / f"whole{before}", tmp_path / f"{before}to{after}", STOP)
            run_toy(job(cut, after, 1))
            assert_continues(cut, tmp_path / f"whole{before}")
    assert "optimizer state of 2 processes at ZeRO stage 1 recut for 1 at stage 3" in caplog.text
    cut = stop_at(tmp_path / "window", tmp_path / "window1", STOP)
    run_toy(job(cut, 1, 1, log_every=4))
    assert [line["step"] for line in metrics(cut)] == [4, 8]
    assert losses(cut) == pytest.approx(losses(tmp_path / "window"), rel=1e-5)
    # Without the momentum of the run before, the losses are others: the test can fail.
    cut = stop_at(tmp_path / "whole1", tmp_path / "forgot", STOP)
    (saved,) = list_checkpoints(cut)
    state = read_state(saved)
    forget(saved)
    assert state["engine"]["world_size"] == 2
    run_toy(job(cut, 1, 1))
    assert losses(cut)[STOP:] != pytest.approx(losses(tmp_path / "whole1")[STOP:], rel=1e-3)


def forget(checkpoint: Path) -> None:
    """Empty the optimizer's state in a checkpoint's rank files."""
    for rank in range(2):
        content = read_rank_state(checkpoint, rank)
        content["shard"]["base_optimizer_state"]["state"] = {}
        torch.save(content, checkpoint / f"rank_{rank:04d}.pt")
    files = json.loads((checkpoint / "files.json").read_text())
    (checkpoint / "files.json").write_text(json.dumps({k: v for k, v in files.items() if "rank" not in k}))


@pytest.mark.slow
def test_two_processes_go_on_as_one_three_or_four(world: World, tmp_path: Path) -> None:
    """Stages 0 to 3, SGD with momentum and AdamW, 2 -> {1, 3, 4}; 2 -> 1 -> 3; other stages; native bf16."""
    kinds = [(stage, name) for stage in STAGES for name in KEYS]
    native: dict[str, Any] = {"engine": {"precision": "bf16_native"}, "objective": {"norm": False}}
    begun = [job(tmp_path / f"{name}{stage}", stage, 2, name=name) for stage, name in kinds]
    finish(spawn([*begun, job(tmp_path / "native", 2, 2, **native)], world_size=2))
    pairs: list[tuple[Path, Path]] = []

    def goes_on(before: str, cut: str, stage: int, size: int, name: str, step: int = STOP) -> dict[str, Any]:
        pairs.append((stop_at(tmp_path / before, tmp_path / cut, step), tmp_path / f"{before.split('-')[0]}"))
        return job(tmp_path / cut, stage, size, name=name)

    for size in (1, 3, 4):
        jobs = []
        for stage, name in kinds:
            jobs.append(goes_on(f"{name}{stage}", f"{name}{stage}-{size}", stage, size, name))
            if name == "adamw":
                other = (stage + 2) % 4
                jobs.append(goes_on(f"{name}{stage}", f"{name}{stage}-{size}-to{other}", other, size, name))
            elif size == 3:
                jobs.append(goes_on(f"{name}{stage}-1", f"{name}{stage}-1-3", stage, size, name, 2 * STOP))
        jobs.append(job(stop_at(tmp_path / "native", tmp_path / f"native-{size}", STOP), 3, size, **native))
        if size == 1:  # here: a process less to start
            for here in jobs:
                run_toy(here)
        else:
            finish(spawn(jobs, world_size=size), timeout_s=200)
    worst = max(assert_continues(cut, whole) for cut, whole in pairs)
    assert len(pairs) == 3 * 8 + 3 * 4 + 4
    print(f"largest relative difference of a loss: {worst:.1e}")
    for size in (1, 3, 4):  # products in bf16: the order of sums shows
        assert losses(tmp_path / f"native-{size}") == pytest.approx(losses(tmp_path / "native"), rel=0.02)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_new_settings_of_the_optimizer_take_effect(
    stage: int, world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_toy(job(tmp_path / "whole", 0, 1))
    caplog.clear()
    same = job(stop_at(tmp_path / "whole", tmp_path / "same", STOP), stage, 1)
    run_toy(same)
    assert_continues(tmp_path / "same", tmp_path / "whole")
    assert "settings change" not in caplog.text
    other = job(stop_at(tmp_path / "whole", tmp_path / "other", STOP), stage, 1)
    other["settings"]["optim"]["momentum"] = 0.0
    run_toy(other)
    assert "the optimizer's settings change from here on: momentum 0.9 -> 0.0" in caplog.text
    assert losses(tmp_path / "other")[STOP + 1 :] != pytest.approx(losses(tmp_path / "whole")[STOP + 1 :], rel=1e-3)


def test_accumulation_in_the_place_of_processes(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One process, twice 6 samples: the order of samples stays, the statistics of BatchNorm do not."""
    plain: dict[str, Any] = {"objective": {"norm": False}}
    run_toy(job(tmp_path / "whole", 1, 1, **plain))
    run_toy(job(stop_at(tmp_path / "whole", tmp_path / "cut", STOP), 1, 1, accumulation_steps=2, **plain))
    assert_continues(tmp_path / "cut", tmp_path / "whole")
    assert "12 samples is now made of 2 micro-batches instead of 1: negatives and BatchNorm" in caplog.text
    assert "come from 6 samples instead of 12" in caplog.text
