"""The pre-training loop, for anything with an Objective.

`pretrain` reads top to bottom: what the run is, continue or begin, dry batch, then one update after another. Called
again on the same run folder it continues from the newest intact checkpoint, bit for bit (same processes, same code),
or, on another number of processes or at another ZeRO stage, within rounding (`docs/resume.md`); called on a finished
run it returns at once.

An update is skipped, on all ranks alike, when any rank's loss, a buffer that its forward pass moved (BatchNorm's
statistics) or the reduced gradient is not finite: gradients are dropped, buffers put back, the step and the stream of
data move on. What is only for show (collapse watch, pictures, TensorBoard) never ends a run,
but for a picture that fails at ZeRO-3, which all ranks draw together.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import UInt8
from torch import Tensor, nn

from engine import checkpoint as ckpt
from engine import metric_names as names
from engine.beginning import build_engine, continued, dry_batch
from engine.checkpoint_writer import CheckpointWriter
from engine.deepspeed_config import EngineConfig, check_precision, quiet_deepspeed
from engine.distributed import World, agree_max, agree_signal, init_distributed
from engine.errors import DivergenceError, StopRequested
from engine.heap import map_large_tensors
from engine.interfaces import BatchLike, BatchSource, ChecksEngine, CountsSkips, FollowsUpdates
from engine.measuring import Measurement, Measuring, owed
from engine.monitor import Monitor, Stopwatch, mean_of_each, peak_rss_gib
from engine.precision import bf16_units
from engine.preempt import StopSignals, name_of
from engine.rng import seed_everything
from engine.run_state import Plan, RunState
from engine.schedule import lr_scale, momentum_at
from engine.settings import PretrainSettings
from engine.watchdog import Watchdog
from engine.zero import ZeroEngine, copy_buffers, restore_buffers, spoilt_buffers, untouched

logger = logging.getLogger("tandem.pretrain")

Pictures = Callable[[nn.Module, Any, int], Mapping[str, UInt8[np.ndarray, "H W 3"]]]
"""(objective, batch, step) -> RGB images by name. Called without gradient, in eval mode; leaves no trace in the run."""


@dataclass(frozen=True, kw_only=True)
class PretrainSummary:
    """How a call of `pretrain` ended.

    Attributes:
        status: "finished", or "preempted" by a signal: start the same command again to continue.
        signal: name of that signal, on all ranks.
        step: updates done in all.
        num_steps: updates of the whole run.
        skipped: updates skipped because loss, running statistics or gradient were not finite.
        loss: mean of the last update that was applied, in this call or an earlier one; NaN if there was none.
        seconds: wall time of this call.
        peak_rss_gib: largest resident memory of this process (without workers).
        checkpoint: folder of the last checkpoint; its weights.safetensors is what evaluation reads.
    """

    status: Literal["finished", "preempted"]
    signal: str | None
    step: int
    num_steps: int
    skipped: int
    loss: float
    seconds: float
    peak_rss_gib: float
    checkpoint: Path


def pretrain(
    objective: nn.Module,
    source: BatchSource[BatchLike],
    settings: PretrainSettings,
    run_dir: str | Path,
    *,
    micro_batch_size: int,
    fingerprint: Mapping[str, Any],
    resolved_config: Mapping[str, Any],
    pictures: Pictures | None = None,
    measurement: Measurement | None = None,
    watchdog: Watchdog | None = None,
    on_begin: Callable[[int], None] | None = None,
) -> PretrainSummary:
    """Train an objective to the end of its schedule, or to a stop signal; returns how that went.

    Args:
        objective: forward(batch) gives total, parts, watch. At ZeRO-3 it is of no use afterwards: read the weights.
        source: this rank's micro-batches.
        settings: the run.
        run_dir: folder of the run, shared by all ranks.
        micro_batch_size: samples a rank in a forward pass.
        fingerprint: JSON values that must not change when a run continues (method, backbone, ...).
        resolved_config: JSON values written into every checkpoint.
        pictures: makes pictures from the batch at hand, see `Pictures`.
        measurement: is measured now and then, see `engine.measuring`; a run is finished when its last one is taken.
        watchdog: already watching; None: one of our own.
        on_begin: called on rank 0 with the updates done before, when nothing speaks against the first one any more: the
            checkpoint is this run's, and the dry batch went through.

    Raises:
        ValueError: settings that do not fit together, the machine or the objective.
        CheckpointError: the folder's checkpoints are damaged or of another model, or new ones cannot be written.
        StopRequested: a stop signal came before the first update.
        PeerLostError, PeerFailedError: see `engine.watchdog`.
        DryBatchError: forward or backward pass fails on the first batch.
        DivergenceError: too many skipped updates in a row.
    """
    began = time.perf_counter()
    run_dir = Path(run_dir)
    world = init_distributed(settings.engine.device, timeout_min=settings.engine.timeout_min)
    if world.device.type == "cpu":
        map_large_tensors()
    _check_engine(settings.engine, objective, world)
    plan = Plan.of(settings, source.samples_per_epoch, micro_batch_size, world)

    # --- continue or begin ---
    saved = ckpt.find_checkpoint(run_dir, world)
    if saved is None:
        run = RunState()
        seed_everything(settings.seed, world.rank)
    else:
        run = continued(saved, objective, source, plan, fingerprint)
    if measurement is not None:
        measurement.begin(run.step)
    if saved is not None and run.step >= plan.num_steps and not owed(measurement, run.step, num_steps=plan.num_steps):
        return _summary(run, plan, saved, None, began)

    with (
        quiet_deepspeed(),
        StopSignals() as signals,
        _watching(watchdog, settings.engine, world) as watch,
        ExitStack() as opened,
    ):
        engine = build_engine(objective, settings, plan, run, saved, world)
        opened.callback(engine.close)
        _stop_if_signalled(signals, world)
        stopwatch, checkpoints = Stopwatch(), CheckpointWriter(run_dir, settings.checkpoint, plan, engine, newest=saved)
        stream = _timed(source.batches(run.step * plan.accumulation_steps), world, stopwatch)
        opened.callback(stream.close)
        first = _first_batch(stream, engine, settings.engine, plan, run, watch)
        if on_begin is not None and world.is_main:
            on_begin(run.step)
        monitor = Monitor(run_dir, settings.monitor, world, step=run.step, num_steps=plan.num_steps)
        opened.callback(monitor.close)
        measuring = Measuring(measurement, engine, monitor, watch, signals, num_steps=plan.num_steps)
        batches, buffers, signal = chain([first], stream), None, measuring.take(run.step)
        del first  # its memory is needed
        stopwatch.restart()
        while run.step < plan.num_steps and signal is None:
            # --- gradients of one update: mean over micro-batches and ranks ---
            lr = plan.peak_lr * lr_scale(run.step, plan.num_steps, settings.schedule)
            momentum = momentum_at(run.step, plan.num_steps, settings.schedule)
            buffers = copy_buffers(objective, buffers)  # a forward pass moves them before the loss is known
            scalars, keys = dict[str, float](), list[str]()
            for micro in range(plan.accumulation_steps):
                watch.phase("data", run.step)
                batch = next(batches)
                watch.phase("forward", run.step)
                total, parts, collapse = engine.forward(batch)
                engine.backward(total, last=micro == plan.accumulation_steps - 1)
                _add(scalars, total, parts, collapse, plan.accumulation_steps)
                stopwatch.saw(batch.num_samples, batch.num_points)
                keys += batch.keys

            # --- decide together, then update or skip ---
            watch.phase("update", run.step)
            # One exchange for all; each holds for all ranks as soon as it holds for one.
            spoilt = spoilt_buffers(objective, buffers)
            bad = not math.isfinite(scalars[names.LOSS]), bool(spoilt)
            votes = (*bad, checkpoints.due_by_time(), signals.number)
            bad_loss, bad_buffer, due, number = agree_max([float(vote) for vote in votes], world)
            update = engine.discard() if bad_loss or bad_buffer else engine.update(lr, momentum)
            run.step += 1
            stopwatch.step()
            if update.applied:
                run.apply(scalars, update)
                if isinstance(objective, FollowsUpdates):
                    objective.after_update(run.step / plan.num_steps)
            else:
                what = "loss" if bad_loss else "running statistics" if bad_buffer else "gradient"
                restore_buffers(objective, buffers)
                run.skip(what, update, keys, spoilt)
                if run.nonfinite_in_a_row >= settings.engine.max_nonfinite_in_a_row:
                    raise _divergence(run, what, scalars[names.LOSS], lr, keys, world)

            # --- log ---
            last, metrics = run.step == plan.num_steps, None
            if last or run.step % settings.monitor.log_every == 0:
                metrics = _metrics(run, plan, lr, source, stopwatch, engine)
                monitor.log(run.step, metrics)
            monitor.advance(run.step, metrics)
            if pictures is not None and settings.monitor.picture_due(run.step, last=last):
                watch.phase("pictures", run.step)
                _draw(pictures, engine, batch, run.step, monitor)

            # --- checkpoint, then measure ---
            signal = name_of(int(number))
            must = last or signal is not None
            if must or due or settings.checkpoint.due(run.step) or measuring.due(run.step):
                watch.phase("checkpoint", run.step)
                checkpoints.write(run, source, fingerprint, resolved_config, must=must)
            if signal is None:
                signal = measuring.take(run.step)
        watch.phase("end", run.step)
    assert checkpoints.newest is not None  # the last update and a stop both save
    stopped = signal is not None and owed(measurement, run.step, num_steps=plan.num_steps)
    return _summary(run, plan, checkpoints.newest, signal, began, stopped=stopped)


# ---- parts of `pretrain`, in the order of their use


def _check_engine(config: EngineConfig, objective: nn.Module, world: World) -> None:
    """Refuse a stage or precision that the machine or the objective cannot do."""
    check_precision(config, objective, world.device)
    if config.precision == "bf16" and world.is_main and not bf16_units(world.device):
        logger.warning(
            "engine.precision=bf16 is emulated on this device, and slower than fp32, with image networks by far; "
            "engine.precision=auto takes what is faster where a run begins"
        )
    if isinstance(objective, ChecksEngine):
        objective.check_engine(zero_stage=config.zero_stage, precision=config.precision)


def _watching(given: Watchdog | None, config: EngineConfig, world: World) -> AbstractContextManager[Watchdog]:
    if given is not None:
        return nullcontext(given)  # whoever began it ends it
    return Watchdog(world, heartbeat_s=config.heartbeat_s, stall_min=config.stall_min)


def _stop_if_signalled(signals: StopSignals, world: World) -> None:
    """Leave on all ranks when one got a stop signal by now: nothing has to be saved yet."""
    received = agree_signal(signals, world)
    if received is not None:
        raise StopRequested(received)


def _timed(batches: Iterator[BatchLike], world: World, stopwatch: Stopwatch) -> Generator[BatchLike, None, None]:
    """The same batches on the run's device; the time that each kept us waiting goes to the stopwatch."""
    try:
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                raise RuntimeError("the batch source ended; BatchSource.batches() must be endless") from None
            stopwatch.waited(time.perf_counter() - began)
            yield batch.to(world.device)
    finally:
        if isinstance(batches, Generator):
            batches.close()  # ends the loader's workers now, not when memory is collected


