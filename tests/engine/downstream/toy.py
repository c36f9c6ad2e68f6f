"""A made-up set whose classes can be read off the voxel features, and a network that passes them on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from data.sample import IGNORE_LABEL, Batch
from engine.downstream.common import Samples, SegmentationTask, Splits

TASK = SegmentationTask(dataset="toy", class_names=("road", "car", "tree"), ignore_label=IGNORE_LABEL)


def toy_batch(indices: Sequence[int], *, angle: float = 0.0, voxels: int = 40, labelled: bool = True) -> Batch:
    """Sweep i is the same at every call: voxels of 3 classes, 1 to 3 points each, a third of the points unlabelled."""
    coords, features, owner, labels, sample = [], [], [], [], []
    for s, index in enumerate(indices):
        rng = np.random.default_rng(index)
        classes = rng.integers(0, 3, voxels)
        centre = np.array([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])[classes]
        x = centre + 0.4 * rng.standard_normal((voxels, 2))
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        repeat = np.repeat(np.arange(voxels), rng.integers(1, 4, voxels))
        cells = np.stack([np.full(voxels, s), np.arange(voxels), np.zeros(voxels), np.zeros(voxels)], 1)
        coords.append(cells.astype(np.int32))
        features.append((x @ rotation.T).astype(np.float32))
        owner.append(repeat + s * voxels)
        labels.append(np.where(rng.random(len(repeat)) < 0.33, IGNORE_LABEL, classes[repeat]))
        sample.append(np.full(len(repeat), s))
    point_voxel = torch.from_numpy(np.concatenate(owner)).long()
    return Batch(
        keys=tuple(f"sweep{i}" for i in indices),
        points=torch.zeros(len(point_voxel), 3),
        point_sample=torch.from_numpy(np.concatenate(sample)).long(),
        point_voxel=point_voxel,
        voxel_coords=torch.from_numpy(np.concatenate(coords)),
        voxel_features=torch.from_numpy(np.concatenate(features)),
        T_aug_lidar=torch.eye(4).repeat(len(indices), 1, 1),
        labels=torch.from_numpy(np.concatenate(labels)).long() if labelled else None,
    )


@dataclass
class ToySweeps:
    """Reader of the made-up set; remembers what it was asked for."""

    calls: list[tuple[tuple[int, ...], bool, int, int]] = field(default_factory=list)
    labelled: bool = True

    def __call__(self, samples: Samples) -> Iterable[Batch]:
        self.calls.append((tuple(samples.indices), samples.augment, samples.seed, samples.epoch))
        for at in range(0, len(samples.indices), samples.batch_size):
            yield toy_batch(samples.indices[at : at + samples.batch_size], labelled=self.labelled)


class ToyNet(nn.Module):
    """Linear, BatchNorm, and a second layer that a bad initialisation sets to zero: then its features say nothing."""

    def __init__(self, seed: int, *, good: bool = True) -> None:
        super().__init__()
        self.num_features = 8
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Linear(2, 16)
            self.norm = nn.BatchNorm1d(16)
            self.last = nn.Linear(16, 8)
            if not good:
                nn.init.zeros_(self.first.weight)

    def forward(self, voxel_coords: Tensor, voxel_features: Tensor, num_samples: int) -> Tensor:
        out: Tensor = self.last(self.norm(self.first(voxel_features)).relu())
        return out


def toy_splits(num_train: int = 12, num_test: int = 4, num_logs: int = 4) -> Splits:
    train = np.arange(num_train)
    return Splits(
        train=train, train_logs=train * num_logs // num_train, test=np.arange(num_train, num_train + num_test)
    )
