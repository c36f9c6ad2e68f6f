"""Labelled batches of the street world without shards or loader, and detectors small enough for tests."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import torch

from data.batch_spec import VoxelConfig
from data.sample import Batch, BatchBoxes, Cameras, PointPixelPairs
from data.street.classes import CLASS_NAMES
from data.street.config import StreetCameraConfig, StreetConfig, StreetLidarConfig
from data.street.log import LogRenderer
from data.views.pairs import point_pixel_pairs
from data.views.voxelize import inside_range, voxelize
from models.detection.anchor_head import AnchorHeadConfig
from models.detection.base import Detections, DetectorConfig
from models.detection.centerpoint import CenterPointConfig
from models.detection.centre_head import CentreHeadConfig
from models.detection.fcos3d import Fcos3dConfig
from models.detection.fcos3d_head import Fcos3dHeadConfig
from models.detection.mvx_net import MvxNetConfig
from models.detection.point_fusion import PointFusionConfig
from models.detection.point_rcnn import PointRcnnConfig
from models.detection.pv_rcnn import PvRcnnConfig
from models.detection.refinement import RefinementConfig, proposals
from models.detection.roi_targets import RoiTargetConfig
from models.detection.second import PointPillarsConfig, SecondConfig
from models.detection.suppression import SuppressionConfig
from models.detection.vote_net import VoteNetConfig
from models.image.fpn import ResNetFpnConfig
from models.image.resnet_encoder import ResNetEncoderConfig
from models.lidar.pillars import PillarsConfig
from models.lidar.pointnet2 import PointNet2Config
from models.lidar.res16unet import Res16UNetConfig
from models.lidar.voxelnet import VoxelNetConfig

CLASSES = ("car", "truck", "bus", "pedestrian", "cyclist")
WORLD = StreetConfig(
    num_logs=4,
    frames_per_log=6,
    lidar=StreetLidarConfig(beams=24, azimuths=240),
    cameras=StreetCameraConfig(image_size=(96, 192)),
)

VOXELS = VoxelConfig(
    kind="cartesian",
    size=(0.2, 0.2, 0.2),
    features="xyz_intensity",
    reduce="mean",
    range_min=(-25.6, -25.6, -2.4),
    range_max=(25.6, 25.6, 2.4),
)
TINY_VOXELNET = VoxelNetConfig(
    preset="second_tiny",
    bn_momentum=0.1,
    in_channels=4,
    grid_min=(-128, -128, -12),
    grid_max=(128, 128, 12),
    voxel_size_m=VOXELS.size,
)
TINY_PILLARS = PillarsConfig(
    preset="pillars_tiny",
    bn_momentum=0.1,
    pillar_size_m=0.4,
    range_min_m=(-25.6, -25.6, -2.4),
    range_max_m=(25.6, 25.6, 2.4),
)
_STREET_ANCHORS = AnchorHeadConfig(anchor_set="street")
_NARROW = CentreHeadConfig(channels=24)
_NMS = SuppressionConfig(max_iou=0.2)
"""Boxes of the street world overlap a little where people pass each other."""

_FEW = RefinementConfig(
    train_proposals=proposals(max_iou=0.8, before=512, after=64),
    test_proposals=proposals(max_iou=0.7, before=256, after=32),
    targets=RoiTargetConfig(num_rois=32),
    dropout=0.0,
)
_POINT_RCNN = PointRcnnConfig(
    classes=CLASSES,
    backbone=PointNet2Config(preset="pointnet2_tiny"),
    preset="point_rcnn_tiny",
    num_points=4096,
    anchor_set="street",
    # Nearly every point of a near car has a higher score than all of a distant one's.
    refinement=dataclasses.replace(
        _FEW,
        train_proposals=proposals(max_iou=0.8, before=4096, after=128),
        test_proposals=proposals(max_iou=0.7, before=4096, after=128),
        scores=PointRcnnConfig().refinement.scores,
    ),
)

TINY: dict[str, DetectorConfig] = {
    "second": SecondConfig(classes=CLASSES, backbone=TINY_VOXELNET, head=_STREET_ANCHORS, nms=_NMS),
    "pointpillars": PointPillarsConfig(classes=CLASSES, backbone=TINY_PILLARS, head=_STREET_ANCHORS, nms=_NMS),
    "centerpoint": CenterPointConfig(classes=CLASSES, backbone=TINY_VOXELNET, head=_NARROW),
    "centerpoint_pillars": CenterPointConfig(classes=CLASSES, backbone=TINY_PILLARS, head=_NARROW),
    "pv_rcnn": PvRcnnConfig(
        classes=CLASSES,
        backbone=TINY_VOXELNET,
        preset="pv_rcnn_tiny",
        head=_STREET_ANCHORS,
        num_keypoints=256,
        refinement=_FEW,
    ),
    "point_rcnn": _POINT_RCNN,
    "fcos3d": Fcos3dConfig(
        classes=CLASSES,
        image_backbone=ResNetEncoderConfig(preset="resnet10_tiny"),
        head=Fcos3dHeadConfig(
            channels=16,
            groups=4,
            centreness_channels=8,
            tower_convs=1,
            velocity=False,
            limits_px=(24.0, 48.0),
            depth_unit_m=10.0,
        ),
    ),
    "vote_net": VoteNetConfig(
        classes=CLASSES,
        mean_sizes_m=((4.2, 1.8, 1.6), (7.0, 2.5, 3.0), (11.0, 2.6, 3.2), (0.7, 0.7, 1.7), (1.8, 0.7, 1.7)),
        backbone=Res16UNetConfig(preset="res16unet_tiny", in_channels=4),
        num_seeds=512,
        num_proposals=64,
        channels=48,
        proposal_channels=48,
        radius_m=1.5,
        near_m=1.5,
        far_m=2.5,
        nms=SuppressionConfig(min_score=0.05, max_iou=0.25, num_before=256, num_after=320),
        min_points=1,
    ),
    "mvx_net": MvxNetConfig(
        classes=CLASSES,
        backbone=dataclasses.replace(TINY_VOXELNET, in_channels=16),
        image_backbone=ResNetFpnConfig(preset="resnet10_tiny", channels=16),
        fusion=PointFusionConfig(widths=(16, 16), lateral_channels=8, channels=16, bn_momentum=0.1),
        head=_STREET_ANCHORS,
        nms=_NMS,
    ),
}

POINT_RCNN_MINKUNET = dataclasses.replace(_POINT_RCNN, backbone=Res16UNetConfig(preset="res16unet_tiny", in_channels=4))
"""As SLidR's detection runs are, small."""


