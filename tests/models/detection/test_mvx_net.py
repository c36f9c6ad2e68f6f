"""MVX-Net: points read the pixels that show them, also after augmentation, and what they read decides."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from torch import Tensor

from data.batch_spec import BatchSpec, VoxelConfig
from data.loading.collate import collate
from data.order import SampleDraws
from data.sample import Batch, BatchBoxes, Cameras, PointPixelPairs
from data.street.config import StreetCameraConfig, StreetConfig, StreetLidarConfig
from data.street.log import LogRenderer
from data.views.augment import AugmentConfig, ImageAugmentConfig, PointAugmentConfig
from data.views.boxes import ViewBoxes
from data.views.making import make_view
from data.views.view import ViewConfig
from models.detection.anchor_head import AnchorConfig, AnchorHeadConfig
from models.detection.base import Detections
from models.detection.mvx_net import MvxNet, MvxNetConfig
from models.detection.point_fusion import PointFusionConfig
from models.image.fpn import ResNetFpnConfig
from models.lidar.pillars import PillarsConfig
from models.lidar.voxelnet import VoxelNetConfig
from tests.reference.point_fusion import projected, voxel_features

STORED = (64, 96)
WORLD = StreetConfig(
    num_logs=1,
    frames_per_log=4,
    lidar=StreetLidarConfig(beams=8, azimuths=60),
    cameras=StreetCameraConfig(image_size=STORED),
)
VOXELS = VoxelConfig(
    kind="cartesian",
    size=(0.4, 0.4, 0.2),
    features="xyz_intensity",
    reduce="mean",
    range_min=(-25.6, -25.6, -2.4),
    range_max=(25.6, 25.6, 2.4),
)
FPN = ResNetFpnConfig(preset="resnet10_tiny", channels=8)
TINY = MvxNetConfig(
    classes=("car", "pedestrian"),
    backbone=VoxelNetConfig(
        preset="second_tiny",
        bn_momentum=0.1,
        in_channels=16,
        grid_min=(-64, -64, -12),
        grid_max=(64, 64, 12),
        voxel_size_m=VOXELS.size,
    ),
    image_backbone=FPN,
    fusion=PointFusionConfig(widths=(8, 8), lateral_channels=4, channels=16, bn_momentum=0.1),
    head=AnchorHeadConfig(anchor_set="street"),
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@functools.cache
def street(*, augmented: bool = True, frames: int = 2) -> Batch:
    """Sweeps as the loader gives them, boxes left out: clouds turned, scaled and mirrored, images cropped, mirrored."""
    log = LogRenderer(WORLD, 0)
    augment = AugmentConfig(
        min_pairs=1, points=PointAugmentConfig(enabled=augmented), image=ImageAugmentConfig(enabled=augmented)
    )
    config = ViewConfig(image_size=(48, 96), voxel=VOXELS, augment=augment)
    nothing = ViewBoxes(boxes=np.zeros((0, 7)), velocities_mps=np.zeros((0, 2)), classes=np.zeros(0, np.int64))
    spec, draws = BatchSpec(need_pairs=False, boxes=TINY.classes), (SampleDraws(3, 0, n) for n in range(frames))
    views = [
        make_view(log.sample("street", frame), config, spec, drawn, boxes=nothing) for frame, drawn in enumerate(draws)
    ]
    return collate(views)


def build(config: MvxNetConfig = TINY) -> MvxNet:
    """With BatchNorm's statistics of a batch, so that nothing is 0 or 1 by default."""
    torch.manual_seed(0)
    model = config.build()
    model.train()
    with torch.no_grad():
        model.bird_eye_view(street(augmented=False))
    model.nms = dataclasses.replace(model.nms, min_score=0.0)
    return model.eval()


def fused(model: MvxNet, batch: Batch) -> Tensor:
    images, pairs = batch.need("images", by="a test"), batch.need("pairs", by="a test")
    levels = model.image_backbone.pyramid(images)
    rows: Tensor = model.voxel_encoder(
        model.decorated(batch), batch.point_voxel, len(batch.voxel_coords), levels, pairs
    )
    return rows


@torch.no_grad()
@pytest.mark.parametrize("augmented", [False, True])
def test_voxel_features_equal_a_loop_that_projects_each_point(augmented: bool) -> None:
    """Also after augmentation: its inverse is in the cameras' poses."""
    model, batch = build(), street(augmented=augmented)
    torch.testing.assert_close(fused(model, batch), voxel_features(model, batch, STORED), rtol=2e-3, atol=2e-4)


