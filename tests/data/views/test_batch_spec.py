"""What the loader puts into batches for a method's wishes, and that it all fits together."""

from __future__ import annotations

import dataclasses
import itertools
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch

from data.batch_spec import BatchSpec, GroundConfig, PointClusterConfig, SecondCloud, VoxelConfig
from data.loading.collate import collate
from data.loading.evaluation import load_batch
from data.loading.loader import DataConfig, build_loader
from data.order import SampleDraws
from data.sample import Batch, Sample
from data.storage.manifest import load_manifest
from data.storage.reader import SampleError, SampleReader
from data.storage.shard import ShardError
from data.storage.teacher_cache import TeacherCacheWriter
from data.views.augment import AugmentConfig, ImageAugmentConfig, PointAugmentConfig
from data.views.clusters import clusters
from data.views.colour import ColourConfig
from data.views.ground import ground_mask
from data.views.making import make_view
from data.views.view import View, ViewConfig
from tests.helpers.samples import make_sample, write_toy_set

GROUND = GroundConfig(kind="plane", distance_m=0.6)
CLUSTERS = PointClusterConfig(radius_m=2.0, min_points=4)
SAME = SecondCloud(source="same")
STRONG = AugmentConfig(
    min_pairs=10,
    points=PointAugmentConfig(scale_range=(0.8, 1.25), translate_m=(5.0, 5.0, 0.5), keep_share=(0.6, 0.9)),
    image=ImageAugmentConfig(colour=ColourConfig(enabled=True)),
)
CONFIG = ViewConfig(image_size=(40, 70), augment=STRONG)
EVERYTHING = BatchSpec(superpixels=True, second_images=True, second_cloud=SAME, ground=GROUND, clusters=CLUSTERS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three training logs of four samples, one log to validate on."""
    return write_toy_set(tmp_path_factory.mktemp("set"), num_logs=4, frames_per_log=4, num_points=300)


def numbered(seed: int) -> Sample:
    """Each point's intensity is its own number."""
    sample = make_sample(np.random.default_rng(seed), num_points=2000, image_size=(80, 120))
    return dataclasses.replace(sample, intensity=np.arange(2000, dtype=np.float32))


def views_of(view: View) -> list[View]:
    return [view] if view.second is None else [view, view.second]


# ---- calibration
def reprojected(batch: Batch) -> torch.Tensor:
    """Where the calibration of a batch says that its pairs are."""
    image, point = batch.pairs.image, batch.pairs.point
    T, K = batch.cameras.T_cam_points[image], batch.cameras.K[image]  # type: ignore[index]
    in_camera = torch.einsum("pij,pj->pi", T[:, :3, :3], batch.points[point]) + T[:, :3, 3]
    pixels = torch.einsum("pij,pj->pi", K, in_camera)
    assert (in_camera[:, 2] > 0).all()
    return pixels[:, :2] / pixels[:, 2:]


@pytest.mark.parametrize("spec", [BatchSpec(), EVERYTHING, BatchSpec(second_images=True), BatchSpec(second_cloud=SAME)])
def test_calibration_projects_points_onto_their_pairs(spec: BatchSpec) -> None:
    views = [make_view(numbered(seed), CONFIG, spec, SampleDraws(0, 0, seed)) for seed in range(6)]
    batch = collate(views)
    mirrored = 0
    for part in (batch, batch.second):
        if part is None:
            continue
        assert {part.cameras.K.dtype, part.cameras.T_cam_points.dtype, part.T_aug_lidar.dtype} == {torch.float32}
        torch.testing.assert_close(reprojected(part), part.pairs.uv, rtol=0, atol=2e-2)
        # A mirrored image is one whose first focal length is negative.
        transforms = [moved for view in views for moved in (view if part is batch else view.second).cameras.transforms]  # type: ignore[union-attr]
        assert [bool(K[0, 0] < 0) for K in part.cameras.K] == [moved.mirrored for moved in transforms]
        mirrored += sum(moved.mirrored for moved in transforms)
        # The affine map does to pixels what was done to them.
        uv = np.random.default_rng(0).uniform(0, 80, (5, 2))
        for A, moved in zip(part.cameras.affine.double().numpy(), transforms, strict=True):
            np.testing.assert_allclose(uv @ A[:, :2].T + A[:, 2], moved.uv(uv), atol=1e-3)
    assert mirrored > 2


def test_the_cloud_says_what_was_done_to_it() -> None:
    sample = numbered(3)
    for view in views_of(make_view(sample, CONFIG, BatchSpec(images=False, second_cloud=SAME), SampleDraws())):
        batch = collate([view])
        recorded = torch.from_numpy(sample.points_lidar[view.recorded])
        T = batch.T_aug_lidar[0]  # type: ignore[index]
        torch.testing.assert_close(recorded @ T[:3, :3].T + T[:3, 3], batch.points, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(view.intensity, view.recorded)


# ---- second views
def test_matches_are_the_same_recorded_points() -> None:
    sample = numbered(1)
    view = make_view(sample, CONFIG, EVERYTHING, SampleDraws(0, 0, 1))
    second, matches = view.second, view.matches
    assert second is not None
    assert matches is not None
    np.testing.assert_array_equal(view.recorded[matches.first], second.recorded[matches.second])
    both = np.intersect1d(view.recorded, second.recorded)
    np.testing.assert_array_equal(view.recorded[matches.first], both)
    assert 400 < len(both) < len(view.points) < 2000
    assert not np.allclose(view.T_aug_lidar, second.T_aug_lidar)
    # Images of their own, with pairs that fit the points of their own view.
    assert view.images is not None
    assert second.images is not None
    assert view.images[0].tobytes() != second.images[0].tobytes()
    assert (second.pairs.point < len(second.points)).all()


def test_what_is_not_drawn_again_is_the_first_views() -> None:
    views = [
        make_view(numbered(seed), CONFIG, BatchSpec(second_images=True), SampleDraws(0, 0, seed)) for seed in range(2)
    ]
    batch = collate(views)
    assert batch.second is not None
    assert batch.matches is None
    for name in ("points", "point_voxel", "voxel_coords", "voxel_features", "T_aug_lidar"):
        assert getattr(batch.second, name) is getattr(batch, name)
    assert not torch.equal(batch.second.images, batch.images)  # type: ignore[arg-type]

    spec = BatchSpec(superpixels=True, second_cloud=SAME)
    batch = collate([make_view(numbered(seed), CONFIG, spec, SampleDraws()) for seed in range(2)])
    assert batch.second is not None
    assert batch.second.images is batch.images
    assert batch.second.superpixels.of_pixel is batch.superpixels.of_pixel
    assert batch.second.points.shape != batch.points.shape
    # Pairs of the second cloud with these images: the same pixels for the same points.
    first = {(int(p), int(i)): uv for p, i, uv in zip(*pair_rows(batch), strict=True)}
    partner = dict(zip(batch.matches.second.tolist(), batch.matches.first.tolist(), strict=True))  # type: ignore[union-attr]
    found = 0
    for point, image, uv in zip(*pair_rows(batch.second), strict=True):
        if int(point) in partner:
            assert torch.equal(first[partner[int(point)], int(image)], uv)
            found += 1
    assert found > 100


def pair_rows(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    assert batch.pairs is not None
    return batch.pairs.point, batch.pairs.image, batch.pairs.uv


def test_the_second_view_leaves_the_first_as_it_is() -> None:
    sample = numbered(0)
    alone = make_view(sample, CONFIG, BatchSpec(superpixels=True), SampleDraws(5, 6, 7))
    beside = make_view(sample, CONFIG, EVERYTHING, SampleDraws(5, 6, 7))
    for name in ("points", "recorded", "pairs.uv", "pairs.point", "superpixels.of_pair", "T_aug_lidar"):
        np.testing.assert_array_equal(attrgetter(name)(alone), attrgetter(name)(beside))
    again = make_view(sample, CONFIG, EVERYTHING, SampleDraws(5, 6, 7))
    np.testing.assert_array_equal(beside.second.points, again.second.points)  # type: ignore[union-attr]
    other = make_view(sample, CONFIG, EVERYTHING, SampleDraws(5, 6, 7, 1))
    assert beside.second.points.tobytes() != other.second.points.tobytes()  # type: ignore[union-attr]


def test_the_second_cloud_may_be_augmented_in_its_own_way() -> None:
    still = dataclasses.replace(STRONG, second_points=PointAugmentConfig(enabled=False))
    view = make_view(
        numbered(0),
        dataclasses.replace(CONFIG, augment=still),
        BatchSpec(images=False, second_cloud=SAME),
        SampleDraws(),
    )
    assert view.second is not None
    np.testing.assert_array_equal(view.second.T_aug_lidar, np.eye(4))
    np.testing.assert_array_equal(view.second.points, numbered(0).points_lidar)
    assert len(view.points) < 2000


# ---- ground, objects
def test_ground_and_clusters_follow_their_points() -> None:
    samples = [numbered(seed) for seed in range(3)]
    views = [make_view(sample, CONFIG, EVERYTHING, SampleDraws(0, 4, n)) for n, sample in enumerate(samples)]
    batch = collate(views)
    counted = 0
    for number, (sample, view) in enumerate(zip(samples, views, strict=True)):
        ground = ground_mask(sample.points_lidar, GROUND, SampleDraws(0, 9, number).ground())
        objects = np.full(2000, -1)
        objects[~ground] = clusters(sample.points_lidar[~ground], CLUSTERS)
        assert objects.max() > 3
        assert ground.sum() > 100
        for one, part in ((view, batch), (view.second, batch.second)):
            assert part is not None
            assert one is not None
            mine = part.point_sample == number
            expected = objects[one.recorded]
            np.testing.assert_array_equal(part.ground[mine].numpy(), ground[one.recorded])  # type: ignore[index]
            np.testing.assert_array_equal(
                part.clusters.of_point[mine].numpy(),  # type: ignore[index]
                np.where(expected < 0, -1, expected + counted),
            )
        counted += int(objects.max()) + 1
    assert batch.clusters.num == batch.second.clusters.num == counted  # type: ignore[union-attr]
    assert torch.equal(
        batch.clusters.of_point[batch.matches.first], batch.second.clusters.of_point[batch.matches.second]
    )  # type: ignore[index, union-attr]


def test_a_sweep_has_the_same_ground_in_every_epoch() -> None:
    drawn = {SampleDraws(1, epoch, 2, attempt).ground().random() for epoch in range(3) for attempt in range(2)}
    assert len(drawn) == 1
    uses = [SampleDraws(1, 2, 3).first(), SampleDraws(1, 2, 3).second(), SampleDraws(1, 2, 3).partner()]
    assert len({rng.random() for rng in uses} | drawn) == 4


# ---- images or not
def test_without_images_nothing_is_decoded_and_no_pair_is_needed(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "data.storage.decode.check_jpeg",
        "data.storage.decode._decode_superpixels",
        "data.views.making.decode_jpeg",
    ):
        monkeypatch.setattr(name, None)
    config = DataConfig(shards=root, augment=AugmentConfig(min_pairs=20), num_workers=0)
    spec = BatchSpec(images=False, ground=GROUND, clusters=CLUSTERS, second_cloud=SAME)
    source = build_loader(config, spec=spec, seed=0, rank=0, world_size=1)
    (batch,) = itertools.islice(source.batches(0), 1)
    for view in (batch, batch.second):
        assert {view.images, view.cameras, view.pairs, view.superpixels, view.labels} == {None}  # type: ignore[union-attr]
    assert {"ground", "clusters.of_point", "matches.first", "matches.second", "T_aug_lidar"} <= batch.tensors().keys()

    behind = numbered(0)
    behind = dataclasses.replace(
        behind, cameras=behind.cameras[:1], points_lidar=-np.abs(behind.points_lidar).astype(np.float32)
    )
    with pytest.raises(SampleError, match="zero-pairs"):
        make_view(behind, CONFIG, BatchSpec(), SampleDraws())
    assert len(make_view(behind, CONFIG, BatchSpec(images=False), SampleDraws()).points) > 0


def test_only_points_that_an_image_shows() -> None:
    sample = numbered(2)
    for spec in (BatchSpec(only_seen=True), BatchSpec(only_seen=True, second_cloud=SAME, second_images=True)):
        for view in views_of(make_view(sample, CONFIG, spec, SampleDraws())):
            assert view.pairs is not None
            np.testing.assert_array_equal(np.unique(view.pairs.point), np.arange(len(view.points)))
            np.testing.assert_array_equal(view.intensity, view.recorded)
    whole = make_view(sample, CONFIG, BatchSpec(), SampleDraws())
    seen = make_view(sample, CONFIG, BatchSpec(only_seen=True), SampleDraws())
    assert whole.pairs is not None
    np.testing.assert_array_equal(seen.recorded, whole.recorded[np.unique(whole.pairs.point)])
    np.testing.assert_array_equal(seen.pairs.uv, whole.pairs.uv)
    # The same cloud beside second images, which need not show all of it.
    view = make_view(sample, CONFIG, BatchSpec(only_seen=True, second_images=True), SampleDraws())
    assert view.second is not None
    assert view.second.points is view.points
    assert view.second.pairs is not None
    assert len(np.unique(view.second.pairs.point)) < len(view.points)


def test_a_sweep_outside_the_grid_is_refused() -> None:
    far = VoxelConfig(kind="cartesian", size=(1.0,) * 3, range_min=(500.0,) * 3, range_max=(600.0,) * 3)
    with pytest.raises(SampleError, match="no-points"):
        make_view(numbered(0), dataclasses.replace(CONFIG, voxel=far), BatchSpec(images=False), SampleDraws())


def test_images_that_need_no_pairs() -> None:
    """Whose points no image shows, or that has none in the grid, is used; who has no camera is not."""
    spec = BatchSpec(need_pairs=False)
    sample = numbered(0)
    behind = dataclasses.replace(
        sample, cameras=sample.cameras[:1], points_lidar=-np.abs(sample.points_lidar).astype(np.float32)
    )
    far = VoxelConfig(kind="cartesian", size=(1.0,) * 3, range_min=(500.0,) * 3, range_max=(600.0,) * 3)
    empty = make_view(sample, dataclasses.replace(CONFIG, voxel=far), spec, SampleDraws())
    views = [make_view(behind, CONFIG, spec, SampleDraws()), empty, make_view(sample, CONFIG, spec, SampleDraws())]
    batch = collate(views)
    cameras = batch.need("cameras", by="the test")
    assert cameras.sample.tolist() == [0, *([1] * len(sample.cameras)), *([2] * len(sample.cameras))]
    pairs = batch.need("pairs", by="the test")
    assert set(pairs.image.tolist()) == set(range(1 + len(sample.cameras), len(cameras.sample)))
    assert [int((batch.point_sample == number).sum()) for number in range(3)] == [len(v.points) for v in views]
    assert len(empty.points) == 0
    with pytest.raises(SampleError, match="no-images"):
        make_view(dataclasses.replace(sample, cameras=()), CONFIG, spec, SampleDraws())
    with pytest.raises(ValueError, match="superpixels and only_seen need need_pairs=True"):
        BatchSpec(need_pairs=False, only_seen=True)


def test_a_cached_teacher_has_calibration_and_no_use_where_nothing_is_pooled(root: str) -> None:
    manifest = load_manifest(root)
    writer = TeacherCacheWriter(root, "key", 4, manifest)
    for index in range(len(manifest)):
        writer.add(index, np.full((36, 4), index, np.float32), (18, 18))
    cache = writer.finish()
    plain = AugmentConfig(min_pairs=20, image=ImageAugmentConfig(enabled=False))
    config = DataConfig(shards=root, image_size=(40, 72), augment=plain, num_workers=0)
    spec = BatchSpec(superpixels=True, second_cloud=SAME)
    source = build_loader(config, spec=spec, seed=0, rank=0, world_size=1, teacher_cache=cache)
    (batch,) = itertools.islice(source.batches(0), 1)
    assert batch.images is None
    torch.testing.assert_close(reprojected(batch), batch.pairs.uv, rtol=0, atol=2e-2)
    assert batch.second is not None
    assert batch.second.superpixels.features is batch.superpixels.features is not None
    for wrong in (BatchSpec(), BatchSpec(superpixels=True, second_images=True)):
        with pytest.raises(ValueError, match="of no use"):
            build_loader(config, spec=wrong, seed=0, rank=0, world_size=1, teacher_cache=cache)


# ---- the stream
def both_equal(one: Batch, other: Batch) -> None:
    assert one.keys == other.keys
    for group in ("clusters", "superpixels"):
        assert getattr(getattr(one, group), "num", None) == getattr(getattr(other, group), "num", None)
    assert one.tensors().keys() == other.tensors().keys()
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name
    assert (one.second is None) == (other.second is None)
    if one.second is not None and other.second is not None:
        both_equal(one.second, other.second)


@pytest.mark.parametrize("source_of", ["same", "other"])
def test_workers_hand_over_both_views(root: str, source_of: str) -> None:
    cloud = SecondCloud(source=source_of, match_radius_m=1.0, min_overlap=0.05)  # type: ignore[arg-type]
    objects = PointClusterConfig(radius_m=2.0, min_points=3) if source_of == "same" else None
    spec = BatchSpec(superpixels=True, second_cloud=cloud, ground=GROUND, clusters=objects)

    def stream(num_workers: int) -> list[Batch]:
        config = DataConfig(
            shards=root, image_size=(40, 72), augment=STRONG, num_workers=num_workers, max_skip_share=0.2
        )
        batches = build_loader(config, spec=spec, seed=0, rank=0, world_size=1).batches(0)
        taken = list(itertools.islice(batches, 2))
        batches.close()  # type: ignore[attr-defined]
        return taken

    for alone, handed_over in zip(stream(0), stream(1), strict=True):
        both_equal(alone, handed_over)
        for batch in (alone, handed_over, handed_over.to("cpu")):
            assert batch.second is not None
            assert batch.second.images is batch.images  # not moved twice


def test_a_batch_moves_whole_and_keeps_what_is_shared() -> None:
    view = make_view(numbered(0), CONFIG, BatchSpec(superpixels=True, second_cloud=SAME), SampleDraws())
    batch = collate([view])
    moved = batch.to("meta")
    assert moved.second is not None
    devices = {t.device.type for part in (moved, moved.second) for t in part.tensors().values()}
    assert devices == {"meta"}
    assert moved.second.images is moved.images
    assert batch.second is not None
    assert batch.second.points.device.type == "cpu"


def test_a_loaded_batch_is_plain_unless_asked(root: str) -> None:
    reader = SampleReader(load_manifest(root))
    config = ViewConfig(image_size=(40, 72), augment=STRONG)
    spec = BatchSpec(images=False, second_cloud=SAME)
    plain = load_batch(reader, [0, 3], config, spec)
    assert plain.second is not None
    assert torch.equal(plain.points, plain.second.points)
    assert torch.equal(plain.T_aug_lidar, torch.eye(4).expand(2, 4, 4))  # type: ignore[arg-type]
    assert plain.labels is not None
    augmented = load_batch(reader, [0, 3], config, spec, augmented=True)
    both_equal(augmented, load_batch(reader, [0, 3], config, spec, augmented=True))
    assert augmented.second is not None
    assert not torch.equal(augmented.points[0], augmented.second.points[0])


# ---- other sweeps
def test_no_partner_is_a_skip_with_a_name(root: str, tmp_path: Path) -> None:
    single = write_toy_set(tmp_path, num_logs=5, frames_per_log=1, num_points=300)
    spec = BatchSpec(images=False, second_cloud=SecondCloud(source="other"))
    config = DataConfig(shards=single, num_workers=0)
    with pytest.raises(ShardError, match="no-partner: 4"):
        list(itertools.islice(build_loader(config, spec=spec, seed=0, rank=0, world_size=1).batches(0), 2))


def test_objects_do_not_go_with_another_sweep() -> None:
    with pytest.raises(ValueError, match="clusters"):
        BatchSpec(clusters=CLUSTERS, second_cloud=SecondCloud(source="other"))
