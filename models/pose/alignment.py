"""Points and pixels in one space: a learnable similarity, InfoNCE over near and far pixels, soft matching.

Everything here runs in float32 (or float64), also under autocast: at temperature 0.07 bfloat16 similarities lose the
difference between neighbouring pixels.

Letters: I images, K points, C cells of an image map, R rows, D embedding, Q matches of all images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models.heads import unit

_NEVER = -1e4
"""Logit of what does not count. Finite: a row of negative infinities has no gradient."""


class LearnableAlignment(nn.Module):
    """Similarity p W q of unit rows, W = (E + A)(E + A)^T with A learnt and zero at the start.

    Such W are exactly the symmetric positive ones, Q D Q^T with Q orthogonal and D not negative, and W is the identity
    at the start and where weight decay pulls it. Both sides get the same linear map E + A: `forward` applies it, and
    the similarity is then a plain product.

    Source: NCLR (Zhang et al.), learnable transformation alignment.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros(width, width))

    @property
    def metric(self) -> Float[Tensor, "D D"]:
        """W."""
        root = self._root()
        return root @ root.T

    def forward(self, rows: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Rows of length 1, mapped: products of two such rows are p W q."""
        with torch.autocast(rows.device.type, enabled=False):
            return unit(rows) @ self._root().to(torch.promote_types(rows.dtype, torch.float32))

    def _root(self) -> Float[Tensor, "D D"]:
        return self.change + torch.eye(len(self.change), device=self.change.device, dtype=self.change.dtype)


class IdentityAlignment(nn.Module):
    """The cosine: what the released code of NCLR has."""

    def forward(self, rows: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Rows of length 1."""
        return unit(rows)


def near_far_nce(
    logits: Float[Tensor, "I R C"], near: Bool[Tensor, "I R C"], far: Bool[Tensor, "I R C"]
) -> Float[Tensor, ""]:
    """InfoNCE where each row has several positives (`near`) and its own negatives (`far`); the rest is left out.

        loss[i, r] = mean over near c of -log( e^logits[r, c] / (e^logits[r, c] + sum over far c' of e^logits[r, c']) )
        loss[i]    = mean over rows r of image i with a near column, 0 without one
        result     = mean over images

    Each image weighs the same, so that several ranks with equal numbers of images give the loss and gradient of one.
    No pairs give 0 with a gradient path, no far columns 0.

    Source: NCLR (Zhang et al.), eq. 1-2; that several positives are averaged is our reading.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        negatives = torch.logsumexp(logits.masked_fill(~far, _NEVER), dim=2)
        per_row = near.sum(dim=2)
        rows = (per_row > 0).sum(dim=1)
        image, row, column = near.nonzero(as_tuple=True)
        losses = F.softplus(negatives[image, row] - logits[image, row, column])
        weights = 1 / (per_row[image, row] * rows[image] * max(len(logits), 1))
        return (losses * weights).sum()


def near_and_far(
    uv: Float[Tensor, "I R 2"],
    cell_uv: Float[Tensor, "C 2"],
    counts: Bool[Tensor, "I R"],
    *,
    near_px: float,
    far_px: float,
) -> tuple[Bool[Tensor, "I R C"], Bool[Tensor, "I R C"]]:
    """Which cells are near each point's true pixel, and which are far from it; neither for points that do not count."""
    distance = torch.cdist(uv, cell_uv.expand(len(uv), -1, -1), compute_mode="donot_use_mm_for_euclid_dist")
    counts = counts[:, :, None]
    return (distance <= near_px) & counts, (distance > far_px) & counts


def soft_match(
    logits: Float[Tensor, "I K C"], cell_uv: Float[Tensor, "C 2"], kept: Bool[Tensor, "I C"]
) -> Float[Tensor, "I K 2"]:
    """Each point's pixel: mean of the kept cells' pixels, weighted by the softmax of their logits.

    An image that keeps no cell is matched against all of them; there is no answer, and none that is not finite.

    Source: NCLR (Zhang et al.), eq. 4-5.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.masked_fill(~_some(kept)[:, None], _NEVER).softmax(dim=2) @ cell_uv.to(logits.dtype)


def hard_match(
    logits: Float[Tensor, "I K C"], cell_uv: Float[Tensor, "C 2"], kept: Bool[Tensor, "I C"]
) -> Float[Tensor, "I K 2"]:
    """Each point's pixel: that of the kept cell of the largest logit."""
    return cell_uv[logits.masked_fill(~_some(kept)[:, None], _NEVER).argmax(dim=2)]


def _some(kept: Bool[Tensor, "I C"]) -> Bool[Tensor, "I C"]:
    return kept | ~kept.any(dim=1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class PoseEstimate:
    """Where a method thinks each camera is, and from which matches (`engine.interfaces.PoseEstimateLike`)."""

    T_cam_points: Float[Tensor, "I 4 4"]  # frame of the batch's points to each camera; the identity where not valid
    valid: Bool[Tensor, " I"]  # whether a pose was found
    match_image: Int[Tensor, " Q"]  # image of each point that was looked at
    match_points: Float[Tensor, "Q 3"]  # metres
    match_soft_uv: Float[Tensor, "Q 2"]  # pixel that was found for each, softly
    match_hard_uv: Float[Tensor, "Q 2"]  # pixel of the best cell alone
    match_kept: Bool[Tensor, " Q"]  # whether the method thinks that the image shows it; others do not make the pose
