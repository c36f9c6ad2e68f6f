"""The anchor head: places and order of its anchors, sizes of the published networks, losses and boxes by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from benchmarks.anchors import fit
from configs.detection import FinetuneConfig
from configs.runs import read_run
from data.sample import BatchBoxes
from models.detection.anchor_head import AnchorConfig, AnchorHead, AnchorHeadConfig, AnchorOutputs
from models.detection.box_coding import encode, heading_bin
from models.detection.second import PointPillarsConfig, SecondConfig
from models.detection.suppression import SuppressionConfig
from models.lidar.base import BirdEyeGrid
from models.methods.base import LossTerms

ONE = AnchorConfig(size_m=(4.0, 2.0, 1.5), bottom_m=-1.75, matched_iou=0.6, unmatched_iou=0.45)
SMALL = AnchorConfig(size_m=(1.0, 1.0, 2.0), bottom_m=-2.0, matched_iou=0.5, unmatched_iou=0.35)


def make_head(kinds: tuple[AnchorConfig, ...] = (ONE,), grid: BirdEyeGrid | None = None) -> AnchorHead:
    torch.manual_seed(0)
    names = tuple(f"class_{number}" for number in range(len(kinds)))
    grid = grid or BirdEyeGrid(low_m=(0.0, -8.0), cell_m=(8.0, 8.0), size=(1, 1))
    return AnchorHead(AnchorHeadConfig(anchors=kinds), names, 5, grid)


def truth(boxes: list[list[float]], classes: list[int], sample: list[int]) -> BatchBoxes:
    return BatchBoxes(
        boxes=torch.tensor(boxes).view(-1, 7),
        velocities_mps=torch.zeros(len(boxes), 2),
        classes=torch.tensor(classes, dtype=torch.long),
        sample=torch.tensor(sample, dtype=torch.long),
    )


def logit(score: float) -> float:
    return math.log(score / (1 - score))


# ---- structure


def test_published_sizes() -> None:
    """Layer by layer from the published configurations: 5.33 M and 4.83 M parameters.

    Convolutions without bias have a BatchNorm of two numbers a channel; the head has biases.
    """

    def conv(k: int, inner: int, out: int) -> int:
        return k * inner * out + 2 * out

    encoder = conv(27, 4, 16) + conv(27, 16, 16)
    for before, width in ((16, 32), (32, 64), (64, 64)):
        encoder += conv(27, before, width) + 2 * conv(27, width, width)
    encoder += conv(3, 64, 128)
    bev = conv(9, 256, 128) + 5 * conv(9, 128, 128) + conv(9, 128, 256) + 5 * conv(9, 256, 256)
    bev += conv(1, 128, 256) + conv(4, 256, 256)
    head = (512 + 1) * 6 * (3 + 7 + 2)
    with torch.device("meta"):
        second, pillars = SecondConfig().build(), PointPillarsConfig().build()
    count = sum(p.numel() for p in second.parameters())
    assert count == encoder + bev + head
    assert round(count / 1e6, 2) == 5.33

    points = conv(1, 9, 64)
    bev = conv(9, 64, 64) + 3 * conv(9, 64, 64) + conv(9, 64, 128) + 5 * conv(9, 128, 128)
    bev += conv(9, 128, 256) + 5 * conv(9, 256, 256) + conv(1, 64, 128) + conv(4, 128, 128) + conv(16, 256, 128)
    count = sum(p.numel() for p in pillars.parameters())
    assert count == points + bev + (384 + 1) * 6 * (3 + 7 + 2)
    assert round(count / 1e6, 2) == 4.83


def test_kitti_has_the_published_anchors() -> None:
    """176 x 200 places of SECOND, 216 x 248 of PointPillars, six anchors at each, the outermost on the rim."""
    for config, size, low, high in (
        (SecondConfig(), (176, 200), (0, -40), (70.4, 40)),
        (PointPillarsConfig(), (216, 248), (0, -39.68), (69.12, 39.68)),
    ):
        with torch.device("meta"):
            model = config.build()
        anchors = model.dense_head.anchors(torch.device("cpu"))
        assert model.grid.size == size
        assert len(anchors) == size[0] * size[1] * 6
        torch.testing.assert_close(anchors[:, :2].amin(0), torch.tensor(low).float())
        torch.testing.assert_close(anchors[:, :2].amax(0), torch.tensor(high).float())
        # Along x: the next place comes after six anchors, and a little more than a cell away.
        assert float(anchors[6, 0]) == pytest.approx(high[0] / (size[0] - 1))
        car, across, walker = anchors[0], anchors[1], anchors[2]
        torch.testing.assert_close(car[2:], torch.tensor([-1.78 + 0.78, 3.9, 1.6, 1.56, 0.0]))
        torch.testing.assert_close(across[2:], torch.tensor([-1.78 + 0.78, 3.9, 1.6, 1.56, 1.57]))
        torch.testing.assert_close(walker[2:], torch.tensor([-0.6 + 0.865, 0.8, 0.6, 1.73, 0.0]))


def test_initial_weights_say_nothing_is_there() -> None:
    head = make_head((ONE, SMALL))
    out = head(torch.zeros(2, 5, 1, 1))
    torch.testing.assert_close(out.logits.sigmoid(), torch.full((2, 4, 2), 0.01))
    assert float(head.conv_box.weight.detach().std()) == pytest.approx(0.001, rel=0.3)


def test_outputs_are_in_the_order_of_the_anchors() -> None:
    """Each anchor's outputs come from its own cell and its own channels."""
    grid = BirdEyeGrid(low_m=(0.0, 0.0), cell_m=(1.0, 1.0), size=(3, 2))
    head = make_head((ONE, SMALL), grid)
    bev = torch.zeros(1, 5, 2, 3)
    bev[0, 0] = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    with torch.no_grad():
        for conv in (head.conv_cls, head.conv_box, head.conv_dir_cls):
            conv.weight.zero_()
            conv.weight[:, 0] = 100.0
            conv.bias.copy_(torch.arange(len(conv.bias)))
        out = head(bev)
    cell = torch.arange(6.0).repeat_interleave(4) * 100
    for values in (out.logits, out.codes, out.directions):
        own = torch.arange(4.0).repeat(6)[:, None] * values.shape[2] + torch.arange(values.shape[2])
        torch.testing.assert_close(values[0], cell[:, None] + own)
    anchors = head.anchors(torch.device("cpu"))
    torch.testing.assert_close(anchors[:, 0], (torch.arange(6) % 3).repeat_interleave(4) * 1.5)
    torch.testing.assert_close(anchors[:, 1], (torch.arange(6) // 3).repeat_interleave(4) * 2.0)


# ---- losses


def outputs(logits: list[list[list[float]]], codes: torch.Tensor, directions: torch.Tensor) -> AnchorOutputs:
    return AnchorOutputs(logits=torch.tensor(logits), codes=codes, directions=directions)


def test_losses_by_hand() -> None:
    """Two anchors at (0, -8), lengthways and across, and a box on the first one, turned by 0.2."""
    head = make_head()
    box = [0.0, -8.0, -1.0, 4.0, 2.0, 1.5, 0.2]
    codes = torch.zeros(1, 2, 7)
    codes[0, 0] = torch.tensor([0.05, -0.5, 0.0, 0.0, 0.0, 0.0, 0.5])
    directions = torch.tensor([[[1.0, 2.0], [9.0, 9.0]]])
    out = outputs([[[logit(0.8)], [logit(0.1)]]], codes, directions)
    # Overlap of the second anchor with the box: 4 of 12 m^2, background.
    terms = head.loss(out, truth([box], [0], [0]))
    focal = -0.25 * 0.2**2 * math.log(0.8) - 0.75 * 0.1**2 * math.log(0.9)
    beta = 1 / 9
    # 0.05 lies on the parabola, 0.5 and sin(0.5 - 0.2) = 0.2955 on the line.
    smooth = 0.5 * 0.05**2 / beta + (0.5 - beta / 2) + (math.sin(0.3) - beta / 2)
    half = math.log(1 + math.exp(1.0 - 2.0))  # 0.2 lies in the second bin
    assert float(terms.parts["class"]) == pytest.approx(focal, rel=1e-4)
    assert float(terms.parts["box"]) == pytest.approx(2 * smooth, rel=1e-4)
    assert float(terms.parts["direction"]) == pytest.approx(0.2 * half, rel=1e-4)
    assert float(terms.total) == pytest.approx(focal + 2 * smooth + 0.2 * half, rel=1e-4)
    assert float(terms.watch["positives"]) == 1


def test_each_sample_is_divided_by_its_own_anchors() -> None:
    """A sample with two boxes' anchors, one with one, one without: the mean of what each gives alone."""
    grid = BirdEyeGrid(low_m=(0.0, 0.0), cell_m=(8.0, 8.0), size=(3, 1))
    head = make_head((ONE, SMALL), grid)
    g = torch.Generator().manual_seed(0)
    shapes = ((3, 12, 2), (3, 12, 7), (3, 12, 2))
    logits, codes, directions = (torch.randn(*shape, generator=g) for shape in shapes)
    boxes = [[0.0, 0, -1, 4, 2, 1.5, 0], [12.0, 0, -1, 4, 2, 1.5, 0], [24.0, 0, -1, 1, 1, 2, 3]]

    def loss(samples: list[int], which: BatchBoxes) -> LossTerms:
        out = AnchorOutputs(logits=logits[samples], codes=codes[samples], directions=directions[samples])
        return head.loss(out, which)

    all_of = loss([0, 1, 2], truth(boxes, [0, 0, 1], [0, 0, 1]))
    alone = [
        loss([0], truth(boxes[:2], [0, 0], [0, 0])),
        loss([1], truth(boxes[2:], [1], [0])),
        loss([2], truth([], [], [])),
    ]
    torch.testing.assert_close(all_of.total, torch.stack([terms.total for terms in alone]).mean())
    for name, part in all_of.parts.items():
        torch.testing.assert_close(part, torch.stack([terms.parts[name] for terms in alone]).mean())
    assert float(alone[2].parts["box"]) == float(alone[2].parts["direction"]) == 0


def test_ignored_anchors_do_not_count() -> None:
    """The anchor across overlaps a box turned to it by half: neither the box's nor background."""
    head = make_head((dataclasses.replace(ONE, size_m=(4.0, 3.0, 1.5)),))
    box = truth([[0.0, -8.0, -1.0, 4.0, 3.0, 1.5, 0.0]], [0], [0])  # across: 9 of 15 m^2, 0.6 or more
    assert head.targets(box, 1).tolist() == [[0, 0]]
    head = make_head((dataclasses.replace(ONE, size_m=(4.0, 2.5, 1.5)),))
    box = truth([[0.0, -8.0, -1.0, 4.0, 2.5, 1.5, 0.0]], [0], [0])  # 6.25 of 13.75 m^2: 0.4545
    assert head.targets(box, 1).tolist() == [[0, -2]]
    codes, directions = torch.zeros(1, 2, 7), torch.zeros(1, 2, 2)
    totals = [
        float(head.loss(outputs([[[0.3], [ignored]]], codes, directions), box).total) for ignored in (-9.0, 0.0, 9.0)
    ]
    assert totals[0] == totals[1] == totals[2]


def test_anchors_find_boxes_of_their_own_class_only() -> None:
    head = make_head((ONE, ONE))
    box = [0.0, -8.0, -1.0, 4.0, 2.0, 1.5, 0.0]
    assert head.targets(truth([box, box], [1, 1], [1, 1]), 2).tolist() == [[-1] * 4, [-1, -1, 0, -1]]


# ---- boxes


def test_detections_by_hand() -> None:
    """Anchors of two classes at two places; the first place's boxes overlap, the second has one below the score."""
    grid = BirdEyeGrid(low_m=(0.0, 0.0), cell_m=(20.0, 20.0), size=(2, 1))
    head = make_head((ONE, SMALL), grid)
    logits = torch.full((2, 8, 2), -20.0)
    logits[0, 0] = torch.tensor([logit(0.7), logit(0.6)])
    logits[0, 2] = torch.tensor([logit(0.2), logit(0.9)])  # of the small one at the same place
    logits[0, 4, 0] = logit(0.05)
    logits[1, 5, 0] = logit(0.5)
    codes, directions = torch.zeros(2, 8, 7), torch.zeros(2, 8, 2)
    codes[1, 5] = torch.tensor([0.1, 0, 0, math.log(1.5), 0, 0, 0.1])
    directions[1, 5] = torch.tensor([0.0, 1.0])
    out = AnchorOutputs(logits=logits, codes=codes, directions=directions)
    found = head.detect(out, SuppressionConfig())
    assert found.sample.tolist() == [0, 1]
    assert found.classes.tolist() == [1, 0]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.5]))
    # A heading of 0 in the first bin, which begins at 45 degrees, is half a turn.
    torch.testing.assert_close(found.boxes[0], torch.tensor([0, 0, -1, 1, 1, 2, math.pi]), rtol=1e-5, atol=1e-4)
    # 1.67 turned into the second bin.
    expected = torch.tensor([40 + 0.1 * math.sqrt(20), 0, -1, 6, 2, 1.5, 1.67 + math.pi])
    torch.testing.assert_close(found.boxes[1], expected, rtol=1e-5, atol=1e-4)
    assert found.velocities_mps.isnan().all()


