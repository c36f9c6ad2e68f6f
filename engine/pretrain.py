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
import platform
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import UInt8
from torch import Tensor, nn

from common.run_files import WEIGHTS_FILE
from engine import checkpoint as ckpt
from engine import metric_names as names
from engine.checkpoint_retry import CheckpointRetry
from engine.deepspeed_config import EngineConfig, check_precision, quiet_deepspeed
from engine.distributed import World, agree_max, agree_signal, init_distributed
from engine.errors import DivergenceError, DryBatchError, StopRequested
from engine.heap import map_large_tensors
from engine.interfaces import BatchLike, BatchSource, ChecksEngine, CountsSkips, FollowsUpdates
from engine.measuring import Measurement, Measuring, owed
from engine.monitor import Monitor, Stopwatch, Window, mean_of_each, peak_rss_gib
from engine.optim import build_optimizer, optimizer_name, peak_lr
from engine.preempt import StopSignals, name_of
from engine.reshard import check_continuable, recut_shard, saved_layout
from engine.rng import get_rng_state, seed_everything, set_rng_state
from engine.schedule import lr_scale, lr_table, momentum_at, total_steps
from engine.settings import PretrainSettings
from engine.sync_bn import convert_sync_batchnorm
from engine.watchdog import Watchdog
from engine.zero import Update, ZeroEngine, copy_buffers, restore_buffers, spoilt_buffers, untouched

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


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is the same in all updates of a run.

    Attributes:
        num_steps: updates of the whole run.
        peak_lr: largest learning rate.
        accumulation_steps: micro-batches a rank in an update.
        global_batch_size: samples per update.
        parallelism: how the run is spread over processes, and what its optimizer state depends on; part of checkpoints.
    """

    num_steps: int
    peak_lr: float
    accumulation_steps: int
    global_batch_size: int
    parallelism: Mapping[str, Any]

    @classmethod
    def of(cls, settings: PretrainSettings, samples_per_epoch: int, micro_batch_size: int, world: World) -> _Plan:
        """The plan of a run on these processes."""
        steps = settings.engine.accumulation_steps
        batch = micro_batch_size * world.world_size * steps
        return cls(
            num_steps=total_steps(settings.schedule, samples_per_epoch=samples_per_epoch, global_batch_size=batch),
            peak_lr=peak_lr(settings.optim, batch),
            accumulation_steps=steps,
            global_batch_size=batch,
            parallelism={
                "world_size": world.world_size,
                "micro_batch_size": micro_batch_size,
                "accumulation_steps": steps,
                "zero_stage": settings.engine.zero_stage,
                "precision": settings.engine.precision,
                "optimizer": optimizer_name(settings.optim),
            },
        )


@dataclass(kw_only=True)
class _Run:
    """What changes from update to update.

    Attributes:
        step: updates done.
        skipped: of these, updates that were skipped.
        nonfinite_in_a_row: skipped updates up to now that are a sign of divergence.
        warned_trivial: whether `_warn_if_trivial` has warned.
        window: scalars since the last log line; this rank's, so it is part of the rank's state.
        loss: mean of the last applied update; NaN before one, and in checkpoints of versions before 0.3.
    """

    step: int = 0
    skipped: int = 0
    nonfinite_in_a_row: int = 0
    warned_trivial: bool = False
    window: Window = field(default_factory=Window)
    loss: float = math.nan

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> _Run:
        """As a checkpoint's state.json has it; the window is `_load_rank`'s."""
        loss = state.get("loss")
        return cls(
            step=int(state["step"]),
            skipped=int(state["skipped"]),
            nonfinite_in_a_row=int(state["nonfinite_in_a_row"]),
            warned_trivial=bool(state["warned_trivial"]),
            loss=math.nan if loss is None else float(loss),
        )

    def state(self) -> dict[str, Any]:
        """For state.json, which has the step already."""
        counts = {name: getattr(self, name) for name in ("skipped", "nonfinite_in_a_row", "warned_trivial")}
        return {**counts, "loss": self.loss if math.isfinite(self.loss) else None}  # JSON has no NaN

    def apply(self, scalars: Mapping[str, float], update: Update) -> None:
        """Count an update that changed the weights."""
        self.nonfinite_in_a_row = 0
        self.loss = scalars[names.LOSS]
        self.window.add({**scalars, names.GRAD_NORM: update.grad_norm})

    def skip(self, what: str, update: Update, keys: Sequence[str], spoilt: Sequence[str]) -> None:
        """Count an update that was skipped, and say so: of which samples here, and which buffers they spoilt here."""
        self.skipped += 1
        # fp16 looking for its loss scale overflows by design; that alone is no sign of divergence.
        self.nonfinite_in_a_row += 0 if update.scale_overflow else 1
        logger.warning(
            "step %d: %s not finite on some rank, update skipped (%d so far); batch here: %s%s",
            self.step,
            what,
            self.skipped,
            ", ".join(keys),
            f"; not finite here: {', '.join(spoilt)}" if spoilt else "",
        )


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
    plan = _Plan.of(settings, source.samples_per_epoch, micro_batch_size, world)

    # --- continue or begin ---
    saved = ckpt.find_checkpoint(run_dir, world)
    if saved is None:
        run = _Run()
        seed_everything(settings.seed, world.rank)
    else:
        run = _continued(saved, objective, source, plan, fingerprint)
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
        engine = _build_engine(objective, settings, plan, run, saved, world)
        opened.callback(engine.close)
        _stop_if_signalled(signals, world)
        stopwatch, checkpoints = Stopwatch(), _Checkpoints(run_dir, settings.checkpoint, plan, engine, newest=saved)
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


def software_versions() -> dict[str, str]:
    """Of the packages that a run's numbers come from; checkpoints hold them."""
    packages = ("torch", "deepspeed", "numpy", "safetensors")
    return {name: version(name) for name in packages} | {"python": platform.python_version()}


