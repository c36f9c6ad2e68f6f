"""Small random batches with images, superpixels and pairs, and a 3D network without neighbours to run them through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.sample import Batch
from models.lidar.res16unet import Res16UNetConfig

HEIGHT, WIDTH, GRID = 32, 48, 4
"""Image size in pixels; superpixels are a GRID x GRID chessboard of blocks."""


@dataclass(frozen=True, kw_only=True)
class PointwiseConfig(Res16UNetConfig):
    """Stands in for the sparse network where its neighbourhoods and BatchNorm would only be in the way."""

    def build(self) -> nn.Module:  # type: ignore[override]
        """Two layers on each voxel alone."""
        return PointwiseNetwork(self.in_channels)


class PointwiseNetwork(nn.Module):
    """Features of each voxel from its own input alone."""

    num_features = 12

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_channels, 16), nn.Tanh(), nn.Linear(16, self.num_features))

    def forward(self, voxel_coords: Tensor, voxel_features: Tensor, num_samples: int) -> Tensor:
        """No neighbours, no statistics over the batch."""
        out: Tensor = self.layers(voxel_features)
        return out


def toy_batch(
    samples: Sequence[int],
    *,
    in_channels: int = 3,
    pairs: int = 60,
    images_each: int = 2,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """A batch of the named samples; sample n is the same in every batch.

    Args:
        samples: numbers of the samples.
        in_channels: features of a voxel.
        pairs: of each image; not all superpixels have one.
        images_each: images of each sample.
        dtype: of points and voxel features.
    """
    parts = [_toy_sample(n, in_channels, pairs, images_each) for n in samples]
    points_each, voxels_each, segments_each = 80, 40, images_each * GRID * GRID

    def joined(name: str, step: int = 0) -> Tensor:
        return torch.cat([part[name] + index * step for index, part in enumerate(parts)])

    coords = [torch.cat([torch.full((voxels_each, 1), i), part["cells"]], dim=1) for i, part in enumerate(parts)]
    return Batch(
        keys=tuple(f"sample-{n:03d}" for n in samples),
        points=joined("points").to(dtype),
        point_sample=torch.arange(len(parts)).repeat_interleave(points_each),
        point_voxel=joined("point_voxel", voxels_each),
        voxel_coords=torch.cat(coords).int(),
        voxel_features=joined("features").to(dtype),
        images=joined("images"),
        image_sample=torch.arange(len(parts)).repeat_interleave(images_each),
        pair_point=joined("pair_point", points_each),
        pair_image=joined("pair_image", images_each),
        pair_uv=joined("pair_uv"),
        pair_segment=joined("pair_segment", segments_each),
        segments=joined("segments", segments_each),
        num_segments=segments_each * len(parts),
    )


def _toy_sample(number: int, in_channels: int, pairs: int, images_each: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 + number)
    cells = torch.stack(torch.meshgrid(*[torch.arange(-3, 5)] * 3, indexing="ij"), dim=-1).view(-1, 3)
    blocks = (torch.arange(HEIGHT) * GRID // HEIGHT)[:, None] * GRID + torch.arange(WIDTH) * GRID // WIDTH
    segments = torch.stack([blocks + image * GRID * GRID for image in range(images_each)])
    pair_image = torch.arange(images_each).repeat_interleave(pairs)
    # The top row of superpixels sees no point.
    v = torch.randint(HEIGHT // GRID, HEIGHT, (len(pair_image),), generator=generator)
    u = torch.randint(0, WIDTH, (len(pair_image),), generator=generator)
    return {
        "cells": cells[torch.randperm(len(cells), generator=generator)[:40]],
        "points": torch.randn(80, 3, generator=generator),
        "point_voxel": torch.randint(0, 40, (80,), generator=generator),
        "features": torch.randn(40, in_channels, generator=generator),
        "images": torch.randint(0, 256, (images_each, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8),
        "pair_point": torch.randint(0, 80, (len(pair_image),), generator=generator),
        "pair_image": pair_image,
        "pair_uv": torch.stack([u, v], dim=1).float(),
        "pair_segment": segments[pair_image, v, u],
        "segments": segments,
    }