def test_decoding_the_true_codes_gives_the_boxes() -> None:
    grid = BirdEyeGrid(low_m=(0.0, 0.0), cell_m=(4.0, 4.0), size=(5, 5))
    head = make_head((ONE, SMALL), grid)
    anchors = head.anchors(torch.device("cpu"))
    g = torch.Generator().manual_seed(0)
    boxes = torch.rand(len(anchors), 7, generator=g) * 20 - 3
    boxes[:, 3:6] = boxes[:, 3:6].abs() + 0.2
    directions = torch.nn.functional.one_hot(heading_bin(boxes[:, 6]), 2).float()
    out = AnchorOutputs(
        logits=torch.zeros(1, len(anchors), 2), codes=encode(boxes, anchors)[None], directions=directions[None]
    )
    back = head.decode(out)[0]
    torch.testing.assert_close(back[:, :6], boxes[:, :6], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cos(back[:, 6] - boxes[:, 6]), torch.ones(len(boxes)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size_m": (4.0, 0.0, 1.0)}, "size_m: got"),
        ({"bottom_m": math.nan}, "bottom_m: got nan, expected a finite number of metres"),
        ({"matched_iou": 0.3}, "unmatched_iou: got 0.45, expected at most 0.3"),
        ({"matched_iou": 1.3}, "matched_iou: got 1.3"),
    ],
)
def test_refused_anchors(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ONE, **settings)  # type: ignore[arg-type]


