"""SegContrast: a 3D network learns to know an object again in another view of the same sweep.

Paper: Nunes, Marcuzzi, Chen, Behley, Stachniss, "SegContrast: 3D point cloud feature representation learning through
self-supervised segment discrimination", RA-L 2022. Learnt: the 3D network with its MLP head. In: two augmentations of a
sweep, and segments: what is left of the sweep without its ground, clustered by density. No images. The key encoder is a
momentum copy (`models.contrast.momentum`), the negatives are a queue of past segments (`models.contrast.memory`).

Deviations from the released code: `docs/methods/segcontrast.md`.

Letters: N points, M voxels, S segments of all samples, T segments that both views have, C channels, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from common.ranges import at_least, below
from data.batch_spec import BatchSpec, GroundConfig, PointClusterConfig, SecondCloud
from data.sample import Batch, PointClusters
from models.contrast.memory import KeyQueue
from models.contrast.momentum import MomentumCopy
from models.heads import PlainMLPHead
from models.lidar.base import BackboneConfig
from models.lidar.res16unet import Res16UNetConfig
from models.methods.base import LossTerms
from models.methods.queue_contrast import QueueContrast, QueueContrastConfig
from models.pairing import segment_max
from models.visuals import PointSketch, Sketch


@dataclass(frozen=True, kw_only=True)
class SegContrastConfig(QueueContrastConfig):
    """Settings of SegContrast; defaults are the paper's. See `QueueContrastConfig` for the rest.

    Attributes:
        backbone: 3D network; `backbone.name` chooses.
        ground: how the ground is found that segments leave out.
        clusters: how segments are found.
        hidden_dim: width of the head.
        max_segments: of a sweep, the largest ones; None: all.
        min_points: of a segment in each of the two views; smaller ones are left out.
        dropout: share of a segment's features that are set to 0 before its maximum is taken, in training.
    """

    backbone: BackboneConfig = field(default_factory=lambda: Res16UNetConfig(preset="minkunet18", in_channels=4))
    ground: GroundConfig = field(default_factory=lambda: GroundConfig(kind="plane", distance_m=0.25, trials=200))
    clusters: PointClusterConfig = field(
        default_factory=lambda: PointClusterConfig(kind="dbscan", radius_m=0.25, min_points=10)
    )
    hidden_dim: int = 128
    max_segments: int | None = 50
    min_points: int = 20
    dropout: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, hidden_dim=1, max_segments=1, min_points=1, dropout=0)
        below(self, dropout=1)

    def batch_spec(self) -> BatchSpec:
        """Two augmentations of a sweep with segments, no images."""
        return BatchSpec(images=False, second_cloud=SecondCloud(), ground=self.ground, clusters=self.clusters)

    def build(self) -> SegContrast:
        """Assemble network, head, their copies and the queue."""
        return SegContrast(self)


class SegContrast(QueueContrast):
    """Network, momentum copy, queue and loss of SegContrast."""

    NAME = "segcontrast"

    def __init__(self, config: SegContrastConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        self.head = PlainMLPHead(self.backbone.num_features, config.hidden_dim, config.embedding_dim)
        self.key_backbone = MomentumCopy(self.backbone, config.momentum)
        self.key_head = MomentumCopy(self.head, config.momentum)
        self.queue = KeyQueue(config.queue_size, config.embedding_dim)

    def forward(self, batch: Batch) -> LossTerms:
        """Find each segment's other view among the segments of the past.

            q_t = unit(head(max over voxels of segment t of dropout(network(first view))))
            k_t = the same of the second view, by the momentum copy
            loss = mean over t of -log exp(q_t . k_t / tau) / (exp(q_t . k_t / tau) + sum_r exp(q_t . queue_r / tau))

        Then the keys of all ranks enter the queue. Without segments, or while the queue is empty, the loss is 0.

        Raises:
            ValueError: the batch has no second cloud or no clusters.

        Source: SegContrast, section III, eq. 1 and 2.
        """
        segments = self.common_segments(batch)
        queries, keys = self.embeddings(batch, segments)
        terms = self.queue_terms(self.queue, queries, keys, self.config)
        return replace(terms, watch=terms.watch | {"segments": terms.total.new_tensor(float(len(segments)))})

    def embeddings(self, batch: Batch, kept: Int64[Tensor, " T"]) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T D"]]:
        """Unit rows of some segments: of the first view by the network, of the second by its copy.

        `kept` are their ids.
        """
        second, *both = self._clusters(batch)
        first_row, second_row = (_rows_of(clusters, kept) for clusters in both)
        features = self.backbone(batch.voxel_coords, batch.voxel_features, batch.num_samples)
        queries = self.head(self._pooled(features, batch.point_voxel, first_row, len(kept)))
        features = self.key_backbone(second.voxel_coords, second.voxel_features, second.num_samples)
        keys = self.key_head(self._pooled(features, second.point_voxel, second_row, len(kept)))
        return queries, keys

    def common_segments(self, batch: Batch) -> Int64[Tensor, " T"]:
        """Ids of the segments that take part: the largest of each sample with enough points in both views."""
        _, clusters, second_clusters = self._clusters(batch)
        sizes = torch.minimum(_sizes(clusters), _sizes(second_clusters))
        (segments,) = (sizes >= self.config.min_points).nonzero(as_tuple=True)
        if self.config.max_segments is None:
            return segments
        sample = torch.zeros(clusters.num, dtype=torch.int64, device=segments.device)
        inside = clusters.of_point >= 0
        sample[clusters.of_point[inside].long()] = batch.point_sample[inside].long()
        segments = segments[torch.argsort(sizes[segments], descending=True, stable=True)]
        segments = segments[torch.argsort(sample[segments], stable=True)]  # by sample, within a sample by size
        counts = torch.bincount(sample[segments], minlength=batch.num_samples)
        place = torch.arange(len(segments), device=segments.device) - (counts.cumsum(0) - counts)[sample[segments]]
        return segments[place < self.config.max_segments]

    def copies(self) -> Iterable[tuple[MomentumCopy, nn.Module]]:
        """Of network and head."""
        return (self.key_backbone, self.backbone), (self.key_head, self.head)

    def sketches(self, batch: Batch) -> dict[str, Sketch]:
        """The segments, and how well each knows its other view."""
        segments = self.common_segments(batch)
        queries, keys = self.embeddings(batch, segments)
        row = _rows_of(self._clusters(batch)[1], segments)
        inside = row >= 0
        similarity = (queries * keys.to(queries.dtype)).sum(dim=1)
        return {
            "segments": PointSketch(
                points=batch.points, values=row, scale="labels", caption=f"{len(segments)} segments in both views"
            ),
            "similarity": PointSketch(
                points=batch.points[inside],
                values=similarity[row[inside]],
                scale="similarity",
                caption="similarity of each segment to its other view",
            ),
        }

    def _pooled(
        self, features: Float[Tensor, "M C"], point_voxel: Int[Tensor, " N"], row: Int64[Tensor, " N"], num_rows: int
    ) -> Float[Tensor, "T C"]:
        """Largest features of each segment's voxels. A voxel that holds points of two segments counts in both."""
        inside = row >= 0
        segment, voxel = torch.unique(torch.stack([row[inside], point_voxel[inside].long()]), dim=1)
        dropped = F.dropout(features[voxel], self.config.dropout, self.training)
        return segment_max(dropped, segment, num_rows)

    @staticmethod
    def _clusters(batch: Batch) -> tuple[Batch, PointClusters, PointClusters]:
        second = batch.need("second", by="SegContrast")
        return second, batch.need("clusters", by="SegContrast"), second.need("clusters", by="SegContrast")


def _sizes(clusters: PointClusters) -> Int64[Tensor, " S"]:
    return torch.bincount(clusters.of_point[clusters.of_point >= 0].long(), minlength=clusters.num)


def _rows_of(clusters: PointClusters, kept: Int64[Tensor, " T"]) -> Int64[Tensor, " N"]:
    """Row of each point's segment among those that are kept, -1 for none."""
    row = torch.full((clusters.num + 1,), -1, dtype=torch.int64, device=kept.device)
    row[kept] = torch.arange(len(kept), device=kept.device)
    return row[clusters.of_point.long()]  # id -1 reads the entry behind the last segment
