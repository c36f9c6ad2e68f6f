"""What a run asks of the file system: reading shards, writing checkpoints, and how often to write them.

Letters as in `launchers.planning.arithmetic`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from data.preparing.defaults import SAMPLES_PER_SHARD
from launchers.planning.arithmetic import FP32, Data, Model, PlannedRun

EPOCHS_HELD = 2
"""Orders that each reading process keeps."""
INDEX_BYTES = 16
"""Of the first version (`data.order.SampleOrder`), a sample: its row and its pass."""
SHARD_BYTES = 20
"""Of the second version (`data.shard_order.ShardOrder`), a shard: its number, what is taken of it, and its pass."""


class Reading(NamedTuple):
    """The load on the file system.

    Attributes:
        in_flight: samples of all processes that are being trained on or made ready.
        shards_open: different shards that these lie in, at most; None without a set.
        readers_per_shard: reading processes that share one of them.
        opens_per_sample: files opened for each sample read; the rest of reads finds its file open.
        order_bytes_per_node: orders of samples, held by every reading process.
    """

    in_flight: int
    shards_open: int | None
    readers_per_shard: float | None
    opens_per_sample: float
    order_bytes_per_node: float


def reading(data: Data, run: PlannedRun) -> Reading:
    """Who reads what at one time, from the order of `data.order`: groups of shards, one after another.

    A window of W samples touches at most ceil(W / G) + 1 groups of G samples. A reader takes k = G / readers samples
    of a group with s shards, which lie in s (1 - (1 - 1/s)^k) different ones on average (draws with replacement), and
    opens each once; a set of no more shards than a reader keeps open is opened once and for all.
    """
    in_flight = run.world_size * run.micro_batch_size * (1 + run.workers * run.prefetch)
    shards = data.shards or -(-data.samples // SAMPLES_PER_SHARD)
    one = INDEX_BYTES * data.samples if run.order == 1 else SHARD_BYTES * shards
    order_bytes = float(EPOCHS_HELD * one * run.processes_per_node * max(run.workers, 1))
    if data.shards is None:
        return Reading(in_flight, None, None, opens_per_sample=1.0, order_bytes_per_node=order_bytes)
    in_group = min(run.shards_per_group, data.shards)
    group = data.samples / data.shards * in_group
    shards_open = min(data.shards, in_group * (math.ceil(in_flight / group) + 1))
    each = group / run.readers
    different = in_group * (1 - (1 - 1 / in_group) ** each)
    # A set that fits into the reader's cache of open files costs opens at the start only.
    opens = 0.0 if data.shards <= data.open_limit else min(1.0, different / each)
    return Reading(in_flight, shards_open, run.readers / shards_open, opens, order_bytes)


class Checkpoint(NamedTuple):
    """One checkpoint on disk, bytes.

    Attributes:
        weights: weights.safetensors.
        optimizer: the optimizer's shards in all rank files together.
    """

    weights: float
    optimizer: float
    files: int

    @property
    def total(self) -> float:
        """All of it; random states and descriptions (some 10 kB a process) are left out."""
        return self.weights + self.optimizer


def checkpoint(model: Model, run: PlannedRun) -> Checkpoint:
    """Sizes of what `engine.checkpoint` writes.

    weights.safetensors holds all parameters in fp32, the frozen ones too, and the buffers. The rank files hold 4mP at
    stage 0 (rank 0's), 4(m + 1)P from stage 1 on: the state and the fp32 copy, each process its share.
    """
    masters = 1 if run.zero_stage > 0 else 0
    return Checkpoint(
        weights=float(FP32 * (model.trainable + model.frozen) + model.buffer_bytes),
        optimizer=float(FP32 * (run.optimizer_numbers + masters) * model.trainable),
        files=run.world_size + 4,  # one a rank; weights, config, state, checksums
    )


def best_interval_s(checkpoint_s: float, between_failures_s: float) -> float:
    """Seconds of training between checkpoints that lose the least time: sqrt(2 C M).

    C is the time that one takes, M the mean time between failures of the job.
    Source: Young (CACM 1974); Daly (FGCS 2006) adds terms that matter only where C is no longer small against M.
    """
    return math.sqrt(2 * checkpoint_s * between_failures_s)


def lost_share(checkpoint_s: float, interval_s: float, between_failures_s: float, restart_s: float) -> float:
    """Share of the time that checkpoints, repeated work and restarts cost: C / t + (t / 2 + R) / M.

    t is the training between two checkpoints, R the time from a failure to the first new update.
    Source: Young (CACM 1974), with the restart added as in Daly (FGCS 2006), first order.
    """
    return checkpoint_s / interval_s + (interval_s / 2 + restart_s) / between_failures_s
