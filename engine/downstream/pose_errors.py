"""How well a pose between LiDAR and camera was found: translation and rotation errors, recall.

Errors are those of the residual transform inv(T_estimated) T_true:

    RTE = |translation of the residual|                                     metres
    RRE = angle of its rotation (geodesic distance), 0 to 180               degrees
    RRE (Euler) = sum of the sizes of its three Euler angles, up to 450     degrees, never below the geodesic one

The registration literature (DeepI2P, CorrI2P and what follows them) calls the sum "RRE"; both are reported.
A sample for which no pose was found has infinite errors and counts as not registered in every share.

Letters: B samples, K thresholds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

RTE_LIMIT_M = 2.0
"""A sample is registered below this RTE and RRE: the usual limits of the KITTI and nuScenes tables."""
RRE_LIMIT_DEG = 5.0
EULER_ORDER: Final = "xzy"
"""Order of the angles in the literature's released code (lower case: about fixed axes). The middle angle stays within
90 degrees: a turn about z by 170 is 180 + 10 + 180 = 370 degrees as a sum."""


@dataclass(frozen=True, kw_only=True)
class PoseErrors:
    """Errors of each sample, infinite where no pose was found.

    Attributes:
        rte_m: translation.
        rre_deg: rotation, geodesic.
        rre_euler_deg: rotation, sum of Euler angles.
    """

    rte_m: Float64[Tensor, " B"]
    rre_deg: Float64[Tensor, " B"]
    rre_euler_deg: Float64[Tensor, " B"]


def pose_errors(
    T_estimated: Float[Tensor, "B 4 4"],
    T_true: Float[Tensor, "B 4 4"],
    valid: Bool[Tensor, " B"] | None = None,
) -> PoseErrors:
    """Errors of estimated camera-from-LiDAR poses, in float64.

    Source: DeepI2P (Li and Lee, CVPR 2021), CorrI2P (Ren et al., TCSVT 2022) for RTE and the sum of Euler angles.

    Args:
        T_estimated: rigid transforms; what stands where not valid is ignored.
        T_true: rigid transforms.
        valid: whether a pose was found; None for all.

    Raises:
        ValueError: a transform that counts is not rigid (to 1e-3), or not finite.
    """
    estimated, true = T_estimated.detach().double().cpu(), T_true.detach().double().cpu()
    keep = torch.ones(len(true), dtype=torch.bool) if valid is None else valid.cpu()
    _check_rigid(estimated, keep, "T_estimated")
    _check_rigid(true, torch.ones_like(keep), "T_true")
    identity = torch.eye(4, dtype=torch.float64)
    residual = torch.linalg.inv(torch.where(keep[:, None, None], estimated, identity)) @ true
    R = residual[:, :3, :3]
    # Sine and cosine both: the arc cosine alone has no digits left at small angles.
    axis = torch.stack([R[:, 2, 1] - R[:, 1, 2], R[:, 0, 2] - R[:, 2, 0], R[:, 1, 0] - R[:, 0, 1]], dim=1)
    geodesic = torch.atan2(axis.norm(dim=1) / 2, (R.diagonal(dim1=1, dim2=2).sum(dim=1) - 1) / 2)
    errors = (residual[:, :3, 3].norm(dim=1), torch.rad2deg(geodesic), _euler_sum(R))
    rte, rre, euler = (torch.where(keep, error, math.inf) for error in errors)
    return PoseErrors(rte_m=rte, rre_deg=rre, rre_euler_deg=euler)


def summarise(errors: PoseErrors) -> dict[str, float]:
    """Shares (percent) and means (metres, degrees) by the names of `METRICS`; NaN for means of nothing.

    recall         share registered within `RTE_LIMIT_M` and `RRE_LIMIT_DEG` (geodesic)
    recall_euler   the same with the sum of Euler angles, the literature's "registration accuracy"
    found          share of samples with any pose
    rre, rre_euler, rte     means over the samples with a pose, outliers included
    ..._registered          means over the samples of `recall_euler`, as tables usually have it
    """
    found = torch.isfinite(errors.rte_m)
    close = errors.rte_m < RTE_LIMIT_M
    registered = close & (errors.rre_euler_deg < RRE_LIMIT_DEG)
    return {
        "recall": 100 * mean_or_nan((close & (errors.rre_deg < RRE_LIMIT_DEG)).double()),
        "recall_euler": 100 * mean_or_nan(registered.double()),
        "found": 100 * mean_or_nan(found.double()),
        "rre": mean_or_nan(errors.rre_deg[found]),
        "rre_euler": mean_or_nan(errors.rre_euler_deg[found]),
        "rte": mean_or_nan(errors.rte_m[found]),
        "rre_registered": mean_or_nan(errors.rre_deg[registered]),
        "rre_euler_registered": mean_or_nan(errors.rre_euler_deg[registered]),
        "rte_registered": mean_or_nan(errors.rte_m[registered]),
    }


def recall_curve(errors: Float[Tensor, " B"], thresholds: Sequence[float]) -> Float64[Tensor, " K"]:
    """Share of samples with an error (one kind of `PoseErrors`) below each threshold; NaN without samples.

    Raises:
        ValueError: an error is NaN (a missing pose must be infinite), or thresholds do not ascend.
    """
    limits = torch.tensor(thresholds, dtype=torch.float64)
    if bool((limits.diff() <= 0).any()):
        raise ValueError(f"thresholds {list(thresholds)} must ascend: a curve is read from left to right")
    if bool(errors.isnan().any()):
        raise ValueError("an error is NaN: it would count as good nowhere and be averaged nowhere; use infinity")
    if errors.numel() == 0:
        return torch.full_like(limits, torch.nan)
    return (errors.detach().double().cpu()[:, None] < limits).double().mean(dim=0)


def mean_or_nan(values: Float64[Tensor, " n"]) -> float:
    """Their mean; NaN where there are none."""
    return float(values.mean()) if values.numel() else math.nan


def _euler_sum(R: Float64[Tensor, "B 3 3"]) -> Float64[Tensor, " B"]:
    if len(R) == 0:
        return R.new_zeros(0)
    from scipy.spatial.transform import Rotation  # not before it is needed: it takes long

    with warnings.catch_warnings():
        # At a middle angle of 90 degrees the other two are not unique. Such a sample is far beyond every limit anyway.
        warnings.filterwarnings("ignore", message="Gimbal lock")
        angles = Rotation.from_matrix(R.numpy()).as_euler(EULER_ORDER, degrees=True)
    return torch.from_numpy(np.abs(angles).sum(axis=1))


def _check_rigid(T: Float64[Tensor, "B 4 4"], keep: Bool[Tensor, " B"], name: str) -> None:
    # How far R is from orthonormal and the last row from (0, 0, 0, 1); mirrored frames have determinant -1.
    R, last = T[:, :3, :3], T.new_tensor([0.0, 0.0, 0.0, 1.0])
    off = (R @ R.mT - torch.eye(3, dtype=T.dtype)).abs().amax(dim=(1, 2)) + (T[:, 3] - last).abs().amax(dim=1)
    good = (off < 1e-3) & (torch.linalg.det(torch.nan_to_num(R)) > 0) & torch.isfinite(T).all(dim=2).all(dim=1)
    if not bool((good | ~keep).all()):
        sample = int((~good & keep).nonzero()[0])
        raise ValueError(f"{name} of sample {sample} is no rigid transform:\n{T[sample]}")
