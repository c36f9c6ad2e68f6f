"""What a run costs on N processes: arithmetic on counts, without torch, data or a cluster.

Letters: N processes, P elements of trainable parameters, F of frozen ones, w bytes an element of the weights (4; 2 in
`bf16_native`), g bytes an element of the gradients (as w), m numbers of optimizer state an element (AdamW 2, SGD with
momentum 1, without 0), a micro-batches an update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

FP32 = 4
"""Bytes."""
GATHERED_ONCE_NUMEL = 1_000_000_000
"""ZeRO-3 keeps gathered weights from the forward to the backward pass while the model has fewer elements than this
(DeepSpeed 0.19.8: stage3_max_live_parameters and stage3_max_reuse_distance)."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """Sizes of an objective.

    Attributes:
        trainable: elements of all trainable parameters, P.
        whole_numel: those of them that ZeRO-3 leaves whole on every process, being small.
        frozen: elements of frozen parameters, F.
        buffer_bytes: buffers (running statistics).
        norm_channels: channels of each BatchNorm that trains.
    """

    trainable: int
    whole_numel: int = 0
    frozen: int = 0
    buffer_bytes: int = 0
    norm_channels: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Data:
    """Sizes of a shard set.

    Attributes:
        samples: in the split that is trained on.
        bytes_per_sample: mean, as they are read.
        shards: that hold them; None where there is no set yet.
        open_limit: shards that one reading process keeps open.
    """

    samples: int
    bytes_per_sample: float
    shards: int | None = None
    open_limit: int = 32


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """The settings that a plan depends on.

    Attributes:
        processes_per_node: one a GPU.
        micro_batch_size: samples a process in a forward pass.
        accumulation_steps: a.
        num_steps: updates of the whole run.
        zero_stage: 0 to 3.
        weight_bytes: w.
        optimizer_numbers: m.
        workers: loader processes of each process; 0: it reads itself.
        prefetch: batches that each makes ahead.
        shards_per_group: shards that are shuffled with each other.
        order: version of the order of samples.
        sync_bn: statistics over all processes.
        contrast_rows: rows a process brings to the loss where negatives are gathered; 0 where they are not.
        bucket_numel: elements that ZeRO reduces at a time.
        overlap: ZeRO reduces during the backward pass, with a second bucket.
        epochs: passes over the data; None where updates were asked for.
        lr_factor: peak learning rate over the configured one.
        warmup_steps: updates of the schedule's warm-up.
        checkpoint_every_s: asked for, the shorter of steps and minutes; None without step time or without either.
        keep: checkpoints that stay.
    """

    nodes: int
    processes_per_node: int
    micro_batch_size: int
    accumulation_steps: int
    num_steps: int
    zero_stage: int
    weight_bytes: int = FP32
    optimizer_numbers: int
    workers: int
    prefetch: int
    shards_per_group: int
    sync_bn: bool
    contrast_rows: int = 0
    embedding_dim: int = 0
    bucket_numel: int = 0
    overlap: bool = False
    epochs: int | None = None
    lr_factor: float = 1.0
    warmup_steps: int = 0
    checkpoint_every_s: float | None = None
    keep: int = 1
    chunk_rows: int | None = None
    order: int = 2

    @property
    def world_size(self) -> int:
        """N."""
        return self.nodes * self.processes_per_node

    @property
    def global_batch(self) -> int:
        """Samples of one update."""
        return self.micro_batch_size * self.accumulation_steps * self.world_size

    @property
    def readers(self) -> int:
        """Processes that read shards."""
        return self.world_size * max(self.workers, 1)


# ---- memory


class Memory(NamedTuple):
    """Bytes a process that ZeRO's stage decides about; activations come on top and only a run shows them.

    Attributes:
        weights: trainable ones, as the network computes with them.
        frozen: frozen weights and buffers.
        gradients: at the end of the backward pass.
        masters: fp32 copy of the weights, in this process's share.
        optimizer: its state, in this process's share.
        buckets: what ZeRO gathers gradients in before it sends them.
    """

    weights: float
    frozen: float
    gradients: float
    masters: float
    optimizer: float
    buckets: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


def memory(model: Model, run: PlannedRun) -> Memory:
    """Memory of weights, gradients and optimizer state, at its highest.

        stage   weights   gradients   masters   optimizer
        0       wP        gP          -         4mP
        1       wP        gP          4P/N      4mP/N
        2       wP        gP/N        4P/N      4mP/N
        3       wP/N *    gP/N        4P/N      4mP/N

    * and wP more while a step runs, for models below `GATHERED_ONCE_NUMEL`; frozen weights are split at stage 3 too.

    Source: ZeRO, Rajbhandari et al. (SC 2020), figure 1; the fp32 copy also where the weights are fp32, as
    DeepSpeed 0.19.8 keeps it.
    """
    n, stage, weights = run.world_size, run.zero_stage, float(run.weight_bytes * model.trainable)
    share = 1 / n if stage > 0 else 1.0
    # Gathered weights that ZeRO-3 does not release between the forward and the backward pass.
    frozen = float(run.weight_bytes * model.frozen)
    live = weights if model.trainable < GATHERED_ONCE_NUMEL else 0.0
    return Memory(
        weights=weights if stage < 3 else weights / n + live,
        frozen=(frozen if stage < 3 else frozen / n + frozen) + model.buffer_bytes,
        gradients=weights if stage < 2 else weights / n,
        masters=FP32 * model.trainable * share if stage > 0 else 0.0,
        optimizer=FP32 * run.optimizer_numbers * model.trainable * share,
        # One is sent while the other fills.
        buckets=float(run.bucket_numel * run.weight_bytes * (2 if run.overlap else 1)) if stage > 0 else 0.0,
    )


# ---- traffic


class Traffic(NamedTuple):
    """What a process receives (and sends as much of) in one update, bytes, and how many collectives that takes.

    Attributes:
        gradients: reduced.
        weights: gathered.
        norms: statistics of BatchNorm over all processes.
        negatives: embeddings gathered for the loss, and their gradients.
        small_collectives: of BatchNorm: latency counts there, not size.
    """

    gradients: float
    weights: float
    norms: float
    negatives: float
    small_collectives: int

    @property
    def total(self) -> float:
        """Bytes."""
        return self.gradients + self.weights + self.norms + self.negatives


def traffic(model: Model, run: PlannedRun) -> Traffic:
    """Volume of the collectives of one update, with f = (N - 1) / N.

        stage   gradients                  weights
        0       2f gP   (all-reduce)       -
        1       2f gP                      f wP (all-gather after the update)
        2       2f gP a                    f wP
        3       f gP a  (reduce-scatter)   f wP a, or 2f wP a from `GATHERED_ONCE_NUMEL` on

    A synchronised BatchNorm of C channels: 2C + 1 numbers forward in two all-reduces, 2C backward, in every
    micro-batch. Gathered negatives: N - 1 blocks of rows, and an all-reduce of their gradient.

    Source: ring algorithms' volumes, Thakur et al. (IJHPCA 2005); ZeRO, section 7. The paper has f gP for gradients
    at stages 1 and 2, but DeepSpeed 0.19.8 all-reduces them there, and at stage 2 after every micro-batch
    (measured: tests/launchers/test_plan.py).
    """
    f, a = (run.world_size - 1) / run.world_size, run.accumulation_steps
    weights = float(run.weight_bytes * model.trainable)
    split = float(run.weight_bytes * (model.trainable - model.whole_numel))
    gathers = 1 if model.trainable < GATHERED_ONCE_NUMEL else 2  # again for the backward pass
    gradient_factor = {0: 2.0, 1: 2.0, 2: 2.0 * a, 3: 1.0 * a}[run.zero_stage]
    gathered = {0: 0.0, 1: weights, 2: weights, 3: split * gathers * a + (weights - split)}[run.zero_stage]
    synced = run.sync_bn and run.world_size > 1
    rows = FP32 * run.contrast_rows * run.embedding_dim
    return Traffic(
        gradients=gradient_factor * f * weights,
        weights=f * gathered,
        # An all-reduce moves 2 f times the size of what it reduces.
        norms=a * sum(2 * f * FP32 * (4 * c + 1) for c in model.norm_channels) if synced else 0.0,
        negatives=a * (rows * (run.world_size - 1) + 2 * f * rows * run.world_size),
        small_collectives=3 * a * len(model.norm_channels) if synced else 0,
    )


def similarity_bytes(run: PlannedRun) -> float:
    """fp32 similarities of one process's rows (of one chunk at a time) with all: memory of gathered negatives."""
    rows = min(run.contrast_rows, run.chunk_rows or run.contrast_rows)
    return float(FP32 * rows * run.contrast_rows * run.world_size)
