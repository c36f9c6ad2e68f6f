"""NCLR: a point network and an image network learn to find the rigid pose between LiDAR and camera.

Paper: Zhang et al., "Self-supervised Learning of LiDAR 3D Point Clouds via 2D-3D Neural Calibration"
(arXiv 2401.12452). Learnt: both networks from scratch, fusion layers, a similarity, overlap scores. Nothing is frozen.
In: voxels of a cloud that the loader turned about z and moved, one image or more, and the true pose of each
(`Cameras.T_cam_points`). Out: similarity of points and pixels, which of them overlap, and the pose.

The loader does the perturbation (eq. 8): `data.augment.points` with `max_rotation_rad` and `translate_m`, without
flips, scaling and dropped cuboids. Mirrored clouds or images are refused, for no rigid pose explains them.

Deviations from the paper and its released code: `docs/methods/nclr.md`.

Letters: I images, M voxels, K tokens (sampled voxels), R contrasted tokens, P matched tokens, C cells of an image,
D embedding, H W pixels, h w cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from common.ranges import at_least, below, expect, positive
from data.batch_spec import BatchSpec
from data.sample import Batch
from models.contrast.collapse_monitor import collapse_watch
from models.image.base import ImageEncoderConfig
from models.image.fpn import ResNetFpnConfig
from models.lidar.base import BackboneConfig
from models.lidar.res16unet import Res16UNetConfig
from models.methods.base import LossTerms, MethodConfig, Objective
from models.pairing import FeatureMap, read_pixels, upsample_to_pixels
from models.pose.alignment import (
    IdentityAlignment,
    LearnableAlignment,
    PoseEstimate,
    hard_match,
    near_and_far,
    near_far_nce,
    soft_match,
)
from models.pose.calibration import Tokens, cell_pixels, check_calibrated, covered_cells, sample_tokens
from models.pose.calibration_sketch import overlap_sketches, pose_sketches
from models.pose.epnp import Pose, epnp
from models.pose.fusion import Fusion, sinusoidal
from models.visuals import Sketch


@dataclass(frozen=True, kw_only=True)
class NclrConfig(MethodConfig):
    """Settings of NCLR; defaults are the paper's where it states them.

    Attributes:
        backbone: 3D network; `backbone.name` chooses.
        image_backbone: image network, trained too.
        embedding_dim: D, of both sides (the released code's 64).
        temperature: of the similarity.
        match_temperature: of the soft matching; null: `temperature`. Eq. 4 to 5 have none: similarities of unit rows
            as they are lie too close together, and every point would be matched to the middle of the image.
        alignment: "learnable": p W q with a symmetric positive W; "identity": cosine, as in the released code.
        contrast_on: features that are contrasted: "fused" (decoded after fusion, which also match and make the pose),
            or "both": mean of that loss and the one on the raw features before fusion.
        near_px: r_p, positives lie within it.
        far_px: r_n, negatives lie beyond it.
        tokens: voxels of a sample that stand for its sweep.
        contrast_points: seen tokens of an image that are contrasted.
        pose_points: seen tokens of an image that make the pose in training; see `overlap_threshold`.
        attention_stride: image cells are pooled to this stride, in pixels, for attention.
        fusion_layers: rounds of self- and cross-attention.
        heads: of attention.
        overlap: learn which points and pixels overlap, and match only those.
        overlap_threshold: score from which a point or cell is matched outside of training; of each side the best
            `pose_points` are, whatever they score.
        pose: learn through the pose.
        pose_start: share of the run's updates after which the pose's loss joins; 0: from the beginning.
        translation_weight: of the translation (metres) within the pose's loss, beside the rotation. While poses are far
            off, translations are tens of metres and drown everything else; the released code has 0.01.
        contrast_weight: of the InfoNCE.
        overlap_weight: of the cross-entropy.
        pose_weight: of the pose's loss.
        watch_rows: points that the collapse watch looks at.
    """

    backbone: BackboneConfig = field(default_factory=lambda: Res16UNetConfig(preset="minkunet34"))
    image_backbone: ImageEncoderConfig = field(default_factory=ResNetFpnConfig)
    embedding_dim: int = 64
    temperature: float = 0.07
    match_temperature: float | None = None
    alignment: Literal["learnable", "identity"] = "learnable"
    contrast_on: Literal["fused", "both"] = "fused"
    near_px: float = 4.0
    far_px: float = 8.0
    tokens: int = 4096
    contrast_points: int = 1024
    pose_points: int = 128
    attention_stride: int = 8
    fusion_layers: int = 2
    heads: int = 4
    overlap: bool = True
    overlap_threshold: float = 0.9
    pose: bool = True
    pose_start: float = 0.0
    translation_weight: float = 1.0
    contrast_weight: float = 1.0
    overlap_weight: float = 0.5
    pose_weight: float = 0.2
    watch_rows: int = 512

    def __post_init__(self) -> None:
        at_least(self, embedding_dim=6, tokens=1, contrast_points=1, pose_points=6, watch_rows=2)
        at_least(self, attention_stride=1, fusion_layers=1, heads=1, overlap_threshold=0, pose_start=0)
        at_least(self, contrast_weight=0, overlap_weight=0, pose_weight=0, translation_weight=0)
        below(self, overlap_threshold=1, pose_start=1)
        positive(self, "temperature", "match_temperature", "near_px")
        at_least(self, "near_px", far_px=self.near_px)
        expect(self, "embedding_dim", self.embedding_dim % self.heads == 0, f"a multiple of heads = {self.heads}")
        matchable = self.overlap or not self.pose
        expect(self, "pose", matchable, "false with overlap=false: nothing would say which points to match")

    def batch_spec(self) -> BatchSpec:
        """Images with their calibration."""
        return BatchSpec()

    def build(self) -> Nclr:
        """Assemble towers, fusion and heads.

        Raises:
            ValueError: the image network's cells do not fit `near_px` or `attention_stride`.
        """
        return Nclr(self)


@dataclass(frozen=True, kw_only=True)
class _Sides:
    """Features of both sides: aligned (similarities are products), and what overlap is read from."""

    points: Float[Tensor, "I K D"]  # after fusion and decoder, aligned
    cells: Float[Tensor, "I C D"]
    raw_points: Float[Tensor, "I K D"]  # before fusion, aligned
    raw_cells: Float[Tensor, "I C D"]
    point_score: Float[Tensor, "I K"] | None  # logits of the overlap; None without
    cell_score: Float[Tensor, "I C"] | None
    grid: FeatureMap  # the map that the cells are of, before fusion
    cell_uv: Float[Tensor, "C 2"]  # pixel of each cell


class Nclr(Objective):
    """Towers, fusion, heads and losses of NCLR."""

    def __init__(self, config: NclrConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        self.image_backbone = config.image_backbone.build()
        _check_cells(config, self.image_backbone.stride)
        width = config.embedding_dim
        self.point_in = nn.Linear(self.backbone.num_features, width)
        self.cell_in = nn.Linear(self.image_backbone.num_features, width)
        self.fusion = Fusion(width, heads=config.heads, layers=config.fusion_layers)
        self.point_decoder, self.cell_decoder = _decoder(width), _decoder(width)
        self.alignment = LearnableAlignment(width) if config.alignment == "learnable" else IdentityAlignment()
        self.point_overlap = nn.Linear(width, 1) if config.overlap else None
        self.cell_overlap = nn.Linear(width, 1) if config.overlap else None
        self.register_buffer("progress", torch.zeros(()))
        self.progress: Tensor

    def after_update(self, progress: float) -> None:
        """Remember how far the run is: the pose joins at `pose_start`."""
        self.progress.fill_(progress)

    def forward(self, batch: Batch) -> LossTerms:
        """Weighted sum of InfoNCE, overlap and pose losses.

        An image without a seen voxel adds 0 to the first and the last; one whose matches define no pose (fewer than 6
        points, or all in a plane) adds 0 to the last.

        Raises:
            ValueError: no images or calibration, a mirrored or scaled cloud, a mirrored image.

        Source: NCLR, eq. 1 to 7.
        """
        check_calibrated(batch, "nclr")
        tokens = sample_tokens(batch, self.config.tokens)
        sides = self._sides(batch, tokens)
        covered = covered_cells(batch, sides.grid)
        terms = {"contrast": self._contrast_loss(tokens, sides)}
        total = self.config.contrast_weight * terms["contrast"]
        if self.config.overlap:
            terms["overlap"] = self._overlap_loss(tokens, sides, covered.flatten(1))
            total = total + self.config.overlap_weight * terms["overlap"]
        watch = self._watch(tokens, sides)
        if self.config.pose:
            terms["pose"], found = self._pose_loss(batch, tokens, sides, covered.flatten(1))
            total = total + self.config.pose_weight * terms["pose"]
            watch["pose_found"] = found
        return LossTerms(total=total, parts={name: term.detach() for name, term in terms.items()}, watch=watch)

    # ----------------------------------------------------------------------------------------------- features

    def _sides(self, batch: Batch, tokens: Tokens) -> _Sides:
        """Both towers, fusion, decoders, alignment."""
        config, stride, origin = self.config, self.image_backbone.stride, self.image_backbone.origin_px
        voxels = self.point_in(self.backbone(batch.voxel_coords, batch.voxel_features, batch.num_samples))
        raw_points = voxels[tokens.voxel] if len(voxels) else voxels.new_zeros(*tokens.voxel.shape, voxels.shape[1])
        values = self.cell_in(self.image_backbone(batch.need("images", by="nclr")).movedim(1, -1)).movedim(-1, 1)
        grid = FeatureMap(values, stride, origin)
        raw_cells = values.flatten(2).mT

        pool = config.attention_stride // stride
        means = F.avg_pool2d(values, pool, ceil_mode=True, count_include_pad=False) if pool > 1 else values
        # Pooled cell i covers cells pool * i to pool * (i + 1) - 1; its centre is theirs.
        pooled = FeatureMap(means, stride * pool, origin + stride * (pool - 1) / 2)
        where = cell_pixels(pooled, like=tokens.points)
        fused_points, fused_cells = self.fusion(
            raw_points + sinusoidal(tokens.points, config.embedding_dim, shortest=1.0, longest=200.0).to(voxels.dtype),
            means.flatten(2).mT
            + sinusoidal(where, config.embedding_dim, shortest=4.0 * stride, longest=2000.0).to(means.dtype),
            tokens.valid,
        )
        fused = replace(pooled, values=fused_cells.mT.unflatten(2, pooled.size))
        spread = fused.read_at(grid.size, stride=stride, origin_px=origin)
        points = self.point_decoder(torch.cat([raw_points, fused_points], dim=-1))
        cells = self.cell_decoder(torch.cat([raw_cells, spread.flatten(2).mT], dim=-1))
        return _Sides(
            points=self.alignment(points),
            cells=self.alignment(cells),
            raw_points=self.alignment(raw_points),
            raw_cells=self.alignment(raw_cells),
            point_score=None if self.point_overlap is None else self.point_overlap(points)[..., 0].float(),
            cell_score=None if self.cell_overlap is None else self.cell_overlap(cells)[..., 0].float(),
            grid=grid,
            cell_uv=cell_pixels(grid, like=tokens.points),
        )

    # ------------------------------------------------------------------------------------------------- losses

    def _contrast_loss(self, tokens: Tokens, sides: _Sides) -> Float[Tensor, ""]:
        """Points among pixels and pixels among points, mean of both (eq. 1-2)."""
        rows = _first(tokens.seen, self.config.contrast_points)
        counts = tokens.seen.gather(1, rows)
        near, far = near_and_far(
            _pick(tokens.uv, rows), sides.cell_uv, counts, near_px=self.config.near_px, far_px=self.config.far_px
        )
        pairs = [(sides.points, sides.cells)]
        if self.config.contrast_on == "both":
            pairs.append((sides.raw_points, sides.raw_cells))
        losses = []
        for points, cells in pairs:
            logits = _similarity(_pick(points, rows), cells) / self.config.temperature
            losses += [near_far_nce(logits, near, far), near_far_nce(logits.mT, near.mT, far.mT)]
        return torch.stack(losses).mean()

    def _overlap_loss(self, tokens: Tokens, sides: _Sides, covered: Bool[Tensor, "I C"]) -> Float[Tensor, ""]:
        """Cross-entropy of the points' and of the cells' scores, sum of both (eq. 3)."""
        assert sides.point_score is not None
        assert sides.cell_score is not None
        per_point = F.binary_cross_entropy_with_logits(sides.point_score, tokens.seen.float(), reduction="none")
        points = (per_point * tokens.valid).sum(dim=1) / tokens.valid.sum(dim=1).clamp(min=1)
        cells = F.binary_cross_entropy_with_logits(sides.cell_score, covered.float(), reduction="none").mean(dim=1)
        return (points + cells).sum() / max(len(points), 1)

    def _pose_loss(
        self, batch: Batch, tokens: Tokens, sides: _Sides, covered: Bool[Tensor, "I C"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Huber of rotation and translation (eq. 7), and the share of images with a pose; 0 before `pose_start`."""
        if float(self.progress) < self.config.pose_start:
            zero = 0.0 * (sides.points.sum() + sides.cells.sum())
            return zero, zero.detach()
        rows = _first(tokens.seen, self.config.pose_points)
        uv = soft_match(self._match_logits(_pick(sides.points, rows), sides.cells), sides.cell_uv, covered)
        pose = self._pose(batch, _pick(tokens.points, rows), uv, tokens.seen.gather(1, rows))
        true = batch.need("cameras", by="nclr").T_cam_points.to(pose.rotation.dtype)
        residual = true[:, :3, :3].mT @ pose.rotation - torch.eye(3, dtype=true.dtype, device=true.device)
        rotation = F.huber_loss(residual, torch.zeros_like(residual), reduction="none").mean(dim=(1, 2))
        translation = F.huber_loss(pose.translation_m, true[:, :3, 3], reduction="none").mean(dim=1)
        share = pose.valid.float().mean() if len(pose.valid) else pose.valid.float().sum()
        both = rotation + self.config.translation_weight * translation
        return torch.where(pose.valid, both, 0).sum() / max(len(true), 1), share

    def _match_logits(self, points: Float[Tensor, "I P D"], cells: Float[Tensor, "I C D"]) -> Float[Tensor, "I P C"]:
        return _similarity(points, cells) / (self.config.match_temperature or self.config.temperature)

    def _pose(
        self, batch: Batch, points: Float[Tensor, "I P 3"], uv: Float[Tensor, "I P 2"], counts: Bool[Tensor, "I P"]
    ) -> Pose:
        exact = torch.promote_types(uv.dtype, torch.float32)
        K = batch.need("cameras", by="nclr").K
        return epnp(points.to(exact), uv.to(exact), K.to(exact), counts.to(exact))

    @torch.no_grad()
    def _watch(self, tokens: Tokens, sides: _Sides) -> dict[str, Float[Tensor, ""]]:
        """Seen points against the cells under them."""
        image, row = tokens.seen.nonzero(as_tuple=True)
        cells = replace(sides.grid, values=sides.cells.mT.unflatten(2, sides.grid.size))
        under = read_pixels(cells, image, tokens.uv[image, row], mode="nearest")
        return collapse_watch(sides.points[image, row], under, max_rows=self.config.watch_rows)

    # -------------------------------------------------------------------------------------------------- poses

    @torch.no_grad()
    def estimate_pose(self, batch: Batch) -> PoseEstimate:
        """Each camera's pose, from the batch's points and pixels alone; the true pose is not looked at.

        Raises:
            ValueError: see `forward`.
        """
        check_calibrated(batch, "nclr")
        tokens = sample_tokens(batch, self.config.tokens)
        return self._estimate(batch, tokens, self._sides(batch, tokens))

    def _estimate(self, batch: Batch, tokens: Tokens, sides: _Sides) -> PoseEstimate:
        kept_points, kept_cells = tokens.valid, torch.ones_like(sides.cells[..., 0], dtype=torch.bool)
        if sides.point_score is not None and sides.cell_score is not None:
            kept_points = self._kept(sides.point_score, tokens.valid)
            kept_cells = self._kept(sides.cell_score, kept_cells)
        logits = self._match_logits(sides.points, sides.cells)
        soft = soft_match(logits, sides.cell_uv, kept_cells)
        pose = self._pose(batch, tokens.points, soft, kept_points)
        T = torch.eye(4, dtype=pose.rotation.dtype, device=soft.device).repeat(len(soft), 1, 1)
        T[:, :3, :3], T[:, :3, 3] = pose.rotation, pose.translation_m
        image, row = tokens.valid.nonzero(as_tuple=True)
        return PoseEstimate(
            T_cam_points=T,
            valid=pose.valid,
            match_image=image,
            match_points=tokens.points[image, row],
            match_soft_uv=soft[image, row],
            match_hard_uv=hard_match(logits, sides.cell_uv, kept_cells)[image, row],
            match_kept=kept_points[image, row],
        )

    def _kept(self, score: Float[Tensor, "I n"], valid: Bool[Tensor, "I n"]) -> Bool[Tensor, "I n"]:
        """What scores above the threshold, and in any case the best `pose_points`."""
        score = score.masked_fill(~valid, -torch.inf)
        best = torch.zeros_like(valid)
        best.scatter_(1, score.topk(min(self.config.pose_points, score.shape[1]), dim=1).indices, True)
        return ((score.sigmoid() > self.config.overlap_threshold) | best) & valid

    @torch.no_grad()
    def sketches(self, batch: Batch) -> dict[str, Sketch]:
        """Of the first image: matches, projections before and after the estimated pose, overlap."""
        check_calibrated(batch, "nclr")
        images = batch.need("images", by="nclr")
        if len(images) == 0:
            return {}
        tokens = sample_tokens(batch, self.config.tokens)
        sides = self._sides(batch, tokens)
        sketches = pose_sketches(batch, tokens, self._estimate(batch, tokens, sides))
        if sides.point_score is not None and sides.cell_score is not None:
            size = (images.shape[-2], images.shape[-1])
            maps = sides.cell_score.sigmoid().unflatten(1, sides.grid.size)[:, None]
            pixels = upsample_to_pixels(replace(sides.grid, values=maps), size)
            sketches |= overlap_sketches(batch, tokens, sides.point_score.sigmoid(), pixels[:, 0])
        return sketches


def _similarity(points: Float[Tensor, "I R D"], cells: Float[Tensor, "I C D"]) -> Float[Tensor, "I R C"]:
    with torch.autocast(points.device.type, enabled=False):
        return points @ cells.mT


def _first(chosen: Bool[Tensor, "I K"], limit: int) -> Int[Tensor, "I R"]:
    """Columns of each row's first chosen entries, filled up with others; tokens are in random order."""
    return (~chosen).to(torch.int8).argsort(dim=1, stable=True)[:, :limit]


def _pick(values: Float[Tensor, "I K X"], rows: Int[Tensor, "I R"]) -> Float[Tensor, "I R X"]:
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[-1]))


def _decoder(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


def _check_cells(config: NclrConfig, stride: int) -> None:
    if config.near_px < stride / 2**0.5:
        raise ValueError(
            f"near_px = {config.near_px:g}: the image network has a cell every {stride} pixels, so some points would "
            f"have no positive; set near_px to at least {stride / 2**0.5:.1f}, or take a network of finer stride"
        )
    if config.attention_stride % stride:
        raise ValueError(
            f"attention_stride = {config.attention_stride}: expected a multiple of the image network's stride {stride}"
        )
