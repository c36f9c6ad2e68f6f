"""The centre head: sizes of the published networks, groups of classes, losses and boxes by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from data.sample import BatchBoxes
from models.detection.centerpoint import CenterPointConfig
from models.detection.centre_head import CentreHead, CentreHeadConfig, CentreOutputs
from models.detection.suppression import SuppressionConfig
from models.lidar.base import BirdEyeGrid
from models.lidar.pillars import PillarsConfig

CLASSES = ("car", "truck", "pedestrian")
GRID = BirdEyeGrid(low_m=(-4.0, -2.0), cell_m=(1.0, 2.0), size=(8, 4))
NO_NMS = SuppressionConfig(min_score=0.1, max_iou=1.0)
NUSCENES = (
    ("car",),
    ("truck", "construction_vehicle"),
    ("bus", "trailer"),
    ("barrier",),
    ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
)


def make_head(**settings: object) -> CentreHead:
    torch.manual_seed(0)
    return CentreHead(CentreHeadConfig(channels=4, **settings), CLASSES, 3, GRID)  # type: ignore[arg-type]


def truth(boxes: list[list[float]], classes: list[int], sample: list[int], velocity: list[float] | None = None):
    return BatchBoxes(
        boxes=torch.tensor(boxes).view(-1, 7),
        velocities_mps=torch.tensor(velocity or [math.nan] * 2).expand(len(boxes), 2),
        classes=torch.tensor(classes, dtype=torch.long),
        sample=torch.tensor(sample, dtype=torch.long),
    )


def outputs(num_samples: int, classes: int, codes: int, *, score: float) -> CentreOutputs:
    heat = torch.full((num_samples, classes, 4, 8), math.log(score / (1 - score)))
    return CentreOutputs(heat=heat, codes=torch.zeros(num_samples, codes, 4, 8))


# ---- structure


def _conv(k: int, inner: int, out: int) -> int:
    return k * inner * out + 2 * out


def _head(channels: int, groups: list[int], codes: dict[str, int]) -> int:
    """Shared convolution and branches; those before a BatchNorm have a bias, too."""
    count = _conv(9, channels, 64) + 64
    for classes in groups:
        for size in (*codes.values(), classes):
            count += _conv(9, 64, 64) + 64 + 9 * 64 * size + size
    return count


def test_published_sizes() -> None:
    """Layer by layer from the published configurations: voxels and pillars on Waymo, pillars on nuScenes."""
    codes = {"center": 2, "center_z": 1, "dim": 3, "rot": 2}
    with torch.device("meta"):
        voxel = CenterPointConfig().build()
        pillar = CenterPointConfig(
            backbone=PillarsConfig(
                preset="centerpoint_waymo",
                in_channels=5,
                pillar_size_m=0.32,
                range_min_m=(-74.88, -74.88, -2.0),
                range_max_m=(74.88, 74.88, 4.0),
            )
        ).build()
        nuscenes = CenterPointConfig(
            classes=tuple(name for group in NUSCENES for name in group),
            backbone=PillarsConfig(
                preset="centerpoint",
                in_channels=5,
                pillar_size_m=0.2,
                range_min_m=(-51.2, -51.2, -5.0),
                range_max_m=(51.2, 51.2, 3.0),
            ),
            head=CentreHeadConfig(groups=NUSCENES, velocity=True, box_weight=0.25, heading_weight=0.2),
        ).build()
    encoder = _conv(27, 4, 16) + 4 * _conv(27, 16, 16)
    for before, width in ((16, 32), (32, 64), (64, 128)):
        encoder += _conv(27, before, width) + 4 * _conv(27, width, width)
    encoder += _conv(3, 128, 128)
    bev = _conv(9, 256, 128) + 5 * _conv(9, 128, 128) + _conv(9, 128, 256) + 5 * _conv(9, 256, 256)
    bev += _conv(1, 128, 256) + _conv(4, 256, 256)
    assert sum(p.numel() for p in voxel.parameters()) == encoder + bev + _head(512, [3], codes)
    assert voxel.grid.size == (188, 188)

    points = _conv(1, 10, 32) + _conv(1, 64, 64)
    blocks = 4 * _conv(9, 64, 64) + _conv(9, 64, 128) + 5 * _conv(9, 128, 128)
    blocks += _conv(9, 128, 256) + 5 * _conv(9, 256, 256)
    ups = _conv(1, 64, 128) + _conv(4, 128, 128) + _conv(16, 256, 128)
    assert sum(p.numel() for p in pillar.parameters()) == points + blocks + ups + _head(384, [3], codes)
    assert pillar.grid.size == (468, 468)

    ups = _conv(4, 64, 128) + _conv(1, 128, 128) + _conv(4, 256, 128)
    expected = points + blocks + ups + _head(384, [len(group) for group in NUSCENES], {**codes, "vel": 2})
    assert sum(p.numel() for p in nuscenes.parameters()) == expected
    assert nuscenes.grid.size == (128, 128)
    assert nuscenes.grid.cell_m == (0.8, 0.8)


def test_branches_have_the_released_names_and_initial_scores() -> None:
    head = make_head(groups=(("truck", "car"), ("pedestrian",)), velocity=True)
    assert head.groups == ((1, 0), (2,))
    names = {name for name, _ in head.named_parameters()}
    for branch in ("center", "center_z", "dim", "rot", "vel", "hm"):
        assert f"heads_list.1.{branch}.0.0.weight" in names
        assert f"heads_list.1.{branch}.1.bias" in names
    assert {"shared_conv.0.weight", "shared_conv.1.weight"} <= names
    out = head(torch.zeros(2, 3, 4, 8))
    assert [o.heat.shape for o in out] == [(2, 2, 4, 8), (2, 1, 4, 8)]
    assert all(o.codes.shape == (2, 10, 4, 8) for o in out)
    assert float(torch.cat([o.heat.flatten() for o in out]).sigmoid().median().detach()) == pytest.approx(0.1, abs=0.03)


# ---- losses

BOX = [0.25, 1.5, 0.7, 2.0, 4.0, 1.0, 0.3]
"""In cell (4, 1), a quarter of a cell along x and three quarters along y from its edges."""


def test_losses_by_hand() -> None:
    head = make_head(min_radius=0, min_overlap=0.99)
    # Overlap of 0.99: the heat is the cell itself.
    out = outputs(2, 3, 8, score=0.2)
    out.heat[1, 2, 1, 4] = math.log(0.7 / 0.3)
    terms = head.loss([out], truth([BOX], [2], [1]))
    background = -(2 * 3 * 32 - 1) * 0.2**2 * math.log(0.8)
    heat = background - 0.3**2 * math.log(0.7)
    codes = [0.25, 0.75, 0.7, math.log(2), math.log(4), 0.0, math.cos(0.3), math.sin(0.3)]
    assert float(terms.parts["heat"]) == pytest.approx(heat, rel=1e-4)
    assert float(terms.parts["box"]) == pytest.approx(2 * sum(map(abs, codes)), rel=1e-4)
    assert float(terms.total) == pytest.approx(heat + 2 * sum(map(abs, codes)), rel=1e-4)


def test_losses_are_divided_by_the_objects() -> None:
    """Twice the same box in one cell: one centre, two objects."""
    head = make_head(min_radius=0, min_overlap=0.99)
    out = outputs(1, 3, 8, score=0.2)
    one, two = head.loss([out], truth([BOX], [0], [0])), head.loss([out], truth([BOX] * 2, [0, 0], [0, 0]))
    torch.testing.assert_close(one.total, two.total)
    other = [2.25, *BOX[1:]]
    both = head.loss([out], truth([BOX, other], [0, 0], [0, 0]))
    torch.testing.assert_close(both.parts["box"], one.parts["box"])
    centre, background = 0.8**2 * math.log(0.2), 0.2**2 * math.log(0.8)
    assert float(both.parts["heat"]) == pytest.approx(-(2 * centre + 94 * background) / 2, rel=1e-4)


def test_weights_of_headings_and_unknown_velocities() -> None:
    head = make_head(velocity=True, heading_weight=0.2, velocity_weight=0.5)
    out = outputs(1, 3, 10, score=0.2)
    base = 0.25 + 0.75 + 0.7 + math.log(2) + math.log(4) + 0.2 * (math.cos(0.3) + math.sin(0.3))
    unknown = head.loss([out], truth([BOX], [0], [0]))
    known = head.loss([out], truth([BOX], [0], [0], [3.0, -1.0]))
    assert float(unknown.parts["box"]) == pytest.approx(2 * base, rel=1e-4)
    assert float(known.parts["box"]) == pytest.approx(2 * (base + 0.5 * 4), rel=1e-4)


def test_unknown_velocities_give_no_gradient_to_theirs() -> None:
    head = make_head(velocity=True)
    out = head(torch.randn(1, 3, 4, 8))
    head.loss(out, truth([BOX], [0], [0])).total.backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert ".vel." not in name or not parameter.grad.any()


def test_groups_learn_their_own_classes() -> None:
    """The loss of two groups is the sum of what heads of one group would give for their classes."""
    head = make_head(groups=(("pedestrian",), ("car", "truck")))
    g = torch.Generator().manual_seed(0)
    outs = [
        CentreOutputs(heat=torch.randn(2, n, 4, 8, generator=g), codes=torch.randn(2, 8, 4, 8, generator=g))
        for n in (1, 2)
    ]
    boxes = [BOX, [-2.0, 3.0, 0, 1, 1, 1, 2], [3.3, 0.1, 0, 1, 1, 1, -2]]
    together = head.loss(outs, truth(boxes, [2, 1, 0], [0, 1, 1]))
    first = CentreHead(CentreHeadConfig(channels=4), ("pedestrian",), 3, GRID)
    second = CentreHead(CentreHeadConfig(channels=4), ("car", "truck"), 3, GRID)
    alone = [
        first.loss(outs[:1], truth(boxes[:1], [0], [0])).total,
        second.loss(outs[1:], truth(boxes[1:], [1, 0], [1, 1])).total,
    ]
    torch.testing.assert_close(together.total, alone[0] + alone[1])


# ---- boxes


def test_detections_by_hand() -> None:
    head = make_head(velocity=True, num_candidates=3)
    out = outputs(2, 3, 10, score=0.01)
    for (sample, label, y, x), score in {(0, 1, 1, 4): 0.8, (0, 0, 3, 7): 0.6, (1, 2, 0, 0): 0.05}.items():
        out.heat[sample, label, y, x] = math.log(score / (1 - score))
    out.codes[0, :, 1, 4] = torch.tensor(
        [0.25, 0.75, 0.7, math.log(2), math.log(4), 0.0, 3 * math.cos(-2.5), 3 * math.sin(-2.5), 5.0, -6.0]
    )
    found = head.detect([out], NO_NMS)
    assert found.sample.tolist() == [0, 0]
    assert found.classes.tolist() == [1, 0]
    torch.testing.assert_close(found.scores, torch.tensor([0.8, 0.6]))
    torch.testing.assert_close(found.boxes[0], torch.tensor([0.25, 1.5, 0.7, 2.0, 4.0, 1.0, -2.5]))
    torch.testing.assert_close(found.boxes[1], torch.tensor([3.0, 4.0, 0.0, 1.0, 1.0, 1.0, 0.0]))
    assert found.velocities_mps[0].tolist() == [5.0, -6.0]


def test_true_codes_give_the_boxes_back() -> None:
    """What the loss wants at a cell, decoded there."""
    head = make_head(velocity=True)
    out = outputs(1, 3, 10, score=0.01)
    boxes = truth([BOX, [-3.1, 4.8, -0.4, 1.0, 0.5, 2.0, -3.0]], [0, 2], [0, 0], [1.5, -2.0])
    wanted: list[torch.Tensor] = []
    for label, box in zip((0, 2), boxes.boxes, strict=True):
        x, y = int((box[0] + 4) / 1.0), int((box[1] + 2) / 2.0)
        out.heat[0, label, y, x] = 2.0
        offset = torch.stack([(box[0] + 4) - x, (box[1] + 2) / 2 - y])
        code = torch.cat([offset, box[2:3], box[3:6].log(), box[6:].cos(), box[6:].sin(), torch.tensor([1.5, -2.0])])
        out.codes[0, :, y, x] = code
        wanted.append(code)
    assert float(head.loss([out], boxes).parts["box"]) == pytest.approx(0, abs=1e-5)
    found = head.detect([out], NO_NMS)
    order = found.classes[:2].argsort()
    torch.testing.assert_close(found.boxes[order], boxes.boxes, rtol=1e-5, atol=1e-5)


def test_groups_are_suppressed_apart_and_far_centres_dropped() -> None:
    head = make_head(groups=(("car", "truck"), ("pedestrian",)), centre_max_m=(3.0, 80.0, 10.0))
    outs = [outputs(1, n, 8, score=0.01) for n in (2, 1)]
    for out, labels in zip(outs, ((0, 1), (0,)), strict=True):
        for label in labels:
            out.heat[0, label, 1, 4] = 1.0 + label  # the same box in each map
        out.heat[0, 0, 1, 7] = 3.0
        out.codes[0, 0, 1, 7] = 0.5  # at x = 3.5 m
    found = head.detect(outs, SuppressionConfig(min_score=0.1, max_iou=0.5))
    assert found.classes.tolist() == [1, 2]
    assert head.detect(outs, SuppressionConfig(min_score=0.9, max_iou=0.5)).scores.shape == (0,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels: got 0"),
        ({"min_overlap": 0.0}, "min_overlap: got 0.0, expected above 0"),
        ({"centre_min_m": (0.0, 0.0, 99.0)}, "centre_min_m: got .*, expected below centre_max_m"),
        ({"velocity_weight": -0.5}, "velocity_weight: got -0.5"),
    ],
)
def test_refused_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CentreHeadConfig(), **settings)  # type: ignore[arg-type]
