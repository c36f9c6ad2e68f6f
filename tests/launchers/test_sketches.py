"""Sketches: marks lie where the tensors say, colours mean what the scale says, odd values are survived."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.sample import Batch
from launchers.drawing.canvas import BACKGROUND, UNLABELLED, class_palette, turbo
from launchers.drawing.scenes import birds_eye_uv
from launchers.drawing.sketches import MAX_LINES, draw
from launchers.drawing.training_pictures import training_pictures
from models.visuals import MatchSketch, PixelSketch, PointSketch, ProjectionSketch, Scale, Sketch
from tests.helpers.toy_batches import toy_batch

CAPTION_PX = 24
IMAGE = torch.full((3, 320, 640), 90, dtype=torch.uint8)
"""As wide as pictures are, so that nothing is enlarged and positions stay."""


def _points(count: int = 50, scale: Scale = "free", **fields: Tensor) -> PointSketch:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(count, 3, generator=generator) * torch.tensor([60.0, 60.0, 3.0]) - torch.tensor([30.0, 30, 1])
    values = fields.pop("values", torch.arange(count).float())
    return PointSketch(points=points, values=values, scale=scale, caption="points", **fields)


def _below_caption(sketch: Sketch) -> np.ndarray:
    return draw(sketch)[CAPTION_PX:]


def test_points_are_seen_from_above_in_the_colours_of_their_values() -> None:
    sketch = _points(4, "share", values=torch.tensor([0.0, 1.0, 0.5, 0.25]))
    view = _below_caption(sketch)
    far = sketch.points[:, :2].abs().amax(dim=1).double()
    range_m = float(np.ceil(np.percentile(far.numpy(), 95)))
    at = birds_eye_uv(sketch.points.double().numpy(), range_m=range_m, size_px=640).round().astype(int)
    for (u, v), colour in zip(at, turbo(sketch.values.double().numpy(), 0.0, 1.0), strict=True):
        if max(u, v) < 640 and min(u, v) >= 0:
            assert (view[v, u] == colour).all()


def test_marked_points_have_a_ring() -> None:
    marked = torch.zeros(50, dtype=torch.bool)
    plain = _below_caption(_points(50, marked=marked))
    marked[7] = True
    ringed = _below_caption(_points(50, marked=marked))
    changed = np.argwhere((plain != ringed).any(axis=2))
    assert 40 < len(changed) < 200
    middle = changed.mean(axis=0)[::-1]
    points = _points(50).points.double().numpy()
    far = float(np.ceil(np.percentile(np.abs(points[:, :2]).max(axis=1), 95)))
    assert middle == pytest.approx(birds_eye_uv(points[7:8], range_m=far, size_px=640)[0], abs=1.0)


def test_a_room_fills_the_picture_as_a_street_does() -> None:
    street = _points(400)
    room = dataclasses.replace(street, points=street.points * 0.1)
    filled = [(_below_caption(s)[:640] != BACKGROUND).any(axis=2).mean() for s in (street, room)]
    assert filled[1] == pytest.approx(filled[0], rel=0.5)


def test_labels_have_stable_colours_and_none_is_grey() -> None:
    values = torch.full((320, 640), -1)
    values[:, 320:] = 3
    view = _below_caption(PixelSketch(image=IMAGE, values=values, scale="labels", caption="labels"))
    assert view.shape == (320, 640, 3)  # labels have no scale below
    for pixel, colour in ((view[100, 100], np.array(UNLABELLED)), (view[100, 500], class_palette(4)[3])):
        assert np.abs(pixel.astype(int) - np.round(0.5 * 81 + 0.5 * colour.astype(float))).max() <= 1


def test_a_pixel_maps_highest_value_is_reddest() -> None:
    values = torch.zeros(320, 640)
    values[40:60, 100:120] = 0.9
    view = _below_caption(PixelSketch(image=IMAGE, values=values, scale="similarity", caption="map"))[:320].astype(int)
    redness = view[..., 0] - view[..., 2]
    row, column = np.unravel_index(redness.argmax(), redness.shape)
    assert 40 <= row < 60
    assert 100 <= column < 120


def test_projected_points_lie_at_their_pixels_and_those_outside_are_counted() -> None:
    uv = torch.tensor([[100.0, 50.0], [-3.0, 10.0], [639.9, 10.0], [torch.nan, 0.0]])
    sketch = ProjectionSketch(image=IMAGE, uv=uv, values=torch.tensor([1.0, 1, 1, 1]), scale="share", caption="")
    view = _below_caption(sketch)[:320]
    red = np.argwhere((view == turbo(np.ones(1), 0.0, 1.0)[0]).all(axis=2))
    assert red.mean(axis=0)[::-1] == pytest.approx((100, 50), abs=0.6)


def test_matches_are_lines_from_the_right_place_to_the_found_one() -> None:
    true, found = torch.tensor([[100.0, 100.0], [300.0, 200.0]]), torch.tensor([[100.0, 100.0], [360.0, 200.0]])
    view = _below_caption(MatchSketch(image=IMAGE, found=found, true=true, caption="matches"))[:320].astype(int)
    colourful = np.argwhere(view.max(axis=2) - view.min(axis=2) > 100)
    right = colourful[colourful[:, 1] > 200]
    assert right[:, 1].min() == pytest.approx(298, abs=1)
    assert right[:, 1].max() == pytest.approx(360, abs=1)
    assert np.abs(right[:, 0] - 200).max() <= 3
    left = colourful[colourful[:, 1] < 200]
    assert len(left) > 4
    assert np.abs(left - 100).max() <= 3


def test_many_matches_are_thinned() -> None:
    true = torch.rand(40 * MAX_LINES, 2) * torch.tensor([640.0, 320.0])
    view = _below_caption(MatchSketch(image=IMAGE, found=true, true=true, caption="matches"))[:320].astype(int)
    assert 0.001 < ((view.max(axis=2) - view.min(axis=2)) > 60).mean() < 0.1


@pytest.mark.parametrize("scale", ["share", "similarity", "labels", "metres", "free"])
@pytest.mark.parametrize("odd", ["nothing", "nan", "the same", "bfloat16"])
def test_odd_values_are_drawn(scale: Scale, odd: str) -> None:
    count = 0 if odd == "nothing" else 6
    values = torch.full((count,), 2.0) if odd == "the same" else torch.arange(count).float()
    values = values / (0.0 if odd == "nan" else 1.0)
    values = values.bfloat16() if odd == "bfloat16" else values
    uv = torch.arange(2 * count).float().view(-1, 2) * (1e12 if odd == "nan" else 10.0)
    sketches: list[Sketch] = [
        _points(count, scale, values=values, marked=torch.ones(count, dtype=torch.bool)),
        ProjectionSketch(image=IMAGE, uv=uv, values=values, scale=scale, caption=""),
        MatchSketch(image=IMAGE, found=uv, true=uv.flip(0), caption=""),
        PixelSketch(image=IMAGE, values=torch.full((320, 640), float("nan")), scale=scale, caption=""),
    ]
    for sketch in sketches:
        view = draw(sketch)
        assert view.dtype == np.uint8
        assert view.shape[1] == 640


class Showing(nn.Module):
    """An objective that has something to show, and notes how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.asked: list[tuple[int, bool, bool]] = []

    def sketches(self, batch: Batch) -> dict[str, Sketch]:
        self.asked.append((batch.num_samples, self.training, torch.is_grad_enabled()))
        return {"ground": PointSketch(points=batch.points, values=batch.points[:, 2], scale="free", caption="height")}


def test_an_objectives_sketches_are_among_the_training_pictures() -> None:
    objective = Showing().train()
    pictures = training_pictures(objective, toy_batch([0, 1]), 5)
    assert objective.asked == [(1, False, False)]
    assert objective.training
    assert {"sketch_ground", "lidar_depth", "superpixels"} == set(pictures)
