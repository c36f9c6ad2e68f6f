"""Pictures: marks lie where the data says, colours mean what they say, and looking changes nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from torch import Tensor, nn

from data.batch_spec import BatchSpec, VoxelConfig
from data.loading.evaluation import load_batch
from data.sample import IGNORE_LABEL, Batch, Boxes, first_sample
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from data.views.augment import NO_AUGMENTATION
from data.views.pairs import point_pixel_pairs
from data.views.view import ViewConfig
from launchers.drawing import canvas as drawing
from launchers.drawing import scenes
from launchers.drawing.page import explanation
from launchers.drawing.predictions import draw_sweep_predictions, read_predictions, write_predictions
from launchers.drawing.training_pictures import pictures_of, pictures_of_set, query_point, training_pictures
from tests.helpers.colour_vision import least_distances
from tests.helpers.run_folder import run_config
from tests.helpers.samples import CLASS_NAMES, make_sample, write_toy_set
from tests.helpers.toy_batches import with_changed

CONFIG = ViewConfig(
    image_size=(48, 96), augment=NO_AUGMENTATION, voxel=VoxelConfig(kind="cartesian", size=(0.5, 0.5, 0.5))
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_toy_set(tmp_path_factory.mktemp("set") / "shards", num_logs=2, frames_per_log=2)


@pytest.fixture(scope="module")
def batch(shards: str) -> Batch:
    return load_batch(SampleReader(load_manifest(shards)), [0, 1, 2], CONFIG, BatchSpec(superpixels=True))


class PointsOnly(nn.Module):
    """Embeds a voxel as a random linear map of its cell; counts in a BatchNorm, like a real network."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.map = nn.Parameter(torch.randn(3, dim, generator=generator))
        self.norm = nn.BatchNorm1d(dim)
        self.frozen = nn.BatchNorm1d(dim).eval()
        self.calls: list[tuple[str, ...]] = []

    def point_embeddings(self, batch: Batch) -> Tensor:
        self.calls.append(batch.keys)
        features = self.frozen(self.norm(batch.voxel_coords[:, 1:].float() @ self.map))
        return nn.functional.normalize(features, dim=-1)


class PointsAndPixels(PointsOnly):
    def pixel_embeddings(self, images: Tensor) -> Tensor:
        shape = (len(images), self.map.shape[1], *images.shape[-2:])
        wave = torch.linspace(0, 60, int(np.prod(shape))).sin().reshape(shape)
        return nn.functional.normalize(wave, dim=1)


# ---- drawing


@pytest.mark.parametrize("factor", [1, 3])
def test_a_projected_point_lands_at_the_pixel_of_its_pair(factor: int) -> None:
    sample = make_sample(np.random.default_rng(0))
    pairs = point_pixel_pairs(sample, (0,))
    image = np.zeros((48, 96, 3), np.uint8)
    one = slice(5, 6)
    red = np.array([[255, 0, 0]], np.uint8)
    view = scenes.projection_view(image, pairs.uv[one], np.array([400.0]), red, target_width=96 * factor)
    marked = np.argwhere((view == red[0]).all(axis=2))
    assert view.shape == (48 * factor, 96 * factor, 3)
    middle = marked.mean(axis=0)[::-1]
    # Back to the stored image's coordinates: within half an enlarged pixel of the pair.
    assert np.abs((middle + 0.5) / factor - 0.5 - pairs.uv[5]).max() <= 0.5 / factor + 1e-9


def test_enlarged_coordinates_follow_the_enlarged_image() -> None:
    """The centre of mass of one bright pixel, before and after."""
    image = np.zeros((9, 11, 3), np.uint8)
    image[4, 7] = 255
    large = drawing.enlarge(image, 5, smooth=False)
    middle = np.argwhere(large[..., 0] > 0).mean(axis=0)[::-1]
    assert np.allclose(drawing.enlarged_uv(np.array([[7.0, 4.0]]), 5)[0], middle)


