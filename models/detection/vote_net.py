"""VoteNet on a sparse U-Net: points vote for the centres of the objects that they lie on, clusters of votes give boxes.

Paper: Qi, Litany, He, Guibas, "Deep Hough voting for 3D object detection in point clouds", ICCV 2019; on a sparse U-Net
in the place of PointNet++: Hou, Graham, Niessner, Xie, "Exploring data-efficient 3D scene understanding with
contrastive scene contexts", CVPR 2021. Details are those of their released codes. For rooms whose z points up.

The network gives each voxel features. Some voxels far from each other are seeds; each votes for a place, its own and an
offset that it learns. Some votes far from each other gather the votes around them, and say whether there is an object,
of which class, and which box it has.

Deviations from the released codes:
- A seed stands at the mean place of its voxel's points, not at one of them.
- Farthest points begin with an arbitrary voxel (by a hash of its cell), not with the first point of the file.
- A sample with fewer voxels than seeds makes seeds of all of them, without copies.
- Every neighbour in a ball counts once; short balls are not filled up with copies, which BatchNorm would count.
- Unused rows of the table of true boxes, which are zeros there, do not pass for an object at the origin.
- Losses are divided by the seeds, proposals and boxes of all ranks instead of each rank's own.
- BatchNorm's momentum stays; there it is halved every 80 epochs.

Letters: S seeds of all samples, P proposals of all samples, R proposals that are kept, C classes, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from common.boxes.overlap import iou_3d
from common.boxes.points import points_in_boxes
from common.ranges import at_least, expect, one_of, positive, weights
from data.batch_spec import BatchSpec
from data.sample import Batch, BatchBoxes
from models.detection.base import Detections, Detector, DetectorConfig
from models.detection.suppression import SuppressionConfig, joined
from models.detection.targets_votes import (
    VoteTargets,
    bounding_boxes,
    stand_at,
    votes_for_boxes,
    votes_for_objects,
)
from models.detection.vote_head import (
    ProposalHead,
    ProposalValues,
    Voting,
    box_losses,
    centre_loss,
    decode,
    objectness_loss,
    vote_loss,
)
from models.lidar.ball_pooling import BallPooling, PointSet, Scale, scattered
from models.lidar.base import BackboneConfig
from models.lidar.neighbors import pack
from models.lidar.res16unet import Res16UNetConfig
from models.methods.base import LossTerms
from models.pairing import full_precision, segment_mean
from models.points.sampling import farthest_points

Votes = Literal["boxes", "objects"]

_SUN_SIZES_M = {
    "bed": (2.114, 1.62, 0.927),
    "table": (0.791, 1.28, 0.718),
    "sofa": (0.924, 1.867, 0.845),
    "chair": (0.592, 0.553, 0.827),
    "toilet": (0.699, 0.454, 0.756),
    "desk": (0.695, 1.346, 0.736),
    "dresser": (0.529, 1.003, 1.173),
    "night_stand": (0.501, 0.632, 0.683),
    "bookshelf": (0.405, 1.071, 1.689),
    "bathtub": (0.766, 1.398, 0.473),
}
"""Mean length, width and height in SUN RGB-D's train split, from VoteNet's released code, to a millimetre."""


@dataclass(frozen=True, kw_only=True)
class VoteNetConfig(DetectorConfig):
    """Settings of VoteNet; the defaults are those on SUN RGB-D.

    Attributes:
        classes: names of the set's classes that are found.
        mean_sizes_m: length, width, height of each class, in the order of `classes`: boxes are coded against them.
            `python -m benchmarks.mean_sizes SET` prints those of a prepared set.
        backbone: 3D network; `backbone.name` chooses one that gives features of voxels.
        num_seeds: voxels of each sample that vote.
        num_proposals: votes of each sample around which others are gathered.
        channels: of seeds and votes.
        proposal_channels: of proposals.
        radius_m: votes closer than this are gathered.
        neighbors: votes that a proposal gathers at most.
        num_headings: bins of the circle; 1: boxes along the axes (ScanNet), where a turned true box counts as the box
            along the axes around it.
        votes: what a seed votes for: "boxes": centres of the true boxes that it lies in; "objects": the middle of the
            labelled object that its point belongs to (ScanNet), which needs classes and objects of points.
        near_m: a proposal closer than this to the centre of a true box is to become that box.
        far_m: a proposal farther than this from all centres is none.
        objectness_weight: of its cross-entropy, where votes have 1.
        kind_weight: of the cross-entropies of bins, sizes and classes.
        loss_scale: of the sum of all losses.
        nms: `min_score` is the least objectness, `max_iou` that in space of the boxes along the axes around two
            proposals of one class; a proposal that stays is a detection of every class, with its objectness times the
            class's probability as score, of which a sample keeps the best `num_after`.
        min_points: boxes that fewer of the sample's points lie in are dropped.
    """

    classes: tuple[str, ...] = tuple(_SUN_SIZES_M)
    mean_sizes_m: tuple[tuple[float, float, float], ...] = tuple(_SUN_SIZES_M.values())
    backbone: BackboneConfig = field(default_factory=Res16UNetConfig)
    num_seeds: int = 1024
    num_proposals: int = 256
    channels: int = 256
    proposal_channels: int = 128
    radius_m: float = 0.3
    neighbors: int = 16
    num_headings: int = 12
    votes: Votes = "boxes"
    near_m: float = 0.3
    far_m: float = 0.6
    objectness_weight: float = 0.5
    kind_weight: float = 0.1
    loss_scale: float = 10.0
    nms: SuppressionConfig = field(
        default_factory=lambda: SuppressionConfig(min_score=0.05, max_iou=0.25, num_before=256, num_after=4608)
    )
    min_points: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, votes=Votes)
        at_least(self, num_seeds=1, num_proposals=1, channels=1, proposal_channels=1, neighbors=1, num_headings=1)
        at_least(self, min_points=0, far_m=self.near_m)
        positive(self, "radius_m", "near_m", "loss_scale")
        weights(self, "objectness_weight", "kind_weight")
        expect(self, "mean_sizes_m", all(edge > 0 for size in self.mean_sizes_m for edge in size), "lengths above 0")
        expect(
            self,
            "mean_sizes_m",
            len(self.mean_sizes_m) == len(self.classes),
            f"{len(self.classes)} entries, one for each class; python -m benchmarks.mean_sizes prints those of a set",
        )

    def batch_spec(self) -> BatchSpec:
        """Points and boxes, and classes and objects of points where seeds vote for objects."""
        if self.votes == "boxes":
            return super().batch_spec()
        return BatchSpec(images=False, boxes=self.classes, point_classes=self.classes, instances=True)

    def build(self) -> VoteNet:
        """Assemble the detector with fresh weights."""
        return VoteNet(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """What a pass finds.

    Attributes:
        seeds: their places.
        voxels: of the seeds.
        seed_sample: of the seeds.
        votes: places that they vote for.
        places: where votes are gathered, one a proposal.
        sample: of the proposals.
        values: of the proposals.
    """

    seeds: Float[Tensor, "S 3"]
    voxels: Int64[Tensor, " S"]
    seed_sample: Int64[Tensor, " S"]
    votes: Float[Tensor, "S 3"]
    places: Float[Tensor, "P 3"]
    sample: Int64[Tensor, " P"]
    values: ProposalValues


class VoteNet(Detector):
    """Network, votes, proposals and losses of VoteNet."""

    mean_sizes_m: Tensor

    def __init__(self, config: VoteNetConfig) -> None:
        super().__init__()
        self.config = config
        self.nms = config.nms
        self.backbone = config.backbone.build()
        self.seed = nn.Linear(self.backbone.num_features, config.channels)
        self.voting = Voting(config.channels)
        widths = (config.proposal_channels,) * 3
        self.gathering = BallPooling(
            config.channels, [Scale(config.radius_m, config.neighbors, widths)], offsets_in_radii=True
        )
        self.head = ProposalHead(config.proposal_channels, config.num_headings, len(config.classes))
        self.register_buffer("mean_sizes_m", torch.tensor(config.mean_sizes_m), persistent=False)

    def forward(self, batch: Batch) -> LossTerms:
        """Losses of votes and proposals. A batch without boxes has that of objectness only; nothing is NaN.

            scale (vote + w objectness + box + k class)
            box = centre + k heading_bin + heading + k size_kind + size       `models.detection.vote_head`

        with w and k the config's `objectness_weight` and `kind_weight`.

        Raises:
            ValueError: the batch has no boxes, or, where seeds vote for objects, no objects of points.

        Source: VoteNet, section 4.2 and supplementary, released code.
        """
        config, truth = self.config, batch.need("boxes", by="VoteNet")
        found = self._found(batch)
        boxes = truth.boxes if config.num_headings > 1 else bounding_boxes(truth.boxes)
        near, far, count = config.near_m, config.far_m, batch.num_samples
        targets = stand_at(found.places, found.sample, truth, count, near_m=near, far_m=far)
        centre = centre_loss(found.places + found.values.offsets, found.sample, targets, truth, count)
        rest = box_losses(found.values, boxes, truth.classes.long(), targets, self.mean_sizes_m)
        kind = config.kind_weight
        box = centre + rest["heading"] + rest["size"] + kind * (rest["heading_bin"] + rest["size_kind"])
        parts = {
            "vote": vote_loss(found.votes, self._vote_targets(batch, truth, found)),
            "objectness": config.objectness_weight * objectness_loss(found.values.objectness, targets),
            "box": box,
            "class": kind * rest["class"],
        }
        parts = {name: config.loss_scale * part for name, part in parts.items()}
        return LossTerms(
            total=torch.stack(list(parts.values())).sum(),
            parts={name: part.detach() for name, part in parts.items()},
            watch={"near": targets.near.sum() / batch.num_samples, "centre": centre.detach()},
        )

    def detect(self, batch: Batch) -> Detections:
        """See `Detector.detect`."""
        found = self._found(batch)
        boxes = decode(found.values, found.places, self.mean_sizes_m)
        objectness = found.values.objectness.softmax(dim=1)[:, 1]
        classes = found.values.class_logits.softmax(dim=1)
        parts = []
        for number in range(batch.num_samples):
            rows = (found.sample == number).nonzero().squeeze(1)
            points = batch.points[batch.point_sample == number]
            rows = rows[self._kept(boxes[rows], objectness[rows], classes[rows].argmax(dim=1), points)]
            parts.append(_of_every_class(boxes[rows], objectness[rows], classes[rows], number, self.nms.num_after))
        return joined(parts)

    def _found(self, batch: Batch) -> _Found:
        features = self.backbone(batch.voxel_coords, batch.voxel_features, batch.num_samples)
        means = segment_mean(batch.points, batch.point_voxel, len(batch.voxel_coords))[0]
        order = scattered(pack(batch.voxel_coords))
        counts = torch.bincount(batch.voxel_coords[:, 0].long(), minlength=batch.num_samples)
        chosen, seed_counts = farthest_points(means[order], counts, self.config.num_seeds)
        voxels = order[chosen]
        seeds = means[voxels]
        votes, vote_features = self.voting(seeds, full_precision(self.seed(features[voxels])))
        # Votes of diverged weights are no places; the loss says so.
        standing = torch.where(votes.isfinite().all(dim=1, keepdim=True), votes, seeds)
        chosen, proposal_counts = farthest_points(standing, seed_counts, self.config.num_proposals)
        places = standing[chosen]
        gathered = self.gathering.around(places, proposal_counts, PointSet(standing, vote_features, seed_counts))
        return _Found(
            seeds=seeds,
            voxels=voxels,
            seed_sample=_sample_of(seed_counts),
            votes=votes,
            places=places,
            sample=_sample_of(proposal_counts),
            values=self.head(gathered),
        )

    def _vote_targets(self, batch: Batch, truth: BatchBoxes, found: _Found) -> VoteTargets:
        if self.config.votes == "objects":
            return votes_for_objects(batch, found.voxels)
        return votes_for_boxes(found.seeds, found.seed_sample, truth, batch.num_samples)

    def _kept(
        self,
        boxes: Float[Tensor, "P 7"],
        objectness: Float[Tensor, " P"],
        classes: Int64[Tensor, " P"],
        points: Float[Tensor, "N 3"],
    ) -> Int64[Tensor, " R"]:
        """Proposals of one sample that stay, by falling objectness.

        Source: VoteNet, released code: suppression in space among those of one class, by the boxes along the axes
        around them; boxes with fewer than 5 points are left out before.
        """
        usable = ((objectness >= self.nms.min_score) & boxes.isfinite().all(dim=1)).nonzero().squeeze(1)
        full = points_in_boxes(points, boxes[usable].to(points.dtype)).sum(dim=0) >= self.config.min_points
        usable = usable[full]
        usable = usable[objectness[usable].argsort(descending=True, stable=True)[: self.nms.num_before]]
        around = bounding_boxes(boxes[usable])
        drops = iou_3d(around, around) > self.nms.max_iou
        drops &= classes[usable, None] == classes[usable]
        return usable[_greedy(drops)]


def _sample_of(counts: Int64[Tensor, " B"]) -> Int64[Tensor, " rows"]:
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


def _greedy(drops: Bool[Tensor, "P P"]) -> Int64[Tensor, " R"]:
    """Rows that stay when each row that does drops the later ones that its row is set at."""
    table, kept = drops.cpu(), []
    dropped = torch.zeros(len(table), dtype=torch.bool)
    for row in range(len(table)):
        if not dropped[row]:
            kept.append(row)
            dropped |= table[row]
    return torch.tensor(kept, dtype=torch.int64, device=drops.device)


def _of_every_class(
    boxes: Float[Tensor, "R 7"],
    objectness: Float[Tensor, " R"],
    classes: Float[Tensor, "R C"],
    number: int,
    limit: int,
) -> Detections:
    """Each box as a detection of every class; the best so many of one sample.

    Source: VoteNet, released code ("per-class proposals").
    """
    scores = (objectness[:, None] * classes).flatten()
    best = scores.argsort(descending=True, stable=True)[:limit]
    row = best // classes.shape[1]
    return Detections(
        boxes=boxes[row],
        velocities_mps=boxes.new_full((len(best), 2), torch.nan),
        classes=best % classes.shape[1],
        scores=scores[best],
        sample=torch.full_like(best, number),
    )
