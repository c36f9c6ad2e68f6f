"""A plan as tables: name, figure, how to read it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launchers.drawing.set_summary import human_bytes
from launchers.planning import arithmetic, storage
from launchers.planning.figures import DAY_S, Plan


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: what.
        value: number for scripts; None if not known.
        text: for people.
        note: how to read it.
    """

    name: str
    value: int | float | None
    text: str
    note: str = ""


def sections(plan: Plan) -> dict[str, list[Row]]:
    """All figures, by section."""
    return {
        "batches": _batches(plan),
        "reading": _reading(plan),
        "memory a process": _memory(plan),
        "network, each process": _network(plan),
        "checkpoints": _checkpoints(plan),
        "time": _time(plan),
    }


def _batches(plan: Plan) -> list[Row]:
    run = plan.run
    return [
        _count("processes", run.world_size, f"{run.nodes} nodes x {run.processes_per_node}"),
        _count(
            "samples an update",
            run.global_batch,
            f"{run.micro_batch_size} x {run.accumulation_steps} micro-batches x {run.world_size}",
        ),
        _count("samples an epoch", plan.data.samples),
        Row("samples a process, epoch", s := plan.data.samples / run.world_size, f"{s:,.1f}"),
        Row("updates an epoch", plan.steps_per_epoch, f"{plan.steps_per_epoch:,.1f}"),
        _count("updates", run.num_steps),
        Row("learning rate x", plan.course.lr_factor, f"{plan.course.lr_factor:g}", "by the linear rule"),
    ]


def _reading(plan: Plan) -> list[Row]:
    read, data = storage.reading(plan.data, plan.run), plan.data
    rate = plan.samples_per_s
    rows = [
        _count("readers", plan.run.readers, f"{plan.run.workers} loader workers a process"),
        _count("samples in flight", read.in_flight, "in training or made ready"),
    ]
    if data.shards is not None and read.shards_open is not None and read.readers_per_shard is not None:
        rows += [
            _count("shards", data.shards, f"{data.samples / data.shards:,.0f} samples each"),
            _count("shards open at once", read.shards_open, f"{read.readers_per_shard:.1f} readers each"),
        ]
    return [
        *rows,
        _bytes("read a sample", data.bytes_per_sample),
        _rate("read, all processes", None if rate is None else rate * data.bytes_per_sample),
        _rate("read, each node", None if rate is None else rate * data.bytes_per_sample / plan.run.nodes),
        _per_s("reads", rate),
        _per_s("file opens", None if rate is None else rate * read.opens_per_sample),
        _bytes("order of samples, each node", read.order_bytes_per_node, "two epochs in every reader"),
    ]


def _memory(plan: Plan) -> list[Row]:
    used = arithmetic.memory(plan.model, plan.run)
    return [
        _count("trainable parameters", plan.model.trainable),
        _bytes("weights", used.weights),
        _bytes("frozen weights, buffers", used.frozen),
        _bytes("gradients", used.gradients),
        _bytes("fp32 copy, its share", used.masters),
        _bytes("optimizer, its share", used.optimizer),
        _bytes("ZeRO's buckets", used.buckets),
        _bytes("together", used.total, "without activations"),
    ]


def _network(plan: Plan) -> list[Row]:
    sent = arithmetic.traffic(plan.model, plan.run)
    rate = None if plan.step_s is None else sent.total / plan.step_s
    return [
        _bytes("gradients an update", sent.gradients),
        _bytes("weights an update", sent.weights),
        _bytes("BatchNorm an update", sent.norms, f"{sent.small_collectives} small collectives: latency counts"),
        _bytes("negatives an update", sent.negatives),
        _rate("together", rate),
        _duration("at full bandwidth, update", plan.network_s, "if nothing overlaps; included in the times"),
    ]


def _checkpoints(plan: Plan) -> list[Row]:
    made = storage.checkpoint(plan.model, plan.run)
    best = None if plan.checkpoint_s is None else storage.best_interval_s(plan.checkpoint_s, plan.between_failures_s)
    every = plan.course.checkpoint_every_s
    lost = None
    if plan.checkpoint_s is not None and every is not None:
        lost = storage.lost_share(plan.checkpoint_s, every, plan.between_failures_s, plan.restart_s)
    return [
        _bytes("one checkpoint", made.total, f"{made.files} files"),
        _bytes("on disk", made.total * plan.course.keep, f"{plan.course.keep} kept"),
        _duration("writing one", plan.checkpoint_s, "and its sha256"),
        _duration("time between failures", plan.between_failures_s, f"{plan.gpu_hours_per_failure:,.0f} GPU-hours"),
        _duration("interval asked for", every),
        _duration("interval that loses least", best, "Young 1974"),
        Row("lost to both", lost, "–" if lost is None else f"{lost:.2%}", f"restart {plan.restart_s:.0f} s"),
    ]


def _time(plan: Plan) -> list[Row]:
    step, train = plan.step_s, plan.train_s
    epochs = None if step is None else DAY_S / (step * plan.steps_per_epoch)
    gpu_hours = None if train is None else train / 3600 * plan.run.world_size
    return [
        _duration("an update", step, plan.step.source if plan.step is not None else ""),
        _per_s("samples", plan.samples_per_s),
        Row("epochs a day", epochs, "–" if epochs is None else f"{epochs:,.1f}"),
        _duration("whole run", train, "without failures and queueing"),
        Row("GPU-hours", gpu_hours, "–" if gpu_hours is None else f"{gpu_hours:,.1f}"),
    ]


def _count(name: str, value: int, note: str = "") -> Row:
    return Row(name, value, f"{value:,}", note)


def _bytes(name: str, value: float, note: str = "") -> Row:
    return Row(name, value, human_bytes(value), note)


def _rate(name: str, value: float | None, note: str = "") -> Row:
    return Row(name, value, "–" if value is None else f"{human_bytes(value)}/s", note)


def _per_s(name: str, value: float | None, note: str = "") -> Row:
    return Row(f"{name} a second", value, "–" if value is None else f"{value:,.1f}", note)


def _duration(name: str, seconds: float | None, note: str = "") -> Row:
    return Row(name, seconds, "–" if seconds is None else spoken(seconds), note)


def spoken(seconds: float) -> str:
    """E.g. "412 ms", "7.5 s", "12 min", "3.2 h", "4.1 days"."""
    for limit, unit, name in ((1.0, 1e-3, "ms"), (100.0, 1.0, "s"), (6000.0, 60.0, "min"), (2 * DAY_S, 3600.0, "h")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.0f} {name}" if value >= 100 or name == "ms" else f"{value:.1f} {name}"
    return f"{seconds / DAY_S:.1f} days" if math.isfinite(seconds) else "for ever"