@functools.cache
def _log(number: int) -> LogRenderer:
    return LogRenderer(WORLD, number)


@functools.cache
def street_batch(
    samples: tuple[tuple[int, int], ...] = ((0, 0), (0, 5)),
    *,
    classes: Sequence[str] = CLASSES,
    min_points: int = 5,
    images: bool = False,
) -> Batch:
    """Sweeps (log, frame), with the boxes whose centre is in range and that hold so many points."""
    if images:
        return _with_images(street_batch(samples, classes=classes, min_points=min_points), samples)
    parts = [_sample(log, frame, tuple(classes), min_points) for log, frame in samples]
    numbers = [torch.full((len(part["voxels"]),), i, dtype=torch.int32) for i, part in enumerate(parts)]
    starts = np.cumsum([0, *(len(part["voxels"]) for part in parts)])
    return Batch(
        keys=tuple(f"{log}-{frame}" for log, frame in samples),
        points=torch.cat([part["points"] for part in parts]),
        point_sample=_numbers([len(part["points"]) for part in parts]),
        point_voxel=torch.cat([part["point_voxel"] + int(start) for part, start in zip(parts, starts, strict=False)]),
        voxel_coords=torch.cat(
            [torch.cat([n[:, None], part["voxels"]], dim=1) for n, part in zip(numbers, parts, strict=True)]
        ),
        voxel_features=torch.cat([part["features"] for part in parts]),
        T_aug_lidar=torch.eye(4).repeat(len(parts), 1, 1),
        boxes=BatchBoxes(
            boxes=torch.cat([part["boxes"] for part in parts]),
            velocities_mps=torch.cat([part["velocities"] for part in parts]),
            classes=torch.cat([part["classes"] for part in parts]),
            sample=_numbers([len(part["boxes"]) for part in parts]),
        ),
    )


