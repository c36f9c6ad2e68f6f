"""Instance segmentation: each voxel also says where the centre of its object is, and voxels that agree are an object.

Papers: Jiang et al., "PointGroup" (CVPR 2020): the offset branch, its losses and the clustering on shifted coordinates;
Hou et al., "Exploring data-efficient 3D scene understanding with contrastive scene contexts" (CVPR 2021): that and
nothing else, on the sparse U-Net. Learnt: the 3D network, a layer for classes, a small network for offsets. In: points
with classes and objects.

    L = cross-entropy + mean_v |o_v - t_v|_1 - mean_v <o_v, t_v> / (|o_v| |t_v|)
    t_v = mean of the object's voxels - x_v,   x_v = mean of the voxel's points

Clustering: components of voxels of one class whose shifted places x_v + o_v are at most `radius_m` apart. The papers'
search stops at a number of neighbours, ours does not, so its result is that of the definition.

Letters: N points, M voxels, K classes, V voxels of objects, O objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.components import components
from common.ranges import at_least, positive
from data.sample import Batch
from models.lidar.layers import PointLayer
from models.methods.base import LossTerms
from models.segmentation.base import Segmenter, Segments
from models.segmentation.semantic import Semantic, SemanticConfig, class_losses
from models.segmentation.voxels import agreed, voxel_classes, voxel_means

_WHO = "instance segmentation"


@dataclass(frozen=True, kw_only=True)
class InstanceConfig(SemanticConfig):
    """Settings of instance segmentation; the defaults are those on ScanNet (with the fields of `SemanticConfig`).

    Attributes:
        radius_m: shifted voxels of a class at most this far apart are of one object.
        min_voxels: objects of fewer are dropped: the papers keep components of at least 50, and of those the ones of
            more than 100.
    """

    TELLS_OBJECTS: ClassVar[bool] = True

    radius_m: float = 0.03
    min_voxels: int = 101

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "radius_m")
        at_least(self, min_voxels=1)

    def build(self) -> Segmenter:
        """Assemble network and layers with fresh weights."""
        return Instance(self)


class Instance(Semantic):
    """Network, layers, losses and clustering."""

    def __init__(self, config: InstanceConfig) -> None:
        super().__init__(config)
        self.clustering = config
        self.things = tuple(config.classes.index(name) for name in config.things)
        width = self.backbone.num_features
        hidden = PointLayer(width, width, bn_momentum=config.backbone.bn_momentum, bias=True)
        self.offset_layers = nn.Sequential(hidden, nn.Linear(width, 3))

    def forward(self, batch: Batch) -> LossTerms:
        """Classes of voxels, length and direction of their offsets; see above."""
        features = self.features(batch)
        classes = voxel_classes(batch, _WHO)
        parts = class_losses(self.class_layer(features).float(), classes, self.config.lovasz_weight)
        targets, of_object = self.offset_targets(batch, classes)
        parts |= offset_losses(self.offset_layers(features).float()[of_object], targets[of_object])
        total = torch.stack(list(parts.values())).sum()
        return LossTerms(total=total, parts={name: part.detach() for name, part in parts.items()})

    def offset_targets(
        self, batch: Batch, classes: Int[Tensor, " M"]
    ) -> tuple[Float[Tensor, "M 3"], Int[Tensor, " V"]]:
        """From each voxel to the mean of its object's voxels, metres, and which voxels are of an object of a thing."""
        num = len(batch.voxel_coords)
        places = voxel_means(batch.points, batch.point_voxel, num)
        # The same number in two samples, or in two classes, is two objects.
        object_of_point = batch.need("instances", by=_WHO)
        objects = agreed(object_of_point, batch.point_voxel, num, 0)
        is_thing = torch.isin(classes, torch.tensor(self.things, device=classes.device))
        rows = torch.nonzero(is_thing & (objects > 0))[:, 0]
        keys = torch.stack([batch.voxel_coords[rows, 0].long(), classes[rows], objects[rows]], dim=1)
        _, number = torch.unique(keys, dim=0, return_inverse=True)
        centres = voxel_means(places[rows], number, int(number.max()) + 1 if len(rows) else 0)
        targets = torch.zeros_like(places)
        targets[rows] = centres[number] - places[rows]
        return targets, rows

    def segment(self, batch: Batch) -> Segments:
        """See `Segmenter.segment`: objects by sample, class and first voxel."""
        features = self.features(batch)
        probabilities = self.class_layer(features).float().softmax(1)
        classes = probabilities.argmax(1)
        places = voxel_means(batch.points, batch.point_voxel, len(classes))
        shifted = (places + self.offset_layers(features).float()).double().cpu().numpy()
        of_voxel, object_class = _objects(
            shifted, classes.cpu().numpy(), batch.voxel_coords[:, 0].cpu().numpy(), self.things, self.clustering
        )
        objects = torch.from_numpy(of_voxel).to(classes.device)
        kinds = torch.from_numpy(object_class).to(classes.device)
        inside = torch.nonzero(objects >= 0)[:, 0]
        sure = probabilities[inside, classes[inside]]
        scores = sure.new_zeros(len(kinds)).scatter_reduce(0, objects[inside], sure, "amax")
        return Segments(
            point_class=classes[batch.point_voxel],
            point_object=objects[batch.point_voxel],
            object_class=kinds,
            object_score=scores,
        )


def offset_losses(offsets: Float[Tensor, "V 3"], targets: Float[Tensor, "V 3"]) -> dict[str, Float[Tensor, ""]]:
    """Mean L1 distance in metres, and minus the mean cosine, over the voxels of objects; 0 where there are none.

    An offset, or a target, of length 0 has no direction and counts as a cosine of 0.
    """
    if len(targets) == 0:
        nothing = offsets.sum() * 0.0
        return {"offset": nothing, "direction": nothing}
    return {
        "offset": (offsets - targets).abs().sum(1).mean(),
        "direction": -F.cosine_similarity(offsets, targets, dim=1).mean(),
    }


def _objects(
    shifted_m: Float[np.ndarray, "M 3"],
    classes: Int[np.ndarray, " M"],
    samples: Int[np.ndarray, " M"],
    things: tuple[int, ...],
    config: InstanceConfig,
) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " O"]]:
    """Object of each voxel, -1 for none, and class of each object."""
    of_voxel = np.full(len(classes), -1, dtype=np.int64)
    kinds: list[int] = []
    for rows in _groups(classes, samples, things):
        component = components(shifted_m[rows], config.radius_m)
        large = np.flatnonzero(np.bincount(component) >= config.min_voxels)
        # By first voxel: components come in no order.
        first = np.array([np.argmax(component == number) for number in large], dtype=np.int64)
        for number in large[np.argsort(first)]:
            of_voxel[rows[component == number]] = len(kinds)
            kinds.append(int(classes[rows[0]]))
    return of_voxel, np.array(kinds, dtype=np.int64)


def _groups(
    classes: Int[np.ndarray, " M"], samples: Int[np.ndarray, " M"], things: tuple[int, ...]
) -> Iterator[Int[np.ndarray, " m"]]:
    """Voxels of one sample and one class of things, by both."""
    for sample in np.unique(samples):
        for kind in things:
            rows = np.flatnonzero((samples == sample) & (classes == kind))
            if len(rows):
                yield rows
