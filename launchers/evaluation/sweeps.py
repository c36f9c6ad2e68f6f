"""What protocols of 3D networks read: labelled sweeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import EvaluateConfig
from data.loading.evaluation import point_batches
from data.sample import Batch
from data.storage.manifest import Manifest
from data.storage.reader import SampleReader
from data.views.augment import PointAugmentConfig
from data.views.voxelize import VoxelConfig
from engine.downstream.common import Truth
from engine.downstream.features import SweepParts
from launchers.evaluation.common import Evaluation

_LONG_PASS = 64
"""Sweeps from which on reading ahead in other processes is worth starting them."""


def sweep_parts(evaluation: Evaluation) -> SweepParts:
    """For the protocols of `tower="backbone"`."""
    return SweepParts(read=LabelledSweeps(evaluation.manifest, evaluation.run.data.voxel, evaluation.config))


@dataclass(frozen=True)
class LabelledSweeps:
    """Reads labelled sweeps (the engine's `Reader`)."""

    manifest: Manifest
    voxel: VoxelConfig
    config: EvaluateConfig

    def __call__(
        self,
        indices: Sequence[int],
        *,
        truth: Truth | None,
        batch_size: int,
        augment: bool = False,
        seed: int = 0,
        epoch: int = 0,
    ) -> Iterator[Batch]:
        """Batches in the given order; classes of points are read with the sweep, whatever `truth` is."""
        return point_batches(
            SampleReader(self.manifest),
            np.asarray(indices, dtype=np.int64),
            self.voxel,
            batch_size=batch_size,
            augment=self.config.augment if augment else PointAugmentConfig(enabled=False),
            seed=seed,
            epoch=epoch,
            num_workers=self.config.data.num_workers if len(indices) >= _LONG_PASS else 0,
        )
