"""The family of protocols that measure 3D networks: labelled sweeps in, segmentation of their points out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import EvaluateConfig
from data.loading.evaluation import point_batches
from data.sample import IGNORE_LABEL, Batch
from data.storage.shards import Manifest, SampleReader, ShardError
from data.views.augment import PointAugmentConfig
from data.views.voxelize import VoxelConfig
from engine.downstream.common import SegmentationTask
from engine.downstream.evaluate import evaluate
from engine.downstream.protocols import Initialisation
from engine.downstream.results import Result
from launchers.evaluation.common import Evaluation, draws_of, fitting, splits_of, write_lists

_LONG_PASS = 64
"""Sweeps from which on reading ahead in other processes is worth starting them."""


def measure_sweeps(inits: Sequence[Initialisation], evaluation: Evaluation) -> Iterator[Result]:
    """Linear probe, kNN and fine-tuning; a `launchers.evaluation.common.Family`."""
    manifest, config = evaluation.manifest, evaluation.config
    recipe, draws = config.finetune, None
    with fitting(manifest):
        task, splits = task_of(manifest), splits_of(manifest, config, labelled=True)
        if "finetune" in config.protocols:
            draws = draws_of(manifest, splits, config, recipe.seeds, recipe.tune_seeds)
    if draws is not None:
        write_lists(evaluation.folder, manifest, draws, recipe.seeds, recipe.tune_seeds)
    yield from evaluate(
        inits,
        LabelledSweeps(manifest, evaluation.run.data.voxel, config),
        splits,
        task,
        config,
        draws=draws,
        context=evaluation.context("backbone"),
        device=evaluation.device,
        known=evaluation.known,
        progress=evaluation.progress,
    )


@dataclass(frozen=True)
class LabelledSweeps:
    """Reads labelled sweeps (the engine's `Sweeps`)."""

    manifest: Manifest
    voxel: VoxelConfig
    config: EvaluateConfig

    def __call__(
        self, indices: Sequence[int], *, batch_size: int, augment: bool = False, seed: int = 0, epoch: int = 0
    ) -> Iterator[Batch]:
        """Batches in the given order."""
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


def task_of(manifest: Manifest) -> SegmentationTask:
    """The set's classes.

    Raises:
        ShardError: it has none.
    """
    if not manifest.class_names:
        raise ShardError(
            f"{manifest.root} ({manifest.set_name}) has no point labels, so nothing can be evaluated on it; give a "
            "labelled set with data.shards=..."
        )
    return SegmentationTask(dataset=manifest.set_name, class_names=manifest.class_names, ignore_label=IGNORE_LABEL)