def test_pairs_are_the_projections() -> None:
    batch = street()
    assert batch.pairs is not None
    assert batch.images is not None
    by_hand = {
        (point, image): uv
        for point in range(batch.num_points)
        for image in range(len(batch.images))
        if (uv := projected(batch, point, image, STORED)) is not None
    }
    rows = zip(batch.pairs.point.tolist(), batch.pairs.image.tolist(), batch.pairs.uv.tolist(), strict=True)
    assert {(point, image): pytest.approx(uv, abs=1e-2) for point, image, uv in rows} == by_hand
    assert 0 < len({point for point, _ in by_hand}) < batch.num_points, "some points are seen, some are not"


def same(one: Detections, other: Detections) -> bool:
    return torch.equal(one.boxes, other.boxes) and torch.equal(one.scores, other.scores)


@torch.no_grad()
def test_detections_depend_on_the_images_exactly_where_points_are_seen() -> None:
    model, batch = build(), street(augmented=False)
    assert batch.images is not None
    assert batch.pairs is not None
    found = model.detect(batch)
    assert same(found, model.detect(batch))
    others = dataclasses.replace(batch, images=batch.images.roll(1, dims=0))
    assert not same(found, model.detect(others)), "each camera's image in the next one's place"
    unseen = dataclasses.replace(batch, pairs=batch.pairs.select(slice(0)))
    blind = model.detect(unseen)
    assert not same(found, blind)
    assert same(blind, model.detect(dataclasses.replace(unseen, images=others.images)))


@torch.no_grad()
def test_a_point_in_two_images_gets_their_mean_and_an_unseen_one_zeros() -> None:
    model, batch = build(), street(augmented=False)
    assert batch.images is not None
    levels = model.image_backbone.pyramid(batch.images)
    uv = torch.tensor([[10.0, 20.0], [30.0, 5.0]])
    both = PointPixelPairs(point=torch.tensor([1, 1]), image=torch.tensor([0, 2]), uv=uv)
    fusion = model.voxel_encoder.fusion
    rows = fusion.read(levels, both, 3)
    one, other = (fusion.read(levels, both.select(slice(n, n + 1)), 3)[1] for n in (0, 1))
    torch.testing.assert_close(rows[1], (one + other) / 2)
    assert not rows[[0, 2]].any()
    assert rows.shape == (3, 5 * 4), "five levels: FPN's four and one thinned"


@torch.no_grad()
def test_a_missing_camera_and_an_empty_cloud() -> None:
    model, batch = build(), street(augmented=False)
    assert batch.images is not None
    assert batch.cameras is not None
    assert batch.pairs is not None
    whole = fused(model, batch)
    kept = torch.arange(1, len(batch.images))  # the first sample has a camera less
    pairs = batch.pairs.select(batch.pairs.image > 0)
    less = dataclasses.replace(
        batch,
        images=batch.images[kept],
        cameras=Cameras(**{f.name: getattr(batch.cameras, f.name)[kept] for f in dataclasses.fields(Cameras)}),
        pairs=dataclasses.replace(pairs, image=pairs.image - 1),
    )
    changed = (fused(model, less) - whole).abs().amax(dim=1) > 1e-5
    of_camera = torch.zeros(len(whole), dtype=torch.bool)
    of_camera[batch.point_voxel[batch.pairs.point[batch.pairs.image == 0]]] = True
    assert changed.any()
    assert not (changed & ~of_camera).any(), "only voxels that the camera saw"
    nothing = dataclasses.replace(
        batch,
        points=batch.points[:0],
        point_sample=batch.point_sample[:0],
        point_voxel=batch.point_voxel[:0],
        voxel_coords=batch.voxel_coords[:0],
        voxel_features=batch.voxel_features[:0],
        pairs=batch.pairs.select(slice(0)),
    )
    assert model.detect(nothing).boxes.isfinite().all()


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone.in_channels: got 16, expected fusion.channels=32"):
        dataclasses.replace(TINY, fusion=dataclasses.replace(TINY.fusion, channels=32))
    with pytest.raises(ValueError, match=r"expected voxels with features of their own: set backbone.name to voxelnet"):
        dataclasses.replace(TINY, backbone=PillarsConfig(in_channels=16))
    with pytest.raises(ValueError, match=r"point_channels: got 4, but data.voxel.features='intensity' makes 1 feat"):
        TINY.check_voxels(dataclasses.replace(VOXELS, features="intensity"))
    with pytest.raises(ValueError, match=r"backbone: voxel_size_m is \[0.4, 0.4, 0.2\], but data.voxel.size="):
        TINY.check_voxels(dataclasses.replace(VOXELS, size=(0.2, 0.4, 0.2)))
    TINY.check_voxels(VOXELS)


# ---- only colour tells two classes apart

