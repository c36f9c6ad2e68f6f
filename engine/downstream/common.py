"""What every downstream protocol shares: classes, readers, splits, label draws, BatchNorm, rate tuning, progress."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from common.ranges import expect
from engine.downstream.confusion import AbsentClass, ConfusionMatrix, LabelError, check_class_range
from engine.errors import DivergenceError
from engine.interfaces import BatchLike, PointBatch


class UnsuitableError(ValueError):
    """A protocol cannot measure this network, or not on this set."""


class ChangedError(UnsuitableError):
    """A network that was to stay frozen changed."""


@dataclass(frozen=True, kw_only=True)
class SegmentationTask:
    """What is predicted.

    Attributes:
        dataset: name of the set, for the results.
        class_names: name of class 0, 1, ...
        ignore_label: label of points that no loss and no metric counts.
        absent_class: see `engine.downstream.runner.SharedConfig`, "benchmark" resolved.
    """

    dataset: str
    class_names: tuple[str, ...]
    ignore_label: int
    absent_class: AbsentClass = "left-out"

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise ValueError(
                f"set {self.dataset!r} has {len(self.class_names)} class names: segmentation needs at least 2. An "
                "unlabelled set cannot be evaluated on; prepare a labelled one (synthetic, kitti-object, ...)"
            )

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def confusion(self) -> ConfusionMatrix:
        """An empty measurement."""
        return ConfusionMatrix(self.num_classes, self.ignore_label, absent=self.absent_class)


Truth = Literal["labels", "depth", "pose"]
"""Ground truth that a protocol reads: classes (of points or pixels), depth of pixels, or poses of cameras."""


@dataclass(frozen=True)
class Samples:
    """What a reader is asked for: samples by index, in this order.

    Attributes:
        truth: ground truth to read with them.
        batch_size: samples in a batch, at most.
        augment, seed, epoch: augmentations are a function of (seed, epoch, sample).
    """

    indices: Sequence[int]
    _: KW_ONLY
    truth: Truth | None
    batch_size: int = 1
    augment: bool = False
    seed: int = 0
    epoch: int = 0


BatchT = TypeVar("BatchT")
Reader = Callable[[Samples], Iterable[BatchT]]
"""Reads samples in batches."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Which sweeps are for what.

    Attributes:
        train: indices of the train split, in log and time order.
        train_logs: log of each of them.
        test: indices that the final numbers are measured on; nothing is ever tuned on them.
    """

    train: Int[np.ndarray, " n"]
    train_logs: Int[np.ndarray, " n"]
    test: Int[np.ndarray, " m"]

    def __post_init__(self) -> None:
        if len(self.train) != len(self.train_logs):
            raise ValueError(f"{len(self.train)} train sweeps, but {len(self.train_logs)} log numbers")
        if len(self.train) < 2 or len(self.test) < 1:
            raise ValueError(
                f"{len(self.train)} train and {len(self.test)} test sweeps: expected at least 2 (one to fit, one to "
                "tune on) and 1; are the split names those of the set?"
            )
        shared = np.intersect1d(self.train, self.test)
        if len(shared):
            raise ValueError(f"{len(shared)} sweeps are in both train and test, e.g. sweep {shared[0]}")


def hold_out(
    indices: Int[np.ndarray, " n"], logs_of: Int[np.ndarray, " n"], share: float
) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Cut sweeps, in log and time order, into a part to fit on and a part to tune or choose on, neither of them empty.

    Every k-th log is held out, k = 1 / share with a share above 0 and at most 0.5.

    Raises:
        ValueError: fewer than two sweeps, or a share out of range.
    """
    if not 0.0 < share <= 0.5:
        raise ValueError(f"validation share = {share}: expected above 0 and at most 0.5")
    if len(indices) < 2:
        raise ValueError(f"{len(indices)} sweeps, expected at least 2: one to fit on and one to hold out")
    logs = np.unique(logs_of)  # whole logs are held out, because neighbouring sweeps show the same street
    if len(logs) == 1:  # then the last sweeps, the farthest from the first
        num = max(1, round(share * len(indices)))
        return indices[:-num], indices[-num:]
    every = max(2, round(1.0 / share))
    held = logs[every - 1 :: every] if len(logs) >= every else logs[-1:]
    mask = np.isin(logs_of, held)
    return indices[~mask], indices[mask]


