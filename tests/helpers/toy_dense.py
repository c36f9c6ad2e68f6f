"""Made-up images whose depth and classes can be read off their colours, and an encoder that passes them on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from data.sample import IGNORE_LABEL, Batch
from engine.downstream.common import Samples, Truth
from models.pairing import FeatureMap

SIZE = (16, 24)


def toy_images(indices: Sequence[int], *, truth: Truth | None, images_per_sample: int = 2) -> Batch:
    """Sample i is the same at every call: blocks of 4 x 4 pixels; red is the depth, green the class of three."""
    images, depths, labels = [], [], []
    for index in indices:
        rng = np.random.default_rng(index)
        for _ in range(images_per_sample):
            coarse = rng.integers(0, 256, (3, SIZE[0] // 4, SIZE[1] // 4))
            image = np.kron(coarse, np.ones((4, 4), dtype=np.int64)).astype(np.uint8)
            depth = (2.0 + 40.0 * image[0] / 255.0).astype(np.float32)
            depth[:2] = 0.0
            classes = (image[1] // 86).astype(np.uint8)
            classes[:, :2] = IGNORE_LABEL
            images.append(image)
            depths.append(depth)
            labels.append(classes)
    return Batch(
        keys=tuple(f"sample{i}" for i in indices),
        points=torch.zeros(0, 3),
        point_sample=torch.zeros(0, dtype=torch.int64),
        point_voxel=torch.zeros(0, dtype=torch.int64),
        voxel_coords=torch.zeros(0, 4, dtype=torch.int32),
        voxel_features=torch.zeros(0, 0),
        T_aug_lidar=torch.eye(4).repeat(len(indices), 1, 1),
        images=torch.from_numpy(np.stack(images)),
        image_depth_m=torch.from_numpy(np.stack(depths)) if truth == "depth" else None,
        image_labels=torch.from_numpy(np.stack(labels)) if truth == "labels" else None,
    )


@dataclass
class ToyImages:
    """Reader of the made-up images; remembers what it was asked for."""

    calls: list[tuple[tuple[int, ...], Truth | None, bool, int, int]] = field(default_factory=list)
    with_truth: bool = True

    def __call__(self, samples: Samples) -> Iterable[Batch]:
        self.calls.append((tuple(samples.indices), samples.truth, samples.augment, samples.seed, samples.epoch))
        for at in range(0, len(samples.indices), samples.batch_size):
            indices = samples.indices[at : at + samples.batch_size]
            yield toy_images(indices, truth=samples.truth if self.with_truth else None)


class ToyEncoder(nn.Module):
    """Two maps of strides 4 and 8; a bad one looks at nothing."""

    level_features = (8, 8)

    def __init__(self, seed: int, *, good: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Conv2d(3, 8, 4, stride=4)
            self.norm = nn.BatchNorm2d(8)
            self.second = nn.Conv2d(8, 8, 2, stride=2)
            if not good:
                nn.init.zeros_(self.first.weight)

    def pyramid(self, images: Tensor) -> tuple[FeatureMap, ...]:
        fine = self.norm(self.first(images.float() / 128 - 1))
        return (FeatureMap(fine, 4, 1.5), FeatureMap(self.second(fine), 8, 3.5))
