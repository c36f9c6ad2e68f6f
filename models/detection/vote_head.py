"""Votes, proposals and losses of VoteNet, and the code of a box that a proposal gives.

Source: Qi, Litany, He, Guibas, "Deep Hough voting for 3D object detection in point clouds" (VoteNet), ICCV 2019,
sections 4.1 and 4.2 and supplementary; details are those of its released code.

Letters: S seeds of all samples, P proposals of all samples, K true boxes, V votes, H bins of headings, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from data.sample import BatchBoxes
from models.detection.losses import mean_over_ranks
from models.detection.targets_votes import ProposalTargets, VoteTargets
from models.lidar.ball_pooling import point_layers
from models.pairing import full_precision

OBJECTNESS_WEIGHTS = (0.2, 0.8)
"""Of nothing and of an object in the cross-entropy of objectness."""
MIN_SIZE_M = 1e-3
"""Of a decoded box: residuals may ask for less than nothing."""


class Voting(nn.Module):
    """Each seed's vote: an offset to its place, and what is added to its features, which then get length 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = point_layers((channels, channels, channels))
        self.last = nn.Linear(channels, 3 + channels)

    def forward(
        self, places: Float[Tensor, "S 3"], features: Float[Tensor, "S D"]
    ) -> tuple[Float[Tensor, "S 3"], Float[Tensor, "S D"]]:
        """Places and features of the votes, in float32 or longer."""
        values = full_precision(self.last(self.layers(features)))
        return places + values[:, :3], F.normalize(full_precision(features) + values[:, 3:], dim=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class ProposalValues:
    """What the head says of each proposal.

    Attributes:
        objectness: logits of nothing and of an object.
        offsets: from the place of the gathered votes to the box's centre, metres.
        heading_logits: of the bins.
        heading_residuals: from the middle of each bin, in halves of a bin.
        size_logits: of the mean sizes.
        size_residuals: from each mean size, in shares of it.
        class_logits: of the classes.
    """

    objectness: Float[Tensor, "P 2"]
    offsets: Float[Tensor, "P 3"]
    heading_logits: Float[Tensor, "P H"]
    heading_residuals: Float[Tensor, "P H"]
    size_logits: Float[Tensor, "P C"]
    size_residuals: Float[Tensor, "P C 3"]
    class_logits: Float[Tensor, "P C"]


class ProposalHead(nn.Module):
    """From the gathered votes' features to what a proposal is: 5 + 2 H + 5 C values."""

    def __init__(self, channels: int, num_headings: int, num_classes: int) -> None:
        super().__init__()
        self.layers = point_layers((channels, channels, channels))
        self.widths = [2, 3, num_headings, num_headings, num_classes, 3 * num_classes, num_classes]
        self.last = nn.Linear(channels, sum(self.widths))

    def forward(self, features: Float[Tensor, "P D"]) -> ProposalValues:
        """Values of each proposal, in float32 or longer."""
        values = full_precision(self.last(self.layers(features)))
        objectness, offsets, headings, turns, sizes, scales, classes = values.split(self.widths, dim=1)
        return ProposalValues(
            objectness=objectness,
            offsets=offsets,
            heading_logits=headings,
            heading_residuals=turns,
            size_logits=sizes,
            size_residuals=scales.unflatten(1, (-1, 3)),
            class_logits=classes,
        )


# ---- code of a box


def heading_bins(headings: Float[Tensor, " K"], num: int) -> tuple[Int64[Tensor, " K"], Float[Tensor, " K"]]:
    """Bin of each heading, and how far it lies from the bin's middle in halves of a bin: -1 to 1.

    The middle of bin i lies at i times 2 pi / num.
    """
    width = 2 * math.pi / num
    turned = torch.remainder(headings + width / 2, 2 * math.pi)
    # The remainder of a tiny negative number rounds up to the whole circle.
    bins = (turned / width).floor().long().clamp(max=num - 1)
    return bins, (turned - (bins.to(turned.dtype) + 0.5) * width) / (width / 2)


def encode_sizes(sizes_m: Float[Tensor, "K 3"], mean_sizes_m: Float[Tensor, "K 3"]) -> Float[Tensor, "K 3"]:
    """How much longer, wider and higher than the mean size of its class a box is, in shares of that."""
    return (sizes_m - mean_sizes_m) / mean_sizes_m


def decode(
    values: ProposalValues, places: Float[Tensor, "P 3"], mean_sizes_m: Float[Tensor, "C 3"]
) -> Float[Tensor, "P 7"]:
    """The box of each proposal, by its most likely bin and size; with one bin the boxes lie along the axes.

    Headings are from 0 to 2 pi, give or take half a bin.
    """
    rows, num = torch.arange(len(places), device=places.device), values.heading_logits.shape[1]
    bins, kind = values.heading_logits.argmax(dim=1), values.size_logits.argmax(dim=1)
    headings = (bins + values.heading_residuals[rows, bins] / 2) * (2 * math.pi / num)
    sizes = mean_sizes_m[kind] * (1 + values.size_residuals[rows, kind])
    headings = headings if num > 1 else torch.zeros_like(headings)
    return torch.cat([places + values.offsets, sizes.clamp(min=MIN_SIZE_M), headings[:, None]], dim=1)


# ---- losses


def vote_loss(votes: Float[Tensor, "S 3"], targets: VoteTargets) -> Float[Tensor, ""]:
    """Mean over the seeds on objects of |dx| + |dy| + |dz| to the nearest of the places that it may vote for."""
    apart = (votes[:, None] - targets.places).abs().sum(dim=2).amin(dim=1)
    return _mean_of(apart, targets.on_object)


def objectness_loss(logits: Float[Tensor, "P 2"], targets: ProposalTargets) -> Float[Tensor, ""]:
    """Weighted cross-entropy, mean over the proposals that count."""
    weights = logits.new_tensor(OBJECTNESS_WEIGHTS)
    entropy = F.cross_entropy(logits, targets.near.long(), weight=weights, reduction="none")
    return _mean_of(entropy, targets.counted)


def centre_loss(
    centres: Float[Tensor, "P 3"],
    sample: Int64[Tensor, " P"],
    targets: ProposalTargets,
    truth: BatchBoxes,
    num_samples: int,
) -> Float[Tensor, ""]:
    """Squared distances both ways, each to the nearest of the sample.

        mean over near proposals of |c - g|^2  +  mean over true boxes of |g - c|^2

    A true box of a sample without proposals adds nothing to the second sum.
    """
    to_true, to_found = centres.new_zeros(len(centres)), centres.new_zeros(len(truth.boxes))
    for number in range(num_samples):
        rows = (sample == number).nonzero().squeeze(1)
        true = (truth.sample == number).nonzero().squeeze(1)
        if len(rows) == 0 or len(true) == 0:
            continue
        squares = (centres[rows, None] - truth.boxes[true, :3].to(centres.dtype)).square().sum(dim=2)
        to_true = to_true.index_copy(0, rows, squares.amin(dim=1))
        to_found = to_found.index_copy(0, true, squares.amin(dim=0))
    every_box = torch.ones(len(to_found), dtype=torch.bool, device=centres.device)
    return _mean_of(to_true, targets.near) + _mean_of(to_found, every_box)


def box_losses(
    values: ProposalValues,
    boxes: Float[Tensor, "K 7"],
    classes: Int64[Tensor, " K"],
    targets: ProposalTargets,
    mean_sizes_m: Float[Tensor, "C 3"],
) -> dict[str, Float[Tensor, ""]]:
    """Losses of near proposals against their true boxes, each a mean over these proposals.

    heading_bin, size_kind, class = cross-entropy
    heading  = huber(residual of the true bin - true residual)
    size     = mean over length, width, height of huber(residual of the true size - true residual)

    huber(d) = d^2 / 2 below 1, |d| - 1/2 above.

    Args:
        values: of the proposals.
        boxes: true ones of all samples.
        classes: of the true boxes; the mean size that a box is coded against is its class's.
        targets: of the proposals.
        mean_sizes_m: of the classes.
    """
    rows = targets.near.nonzero().squeeze(1)
    box = targets.box[rows]
    kinds, true = classes[box], boxes[box].to(values.offsets.dtype)
    bins, turns = heading_bins(true[:, 6], values.heading_logits.shape[1])
    sizes = encode_sizes(true[:, 3:6], mean_sizes_m[kinds])
    size_apart = _huber(values.size_residuals[rows, kinds], sizes).mean(dim=1)
    parts = {
        "heading_bin": F.cross_entropy(values.heading_logits[rows], bins, reduction="none"),
        "heading": _huber(values.heading_residuals[rows, bins], turns),
        "size_kind": F.cross_entropy(values.size_logits[rows], kinds, reduction="none"),
        "size": size_apart,
        "class": F.cross_entropy(values.class_logits[rows], kinds, reduction="none"),
    }
    number = mean_over_ranks(values.offsets.new_tensor(float(len(rows))))
    return {name: part.sum() / number for name, part in parts.items()}


def _huber(found: Float[Tensor, "*rows"], true: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    return F.smooth_l1_loss(found, true, reduction="none", beta=1.0)


def _mean_of(values: Float[Tensor, " R"], rows: Bool[Tensor, " R"]) -> Float[Tensor, ""]:
    """Over some rows, of all ranks; 0 where there are none."""
    return values[rows].sum() / mean_over_ranks(rows.sum().to(values.dtype))
