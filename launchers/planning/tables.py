"""A plan as tables: name, figure, how to read it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from launchers.drawing.set_tables import human_bytes
from launchers.planning import arithmetic, storage
from launchers.planning.figures import DAY_S, Plan


class PlanRow(NamedTuple):
    """One figure.

    Attributes:
        value: number for scripts; None if not known.
    """

    name: str
    value: int | float | None
    text: str
    note: str = ""


def sections(plan: Plan) -> dict[str, list[PlanRow]]:
    """All figures, by section."""
    return {
        "batches": _batches(plan),
        "reading": _reading(plan),
        "memory a process": _memory(plan),
        "network, each process": _network(plan),
        "checkpoints": _checkpoints(plan),
        "time": _time(plan),
    }


def _row(name: str, value: int | float | None, text: Callable[[float], str], note: str = "") -> PlanRow:
    return PlanRow(name, value, "–" if value is None else text(value), note)


_count = "{:,}".format
_decimal = "{:,.1f}".format


def _rate(bytes_per_s: float) -> str:
    return f"{human_bytes(bytes_per_s)}/s"


def _batches(plan: Plan) -> list[PlanRow]:
    run, samples = plan.run, plan.data.samples
    parts = f"{run.micro_batch_size} x {run.accumulation_steps} micro-batches x {run.world_size}"
    return [
        _row("processes", run.world_size, _count, f"{run.nodes} nodes x {run.processes_per_node}"),
        _row("samples per update", run.global_batch, _count, parts),
        _row("samples per epoch", samples, _count),
        _row("samples per process", samples / run.world_size, _decimal, "in an epoch"),
        _row("updates per epoch", plan.steps_per_epoch, _decimal),
        _row("updates", run.num_steps, _count),
        _row("learning rate x", run.lr_factor, "{:g}".format, "by the linear rule"),
    ]


def _reading(plan: Plan) -> list[PlanRow]:
    read, data, rate = storage.reading(plan.data, plan.run), plan.data, plan.samples_per_s
    rows = [
        _row("readers", plan.run.readers, _count, f"{plan.run.workers} loader workers per process"),
        _row("samples in flight", read.in_flight, _count, "in training or made ready"),
    ]
    if data.shards is not None:
        rows += [
            _row("shards", data.shards, _count, f"{data.samples / data.shards:,.0f} samples each"),
            _row("shards open at once", read.shards_open, _count, f"{read.readers_per_shard:.1f} readers each"),
        ]
    bytes_per_s = None if rate is None else rate * data.bytes_per_sample
    return [
        *rows,
        _row("read per sample", data.bytes_per_sample, human_bytes),
        _row("read, all processes", bytes_per_s, _rate),
        _row("read, each node", None if bytes_per_s is None else bytes_per_s / plan.run.nodes, _rate),
        _row("reads a second", rate, _decimal),
        _row("file opens a second", None if rate is None else rate * read.opens_per_sample, _decimal),
        _row("order of samples, each node", read.order_bytes_per_node, human_bytes, "two epochs in every reader"),
    ]


def _memory(plan: Plan) -> list[PlanRow]:
    used = arithmetic.memory(plan.model, plan.run)
    return [
        _row("trainable parameters", plan.model.trainable, _count),
        _row("weights", used.weights, human_bytes),
        _row("frozen weights, buffers", used.frozen, human_bytes),
        _row("gradients", used.gradients, human_bytes),
        _row("fp32 copy, its share", used.masters, human_bytes),
        _row("optimizer, its share", used.optimizer, human_bytes),
        _row("ZeRO's buckets", used.buckets, human_bytes),
        _row("together", used.total, human_bytes, "without activations"),
    ]


def _network(plan: Plan) -> list[PlanRow]:
    sent, network_s = arithmetic.traffic(plan.model, plan.run), plan.network_s
    latency = f"{sent.small_collectives} small collectives: latency counts"
    return [
        _row("gradients an update", sent.gradients, human_bytes),
        _row("weights an update", sent.weights, human_bytes),
        _row("BatchNorm an update", sent.norms, human_bytes, latency),
        _row("negatives an update", sent.negatives, human_bytes),
        _row("together", None if plan.step_s is None else sent.total / plan.step_s, _rate),
        _row("at full bandwidth, update", network_s, spoken, "if nothing overlaps; included in the times"),
    ]


def _checkpoints(plan: Plan) -> list[PlanRow]:
    made, run = storage.checkpoint(plan.model, plan.run), plan.run
    taken, every, between_s = plan.checkpoint_s, run.checkpoint_every_s, plan.between_failures_s
    best = None if taken is None else storage.best_interval_s(taken, between_s)
    lost = None
    if taken is not None and every is not None:
        lost = storage.lost_share(taken, every, between_s, plan.restart_s)
    return [
        _row("one checkpoint", made.total, human_bytes, f"{made.files} files"),
        _row("on disk", made.total * run.keep, human_bytes, f"{run.keep} kept"),
        _row("writing one", taken, spoken, "and its sha256"),
        _row("time between failures", between_s, spoken, f"{plan.gpu_hours_per_failure:,.0f} GPU-hours"),
        _row("interval asked for", every, spoken),
        _row("interval that loses least", best, spoken, "Young 1974"),
        _row("lost to both", lost, "{:.2%}".format, f"restart {plan.restart_s:.0f} s"),
    ]


def _time(plan: Plan) -> list[PlanRow]:
    step, train = plan.step_s, plan.train_s
    return [
        _row("an update", step, spoken, plan.step.source if plan.step is not None else ""),
        _row("samples a second", plan.samples_per_s, _decimal),
        _row("epochs a day", None if step is None else DAY_S / (step * plan.steps_per_epoch), _decimal),
        _row("whole run", train, spoken, "without failures and queueing"),
        _row("GPU-hours", None if train is None else train / 3600 * plan.run.world_size, _decimal),
    ]


def spoken(seconds: float) -> str:
    """E.g. "412 ms", "7.5 s", "12 min", "3.2 h", "4.1 days"."""
    for limit, unit, name in ((1.0, 1e-3, "ms"), (100.0, 1.0, "s"), (6000.0, 60.0, "min"), (2 * DAY_S, 3600.0, "h")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.0f} {name}" if value >= 100 or name == "ms" else f"{value:.1f} {name}"
    return f"{seconds / DAY_S:.1f} days" if math.isfinite(seconds) else "for ever"