def test_near_points_cover_far_ones() -> None:
    uv = np.array([[20.0, 20.0], [20.0, 20.0]])
    colours = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)
    image = np.zeros((48, 96, 3), np.uint8)
    for near in (0, 1):
        depth = np.array([30.0, 30.0])
        depth[near] = 3.0
        view = scenes.projection_view(image, uv, depth, colours, target_width=96)
        assert (view[20, 20] == colours[near]).all()


def test_paint_points_matches_a_loop() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
    uv = rng.uniform(-4, 34, (60, 2))
    colours = rng.integers(0, 255, (60, 3), dtype=np.uint8)
    radius = rng.uniform(0, 3.5, 60)
    expected = image.copy()
    for (u, v), colour, r in zip(np.round(uv).astype(int), colours, radius, strict=True):
        for y in range(20):
            for x in range(30):
                if np.hypot(x - u, y - v) <= max(r, 0.5):
                    expected[y, x] = colour
    assert np.array_equal(drawing.paint_points(image, uv, colours, radius), expected)
    assert np.array_equal(drawing.paint_points(image, uv[:0], colours[:0], radius[:0]), image)


def test_boundaries_lie_between_segments_only() -> None:
    segments = np.zeros((6, 8), np.int32)
    segments[:, 4:] = 1
    edge = drawing.boundaries(segments)
    assert edge[:, 3].all()
    assert edge.sum() == 6


def test_superpixel_view_leaves_the_inside_of_segments_alone() -> None:
    image = np.full((32, 32, 3), 90, np.uint8)
    segments = np.repeat(np.arange(2, dtype=np.int32), 16)[None].repeat(32, axis=0)
    view = scenes.superpixel_view(image, segments, target_width=64)
    changed = (view != 90).any(axis=2)
    assert view.shape == (64, 64, 3)
    assert changed.any(axis=0).nonzero()[0].tolist() == [31]


def test_turbo_runs_from_blue_to_red_and_clips() -> None:
    colours = drawing.turbo(np.array([-5.0, 0.0, 1.0, 9.0, np.nan]), 0.0, 1.0).astype(int)
    assert colours[0, 2] > colours[0, 0]
    assert colours[2, 0] > colours[2, 2]
    assert np.array_equal(colours[0], colours[1])
    assert np.array_equal(colours[2], colours[3])


def test_class_colours_differ_and_refuse_unknown_labels() -> None:
    palette = drawing.class_palette(20).astype(int)
    distance = np.abs(palette[:, None] - palette[None]).sum(axis=2)
    assert distance[~np.eye(20, dtype=bool)].min() > 20
    grey = drawing.class_colours(np.array([3, IGNORE_LABEL], np.uint8), 4)
    assert np.array_equal(grey[1], drawing.UNLABELLED)
    assert np.array_equal(grey[0], drawing.class_palette(20)[3])
    with pytest.raises(ValueError, match="label 4 found, expected ids below 4"):
        drawing.class_colours(np.array([4], np.uint8), 4)


def test_classes_are_told_apart_by_the_red_green_blind_too() -> None:
    """Golden-ratio steps of hue alone would leave 1.3 between two of 16 classes, which nobody sees."""
    seen = np.array([drawing.BACKGROUND, drawing.UNLABELLED])
    for num, least in ((8, 23.0), (12, 20.0), (16, 15.0), (24, 11.5)):
        assert min(least_distances(np.concatenate([drawing.class_palette(num), seen])).values()) > least
    assert np.array_equal(drawing.class_palette(40)[:24], drawing.class_palette(24))
    assert len(np.unique(drawing.class_palette(40), axis=0)) == 40


