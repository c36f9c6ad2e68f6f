"""SimIPU: an image network and a point network learn together, from scratch, from where points are seen.

Paper: Li, Chen, Li, Liu, Tao, Wang, Zhao, "SimIPU: Simple 2D Image and 3D Point Cloud Unsupervised Pre-Training for
Spatial-Aware Visual Representations", AAAI 2022. Learnt: both networks and their heads; what is used afterwards is the
image network (depth, 3D detection). In: the points that a camera sees, the image, and the same points under another
rotation, scaling and mirroring. Nothing is frozen; starting the image network from given weights
(`image_backbone.weights`) is the paper's double fine-tuning.

- Intra-modal: the point network samples centres in both clouds; centres that a one-to-one matching finds closest after
  undoing the transform are positives. Trains the point network.
- Inter-modal: centres of the first cloud against the image's features at the pixels they project to. Trains the image
  network and both heads; the point network gets no gradient from it.

The first cloud is meant to be as recorded and the second augmented (`data.augment.points.enabled=false` and
`data.augment.second_points`), but any two augmentations work.

Deviations from the paper and its released code: `docs/methods/simipu.md`.

Letters: B samples, I images, M voxels, Q centres of all samples, P centres that an image sees, C channels, D embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from common.ranges import at_least, one_of, positive, weights
from data.batch_spec import BatchSpec, SecondCloud
from data.sample import Batch
from models.contrast.collapse_monitor import collapse_watch
from models.contrast.matching import greedy, hungarian
from models.heads import MLPHead
from models.image.base import ImageEncoderConfig
from models.image.resnet_encoder import ResNetEncoderConfig
from models.lidar.ball_pooling import PointSet
from models.lidar.base import BackboneConfig, GivesCentres
from models.lidar.pointnet2 import PointNet2Config
from models.methods.base import LossTerms, Objective, RowContrastConfig, joined_clouds
from models.pairing import read_pixels, segment_mean
from models.points.ragged import bounds
from models.points.sampling import farthest_points
from models.visuals import MatchSketch, PointSketch, ProjectionSketch, Sketch

Matching = Literal["hungarian", "greedy"]
BORDER_PX = 1.0
"""Centres must project at least so far inside the image, as in the loader's pairs."""


@dataclass(frozen=True, kw_only=True)
class SimipuConfig(RowContrastConfig):
    """Settings of SimIPU; defaults are the paper's. See `RowContrastConfig` for the rest.

    Attributes:
        backbone: point network. A PointNet++ without way up (presets `simipu...`) samples centres itself; of another
            network's voxels `num_centres` are sampled.
        image_backbone: image network; features are read bilinearly from its map (a ResNet's last stage, stride 32).
        num_centres: centres a cloud, for networks that do not sample them themselves.
        embedding_dim: D, dimensions that are compared.
        intra_weight: lambda, of the intra-modal loss.
        inter_weight: mu, of the inter-modal loss.
        matching: one-to-one matching of centres: "hungarian" of least total distance, "greedy" closest first.
        match_gate_m: centres farther apart are never matched; None: no limit. A gate makes the matching faster.
        train_point_head: False freezes the point head of the inter-modal loss, as the released code does in effect.
        detach_targets: the second cloud gets no gradient from the intra-modal loss.
        symmetric: both losses in both directions.
    """

    backbone: BackboneConfig = field(default_factory=lambda: PointNet2Config(preset="simipu_released"))
    image_backbone: ImageEncoderConfig = field(default_factory=ResNetEncoderConfig)
    num_centres: int = 1024
    embedding_dim: int = 128
    intra_weight: float = 1.0
    inter_weight: float = 1.0
    matching: Matching = "hungarian"
    match_gate_m: float | None = None
    train_point_head: bool = True
    detach_targets: bool = False
    symmetric: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, num_centres=1, embedding_dim=1)
        positive(self, "match_gate_m")
        weights(self, "intra_weight", "inter_weight")
        one_of(self, matching=Matching)

    def batch_spec(self) -> BatchSpec:
        """Images, the points that they show, and these points a second time."""
        return BatchSpec(only_seen=True, second_cloud=SecondCloud(source="same"))

    def build(self) -> Simipu:
        """Assemble networks and heads."""
        return Simipu(self)


