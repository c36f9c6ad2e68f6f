from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import AtomicCounter

from common.run_files import list_checkpoints
from engine import metric_names as names
from engine.checkpoint import load_weights
from engine.distributed import World
from engine.errors import CheckpointError, DivergenceError, DryBatchError
from engine.monitor import Monitor
from engine.pretrain import _draw, pretrain
from engine.zero import ZeroEngine, copy_buffers, spoilt_buffers
from tests.helpers.toy_objective import ToyBatch, ToyObjective, ToySource
from tests.helpers.toy_run import losses, metrics, run_toy, settings, weights

STAGES = (0, 1, 2, 3)

GOLDEN = (
    1.09308243,
    1.90062225,
    0.40108633,
    0.543931544,
    0.137916729,
    0.446254104,
    0.480819166,
    1.03930199,
    0.142304838,
    1.56035936,
    1.04895782,
    0.467986315,
    1.00430441,
    1.16482759,
    0.218764663,
    0.674254954,
    0.613291502,
    0.74170804,
    0.343197972,
    0.38230592,
)


def job(run_dir: Path, stage: int = 0, **more: Any) -> dict[str, Any]:
    """A job; `engine` and `schedule` entries of `more` add to the defaults."""
    parts = {"engine": {"zero_stage": stage} | more.pop("engine", {}), "schedule": more.pop("schedule", {})}
    parts["checkpoint"] = more.pop("checkpoint", {})
    parts["optim"] = more.pop("optim", {})
    return {"run_dir": str(run_dir), "settings": parts} | more


def reference_losses(steps: int, *, lr: float = 0.1, micro: int = 4, clip: float = 0.0) -> list[float]:
    """The same training in ten lines of plain torch."""
    objective, source, result = ToyObjective(), ToySource(micro_batch_size=micro), []
    optimizer = torch.optim.SGD(
        [p for p in objective.parameters() if p.requires_grad], momentum=0.9, dampening=0.1, weight_decay=1e-4
    )
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 + np.cos(np.pi * step / steps)) / 2
        loss = objective(source.batch(step)).total
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(objective.parameters(), clip)
        optimizer.step()
        result.append(float(loss.detach()))
    return result


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_every_stage_trains_like_plain_torch(world: World, tmp_path: Path, stage: int, clip: float) -> None:
    summary = run_toy(job(tmp_path, stage, engine={"clip_norm": clip}))
    assert (summary.status, summary.step, summary.skipped) == ("finished", 8, 0)
    assert losses(tmp_path) == pytest.approx(reference_losses(8, clip=clip), rel=1e-5)
    assert all(line[names.GRAD_NORM] > 0 for line in metrics(tmp_path))


def test_golden_run(world: World, tmp_path: Path) -> None:
    """20 deterministic steps. A change of these numbers is a change of the engine's arithmetic: say so in CHANGELOG."""
    run_toy(job(tmp_path, schedule={"steps": 20, "warmup_steps": 3}, engine={"clip_norm": 1.0}))
    assert losses(tmp_path) == pytest.approx(GOLDEN, rel=1e-5)


def test_names_in_the_weights_are_the_objectives_own(world: World, tmp_path: Path) -> None:
    run_toy(job(tmp_path, 3))
    fresh = ToyObjective()
    assert weights(tmp_path).keys() == fresh.state_dict().keys()
    fresh.load_state_dict(weights(tmp_path))
    assert torch.equal(fresh.teacher.weight, ToyObjective().teacher.weight)
    backbone = load_weights(tmp_path, prefix="backbone.")
    assert backbone.keys() == fresh.backbone.state_dict().keys()
    with pytest.raises(CheckpointError, match=r"'encoder.'; the file holds backbone, head, scale, teacher"):
        load_weights(tmp_path, prefix="encoder.")


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_equals_a_big_batch(world: World, tmp_path: Path, stage: int) -> None:
    """Without BatchNorm, whose statistics are those of the micro-batch."""
    run_toy(job(tmp_path / "big", stage, objective={"norm": False}, source={"micro_batch_size": 8}))
    small = {"accumulation_steps": 4, "clip_norm": 0.5}
    run_toy(job(tmp_path / "small", stage, objective={"norm": False}, source={"micro_batch_size": 2}, engine=small))
    run_toy(
        job(
            tmp_path / "big2",
            stage,
            objective={"norm": False},
            source={"micro_batch_size": 8},
            engine={"clip_norm": 0.5},
        )
    )
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "big2"), rel=1e-5)
    assert losses(tmp_path / "big") != pytest.approx(losses(tmp_path / "big2"), rel=1e-3)  # clipping does something