def thin(indices: Int[np.ndarray, " n"], limit: int | None) -> Int[np.ndarray, " m"]:
    """At most `limit` of the indices, evenly spread over them; all for None."""
    if limit is None or len(indices) <= limit:
        return indices
    return np.asarray(indices[np.linspace(0, len(indices) - 1, limit).round().astype(np.int64)])


@dataclass(frozen=True, kw_only=True)
class LabelDraws:
    """Which train samples a protocol may use with their labels; the same for every initialisation.

    Attributes:
        text: what was drawn, for tables, e.g. "1 frame".
        runs: samples of each of the protocol's `seeds`.
        tuning: samples of each of its `tune_seeds`; none of them is among the held-out sweeps (`hold_out`).
        settings: how they were drawn, JSON values.
    """

    text: str
    runs: tuple[Int[np.ndarray, " _"], ...]
    tuning: tuple[Int[np.ndarray, " _"], ...]
    settings: Mapping[str, Any]


VoxelLabel = Literal["majority", "first"]
"""A voxel's label: what most of its labelled points have (the lowest class in a tie), or the label of its first point,
the ignore label included, as in SLidR's code."""


def voxel_labels(batch: PointBatch, task: SegmentationTask, choice: VoxelLabel = "majority") -> Int[Tensor, " M"]:
    """Label of each voxel, or the ignore label.

    Raises:
        LabelError: the batch has no labels, or labels outside of the task's classes.
    """
    labels = point_labels(batch)
    keep = labels != task.ignore_label
    check_class_range(labels[keep], task.num_classes, f"label of set {task.dataset!r}:")
    num_voxels = batch.voxel_coords.shape[0]
    if choice == "first":
        points = torch.arange(len(labels), device=labels.device)
        first = points.new_zeros(num_voxels).scatter_reduce(
            0, batch.point_voxel.long(), points, "amin", include_self=False
        )
        return labels[first].long()
    flat = batch.point_voxel[keep].long() * task.num_classes + labels[keep].long()
    votes = torch.bincount(flat, minlength=num_voxels * task.num_classes).view(num_voxels, task.num_classes)
    most, winner = votes.max(1)
    return torch.where(most > 0, winner, task.ignore_label)


def point_labels(batch: PointBatch) -> Int[Tensor, " N"]:
    """The labels of a batch's points.

    Raises:
        LabelError: the sweeps are unlabelled.
    """
    if batch.labels is None:
        raise LabelError(
            f"sweeps {', '.join(batch.keys[:3])} have no point labels; downstream evaluation needs a labelled set"
        )
    return batch.labels


def run_backbone(backbone: nn.Module, batch: PointBatch) -> Tensor:
    """Features [M, C] of each voxel of a batch that lies on the backbone's device."""
    features: Tensor = backbone(batch.voxel_coords, batch.voxel_features, batch.num_samples)
    return features


def calibrate_batch_norm(
    backbone: nn.Module,
    batches: Iterable[BatchLike],
    device: torch.device | str,
    *,
    run: Callable[[nn.Module, Any], object] = run_backbone,
) -> int:
    """Estimate all BatchNorm statistics again: the plain average over the given sweeps, without labels or gradients.

    A freshly initialised network has statistics (0, 1) that fit nothing, and in evaluation mode its features explode
    or vanish with depth; a pre-trained one carries those of augmented training batches. Doing the same to both keeps
    the comparison about weights. `run` runs the network on a batch of its device.

    Returns:
        Number of layers calibrated (0: the network has no BatchNorm, nothing was run).
    """
    layers = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    layers = [m for m in layers if m.track_running_stats]
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    was_training = backbone.training
    backbone.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch: cumulative average instead of an exponential one
        layer.train()
    with torch.no_grad():
        for batch in batches:
            run(backbone, batch.to(device))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    backbone.train(was_training)
    return len(layers)


