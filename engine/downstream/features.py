"""Frozen features: a bank of labelled voxels kept in memory, and a streaming pass that scores at full resolution.

Extraction is the expensive part of the frozen protocols (one forward pass a sweep), so each network runs once over the
train split and once over the test split, whatever the number of probes, rates and seeds that use its features. The
bank holds a random part of each sweep's labelled voxels in half precision (240 sweeps x 800 voxels x 96 features:
37 MB); the test split is never stored.

Letters: C feature width, K classes, M voxels, R rows of the bank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float16, Int
from torch import Tensor, nn

from engine.downstream.common import SegmentationTask, feature_width, point_labels, run_backbone, voxel_labels
from engine.downstream.confusion import ConfusionMatrix, LabelError
from engine.downstream.runner import Parts
from engine.interfaces import PointBatch

Predictor = Callable[[Tensor], Tensor]
"""Voxel features float32 [M, C] -> class int64 [M]."""
Threads = Callable[[], AbstractContextManager[None]]
KeyT = TypeVar("KeyT")


@dataclass(frozen=True, kw_only=True)
class SweepParts(Parts[PointBatch]):
    """What protocols of 3D networks need: sweeps with labelled points.

    Attributes:
        keep: called with initialisation, protocol, network and predictor of the first seed (for pictures).
        threads: opened around a network's passes and updates, to set the threads that they run on.
    """

    keep: Callable[[str, str, nn.Module, Predictor], None] | None = None
    threads: Threads = nullcontext

    def run(self, network: nn.Module, batch: PointBatch) -> Tensor:
        """Features of the batch's voxels."""
        with self.threads():
            return run_backbone(network, batch)


@dataclass(frozen=True)
class FeatureBank:
    """Labelled voxels of the train split as a frozen network sees them.

    Attributes:
        features: one row a voxel; half precision.
        labels: class of each row; no ignore label among them.
    """

    features: Float16[Tensor, "R C"]
    labels: Int[Tensor, " R"]

    def joined(self, other: FeatureBank) -> FeatureBank:
        """Both banks as one."""
        return FeatureBank(torch.cat([self.features, other.features]), torch.cat([self.labels, other.labels]))

    def class_counts(self, num_classes: int) -> Int[Tensor, " K"]:
        """Rows of each class."""
        return torch.bincount(self.labels, minlength=num_classes)


def extract_bank(
    backbone: nn.Module,
    batches: Iterable[PointBatch],
    task: SegmentationTask,
    *,
    voxels_per_sweep: int | None,
    seed: int,
    device: torch.device | str = "cpu",
    threads: Threads = nullcontext,
    on_sweeps: Callable[[int], None] = lambda count: None,
) -> FeatureBank:
    """Run a frozen network (evaluation mode) over sweeps and keep labelled voxels.

    Which voxels (`voxels_per_sweep` random ones, or all for None) depends on the seed and the position of the sweep
    alone: networks with the same voxels get the same rows.

    Raises:
        LabelError: unlabelled sweeps, or not one labelled voxel in all of them.
    """
    backbone.eval()
    features, labels, done = [torch.zeros(0, feature_width(backbone)).half()], [torch.zeros(0).long()], 0
    for batch in batches:
        on_device = batch.to(device)
        target = voxel_labels(on_device, task).cpu()
        chosen = _choose_voxels(
            batch.voxel_coords[:, 0].cpu(), target != task.ignore_label, voxels_per_sweep, (seed, done)
        )
        with torch.inference_mode(), threads():
            values = run_backbone(backbone, on_device)
        features.append(values[chosen.to(device)].half().cpu())
        labels.append(target[chosen])
        done += batch.num_samples
        on_sweeps(batch.num_samples)
    bank = FeatureBank(torch.cat(features), torch.cat(labels))
    if len(bank.labels) == 0:
        raise LabelError(
            f"not one labelled voxel in {done} train sweeps of {task.dataset!r}: all points carry the ignore label"
        )
    if not bool(torch.isfinite(bank.features).all()):
        raise ValueError("the frozen network's features are not finite in half precision; are its weights sound?")
    return bank


def _choose_voxels(
    sample: Int[Tensor, " M"], allowed: Bool[Tensor, " M"], limit: int | None, seed: tuple[int, int]
) -> Int[Tensor, " m"]:
    """Rows of at most `limit` random allowed voxels of each sweep, in rising order."""
    rows = np.flatnonzero(allowed.numpy())
    if limit is None:
        return torch.from_numpy(rows)
    kept = []
    owner = sample.numpy()[rows]
    for s in np.unique(owner):
        own = rows[owner == s]
        rng = np.random.default_rng([seed[0], seed[1] + int(s)])
        kept.append(own if len(own) <= limit else np.sort(rng.choice(own, limit, replace=False)))
    return torch.from_numpy(np.concatenate(kept)) if kept else torch.zeros(0, dtype=torch.int64)


def score(
    backbone: nn.Module,
    batches: Iterable[PointBatch],
    predictors: Mapping[KeyT, Predictor],
    task: SegmentationTask,
    *,
    device: torch.device | str = "cpu",
    threads: Threads = nullcontext,
    on_sweeps: Callable[[int], None] = lambda count: None,
) -> dict[KeyT, ConfusionMatrix]:
    """Measure predictors at full resolution in one pass: every labelled point gets its voxel's prediction.

    Raises:
        LabelError: unlabelled sweeps, or labels that are no class of the task.
    """
    backbone.eval()
    matrices = {name: task.confusion() for name in predictors}
    for batch in batches:
        labels = point_labels(batch).long()
        on_device = batch.to(device)
        with torch.inference_mode():
            with threads():
                features = run_backbone(backbone, on_device).float()
            for name, predict in predictors.items():
                matrices[name].update(predict(features).cpu()[batch.point_voxel.cpu()], labels.cpu())
        on_sweeps(batch.num_samples)
    return matrices
