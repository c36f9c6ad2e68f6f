"""What the voxels of a batch learn from the labels of its points.

Letters: N points of all samples, M voxels of all samples.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from data.sample import IGNORE_LABEL, Batch


def agreed(
    values: Int[Tensor, " N"], of_voxel: Int[Tensor, " N"], num_voxels: int, none: int
) -> Int[Tensor, " num_voxels"]:
    """What all points of a voxel say that say anything; `none` where they differ or all of them say `none`.

    Source: Choy et al., "4D spatio-temporal ConvNets" (CVPR 2019): a voxel with points of several classes is ignored.
    """
    says = values != none
    values, of_voxel = values[says], of_voxel[says]
    low = values.new_full((num_voxels,), none).scatter_reduce(0, of_voxel, values, "amin", include_self=False)
    high = values.new_full((num_voxels,), none).scatter_reduce(0, of_voxel, values, "amax", include_self=False)
    return torch.where(low == high, low, none)


def voxel_classes(batch: Batch, by: str) -> Int[Tensor, " M"]:
    """Class of each voxel of a labelled batch, IGNORE_LABEL for none; `by` names who asks."""
    return agreed(batch.need("labels", by=by), batch.point_voxel, len(batch.voxel_coords), IGNORE_LABEL)


def voxel_means(values: Float[Tensor, "N C"], of_voxel: Int[Tensor, " N"], num_voxels: int) -> Float[Tensor, "M C"]:
    """Mean over each voxel's points."""
    sums = values.new_zeros(num_voxels, values.shape[1]).index_add(0, of_voxel, values)
    return sums / torch.bincount(of_voxel, minlength=num_voxels).clamp_min(1)[:, None]
