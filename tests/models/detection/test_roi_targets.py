"""Which RoIs are drawn, and what they should become, against slow references."""

from __future__ import annotations

import pytest
import torch

from common.ranges import RangeError
from data.sample import BatchBoxes
from models.detection.roi import Proposals
from models.detection.roi_targets import RoiTargetConfig, ScoreTargetConfig, choose, draw_rois, match
from tests.models.detection.test_roi import random_boxes
from tests.reference import detection_roi as slow

CONFIG = RoiTargetConfig(num_rois=16)


def truth_of(boxes: torch.Tensor, classes: list[int], sample: list[int]) -> BatchBoxes:
    velocities = torch.full((len(boxes), 2), torch.nan)
    return BatchBoxes(
        boxes=boxes, velocities_mps=velocities, classes=torch.tensor(classes).long(), sample=torch.tensor(sample).long()
    )


def proposals_of(boxes: torch.Tensor, classes: list[int], sample: list[int]) -> Proposals:
    scores = torch.linspace(1, 0, len(boxes), dtype=boxes.dtype)
    return Proposals(
        boxes=boxes, scores=scores, classes=torch.tensor(classes).long(), sample=torch.tensor(sample).long()
    )


@pytest.mark.parametrize("seed", range(3))
def test_matching_against_loops(seed: int) -> None:
    """Boxes crowd, so that most overlap several; sample 1 has no true box, sample 2 only some of another class."""
    rois, boxes = random_boxes(60, seed, spread_m=2), random_boxes(14, seed + 50, spread_m=2)
    classes = torch.randint(2, (60,), generator=torch.Generator().manual_seed(seed)).tolist()
    sample, true_sample = [0] * 40 + [1] * 10 + [2] * 10, [0] * 11 + [2] * 3
    true_classes = [0, 1] * 5 + [0] + [2] * 3
    found = match(proposals_of(rois, classes, sample), truth_of(boxes, true_classes, true_sample), 3)
    for number in range(3):
        mine = [row for row, s in enumerate(sample) if s == number]
        true = [row for row, s in enumerate(true_sample) if s == number]
        expected = slow.matched(
            [rois[row].tolist() for row in mine],
            [classes[row] for row in mine],
            [boxes[row].tolist() for row in true],
            [true_classes[row] for row in true],
        )
        for row, (best, iou) in zip(mine, expected, strict=True):
            torch.testing.assert_close(found.ious[row], torch.tensor(iou, dtype=torch.float64), atol=1e-9, rtol=0)
            if best < 0:
                torch.testing.assert_close(found.boxes[row], rois[row])
            elif iou > 0:
                torch.testing.assert_close(found.boxes[row], boxes[true[best]])


@pytest.mark.parametrize(
    ("ious", "what"),
    [
        ([], "no proposals"),
        ([0.0] * 3, "easy alone"),
        ([0.3] * 3, "hard alone"),
        ([0.6] * 3, "foreground alone"),
        ([0.6] * 20 + [0.3] * 2 + [0.0] * 5, "more foreground than its share"),
        ([0.6] + [0.3] * 50 + [0.0] * 50, "little foreground"),
        ([0.55, 0.5499, 0.1, 0.0999], "at the limits"),
        ([0.9] * 4 + [0.0] * 2, "no hard background"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_how_many_are_drawn_of_what_against_the_rule_in_words(ious: list[float], what: str) -> None:
    overlaps = torch.tensor(ious)
    rows = choose(overlaps, CONFIG, torch.Generator().manual_seed(0))
    drawn = overlaps[rows]
    expected = slow.numbers_drawn(ious, num_rois=16, foreground_share=0.5, foreground=0.55, hard=0.1, hard_share=0.8)
    numbers = [int(((low <= drawn) & (drawn < high)).sum()) for low, high in ((0.55, 9), (0.1, 0.55), (-1, 0.1))]
    assert tuple(numbers) == expected, what
    foreground = rows[drawn >= 0.55]
    if len(rows) and what != "foreground alone":
        assert len(foreground.unique()) == len(foreground), "no foreground twice"


def test_draws_follow_torchs_generator_and_each_frame_gives_its_own() -> None:
    rois = torch.cat([random_boxes(40), random_boxes(40, 1)])
    sample = [0] * 40 + [2] * 40
    proposals = proposals_of(rois, [0] * 80, sample)
    truth = truth_of(rois[:6] + 0.05, [0] * 6, [0] * 6)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, targets = draw_rois(proposals, truth, 3, CONFIG)
    assert first.counts(3).tolist() == [16, 0, 16]
    assert (targets.ious[:8] >= 0.55).sum() > 0
    assert not targets.ious[16:].any()
    assert not torch.equal(state, torch.get_rng_state())
    torch.set_rng_state(state)
    again, same = draw_rois(proposals, truth, 3, CONFIG)
    torch.testing.assert_close(again.boxes, first.boxes)
    torch.testing.assert_close(same.boxes, targets.boxes)
    later, _ = draw_rois(proposals, truth, 3, CONFIG)
    assert not torch.equal(later.boxes, first.boxes)
    fixed = [draw_rois(proposals, truth, 3, CONFIG, generator=torch.Generator().manual_seed(0))[0] for _ in range(2)]
    torch.testing.assert_close(fixed[0].boxes, fixed[1].boxes)


def test_what_the_score_should_be() -> None:
    ious = torch.tensor([0.0, 0.25, 0.4, 0.45, 0.5, 0.6, 0.7, 0.75, 1.0])
    score, counted = ScoreTargetConfig().targets(ious)
    torch.testing.assert_close(score, torch.tensor([0, 0, 0.3, 0.4, 0.5, 0.7, 0.9, 1, 1]))
    assert counted.all()
    score, counted = ScoreTargetConfig(kind="class", low_iou=0.45, high_iou=0.6).targets(ious)
    assert counted.tolist() == [True, True, True, True, False, True, True, True, True]
    assert score[counted].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(RangeError, match=r"hard_iou: got 0\.6, expected at most foreground_iou 0\.55"):
        RoiTargetConfig(hard_iou=0.6)
    with pytest.raises(RangeError, match=r"num_rois: got 0"):
        RoiTargetConfig(num_rois=0)
    with pytest.raises(RangeError, match=r"low_iou: got 0\.8, expected below high_iou 0\.75"):
        ScoreTargetConfig(low_iou=0.8)
