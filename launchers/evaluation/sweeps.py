"""What protocols of 3D networks read and need: labelled sweeps, and pictures of predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from configs.schema import EvaluateConfig
from data.batch_spec import VoxelConfig
from data.loading.evaluation import point_batches
from data.sample import Batch
from data.storage.manifest import Manifest
from data.storage.reader import SampleReader
from data.views.augment import PointAugmentConfig
from engine.downstream.common import LabelDraws, Samples, Splits, run_backbone
from engine.downstream.features import Predictor, SweepParts
from launchers.drawing.predictions import draw_sweep_predictions, write_predictions
from launchers.evaluation.common import Evaluation, drawn_sample, workers_for
from models.lidar.native.library import threads_for_points


def sweep_parts(evaluation: Evaluation, splits: Splits, draws: Mapping[str, LabelDraws]) -> SweepParts:
    """For the protocols of `tower="backbone"`; each leaves a picture of its predictions for a test sweep."""
    read = LabelledSweeps(evaluation.manifest, evaluation.run.data.voxel, evaluation.config)

    def keep(init: str, protocol: str, backbone: nn.Module, predict: Predictor) -> None:
        batch = drawn_sample(read, splits, "labels")
        if batch is None:
            return
        backbone.eval()
        with torch.inference_mode():
            classes = predict(run_backbone(backbone, batch.to(evaluation.device)).float()).cpu()[batch.point_voxel]
        picture = draw_sweep_predictions(batch, classes.numpy(), evaluation.manifest.class_names)
        labels = draws[protocol].text if protocol in draws else "all"
        write_predictions(evaluation.folder, f"{protocol} {labels} {init}", picture)

    return SweepParts(read=read, keep=keep, threads=partial(threads_for_points, torch.device(evaluation.device)))


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
