"""How well a pose between LiDAR and camera was found: translation and rotation errors, recall, matching error.

Errors are those of the residual transform inv(T_estimated) T_true:

    RTE = |translation of the residual|                                     metres
    RRE = angle of its rotation (geodesic distance), 0 to 180               degrees
    RRE (Euler) = sum of the sizes of its three Euler angles, up to 450     degrees, never below the geodesic one

The registration literature (DeepI2P, CorrI2P and what follows them) calls the sum "RRE"; both are reported.
A sample for which no pose was found has infinite errors and counts as not registered in every share.

Letters: B samples, P points, K thresholds.
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
from scipy.spatial.transform import Rotation
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


@dataclass(frozen=True, kw_only=True)
class RegistrationSummary:
    """What a registration table states; means are NaN where they are means of nothing.

    Attributes:
        num_samples: B.
        found: share of samples with any pose.
        recall: share registered within `RTE_LIMIT_M` and `RRE_LIMIT_DEG` (geodesic).
        recall_euler: the same with the sum of Euler angles, the literature's "registration accuracy".
        rte_m: mean over the samples with a pose, outliers included.
        rre_deg: mean over the same.
        rre_euler_deg: mean over the same.
        rte_registered_m: mean over the samples of `recall_euler`, as tables usually have it.
        rre_registered_deg: geodesic, mean over the same.
        rre_euler_registered_deg: mean over the same.
    """

    num_samples: int
    found: float
    recall: float
    recall_euler: float
    rte_m: float
    rre_deg: float
    rre_euler_deg: float
    rte_registered_m: float
    rre_registered_deg: float
    rre_euler_registered_deg: float


@dataclass(frozen=True, kw_only=True)
class MatchingError:
    """How far from their true pixels points were matched; NaN without points.

    Attributes:
        num_points: points that count.
        mean_px: mean distance.
        median_px: median distance.
        within: share of points closer than each threshold asked for.
    """

    num_points: int
    mean_px: float
    median_px: float
    within: tuple[float, ...]


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


def summarise(errors: PoseErrors) -> RegistrationSummary:
    """The table's row of these samples."""
    found = torch.isfinite(errors.rte_m)
    close = errors.rte_m < RTE_LIMIT_M
    registered = close & (errors.rre_euler_deg < RRE_LIMIT_DEG)
    return RegistrationSummary(
        num_samples=len(found),
        found=_mean(found.double()),
        recall=_mean((close & (errors.rre_deg < RRE_LIMIT_DEG)).double()),
        recall_euler=_mean(registered.double()),
        rte_m=_mean(errors.rte_m[found]),
        rre_deg=_mean(errors.rre_deg[found]),
        rre_euler_deg=_mean(errors.rre_euler_deg[found]),
        rte_registered_m=_mean(errors.rte_m[registered]),
        rre_registered_deg=_mean(errors.rre_deg[registered]),
        rre_euler_registered_deg=_mean(errors.rre_euler_deg[registered]),
    )


def recall_curve(errors: Float[Tensor, " B"], thresholds: Sequence[float]) -> Float64[Tensor, " K"]:
    """Share of samples with an error below each threshold; NaN without samples.

    Args:
        errors: one of the errors of `PoseErrors`.
        thresholds: in the error's unit.

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


def matching_error(
    matched_uv: Float[Tensor, "P 2"],
    true_uv: Float[Tensor, "P 2"],
    keep: Bool[Tensor, " P"] | None = None,
    *,
    thresholds_px: Sequence[float] = (),
) -> MatchingError:
    """Feature matching error: distance in pixels from each point's matched pixel to its true projection.

    Args:
        matched_uv: pixel that the features chose (hard or soft) for each point.
        true_uv: projection by the true pose.
        keep: points that count, e.g. those in the overlap of sweep and image; None for all.
        thresholds_px: distances whose shares are reported.

    Raises:
        ValueError: a pixel that counts is not finite.
    """
    keep = torch.ones(len(true_uv), dtype=torch.bool, device=true_uv.device) if keep is None else keep
    distance = (matched_uv[keep].detach().double() - true_uv[keep].detach().double()).norm(dim=1).cpu()
    if not bool(torch.isfinite(distance).all()):
        raise ValueError(
            f"{int((~torch.isfinite(distance)).sum())} pixels are not finite: leave their points out by keep"
        )
    return MatchingError(
        num_points=len(distance),
        mean_px=_mean(distance),
        median_px=float(distance.quantile(0.5)) if len(distance) else math.nan,
        within=tuple(_mean((distance < limit).double()) for limit in thresholds_px),
    )


def _mean(values: Float64[Tensor, " n"]) -> float:
    return float(values.mean()) if values.numel() else math.nan


def _euler_sum(R: Float64[Tensor, "B 3 3"]) -> Float64[Tensor, " B"]:
    if len(R) == 0:
        return R.new_zeros(0)
    with warnings.catch_warnings():
        # At a middle angle of 90 degrees the other two are not unique. Such a sample is far beyond every limit anyway.
        warnings.filterwarnings("ignore", message="Gimbal lock")
        angles = Rotation.from_matrix(R.numpy()).as_euler(EULER_ORDER, degrees=True)
    return torch.from_numpy(np.abs(angles).sum(axis=1))


def _check_rigid(T: Float64[Tensor, "B 4 4"], keep: Bool[Tensor, " B"], name: str) -> None:
    R, last = T[:, :3, :3], T.new_tensor([0.0, 0.0, 0.0, 1.0])
    off = (R @ R.mT - torch.eye(3, dtype=T.dtype)).abs().amax(dim=(1, 2)) + (T[:, 3] - last).abs().amax(dim=1)
    good = (off < 1e-3) & (torch.linalg.det(torch.nan_to_num(R)) > 0) & torch.isfinite(T).all(dim=2).all(dim=1)
    if not bool((good | ~keep).all()):
        sample = int((~good & keep).nonzero()[0])
        raise ValueError(f"{name} of sample {sample} is no rigid transform:\n{T[sample]}")
