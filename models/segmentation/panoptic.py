"""Panoptic segmentation: a class for each point, and objects where points lie together once they are moved.

A 3D network with two heads. One gives classes. The other says for each point where the middle of its object lies; the
points of things, moved there, are clustered by mean shift.

Source: the network that TARL and NCLR are judged with: Marcuzzi et al., MinkowskiPanoptic (released code).

Deviations: a point is given one of the classes, never "unlabelled", which the released network learns as a class of its
own and may also give. Its convolutions for offsets are written with LeakyReLU(True), where True is meant as "in place"
and is the slope: they are linear. `negative_slope` is 0.01 here; 1 gives the released network.

Letters: N points, M voxels, K classes, B samples, C channels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from common.lovasz import lovasz_softmax
from common.ranges import at_least, between, expect, positive
from data.sample import IGNORE_LABEL, Batch
from models.lidar.base import BackboneConfig
from models.lidar.layers import norm_act
from models.lidar.res16unet import Res16UNetConfig
from models.lidar.shared_voxels import sharing_maps
from models.lidar.sparse import BackendName, SparseBackboneConfig, SubmanifoldRows, VoxelGrid
from models.methods.base import LossTerms
from models.segmentation.base import Segmenter, SegmenterConfig, Segments
from models.segmentation.mean_shift import mean_shift
from models.segmentation.targets import offset_targets


@dataclass(frozen=True, kw_only=True)
class PanopticConfig(SegmenterConfig):
    """Settings of the panoptic network.

    Attributes:
        backbone: 3D network.
        cross_entropy_weight: of the classes' cross-entropy.
        lovasz_weight: of the Lovász term beside it, in which unlabelled points are a class of their own.
        offset_weight: of the offsets' distance.
        offset_channels: of the second and third convolution of the head for offsets; the first keeps the backbone's.
        negative_slope: of LeakyReLU there; 1, no activation at all, in the released code.
        bandwidth_m: of mean shift.
    """

    backbone: BackboneConfig = field(default_factory=lambda: Res16UNetConfig(preset="minkunet18", in_channels=4))
    cross_entropy_weight: float = 2.0
    lovasz_weight: float = 6.0
    offset_weight: float = 1.0
    offset_channels: tuple[int, int] = (64, 32)
    negative_slope: float = 0.01
    bandwidth_m: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self, "things", len(self.things) > 0, "at least one class whose objects are told apart")
        at_least(self, cross_entropy_weight=0, lovasz_weight=0, offset_weight=0, offset_channels=1)
        between(self, negative_slope=(0, 1))
        positive(self, "bandwidth_m")

    def build(self) -> PanopticNetwork:
        """Assemble the network with fresh weights."""
        return PanopticNetwork(self)


class PanopticNetwork(Segmenter):
    """See the module."""

    def __init__(self, config: PanopticConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        width, backend = self.backbone.num_features, backend_of(config.backbone)
        self.class_head = SubmanifoldRows(width, len(config.classes) + 1, backend=backend)
        self.offset_head = OffsetHead(width, config)
        is_thing = torch.tensor([name in config.things for name in config.classes] + [False])
        self.register_buffer("is_thing", is_thing, persistent=False)
        self.is_thing: Bool[Tensor, " K_and_1"]

    def forward(self, batch: Batch) -> LossTerms:
        """Loss of the classes, and of the offsets of labelled objects' points."""
        labels = batch.need("labels", by="panoptic segmentation")
        instances = batch.need("instances", by="panoptic segmentation")
        scores, offsets = self._outputs(batch)
        labels = torch.where(labels == IGNORE_LABEL, len(self.config.classes), labels)
        labelled = labels < len(self.config.classes)
        rows = F.cross_entropy(scores[labelled], labels[labelled], reduction="sum")
        cross_entropy = rows / labelled.sum().clamp_min(1)
        lovasz = lovasz_softmax(scores.softmax(1), labels)
        objects = torch.where(self.is_thing[labels] & (instances > 0), instances, 0)
        distance = offset_loss(offsets, batch, labels, objects)
        config = self.config
        parts = {
            "cross_entropy": config.cross_entropy_weight * cross_entropy,
            "lovasz": config.lovasz_weight * lovasz,
            "offset": config.offset_weight * distance,
        }
        return LossTerms(
            total=torch.stack(list(parts.values())).sum(), parts={name: part.detach() for name, part in parts.items()}
        )

    def segment(self, batch: Batch) -> Segments:
        """See `Segmenter.segment`.

        Objects are found among the points of all things together; a class of an object is that of most of its points,
        its score their mean probability of it.
        """
        scores, offsets = self._outputs(batch)
        probabilities = scores.softmax(1)[:, :-1]
        classes = probabilities.argmax(1)
        objects = self._clustered(batch, classes, offsets)
        return Segments(point_class=classes, point_object=objects, **objects_of(probabilities, classes, objects))

    def _outputs(self, batch: Batch) -> tuple[Float[Tensor, "N K_and_1"], Float[Tensor, "N 3"]]:
        """Scores of the classes, "unlabelled" last, and offsets in metres, in single precision at least."""
        with sharing_maps(batch.voxel_coords, batch.num_samples) as voxels:
            features = self.backbone(batch.voxel_coords, batch.voxel_features, batch.num_samples)
            features = voxels.sorted(features)
            scores = voxels.rows(self.class_head(features, voxels.grid))[batch.point_voxel]
            offsets = self.offset_head(features, voxels.grid, voxels.point_rows(batch.point_voxel), batch.points)
        return scores.to(batch.points.dtype), offsets

    def _clustered(self, batch: Batch, classes: Int[Tensor, " N"], offsets: Float[Tensor, "N 3"]) -> Int[Tensor, " N"]:
        """Object of each point, numbered through all samples; -1: none."""
        moved, things = (batch.points + offsets).double().cpu().numpy(), self.is_thing[classes]
        objects = torch.full_like(classes, -1)
        first = 0
        for number in range(batch.num_samples):
            rows = torch.nonzero(things & (batch.point_sample == number))[:, 0]
            found = mean_shift(moved[rows.cpu().numpy()], self.config.bandwidth_m)
            objects[rows] = torch.from_numpy(found + first).to(objects.device)
            first += int(found.max(initial=-1)) + 1
        return objects