@pytest.mark.parametrize(("stage", "optimizer"), [(0, "sgd"), (0, "adamw"), (1, "adamw"), (2, "sgd"), (3, "adamw")])
def test_a_resumed_run_is_bit_identical(world: World, tmp_path: Path, stage: int, optimizer: str) -> None:
    """Drop-out draws from the random state, momentum and BatchNorm carry history, accumulation spans batches."""
    more: dict[str, Any] = {
        "objective": {"dropout": 0.3},
        "engine": {"accumulation_steps": 2},
        "optim": {"name": optimizer, "lr": 0.01},
        "checkpoint": {"every_steps": 3},
    }
    run_toy(job(tmp_path / "whole", stage, **more))
    broken = tmp_path / "broken"
    run_toy(job(broken, stage, **more))
    for interrupted_after in (3, 6):  # as if the process had died between this checkpoint and the next
        for path in list_checkpoints(broken):
            if int(path.name[5:]) > interrupted_after:
                shutil.rmtree(path)
        run_toy(job(broken, stage, **more))
        assert losses(broken) == losses(tmp_path / "whole")
        for name, value in weights(tmp_path / "whole").items():
            assert torch.equal(weights(broken)[name], value), name


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_run_begun_without_the_fused_form_goes_on(
    world: World, tmp_path: Path, stage: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The state is the same; the last bits differ, and no setting counts as changed."""
    more: dict[str, Any] = {"optim": {"name": "adamw", "lr": 0.01}, "checkpoint": {"every_steps": 4}}
    monkeypatch.setattr("engine.optim.fused", lambda params: False)
    run_toy(job(tmp_path / "before", stage, **more))
    cut = shutil.copytree(tmp_path / "before", tmp_path / "cut")
    shutil.rmtree(next(path for path in list_checkpoints(cut) if path.name == "step_00000008"))
    monkeypatch.undo()
    run_toy(job(cut, stage, **more))
    assert losses(cut) == pytest.approx(losses(tmp_path / "before"), rel=1e-5)
    assert "settings change" not in caplog.text


def test_the_log_window_survives_an_interruption(world: World, tmp_path: Path) -> None:
    def settings_for(run_dir: Path) -> dict[str, Any]:
        made = job(run_dir, checkpoint={"every_steps": 2})
        made["settings"]["monitor"] = {"log_every": 5}
        return made

    run_toy(settings_for(tmp_path / "whole"))
    run_toy(settings_for(tmp_path / "broken"))
    for path in list_checkpoints(tmp_path / "broken")[:-1]:
        shutil.rmtree(path)
    assert list_checkpoints(tmp_path / "broken")[0].name == "step_00000004"
    run_toy(settings_for(tmp_path / "broken"))
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert [line["step"] for line in metrics(tmp_path / "broken")] == [5, 8]


def test_a_finished_run_returns_at_once(world: World, tmp_path: Path) -> None:
    run_toy(job(tmp_path))
    before = losses(tmp_path)
    summary = run_toy(job(tmp_path))
    assert summary.status == "finished"
    assert losses(tmp_path) == before


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_nonfinite_step_is_as_if_it_had_not_been(world: World, tmp_path: Path, stage: int, kind: str) -> None:
    """Micro-step 5 of 2 a step spoils step 3 (from 1): weights, momentum and running statistics must not move."""
    more: dict[str, Any] = {
        "engine": {"accumulation_steps": 2},
        "schedule": {"steps": 3, "kind": "constant"},
        "checkpoint": {"every_steps": 2},
    }
    run_toy(job(tmp_path / "bad", stage, source={"trouble": {5: kind}}, **more))
    good = load_weights(tmp_path / "bad" / "checkpoints" / "step_00000002")
    after = load_weights(tmp_path / "bad" / "checkpoints" / "step_00000003")
    for name, value in good.items():
        assert torch.equal(after[name], value), name

    # ... and the gradient of the spoilt step is not left over for the next one.
    more["schedule"] = {"steps": 5, "kind": "constant"}
    summary = run_toy(job(tmp_path / "longer", stage, source={"trouble": {2: kind}}, **more))
    assert summary.skipped == 1
    objective, source = ToyObjective(), ToySource()
    optimizer = torch.optim.SGD(
        [p for p in objective.parameters() if p.requires_grad], lr=0.1, momentum=0.9, dampening=0.1, weight_decay=1e-4
    )
    expected = []
    for step in (0, 2, 3, 4):
        optimizer.zero_grad()
        pair = [objective(source.batch(2 * step + i)).total / 2 for i in range(2)]
        (pair[0] + pair[1]).backward()
        optimizer.step()
        expected.append(sum(float(loss.detach()) for loss in pair))
    lines = metrics(tmp_path / "longer")
    assert [line["train/loss"] for line in lines if "train/loss" in line] == pytest.approx(expected, rel=1e-5)
    assert "train/loss" not in lines[1]
    assert [line[names.SKIPPED] for line in lines] == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("stage", [0, 2])
def test_statistics_that_are_not_finite_are_noticed_at_once(
    world: World, tmp_path: Path, stage: int, caplog: pytest.LogCaptureFixture
) -> None:
    """An infinite variance spoils neither loss nor gradient: without a look at the buffers it would stay for good."""
    more: dict[str, Any] = {"schedule": {"steps": 3, "kind": "constant"}, "checkpoint": {"every_steps": 2}}
    summary = run_toy(job(tmp_path, stage, source={"trouble": {2: "statistics"}}, **more))
    assert summary.skipped == 1
    good = load_weights(tmp_path / "checkpoints" / "step_00000002")
    after = load_weights(tmp_path / "checkpoints" / "step_00000003")
    assert all(torch.equal(after[name], value) for name, value in good.items())
    assert "running statistics not finite" in caplog.text
    assert "backbone.norm.running_var" in caplog.text


def test_buffers_that_were_never_finite_are_no_fault_of_an_update() -> None:
    module = torch.nn.BatchNorm1d(2)
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    module.register_buffer("large", torch.full((9,), 1e38))  # finite, though its sum is not
    before = copy_buffers(module)
    assert spoilt_buffers(module, before) == []
    module.running_mean[0] = torch.nan
    assert spoilt_buffers(module, before) == ["running_mean"]


def test_what_is_only_for_show_never_ends_a_run(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def pictures(*_: object) -> dict[str, np.ndarray]:
        raise torch.linalg.LinAlgError("of a network that has diverged")

    def add_scalar(*_: object) -> None:
        raise TypeError("of a package that does not fit")

    monkeypatch.setattr("torch.utils.tensorboard.writer.SummaryWriter.add_scalar", add_scalar)
    shown = settings(monitor={"picture_every": 4, "tensorboard": True})
    more: dict[str, Any] = {"micro_batch_size": 4, "fingerprint": {}, "resolved_config": {}, "pictures": pictures}
    assert pretrain(ToyObjective(), ToySource(), shown, tmp_path, **more).status == "finished"
    run_toy(job(tmp_path / "plain"))
    assert losses(tmp_path) == losses(tmp_path / "plain")
    assert caplog.text.count("no pictures, drawing them failed") == 2
    assert caplog.text.count("TensorBoard's file is not written any more (TypeError") == 1


def test_a_picture_that_other_ranks_draw_too_may_fail_on_none(world: World) -> None:
    """At ZeRO-3 they would wait for this rank's part of the weights."""

    def pictures(*_: object) -> dict[str, np.ndarray]:
        raise RuntimeError("no memory for pictures")

    engine, monitor = mock.create_autospec(ZeroEngine, instance=True), mock.create_autospec(Monitor, instance=True)
    engine.stage, engine.objective = 3, ToyObjective()
    engine.world = dataclasses.replace(world, rank=1, world_size=2)
    with pytest.raises(RuntimeError, match="no memory for pictures"):
        _draw(pictures, engine, ToySource().batch(0), 1, monitor)
    engine.world = world
    _draw(pictures, engine, ToySource().batch(0), 1, monitor)


def test_an_error_before_the_first_update_leaves_nothing_open(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    close = ZeroEngine.close

    class Source(ToySource):
        def batches(self, start: int) -> Iterator[ToyBatch]:
            try:
                yield from super().batches(start)
            finally:
                closed.append("stream")

    def noted(engine: ZeroEngine) -> None:
        closed.append("engine")
        close(engine)

    def fail(step: int) -> None:
        raise CheckpointError("config.yaml cannot be written")

    monkeypatch.setattr(ZeroEngine, "close", noted)
    more: dict[str, Any] = {"micro_batch_size": 4, "fingerprint": {}, "resolved_config": {}, "on_begin": fail}
    with pytest.raises(CheckpointError, match=r"config\.yaml cannot be written"):
        pretrain(ToyObjective(), Source(), settings(), tmp_path, **more)
    assert closed == ["stream", "engine"]


def test_tensorboard_of_a_resumed_run_is_that_of_an_undisturbed_one(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at the steps of the checkpoints that it was continued from, of which everything was logged before."""
    # Files of one second are read in the order of this number's text.
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer._global_uid", AtomicCounter(0))

    def train(run_dir: Path, steps: int) -> None:
        drawn = {"noise": np.zeros((4, 5, 3), dtype=np.uint8)}
        shown = settings(
            schedule={"steps": 8, "kind": "constant"},
            checkpoint={"every_steps": 3},
            monitor={"picture_every": 3, "tensorboard": True},
        )
        more: dict[str, Any] = {"micro_batch_size": 4, "fingerprint": {}, "resolved_config": {}}
        source = ToySource(trouble={steps: "kill"})
        objective = ToyObjective()
        pretrain(objective, source, shown, run_dir, pictures=lambda *_: drawn, **more)

    def seen(run_dir: Path) -> tuple[dict[str, list[tuple[int, float]]], list[int]]:
        events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
        tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("train/", "watch/"))]
        return (
            {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags},
            [e.step for e in events.Images("pictures/noise")],
        )

    train(tmp_path / "whole", 99)
    for killed_at in (5, 7):  # behind the checkpoints of steps 3 and 6
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", killed_at)
    train(tmp_path / "cut", 99)
    assert seen(tmp_path / "cut") == seen(tmp_path / "whole")
    timeless = [
        [{k: v for k, v in line.items() if k == "step" or k.startswith(("train/", "watch/"))} for line in metrics(r)]
        for r in (tmp_path / "cut", tmp_path / "whole")
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("stage", STAGES)
def test_divergence_stops_the_run_with_the_batch(world: World, tmp_path: Path, stage: int) -> None:
    trouble = {2: "loss", 3: "gradient", 4: "loss", 5: "loss"}
    with pytest.raises(
        DivergenceError, match=r"(?s)in 3 updates in a row, the last at step 5 .* rate .*loss nan.*s\d\d\d"
    ) as e:
        run_toy(job(tmp_path, stage, source={"trouble": trouble}, engine={"max_nonfinite_in_a_row": 3}))
    for key in ToySource().batch(4).keys:
        assert key in str(e.value)
    # Not in a row: fine.
    apart = {1: "loss", 3: "gradient", 5: "loss"}
    summary = run_toy(job(tmp_path / "b", stage, source={"trouble": apart}, engine={"max_nonfinite_in_a_row": 2}))
    assert summary.skipped == 3


def test_dry_batch_finds_errors_and_leaves_no_trace(world: World, tmp_path: Path) -> None:
    with pytest.raises(DryBatchError, match=r"out of memory .*4 samples.*data.micro_batch_size \(now 4\)"):
        run_toy(job(tmp_path, source={"trouble": {0: "memory"}}))
    with pytest.raises(DryBatchError, match=r"ValueError: a shape is wrong\); samples: s\d+"):
        run_toy(job(tmp_path, source={"trouble": {0: "error"}}))
    for dry in (True, False):
        run_toy(job(tmp_path / str(dry), objective={"dropout": 0.3}, engine={"dry_batch": dry}))
    assert losses(tmp_path / "True") == losses(tmp_path / "False")


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_autocast_keeps_fp32_weights(world: World, tmp_path: Path, stage: int) -> None:
    run_toy(job(tmp_path / "fp32", stage))
    run_toy(job(tmp_path / "bf16", stage, engine={"precision": "bf16"}))
    low, full = losses(tmp_path / "bf16"), losses(tmp_path / "fp32")
    assert low != full
    assert low == pytest.approx(full, rel=0.05, abs=0.02)
    stored = weights(tmp_path / "bf16")["head.weight"]
    assert stored.dtype == torch.float32
    assert not torch.equal(stored, stored.bfloat16().float())


@pytest.mark.parametrize("units", [(), ("AMX",)])
def test_bf16_without_units_for_it_is_said_to_be_slow(
    units: tuple[str, ...],
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("engine.pretrain.bf16_units", lambda _: units)
    run_toy(job(tmp_path, engine={"precision": "bf16"}, steps=1))
    assert ("engine.precision=bf16 is emulated" in caplog.text) == (not units)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_native_saves_and_resumes_its_master_weights(world: World, tmp_path: Path, stage: int) -> None:
    more: dict[str, Any] = {
        "objective": {"norm": False},
        "engine": {"precision": "bf16_native"},
        "checkpoint": {"every_steps": 4},
        "optim": {"lr": 0.01},
    }
    run_toy(job(tmp_path / "whole", stage, **more))
    run_toy(job(tmp_path / "broken", stage, **more))
    shutil.rmtree(list_checkpoints(tmp_path / "broken")[0])
    run_toy(job(tmp_path / "broken", stage, **more))
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    stored = weights(tmp_path / "whole")["head.weight"]
    assert not torch.equal(stored, stored.bfloat16().float())


@pytest.mark.parametrize("stage", STAGES)
def test_fp16_finds_its_loss_scale(world: World, tmp_path: Path, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where torch can autocast to fp16 too: the refusal is for speed and is lifted here."""
    monkeypatch.setattr("engine.pretrain.check_precision", lambda *_: None)
    # From 2^24 the first steps overflow; that search must not count as divergence.
    fp16 = {"precision": "fp16", "loss_scale_power": 24, "max_nonfinite_in_a_row": 1}
    summary = run_toy(job(tmp_path, stage, engine=fp16, schedule={"steps": 20, "kind": "constant"}))
    lines = metrics(tmp_path)
    assert 0 < summary.skipped < 15
    assert lines[-1][names.LOSS_SCALE] == 2.0 ** (24 - summary.skipped)
    applied = [line for line in lines if "train/loss" in line]
    assert all(0 < line[names.GRAD_NORM] < 100 for line in applied)  # unscaled
    assert applied[-1]["train/loss"] < 1.5


def test_runs_after_an_fp16_one_in_the_same_process(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages still agree; with two groups of parameters and clipping, which show a left-over GradScaler."""
    monkeypatch.setattr("engine.pretrain.check_precision", lambda *_: None)
    run_toy(job(tmp_path / "fp16", engine={"precision": "fp16", "loss_scale_power": 4}))
    for stage in (0, 1, 3):
        plain = {"engine": {"clip_norm": 0.5}, "optim": {"decay_norms_and_biases": False}}
        run_toy(job(tmp_path / str(stage), stage, **plain))
        assert losses(tmp_path / str(stage)) == pytest.approx(losses(tmp_path / "0"), rel=1e-5)


def test_pictures_are_drawn_without_a_trace(world: World, tmp_path: Path) -> None:
    drawn: list[int] = []

    def pictures(objective: torch.nn.Module, batch: ToyBatch, step: int) -> dict[str, np.ndarray]:
        objective.train(step == 4)
        objective(batch)
        torch.rand(3)
        assert not torch.is_grad_enabled()
        drawn.append(step)
        return {"noise": np.zeros((4, 5, 3), dtype=np.uint8)}

    for stage in (0, 3):
        run_dir = tmp_path / str(stage)
        pretrain(
            ToyObjective(dropout=0.3),
            ToySource(),
            settings(engine={"zero_stage": stage}, monitor={"picture_every": 4, "tensorboard": True}),
            run_dir,
            micro_batch_size=4,
            fingerprint={},
            resolved_config={},
            pictures=pictures,
        )
        run_toy(job(tmp_path / f"plain{stage}", stage, objective={"dropout": 0.3}))
        assert losses(run_dir) == losses(tmp_path / f"plain{stage}")
    assert drawn == [4, 8, 4, 8]
    event_file = next((tmp_path / "0" / "tensorboard").iterdir())
    events = EventAccumulator(str(event_file)).Reload()
    assert events.Tags()["images"] == ["pictures/noise"]
    recorded = [e.value for e in events.Scalars(names.LOSS)]
    assert recorded == pytest.approx(losses(tmp_path / "0"))


def test_metrics_tell_where_the_time_went(world: World, tmp_path: Path) -> None:
    run_toy(job(tmp_path, step_sleep_s=0.05, schedule={"steps": 4}))
    line = metrics(tmp_path)[2]
    assert 0.05 <= line[names.DATA_S] <= line[names.STEP_S]
    assert line[names.DATA_WAIT_SHARE] == pytest.approx(line[names.DATA_S] / line[names.STEP_S])
    assert line[names.DATA_WAIT_SHARE] > 0.3
    assert line[names.SAMPLES_PER_S] == pytest.approx(4 / line[names.STEP_S], rel=1e-3)
    assert line[names.POINTS_PER_S] == pytest.approx(10 * line[names.SAMPLES_PER_S], rel=1e-3)
    assert line[names.EPOCH] == pytest.approx(12 / 40)
    assert line["train/loss_fit"] == line["train/loss"]
    assert 0 < line["watch/contrastive_accuracy"] < 1
    assert line[names.RSS_GIB] > 0.05


def test_a_trivial_task_is_warned_of_once(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "TRIVIAL_ACCURACY", 0.0)
    with caplog.at_level(logging.WARNING):
        run_toy(job(tmp_path))
    assert sum("trivial" in r.message for r in caplog.records) == 1


def test_a_longer_schedule_warns_and_continues(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_toy(job(tmp_path, schedule={"steps": 4}))
    with caplog.at_level(logging.WARNING):
        summary = run_toy(job(tmp_path, schedule={"steps": 6}))
    assert summary.step == 6
    assert "had 4 updates and now has 6" in caplog.text


def test_minutes_make_checkpoints(world: World, tmp_path: Path) -> None:
    run_toy(job(tmp_path, step_sleep_s=0.03, checkpoint={"every_min": 0.05 / 60, "keep": 9}))
    assert len(list_checkpoints(tmp_path)) >= 3


def test_checkpoint_holds_config_and_versions(world: World, tmp_path: Path) -> None:
    run_toy(job(tmp_path))
    folder = list_checkpoints(tmp_path)[0]
    assert json.loads((folder / "config.json").read_text())["schedule"] == {}
    state = json.loads((folder / "state.json").read_text())
    assert state["versions"]["deepspeed"].startswith("0.19")
    assert state["source"] == {"position": 8, "seed": 0}
