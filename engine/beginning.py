"""How a training run begins or goes on: its state from a checkpoint, the engine around it, a dry batch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.run_files import WEIGHTS_FILE
from engine import checkpoint as ckpt
from engine.distributed import World
from engine.errors import DryBatchError
from engine.interfaces import BatchLike, BatchSource
from engine.optim import build_optimizer
from engine.reshard import check_continuable, recut_shard, saved_layout
from engine.rng import seed_everything, set_rng_state
from engine.run_state import Plan, RunState
from engine.schedule import lr_table
from engine.settings import PretrainSettings
from engine.sync_bn import convert_sync_batchnorm
from engine.zero import ZeroEngine, untouched

logger = logging.getLogger("tandem.pretrain")


def continued(
    saved: Path,
    objective: nn.Module,
    source: BatchSource[BatchLike],
    plan: Plan,
    fingerprint: Mapping[str, Any],
) -> RunState:
    """The run as a checkpoint left it, with the objective's weights; optimizer and random states are `_load_rank`'s.

    Raises:
        CheckpointError: of another model or data, or of settings that cannot change.
    """
    state = ckpt.read_state(saved)
    run = RunState.from_state(state)
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


def build_engine(
    objective: nn.Module, settings: PretrainSettings, plan: Plan, run: RunState, saved: Path | None, world: World
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


def _load_rank(engine: ZeroEngine, run: RunState, saved: Path, seed: int) -> None:
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


def dry_batch(engine: ZeroEngine, batch: BatchLike, micro_batch_size: int) -> None:
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
