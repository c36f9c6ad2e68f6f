"""DepthContrast: two networks, one on voxels and one on points, learn to know a sweep again among those of the past.

Paper: Zhang, Girdhar, Joulin, Misra, "Self-supervised pretraining of 3D features on any point-cloud", ICCV 2021.
Learnt: a sparse network on voxels and PointNet++ on points, each with an MLP head. In: two augmentations of a sweep. No
images, no poses, no correspondences: a whole sweep is one vector. Each network has a momentum copy
(`models.contrast.momentum`), each format a queue of past keys (`models.contrast.memory`). A query is compared with
keys of its own format and of the other one.

Deviations from the released code: `docs/methods/depthcontrast.md`.

Letters: B samples, S samples with voxels in both views, M voxels, R filled rows of a queue, C channels, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from common.ranges import above, at_least, expect, one_of, weights
from data.batch_spec import BatchSpec, SecondCloud
from data.sample import Batch
from models.contrast.memory import KeyQueue, contrast_with_queue, queue_watch
from models.contrast.momentum import MomentumCopy
from models.heads import PlainMLPHead
from models.lidar.base import BackboneConfig
from models.lidar.pointnet2 import PointNet2Config
from models.lidar.res16unet import Res16UNetConfig
from models.methods.base import LossTerms
from models.methods.queue_contrast import QueueContrast, QueueContrastConfig
from models.pairing import segment_max
from models.visuals import PointSketch, Sketch

Formats = Literal["both", "voxel", "point"]


@dataclass(frozen=True, kw_only=True)
class DepthContrastConfig(QueueContrastConfig):
    """Settings of DepthContrast; defaults are the paper's. See `QueueContrastConfig` for the rest.

    Attributes:
        formats: "both"; "voxel", "point": `backbone` alone, within its own format, which must be that one.
        backbone: the network that downstream tasks take over; the voxel format's, where there are both.
        point_backbone: the other network, of the point format; without effect unless `formats: both`.
        hidden_dim: width of the heads.
        within_weight: weight of the contrast within formats (their mean: 2 is the sum of two).
        across_weight: weight of the contrast across formats (mean of both directions).
    """

    formats: Formats = "both"
    backbone: BackboneConfig = field(default_factory=lambda: Res16UNetConfig(in_channels=4))
    point_backbone: BackboneConfig = field(default_factory=lambda: PointNet2Config(preset="pointrcnn", in_channels=4))
    hidden_dim: int = 128
    within_weight: float = 1.0
    across_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, formats=Formats)
        at_least(self, hidden_dim=1)
        weights(self, "within_weight", "across_weight")
        takes_points = isinstance(self.backbone, PointNet2Config)
        fitting = "pointnet2" if self.formats == "point" else "a network on voxels (pointnet2 is one on points)"
        expect(self, "formats", takes_points == (self.formats == "point"), f"backbone to be {fitting}")
        if self.formats == "both":
            expect(self, "formats", isinstance(self.point_backbone, PointNet2Config), "point_backbone to be pointnet2")
        else:
            above(self, f"formats={self.formats}: else there is nothing to learn", within_weight=0)

    def batch_spec(self) -> BatchSpec:
        """Two augmentations of a sweep, no images."""
        return BatchSpec(images=False, second_cloud=SecondCloud())

    def point_networks(self) -> dict[str, BackboneConfig]:
        """Without the network that is not built."""
        networks = super().point_networks()
        return networks if self.formats == "both" else {"backbone": networks["backbone"]}

    def build(self) -> DepthContrast:
        """Assemble networks, heads, their copies and the queues."""
        return DepthContrast(self)


class DepthContrast(QueueContrast):
    """Networks, momentum copies, queues and losses of DepthContrast."""

    NAME = "depthcontrast"

    def __init__(self, config: DepthContrastConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        both = config.formats == "both"
        self.formats: tuple[str, ...] = ("voxel", "point") if both else (config.formats,)
        widths = {self.formats[0]: self.backbone.num_features}
        if both:
            self.point_backbone = config.point_backbone.build()
            widths["point"] = self.point_backbone.num_features
        self.heads = nn.ModuleDict(
            {name: PlainMLPHead(width, config.hidden_dim, config.embedding_dim) for name, width in widths.items()}
        )
        self.key_backbones = nn.ModuleDict(
            {name: MomentumCopy(self._network(name), config.momentum) for name in self.formats}
        )
        self.key_heads = nn.ModuleDict({name: MomentumCopy(self.heads[name], config.momentum) for name in self.formats})
        self.queues = nn.ModuleDict({name: KeyQueue(config.queue_size, config.embedding_dim) for name in self.formats})

    def forward(self, batch: Batch) -> LossTerms:
        """Find each sweep's second view among the sweeps of the past, in its own format and in the other one.

            q_f = unit(head_f(max over voxels of network_f(first view)))             for each format f
            k_f = the same of the second view, by f's momentum copy
            contrast(f, g) = mean over samples of
                -log exp(q_f . k_g / t) / (exp(q_f . k_g / t) + sum_r exp(q_f . queue_g[r] / t))
            loss = within_weight * mean_f contrast(f, f) + across_weight * mean_(f != g) contrast(f, g)

        Then the keys of all ranks enter their format's queue. Samples without voxels in one of the views are left out.
        While the queues are empty the loss is 0.

        Raises:
            ValueError: the batch has no second cloud.

        Source: DepthContrast, section 3, eq. 2 and 3.
        """
        second = batch.need("second", by="DepthContrast")
        samples = _samples_in_both(batch, second)
        queries = {f: self.heads[f](self._pooled(self._network(f), batch)[samples]) for f in self.formats}
        keys = {f: self.key_heads[f](self._pooled(self.key_backbones[f], second)[samples]) for f in self.formats}
        negatives = {f: self._queue(f).negatives() for f in self.formats}
        parts: dict[str, Tensor] = {}
        total = queries[self.formats[0]].new_zeros((), dtype=torch.float32)
        for f in self.formats:
            for g in self.formats:
                within = f == g
                loss = contrast_with_queue(queries[f], keys[g], negatives[g], temperature=self.config.temperature)
                weight = self.config.within_weight if within else self.config.across_weight
                total = total + weight * loss / len(self.formats)  # as many ways across as formats
                parts[f"within_{f}" if within else f"{f}_to_{g}"] = loss.detach()
        rows = (by_format[self.formats[0]] for by_format in (queries, keys, negatives))  # the network taken over
        watch = queue_watch(*rows, max_rows=self.config.watch_rows)
        if self.training:
            for f in self.formats:
                self._queue(f).enter(keys[f])
        return LossTerms(total=total, parts=parts, watch=watch)

    def copies(self) -> Iterable[tuple[MomentumCopy, nn.Module]]:
        """Of each format's network and head."""
        for f in self.formats:
            for copy, network in ((self.key_backbones[f], self._network(f)), (self.key_heads[f], self.heads[f])):
                assert isinstance(copy, MomentumCopy)
                yield copy, network

    def sketches(self, batch: Batch) -> dict[str, Sketch]:
        """Which points a format's vector is made of: the share of channels whose maximum lies there."""
        drawn: dict[str, Sketch] = {}
        for f in self.formats:
            features = self._network(f)(batch.voxel_coords, batch.voxel_features, batch.num_samples)
            share = features.new_zeros(len(features))
            if len(features) > 0:
                largest = features == features.amax(dim=0)
                share = (largest / largest.sum(dim=0)).mean(dim=1)
            caption = f"{f} format: share of the sweep's features that have their maximum here"
            drawn[f"maxima_{f}"] = PointSketch(
                points=batch.points, values=share[batch.point_voxel.long()], scale="free", caption=caption
            )
        return drawn

    def _network(self, name: str) -> nn.Module:
        return self.point_backbone if name == "point" and len(self.formats) == 2 else self.backbone

    def _queue(self, name: str) -> KeyQueue:
        queue = self.queues[name]
        assert isinstance(queue, KeyQueue)
        return queue

    @staticmethod
    def _pooled(network: nn.Module, batch: Batch) -> Float[Tensor, "B C"]:
        """Largest features of each sample's voxels."""
        features = network(batch.voxel_coords, batch.voxel_features, batch.num_samples)
        return segment_max(features, batch.voxel_coords[:, 0], batch.num_samples)


def _samples_in_both(first: Batch, second: Batch) -> Int64[Tensor, " S"]:
    counts = [torch.bincount(b.voxel_coords[:, 0].long(), minlength=b.num_samples) for b in (first, second)]
    return (torch.minimum(*counts) > 0).nonzero(as_tuple=True)[0]