class Simipu(Objective):
    """Networks, heads and losses of SimIPU."""

    JOINS_CLOUDS = True

    def __init__(self, config: SimipuConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        self.image_backbone = config.image_backbone.build()
        width = self.backbone.num_features
        pixels = self.image_backbone.num_features
        self.intra_head = MLPHead(width, width, config.embedding_dim)
        self.point_head = MLPHead(width, width, config.embedding_dim).requires_grad_(config.train_point_head)
        self.pixel_head = MLPHead(pixels, pixels, config.embedding_dim)

    def forward(self, batch: Batch) -> LossTerms:
        """Contrast centres with centres, and pixels with centres.

            a, b = centres of both clouds; (i, j) matched by |T l_i^a - l_j^b|, T from the first cloud to the second
            intra = InfoNCE over matches of z(f_i^a) and z(f_j^b)
            inter = InfoNCE over seen centres of pixel_head(image at the projection of l_i^a), point_head(stop(f_i^a))
            loss = lambda intra + mu inter

        Where there is no match, or no centre is seen, that loss is 0 with gradients of 0.

        Raises:
            ValueError: the batch has no second cloud, no images or no calibration.

        Source: SimIPU, section 3, eq. 2 to 8.
        """
        config, second = self.config, batch.need("second", by="SimIPU")
        first, other = self.centres(batch, second)
        # Started before the matching, so that a GPU is busy while the processor matches.
        cells = self.image_backbone.feature_map(batch.need("images", by="SimIPU"))

        rows, partners = self.match(first, other, _between(batch, second))
        intra_rows = self.intra_head(torch.cat([first.features, other.features]))
        anchors, targets = intra_rows[rows], intra_rows[len(first.points) + partners]
        targets = targets.detach() if config.detach_targets else targets
        intra = config.info_nce(anchors, targets, symmetric=config.symmetric)

        centre, image, uv = self.project(first, batch)
        pixels = self.pixel_head(read_pixels(cells, image, uv))
        points = self.point_head(first.features[centre].detach())  # cut before the head, which learns (see the module)
        inter = config.info_nce(pixels, points, symmetric=config.symmetric)

        watched = (pixels, points) if config.inter_weight > 0 else (anchors, targets)
        return LossTerms(
            total=config.intra_weight * intra + config.inter_weight * inter,
            parts={"intra": intra.detach(), "inter": inter.detach()},
            watch=collapse_watch(*watched, max_rows=config.watch_rows),
        )

    def centres(self, first: Batch, second: Batch) -> tuple[PointSet, PointSet]:
        """Places, features and number of the centres of each sample, in the frame of each view's points."""
        network, voxels = self.backbone, joined_clouds(first, second)
        if isinstance(network, GivesCentres) and network.centres_use_all:
            both = PointSet(*network(*voxels, centres=True))
        else:
            features = network(*voxels)
            places = torch.cat(
                [segment_mean(view.points, view.point_voxel, len(view.voxel_coords))[0] for view in (first, second)]
            )
            counts = torch.bincount(voxels[0][:, 0].long(), minlength=voxels[2])
            rows, centres_per_sample = farthest_points(places, counts, self.config.num_centres)
            both = PointSet(places[rows], features[rows], centres_per_sample)
        samples, ours = first.num_samples, int(both.counts[: first.num_samples].sum())
        return (
            PointSet(both.points[:ours], both.features[:ours], both.counts[:samples]),
            PointSet(both.points[ours:], both.features[ours:], both.counts[samples:]),
        )

    @torch.no_grad()
    def match(
        self, first: PointSet, second: PointSet, T_second_first: Float[Tensor, "B 4 4"]
    ) -> tuple[Int64[Tensor, " Q"], Int64[Tensor, " Q"]]:
        """Centres of both clouds that belong together: rows of the first one, and their partners' rows."""
        spans = zip(
            bounds(first.counts, len(first.points)),
            bounds(second.counts, len(second.points)),
            T_second_first,
            strict=True,
        )
        costs, starts = [], []
        for (a0, a1), (b0, b1), T in spans:
            moved = first.points[a0:a1].double() @ T[:3, :3].T + T[:3, 3]
            costs.append(torch.cdist(moved, second.points[b0:b1].double()))
            starts.append((a0, b0))
        solve = hungarian if self.config.matching == "hungarian" else greedy
        matches = solve(costs, gate=math.inf if self.config.match_gate_m is None else self.config.match_gate_m)
        rows = [found.rows + a0 for found, (a0, _) in zip(matches, starts, strict=True)]
        partners = [found.columns + b0 for found, (_, b0) in zip(matches, starts, strict=True)]
        return torch.cat(rows), torch.cat(partners)

    @torch.no_grad()
    def project(
        self, centres: PointSet, batch: Batch
    ) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " P"], Float[Tensor, "P 2"]]:
        """Centres that an image shows, the first such image of each, and where."""
        images, cameras = batch.need("images", by="SimIPU"), batch.need("cameras", by="SimIPU")
        samples = torch.arange(batch.num_samples, device=centres.points.device)
        sample = samples.repeat_interleave(centres.counts.long())
        centre, image = (sample[:, None] == cameras.sample[None, :]).nonzero(as_tuple=True)
        T, K = cameras.T_cam_points.double()[image], cameras.K.double()[image]
        # Written out: a product of matrices would run in 16 bits under autocast if it were not in double precision.
        in_camera = (T[:, :3, :3] @ centres.points[centre].double()[:, :, None]).squeeze(2) + T[:, :3, 3]
        pixels = (K @ in_camera[:, :, None]).squeeze(2)
        near = cameras.min_depth_m.double()[image]
        uv = pixels[:, :2] / torch.maximum(pixels[:, 2], near.clamp(min=1e-3))[:, None]
        seen = (in_camera[:, 2] > near) & _inside(uv, images.shape[-2:])
        centre, image, uv = centre[seen], image[seen], uv[seen]
        new = torch.ones_like(centre, dtype=torch.bool)
        new[1:] = centre[1:] != centre[:-1]
        return centre[new], image[new], uv[new].float()

    def sketches(self, batch: Batch) -> dict[str, Sketch]:
        """Matched centres from above and in the image, and projected centres by how well pixel and point agree."""
        second, images = batch.need("second", by="SimIPU"), batch.need("images", by="SimIPU")
        first, other = self.centres(batch, second)
        T = _between(batch, second)
        rows, partners = self.match(first, other, T)
        unit_rows = self.intra_head(torch.cat([first.features, other.features])).float()
        similarity = (unit_rows[rows] * unit_rows[len(first.points) + partners]).sum(dim=1)
        centre, image, uv = self.project(first, batch)
        pixels = self.pixel_head(read_pixels(self.image_backbone.feature_map(images), image, uv))
        points = self.point_head(first.features[centre])
        shown = image == 0  # one picture: the first camera's
        out: dict[str, Sketch] = {
            "matched_centres": PointSketch(
                points=first.points[rows],
                values=similarity,
                scale="similarity",
                caption="centres, similarity of matches",
            ),
            "pixel_agreement": ProjectionSketch(
                image=images[0],
                uv=uv[shown],
                values=(pixels * points).sum(dim=1).float()[shown],
                scale="similarity",
                caption="centres in the image, similarity of pixel and point",
            ),
        }
        back = torch.linalg.inv(T[0])
        moved = (other.points[partners].double() @ back[:3, :3].T + back[:3, 3]).float()
        there, found = self._in_first_image(moved, batch)
        own, true = self._in_first_image(first.points[rows], batch)
        out["matches"] = MatchSketch(
            image=images[0],
            found=found[there & own],
            true=true[there & own],
            caption="centres of the first cloud, and their partners of the second one moved back",
        )
        return out

    def _in_first_image(
        self, points: Float[Tensor, "P 3"], batch: Batch
    ) -> tuple[Bool[Tensor, " P"], Float[Tensor, "P 2"]]:
        """Whether the first image shows each point, and where."""
        placed = PointSet(
            points, points, torch.tensor([len(points)] + [0] * (batch.num_samples - 1), device=points.device)
        )
        centre, image, uv = self.project(placed, batch)
        there = torch.zeros(len(points), dtype=torch.bool, device=points.device)
        pixels = torch.zeros(len(points), 2, device=points.device)
        there[centre], pixels[centre] = image == 0, uv
        return there, pixels


def _between(first: Batch, second: Batch) -> Float[Tensor, "B 4 4"]:
    """Transform from each sample's first cloud to its second one."""
    T: Tensor = second.T_aug_lidar.double() @ torch.linalg.inv(first.T_aug_lidar.double())
    return T


def _inside(uv: Float[Tensor, "P 2"], size: tuple[int, ...]) -> Bool[Tensor, " P"]:
    """Which pixel coordinates lie inside an image of `size` (height, width)."""
    limit = torch.tensor([size[1], size[0]], device=uv.device) - 1 - BORDER_PX
    return ((uv >= BORDER_PX) & (uv <= limit)).all(dim=1)
