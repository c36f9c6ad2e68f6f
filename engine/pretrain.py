"""The pre-training loop, for anything with an Objective.

`pretrain` reads top to bottom: what the run is, continue or begin, dry batch, then one update after another. Called
again on the same run folder it continues from the newest intact checkpoint, bit for bit (same processes, same code),
or, on another number of processes or at another ZeRO stage, within rounding (`docs/resume.md`); called on a finished
run it returns at once.

An update is skipped, on all ranks alike, when any rank's loss or the reduced gradient is not finite: gradients are
dropped, buffers (BatchNorm statistics) put back, the step and the stream of data move on.
"""

from __future__ import annotations

import logging
import math
import platform
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import UInt8
from torch import nn

from engine import checkpoint as ckpt
from engine import metric_names as names
from engine.checkpoint import CheckpointConfig
from engine.checkpoint_retry import CheckpointRetry
from engine.deepspeed_config import EngineConfig, check_precision, quiet_deepspeed
from engine.distributed import World, agree_max, agree_signal, init_distributed, mean_over_ranks
from engine.errors import DivergenceError, DryBatchError, StopRequested
from engine.interfaces import BatchLike, BatchSource, ChecksEngine, CountsSkips, FollowsUpdates
from engine.monitor import Monitor, MonitorConfig, Stopwatch, Window, peak_rss_gib, to_floats
from engine.optim import OptimConfig, build_optimizer, optimizer_name, peak_lr
from engine.preempt import StopSignals, name_of
from engine.reshard import check_continuable, cut_anew, saved_layout
from engine.rng import get_rng_state, seed_everything, set_rng_state
from engine.schedule import ScheduleConfig, lr_scale, lr_table, total_steps
from engine.sync_bn import convert_sync_batchnorm
from engine.watchdog import Watchdog
from engine.zero import Update, ZeroEngine, copy_buffers, restore_buffers, untouched

logger = logging.getLogger("tandem.pretrain")

Pictures = Callable[[nn.Module, Any, int], Mapping[str, UInt8[np.ndarray, "H W 3"]]]
"""(objective, batch, step) -> RGB images by name. Called without gradient, in eval mode; leaves no trace in the run."""


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """All that the engine wants to know about a run.

    Attributes:
        seed: of the random generators inside the objective (drop-out, sampling); each rank derives its own.
        engine: how a step runs.
        optim: optimizer.
        schedule: length and learning rate.
        checkpoint: when checkpoints are written.
        monitor: what is logged.
    """

    seed: int = 0
    engine: EngineConfig = field(default_factory=EngineConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)