def _first_batch(
    stream: Iterator[BatchLike], engine: ZeroEngine, config: EngineConfig, plan: Plan, run: RunState, watch: Watchdog
) -> BatchLike:
    """The first batch, tried out if so configured."""
    watch.phase("data", run.step)
    batch = next(stream)
    watch.phase("forward", run.step)
    if config.dry_batch:
        dry_batch(engine, batch, plan.parallelism["micro_batch_size"])
    return batch


def _add(
    scalars: dict[str, float], total: Tensor, parts: Mapping[str, Tensor], collapse: Mapping[str, Tensor], count: int
) -> None:
    """Add a micro-batch's scalars to the means over `count` of them."""
    values = {names.LOSS: total.detach()}
    values |= {names.LOSS_PART + name: part for name, part in parts.items()}
    values |= {names.WATCH + name: value for name, value in collapse.items()}
    for name, value in values.items():
        scalars[name] = scalars.get(name, 0.0) + float(value) / count


def _divergence(run: RunState, what: str, loss: float, lr: float, keys: list[str], world: World) -> DivergenceError:
    """The error that ends a diverged run; names the batches of all ranks."""
    mine = f"rank {world.rank}: loss {loss}, samples {', '.join(keys)}"
    lines: list[str] = [mine]
    if world.world_size > 1:
        gathered: list[Any] = [None] * world.world_size
        dist.all_gather_object(gathered, mine)
        lines = gathered
    text = "\n  ".join(lines)
    return DivergenceError(
        f"{what} not finite in {run.nonfinite_in_a_row} updates in a row, the last at step {run.step} with learning "
        f"rate {lr:.4g}:\n  {text}\nlower optim.lr, lengthen schedule.warmup_steps or set engine.clip_norm; if it is "
        "always the same samples, look at them with `tandem inspect`"
    )