def test_refused_settings() -> None:
    config = AnchorHeadConfig()
    object.__setattr__(config, "anchor_set", "nuscenes")  # the type is checked as well where it is made
    with pytest.raises(
        ValueError, match="anchor_set: got 'nuscenes', expected one of kitti, kitti_fusion, waymo, street"
    ):
        config.__post_init__()
    with pytest.raises(ValueError, match="rotations: got"):
        AnchorHeadConfig(rotations=())
    with pytest.raises(ValueError, match="box_weight: got -1"):
        AnchorHeadConfig(box_weight=-1.0)
    with pytest.raises(ValueError, match="max_iou: got 2"):
        SuppressionConfig(max_iou=2.0)
    with pytest.raises(ValueError, match="num_after: got 0"):
        SuppressionConfig(num_after=0)


# ---- do anchors fit the boxes of a set


def test_fit_of_anchors_by_class() -> None:
    """Anchors at x = 0 and 4 (length 4, width 2), lengthways and across; classes without boxes have no row."""
    head = make_head((ONE, SMALL, ONE), BirdEyeGrid(low_m=(0.0, 0.0), cell_m=(2.0, 2.0), size=(2, 1)))
    assert head.anchors(torch.device("cpu"))[:, :2].unique(dim=0).tolist() == [[0.0, 0.0], [4.0, 0.0]]
    at_anchor = [0.0, 0.0, -1.0, 4.0, 2.0, 1.5, 0.0]  # IoU 1
    half_way = [2.0, 0.0, -1.0, 4.0, 2.0, 1.5, 0.0]  # 4 of 12 m^2 with either of those lengthways
    untouched = [2.0, 0.0, -1.0, 1.0, 1.0, 2.0, 0.0]  # from 1.5 to 2.5 m, anchors of the class to 0.5 and from 3.5
    frames = [truth([at_anchor, half_way], [0, 0], [0, 0]), truth([untouched], [1], [0]), truth([], [], [])]
    assert fit(head, ("car", "pedestrian", "tram"), frames) == [
        ["car", "2", "0.50", "0.00", "0.5", "0.67"],
        ["pedestrian", "1", "0.00", "1.00", "0.0", "0.00"],
    ]
    assert fit(head, ("car", "pedestrian", "tram"), frames[2:]) == []


def test_nearly_every_car_of_the_street_world_has_an_anchor_on_the_configs_map() -> None:
    """A car of the anchors' size that stands off the nearest of them along both axes.

    In the middle of four cells of 0.81 m (the outermost stand on the rim) it overlaps each by 0.58, below 0.6; within
    some centimetres of that middle no anchor matches, everywhere else one does.
    """
    config = read_run("second_street", ["run_dir=unused"])
    assert isinstance(config, FinetuneConfig)
    head = config.model.build().get_submodule("dense_head")
    assert isinstance(head, AnchorHead)
    length, width, height = head.kinds[0].size_m
    places = [[x / 10, y / 10, -1.0, length, width, height, 0.0] for x in range(17) for y in range(17)]
    (row,) = fit(head, config.model.classes, [truth(places, [0] * len(places), [0] * len(places))])
    assert float(row[2]) > 0.95
    assert row[3] == "0.00"