def test_tiles_lie_in_rows_and_captions_are_cut_to_width() -> None:
    cells = [np.full((10 + i, 20, 3), i + 1, np.uint8) for i in range(3)]
    sheet = drawing.tiled(cells, columns=2, gap_px=4)
    assert sheet.shape == (11 + 4 + 12, 44, 3)
    assert (sheet[:10, :20] == 1).all()
    assert (sheet[:11, 24:] == 2).all()
    assert (sheet[15:, :20] == 3).all()
    assert drawing.captioned(cells[0], "long").shape == (34, 20, 3)
    assert drawing.captioned(cells[0], "long " * 40).shape == (74, 20, 3)
    wide = np.zeros((10, 300, 3), np.uint8)
    assert drawing.captioned(wide, "one line of text").shape == (34, 300, 3)
    two = drawing.captioned(wide, "step 12: first three principal components of features")
    assert two.shape == (54, 300, 3)
    assert all((row != drawing.BACKGROUND).any() for row in (two[4:24], two[24:44]))
    with pytest.raises(ValueError, match="no images to tile"):
        drawing.tiled([], columns=2)


def test_encoded_images_keep_their_colours() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[..., 0] = 255
    decoded = cv2.imdecode(np.frombuffer(drawing.png_bytes(image), np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(decoded[..., ::-1], image)


# ---- bird's-eye view


def test_birds_eye_view_has_forward_up_and_left_to_the_left() -> None:
    points = np.array([[20.0, 0.0, 0.0], [0.0, 20.0, 0.0]])
    red, green = np.array([255, 0, 0], np.uint8), np.array([0, 255, 0], np.uint8)
    view = scenes.birds_eye_view(points, np.stack([red, green]), range_m=40.0, size_px=400)
    row, column = np.argwhere((view == red).all(axis=2)).mean(axis=0)
    assert (row, column) == pytest.approx((100, 200), abs=1)
    row, column = np.argwhere((view == green).all(axis=2)).mean(axis=0)
    assert (row, column) == pytest.approx((200, 100), abs=1)


def test_birds_eye_view_shows_the_highest_point_and_nothing_from_beyond() -> None:
    points = np.array([[10.0, 5.0, 3.0], [10.0, 5.0, 0.0], [10.0, 41.0, 0.0]])
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    view = scenes.birds_eye_view(points, colours)
    assert (view == colours[0]).all(axis=2).any()
    assert not (view == colours[1]).all(axis=2).any()
    assert not (view == colours[2]).all(axis=2).any()


def test_a_box_outline_passes_through_its_corners() -> None:
    boxes = Boxes(
        centers_m=np.array([[10.0, 0.0, 0.0]]),
        sizes_m=np.array([[6.0, 2.0, 1.5]]),
        yaws=np.array([np.pi / 2]),
        velocities_mps=np.zeros((1, 2)),
        classes=np.zeros(1, np.int32),
        track_ids=np.zeros(1, np.int32),
    )
    view = scenes.birds_eye_view(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), boxes=boxes)
    # Heading +y: the length lies along y, the width along x.
    corners = scenes.birds_eye_uv(np.array([[9.0, 3.0, 0], [11.0, 3.0, 0], [9.0, -3.0, 0], [11.0, -3.0, 0]]))
    for u, v in np.round(corners).astype(int):
        assert view[v - 1 : v + 2, u - 1 : u + 2].max() > 200
    outside = scenes.birds_eye_uv(np.array([[13.0, 0.0, 0.0]]))[0].round().astype(int)
    assert (view[outside[1], outside[0]] == drawing.BACKGROUND).all()


def test_sample_views_follow_what_the_sample_has() -> None:
    sample = make_sample(np.random.default_rng(2))
    assert sorted(scenes.sample_views(sample, CLASS_NAMES)) == ["cameras", "depth", "sweep"]
    assert all(explanation(f"{sample.key}: {name}") for name in ("cameras", "depth", "sweep"))
    blind = dataclasses.replace(
        sample,
        labels=None,
        boxes=None,
        cameras=tuple(dataclasses.replace(c, image=None, depth_m=None) for c in sample.cameras),
    )
    assert sorted(scenes.sample_views(blind)) == ["sweep"]
    assert scenes.sample_views(sample, CLASS_NAMES)["sweep"].shape[1] > scenes.sample_views(blind)["sweep"].shape[1]


def test_sheets_of_large_images_are_no_wider_than_a_page() -> None:
    """Six cameras of 1600 x 900 pixels made a sheet of 3200 pixels, whose captions no browser could show."""
    rng = np.random.default_rng(3)
    sample = make_sample(rng)
    camera = sample.cameras[0]
    factor = 2000 // camera.image_size[1]
    assert camera.image is not None
    large = dataclasses.replace(
        camera,
        image=drawing.enlarge(camera.image, factor),
        image_size=(camera.image_size[0] * factor, camera.image_size[1] * factor),
        superpixels=np.kron(camera.superpixels, np.ones((factor, factor), camera.superpixels.dtype)),  # type: ignore[union-attr, arg-type]
        depth_m=None,
    )
    for cameras, labels in (((large,), None), ((large, large), None), ((large, large), sample.labels)):
        views = scenes.sample_views(dataclasses.replace(sample, cameras=cameras, labels=labels), CLASS_NAMES)
        assert 1400 < views["cameras"].shape[1] < 1520


# ---- rooms and streets


def test_rooms_are_drawn_as_far_as_they_reach_and_drives_all_alike() -> None:
    rng = np.random.default_rng(8)
    room = rng.uniform(-1, 1, (2000, 3)) * np.array([4.2, 2.0, 1.3])
    extent = scenes.extent_of(room)
    assert extent.range_m == 5.0
    assert (extent.far_m, extent.marks_m) == (5.0, (0.5, 1.0, 2.0, 3.0, 5.0))
    stray = np.concatenate([room, np.full((20, 3), 80.0)])  # one in a hundred: through the window
    assert scenes.extent_of(stray) == extent
    assert scenes.extent_of(room * 20) == scenes.STREET
    assert scenes.extent_of(np.zeros((0, 3))) == scenes.STREET
    assert scenes.extent_of(np.zeros((5, 3))).range_m == 1.0
    # The same points in the colours of a room and of a street.
    depth = np.array([1.0, 2.0, 4.0])
    assert len(np.unique(scenes.depth_colours(depth, extent), axis=0)) == 3
    sample = make_sample(rng)
    small = dataclasses.replace(sample, points_lidar=room[: len(sample.points_lidar)].astype(np.float32))
    used = [drawing.BACKGROUND, (58, 61, 70)]
    sheet = scenes.sample_views(dataclasses.replace(small, boxes=None))["sweep"][24:664, :640]
    drawn = np.argwhere(~np.isin(sheet, used).all(axis=2))
    assert np.ptp(drawn[:, 0]) > 400  # 8.4 of 10 m
    # Beside samples of a set that reaches further: the room is small.
    as_others = scenes.sample_views(dataclasses.replace(small, boxes=None), extent=scenes.STREET)["sweep"][24:664, :640]
    outside = np.ones((640, 640), bool)
    outside[250:390, 250:390] = False
    nothing = scenes.birds_eye_view(np.zeros((0, 3)), np.zeros((0, 3), np.uint8))
    np.testing.assert_array_equal(as_others[outside], nothing[outside])


def test_predictions_of_a_sweep_stand_beside_the_truth_in_the_same_colours(batch: Batch) -> None:
    labelled = first_sample(with_labels(batch))
    labels = labelled.labels.numpy()  # type: ignore[union-attr]
    known = labels != IGNORE_LABEL
    num = len(CLASS_NAMES)
    right = draw_sweep_predictions(labelled, np.where(known, labels, 0), CLASS_NAMES)
    wrong = draw_sweep_predictions(labelled, np.where(known, (labels + 1) % num, 0), CLASS_NAMES)
    true, same, differ = (right[48:468, at : at + 420] for at in (0, 426, 852))
    palette = drawing.class_palette(num)
    for colour in palette[np.unique(labels[known])]:
        assert (true == colour).all(axis=2).any()
        assert (same == colour).all(axis=2).any()
    assert not (differ == np.array([255, 140, 30])).all(axis=2).any()
    assert (wrong[48:468, 852:1272] == np.array([255, 140, 30])).all(axis=2).any()
    assert np.array_equal(wrong[48:468, :420], true)
    # kNN predicts some voxels of a sweep; the others are neither right nor wrong.
    some = np.where(known, labels, 0)
    some[::2] = -1
    differ = draw_sweep_predictions(labelled, some, CLASS_NAMES)[48:468, 852:1272]
    assert not (differ == np.array([255, 140, 30])).all(axis=2).any()


def test_few_pictures_of_predictions_are_read_and_of_every_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    for run in "abcd":
        for name in ("finetune 1 frame", "knn all", "linear_probe all"):
            for init in ("random", "slidr"):
                write_predictions(tmp_path / run, f"{name} {init}", image)
    (tmp_path / "a" / "predictions" / "knn-all-slidr.jpg").write_bytes(b"damaged")
    real, opened = cv2.imread, []
    monkeypatch.setattr(cv2, "imread", lambda path, kind: opened.append(path) or real(path, kind))
    pictures, more = read_predictions([tmp_path / run for run in "abcd"], 7)
    assert len(opened) == 7
    assert more == 4 * 6 - 7
    assert list(pictures) == [
        *("finetune-1-frame-random (a)", "finetune-1-frame-random (b)", "finetune-1-frame-slidr (a)"),
        *("knn-all-random (a)", "linear_probe-all-random (a)", "linear_probe-all-slidr (a)"),
    ]


def with_labels(batch: Batch) -> Batch:
    rng = np.random.default_rng(9)
    labels = rng.integers(0, len(CLASS_NAMES), batch.num_points)
    labels[::7] = IGNORE_LABEL
    return dataclasses.replace(batch, labels=torch.from_numpy(labels))


# ---- similarity and components


def test_the_querys_own_pixel_is_the_most_similar() -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(12, 17, 6))
    similarity = scenes.similarity_to(features[4, 9], features)
    assert np.unravel_index(similarity.argmax(), similarity.shape) == (4, 9)
    assert similarity[4, 9] == pytest.approx(1.0)
    assert np.abs(similarity).max() <= 1 + 1e-9
    assert np.allclose(scenes.similarity_to(features[4, 9] * 7, features * 0.1), similarity)
    assert (scenes.similarity_to(features[4, 9], np.zeros((3, 6))) == 0).all()


