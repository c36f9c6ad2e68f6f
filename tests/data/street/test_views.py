"""What the street world's first camera says of boxes: by hand on a made-up view, and on rendered pixels."""

from __future__ import annotations

import numpy as np
import pytest

from data.geometry import rigid
from data.sample import CameraView, Sample
from data.street.classes import CLASS_NAMES
from data.street.views import SeenBoxes, seen_boxes
from tests.helpers.street_logs import street_log

FOCAL, WIDTH, HEIGHT = 100.0, 201, 101
AXES = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])


def view_of(depth_m: np.ndarray) -> CameraView:
    """A camera at the world's origin that looks along x."""
    K = np.array([[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1]])
    return CameraView(
        name="front",
        image_size=(HEIGHT, WIDTH),
        K=K,
        T_cam_ego=rigid(AXES, np.zeros(3)),
        T_world_ego=np.eye(4),
        timestamp_us=0,
        depth_m=depth_m.astype(np.float32),
    )


def seen(box: list[float], depth_m: np.ndarray | None = None) -> SeenBoxes:
    view = view_of(np.full((HEIGHT, WIDTH), 50.0) if depth_m is None else depth_m)
    return seen_boxes(np.array([box], dtype=np.float64), view)


def test_a_box_ahead() -> None:
    """A cube of 2 m whose front is 10 m ahead, in the middle: +-1 m at 10 m are +-10 px."""
    box = seen([11, 0, 0, 2, 2, 2, 0])
    np.testing.assert_allclose(box.image_boxes_px, [[90, 40, 110, 60]], atol=1e-9)
    np.testing.assert_allclose(box.truncations, [0], atol=1e-12)
    assert box.occlusions.tolist() == [0]
    np.testing.assert_allclose(box.alphas, [-np.pi / 2])  # it heads away


def test_a_box_that_the_border_halves() -> None:
    """Its nearer face spans 20 px about column 200, the last one; the farther face lies inside of these."""
    box = seen([11, -10, 0, 2, 2, 2, 0])
    left = 100 + FOCAL * 9 / 12  # the farther face reaches farthest in
    right = 100 + FOCAL * 11 / 10
    np.testing.assert_allclose(box.image_boxes_px, [[left, 40, 200, 60]], atol=1e-9)
    np.testing.assert_allclose(box.truncations, [(right - 200) / (right - left)], atol=1e-9)


@pytest.mark.parametrize("center", [[-5, 0, 0], [20, 60, 0], [20, 0, 40]], ids=["behind", "left", "above"])
def test_a_box_out_of_sight(center: list[float]) -> None:
    gone = seen([*center, 2, 2, 2, 0])
    assert np.isnan(gone.image_boxes_px).all()
    assert np.isnan(gone.truncations).all()
    assert np.isnan(gone.alphas).all()
    assert gone.occlusions.tolist() == [-1]


@pytest.mark.parametrize(("rows", "level"), [(0, 0), (2, 0), (3, 1), (10, 1), (11, 2), (21, 2)])
def test_levels_of_occlusion(rows: int, level: int) -> None:
    """A bar hides so many of the 21 rows of pixels that the cube has."""
    depth = np.full((HEIGHT, WIDTH), 50.0)
    depth[40 : 40 + rows] = 5.0
    assert seen([11, 0, 0, 2, 2, 2, 0], depth).occlusions.tolist() == [level]
    depth[40 : 40 + rows] = 9.9  # its own front, as the depth is rounded
    assert seen([11, 0, 0, 2, 2, 2, 0], depth).occlusions.tolist() == [0]


def test_sky_hides_nothing() -> None:
    assert seen([11, 0, 0, 2, 2, 2, 0.4], np.zeros((HEIGHT, WIDTH))).occlusions.tolist() == [0]


def test_no_boxes() -> None:
    none = seen_boxes(np.empty((0, 7)), view_of(np.ones((HEIGHT, WIDTH))))
    assert none.image_boxes_px.shape == (0, 4)
    assert none.occlusions.shape == none.truncations.shape == none.alphas.shape == (0,)


@pytest.fixture(scope="module")
def street() -> tuple[Sample, ...]:
    return street_log(("front",), frames=2, log=1, image_size=(120, 240))


def test_rendered_objects_are_in_their_2d_boxes(street: tuple[Sample, ...]) -> None:
    shares = []
    for sample in street:
        boxes, (camera,) = sample.boxes, sample.cameras
        assert boxes is not None
        assert camera.labels is not None
        for box in np.flatnonzero((boxes.occlusions == 0) & (boxes.truncations == 0)):
            left, top, right, bottom = np.rint(boxes.image_boxes_px[box]).astype(int)
            if (right - left) * (bottom - top) > 100:
                inside = camera.labels[top : bottom + 1, left : right + 1] == boxes.classes[box]
                shares.append(inside.mean())
    assert len(shares) > 3
    assert min(shares) > 0.2
    assert np.median(shares) > 0.5


def test_boxes_say_what_the_sweep_knows(street: tuple[Sample, ...]) -> None:
    for sample in street:
        boxes = sample.boxes
        assert boxes is not None
        assert boxes.num_points.tolist() == [int((sample.instances == track).sum()) for track in boxes.track_ids]
        assert boxes.categories.tolist() == boxes.classes.tolist()
        assert {CLASS_NAMES[number] for number in boxes.categories} <= {"car", "truck", "bus", "pedestrian", "cyclist"}
        unseen = np.isnan(boxes.image_boxes_px).all(axis=1)
        assert 0 < unseen.sum() < len(unseen)
        assert ((boxes.occlusions == -1) == unseen).all()
