"""PV-RCNN and PointRCNN: sizes, what each stage looks at, draws, learning by heart.

What holds for every detector: `tests.models.detection.test_detectors`.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from common.ranges import RangeError
from models.detection.point_rcnn import PointRcnn, PointRcnnConfig, choose_points
from models.detection.pv_rcnn import PvRcnn, PvRcnnConfig, point_features
from models.lidar.ball_pooling import PointSet
from models.lidar.pillars import PillarsConfig
from models.lidar.res16unet import Res16UNetConfig
from models.lidar.voxelnet import VoxelNetConfig
from tests.helpers.detection import POINT_RCNN_MINKUNET, TINY, found_share, street_batch, without_boxes

TWO_STAGES = ("pv_rcnn", "point_rcnn", "point_rcnn_minkunet")
every_detector = pytest.mark.parametrize("name", TWO_STAGES)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def build(name: str) -> PvRcnn | PointRcnn:
    torch.manual_seed(0)
    model = (POINT_RCNN_MINKUNET if name == "point_rcnn_minkunet" else TINY[name]).build()
    assert isinstance(model, PvRcnn | PointRcnn)
    return model


def layers(*widths: int) -> int:
    """Parameters of linear layers without bias, each with BatchNorm."""
    return sum(a * b + 2 * b for a, b in itertools.pairwise(widths))


def number(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_pv_rcnn_layer_by_layer() -> None:
    with torch.device("meta"):
        model = PvRcnnConfig().build()
    around = [(1, 16), (16, 16), (32, 32), (64, 64), (64, 64)]  # in, width: points, strides 1, 2, 4, 8
    abstraction = sum(2 * layers(3 + a, b, b) for a, b in around) + layers(640, 128)
    assert number(model.set_abstraction) == abstraction
    assert model.set_abstraction.num_joined == 640
    assert number(model.keypoint_head) == layers(640, 256, 256) + 256 + 1
    refiner = 2 * layers(3 + 128, 64, 64) + layers(128 * 216, 256, 256)
    refiner += 2 * layers(256, 256, 256) + (256 + 1) + 7 * (256 + 1)
    assert number(model.refiner) == refiner
    head = 512 * (18 + 42 + 12) + 18 + 42 + 12
    assert number(model.dense_head) == head
    assert number(model) == 711_872 + 4_576_768 + head + abstraction + number(model.keypoint_head) + refiner
    assert number(model) == 13_115_697


def test_parameters_of_point_rcnn_layer_by_layer() -> None:
    with torch.device("meta"):
        model = PointRcnnConfig().build()
        minkunet = dataclasses.replace(PointRcnnConfig(), backbone=Res16UNetConfig(in_channels=4)).build()
    for branch, out in ((model.point_class, 3), (model.point_box, 8)):
        assert number(branch) == layers(128, 256, 256) + out * (256 + 1)
    refiner = 128 * (5 + 1) + 128 * (128 + 1) + 128 * (256 + 1)
    refiner += layers(131, 128, 128, 128) + layers(131, 128, 128, 256) + layers(259, 256, 256, 512)
    refiner += 2 * layers(512, 256, 256) + 8 * (256 + 1)
    assert number(model.refiner) == refiner
    assert number(model) == 4_038_819
    assert number(minkunet.refiner) == refiner - 128 * 32, "features of 96 channels"


def test_defaults_are_the_cards() -> None:
    pv, point = PvRcnnConfig(), PointRcnnConfig()
    assert (pv.num_keypoints, point.num_points, point.far_m) == (2048, 16384, 40)
    assert point.sizes_m() == ((3.9, 1.6, 1.56), (0.8, 0.6, 1.73), (1.76, 0.6, 1.73))
    for config, test_iou, before, scores, dropout in (
        (pv, 0.7, 1024, ("iou", 0.25, 0.75), 0.3),
        (point, 0.85, 9000, ("class", 0.45, 0.6), 0.0),
    ):
        refinement = config.refinement
        assert dataclasses.astuple(refinement.train_proposals) == (0.0, 0.8, 9000, 512)
        assert dataclasses.astuple(refinement.test_proposals) == (0.0, test_iou, before, 100)
        assert dataclasses.astuple(refinement.targets) == (128, 0.5, 0.55, 0.1, 0.8)
        assert dataclasses.astuple(refinement.scores) == scores
        assert dataclasses.astuple(refinement.detections) == (0.1, 0.1, 4096, 500)
        assert refinement.dropout == dropout


def test_which_points_are_kept() -> None:
    far = torch.tensor([False] * 6 + [True] * 4)
    assert choose_points(far, 10, None).tolist() == list(range(10))
    for wanted in (9, 5, 4, 3, 1):
        rows = choose_points(far, wanted, torch.Generator().manual_seed(0))
        assert len(rows) == wanted == len(rows.unique())
        assert int(far[rows].sum()) == 4 or wanted <= 4
    drawn = torch.cat([choose_points(far, 6, None) for _ in range(100)])
    assert set(drawn.tolist()) == set(range(10)), "near points are drawn anew"
    assert len(choose_points(far[:0], 5, None)) == 0


def test_point_rcnn_looks_at_so_many_points_of_each_sample() -> None:
    model, batch = build("point_rcnn"), street_batch()
    counts = torch.bincount(batch.voxel_coords[:, 0])
    model.config = dataclasses.replace(model.config, num_points=int(counts.min()) - 50)
    first = model._first_stage(batch)
    assert torch.bincount(first.sample).tolist() == [model.config.num_points] * 2
    again = model.eval()._first_stage(batch)
    torch.testing.assert_close(model._first_stage(batch).points, again.points)
    assert not torch.equal(first.points, again.points)


def test_keypoints_are_far_from_each_other_inside_the_grid_and_weighed() -> None:
    model, batch = build("pv_rcnn").eval(), street_batch()
    outside = dataclasses.replace(batch, points=batch.points + torch.tensor([20.0, 0.0, 0.0]))
    low, high = (torch.tensor(edge) for edge in model.backbone.limits_m)
    with torch.no_grad():
        first, moved = model._first_stage(batch), model._first_stage(outside)
    assert first.keypoints.counts.tolist() == [model.config.num_keypoints] * 2
    for keypoints in (first.keypoints, moved.keypoints):
        assert ((keypoints.points >= low) & (keypoints.points < high)).all()
    # A keypoint of a closed head has no say.
    last = model.keypoint_head.last
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, -100.0)
    with torch.no_grad():
        assert not model._first_stage(batch).keypoints.features.abs().max() > 1e-6


def test_fewer_points_than_keypoints_are_all_of_them() -> None:
    model, batch = build("pv_rcnn"), street_batch(((0, 0),))
    model.config = dataclasses.replace(model.config, num_keypoints=100_000)
    first = model._first_stage(batch)
    assert first.keypoints.counts.tolist() == torch.bincount(batch.point_sample).tolist()


def test_a_keypoints_own_features_of_a_point_are_what_comes_after_its_place() -> None:
    assert [point_features(VoxelNetConfig(in_channels=c)) for c in (1, 4, 5)] == [1, 1, 2]


def test_pv_rcnns_grid_sees_only_the_keypoints_of_its_own_sample() -> None:
    model = build("pv_rcnn").eval()
    generator = torch.Generator().manual_seed(0)
    places, features = torch.rand(40, 3, generator=generator) * 4, torch.rand(40, 48, generator=generator)
    rois = model._proposals(model._first_stage(street_batch()).outputs)
    rois = dataclasses.replace(rois, boxes=rois.boxes * 0 + torch.tensor([2.0, 2, 2, 3, 2, 2, 0.5]))
    with torch.no_grad():
        both = model.refiner(PointSet(places, features, torch.tensor([20, 20])), rois)
        other = model.refiner(
            PointSet(places, torch.cat([features[:20], 2 * features[20:]]), torch.tensor([20, 20])), rois
        )
    same = both[0] == other[0]
    assert same[rois.sample == 0].all()
    assert not same[rois.sample == 1].any()


@every_detector
def test_draws_are_torchs_so_that_a_run_goes_on_as_it_would_have(name: str) -> None:
    model, batch = build(name), street_batch(((0, 0),))
    model.config = dataclasses.replace(model.config, **({"num_points": 500} if "point" in name else {}))
    state = torch.get_rng_state()
    first = model(batch).total.detach()
    later = model(batch).total.detach()
    torch.set_rng_state(state)
    assert torch.equal(model(batch).total.detach(), first)
    assert not torch.equal(later, first)
    model.eval()
    state = torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(model(batch).total, model(batch).total)
        model.detect(batch)
    assert torch.equal(torch.get_rng_state(), state), "looking at a run changes nothing of it"


@pytest.mark.parametrize("name", ["pv_rcnn", "point_rcnn"])
def test_boxes_that_no_proposal_meets_and_proposals_without_points(name: str) -> None:
    """Second stages learn where a true box is one of the proposals, and are defined where none of them is near."""
    model, batch = build(name), street_batch(((0, 0),))
    far = dataclasses.replace(batch.boxes, boxes=batch.boxes.boxes + torch.tensor([0.0, 0, 500, 0, 0, 0, 0]))
    terms = model(dataclasses.replace(batch, boxes=far))
    assert terms.parts["roi_box"] == terms.parts["roi_corner"] == terms.watch["roi_iou"] == 0
    assert terms.parts["roi_score"] > 0
    model.zero_grad()
    terms.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model(without_boxes(batch)).total.isfinite()


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone: got PillarsConfig.*expected a voxelnet with voxel_size_m"):
        PvRcnnConfig(backbone=PillarsConfig())
    with pytest.raises(ValueError, match="expected a voxelnet with voxel_size_m"):
        PvRcnnConfig(backbone=VoxelNetConfig())
    with pytest.raises(RangeError, match=r"mean_sizes_m: got .*, expected 3 entries, one for each class"):
        PointRcnnConfig(mean_sizes_m=((1.0, 1.0, 1.0),))
    with pytest.raises(RangeError, match=r"mean_sizes_m: got .*, expected lengths above 0"):
        PointRcnnConfig(mean_sizes_m=((1.0, 1.0, 0.0),) * 3)
    with pytest.raises(RangeError, match="num_points: got 0"):
        PointRcnnConfig(num_points=0)
    with pytest.raises(ValueError, match="no anchors for the class 'tram'"):
        PointRcnnConfig(classes=("car", "tram"))
    with pytest.raises(ValueError, match="needs labelled boxes"):
        build("point_rcnn")(dataclasses.replace(street_batch(), boxes=None))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("pv_rcnn", 70), ("point_rcnn", 140)])
def test_two_sweeps_can_be_learnt_by_heart(name: str, steps: int) -> None:
    """Nearly all objects with ten points and more."""
    batch = street_batch(((0, 0), (1, 3)), min_points=10)
    assert batch.boxes is not None
    model = build(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1.0, 2 * (steps - step) / steps)
        optimizer.zero_grad()
        model(batch).total.backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval().detect(batch)
    assert found_share(found, batch.boxes, min_score=0.1) >= 0.85
    corrected = [p for n, p in model.named_parameters() if n.startswith("refiner.branches.box.")]
    assert corrected
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in corrected)
