"""ProposalContrast: neighbourhoods of points get the same features in two augmentations of a sweep.

Paper: Yin, Zhou, Zhang, Fang, Xu, Shen, Wang, "ProposalContrast: Unsupervised Pre-training for LiDAR-Based 3D Object
Detection", ECCV 2022. Learnt: the 3D network, the encoder of proposals, heads and prototypes. In: a sweep twice, each
augmented on its own, with the points that both kept, and which points lie on the ground. No images. Nothing is frozen.

- Proposals: centres by farthest point sampling among the points off the ground that both clouds kept; around each a
  ball, of which some points are neighbours.
- Encoding: the centre's features attend to those of its neighbours (vector attention on differences of features, with
  relative positions).
- Inter-proposal discrimination: InfoNCE between the two encodings of a proposal.
- Inter-cluster separation: proposals are assigned to prototypes by Sinkhorn's iterations, and each view predicts the
  assignment of the other one (swapped prediction, SwAV).

What the paper leaves open is as in the released code: farthest points in the bird's-eye view, sizes of encoder and
heads, epsilon and iterations of Sinkhorn.

Deviations from the paper and its released code: `docs/methods/proposalcontrast.md`.

Letters: N points, Q matches, R proposals, K neighbours, M voxels, C channels, A inner channels, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from common.ranges import at_least, one_of, positive, weights
from data.batch_spec import BatchSpec, GroundConfig, SecondCloud
from data.sample import Batch
from models.contrast.collapse_monitor import collapse_watch
from models.contrast.losses import world_size
from models.contrast.sinkhorn import sinkhorn
from models.heads import unit
from models.lidar.base import BackboneConfig
from models.lidar.layers import PointLayer, norm_act
from models.lidar.voxelnet import VoxelNetConfig
from models.methods.base import LossTerms, Objective, RowContrastConfig, joined_clouds
from models.pairing import row_mask
from models.points.neighbors import ball_query
from models.points.sampling import farthest_points
from models.visuals import PointSketch, Sketch

Choice = Literal["random", "nearest"]


@dataclass(frozen=True, kw_only=True)
class ProposalContrastConfig(RowContrastConfig):
    """Settings of ProposalContrast; defaults are the paper's where it gives a number, else the released code's.

    See `RowContrastConfig` for the rest.

    Attributes:
        backbone: 3D network; `backbone.name` chooses.
        ground: how the ground is found; its points are no centres and no neighbours.
        second_cloud: `source: same` is the paper's.
        num_proposals: of each sample.
        radius_m: of a proposal's ball, in the frame of each augmented cloud.
        num_neighbors: points of the ball that are looked at.
        neighbors: "random" ones of the ball, drawn again in each step, or the "nearest".
        attention_shrink: inner channels of the encoder are the network's divided by this.
        hidden_dim: width of the layer that both heads share.
        embedding_dim: D, dimensions that are compared.
        num_prototypes: clusters.
        temperature: of both losses.
        proposal_weight: of inter-proposal discrimination.
        cluster_weight: of inter-cluster separation, the mean of both directions (2: their sum).
        epsilon: of Sinkhorn; the smaller, the harder the assignment.
        iterations: of Sinkhorn.
        within_view: other proposals of the same view are negatives too; not with `gather_negatives`.
        gather_clusters: equal shares of prototypes over the proposals of all ranks, as released, instead of over this
            rank's.
    """

    backbone: BackboneConfig = field(default_factory=lambda: VoxelNetConfig(preset="centerpoint"))
    ground: GroundConfig = field(default_factory=lambda: GroundConfig(kind="plane"))
    second_cloud: SecondCloud = field(default_factory=SecondCloud)
    num_proposals: int = 2048
    radius_m: float = 1.0
    num_neighbors: int = 16
    neighbors: Choice = "random"
    attention_shrink: int = 4
    hidden_dim: int = 256
    embedding_dim: int = 128
    num_prototypes: int = 128
    temperature: float = 0.1
    proposal_weight: float = 1.0
    cluster_weight: float = 1.0
    epsilon: float = 0.03
    iterations: int = 3
    within_view: bool = False
    gather_clusters: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, num_proposals=1, num_neighbors=1, attention_shrink=1, hidden_dim=1, embedding_dim=1)
        at_least(self, iterations=1, num_prototypes=2)
        positive(self, "radius_m", "epsilon")
        weights(self, "proposal_weight", "cluster_weight")
        one_of(self, neighbors=Choice)
        if self.within_view and self.gather_negatives:
            raise ValueError("within_view with gather_negatives is not defined; choose one of them")

    def batch_spec(self) -> BatchSpec:
        """Two clouds with matches and ground, no images."""
        return BatchSpec(images=False, second_cloud=self.second_cloud, ground=self.ground)

    def build(self) -> ProposalContrast:
        """Assemble network, encoder and heads."""
        return ProposalContrast(self)


class ProposalContrast(Objective):
    """Network, encoder, heads and losses of ProposalContrast."""

    JOINS_CLOUDS = True

    def __init__(self, config: ProposalContrastConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        width = self.backbone.num_features
        self.encoder = ProposalEncoder(width, max(width // config.attention_shrink, 1))
        self.shared = PointLayer(width, config.hidden_dim, bn_momentum=0.1)
        self.proposal_linear = nn.Linear(config.hidden_dim, config.embedding_dim, bias=False)
        self.proposal_norm = nn.BatchNorm1d(config.embedding_dim)
        self.cluster_linear = nn.Linear(config.hidden_dim, config.embedding_dim, bias=False)
        self.prototypes = Prototypes(config.num_prototypes, config.embedding_dim)

    def forward(self, batch: Batch) -> LossTerms:
        """Contrast the two encodings of each proposal, and predict each view's clusters from the other.

            a_i, b_i = proposal i in the two clouds, encoded;  u, w = its unit embeddings of the two heads
            proposal loss = InfoNCE(u(a), u(b)), both directions
            s = w . prototypes;  q = sinkhorn(s)
            cluster loss = - mean_i (q(b_i) . log_softmax(s(a_i) / t) + q(a_i) . log_softmax(s(b_i) / t)) / 2

        A batch without proposals gives a loss of 0 and gradients of 0.

        Raises:
            ValueError: the batch has no second cloud or no ground.

        Source: ProposalContrast, sections 3.2 to 3.4.
        """
        second, matches = batch.need("second", by="ProposalContrast"), batch.need("matches", by="ProposalContrast")
        match = self.sample(batch, matches.first)
        # Both views in one go: BatchNorm then has at least two rows as soon as there is a proposal.
        hidden = self.shared(self.encode(batch, second, matches.first[match], matches.second[match]))
        u = unit(norm_act(self.proposal_norm, self.proposal_linear(hidden), relu=False))
        scores = self.prototypes(unit(self.cluster_linear(hidden)))

        proposal_loss = self._proposal_loss(u)
        cluster_loss = self._cluster_loss(*scores.float().tensor_split(2))
        return LossTerms(
            total=self.config.proposal_weight * proposal_loss + self.config.cluster_weight * cluster_loss,
            parts={"proposals": proposal_loss.detach(), "clusters": cluster_loss.detach()},
            watch=collapse_watch(*u.tensor_split(2), max_rows=self.config.watch_rows),
        )

    @torch.no_grad()
    def sample(self, batch: Batch, match_point: Int[Tensor, " Q"]) -> Int64[Tensor, " R"]:
        """Matches whose points become centres: far from each other seen from above, off the ground.

        Raises:
            ValueError: the batch has no ground.
        """
        rows = (~batch.need("ground", by="ProposalContrast")[match_point]).nonzero().squeeze(1)
        point = match_point[rows]
        # Sampling expects one sample after another; matches may stand in any order.
        order = torch.argsort(batch.point_sample[point], stable=True)
        rows, point = rows[order], point[order]
        counts = torch.bincount(batch.point_sample[point], minlength=batch.num_samples)
        chosen, _ = farthest_points(batch.points[point, :2], counts, self.config.num_proposals)
        return rows[chosen]

    @torch.no_grad()
    def gather_neighbors(self, batch: Batch, centre: Int64[Tensor, " R"]) -> Int64[Tensor, "R K"]:
        """Neighbours of each centre among the points off the ground, -1 where the ball has fewer than K.

        Random neighbours are the first of the ball in a random order, drawn from torch's default generator, whose state
        is in checkpoints. In evaluation mode they are the nearest, so that pictures do not change what a run draws.

        `batch` is one of the two clouds, `centre` are points ordered by sample.
        """
        points = (~batch.need("ground", by="ProposalContrast")).nonzero().squeeze(1)
        random = self.training and self.config.neighbors == "random"
        if random:
            points = points[torch.randperm(len(points), device=points.device)]
            points = points[torch.argsort(batch.point_sample[points], stable=True)]
        near = ball_query(
            batch.points[centre],
            torch.bincount(batch.point_sample[centre], minlength=batch.num_samples),
            batch.points[points],
            torch.bincount(batch.point_sample[points], minlength=batch.num_samples),
            self.config.num_neighbors,
            radius=self.config.radius_m,
            choose="first" if random else "nearest",
        )
        if len(points) == 0:
            return near.index
        return torch.where(near.index >= 0, points[near.index.clamp(min=0)], -1)

    def encode(
        self, first: Batch, second: Batch, first_centre: Int64[Tensor, " R"], second_centre: Int64[Tensor, " R"]
    ) -> Float[Tensor, "R2 C"]:
        """Features of the proposals around points of both clouds, those of the first one first."""
        features = self.backbone(*joined_clouds(first, second))
        rows, around, offsets, real = [], [], [], []
        for view, centre, start in ((first, first_centre, 0), (second, second_centre, len(first.voxel_coords))):
            neighbor = self.gather_neighbors(view, centre)
            real.append(neighbor >= 0)
            neighbor = neighbor.clamp(min=0)
            rows.append(start + view.point_voxel[centre])
            around.append(start + view.point_voxel[neighbor])
            offsets.append(view.points[centre][:, None] - view.points[neighbor])
        encoded: Tensor = self.encoder(
            features[torch.cat(rows)],
            features[torch.cat(around)],
            torch.cat(offsets).to(features.dtype),
            torch.cat(real),
        )
        return encoded

    def _proposal_loss(self, u: Float[Tensor, "R2 D"]) -> Float[Tensor, ""]:
        first, second = u.tensor_split(2)
        if not self.config.within_view:
            return self.config.info_nce(first, second, symmetric=True)
        # Row i against all rows of both views but itself; its partner stands in column i.
        itself = torch.eye(len(u), dtype=torch.bool, device=u.device).roll(len(first), dims=1)
        return self.config.info_nce(u, torch.cat([second, first]), excluded=itself)

    def _cluster_loss(self, first: Float[Tensor, "R P"], second: Float[Tensor, "R P"]) -> Float[Tensor, ""]:
        config = self.config
        total = 0.0 * (first.sum() + second.sum())
        for scores, other in ((first, second), (second, first)):
            target = sinkhorn(
                other.detach(), epsilon=config.epsilon, iterations=config.iterations, gather=config.gather_clusters
            )
            total = total - 0.5 * (target * F.log_softmax(scores / config.temperature, dim=1)).sum()
        rows = torch.tensor(float(len(first)), device=first.device)
        # With rows of all ranks: their share of the mean over all proposals, as in `info_nce`.
        shared = config.gather_clusters and world_size() > 1
        if shared:
            dist.all_reduce(rows)
        return total * (world_size() if shared else 1) / rows.clamp(min=1).to(total.dtype)

    def sketches(self, batch: Batch) -> dict[str, Sketch]:
        """Proposals from above by their cluster, and by how similar their two encodings are."""
        second, matches = batch.need("second", by="ProposalContrast"), batch.need("matches", by="ProposalContrast")
        match = self.sample(batch, matches.first)
        centre = matches.first[match]
        hidden = self.shared(self.encode(batch, second, centre, matches.second[match]))
        u = unit(norm_act(self.proposal_norm, self.proposal_linear(hidden), relu=False))
        first, other = u.tensor_split(2)
        clusters = self.prototypes(unit(self.cluster_linear(hidden))).argmax(dim=1)[: len(centre)]
        labels = torch.full((batch.num_points,), -1, device=centre.device)
        neighbor = self.gather_neighbors(batch, centre)
        real = neighbor >= 0
        labels[neighbor[real]] = clusters[:, None].expand_as(real)[real]
        labels[centre] = clusters
        return {
            "proposals": PointSketch(
                points=batch.points,
                values=labels,
                scale="labels",
                marked=row_mask(centre, batch.num_points),
                caption=f"{len(centre)} proposals by nearest of {self.config.num_prototypes} prototypes",
            ),
            "agreement": PointSketch(
                points=batch.points[centre],
                values=(first * other).sum(dim=1).float(),
                scale="similarity",
                caption="proposals, similarity of the two views",
            ),
        }


class ProposalEncoder(nn.Module):
    """Vector attention of a centre to its neighbours.

        e_j = P(offset_j)
        out = x + O sum_j softmax_j( A(Q x - K y_j + e_j) ) * (V y_j + e_j)       (product channel by channel)

    Source: ProposalContrast, section 3.2; the form is that of Point Transformer (Zhao et al., ICCV 2021, eq. 3).
    """

    def __init__(self, channels: int, inner: int, *, position_hidden: int = 64, attention_widening: int = 4) -> None:
        super().__init__()
        self.query = nn.Linear(channels, inner, bias=False)
        self.key = nn.Linear(channels, inner, bias=False)
        self.value = nn.Linear(channels, inner, bias=False)
        self.position = nn.Sequential(nn.Linear(3, position_hidden), nn.ReLU(), nn.Linear(position_hidden, inner))
        wide = inner * attention_widening
        self.attention = nn.Sequential(nn.Linear(inner, wide), nn.ReLU(), nn.Linear(wide, inner))
        self.out = nn.Linear(inner, channels, bias=False)

    def forward(
        self,
        centres: Float[Tensor, "R C"],
        neighbors: Float[Tensor, "R K C"],
        offsets: Float[Tensor, "R K 3"],
        real: Bool[Tensor, "R K"],
    ) -> Float[Tensor, "R C"]:
        """Features of proposals; without a real neighbour the centre's own.

        `offsets` go from each neighbour to the centre, metres; `real` says which neighbours there are.
        """
        position = self.position(offsets)
        logits = self.attention(self.query(centres)[:, None] - self.key(neighbors) + position).float()
        # The least number instead of -inf: a proposal without neighbours then gets equal weights, not NaN.
        logits = logits.masked_fill(~real[..., None], torch.finfo(logits.dtype).min)
        weights = logits.softmax(dim=1) * real[..., None]
        mixed: Tensor = (weights * (self.value(neighbors) + position)).sum(dim=1)
        added: Tensor = self.out(mixed.to(centres.dtype))
        return centres + added


class Prototypes(nn.Module):
    """Unit directions that rows are compared with."""

    def __init__(self, num: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num, dim))

    def forward(self, rows: Float[Tensor, "R D"]) -> Float[Tensor, "R P"]:
        """Cosine of each unit row with each prototype."""
        scores: Tensor = F.linear(rows, F.normalize(self.weight, dim=1))
        return scores