def test_similarity_view_is_reddest_at_the_query() -> None:
    similarity = np.zeros((20, 40))
    similarity[5, 30] = 1.0
    view = scenes.similarity_view(
        np.full((20, 40, 3), 128, np.uint8), similarity, low=0.0, high=1.0, query_uv=(30.0, 5.0), target_width=40
    ).astype(int)
    redness = view[..., 0] - view[..., 2]
    assert np.unravel_index(redness.argmax(), redness.shape) == (5, 30)


def test_principal_colours_do_not_depend_on_rotation_order_or_offset() -> None:
    rng = np.random.default_rng(4)
    features = rng.gamma(1.5, size=(300, 7)) * np.array([5, 3, 2, 1, 0.5, 0.2, 0.1])
    colours = scenes.principal_colours(features).colours(features)
    rotation = ortho_group.rvs(7, random_state=5)
    moved = features @ rotation + rng.normal(size=7)
    assert np.abs(scenes.principal_colours(moved).colours(moved).astype(int) - colours.astype(int)).max() <= 1
    order = rng.permutation(300)
    assert np.abs(scenes.principal_colours(features[order]).colours(features).astype(int) - colours).max() <= 1
    assert scenes.principal_colours(-features).colours(-features).std() > 20


def test_principal_colours_order_components_by_variance() -> None:
    rng = np.random.default_rng(6)
    features = rng.normal(size=(500, 4)) * np.array([0.1, 4.0, 1.0, 2.0])
    axes = np.abs(scenes.principal_colours(features).axes)
    assert axes.argmax(axis=0).tolist() == [1, 3, 2]


