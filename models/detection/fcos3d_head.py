"""The head of FCOS3D: at each location of an image's maps, which object it is central in, and the box around that.

Codes of a location, in this order: u and v from the box's projected centre to the location in strides, depth (m),
length, width and height (m), heading against the ray to the centre (radians) and, by option, the velocity towards x and
z of the camera (m/s). Depth and sizes are exponentials.

Paper: Wang, Zhu, Pang, Lin, "FCOS3D: fully convolutional one-stage monocular 3D object detection", ICCV Workshops 2021,
section 3; details as in MMDetection3D's released code.

Letters: B samples, I images, L locations of an image, C classes, D codes, K boxes, P locations with a box, T
candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.boxes.image import image_boxes
from common.ranges import above, at_least, expect
from data.sample import BatchBoxes, Cameras
from models.detection.base import Detections
from models.detection.box_coding import heading_bin, turned_into_bin
from models.detection.camera_boxes import CameraBoxes, Optics, from_camera, to_camera
from models.detection.losses import BETA, focal_loss, mean_over_ranks
from models.detection.suppression import SuppressionConfig, joined
from models.detection.targets_fcos3d import NO_BOX, Locations, assign, centreness
from models.image.deformable import DeformableConv2d
from models.methods.base import LossTerms
from models.pairing import full_precision

_STD, _FIRST_SCORE = 0.01, 0.01
"""Of fresh weights, and the score of each class with them."""

_LEAST_SIZE_M = 1e-6


@dataclass(frozen=True, kw_only=True)
class Fcos3dHeadConfig:
    """Settings of the head; the defaults are FCOS3D's on nuScenes.

    Attributes:
        channels: of the maps and of all branches but the centreness's.
        groups: of GroupNorm.
        tower_convs: convolutions that the branches for classes share, and as many that the others do.
        centreness_channels: of the branch for the centreness.
        deformable: the last convolution of both towers is a deformable one.
        velocity: predict velocities; boxes without a known one train the rest.
        limits_px: extents of boxes in the image at which they pass to the next coarser level, one fewer than levels.
        radius: of the square around a projected centre whose locations have the box, in strides.
        centreness_decay: of the wanted centreness, see `models.detection.targets_fcos3d.centreness`.
        depth_unit_m: depth that the exponential of 0 means. 1 m is the released code's; of some hundred updates many
            are spent on the way from there to the depths of a set.
        class_weight: of the focal loss in the sum.
        offset_weight: of the offsets' smooth L1 loss.
        depth_weight: of the depth's.
        size_weight: of the sizes'.
        angle_weight: of the angle's.
        velocity_weight: of the velocity's.
        direction_weight: of the cross-entropy over the two halves of the circle.
        centreness_weight: of the centreness's cross-entropy.
        candidates_per_level: locations of highest score of each level that an image's boxes are read from.
    """

    channels: int = 256
    groups: int = 32
    tower_convs: int = 2
    centreness_channels: int = 64
    deformable: bool = True
    velocity: bool = True
    limits_px: tuple[float, ...] = (48.0, 96.0, 192.0, 384.0)
    radius: float = 1.5
    centreness_decay: float = 2.5
    depth_unit_m: float = 1.0
    class_weight: float = 1.0
    offset_weight: float = 1.0
    depth_weight: float = 0.2
    size_weight: float = 1.0
    angle_weight: float = 1.0
    velocity_weight: float = 0.05
    direction_weight: float = 1.0
    centreness_weight: float = 1.0
    candidates_per_level: int = 1000

    def __post_init__(self) -> None:
        at_least(self, channels=1, groups=1, tower_convs=1, centreness_channels=1, candidates_per_level=1)
        above(self, radius=0, centreness_decay=0, depth_unit_m=0)
        at_least(self, class_weight=0, offset_weight=0, depth_weight=0, size_weight=0, angle_weight=0)
        at_least(self, velocity_weight=0, direction_weight=0, centreness_weight=0)
        rising = all(low < high for low, high in zip((0.0, *self.limits_px), self.limits_px, strict=False))
        expect(
            self, "limits_px", rising and len(self.limits_px) >= 2, "two or more rising numbers: three levels or more"
        )
        for name in ("channels", "centreness_channels"):
            grouped = getattr(self, name) % self.groups == 0
            expect(self, name, grouped, f"a multiple of groups ({self.groups}), which GroupNorm forms")

    @property
    def num_levels(self) -> int:
        """Of the maps."""
        return len(self.limits_px) + 1

    @property
    def code_weights(self) -> tuple[float, ...]:
        """Of each code."""
        plain = (self.offset_weight,) * 2 + (self.depth_weight,) + (self.size_weight,) * 3 + (self.angle_weight,)
        return plain + (self.velocity_weight,) * (2 if self.velocity else 0)


@dataclass(frozen=True, kw_only=True)
class Fcos3dOutputs:
    """What the head says of each location, in float32.

    Attributes:
        logits: of each class.
        codes: see the module.
        directions: logits of the two halves of the circle that the angle lies in.
        centreness: logit.
        locations: of the maps.
    """

    logits: Float[Tensor, "I L C"]
    codes: Float[Tensor, "I L D"]
    directions: Float[Tensor, "I L 2"]
    centreness: Float[Tensor, "I L"]
    locations: Locations


@dataclass(frozen=True, kw_only=True)
class Fcos3dTargets:
    """What the locations with a box have to say.

    Attributes:
        image: of each.
        location: the same.
        classes: of its box.
        codes: of its box, NaN where unknown.
        centreness: see `models.detection.targets_fcos3d.centreness`.
    """

    image: Int[Tensor, " P"]
    location: Int[Tensor, " P"]
    classes: Int[Tensor, " P"]
    codes: Float[Tensor, "P D"]
    centreness: Float[Tensor, " P"]


class Fcos3dHead(nn.Module):
    """Towers and branches that all levels share, targets, losses and decoding."""

    def __init__(self, config: Fcos3dHeadConfig, classes: tuple[str, ...], strides: Sequence[int]) -> None:
        super().__init__()
        self.config, self.strides = config, tuple(strides)
        width = config.channels
        self.class_tower, self.box_tower = self._tower(), self._tower()
        self.classes = _branch(width, width, len(classes), config.groups)
        parts = {"offset": 2, "depth": 1, "size": 3, "angle": 1, "direction": 2}
        branches: dict[str, nn.Module] = {
            name: _branch(width, width, size, config.groups) for name, size in parts.items()
        }
        branches["centreness"] = _branch(width, config.centreness_channels, 1, config.groups)
        if config.velocity:
            branches["velocity"] = nn.Conv2d(width, 2, 1)
        self.branches = nn.ModuleDict(branches)
        self.scales = nn.ModuleList(_Scale() for _ in self.strides)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.endswith(".offset"):
                nn.init.normal_(module.weight, std=_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        last = self.classes[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.constant_(last.bias, math.log(_FIRST_SCORE / (1 - _FIRST_SCORE)))

    def _tower(self) -> nn.Sequential:
        width, count = self.config.channels, self.config.tower_convs
        moving = [number == count - 1 and self.config.deformable for number in range(count)]
        return nn.Sequential(*(_conv_norm_relu(width, width, self.config.groups, deformable=one) for one in moving))

    def forward(self, levels: Sequence[Float[Tensor, "I F _ _"]]) -> Fcos3dOutputs:
        """Outputs at the cells of the maps, finest first."""
        rows = [self._level(level, scale) for level, scale in zip(levels, self.scales, strict=True)]
        logits, codes, directions, central = (torch.cat(column, dim=1) for column in zip(*rows, strict=True))
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        locations = Locations.of(sizes, self.strides, self.config.limits_px, logits.device)
        return Fcos3dOutputs(
            logits=logits, codes=codes, directions=directions, centreness=central.squeeze(2), locations=locations
        )

    def _level(self, level: Float[Tensor, "I F h w"], scale: nn.Module) -> tuple[Float[Tensor, "I _ _"], ...]:
        """Logits, codes, directions and centreness of a level's cells."""
        of_class, of_box = self.class_tower(level), self.box_tower(level)
        maps = {name: _rows(branch(of_box)) for name, branch in self.branches.items()}
        scaled = scale(torch.cat([maps["offset"], maps["depth"], maps["size"]], dim=2))
        codes = [
            scaled[..., :2],
            self.config.depth_unit_m * scaled[..., 2:3].exp(),
            scaled[..., 3:].exp() + _LEAST_SIZE_M,
            maps["angle"],
            *([maps["velocity"]] if self.config.velocity else []),
        ]
        return _rows(self.classes(of_class)), torch.cat(codes, dim=2), maps["direction"], maps["centreness"]

    @torch.no_grad()
    def targets(
        self, locations: Locations, boxes: BatchBoxes, cameras: Cameras, image_size: tuple[int, int]
    ) -> Fcos3dTargets:
        """Of all images, from the boxes of their samples.

        A box is in an image that shows part of it and whose camera its centre is in front of; it is then found where
        its centre is projected to, which may be a little outside the image. `image_size` is height, width.
        """
        optics, parts = Optics.of(cameras), []
        for image, sample in enumerate(cameras.sample.tolist()):
            own = (boxes.sample == sample).nonzero()[:, 0]
            of_image = optics.at(torch.full_like(own, image))
            seen = to_camera(boxes.boxes[own], boxes.velocities_mps[own], of_image)
            bounds = image_boxes(boxes.boxes[own].double(), optics.K[image], optics.T_cam_points[image], image_size)
            bounds[seen.depths_m <= 0] = torch.nan
            box = assign(locations, seen.centers_px, bounds, radius=self.config.radius)
            location = (box != NO_BOX).nonzero()[:, 0]
            parts.append(self._targets_of(locations, location, seen, box[location], boxes.classes[own], image))
        columns = zip(*parts, strict=True)
        names = ("image", "location", "classes", "codes", "centreness")
        return Fcos3dTargets(**{name: torch.cat(column) for name, column in zip(names, columns, strict=True)})

    def _targets_of(
        self,
        locations: Locations,
        location: Int[Tensor, " P"],
        seen: CameraBoxes,
        box: Int[Tensor, " P"],
        classes: Int[Tensor, " K"],
        image: int,
    ) -> tuple[Tensor, ...]:
        """Columns of an image, in the order of `Fcos3dTargets`."""
        place, stride = locations.places_px[location], locations.strides[location]
        offsets = (place - seen.centers_px[box].float()) / stride[:, None]
        codes = [offsets, seen.depths_m[box, None], seen.sizes_m[box], seen.angles[box, None]]
        codes += [seen.velocities_mps[box]] if self.config.velocity else []
        central = centreness(offsets, radius=self.config.radius, decay=self.config.centreness_decay)
        wanted = torch.cat([code.float() for code in codes], dim=1)
        return torch.full_like(location, image), location, classes[box], wanted, central

    def loss(
        self, outputs: Fcos3dOutputs, boxes: BatchBoxes, cameras: Cameras, image_size: tuple[int, int]
    ) -> LossTerms:
        """Losses over all locations of all images, and over those P that have a box.

            class_weight * sum focal(logits) / (P + number of images)
            + sum over codes weight_of_code * smooth_l1(code - wanted, the angle's as sine) / P
            + direction_weight * sum cross_entropy(directions, half of the circle) / P
            + centreness_weight * sum binary cross_entropy(centreness, wanted) / P

        P and the number of images are those of the batches of all ranks; the released code divides by each rank's own.
        Without any box in any image there is only the focal loss; nothing is NaN and every parameter has a gradient.
        Every rank must call.

        Source: FCOS3D, section 3.2; weights and divisors as released.
        """
        config, truth = self.config, self.targets(outputs.locations, boxes, cameras, image_size)
        rows = truth.image, truth.location
        is_class = torch.zeros_like(outputs.logits, dtype=torch.bool)
        is_class[truth.image, truth.location, truth.classes] = True
        found = torch.tensor(float(len(truth.image)), device=is_class.device)
        focal = focal_loss(outputs.logits, is_class).sum() / mean_over_ranks(found + len(is_class))

        num = mean_over_ranks(found)
        apart = outputs.codes[rows] - truth.codes
        apart = torch.cat([apart[:, :6], apart[:, 6:7].sin(), apart[:, 7:]], dim=1)
        difference = torch.where(truth.codes.isfinite(), apart, 0.0)
        smooth = F.smooth_l1_loss(difference, torch.zeros_like(difference), beta=BETA, reduction="none")
        half = F.cross_entropy(outputs.directions[rows], heading_bin(truth.codes[:, 6]), reduction="sum") / num
        central = F.binary_cross_entropy_with_logits(outputs.centreness[rows], truth.centreness, reduction="sum") / num

        parts = {
            "class": config.class_weight * focal,
            "box": (smooth * smooth.new_tensor(config.code_weights)).sum() / num,
            "direction": config.direction_weight * half,
            "centreness": config.centreness_weight * central,
        }
        depths = truth.codes[:, 2]
        middle = depths.median() if len(depths) else depths.new_zeros(())
        watch = {
            "positives": found / len(is_class),
            "depth_error_m": difference[:, 2].detach().abs().sum() / num,
            "depth_spread_m": (depths - middle).abs().sum() / num,
        }
        return LossTerms(
            total=torch.stack(list(parts.values())).sum(),
            parts={name: part.detach() for name, part in parts.items()},
            watch=watch,
        )

    def detect(
        self,
        outputs: Fcos3dOutputs,
        cameras: Cameras,
        *,
        within_image: SuppressionConfig,
        within_sample: SuppressionConfig,
    ) -> Detections:
        """Boxes of each image, then those of a sample's images together, suppressed within each class both times."""
        optics = Optics.of(cameras)
        parts = [self._detect(outputs, image, optics, within_image) for image in range(len(outputs.logits))]
        found = []
        for sample in sorted(set(cameras.sample.tolist())):
            own = [parts[image] for image in (cameras.sample == sample).nonzero()[:, 0].tolist()]
            boxes, velocities, scores, classes = (torch.cat(column) for column in zip(*own, strict=True))
            rows = within_sample.rows_by_class(boxes, scores, classes)
            found.append(
                Detections(
                    boxes=boxes[rows],
                    velocities_mps=velocities[rows],
                    classes=classes[rows],
                    scores=scores[rows],
                    sample=torch.full_like(rows, sample),
                )
            )
        return joined(found)

    def _detect(
        self, outputs: Fcos3dOutputs, image: int, optics: Optics, suppression: SuppressionConfig
    ) -> tuple[Tensor, ...]:
        """Boxes, velocities, scores and classes of an image; a location may be of several classes."""
        scores = outputs.logits[image].sigmoid() * outputs.centreness[image].sigmoid()[:, None]
        location = self._candidates(scores.amax(dim=1), outputs.locations.per_level)
        row, number = (scores[location] >= suppression.min_score).nonzero().unbind(1)
        boxes, velocities = self._decode(outputs, image, location, optics)
        boxes, velocities, scores = boxes[row], velocities[row], scores[location][row, number]
        kept = suppression.rows_by_class(boxes, scores, number)
        return boxes[kept], velocities[kept], scores[kept], number[kept]

    def _candidates(self, scores: Float[Tensor, " L"], per_level: Sequence[int]) -> Int[Tensor, " T"]:
        """Locations of highest score of each level."""
        chosen, start = [], 0
        for level in scores.split(list(per_level)):
            chosen.append(start + level.topk(min(self.config.candidates_per_level, len(level))).indices)
            start += len(level)
        return torch.cat(chosen)

    def _decode(
        self, outputs: Fcos3dOutputs, image: int, location: Int[Tensor, " T"], optics: Optics
    ) -> tuple[Float[Tensor, "T 7"], Float[Tensor, "T 2"]]:
        """Boxes and velocities of some locations of an image, in the frame of the points."""
        codes, at = outputs.codes[image, location], outputs.locations
        angles = turned_into_bin(codes[:, 6], outputs.directions[image, location].argmax(dim=1))
        seen = CameraBoxes(
            centers_px=at.places_px[location] - codes[:, :2] * at.strides[location, None],
            depths_m=codes[:, 2],
            sizes_m=codes[:, 3:6],
            angles=angles,
            velocities_mps=codes[:, 7:] if self.config.velocity else torch.full_like(codes[:, :2], torch.nan),
        )
        boxes, velocities = from_camera(seen, optics.at(torch.full_like(location, image)))
        return boxes.to(codes.dtype), velocities.to(codes.dtype)


class _Scale(nn.Module):
    """What a level's offsets, depths and sizes are multiplied by before anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.ones(3))

    def forward(self, codes: Float[Tensor, "I L 6"]) -> Float[Tensor, "I L 6"]:
        """Offset, depth and size of each location."""
        offset, depth, size = self.factors.split(1)
        return codes * torch.cat([offset.expand(2), depth, size.expand(3)])


def _rows(maps: Float[Tensor, "I D h w"]) -> Float[Tensor, "I L D"]:
    return full_precision(maps.flatten(2).transpose(1, 2))


def _conv_norm_relu(in_channels: int, out_channels: int, groups: int, *, deformable: bool = False) -> nn.Sequential:
    conv = (
        DeformableConv2d(in_channels, out_channels, bias=False)
        if deformable
        else nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    )
    return nn.Sequential(conv, nn.GroupNorm(groups, out_channels), nn.ReLU())


def _branch(in_channels: int, channels: int, out_channels: int, groups: int) -> nn.Sequential:
    return nn.Sequential(_conv_norm_relu(in_channels, channels, groups), nn.Conv2d(channels, out_channels, 1))
