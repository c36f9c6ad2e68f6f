"""PointContrast: the same place in two sweeps of a drive gets the same features.

Paper: Xie, Gu, Guo, Qi, Guibas, Litany, "PointContrast: Unsupervised Pre-training for 3D Point Cloud Understanding",
ECCV 2020. Learnt: the 3D network with its linear head. In: two sweeps registered by their poses, each augmented on its
own, and which points of the two lie at the same place. No images. Nothing is frozen.

Two losses: PointInfoNCE, and the hardest-contrastive loss of FCGF (Choy, Park, Koltun, ICCV 2019), which works with
margins and the nearest wrong partner.

Deviations from the paper and its released code: `docs/methods/pointcontrast.md`.

Letters: M N voxels of the two clouds, Q matches, R pairs, T pairs of all ranks, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from common.ranges import above, at_least, at_most, one_of
from data.batch_spec import BatchSpec, SecondCloud
from data.sample import Batch
from models.contrast.collapse_monitor import collapse_watch
from models.contrast.losses import gather_with_grad, world_size
from models.heads import PointHead
from models.lidar.base import BackboneConfig
from models.lidar.res16unet import Res16UNetConfig
from models.methods.base import LossTerms, Objective, RowContrastConfig, joined_clouds
from models.pairing import first_of_each
from models.visuals import PointSketch, Sketch

LossName = Literal["info_nce", "hardest"]
EPSILON = 1e-12
"""Squared distances below this have no gradient: that of their root would be infinite."""


@dataclass(frozen=True, kw_only=True)
class PointContrastConfig(RowContrastConfig):
    """Settings of PointContrast; defaults are the paper's. See `RowContrastConfig` for the rest.

    Attributes:
        backbone: 3D network; `backbone.name` chooses.
        second_cloud: the other sweep, and when two points match. `source: same` contrasts two augmentations of one
            sweep.
        loss: "info_nce" (PointInfoNCE) or "hardest" (hardest-contrastive).
        num_pairs: pairs of voxels drawn from the matches of a batch.
        embedding_dim: D, dimensions of the features that are compared.
        positive_margin: of "hardest": pairs closer than this (unit vectors, 0 to 2) are good enough.
        negative_margin: of "hardest": wrong partners farther than this are good enough.
        symmetric: PointInfoNCE in both directions, mean of both.
    """

    backbone: BackboneConfig = field(default_factory=Res16UNetConfig)
    second_cloud: SecondCloud = field(default_factory=lambda: SecondCloud(source="other"))
    loss: LossName = "info_nce"
    num_pairs: int = 4096
    embedding_dim: int = 32
    positive_margin: float = 0.1
    negative_margin: float = 1.4
    symmetric: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, loss=LossName)
        at_least(self, num_pairs=1, embedding_dim=1, positive_margin=0)
        above(self, "positive_margin", negative_margin=self.positive_margin)
        at_most(self, "the largest distance of unit vectors", negative_margin=2)

    def batch_spec(self) -> BatchSpec:
        """Two clouds with matches, no images."""
        return BatchSpec(images=False, second_cloud=self.second_cloud)

    def build(self) -> PointContrast:
        """Assemble network and head."""
        return PointContrast(self)


class PointContrast(Objective):
    """Network, head and losses of PointContrast."""

    JOINS_CLOUDS = True

    def __init__(self, config: PointContrastConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        self.point_head = PointHead(self.backbone.num_features, config.embedding_dim)

    def forward(self, batch: Batch) -> LossTerms:
        """Contrast matched voxels of the two clouds.

            a_i, b_i = unit embeddings of the i-th drawn pair of voxels
            info_nce: mean over i of -log softmax over all j of (a_i . b_j / temperature) at j = i

        A batch without matches gives a loss of 0 and gradients of 0, one with a single pair likewise (with "hardest"
        a single pair is still pulled together).

        Raises:
            ValueError: the batch has no second cloud.

        Source: PointContrast, section 3.3, eq. 1 and 2.
        """
        second, matches = batch.need("second", by="PointContrast"), batch.need("matches", by="PointContrast")
        first_voxel, second_voxel = draw_pairs(
            batch.point_voxel[matches.first], second.point_voxel[matches.second], self.config.num_pairs
        )
        first_rows, second_rows = self.embeddings(batch, second)
        anchors, targets = first_rows[first_voxel], second_rows[second_voxel]
        if self.config.loss == "hardest":
            pull, push = hardest_contrastive(
                anchors,
                targets,
                positive_margin=self.config.positive_margin,
                negative_margin=self.config.negative_margin,
                gather=self.config.gather_negatives,
            )
            loss, parts = pull + push, {"pull": pull.detach(), "push": push.detach()}
        else:
            loss = self.config.info_nce(anchors, targets, symmetric=self.config.symmetric)
            parts = {"contrast": loss.detach()}
        watch = collapse_watch(anchors, targets, max_rows=self.config.watch_rows)
        return LossTerms(total=loss, parts=parts, watch=watch)

    def embeddings(self, first: Batch, second: Batch) -> tuple[Float[Tensor, "M D"], Float[Tensor, "N D"]]:
        """Unit embedding of each voxel of both clouds."""
        rows: Tensor = self.point_head(self.backbone(*joined_clouds(first, second)))
        ours = len(first.voxel_coords)
        return rows[:ours], rows[ours:]

    def sketches(self, batch: Batch) -> dict[str, Sketch]:
        """All matched points of both clouds, coloured by how similar the two features of a match are."""
        second, matches = batch.need("second", by="PointContrast"), batch.need("matches", by="PointContrast")
        first_rows, second_rows = self.embeddings(batch, second)
        a = first_rows[batch.point_voxel[matches.first]]
        b = second_rows[second.point_voxel[matches.second]]
        similarity = (a * b).sum(dim=1).float()
        share = len(matches.first) / max(batch.num_points, 1)
        caption = f"matched points ({share:.0%} of the cloud), similarity of the two features"
        clouds = {"first": batch.points[matches.first], "second": second.points[matches.second]}
        return {
            f"matches_{name}": PointSketch(
                points=points, values=similarity, scale="similarity", caption=f"{name} cloud: {caption}"
            )
            for name, points in clouds.items()
        }


def draw_pairs(
    first: Int[Tensor, " Q"], second: Int[Tensor, " Q"], num: int
) -> tuple[Int[Tensor, " R"], Int[Tensor, " R"]]:
    """Random pairs of voxels, no voxel twice on either side.

    Of an anchor's partners one is drawn, then of a partner's anchors; then up to `num` of what is left. Torch's default
    generator is used, whose state is in checkpoints, so that a resumed run draws the same.

    `first` and `second` are the voxels of each match in the two clouds.
    """
    order = torch.randperm(len(first), device=first.device)
    first, second = first[order], second[order]
    for side in (0, 1):  # in random order the first occurrence of a voxel is a fair choice of its partners
        kinds, group = torch.unique((first, second)[side], return_inverse=True)
        places = first_of_each(group, len(kinds)).sort().values
        first, second = first[places], second[places]
    drawn = torch.randperm(len(first), device=first.device)[:num]
    return first[drawn], second[drawn]


def hardest_contrastive(
    anchors: Float[Tensor, "R D"],
    targets: Float[Tensor, "R D"],
    *,
    positive_margin: float,
    negative_margin: float,
    gather: bool = False,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Pairs are pulled together, each row is pushed from its nearest wrong partner, in both directions.

        pull = mean_i max(0, |a_i - b_i| - positive_margin)^2
        push = mean_i ( max(0, negative_margin - min_{j != i} |a_i - b_j|)^2
                      + max(0, negative_margin - min_{j != i} |b_i - a_j|)^2 ) / 2

    Runs in float32 (float64 for float64 input), also under autocast. No rows give 0 with a gradient path, one row
    gives no push. Rows that are all the same have distance 0, where there is no direction: they are pushed by
    negative_margin^2 with gradient 0.

    Rows have unit length; row i of `targets` belongs to anchor i. With `gather` wrong partners are looked for on all
    ranks (see `info_nce` for how ranks add up); every rank must call.

    Source: FCGF (Choy et al., ICCV 2019), section 4.3; PointContrast, section 3.3, eq. 1.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        if anchors.dtype in (torch.float16, torch.bfloat16):
            anchors, targets = anchors.float(), targets.float()
        pull = (_root((anchors - targets).square().sum(dim=1)) - positive_margin).clamp(min=0).square().sum()
        pushes = []
        total = anchors.shape[0]
        for rows, others in ((anchors, targets), (targets, anchors)):
            all_others, start, total = gather_with_grad(others) if gather else (others, 0, total)
            own = torch.arange(start, start + rows.shape[0], device=rows.device)
            pushes.append(_push(rows, all_others, own, negative_margin))
    scale = (world_size() if gather else 1) / max(total, 1)
    return scale * pull, scale * 0.5 * (pushes[0] + pushes[1])


def _push(
    rows: Float[Tensor, "R D"], others: Float[Tensor, "T D"], own: Int64[Tensor, " R"], margin: float
) -> Float[Tensor, ""]:
    """Sum over rows of the squared hinge to the nearest of the others that is not the row's own."""
    path = 0.0 * (rows.sum() + others.sum())
    if rows.shape[0] == 0 or others.shape[0] < 2:
        return path
    with torch.no_grad():
        # For unit rows the most similar is the nearest; only its distance needs a gradient.
        similarity = rows @ others.T
        is_own: Bool[Tensor, "R T"] = torch.arange(others.shape[0], device=rows.device) == own[:, None]
        nearest = similarity.masked_fill(is_own, -torch.inf).argmax(dim=1)
    distance = _root((rows - others[nearest]).square().sum(dim=1))
    return path + (margin - distance).clamp(min=0).square().sum()


def _root(squared: Float[Tensor, " R"]) -> Float[Tensor, " R"]:
    return squared.clamp(min=EPSILON).sqrt()