@pytest.mark.parametrize("shape", [(1, 5), (2, 5), (40, 1), (40, 2)])
def test_principal_colours_of_few_rows_or_dimensions(shape: tuple[int, int]) -> None:
    features = np.random.default_rng(7).normal(size=shape)
    fitted = scenes.principal_colours(features)
    assert fitted.colours(features).shape == (shape[0], 3)
    rank = min(shape[0] - 1, shape[1])
    assert (np.linalg.norm(fitted.axes, axis=0) > 0).tolist() == [i < rank for i in range(3)]


def test_principal_colours_refuse_nothing_and_nan() -> None:
    with pytest.raises(ValueError, match="0 features"):
        scenes.principal_colours(np.zeros((0, 4)))
    with pytest.raises(ValueError, match="1 of 3 features are not finite"):
        scenes.principal_colours(np.array([[0.0, 1], [np.nan, 0], [1, 1]]))


# ---- training pictures

INPUT = {"superpixels", "lidar_depth"}
POINTS = {"similarity_points", "point_features"}
PIXELS = {"similarity_pixels", "pixel_features"}


@pytest.mark.parametrize(
    ("objective", "expected"),
    [(nn.Linear(1, 1), INPUT), (PointsOnly(), INPUT | POINTS), (PointsAndPixels(), INPUT | POINTS | PIXELS)],
)
def test_an_objective_gets_the_pictures_that_it_can_have(
    batch: Batch, objective: nn.Module, expected: set[str]
) -> None:
    pictures = training_pictures(objective, batch, 7)
    assert set(pictures) == expected
    assert all(explanation(f"key.{name}") for name in pictures)
    for image in pictures.values():
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.std() > 5