def _metrics(
    run: RunState, plan: Plan, lr: float, source: BatchSource[BatchLike], stopwatch: Stopwatch, engine: ZeroEngine
) -> dict[str, float]:
    """A log line; all ranks call it, and a new window begins."""
    world = engine.world
    metrics = run.window.means(world) | stopwatch.read(world)
    metrics |= {names.LR: lr, names.SKIPPED: float(run.skipped)}
    metrics |= {names.EPOCH: run.step * plan.global_batch_size / source.samples_per_epoch}
    if isinstance(source, CountsSkips):
        skipped = mean_of_each({"all": float(sum(source.counters.values()))}, world)
        metrics[names.DATA_SKIPPED] = skipped["all"] * world.world_size
    if plan.parallelism["precision"] == "fp16":
        metrics[names.LOSS_SCALE] = engine.loss_scale.value
    _warn_if_trivial(run, metrics)
    return metrics


def _warn_if_trivial(run: RunState, metrics: Mapping[str, float]) -> None:
    accuracy = metrics.get(names.WATCH + names.ACCURACY, 0.0)
    if accuracy > names.TRIVIAL_ACCURACY and metrics[names.EPOCH] <= 1 and not run.warned_trivial:
        run.warned_trivial = True
        logger.warning(
            "contrastive accuracy %.3f in the first epoch (step %d): the task is trivial and will teach little; "
            "more or harder negatives are needed (larger batch, finer superpixels, stronger augmentation)",
            accuracy,
            run.step,
        )


