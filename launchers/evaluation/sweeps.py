"""What protocols of 3D networks read: labelled sweeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from configs.schema import EvaluateConfig
from data.batch_spec import VoxelConfig
from data.loading.evaluation import point_batches
from data.sample import Batch
from data.storage.manifest import Manifest
from data.storage.reader import SampleReader
from data.views.augment import PointAugmentConfig
from engine.downstream.common import Samples
from engine.downstream.features import SweepParts
from launchers.evaluation.common import Evaluation, workers_for


def sweep_parts(evaluation: Evaluation) -> SweepParts:
    """For the protocols of `tower="backbone"`."""
    return SweepParts(read=LabelledSweeps(evaluation.manifest, evaluation.run.data.voxel, evaluation.config))


@dataclass(frozen=True)
class LabelledSweeps:
    """Reads labelled sweeps (the engine's `Reader`)."""

    manifest: Manifest
    voxel: VoxelConfig
    config: EvaluateConfig

    def __call__(self, samples: Samples) -> Iterator[Batch]:
        """Batches; classes of points are read with the sweep, whatever `truth` is."""
        return point_batches(
            SampleReader(self.manifest),
            np.asarray(samples.indices, dtype=np.int64),
            self.voxel,
            batch_size=samples.batch_size,
            augment=self.config.augment if samples.augment else PointAugmentConfig(enabled=False),
            seed=samples.seed,
            epoch=samples.epoch,
            num_workers=workers_for(samples, self.config),
        )