SIZE = (0.1, 0.1, 0.2)
PLACES = ((-3.0, -3.0), (-3.0, 3.0), (3.0, -3.0), (3.0, 3.0))
RED, GREEN = (220, 30, 30), (30, 220, 30)


def painted(*seeds: int) -> Batch:
    """Scenes of four boxes of one shape, seen from above by one camera that shows each red or green: its class."""
    size, at = np.array(SIZE), lambda xyz: 31.5 - 6 * xyz[..., [1, 0]]
    clouds, boxes, kinds, images = [], [], [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        centres = np.column_stack([PLACES, np.zeros(4)]) + rng.uniform(-0.4, 0.4, (4, 3)) * (1, 1, 0)
        classes = rng.integers(0, 2, 4)
        clouds.append((centres[:, None] + rng.uniform(-0.5, 0.5, (4, 30, 3)) * (1.6, 0.8, 0.8)).reshape(-1, 3))
        boxes.append(np.column_stack([centres, np.tile([1.6, 0.8, 0.8, 0.0], (4, 1))]))
        kinds.append(classes)
        image = np.full((64, 64, 3), 128, np.uint8)
        for (u, v), kind in zip(at(centres), classes, strict=True):
            image[int(v - 8) : int(v + 9), int(u - 6) : int(u + 7)] = (RED, GREEN)[kind]
        images.append(image)
    cloud, sample = np.concatenate(clouds), np.arange(len(seeds)).repeat(120)
    cells = np.column_stack([sample, np.floor(cloud / size)]).astype(np.int32)
    coords, of_point = np.unique(cells, axis=0, return_inverse=True)
    of_point = of_point.reshape(-1)
    centre = (coords[:, 1:] + 0.5) * size
    number = torch.from_numpy(sample)
    return Batch(
        keys=tuple(map(str, seeds)),
        points=torch.from_numpy(cloud.astype(np.float32)),
        point_sample=number,
        point_voxel=torch.from_numpy(of_point.astype(np.int64)),
        voxel_coords=torch.from_numpy(coords),
        voxel_features=torch.from_numpy(np.column_stack([centre, np.full(len(coords), 0.5)]).astype(np.float32)),
        T_aug_lidar=torch.eye(4).repeat(len(seeds), 1, 1),
        images=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
        pairs=PointPixelPairs(
            point=torch.arange(len(cloud)), image=number, uv=torch.from_numpy(at(cloud).astype(np.float32))
        ),
        boxes=BatchBoxes(
            boxes=torch.from_numpy(np.concatenate(boxes).astype(np.float32)),
            velocities_mps=torch.zeros(4 * len(seeds), 2),
            classes=torch.from_numpy(np.concatenate(kinds)),
            sample=torch.arange(len(seeds)).repeat_interleave(4),
        ),
    )


def told(model: MvxNet, batch: Batch) -> float:
    """Share of the boxes whose nearest sure detection has their class."""
    assert batch.boxes is not None
    found = model.detect(batch)
    right = 0
    for box, kind, sample in zip(batch.boxes.boxes, batch.boxes.classes, batch.boxes.sample, strict=True):
        near = ((found.boxes[:, :2] - box[:2]).norm(dim=1) < 0.8) & (found.sample == sample) & (found.scores > 0.2)
        right += int(near.any() and found.classes[near][0] == kind)
    return right / len(batch.boxes.classes)


@pytest.mark.slow
def test_classes_that_only_colour_tells_apart_are_learnt() -> None:
    """On scenes that were not trained on; with the colours taken away, it tells them no better than luck."""
    anchor = AnchorConfig(size_m=(1.6, 0.8, 0.8), bottom_m=-0.4, matched_iou=0.5, unmatched_iou=0.35)
    config = dataclasses.replace(
        TINY,
        classes=("red", "green"),
        backbone=dataclasses.replace(
            TINY.backbone, voxel_size_m=(0.1, 0.1, 0.2), grid_min=(-64, -64, -12), grid_max=(64, 64, 12)
        ),
        head=AnchorHeadConfig(anchors=(anchor, anchor), rotations=(0.0,)),
    )
    torch.manual_seed(0)
    model = config.build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(70):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, (75 - step) / 50)
        optimizer.zero_grad()
        model(painted(*range(16 * step, 16 * step + 16))).total.backward()
        optimizer.step()
    model.eval()
    held_out = painted(*range(1000, 1010))
    grey = dataclasses.replace(held_out, images=torch.full_like(held_out.need("images", by="a test"), 128))
    with torch.no_grad():
        seen, blind = told(model, held_out), told(model, grey)
    assert seen > 0.9
    assert blind < 0.7