@torch.no_grad()
def _draw(pictures: Pictures, engine: ZeroEngine, batch: BatchLike, step: int, monitor: Monitor) -> None:
    # At ZeRO-3 a forward pass gathers weights from all ranks, so all must draw; rank 0 keeps its pictures.
    if engine.stage == 3 or engine.world.is_main:
        with untouched(engine.objective):
            engine.objective.eval()  # a synchronised norm in training mode would wait for the other ranks
            try:
                images = pictures(engine.objective, batch, step)
            except Exception:  # of whatever it may be: pictures are only for show
                if engine.stage == 3 and engine.world.world_size > 1:
                    raise  # the other ranks wait for this one's part of the weights
                logger.warning("step %d: no pictures, drawing them failed", step, exc_info=True)
                return
            monitor.pictures(step, images)


def _summary(
    run: RunState, plan: Plan, checkpoint: Path, signal: str | None, began: float, *, stopped: bool = False
) -> PretrainSummary:
    """How a call ended; `stopped`: before its last measurement."""
    return PretrainSummary(
        status="finished" if run.step >= plan.num_steps and not stopped else "preempted",
        signal=signal,
        step=run.step,
        num_steps=plan.num_steps,
        skipped=run.skipped,
        loss=run.loss,
        seconds=time.perf_counter() - began,
        peak_rss_gib=peak_rss_gib(),
        checkpoint=checkpoint,
    )