class OffsetHead(nn.Module):
    """From each point to the middle of its object: three convolutions on voxels, two linear layers on points."""

    def __init__(self, width: int, config: PanopticConfig) -> None:
        super().__init__()
        backend, momentum = backend_of(config.backbone), config.backbone.bn_momentum
        widths = (width, width, *config.offset_channels)
        self.convolutions = nn.ModuleList(SubmanifoldRows(a, b, backend=backend) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(b, momentum=momentum) for b in widths[1:])
        last = widths[-1]
        self.hidden = nn.Linear(last + 3, last)
        self.hidden_norm = nn.BatchNorm1d(last, momentum=momentum)
        self.out = nn.Linear(last, 3)
        self.negative_slope = config.negative_slope

    def forward(
        self,
        features: Float[Tensor, "M C"],
        grid: VoxelGrid,
        point_rows: Int[Tensor, " N"],
        points: Float[Tensor, "N 3"],
    ) -> Float[Tensor, "N 3"]:
        """Offsets in metres.

        Args:
            features: of voxels.
            grid: the voxels, in the same order.
            point_rows: row of `features` of each point.
            points: places in metres.
        """
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            assert isinstance(norm, nn.BatchNorm1d)
            features = convolution(features, grid)
            features = F.leaky_relu(norm_act(norm, features, relu=False), self.negative_slope)
        # bfloat16 has no more than 0.25 m at 50 m.
        with torch.autocast(points.device.type, enabled=False):
            joined = torch.cat([features.to(points.dtype)[point_rows], points], dim=1)
            offsets: Tensor = self.out(norm_act(self.hidden_norm, self.hidden(joined)))
        return offsets


def backend_of(config: BackboneConfig) -> BackendName:
    """That of the sparse convolutions around a backbone: its own, where it has such."""
    return config.backend if isinstance(config, SparseBackboneConfig) else "auto"


def offset_loss(
    offsets: Float[Tensor, "N 3"], batch: Batch, classes: Int[Tensor, " N"], objects: Int[Tensor, " N"]
) -> Float[Tensor, ""]:
    """Sum over the axes of the distance to the middle of the object, mean over its points, mean over the samples.

    Args:
        offsets: of each point, metres.
        batch: its points.
        classes: of each point: points of one number and two classes are two objects.
        objects: of each point, 0 for none; those count nothing.
    """
    rows, targets = offset_targets(batch.points, batch.point_sample, classes, objects)
    apart = (offsets[rows] - targets).abs().sum(1)
    sample = batch.point_sample[rows]
    sums = apart.new_zeros(batch.num_samples).index_add(0, sample, apart)
    counts = torch.bincount(sample, minlength=batch.num_samples)
    return (sums / counts.clamp_min(1)).mean() + 0.0 * offsets.sum()


def objects_of(
    probabilities: Float[Tensor, "N K"], classes: Int[Tensor, " N"], objects: Int[Tensor, " N"]
) -> dict[str, Tensor]:
    """Class and score of each object, as `Segments` has them: the class of most points, of equally many the first."""
    rows = torch.nonzero(objects >= 0)[:, 0]
    num, width = int(objects.max()) + 1 if len(objects) else 0, probabilities.shape[1]
    votes = torch.bincount(objects[rows] * width + classes[rows], minlength=num * width).view(num, width)
    chosen = votes.argmax(1) if num else votes.new_zeros(0)
    of_chosen = probabilities[rows, chosen[objects[rows]]].double()
    sums = of_chosen.new_zeros(num).index_add(0, objects[rows], of_chosen)
    return {"object_class": chosen, "object_score": (sums / votes.sum(1).clamp_min(1)).float()}