def _with_images(batch: Batch, samples: Sequence[tuple[int, int]]) -> Batch:
    """With the images of all cameras as they were taken, and the points that they show."""
    views = [_views(log, frame) for log, frame in samples]
    images, K, T_cam_lidar = (torch.cat([part[n] for part in views]) for n in range(3))
    cameras = Cameras(
        sample=_numbers([len(part[0]) for part in views]),
        K=K,
        T_cam_points=T_cam_lidar,
        affine=torch.eye(3)[:2].repeat(len(images), 1, 1),
        min_depth_m=torch.ones(len(images)),
    )
    starts = np.cumsum([0, *(int((batch.point_sample == n).sum()) for n in range(len(samples)))])
    first_image = np.cumsum([0, *(len(part[0]) for part in views)])
    pairs = PointPixelPairs(
        point=torch.cat([part[3] + int(start) for part, start in zip(views, starts, strict=False)]),
        image=torch.cat([part[4] + int(start) for part, start in zip(views, first_image, strict=False)]),
        uv=torch.cat([part[5] for part in views]),
    )
    return dataclasses.replace(batch, images=images, cameras=cameras, pairs=pairs)


def _views(log: int, frame: int) -> tuple[torch.Tensor, ...]:
    """Images, K, T_cam_lidar; point among those in range, camera and pixel of each pair."""
    sample = _log(log).sample("street", frame)
    pairs = point_pixel_pairs(sample, tuple(range(len(sample.cameras)))).keep_points(
        inside_range(sample.points_lidar, VOXELS)
    )
    images, K, T = zip(*((view.image, view.K, sample.T_cam_lidar(view)) for view in sample.cameras), strict=True)
    return (
        torch.from_numpy(np.stack(images)).movedim(-1, 1).contiguous(),
        torch.from_numpy(np.stack(K).astype(np.float32)),
        torch.from_numpy(np.stack(T).astype(np.float32)),
        torch.from_numpy(pairs.point),
        torch.from_numpy(pairs.camera),
        torch.from_numpy(pairs.uv.astype(np.float32)),
    )


def _numbers(counts: Sequence[int]) -> torch.Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def _sample(log: int, frame: int, classes: tuple[str, ...], min_points: int) -> dict[str, torch.Tensor]:
    sweep = _log(log).sweep(frame)
    boxes = _log(log).boxes(frame, sweep)
    inside = inside_range(sweep.points_lidar, VOXELS)
    points, intensity = sweep.points_lidar[inside], sweep.intensity[inside]
    voxels = voxelize(points, intensity, VOXELS)
    names = [CLASS_NAMES[label] for label in boxes.classes]
    counts = (sweep.instances[inside][None] == boxes.track_ids[:, None]).sum(axis=1)
    wanted = np.array([name in classes for name in names], dtype=bool) & (counts >= min_points)
    wanted &= inside_range(boxes.centers_m, VOXELS)
    rows = np.concatenate([boxes.centers_m, boxes.sizes_m, boxes.yaws[:, None]], axis=1)[wanted]
    return {
        "points": torch.from_numpy(points),
        "point_voxel": torch.from_numpy(voxels.of_point),
        "voxels": torch.from_numpy(voxels.coords),
        "features": torch.from_numpy(voxels.features),
        "boxes": torch.from_numpy(rows.astype(np.float32)),
        "velocities": torch.from_numpy(boxes.velocities_mps[wanted].astype(np.float32)),
        "classes": torch.tensor([classes.index(names[i]) for i in np.flatnonzero(wanted)], dtype=torch.long),
    }


def without_boxes(batch: Batch, *samples: int) -> Batch:
    """The batch without the boxes of some samples; of all, where none is named."""
    assert batch.boxes is not None
    kept = torch.zeros(len(batch.boxes.sample), dtype=torch.bool)
    if samples:
        kept = ~torch.isin(batch.boxes.sample, torch.tensor(samples))
    fields = {field.name: getattr(batch.boxes, field.name)[kept] for field in dataclasses.fields(BatchBoxes)}
    return dataclasses.replace(batch, boxes=BatchBoxes(**fields))


def found_share(found: Detections, truth: BatchBoxes, *, max_distance_m: float = 0.5, min_score: float = 0.3) -> float:
    """Share of the true boxes with a detection of their class nearby."""
    near = torch.cdist(truth.boxes[:, :3], found.boxes[:, :3]) <= max_distance_m
    near &= truth.sample[:, None] == found.sample
    near &= truth.classes[:, None] == found.classes
    near &= found.scores >= min_score
    return float(near.any(dim=1).float().mean())
