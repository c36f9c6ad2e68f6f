"""The centre head of CenterPoint: heat maps of centres, and at each centre the box around it.

Paper: Yin, Zhou, Krähenbühl, "Center-based 3D object detection and tracking", CVPR 2021, section 4 (first stage).
Sizes, branches, weights and candidates are those of OpenPCDet's released configurations.

Codes at a cell, in this order: x and y from the cell's edge in cells, z in metres, logarithms of length, width and
height, cosine and sine of the heading and, by option, velocity.

Letters: B samples, C classes of a group, X Y cells, K boxes, J boxes of a group, T candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.ranges import above, at_least, expect, share
from data.sample import BatchBoxes
from models.detection.base import Detections
from models.detection.losses import heatmap_focal_loss, mean_over_ranks
from models.detection.suppression import SuppressionConfig, joined
from models.detection.targets_centres import heat_map, places, radii
from models.lidar.base import BirdEyeGrid
from models.methods.base import LossTerms
from models.pairing import full_precision

_BRANCHES = {"center": 2, "center_z": 1, "dim": 3, "rot": 2}
"""Name -> codes, in their order. The names are those of OpenPCDet's parameters."""

_HEAT_BIAS = -2.19
"""A score of 0.1 everywhere."""


@dataclass(frozen=True, kw_only=True)
class CentreHeadConfig:
    """Settings of the centre head; the defaults are CenterPoint's on Waymo.

    Attributes:
        groups: names of classes that share branches and are suppressed among each other; (): all classes are one group.
        velocity: predict velocities; boxes without a known one train the rest.
        channels: of the map that all branches work on, and of theirs.
        min_overlap: of nearly right boxes with the true one, see `models.detection.targets_centres.radii`.
        min_radius: of the heat around a centre, cells.
        heat_weight: of the heat maps' loss in the sum.
        box_weight: of the codes' loss.
        heading_weight: of cosine and sine among the codes (0.2 on nuScenes).
        velocity_weight: of the velocity among the codes.
        num_candidates: cells of highest score that a sample's boxes are read from, in each group.
        centre_min_m: centres below along x, y, z are no detections.
        centre_max_m: centres above are none either.
    """

    groups: tuple[tuple[str, ...], ...] = ()
    velocity: bool = False
    channels: int = 64
    min_overlap: float = 0.1
    min_radius: int = 2
    heat_weight: float = 1.0
    box_weight: float = 2.0
    heading_weight: float = 1.0
    velocity_weight: float = 1.0
    num_candidates: int = 500
    centre_min_m: tuple[float, float, float] = (-80.0, -80.0, -10.0)
    centre_max_m: tuple[float, float, float] = (80.0, 80.0, 10.0)

    def __post_init__(self) -> None:
        at_least(self, channels=1, min_radius=0, num_candidates=1)
        at_least(self, heat_weight=0, box_weight=0, heading_weight=0, velocity_weight=0)
        above(self, min_overlap=0)
        share(self, "min_overlap")
        ordered = all(low < high for low, high in zip(self.centre_min_m, self.centre_max_m, strict=True))
        expect(self, "centre_min_m", ordered, f"below centre_max_m {self.centre_max_m}")

    def of_classes(self, classes: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """Numbers of the classes of each group.

        Raises:
            ValueError: a class is in no group or in two, or a group names an unknown one.
        """
        if not self.groups:
            return (tuple(range(len(classes))),)
        named = [name for group in self.groups for name in group]
        whole = sorted(named) == sorted(classes) and all(self.groups)
        expect(self, "groups", whole, f"each of the classes {', '.join(classes)} once")
        return tuple(tuple(classes.index(name) for name in group) for group in self.groups)

    @property
    def code_weights(self) -> tuple[float, ...]:
        """Of each code."""
        return (1.0,) * 6 + (self.heading_weight,) * 2 + (self.velocity_weight,) * (2 if self.velocity else 0)


class CentreHead(nn.Module):
    """Shared convolution, branches of each group, targets, losses and decoding."""

    def __init__(self, config: CentreHeadConfig, classes: tuple[str, ...], in_channels: int, grid: BirdEyeGrid) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        self.groups = config.of_classes(classes)
        self.shared_conv = _conv_norm_relu(in_channels, config.channels)
        self.heads_list = nn.ModuleList(
            [Branches(config.channels, len(group), velocity=config.velocity) for group in self.groups]
        )

    def forward(self, bev: Float[Tensor, "B F Y X"]) -> list[CentreOutputs]:
        """Outputs of each group at the cells of a map."""
        shared = self.shared_conv(bev)
        return [branches(shared) for branches in self.heads_list]

    def loss(self, outputs: Sequence[CentreOutputs], boxes: BatchBoxes) -> LossTerms:
        """Sum over groups of the loss of heat maps and that of the codes at the boxes' cells.

            heat_weight * sum over cells heatmap_focal(heat) / number of centres
            + box_weight * sum over boxes and codes weight_of_code * |code - wanted| / number of boxes

        The numbers are those of the batches of all ranks (at least 1), so that ranks together learn what one process
        with all samples would; the released code divides by each rank's own. A batch without boxes has only the first
        term; nothing is NaN and every parameter has a gradient. Every rank must call.

        Source: CenterPoint, section 4; OpenPCDet's released code.
        """
        terms = [self._group_loss(out, group, boxes) for out, group in zip(outputs, self.groups, strict=True)]
        heat, box = torch.stack([term[0] for term in terms]).sum(), torch.stack([term[1] for term in terms]).sum()
        return LossTerms(total=heat + box, parts={"heat": heat.detach(), "box": box.detach()})

    def _group_loss(
        self, out: CentreOutputs, group: tuple[int, ...], boxes: BatchBoxes
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        num_samples, num_classes = out.heat.shape[:2]
        rows, plane = self._planes(boxes, group)
        own, sample = boxes.boxes[rows].float(), boxes.sample[rows]
        place = places(own, self.grid)
        cell = place.long()
        reach = radii(own, self.grid, min_overlap=self.config.min_overlap, min_radius=self.config.min_radius)
        heat = heat_map(cell, reach, plane, num_samples * num_classes, self.grid.size).view_as(out.heat)
        centres = mean_over_ranks((heat == 1).sum().to(heat.dtype))
        heat_loss = self.config.heat_weight * heatmap_focal_loss(out.heat, heat) / centres

        wanted = _codes(own, place - cell, boxes.velocities_mps[rows] if self.config.velocity else None)
        codes = out.codes[sample, :, cell[:, 1], cell[:, 0]]
        known = wanted.isfinite()
        error = torch.where(known, (codes - wanted.nan_to_num()).abs(), 0.0)
        objects = mean_over_ranks(torch.tensor(float(len(rows)), device=error.device))
        weights = error.new_tensor(self.config.code_weights)
        return heat_loss, self.config.box_weight * (error * weights).sum() / objects

    def _planes(self, boxes: BatchBoxes, group: tuple[int, ...]) -> tuple[Int[Tensor, " J"], Int[Tensor, " J"]]:
        """Rows of a group's boxes, and which heat map (class of a sample) each is in."""
        is_class = boxes.classes[:, None] == boxes.classes.new_tensor(group)
        rows, number = is_class.nonzero().unbind(1)
        return rows, boxes.sample[rows] * len(group) + number

    def detect(self, outputs: Sequence[CentreOutputs], suppression: SuppressionConfig) -> Detections:
        """Boxes at the cells of highest score, after suppression within each group."""
        by_group = list(zip(outputs, self.groups, strict=True))
        return joined(
            [
                self._detect(out, group, sample, suppression)
                for sample, (out, group) in itertools.product(range(len(outputs[0].heat)), by_group)
            ]
        )

    def _detect(
        self, out: CentreOutputs, group: tuple[int, ...], sample: int, suppression: SuppressionConfig
    ) -> Detections:
        heat, codes = out.heat[sample].flatten(1).sigmoid(), out.codes[sample].flatten(1)
        num_cells = heat.shape[1]
        # The best of each class compete for the places of the group.
        scores, cell = heat.topk(min(self.config.num_candidates, num_cells), dim=1)
        scores, rank = scores.flatten().topk(min(self.config.num_candidates, scores.numel()))
        number, cell = rank // cell.shape[1], cell.flatten()[rank]
        boxes, velocities = self._decode(codes[:, cell].T, cell)
        low, high = (boxes.new_tensor(limit) for limit in (self.config.centre_min_m, self.config.centre_max_m))
        inside = ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all(dim=1).nonzero()[:, 0]
        rows = inside[suppression.rows(boxes[inside], scores[inside])]
        return Detections(
            boxes=boxes[rows],
            velocities_mps=velocities[rows],
            classes=torch.tensor(group, device=rows.device)[number[rows]],
            scores=scores[rows],
            sample=torch.full_like(rows, sample),
        )

    def _decode(
        self, codes: Float[Tensor, "T D"], cell: Int[Tensor, " T"]
    ) -> tuple[Float[Tensor, "T 7"], Float[Tensor, "T 2"]]:
        """Boxes and velocities of the codes read at cells (y * X + x)."""
        x_size = self.grid.size[0]
        first = torch.stack([cell % x_size, cell // x_size], dim=1)
        low, edge = codes.new_tensor(self.grid.low_m), codes.new_tensor(self.grid.cell_m)
        xy = low + edge * (first + codes[:, :2])
        heading = torch.atan2(codes[:, 7], codes[:, 6])
        boxes = torch.cat([xy, codes[:, 2:3], codes[:, 3:6].exp(), heading[:, None]], dim=1)
        return boxes, codes[:, 8:] if self.config.velocity else torch.full_like(xy, torch.nan)


def _codes(
    boxes: Float[Tensor, "J 7"], offset: Float[Tensor, "J 2"], velocities: Float[Tensor, "J 2"] | None
) -> Float[Tensor, "J D"]:
    heading = boxes[:, 6:]
    codes = [offset, boxes[:, 2:3], boxes[:, 3:6].log(), heading.cos(), heading.sin()]
    return torch.cat(codes if velocities is None else [*codes, velocities.to(boxes.dtype)], dim=1)


@dataclass(frozen=True, kw_only=True)
class CentreOutputs:
    """What the branches of a group say of each cell, in float32.

    Attributes:
        heat: logits of a centre of each class.
        codes: see the module.
    """

    heat: Float[Tensor, "B C Y X"]
    codes: Float[Tensor, "B D Y X"]


class Branches(nn.ModuleDict):
    """The branches of a group of classes, by their names."""

    def __init__(self, channels: int, num_classes: int, *, velocity: bool) -> None:
        sizes = {**_BRANCHES, **({"vel": 2} if velocity else {}), "hm": num_classes}
        super().__init__(
            {
                name: nn.Sequential(_conv_norm_relu(channels, channels), nn.Conv2d(channels, size, 3, padding=1))
                for name, size in sizes.items()
            }
        )
        for name, branch in self.items():
            convs = [m for m in branch.modules() if isinstance(m, nn.Conv2d)]
            for conv in convs:
                assert conv.bias is not None
                if name != "hm":
                    nn.init.kaiming_normal_(conv.weight)
                    nn.init.zeros_(conv.bias)
            if name == "hm":
                assert convs[-1].bias is not None
                nn.init.constant_(convs[-1].bias, _HEAT_BIAS)

    def forward(self, shared: Float[Tensor, "B F Y X"]) -> CentreOutputs:
        """All branches on the shared map."""
        maps = {name: full_precision(branch(shared)) for name, branch in self.items()}
        heat = maps.pop("hm")
        return CentreOutputs(heat=heat, codes=torch.cat(list(maps.values()), dim=1))


def _conv_norm_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """As released: with a bias in front of BatchNorm."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU())
