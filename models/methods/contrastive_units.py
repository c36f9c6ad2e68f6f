"""Contrastive units: a frozen image network teaches a 3D network, object by object, with the ground left out.

Paper: Cai, Luo, Lee, Yang, "Cross-Modal Self-Supervised Learning with Effective Contrastive Units for LiDAR Point
Clouds", 2024. Its authors published no code. Learnt: the 3D network and MLP heads. In: sweep, images, point-pixel
pairs, the ground and clusters of each sweep. The image network stays as it is.

Settings that the paper does not give, chosen here and untuned: 1024 units a sweep, k = 16 neighbours, pillars of
0.5 m, clusters of radius 0.5 m with at least 5 points, at most 15 m long and 10 times as long as wide, L = 1024
negatives, temperature 0.07, heads of 256 hidden channels to 128.

How we read what the paper leaves open:
- A unit's feature is the mean of *raw* features over its points; each head sees the mean.
- A pillar is the cell of a fixed grid that the sampled point lies in; two sampled points of one cell are one unit.
- The clusters that a sampled point lies in decide which units merge; merging averages the units, not their points.
- Negatives of a unit come from all samples of the batch, and are the same units in both directions of the loss. Which
  units are similar is said by the image side's embeddings (the paper's "final representations", after the projection
  head); `similarity: teacher` asks the frozen network's features instead.
- Levels of the image network are brought to equal scale before they are concatenated (`teacher.normalise_levels`), so
  that none of them decides the similarities alone.

Modes, for the study of modalities:
    cross        units of points against the same units in images (the method)
    single       two views of the cloud against each other, plain units: with the ground, unmerged, all negatives
    single_plus  the same with ground removal and merging
    multi        cross + single_weight * single_plus, with the same units and the same negatives (by the image)
Each contrast has heads of its own. Without images, all points count; with images, those that a camera sees. Negatives
are balanced by the image only: the 3D network's own features call dissimilar what it already tells apart, and such
negatives would leave it nothing to do.

Several ranks: the heads' BatchNorm takes the rows of all ranks under the engine's synchronised BatchNorm. Negatives
are this rank's unless `gather_negatives`; without it the mean over ranks weighs ranks, not units.

Letters: I images, B samples, N points, M voxels, P pairs, U units, T units of all ranks, C channels, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.ranges import at_least, one_of, positive
from data.batch_spec import BatchSpec, GroundConfig, PointClusterConfig, SecondCloud
from data.sample import Batch
from models.contrast.collapse_monitor import collapse_watch
from models.contrast.losses import gather_with_grad
from models.contrast.units import Context, Sampling, Units, make_units, too_similar
from models.heads import MLPHead
from models.image.resnet_levels import ResNetLevelsTeacherConfig
from models.image.teacher import TeacherConfig
from models.lidar.base import BackboneConfig
from models.lidar.res16unet import Res16UNetConfig
from models.methods.base import LossTerms, Objective, RowContrastConfig, joined_clouds
from models.pairing import read_pixels, row_mask
from models.visuals import PointSketch, Sketch

Mode = Literal["cross", "single", "single_plus", "multi"]
Similarity = Literal["head", "teacher"]
_PAIRS_AT_A_TIME = 8192
"""Pairs whose pixels are read at once: 4 corners of 1792 channels are 235 MB."""


@dataclass(frozen=True, kw_only=True)
class ContrastiveUnitsConfig(RowContrastConfig):
    """Settings of contrastive units. What is the paper's and what is ours: see the module.

    See `RowContrastConfig` for the rest.

    Attributes:
        backbone: 3D network; `backbone.name` chooses.
        teacher: frozen image network. The paper's is `name: resnet50_levels, weights: moco_v3:<path>`.
        mode: what is contrasted with what; see the module.
        ground_removal: points on the ground make no units.
        ground: how the ground is found.
        instances: units in the same cluster merge.
        clusters: how clusters are found, and which are dropped.
        num_units: sampled in each sweep.
        sampling: "fps": farthest point sampling seen from above; "random".
        context: what a unit averages over: "knn", "pillar" or "none".
        num_neighbors: k of "knn", the sampled point included.
        pillar_m: edge of a pillar.
        num_negatives: L, a unit's negatives: those of least image similarity; None, or in a mode without images:
            all others.
        similarity: image similarity is the cosine behind the image side's projection "head" (section II-B), or of the
            frozen "teacher"'s features.
        embedding_dim: D, dimensions of the common space.
        hidden_dim: of the MLP heads.
        single_weight: of the contrast between views in `mode: multi`.
        second_cloud: the second view of `single`, `single_plus` and `multi`; without effect in `cross`.
    """

    backbone: BackboneConfig = field(default_factory=Res16UNetConfig)
    teacher: TeacherConfig = field(default_factory=ResNetLevelsTeacherConfig)
    mode: Mode = "cross"
    ground_removal: bool = True
    ground: GroundConfig = field(default_factory=lambda: GroundConfig(kind="lines", distance_m=0.2))
    instances: bool = True
    clusters: PointClusterConfig = field(
        default_factory=lambda: PointClusterConfig(radius_m=0.5, min_points=5, max_extent_m=15.0, max_aspect=10.0)
    )
    num_units: int = 1024
    sampling: Sampling = "fps"
    context: Context = "knn"
    num_neighbors: int = 16
    pillar_m: float = 0.5
    num_negatives: int | None = 1024
    similarity: Similarity = "head"
    embedding_dim: int = 128
    hidden_dim: int = 256
    single_weight: float = 1.0
    second_cloud: SecondCloud = field(default_factory=SecondCloud)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, mode=Mode, sampling=Sampling, context=Context, similarity=Similarity)
        at_least(self, num_units=1, num_neighbors=1, num_negatives=1, embedding_dim=1, hidden_dim=1)
        positive(self, "pillar_m", "single_weight")

    @property
    def uses_images(self) -> bool:
        """Whether units of points are contrasted with images."""
        return self.mode in ("cross", "multi")

    @property
    def uses_views(self) -> bool:
        """Whether two views of the cloud are contrasted."""
        return self.mode != "cross"

    def batch_spec(self) -> BatchSpec:
        """Images, a second cloud, ground and clusters, each where the mode and the options need it."""
        plain = self.mode == "single"  # neither ground removal nor merging, whatever their own settings
        return BatchSpec(
            images=self.uses_images,
            second_cloud=self.second_cloud if self.uses_views else None,
            ground=self.ground if self.ground_removal and not plain else None,
            clusters=self.clusters if self.instances and not plain else None,
        )

    def build(self) -> ContrastiveUnits:
        """Assemble towers and heads."""
        return ContrastiveUnits(self)


class ContrastiveUnits(Objective):
    """Towers, heads and loss of contrastive units."""

    JOINS_CLOUDS = True

    def __init__(self, config: ContrastiveUnitsConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        width = self.backbone.num_features
        if config.uses_images:
            self.teacher = config.teacher.build()
            self.point_head = MLPHead(width, config.hidden_dim, config.embedding_dim)
            self.pixel_head = MLPHead(self.teacher.num_features, config.hidden_dim, config.embedding_dim)
        if config.uses_views:
            self.view_head = MLPHead(width, config.hidden_dim, config.embedding_dim)

    def forward(self, batch: Batch) -> LossTerms:
        """Contrast units between modalities, between views, or both.

            f_i, g_i = mean features of unit i in the two modalities (or views)
            a_i, b_i = unit embeddings of f_i and g_i
            N_i = the num_negatives units j of least b_i . b_j (the image side's); without images, all
            loss = mean over i of ( -log( e(a_i, b_i) / (e(a_i, b_i) + sum over j in N_i of e(a_i, b_j)) )
                                    -log( e(b_i, a_i) / (e(b_i, a_i) + sum over j in N_i of e(b_i, a_j)) ) ) / 2
            with e(x, y) = exp(x . y / temperature)

        A batch without units gives a loss of 0 and gradients of 0, one with a single unit likewise.

        Raises:
            ValueError: the batch lacks pairs, images, ground, clusters or a second cloud that the settings need.

        Source: the paper, section II-C.
        """
        units = self.units(batch)
        features, second = self._voxels(batch)
        points = units.mean(features, batch.point_voxel)
        parts: dict[str, Float[Tensor, ""]] = {}
        watch: dict[str, Float[Tensor, ""]] = {}
        total = points.new_zeros(())
        excluded = None
        if self.config.uses_images:
            pixels = self.unit_pixels(batch, units)
            targets = self.pixel_head(pixels)
            excluded = self._excluded(targets.detach() if self.config.similarity == "head" else pixels)
            loss, watch = self._contrast(self.point_head(points), targets, excluded)
            total, parts["cross"] = total + loss, loss.detach()
        if second is not None:
            views = self._second_view(batch, units, second)
            rows = self.view_head(torch.cat([points, views]))
            loss, seen = self._contrast(rows[: len(points)], rows[len(points) :], excluded)
            total = total + (self.config.single_weight if self.config.mode == "multi" else 1.0) * loss
            parts["single"] = loss.detach()
            watch = watch | {f"single_{name}": value for name, value in seen.items()} if watch else seen
        return LossTerms(total=total, parts=parts, watch=watch)

    @torch.no_grad()
    def units(self, batch: Batch) -> Units:
        """The units of a batch.

        Raises:
            ValueError: the batch lacks ground, clusters, pairs or matches that the settings need.
        """
        config, spec = self.config, self.config.batch_spec()
        units = make_units(
            batch.points,
            batch.point_sample,
            batch.num_samples,
            self.candidates(batch),
            num_units=config.num_units,
            sampling=config.sampling,
            context=config.context,
            num_neighbors=config.num_neighbors,
            pillar_m=config.pillar_m,
        )
        if spec.clusters is None:
            return units
        return units.merged(batch.need("clusters", by="contrastive_units").of_point)

    def candidates(self, batch: Batch) -> Bool[Tensor, " N"]:
        """Points that can be part of units: not on the ground, seen by a camera, present in the second view."""
        mask = torch.ones(batch.num_points, dtype=torch.bool, device=batch.points.device)
        if self.config.batch_spec().ground is not None:
            mask &= ~batch.need("ground", by="contrastive_units")
        if self.config.uses_images:
            mask &= row_mask(batch.need("pairs", by="contrastive_units").point.long(), batch.num_points)
        if self.config.uses_views:
            mask &= row_mask(batch.need("matches", by="contrastive_units").first.long(), batch.num_points)
        return mask

    @torch.no_grad()
    def unit_pixels(self, batch: Batch, units: Units) -> Float[Tensor, "U C"]:
        """The teacher's features of each unit; a point that several cameras see has their mean.

        Raises:
            ValueError: the batch has no images.
        """
        by = f"contrastive_units in mode {self.config.mode}"
        images, pairs = batch.need("images", by=by), batch.need("pairs", by=by)
        needed = torch.unique(units.member_point)
        row = torch.full_like(batch.point_sample, -1, dtype=torch.int64)
        row[needed] = torch.arange(len(needed), device=needed.device)
        pairs = pairs.select(row[pairs.point] >= 0)
        maps = self.teacher.feature_map(images)
        dtype = torch.promote_types(maps.values.dtype, torch.float32)
        features = torch.zeros(len(needed), self.teacher.num_features, dtype=dtype, device=images.device)
        for start in range(0, len(pairs.point), _PAIRS_AT_A_TIME):
            some = pairs.select(slice(start, start + _PAIRS_AT_A_TIME))
            read = read_pixels(maps, some.image, some.uv)
            features.index_add_(0, row[some.point], read.to(dtype))
        cameras = torch.bincount(row[pairs.point], minlength=len(needed))
        return units.mean(features / cameras.clamp(min=1)[:, None], row)

    def _voxels(self, batch: Batch) -> tuple[Float[Tensor, "M C"], Float[Tensor, "M2 C"] | None]:
        """Features of the voxels of the first view and, where it is used, of the second; one pass for both."""
        if not self.config.uses_views:
            return self.backbone(batch.voxel_coords, batch.voxel_features, batch.num_samples), None
        features = self.backbone(*joined_clouds(batch, batch.need("second", by="contrastive_units")))
        return features[: len(batch.voxel_coords)], features[len(batch.voxel_coords) :]

    def _second_view(self, batch: Batch, units: Units, features: Float[Tensor, "M2 C"]) -> Float[Tensor, "U C"]:
        """The same points' features in the second view, of whose voxels `features` are."""
        second, matches = batch.need("second", by="contrastive_units"), batch.need("matches", by="contrastive_units")
        voxel = torch.zeros_like(batch.point_voxel)
        voxel[matches.first] = second.point_voxel[matches.second]
        return units.mean(features, voxel)

    def _excluded(self, features: Float[Tensor, "U C"]) -> Bool[Tensor, "U T"] | None:
        """Which units are no negatives of which, by features of their images; None: all others are negatives."""
        if self.config.num_negatives is None:
            return None
        everyone, start, _ = gather_with_grad(features) if self.config.gather_negatives else (features, 0, 0)
        return too_similar(features, everyone, start, self.config.num_negatives)

    def _contrast(
        self, first: Float[Tensor, "U D"], second: Float[Tensor, "U D"], excluded: Bool[Tensor, "U T"] | None
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Both directions, each with the unit's own negatives (`info_nce(symmetric=True)` would transpose the mask)."""
        one, other = (
            self.config.info_nce(anchors, targets, excluded=excluded)
            for anchors, targets in ((first, second), (second, first))
        )
        return 0.5 * (one + other), collapse_watch(first, second, max_rows=self.config.watch_rows)

    @torch.no_grad()
    def sketches(self, batch: Batch) -> dict[str, Sketch]:
        """Ground, clusters with units, one unit with its negatives, and its similarity to all points."""
        device = batch.points.device
        # What is shown must not change what the run draws.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            units = self.units(batch)
        drawn: dict[str, Sketch] = {}
        if batch.ground is not None:
            drawn["ground"] = PointSketch(
                points=batch.points, values=batch.ground.float(), scale="share", caption="ground"
            )
        clusters = batch.clusters
        cluster = torch.full_like(batch.point_sample, -1) if clusters is None else clusters.of_point
        caption, marked = f"clusters and the {len(units)} units", row_mask(units.center, batch.num_points)
        drawn["units"] = PointSketch(
            points=batch.points, values=cluster, scale="labels", caption=caption, marked=marked
        )
        return drawn | (self._sketch_unit(batch, units, len(units) // 2) if len(units) else {})

    def _sketch_unit(self, batch: Batch, units: Units, number: int) -> dict[str, Sketch]:
        is_shown_unit = torch.arange(len(units), device=batch.points.device) == number
        members = row_mask(units.member_point[units.member_unit == number], batch.num_points)
        images = self.config.uses_images
        rows, second = self._voxels(batch)
        if images:
            features = self.unit_pixels(batch, units)
            features = self.pixel_head(features) if self.config.similarity == "head" else features
        else:
            assert second is not None
            features = self._second_view(batch, units, second)
        cosine = torch.cosine_similarity(features[number : number + 1], features, dim=1)
        negative = ~is_shown_unit
        if self.config.num_negatives is not None and images:
            # A batch has more units to choose from than this sample: at most half of them are shown.
            shown = min(self.config.num_negatives, max(len(units) // 2, 1))
            negative &= ~too_similar(features, features, 0, shown)[number]
        places = batch.points[units.center]
        head = self.point_head if images else self.view_head
        voxels, anchor = head(rows), head(units.mean(rows, batch.point_voxel))[number]
        target = "image" if images else "second view"
        return {
            "negatives": PointSketch(
                points=places,
                values=negative.long(),
                scale="labels",
                caption=f"negatives of the marked unit: {int(negative.sum())} of {len(units) - 1}",
                marked=is_shown_unit,
            ),
            "image_similarity": PointSketch(
                points=places,
                values=cosine.float(),
                scale="similarity",
                caption=f"similarity of the {target}'s features to the marked unit",
                marked=is_shown_unit,
            ),
            "similarity": PointSketch(
                points=batch.points,
                values=(voxels @ anchor)[batch.point_voxel].float(),
                scale="similarity",
                caption="similarity of the 3D network's embeddings to the marked unit",
                marked=members,
            ),
        }