@dataclass(frozen=True, kw_only=True)
class PretrainSummary:
    """How a call of `pretrain` ended.

    Attributes:
        status: "finished", or "preempted" by a signal: start the same command again to continue.
        signal: name of that signal, on all ranks.
        step: updates done in all.
        num_steps: updates of the whole run.
        skipped: updates skipped because loss or gradient was not finite.
        loss: mean of the last update that was applied in this call; NaN if there was none.
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


@dataclass(kw_only=True)
class _Run:
    """What changes from update to update and goes into checkpoints."""

    step: int = 0
    skipped: int = 0
    nonfinite_in_a_row: int = 0
    window: Window = field(default_factory=Window)
    warned_trivial: bool = False


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
    watchdog: Watchdog | None = None,
    on_resume: Callable[[int], None] | None = None,
) -> PretrainSummary:
    """Train an objective to the end of its schedule, or to a stop signal.

    Args:
        objective: forward(batch) gives total, parts, watch. At ZeRO-3 it is of no use afterwards: read the weights.
        source: this rank's micro-batches.
        settings: the run.
        run_dir: folder of the run, shared by all ranks.
        micro_batch_size: samples a rank in a forward pass.
        fingerprint: JSON values that must not change when a run continues (method, backbone, ...).
        resolved_config: JSON values written into every checkpoint.
        pictures: makes pictures from the batch at hand, see `Pictures`.
        watchdog: already watching; None: one of our own.
        on_resume: called on rank 0 with the updates done before, when the run continues from a checkpoint.

    Returns:
        How the run ended.

    Raises:
        ValueError: settings that do not fit together, the machine or the objective.
        CheckpointError: the folder's checkpoints are damaged or of another model, or new ones cannot be written.
        StopRequested: told to stop before the first update.
        PeerLostError, PeerFailedError: see `engine.watchdog`.
        DryBatchError: forward or backward pass fails on the first batch.
        DivergenceError: too many skipped updates in a row.
    """
    # --- what the run is ---
    began = time.perf_counter()
    run_dir = Path(run_dir)
    world = init_distributed(settings.engine.device, timeout_min=settings.engine.timeout_min)
    check_precision(settings.engine, objective, world.device)
    if isinstance(objective, ChecksEngine):
        objective.check_engine(zero_stage=settings.engine.zero_stage, precision=settings.engine.precision)
    accumulation_steps = settings.engine.accumulation_steps
    global_batch_size = micro_batch_size * world.world_size * accumulation_steps
    num_steps = total_steps(
        settings.schedule, samples_per_epoch=source.samples_per_epoch, global_batch_size=global_batch_size
    )
    peak = peak_lr(settings.optim, global_batch_size)
    layout = {
        "world_size": world.world_size,
        "micro_batch_size": micro_batch_size,
        "accumulation_steps": accumulation_steps,
        "zero_stage": settings.engine.zero_stage,
        "precision": settings.engine.precision,
        "optimizer": optimizer_name(settings.optim),
    }

    # --- continue or begin ---
    run = _Run()
    saved = ckpt.find_checkpoint(run_dir, world)
    if saved is not None:
        state = ckpt.read_state(saved)
        if on_resume is not None and world.is_main:
            on_resume(int(state["step"]))
        ckpt.check_same(state["fingerprint"], fingerprint, saved)
        if state["step"] >= num_steps:
            _load_weights(objective, saved)
            return _summary(
                "finished", None, int(state["step"]), num_steps, int(state["skipped"]), math.nan, began, saved
            )
        check_continuable(state, layout, saved)
        source.check_state(state["source"])
        _load_weights(objective, saved)
        if state["num_steps"] != num_steps:
            logger.warning(
                "the run had %d updates and now has %d: its learning rate curve changes from here on",
                state["num_steps"],
                num_steps,
            )
        run.step, run.skipped = int(state["step"]), int(state["skipped"])
        run.nonfinite_in_a_row, run.warned_trivial = int(state["nonfinite_in_a_row"]), bool(state["warned_trivial"])
    else:
        seed_everything(settings.seed, world.rank)
    if settings.engine.sync_bn and world.world_size > 1:
        convert_sync_batchnorm(objective)
    objective.to(world.device).train()

    with quiet_deepspeed(), StopSignals() as signals, _watching(watchdog, settings.engine, world) as watch:
        engine = ZeroEngine(
            objective,
            build_optimizer(objective, settings.optim, peak),
            settings.engine,
            world,
            micro_batch_size=micro_batch_size,
        )
        if saved is not None:
            _load_rank(engine, run, saved, state, settings.seed)
        elif world.is_main:
            logger.info("learning rate\n%s", lr_table(settings.schedule, num_steps, peak))

        told = agree_signal(signals, world)
        if told is not None:
            engine.close()
            raise StopRequested(told)
        stopwatch, keeper = Stopwatch(), CheckpointRetry(settings.checkpoint)
        buffers: dict[str, torch.Tensor] | None = None
        stream = _timed(source.batches(run.step * accumulation_steps), stopwatch)
        watch.phase("data", run.step)
        batch = next(stream).to(world.device)
        watch.phase("forward", run.step)
        if settings.engine.dry_batch:
            _dry_batch(engine, batch, micro_batch_size)
        monitor = Monitor(run_dir, settings.monitor, world, step=run.step, num_steps=num_steps)
        status: Literal["finished", "preempted"] = "finished"
        signal, last_saved, saved_at, last_loss = None, saved, time.monotonic(), math.nan
        stopwatch.restart()

        try:
            while run.step < num_steps:
                # --- gradients of one update: mean over micro-batches and ranks ---
                lr = peak * lr_scale(run.step, num_steps, settings.schedule)
                buffers = copy_buffers(objective, buffers)
                sums: dict[str, float] = {}
                seen: list[str] = []
                for micro in range(accumulation_steps):
                    if micro > 0:
                        watch.phase("data", run.step)
                        batch = next(stream).to(world.device)
                    watch.phase("forward", run.step)
                    total, parts, collapse = engine.forward(batch)
                    engine.backward(total, last=micro == accumulation_steps - 1)
                    scalars = {names.LOSS: float(total.detach())}
                    scalars |= to_floats(parts, names.LOSS_PART) | to_floats(collapse, names.WATCH)
                    for name, value in scalars.items():
                        sums[name] = sums.get(name, 0.0) + value / accumulation_steps
                    stopwatch.saw(batch.num_samples, batch.num_points)
                    seen += batch.keys

                # --- decide together, then update or skip ---
                minutes = (time.monotonic() - saved_at) / 60
                due = world.is_main and 0 < settings.checkpoint.every_min <= minutes
                watch.phase("update", run.step)
                votes = [float(not math.isfinite(sums[names.LOSS])), float(due), float(signals.number)]
                any_bad, any_due, number = agree_max(votes, world)
                loss_bad, due, signal = any_bad > 0, any_due > 0, name_of(int(number))
                if loss_bad:
                    engine.discard()
                    update = Update(applied=False, grad_norm=math.inf)
                else:
                    update = engine.update(lr)
                run.step += 1
                stopwatch.step()
                if update.applied:
                    if isinstance(objective, FollowsUpdates):
                        objective.after_update(run.step / num_steps)
                    run.nonfinite_in_a_row = 0
                    last_loss = sums[names.LOSS]
                    run.window.add(sums | {names.GRAD_NORM: update.grad_norm})
                else:
                    restore_buffers(objective, buffers)
                    run.skipped += 1
                    # fp16 looking for its loss scale overflows by design; that alone is no sign of divergence.
                    run.nonfinite_in_a_row += 0 if update.scale_overflow else 1
                    logger.warning(
                        "step %d: %s not finite on some rank, update skipped (%d so far); batch here: %s",
                        run.step,
                        "loss" if loss_bad else "gradient",
                        run.skipped,
                        ", ".join(seen),
                    )
                    if run.nonfinite_in_a_row >= settings.engine.max_nonfinite_in_a_row:
                        raise _divergence(run, sums[names.LOSS], loss_bad, lr, seen, world)

                # --- tell ---
                metrics = None
                if run.step % settings.monitor.log_every == 0 or run.step == num_steps:
                    metrics = run.window.means(world) | stopwatch.read(world)
                    metrics |= {names.LR: lr, names.SKIPPED: float(run.skipped)}
                    metrics |= {names.EPOCH: run.step * global_batch_size / source.samples_per_epoch}
                    if isinstance(source, CountsSkips):
                        metrics[names.DATA_SKIPPED] = _total(sum(source.counters.values()), world)
                    if settings.engine.precision == "fp16":
                        metrics[names.LOSS_SCALE] = engine.loss_scale.value
                    monitor.log(run.step, metrics)
                    _warn_if_trivial(run, metrics)
                monitor.advance(run.step, metrics)
                if pictures is not None and _picture_due(settings.monitor, run.step, num_steps):
                    watch.phase("pictures", run.step)
                    _draw(pictures, engine, batch, run.step, monitor)

                # --- keep ---
                last = run.step == num_steps or signal is not None
                if last or due or settings.checkpoint.due(run.step):
                    watch.phase("checkpoint", run.step)
                    position = run.step * accumulation_steps
                    write = partial(
                        ckpt.save_checkpoint,
                        run_dir,
                        run.step,
                        weights=engine.weights(),
                        rank_state=_rank_state(engine, run),
                        state=_state(run, num_steps, engine, layout)
                        | {"fingerprint": dict(fingerprint), "source": source.state(position)},
                        config=resolved_config,
                        world=world,
                        keep=settings.checkpoint.keep,
                        keep_every=settings.checkpoint.keep_every,
                    )
                    last_saved = keeper.write(write, must=last) or last_saved
                    saved_at = time.monotonic()
                if signal is not None and run.step < num_steps:
                    status = "preempted"
                    break
                if run.step < num_steps:
                    watch.phase("data", run.step)
                    batch = next(stream).to(world.device)
            watch.phase("end", run.step)
        finally:
            monitor.close()
            stream.close()
            engine.close()
    assert last_saved is not None  # the last update and a stop both save
    return _summary(status, signal, run.step, num_steps, run.skipped, last_loss, began, last_saved)


# --- parts of the loop that would hide its course ---


@contextmanager
def _watching(given: Watchdog | None, config: EngineConfig, world: World) -> Iterator[Watchdog]:
    if given is not None:
        yield given
        return
    with Watchdog(world, heartbeat_s=config.heartbeat_s, stall_min=config.stall_min) as own:
        yield own


def _timed(batches: Iterator[BatchLike], stopwatch: Stopwatch) -> Generator[BatchLike, None, None]:
    """The same batches; the time that each kept us waiting goes to the stopwatch."""
    try:
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                raise RuntimeError("the batch source ended; BatchSource.batches() must be endless") from None
            stopwatch.waited(time.perf_counter() - began)
            yield batch
    finally:
        if isinstance(batches, Generator):
            batches.close()  # ends the loader's workers now, not when memory is collected


def _total(count: int, world: World) -> float:
    """Sum of a count over ranks."""
    values = torch.tensor([float(count)], dtype=torch.float64).to(world.device)
    return float(mean_over_ranks(values, world)) * world.world_size


def _dry_batch(engine: ZeroEngine, batch: BatchLike, micro_batch_size: int) -> None:
    """Forward and backward without update: errors show before the run has cost anything."""
    try:
        with untouched(engine.objective):
            total, _, _ = engine.forward(batch)
            if total.ndim != 0 or not total.requires_grad:
                raise ValueError(
                    f"the objective's total has shape {tuple(total.shape)} and requires_grad={total.requires_grad}, "
                    "expected a scalar that depends on trainable parameters"
                )
            engine.backward(total, last=True)
            engine.discard()
    except Exception as error:
        keys = ", ".join(batch.keys)
        memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if memory:
            raise DryBatchError(
                f"out of memory in the dry batch before step 1 ({batch.num_samples} samples, {batch.num_points} "
                f"points): {error}; lower data.micro_batch_size (now {micro_batch_size}) and raise "
                "engine.accumulation_steps by the same factor, or raise engine.zero_stage"
            ) from error
        raise DryBatchError(
            f"the dry batch before step 1 failed ({type(error).__name__}: {error}); samples: {keys}"
        ) from error


def _load_weights(objective: nn.Module, saved: Path) -> None:
    objective.load_state_dict(ckpt.load_weights(saved / ckpt.WEIGHTS), strict=True)


def _load_rank(engine: ZeroEngine, run: _Run, saved: Path, state: Mapping[str, Any], seed: int) -> None:
    rank, now = engine.world.rank, engine.layout
    before = saved_layout(state, now, saved)
    # At stage 0 every rank has the same optimizer state, and only rank 0 wrote it.
    part = 0 if engine.stage == 0 else rank
    if before.same_buffers(now):
        engine.load_shard(ckpt.read_rank_state(saved, part)["shard"])
    else:
        engine.load_shard(engine.shard_of(*cut_anew(saved, before, now, part)))
        if engine.world.is_main:
            text = "optimizer state of %d processes at ZeRO stage %d cut anew for %d at stage %d"
            logger.info(text, before.world_size, before.stage, now.world_size, now.stage)
    engine.loss_scale.load(state["loss_scale"])
    if before.world_size == now.world_size:
        own = ckpt.read_rank_state(saved, rank, mapped=True)
        window = own["window"]
        set_rng_state(own["rng"])
    else:  # no process has a past of its own; early checkpoints lack the mean
        window = state.get("window", {"sums": {}, "count": 0})
        seed_everything(seed, rank, run.step)
    run.window.sums, run.window.count = dict(window["sums"]), int(window["count"])


def _rank_state(engine: ZeroEngine, run: _Run) -> dict[str, Any]:
    writes_shard = engine.stage > 0 or engine.world.is_main
    return {
        "rng": get_rng_state(),
        "shard": engine.shard() if writes_shard else None,
        "window": {"sums": dict(run.window.sums), "count": run.window.count},
    }


def _state(run: _Run, num_steps: int, engine: ZeroEngine, layout: Mapping[str, Any]) -> dict[str, Any]:
    packages = ("torch", "deepspeed", "numpy", "safetensors")
    return {
        "num_steps": num_steps,
        "skipped": run.skipped,
        "nonfinite_in_a_row": run.nonfinite_in_a_row,
        "warned_trivial": run.warned_trivial,
        "loss_scale": engine.loss_scale.state(),
        "engine": dict(layout),
        "parameters": engine.layout.record(),
        "window": _mean_window(run.window, engine.world),
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
    }


def _mean_window(window: Window, world: World) -> dict[str, Any]:
    """The window as it would be on a single process, for a run that continues on another number of them."""
    names = sorted(window.sums)
    if not names:
        return {"sums": {}, "count": window.count}
    sums = mean_over_ranks(torch.tensor([window.sums[n] for n in names], dtype=torch.float64).to(world.device), world)
    return {"sums": dict(zip(names, sums.tolist(), strict=True)), "count": window.count}


def _divergence(run: _Run, loss: float, loss_bad: bool, lr: float, keys: list[str], world: World) -> DivergenceError:
    """The error that ends a diverged run; names the batches of all ranks."""
    mine = f"rank {world.rank}: loss {loss}, samples {', '.join(keys)}"
    lines: list[str] = [mine]
    if world.world_size > 1:
        gathered: list[Any] = [None] * world.world_size
        dist.all_gather_object(gathered, mine)
        lines = gathered
    what = "loss" if loss_bad else "gradient"
    text = "\n  ".join(lines)
    return DivergenceError(
        f"{what} not finite in {run.nonfinite_in_a_row} updates in a row, the last at step {run.step} with learning "
        f"rate {lr:.4g}:\n  {text}\nlower optim.lr, lengthen schedule.warmup_steps or set engine.clip_norm; if it is "
        "always the same samples, look at them with `tandem inspect`"
    )


def _warn_if_trivial(run: _Run, metrics: Mapping[str, float]) -> None:
    accuracy = metrics.get(names.WATCH + names.ACCURACY, 0.0)
    if accuracy > names.TRIVIAL_ACCURACY and metrics[names.EPOCH] <= 1 and not run.warned_trivial:
        run.warned_trivial = True
        logger.warning(
            "contrastive accuracy %.3f in the first epoch (step %d): the task is trivial and will teach little; "
            "more or harder negatives are needed (larger batch, finer superpixels, stronger augmentation)",
            accuracy,
            run.step,
        )


def _picture_due(config: MonitorConfig, step: int, num_steps: int) -> bool:
    return config.picture_every > 0 and (step % config.picture_every == 0 or step == num_steps)


@torch.no_grad()
def _draw(pictures: Pictures, engine: ZeroEngine, batch: BatchLike, step: int, monitor: Monitor) -> None:
    # At ZeRO-3 a forward pass gathers weights from all ranks, so all must draw; rank 0 keeps its pictures.
    if engine.stage == 3 or engine.world.is_main:
        with untouched(engine.objective):
            engine.objective.eval()  # a synchronised norm in training mode would wait for the other ranks
            monitor.pictures(step, pictures(engine.objective, batch, step))


def _summary(
    status: Literal["finished", "preempted"],
    signal: str | None,
    step: int,
    num_steps: int,
    skipped: int,
    loss: float,
    began: float,
    saved: Path,
) -> PretrainSummary:
    return PretrainSummary(
        status=status,
        signal=signal,
        step=step,
        num_steps=num_steps,
        skipped=skipped,
        loss=loss,
        seconds=time.perf_counter() - began,
        peak_rss_gib=peak_rss_gib(),
        checkpoint=saved,
    )
