"""What VoteNet has to learn: where seeds vote for, and which proposals stand at which true box.

Source: Qi, Litany, He, Guibas, "Deep Hough voting for 3D object detection in point clouds" (VoteNet), ICCV 2019,
sections 4.1 and 4.2; details are those of its released code.

Letters: S seeds of all samples, P proposals of all samples, N points of all samples, M voxels, K true boxes, V votes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from common.boxes.points import points_in_boxes
from data.sample import IGNORE_LABEL, Batch, BatchBoxes
from models.pairing import first_of_each

NUM_VOTES = 3
"""A seed in several boxes may vote for any of so many."""


@dataclass(frozen=True, kw_only=True)
class VoteTargets:
    """Where seeds vote for.

    Attributes:
        places: centres that a seed may vote for, in the frame of `Batch.points`; one with fewer has some twice.
        on_object: seeds that have one; the others' places mean nothing.
    """

    places: Float[Tensor, "S V 3"]
    on_object: Bool[Tensor, " S"]


@torch.no_grad()
def votes_for_boxes(
    seeds: Float[Tensor, "S 3"], sample: Int[Tensor, " S"], truth: BatchBoxes, num_samples: int
) -> VoteTargets:
    """A seed votes for the centres of the boxes that it lies in: of more than three the first three.

    Source: VoteNet, released code for SUN RGB-D, where a fourth box would take the place of the third.
    """
    places = seeds[:, None].repeat(1, NUM_VOTES, 1)
    on_object = torch.zeros(len(seeds), dtype=torch.bool, device=seeds.device)
    for number in range(num_samples):
        rows = (sample == number).nonzero().squeeze(1)
        boxes = truth.boxes[truth.sample == number].to(seeds.dtype)
        if len(rows) == 0 or len(boxes) == 0:
            continue
        inside = points_in_boxes(seeds[rows], boxes)
        rank = inside.cumsum(dim=1)
        first = inside.to(torch.uint8).argmax(dim=1)
        for vote in range(NUM_VOTES):
            here = inside & (rank == vote + 1)
            box = torch.where(here.any(dim=1), here.to(torch.uint8).argmax(dim=1), first)
            places[rows, vote] = boxes[box, :3]
        on_object[rows] = inside.any(dim=1)
    return VoteTargets(places=places, on_object=on_object)


@torch.no_grad()
def votes_for_objects(batch: Batch, voxels: Int64[Tensor, " S"]) -> VoteTargets:
    """A seed votes for the middle of the labelled object that its voxel's first point belongs to.

    The middle is that of the smallest and the largest coordinates of the object's points in the batch. An object of
    which no point has a class that is asked for is none.

    Args:
        batch: with classes and objects of points (`BatchSpec.point_classes`, `BatchSpec.instances`).
        voxels: of the seeds.

    Source: VoteNet, released code for ScanNet, whose boxes often hold points of other things.
    """
    labels, instances = batch.need("labels", by="VoteNet"), batch.need("instances", by="VoteNet")
    labelled = (instances > 0) & (labels != IGNORE_LABEL)
    keys = torch.stack([batch.point_sample.long(), instances.long()], dim=1)
    objects, of_point = torch.unique(keys, dim=0, return_inverse=True)
    counted = torch.zeros(len(objects), dtype=torch.bool, device=keys.device)
    counted[of_point[labelled]] = True
    rows = of_point[:, None].expand(-1, 3)
    empty = batch.points.new_zeros(len(objects), 3)
    low = empty.scatter_reduce(0, rows, batch.points, "amin", include_self=False)
    high = empty.scatter_reduce(0, rows, batch.points, "amax", include_self=False)
    point = first_of_each(batch.point_voxel.long(), len(batch.voxel_coords))[voxels]
    mine = of_point[point]
    middle = ((low + high) / 2)[mine]
    return VoteTargets(places=middle[:, None].expand(-1, NUM_VOTES, -1), on_object=counted[mine])


@dataclass(frozen=True, kw_only=True)
class ProposalTargets:
    """What each proposal stands at.

    Attributes:
        box: index of the true box of its sample whose centre is nearest, -1 where the sample has none.
        near: closer to that centre than the one limit: it is to become that box.
        counted: it says something about objectness: it is near, or farther than the other limit.
    """

    box: Int64[Tensor, " P"]
    near: Bool[Tensor, " P"]
    counted: Bool[Tensor, " P"]


@torch.no_grad()
def stand_at(
    places: Float[Tensor, "P 3"],
    sample: Int[Tensor, " P"],
    truth: BatchBoxes,
    num_samples: int,
    *,
    near_m: float,
    far_m: float,
) -> ProposalTargets:
    """Match proposals with true boxes by the distance of the gathered votes' place to the nearest centre.

    Source: VoteNet, section 4.2 (objectness: positive within 0.3 m, negative beyond 0.6 m).
    """
    distances = places.new_full((len(places),), torch.inf)
    box = torch.full((len(places),), -1, dtype=torch.int64, device=places.device)
    for number in range(num_samples):
        rows = (sample == number).nonzero().squeeze(1)
        true = (truth.sample == number).nonzero().squeeze(1)
        if len(rows) == 0 or len(true) == 0:
            continue
        centres = truth.boxes[true, :3].to(places.dtype)
        # Not expanded: exact also where points lie close to each other and far from the origin.
        apart = torch.cdist(places[rows], centres, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = apart.min(dim=1)
        distances[rows], box[rows] = nearest.values, true[nearest.indices]
    near = distances < near_m
    return ProposalTargets(box=box, near=near, counted=near | (distances > far_m))


def bounding_boxes(boxes: Float[Tensor, "K 7"]) -> Float[Tensor, "K 7"]:
    """The smallest boxes along the axes that hold each box; their heading is 0."""
    cos, sin = boxes[:, 6].cos().abs(), boxes[:, 6].sin().abs()
    along_x = boxes[:, 3] * cos + boxes[:, 4] * sin
    along_y = boxes[:, 3] * sin + boxes[:, 4] * cos
    zero = torch.zeros_like(along_x)
    return torch.stack([*boxes[:, :3].unbind(1), along_x, along_y, boxes[:, 5], zero], dim=1)