# ---- parts of `pretrain`, in the order of their use


def _check_engine(config: EngineConfig, objective: nn.Module, world: World) -> None:
    """Refuse a stage or precision that the machine or the objective cannot do."""
    check_precision(config, objective, world.device)
    if isinstance(objective, ChecksEngine):
        objective.check_engine(zero_stage=config.zero_stage, precision=config.precision)


def _continued(
    saved: Path,
    objective: nn.Module,
    source: BatchSource[BatchLike],
    plan: _Plan,
    fingerprint: Mapping[str, Any],
) -> _Run:
    """The run as a checkpoint left it, with the objective's weights; optimizer and random states are `_load_rank`'s.

    Raises:
        CheckpointError: of another model or data, or of settings that cannot change.
    """
    state = ckpt.read_state(saved)
    run = _Run.from_state(state)
    ckpt.check_same(state["fingerprint"], fingerprint, saved)
    if run.step < plan.num_steps:  # else it is finished, and nothing has to fit any more
        check_continuable(state, plan.parallelism, saved)
        source.check_state(state["source"])
        if state["num_steps"] != plan.num_steps:
            logger.warning(
                "the run had %d updates and now has %d: its learning rate curve changes from here on",
                state["num_steps"],
                plan.num_steps,
            )
    objective.load_state_dict(ckpt.load_weights(saved / WEIGHTS_FILE), strict=True)
    return run


def _build_engine(
    objective: nn.Module, settings: PretrainSettings, plan: _Plan, run: _Run, saved: Path | None, world: World
) -> ZeroEngine:
    """The engine with its optimizer, at the beginning or as a checkpoint left it."""
    if settings.engine.sync_bn and world.world_size > 1:
        convert_sync_batchnorm(objective)
    objective.to(world.device).train()
    optimizer = build_optimizer(objective, settings.optim, plan.peak_lr)
    micro_batch_size = plan.parallelism["micro_batch_size"]
    engine = ZeroEngine(objective, optimizer, settings.engine, world, micro_batch_size=micro_batch_size)
    if saved is not None:
        _load_rank(engine, run, saved, settings.seed)
    elif world.is_main:
        logger.info("learning rate\n%s", lr_table(settings.schedule, plan.num_steps, plan.peak_lr))
    return engine