def test_without_images_there_are_still_the_points(batch: Batch) -> None:
    cached = dataclasses.replace(with_changed(batch, superpixels={"of_pixel": None}), images=None)
    assert set(training_pictures(PointsAndPixels(), cached, 0)) == POINTS
    bare = dataclasses.replace(cached, cameras=None, pairs=None, superpixels=None)
    assert set(training_pictures(PointsAndPixels(), bare, 0)) == POINTS


def test_looking_changes_neither_modes_nor_statistics_nor_random_state(batch: Batch) -> None:
    objective = PointsAndPixels().train()
    objective.frozen.eval()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    state = torch.get_rng_state()
    training_pictures(objective, batch, 0)
    assert objective.training
    assert objective.norm.training
    assert not objective.frozen.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_only_the_first_sample_is_run_and_it_is_whole(batch: Batch) -> None:
    objective = PointsOnly()
    training_pictures(objective, batch, 0)
    assert objective.calls == [batch.keys[:1]]
    first = first_sample(batch)
    alone = {name: t for name, t in first.tensors().items() if name != "voxel_features"}
    assert first.num_samples == 1
    assert int(first.point_voxel.max()) == len(first.voxel_coords) - 1
    assert int(first.pairs.image.max()) == len(first.images) - 1  # type: ignore[arg-type, union-attr]
    assert (batch.points[: len(first.points)] == alone["points"]).all()
    assert len(first.pairs.point) == int((batch.point_sample[batch.pairs.point] == 0).sum())  # type: ignore[arg-type, index]


def test_the_query_is_a_paired_point_that_stands(batch: Batch) -> None:
    sample = first_sample(batch)
    query = query_point(sample)
    assert sample.pairs is not None
    assert query in sample.pairs.point.tolist()
    z = sample.points[:, 2].numpy()
    assert z[query] > np.percentile(z, 5) + 0.7
    flat = dataclasses.replace(sample, points=sample.points * torch.tensor([1.0, 1.0, 0.0]))
    assert query_point(flat) in sample.pairs.point.tolist()


def test_fixed_pictures_do_not_follow_the_training_batch(batch: Batch, shards: str) -> None:
    objective = PointsAndPixels()
    draw = pictures_of(batch)
    other = dataclasses.replace(batch, images=None, superpixels=None)
    assert np.array_equal(
        draw(objective, other, 3)["superpixels"], training_pictures(objective, batch, 3)["superpixels"]
    )
    drawn = pictures_of_set(run_config(None, shards).data, BatchSpec(superpixels=True))(objective, other, 3)  # type: ignore[arg-type]
    assert set(drawn) == INPUT | POINTS | PIXELS
