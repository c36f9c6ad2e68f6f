"""Small random batches with all that a method can ask of the loader, and a 3D network without neighbours to run them
through.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from data.sample import Batch, Cameras, PointClusters, PointMatches, PointPixelPairs, Superpixels
from models.lidar.res16unet import Res16UNetConfig

HEIGHT, WIDTH, GRID = 32, 48, 4
"""Image size in pixels; superpixels are a GRID x GRID chessboard of blocks."""

POINTS, VOXELS, SECOND_POINTS = 80, 40, 70
"""Of each sample. The second cloud has all but the last ten points, in another order."""


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
    superpixels: bool = True,
    calibration: bool = False,
    ground: bool = False,
    clusters: int = 0,
    second: bool | Literal["cloud", "images"] = False,
) -> Batch:
    """A batch of the named samples; sample n is the same in every batch.

    Without calibration points and pixels are random and have nothing to do with each other.

    Args:
        samples: numbers of the samples.
        in_channels: features of a voxel.
        pairs: of each image; not all superpixels have one.
        images_each: images of each sample; 0: points only, as for a method that wants no images.
        dtype: of points and voxel features.
        superpixels: of each image.
        calibration: points lie before the cameras, `pair_uv` is where they project to, and each second camera's
            image is mirrored.
        ground: the lowest quarter of the points is ground.
        clusters: of each sample; the last one has no point, and some points belong to none (those on the ground
            among them).
        second: a second cloud with matches ("cloud"), second images ("images"), or both (True).
    """
    parts = [_toy_sample(n, in_channels, pairs, images_each, calibrated=calibration) for n in samples]
    segments_each = images_each * GRID * GRID

    def joined(name: str, step: int = 0) -> Tensor:
        return torch.cat([part[name] + index * step for index, part in enumerate(parts)])

    coords = [torch.cat([torch.full((VOXELS, 1), i), part["cells"]], dim=1) for i, part in enumerate(parts)]
    batch = Batch(
        keys=tuple(f"sample-{n:03d}" for n in samples),
        points=joined("points").to(dtype),
        point_sample=torch.arange(len(parts)).repeat_interleave(POINTS),
        point_voxel=joined("point_voxel", VOXELS),
        voxel_coords=torch.cat(coords).int(),
        voxel_features=joined("features").to(dtype),
        T_aug_lidar=torch.eye(4).repeat(len(parts), 1, 1),
    )
    if images_each:
        batch = dataclasses.replace(
            batch,
            images=joined("images"),
            cameras=Cameras(
                sample=torch.arange(len(parts)).repeat_interleave(images_each),
                K=joined("K"),
                T_cam_points=joined("T_cam_points"),
                affine=joined("affine"),
                min_depth_m=torch.ones(len(parts) * images_each),
            ),
            pairs=PointPixelPairs(
                point=joined("pair_point", POINTS), image=joined("pair_image", images_each), uv=joined("pair_uv")
            ),
        )
        if superpixels:
            groups = Superpixels(
                num=segments_each * len(parts),
                per_image=torch.full((len(parts) * images_each,), GRID * GRID),
                of_pair=joined("pair_segment", segments_each),
                of_pixel=joined("segments", segments_each),
                features=None,
            )
            batch = dataclasses.replace(batch, superpixels=groups)
    if ground:
        batch = dataclasses.replace(batch, ground=joined("ground").bool())
    if clusters:
        cluster = torch.cat([_toy_clusters(part, clusters, ground) for part in parts])
        start = batch.point_sample * clusters
        of_point = torch.where(cluster < 0, cluster, cluster + start)
        batch = dataclasses.replace(batch, clusters=PointClusters(num=clusters * len(parts), of_point=of_point))
    return _with_second(batch, samples, second) if second else batch


def toy_points(samples: Sequence[int], *, second: bool = False, clusters: int = 0, ground: bool = False) -> Batch:
    """What a method without images gets."""
    return toy_batch(samples, images_each=0, second="cloud" if second else False, clusters=clusters, ground=ground)


def _toy_clusters(part: dict[str, Tensor], clusters: int, ground: bool) -> Tensor:
    # From 0 to clusters - 2, and every eighth point in none.
    ids = part["cluster_seed"] % max(clusters - 1, 1)
    outside = torch.arange(POINTS) % 8 == 0
    return torch.where(outside | part["ground"] if ground else outside, -1, ids)


def _with_second(first: Batch, samples: Sequence[int], kind: bool | str) -> Batch:
    """The same batch with a second view: the cloud turned by a sample's own angle, the images in other colours."""
    second, matches = dataclasses.replace(first), None
    if kind is True or kind == "cloud":
        second, match_point = _second_cloud(first, samples)
        matches = PointMatches(first=match_point, second=torch.arange(len(match_point)))
    if (kind is True or kind == "images") and first.images is not None:
        second = dataclasses.replace(second, images=255 - first.images)
        if kind == "images":
            # Mirrored, and the pixels' places with them.
            width = torch.tensor([WIDTH - 1.0, 0.0])
            sign = torch.tensor([-1.0, 1.0])
            second = dataclasses.replace(second, images=(255 - first.images).flip(3))
            second = with_changed(second, pairs={"uv": width + sign * second.need("pairs", by="a test").uv})
            if second.superpixels is not None and second.superpixels.of_pixel is not None:
                second = with_changed(second, superpixels={"of_pixel": second.superpixels.of_pixel.flip(2)})
            cameras = first.need("cameras", by="a test")
            mirror = torch.tensor([[-1.0, 0.0, WIDTH - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
            affine = mirror[:2, :2] @ cameras.affine
            affine[:, 0, 2] += WIDTH - 1.0
            second = with_changed(second, cameras={"K": mirror @ cameras.K, "affine": affine})
    return dataclasses.replace(first, second=second, matches=matches)


def with_changed(batch: Batch, **groups: dict[str, object]) -> Batch:
    """The batch with some fields of its groups changed: `with_changed(batch, pairs={"uv": uv})`."""
    changed = {name: dataclasses.replace(getattr(batch, name), **fields) for name, fields in groups.items()}
    return dataclasses.replace(batch, **changed)


def _second_cloud(first: Batch, samples: Sequence[int]) -> tuple[Batch, Tensor]:
    """Another cloud of the same samples, and the point of the first one that each of its points is."""
    chosen, turned, voxel, features, turns = [], [], [], [], []
    for index, number in enumerate(samples):
        generator = torch.Generator().manual_seed(5000 + number)
        chosen.append(torch.randperm(SECOND_POINTS, generator=generator) + index * POINTS)
        angle = torch.rand((), generator=generator) * 6.28
        turn = torch.eye(4)
        turn[:2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
        turns.append(turn)
        turned.append(first.points[chosen[-1]] @ turn[:3, :3].T.to(first.points.dtype))
        voxel.append(torch.randint(0, VOXELS, (SECOND_POINTS,), generator=generator) + index * VOXELS)
        shape = (VOXELS, first.voxel_features.shape[1])
        features.append(torch.randn(shape, generator=generator).to(first.voxel_features.dtype))
    match = torch.cat(chosen)
    second = dataclasses.replace(
        first,
        points=torch.cat(turned),
        point_sample=first.point_sample[match],
        point_voxel=torch.cat(voxel),
        voxel_features=torch.cat(features),
        T_aug_lidar=torch.stack(turns),
        ground=None if first.ground is None else first.ground[match],
    )
    if first.clusters is not None:
        second = with_changed(second, clusters={"of_point": first.clusters.of_point[match]})
    if first.pairs is None or first.cameras is None:
        return second, match
    place = torch.full((first.num_points,), -1)
    place[match] = torch.arange(len(match))
    seen = place[first.pairs.point] >= 0
    pairs = dataclasses.replace(first.pairs, point=place[first.pairs.point]).select(seen)
    turn_of_image = torch.stack(turns)[first.cameras.sample]
    second = with_changed(
        second, cameras={"T_cam_points": first.cameras.T_cam_points @ torch.linalg.inv(turn_of_image)}
    )
    if first.superpixels is not None:
        second = with_changed(second, superpixels={"of_pair": first.superpixels.of_pair[seen]})
    return dataclasses.replace(second, pairs=pairs), match


def _toy_sample(
    number: int, in_channels: int, pairs: int, images_each: int, *, calibrated: bool = False
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 + number)
    cells = torch.stack(torch.meshgrid(*[torch.arange(-3, 5)] * 3, indexing="ij"), dim=-1).view(-1, 3)
    blocks = (torch.arange(HEIGHT) * GRID // HEIGHT)[:, None] * GRID + torch.arange(WIDTH) * GRID // WIDTH
    segments = torch.stack([blocks + image * GRID * GRID for image in range(max(images_each, 1))])
    pair_image = torch.arange(images_each).repeat_interleave(pairs)
    # The top row of superpixels sees no point.
    v = torch.randint(HEIGHT // GRID, HEIGHT, (len(pair_image),), generator=generator)
    u = torch.randint(0, WIDTH, (len(pair_image),), generator=generator)
    part = {
        "cells": cells[torch.randperm(len(cells), generator=generator)[:VOXELS]],
        "points": torch.randn(POINTS, 3, generator=generator),
        "point_voxel": torch.randint(0, VOXELS, (POINTS,), generator=generator),
        "features": torch.randn(VOXELS, in_channels, generator=generator),
        "images": torch.randint(0, 256, (images_each, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8),
        "pair_point": torch.randint(0, POINTS, (len(pair_image),), generator=generator),
        "pair_image": pair_image,
        "pair_uv": torch.stack([u, v], dim=1).float(),
        "segments": segments,
        "cluster_seed": torch.randint(0, 1000, (POINTS,), generator=generator),
        "K": torch.eye(3).repeat(images_each, 1, 1),
        "T_cam_points": torch.eye(4).repeat(images_each, 1, 1),
        "affine": torch.eye(3)[:2].repeat(images_each, 1, 1),
    }
    if calibrated:
        part |= _calibrated(part, images_each, generator)
    u, v = (part["pair_uv"] + 0.5).long().unbind(1)
    part["pair_segment"] = segments[pair_image, v, u]
    part["ground"] = part["points"][:, 2] < part["points"][:, 2].quantile(0.25)
    return part


def _calibrated(part: dict[str, Tensor], images_each: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Points before the cameras, and where they project to: cameras look along x, 0.3 m beside each other."""
    x = 4 + 12 * torch.rand(POINTS, generator=generator)
    y = x * (torch.rand(POINTS, generator=generator) - 0.5) * 0.9
    z = x * (torch.rand(POINTS, generator=generator) * 0.5 - 0.33)
    points = torch.stack((x, y, z), dim=1)
    K = torch.tensor([[40.0, 0.0, (WIDTH - 1) / 2], [0.0, 40.0, (HEIGHT - 1) / 2], [0.0, 0.0, 1.0]])
    mirror = torch.tensor([[-1.0, 0.0, WIDTH - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    axes = torch.tensor([[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    poses = axes.repeat(images_each, 1, 1)
    poses[:, 0, 3] = 0.3 * torch.arange(images_each)
    affines = torch.stack([mirror if image % 2 else torch.eye(3) for image in range(images_each)])
    Ks = affines @ K
    image, point = part["pair_image"], part["pair_point"]
    in_camera = torch.einsum("pij,pj->pi", poses[image, :3, :3], points[point]) + poses[image, :3, 3]
    pixels = torch.einsum("pij,pj->pi", Ks[image], in_camera)
    return {
        "points": points,
        "pair_uv": pixels[:, :2] / pixels[:, 2:],
        "K": Ks,
        "T_cam_points": poses,
        "affine": affines[:, :2],
    }


def on_axes(batch: Batch, depth_m: float) -> Tensor:
    """[I, 3]: the point before each camera on its optical axis, in the frame of `Batch.points`."""
    assert batch.cameras is not None
    ahead = torch.tensor([0.0, 0.0, depth_m, 1.0], dtype=batch.cameras.T_cam_points.dtype)
    return (torch.linalg.inv(batch.cameras.T_cam_points) @ ahead)[:, :3]