def _load_rank(engine: ZeroEngine, run: _Run, saved: Path, seed: int) -> None:
    state = ckpt.read_state(saved)
    rank, now = engine.world.rank, engine.layout
    before = saved_layout(state, now, saved)
    # At stage 0 every rank has the same optimizer state, and only rank 0 wrote it.
    part = 0 if engine.stage == 0 else rank
    if before.same_buffers(now):
        engine.load_shard(ckpt.read_rank_state(saved, part)["shard"])
    else:
        engine.load_shard(engine.shard_of(*recut_shard(saved, before, now, part)))
        if engine.world.is_main:
            text = "optimizer state of %d processes at ZeRO stage %d recut for %d at stage %d"
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
    stream: Iterator[BatchLike], engine: ZeroEngine, config: EngineConfig, plan: _Plan, run: _Run, watch: Watchdog
) -> BatchLike:
    """The first batch, tried out if so configured."""
    watch.phase("data", run.step)
    batch = next(stream)
    watch.phase("forward", run.step)
    if config.dry_batch:
        _dry_batch(engine, batch, plan.parallelism["micro_batch_size"])
    return batch


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
        memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if memory:
            raise DryBatchError(
                f"out of memory in the dry batch before step 1 ({batch.num_samples} samples, {batch.num_points} "
                f"points): {error}; lower data.micro_batch_size (now {micro_batch_size}) and raise "
                "engine.accumulation_steps by the same factor, or raise engine.zero_stage"
            ) from error
        raise DryBatchError(
            f"the dry batch before step 1 failed ({type(error).__name__}: {error}); samples: {', '.join(batch.keys)}"
        ) from error


def _add(
    scalars: dict[str, float], total: Tensor, parts: Mapping[str, Tensor], collapse: Mapping[str, Tensor], count: int
) -> None:
    """Add a micro-batch's scalars to the means over `count` of them."""
    values = {names.LOSS: total.detach()}
    values |= {names.LOSS_PART + name: part for name, part in parts.items()}
    values |= {names.WATCH + name: value for name, value in collapse.items()}
    for name, value in values.items():
        scalars[name] = scalars.get(name, 0.0) + float(value) / count


def _divergence(run: _Run, what: str, loss: float, lr: float, keys: list[str], world: World) -> DivergenceError:
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
    run: _Run, plan: _Plan, lr: float, source: BatchSource[BatchLike], stopwatch: Stopwatch, engine: ZeroEngine
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


class _Checkpoints:
    """Writes the run's checkpoints.

    Attributes:
        newest: folder of the last one that was written or continued from.
    """

    def __init__(
        self, run_dir: Path, config: ckpt.CheckpointConfig, plan: _Plan, engine: ZeroEngine, *, newest: Path | None
    ) -> None:
        self.newest = newest
        self._run_dir, self._config, self._plan, self._engine = run_dir, config, plan, engine
        self._retry = CheckpointRetry(config)
        self._saved_at = time.monotonic()

    def due_by_time(self) -> bool:
        """Whether enough minutes have passed since the last one, by the clock of rank 0."""
        minutes = (time.monotonic() - self._saved_at) / 60
        return self._engine.world.is_main and 0 < self._config.every_min <= minutes

    def write(
        self,
        run: _Run,
        source: BatchSource[BatchLike],
        fingerprint: Mapping[str, Any],
        resolved_config: Mapping[str, Any],
        *,
        must: bool,
    ) -> None:
        """Write one; all ranks call it. One that fails is only a warning, unless it must be there.

        Raises:
            CheckpointError: see `engine.checkpoint_retry`.
        """
        position = run.step * self._plan.accumulation_steps
        write = partial(
            ckpt.save_checkpoint,
            self._run_dir,
            run.step,
            weights=self._engine.weights(),
            rank_state={
                "rng": get_rng_state(),
                # At stage 0 all ranks have the same optimizer state: rank 0 writes it for all.
                "shard": self._engine.shard() if self._engine.stage > 0 or self._engine.world.is_main else None,
                "window": {"sums": dict(run.window.sums), "count": run.window.count},
            },
            state=self._state(run) | {"fingerprint": dict(fingerprint), "source": source.state(position)},
            config=resolved_config,
            world=self._engine.world,
            keep=self._config.keep,
            keep_every=self._config.keep_every,
        )
        self.newest = self._retry.write(write, must=must) or self.newest
        self._saved_at = time.monotonic()

    def _state(self, run: _Run) -> dict[str, Any]:
        return run.state() | {
            "num_steps": self._plan.num_steps,
            "loss_scale": self._engine.loss_scale.state(),
            "engine": dict(self._plan.parallelism),
            "parameters": self._engine.layout.record(),
            # As it would be on a single process, for a run that continues on another number of them.
            "window": {"sums": mean_of_each(run.window.sums, self._engine.world), "count": run.window.count},
            "versions": software_versions(),
        }


def _summary(
    run: _Run, plan: _Plan, checkpoint: Path, signal: str | None, began: float, *, stopped: bool = False
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
