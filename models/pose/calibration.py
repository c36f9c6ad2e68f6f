"""What a calibrated batch says about sampled voxels and image cells: where they lie, what sees what, which way is true.

Letters: I images, B samples, M voxels, K tokens (sampled voxels of an image's sample), C cells, A axes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from data.sample import Batch
from models.pairing import FeatureMap, segment_mean

RIGID_TOLERANCE = 1e-3
_POSES = "an estimate of poses"
"""Who needs a part of the batch, in messages."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Voxels that stand for an image's sweep."""

    voxel: Int[Tensor, "I K"]  # row of the batch's voxels; 0 for padding
    valid: Bool[Tensor, "I K"]  # whether this is a voxel and not padding
    points: Float[Tensor, "I K 3"]  # mean of the voxel's points, metres; 0 for padding
    uv: Float[Tensor, "I K 2"]  # pixel by the true pose; 0 where not seen
    seen: Bool[Tensor, "I K"]  # valid, before the camera and inside the image


def check_calibrated(batch: Batch, method: str) -> None:
    """Refuse batches from which no rigid pose can be learnt.

    Raises:
        ValueError: no images or no calibration, clouds that were mirrored or scaled, mirrored images; names the
            setting.
    """
    batch.need("images", by=method)
    cameras = batch.need("cameras", by=method)
    R = batch.T_aug_lidar[:, :3, :3].double()
    deviation = (R @ R.mT - torch.eye(3, dtype=R.dtype, device=R.device)).abs().amax(dim=(1, 2))
    not_rigid = (deviation > RIGID_TOLERANCE) | (torch.linalg.det(R) < 0)
    if bool(not_rigid.any()):
        key = batch.keys[int(not_rigid.nonzero()[0])]
        raise ValueError(
            f"sample {key}: T_aug_lidar scales or mirrors the cloud, and {method} looks for a rigid pose; set "
            "data.augment.points.flip=false and data.augment.points.scale_range=[1,1]"
        )
    if bool((cameras.K[:, 0, 0] <= 0).any()):
        raise ValueError(
            f"{method}: an image is mirrored, which no rigid pose explains; set data.augment.image.flip=false"
        )


def sample_tokens(batch: Batch, limit: int) -> Tokens:
    """At most `limit` voxels of each image's sample, at random.

    Which rows are drawn depends on the sample's name and the image's number in it alone, so that a run repeats and
    ranks do not matter; what lies in those rows changes with the sample's augmentation.

    The batch has passed `check_calibrated`.
    """
    device = batch.voxel_coords.device
    per_sample = torch.bincount(batch.voxel_coords[:, 0].long(), minlength=batch.num_samples).tolist()
    first = [sum(per_sample[:i]) for i in range(batch.num_samples)]
    of_image = batch.need("cameras", by=_POSES).sample.tolist()
    width = max(1, min(limit, max((per_sample[s] for s in of_image), default=0)))  # attention needs a source
    voxel = torch.zeros(len(of_image), width, dtype=torch.long)
    valid = torch.zeros(len(of_image), width, dtype=torch.bool)
    for image, sample in enumerate(of_image):
        number = image - of_image.index(sample)
        # crc32: Python's own hash of a string differs from process to process.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{batch.keys[sample]}/{number}".encode()))
        drawn = torch.randperm(per_sample[sample], generator=generator)[:limit]
        voxel[image, : len(drawn)] = drawn + first[sample]
        valid[image, : len(drawn)] = True
    voxel, valid = voxel.to(device), valid.to(device)
    centres = segment_mean(batch.points, batch.point_voxel, len(batch.voxel_coords))[0]
    points = torch.where(valid[..., None], centres[voxel], 0) if len(centres) else centres.new_zeros(*voxel.shape, 3)
    uv, seen = project_all(batch, points)
    seen = seen & valid
    return Tokens(voxel=voxel, valid=valid, points=points, uv=torch.where(seen[..., None], uv, 0), seen=seen)


def project_all(
    batch: Batch, points: Float[Tensor, "I K 3"], T_cam_points: Float[Tensor, "I 4 4"] | None = None
) -> tuple[Float[Tensor, "I K 2"], Bool[Tensor, "I K"]]:
    """Pixels of points in their images, by the true pose or another, and which lie inside; finite for all points."""
    images, cameras = batch.need("images", by=_POSES), batch.need("cameras", by=_POSES)
    T = cameras.T_cam_points if T_cam_points is None else T_cam_points
    return _project(points, cameras.K, T, cameras.min_depth_m, (images.shape[-2], images.shape[-1]))


def covered_cells(batch: Batch, cells: FeatureMap) -> Bool[Tensor, "I h w"]:
    """Cells in or beside which any point of the sweep is seen: the image's part of the overlap.

    Beams leave gaps of several pixels; the neighbours of a hit cell count as well, which closes them.
    """
    images, cameras = batch.need("images", by=_POSES), batch.need("cameras", by=_POSES)
    pixels = (images.shape[-2], images.shape[-1])
    covered = torch.zeros(len(images), *cells.size, dtype=torch.float32, device=batch.points.device)
    for image, sample in enumerate(cameras.sample.tolist()):
        points = batch.points[batch.point_sample == sample][None]
        one = slice(image, image + 1)
        uv, seen = _project(points, cameras.K[one], cameras.T_cam_points[one], cameras.min_depth_m[one], pixels)
        cell = ((uv[seen] - cells.origin_px) / cells.stride).round().long()
        u, v = cell[:, 0].clamp(0, cells.size[1] - 1), cell[:, 1].clamp(0, cells.size[0] - 1)
        covered[image, v, u] = 1.0
    if covered.numel() == 0:
        return covered > 0
    return F.max_pool2d(covered[:, None], 3, stride=1, padding=1)[:, 0] > 0


def cell_pixels(cells: FeatureMap, *, like: Float[Tensor, "..."]) -> Float[Tensor, "C 2"]:
    """Pixel (u, v) under the centre of each cell, row by row, in the type and on the device of `like`."""
    v, u = (cells.origin_px + cells.stride * torch.arange(n, device=like.device, dtype=like.dtype) for n in cells.size)
    return torch.stack([u.repeat(len(v)), v.repeat_interleave(len(u))], dim=1)


def _project(
    points: Float[Tensor, "I K 3"],
    K: Float[Tensor, "I 3 3"],
    T: Float[Tensor, "I 4 4"],
    min_depth_m: Float[Tensor, " I"],
    size: tuple[int, int],
) -> tuple[Float[Tensor, "I K 2"], Bool[Tensor, "I K"]]:
    K, T = K.to(points.dtype), T.to(points.dtype)
    camera = points @ T[:, :3, :3].mT + T[:, None, :3, 3]
    depth, near = camera[..., 2], min_depth_m.to(points.dtype)[:, None]
    uv = (camera @ K.mT)[..., :2] / torch.maximum(depth, near.clamp(min=1e-3))[..., None]
    limits = uv.new_tensor([size[1] - 1, size[0] - 1])
    return uv, (depth > near) & (uv >= 0).all(dim=-1) & (uv <= limits).all(dim=-1)