@contextmanager
def kept_as_it_is(network: nn.Module, what: str, *, frozen: bool = True) -> Iterator[None]:
    """For the passes of a frozen network: its parameters and buffers must come out bit for bit as they went in.

    Nothing is checked where it is not `frozen`.

    Raises:
        ChangedError: they did not.
    """

    def tensors() -> dict[str, Tensor]:
        return dict(itertools.chain(network.named_parameters(), network.named_buffers())) if frozen else {}

    before = {name: tensor.detach().clone() for name, tensor in tensors().items()}
    yield
    after = tensors()
    changed = [name for name in before if not _same_bits(before[name], after.get(name))]
    if changed or len(after) != len(before):
        raise ChangedError(
            f"{what}: the frozen network changed while it was measured, in {len(changed)} of {len(before)} parameters "
            f"and buffers ({', '.join(changed[:3])}): its features are not those of the checkpoint. Does its forward "
            "pass write to them in evaluation mode?"
        )


def _same_bits(before: Tensor, after: Tensor | None) -> bool:
    if after is None or before.shape != after.shape or before.dtype != after.dtype:
        return False
    bits = [tensor.detach().reshape(-1).view(torch.uint8) for tensor in (before, after)]  # NaN equals itself
    return torch.equal(*bits)


def feature_width(backbone: nn.Module) -> int:
    """C of a backbone.

    Raises:
        UnsuitableError: the network does not say how wide its features are.
    """
    width = getattr(backbone, "num_features", None)
    if not isinstance(width, int):
        raise UnsuitableError(f"{type(backbone).__name__} has no integer attribute num_features: it is no 3D backbone")
    return width


@dataclass(frozen=True)
class Tuned:
    """Outcome of trying several learning rates.

    Attributes:
        lr: the best one.
        table: what validation gave for each, higher is better; NaN where training diverged.
    """

    lr: float
    table: Mapping[float, float]

    @property
    def at_edge(self) -> bool:
        """The best rate is the smallest or largest that was tried (of at least 3): a wider grid might do better."""
        return len(self.table) >= 3 and self.lr in (min(self.table), max(self.table))


def tune_rate(lrs: Sequence[float], validate: Callable[[float], float]) -> Tuned:
    """Try each learning rate and keep the one with the highest value on validation data; a diverged one is the worst.

    Raises:
        DivergenceError: every rate diverged.
    """
    if len(lrs) == 1:
        return Tuned(lrs[0], {})
    table: dict[float, float] = {}
    for lr in lrs:
        try:
            table[lr] = validate(lr)
        except DivergenceError:
            table[lr] = float("nan")
    finite = {lr: value for lr, value in table.items() if math.isfinite(value)}
    if not finite:
        raise DivergenceError(f"training diverged at every learning rate of {list(lrs)}; try smaller ones")
    return Tuned(max(finite, key=lambda lr: finite[lr]), table)


def check_rates(config: object, name: str) -> None:
    """Refuse an empty grid, repeated or non-positive rates.

    Raises:
        RangeError: names the field and its value.
    """
    lrs = getattr(config, name)
    holds = lrs and len(set(lrs)) == len(lrs) and min(lrs) > 0.0 and all(map(math.isfinite, lrs))
    expect(config, name, bool(holds), "one or more different learning rates above 0")


def check_seeds(config: object, *names: str) -> None:
    """Refuse an empty list, repeated or negative seeds.

    Raises:
        RangeError: names the field and its value.
    """
    for name in names:
        seeds = getattr(config, name)
        holds = seeds and len(set(seeds)) == len(seeds) and min(seeds) >= 0
        expect(config, name, bool(holds), "one or more different integers of at least 0")


class ProgressMeter:
    """Progress over a known amount of work, for one bar with an honest time estimate.

    Work is counted in sweeps through the network; a training step on a sweep counts three times (backward is twice
    the forward).
    """

    def __init__(self, total: int, report: Callable[[float, str], None] | None) -> None:
        self.total = max(total, 1)
        self.done = 0
        self.report = report

    def advance(self, units: int, text: str) -> None:
        """`units` more are done; `text` says what at."""
        self.done += units
        if self.report is not None:
            # An estimate may be too small, and a bar beyond its end looks broken.
            self.report(min(self.done / self.total, 1.0), text)
