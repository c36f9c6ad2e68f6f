"""A detector of next to nothing, for runs at toy size: one box a sample, regressed from the mean feature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from configs.detection import MODELS
from data.batch_spec import BatchSpec
from data.sample import Batch
from engine.detection.judge import BENCHMARKS
from engine.detection.pairs import FramePair
from engine.scores import MEAN, Score, Scores
from models.detection.base import Detections, Detector, DetectorConfig
from models.image.base import ImageEncoderConfig
from models.image.resnet_encoder import ResNetEncoderConfig
from models.lidar.base import BackboneConfig
from models.lidar.res16unet import Res16UNetConfig
from models.methods.base import LossTerms


@dataclass(frozen=True, kw_only=True)
class ToyDetectorConfig(DetectorConfig):
    classes: tuple[str, ...] = ("car", "pedestrian")
    backbone: BackboneConfig = field(default_factory=lambda: Res16UNetConfig(preset="res16unet_tiny"))
    dropout: float = 0.2

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(images=False, boxes=self.classes)

    def toy(self) -> ToyDetectorConfig:
        return replace(self, backbone=self.backbone.toy())

    def build(self) -> ToyDetector:
        return ToyDetector(self)


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig(ToyDetectorConfig):
    """The toy with an image network beside it, which `init` can fill; its boxes do not depend on it."""

    image_backbone: ImageEncoderConfig = field(default_factory=lambda: ResNetEncoderConfig(preset="resnet10_tiny"))

    def build(self) -> ToyDetector:
        detector = ToyDetector(self)
        detector.image_backbone = self.image_backbone.build()
        return detector


class ToyDetector(Detector):
    """A network, drop-out (the run's random state matters), BatchNorm and a head."""

    def __init__(self, config: ToyDetectorConfig) -> None:
        super().__init__()
        self.backbone = config.backbone.build()
        self.num_classes = len(config.classes)
        self.norm = nn.BatchNorm1d(self.backbone.num_features)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(self.backbone.num_features, 7 + self.num_classes)

    def _outputs(self, batch: Batch) -> Tensor:
        voxels = self.backbone(batch.voxel_coords, batch.voxel_features, batch.num_samples)
        voxels = self.norm(voxels)
        rows = [voxels[batch.voxel_coords[:, 0] == n].mean(0) for n in range(batch.num_samples)]
        return self.head(self.dropout(torch.stack(rows)))

    def forward(self, batch: Batch) -> LossTerms:
        boxes, found = batch.need("boxes", by="a toy detector"), self._outputs(batch)
        apart = (found[boxes.sample, :7] - boxes.boxes).abs().sum()
        wanted = nn.functional.one_hot(boxes.classes, self.num_classes).float()
        wrong = nn.functional.binary_cross_entropy_with_logits(found[boxes.sample, 7:], wanted, reduction="sum")
        total = (apart / 10 + wrong + 0 * found.sum()) / batch.num_samples  # equally many on every rank
        return LossTerms(total=total, parts={"box": apart.detach(), "class": wrong.detach()})

    def detect(self, batch: Batch) -> Detections:
        found = self._outputs(batch)
        scores, classes = found[:, 7:].sigmoid().max(1)
        boxes = torch.cat((found[:, :3], found[:, 3:6].abs(), found[:, 6:7]), dim=1)
        return Detections(
            boxes=boxes,
            velocities_mps=torch.full((len(boxes), 2), torch.nan, device=boxes.device),
            classes=classes,
            scores=scores,
            sample=torch.arange(batch.num_samples, device=boxes.device),
        )


def toy_benchmark(frames: Sequence[FramePair]) -> Scores:
    """Sums of scores and distances of what was found: figures that change with the weights, whatever the set has."""
    found = [found for _, found in frames]
    figures = {
        "score": float(np.concatenate([frame.scores for frame in found]).sum()),
        "distance": float(np.concatenate([np.linalg.norm(frame.boxes[:, :3], axis=1) for frame in found]).sum()),
    }
    true = sum(len(truth) for truth, _ in frames)
    rows = [
        Score(category=MEAN, subset="", metric=name, value=value, unit="", num_true=true)
        for name, value in figures.items()
    ]
    return Scores(benchmark="toy", headline=figures, unit="", rows=tuple(rows))


@contextmanager
def known() -> Iterator[None]:
    """Configs may name the toy detector, and a benchmark "toy"."""
    with mock.patch.dict(MODELS, {"toy": ToyDetectorConfig}), mock.patch.dict(BENCHMARKS, {"toy": toy_benchmark}):  # type: ignore[arg-type]
        yield
