"""MVX-Net's voxel features point by point, each projected by hand, from its paper and released code."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from data.sample import Batch
from models.detection.mvx_net import MvxNet

BORDER_PX = 1.0
"""Of the stored image: points on its rim have no pixel."""


def projected(batch: Batch, point: int, image: int, stored: tuple[int, int]) -> tuple[float, float] | None:
    """Pixel under a point; None where it lies behind the camera, too near, or beyond an image of that stored size."""
    assert batch.cameras is not None
    assert batch.images is not None
    if int(batch.cameras.sample[image]) != int(batch.point_sample[point]):
        return None
    T, K = batch.cameras.T_cam_points[image].double(), batch.cameras.K[image].double()
    x, y, z = (T[:3, :3] @ batch.points[point].double() + T[:3, 3]).tolist()
    if z <= float(batch.cameras.min_depth_m[image]):
        return None
    u, v = (K @ torch.tensor([x / z, y / z, 1.0], dtype=torch.float64)).tolist()[:2]
    affine = torch.cat([batch.cameras.affine[image].double(), torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)])
    before = torch.linalg.solve(affine, torch.tensor([u, v, 1.0], dtype=torch.float64)).tolist()[:2]
    sizes = zip((u, v), before, reversed(batch.images.shape[-2:]), reversed(stored), strict=True)
    inside = all(0 <= now <= size - 1 and BORDER_PX <= was <= old - 1 - BORDER_PX for now, was, size, old in sizes)
    return (u, v) if inside else None


def bilinear(level: Tensor, x: float, y: float) -> Tensor:
    """A map of C x h x w at a place in cells, constant beyond the outermost centres."""
    height, width = level.shape[1:]
    x, y = min(max(x, 0.0), width - 1), min(max(y, 0.0), height - 1)
    x0, y0 = math.floor(x), math.floor(y)
    x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
    top = level[:, y0, x0] * (1 - (x - x0)) + level[:, y0, x1] * (x - x0)
    bottom = level[:, y1, x0] * (1 - (x - x0)) + level[:, y1, x1] * (x - x0)
    return top * (1 - (y - y0)) + bottom * (y - y0)


def normalised(norm: nn.Module, row: Tensor) -> Tensor:
    """A row through BatchNorm in evaluation mode."""
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return (row - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def voxel_features(model: MvxNet, batch: Batch, stored: tuple[int, int]) -> Tensor:
    """Input of the sparse encoder, a row a voxel; the model is in evaluation mode."""
    assert batch.images is not None
    encoder = model.voxel_encoder
    maps = [(m.values, m.stride) for m in model.image_backbone.pyramid(batch.images)]
    while len(maps) < len(encoder.fusion.lateral):
        maps.append((maps[-1][0][:, :, ::2, ::2], 2 * maps[-1][1]))
    laterals = [(conv(level), stride) for conv, (level, stride) in zip(encoder.fusion.lateral, maps, strict=False)]
    points_of: dict[int, list[int]] = {}
    for point, voxel in enumerate(batch.point_voxel.tolist()):
        points_of.setdefault(voxel, []).append(point)

    rows: dict[int, Tensor] = {}
    for voxel, points in points_of.items():
        mean = batch.points[points].mean(dim=0)
        centre = (batch.voxel_coords[voxel, 1:] + 0.5) * torch.tensor(model.voxel_size_m)
        for point in points:
            xyz = batch.points[point]
            rows[point] = torch.cat([xyz, batch.voxel_features[voxel, 3:], xyz - mean, xyz - centre])
    for number, layer in enumerate(encoder.layers):
        if number:
            largest = {voxel: torch.stack([rows[p] for p in points]).amax(0) for voxel, points in points_of.items()}
            rows = {p: torch.cat([row, largest[int(batch.point_voxel[p])]]) for p, row in rows.items()}
        rows = {p: normalised(layer.norm, layer.linear(row)).relu() for p, row in rows.items()}  # type: ignore[arg-type, operator]

    fused = {}
    for point, row in rows.items():
        seen = []
        for image in range(len(batch.images)):
            uv = projected(batch, point, image, stored)
            if uv is not None:
                seen.append(torch.cat([bilinear(m[image], uv[0] / s, uv[1] / s) for m, s in laterals]))
        pixels = torch.stack(seen).mean(0) if seen else torch.zeros(encoder.fusion.image_layer.in_features)
        image_part = normalised(encoder.fusion.image_norm, encoder.fusion.image_layer(pixels))
        fused[point] = (image_part + normalised(encoder.fusion.point_norm, encoder.fusion.point_layer(row))).relu()
    return torch.stack([torch.stack([fused[p] for p in points_of[v]]).amax(0) for v in range(len(batch.voxel_coords))])
