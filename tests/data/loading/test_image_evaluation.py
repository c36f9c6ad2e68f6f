from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from data.geometry import project, transform
from data.loading.image_evaluation import (
    ImageTruthBatches,
    ImageTruthConfig,
    ImageTruthSpec,
    Turn,
    area_mask,
    lidar_depth,
)
from data.sample import IGNORE_LABEL, Batch
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from data.street.config import StreetCameraConfig, StreetConfig, StreetLidarConfig
from data.street.log import LogRenderer
from data.views.augment import PixelTransform
from data.views.colour import ToneConfig
from tests.helpers.samples import make_sample, write_toy_set

BOTH = ImageTruthSpec(depth=True, labels=True)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SampleReader:
    return SampleReader(load_manifest(write_toy_set(tmp_path_factory.mktemp("set"), image_labels=True)))


def batches(reader: SampleReader, config: ImageTruthConfig, **options: object) -> list[Batch]:
    given: dict[str, object] = {"size": (48, 96), "truth": BOTH, "batch_size": 2, **options}
    num_workers = given.pop("num_workers", 0)
    images = ImageTruthBatches(reader=reader, indices=np.arange(5), config=config, **given)  # type: ignore[arg-type]
    return list(images.batches(num_workers))  # type: ignore[arg-type]


def test_unresized_images_are_those_that_were_stored(reader: SampleReader) -> None:
    found = batches(reader, ImageTruthConfig())
    assert [b.num_samples for b in found] == [2, 2, 1]
    assert found[0].num_points == 0
    assert found[0].cameras is not None
    assert found[0].cameras.sample.tolist() == [0, 0, 1, 1]
    sample = reader.read(1, depth=True, image_labels=True)
    for place, camera in zip((2, 3), sample.cameras, strict=True):
        assert np.array_equal(found[0].images[place].permute(1, 2, 0).numpy(), camera.image)
        assert np.array_equal(found[0].image_labels[place].numpy(), camera.labels)
        assert np.array_equal(found[0].image_depth_m[place].numpy(), camera.depth_m)
        torch.testing.assert_close(found[0].cameras.K[place].double(), torch.from_numpy(camera.K))


@pytest.mark.parametrize("size", [(24, 48), (30, 70), (96, 192)])
def test_truth_takes_the_nearest_stored_pixel_and_is_never_mixed(reader: SampleReader, size: tuple[int, int]) -> None:
    batch = batches(reader, ImageTruthConfig(), size=size)[0]
    camera = reader.read(0, depth=True, image_labels=True).cameras[0]
    for v, u in ((0, 0), (5, 7), (size[0] - 1, size[1] - 1), (11, 40)):
        row, column = int((v + 0.5) * 48 / size[0]), int((u + 0.5) * 96 / size[1])
        assert float(batch.image_depth_m[0, v, u]) == camera.depth_m[row, column]
        assert int(batch.image_labels[0, v, u]) == camera.labels[row, column]


def test_augmented_truth_stays_with_its_pixels_and_repeats(reader: SampleReader) -> None:
    # Grey levels pick the class in the toy set, and colours are not changed here: both must still fit.
    plain = ImageTruthConfig(colour=dataclasses.replace(ImageTruthConfig().colour, enabled=False))
    cut = dataclasses.replace(plain, fit="crop", train_window=(32, 40))
    mirrored = 0
    for config, size in ((plain, (48, 96)), (cut, (40, 90))):
        found = [batches(reader, config, size=size, augment=True, seed=3, epoch=e) for e in (0, 0, 1)]
        for again, other in zip(found[0], found[1], strict=True):
            assert torch.equal(again.images, other.images)
        assert not torch.equal(found[0][0].images, found[2][0].images)
        for batch in found[0]:
            bright = (batch.images.float().mean(1) * 4 / 256).to(torch.uint8)
            known = batch.image_labels != IGNORE_LABEL
            agree = (bright == batch.image_labels)[known].float().mean()
            assert agree > 0.9  # JPEG moves a few over the border between classes
            mirrored += int((batch.cameras.affine[:, 0, 0] < 0).sum())
    assert 2 <= mirrored <= 18
    assert found[0][0].images.shape[-2:] == (32, 40)


def test_lidar_depth_is_the_nearest_point_of_each_pixel() -> None:
    sample = make_sample(np.random.default_rng(0), num_points=5000)
    camera = sample.cameras[0]
    for place in (
        PixelTransform(0, 0, 48, 96, (48, 96)),
        PixelTransform(8, 10, 40, 60, (40, 60), mirrored=True),
        PixelTransform(0, 0, 48, 96, (20, 50)),
    ):
        expected = np.zeros(place.out_size)
        uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
        moved = place.uv(uv)
        for (u, v), (su, sv), z in zip(moved, uv, depth, strict=True):
            if z <= 0:
                continue
            at = (int(np.floor(v + 0.5)), int(np.floor(u + 0.5)))
            stored = (int(np.floor(sv + 0.5)), int(np.floor(su + 0.5)))
            if not (0 <= stored[0] < 48 and 0 <= stored[1] < 96):
                continue
            if 0 <= at[0] < place.out_size[0] and 0 <= at[1] < place.out_size[1]:
                expected[at] = z if expected[at] == 0 else min(z, expected[at])
        got = lidar_depth(sample, camera, place)
        assert (got > 0).sum() > 100
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_areas_are_those_of_the_literature() -> None:
    for area, rows, columns in (("garg", (153, 371), (44, 1197)), ("eigen", (124, 342), (44, 1197))):
        mask = area_mask((375, 1242), area)  # type: ignore[arg-type]
        inside = np.argwhere(mask)
        assert tuple(inside.min(0)) == (rows[0], columns[0])
        assert tuple(inside.max(0) + 1) == (rows[1], columns[1])
        assert mask.sum() == (rows[1] - rows[0]) * (columns[1] - columns[0])


def test_nyus_area_is_eigens() -> None:
    inside = np.argwhere(area_mask((480, 640), "nyu"))
    assert (tuple(inside.min(0)), tuple(inside.max(0))) == ((45, 41), (470, 600))
    assert len(inside) == 426 * 560


def test_the_area_counts_in_the_measurement_and_not_in_training(reader: SampleReader) -> None:
    config = ImageTruthConfig(depth_area="garg")
    measured, trained = (batches(reader, config, augment=augment)[0].image_depth_m for augment in (False, True))
    assert torch.equal(measured[0] > 0, torch.from_numpy(area_mask((48, 96), "garg")))
    assert bool((trained > 0).all())


def test_what_a_set_lacks_is_named(tmp_path: Path, reader: SampleReader) -> None:
    bare = SampleReader(load_manifest(write_toy_set(tmp_path, depth=False)))
    with pytest.raises(ShardError, match=r"has no depth .*images.depth=lidar"):
        batches(bare, ImageTruthConfig(), truth=ImageTruthSpec(depth=True))
    with pytest.raises(ShardError, match="has no classes of pixels"):
        batches(bare, ImageTruthConfig(), truth=ImageTruthSpec(labels=True))
    assert batches(bare, ImageTruthConfig(depth="lidar"), truth=ImageTruthSpec(depth=True))
    with pytest.raises(ShardError, match="smaller than the crop 64x96"):
        batches(reader, ImageTruthConfig(fit="crop"), size=(64, 96))
    with pytest.raises(ValueError, match="needs fit=crop"):
        ImageTruthConfig(train_window=(8, 8))


def test_street_pixels_carry_the_class_of_the_surface_that_the_lidar_hits() -> None:
    config = StreetConfig(
        num_logs=1,
        frames_per_log=1,
        density=0.5,
        lidar=StreetLidarConfig(beams=24, azimuths=360, range_noise_m=0.0, dropout=0.0, sweep_motion="none"),
        cameras=StreetCameraConfig(image_size=(80, 160), time_offsets_s=(0.0, 0.0, 0.0)),
    )
    renderer = LogRenderer(config, 0)
    sample = renderer.sample("log", 0)
    assert sample.labels is not None
    agree = []
    for number, camera in enumerate(sample.cameras):
        assert camera.labels is not None
        assert camera.depth_m is not None
        assert np.array_equal(camera.labels == IGNORE_LABEL, camera.depth_m == 0)
        uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
        u, v = np.floor(np.nan_to_num(uv) + 0.5).astype(int).T
        seen = (depth > 1) & (u >= 0) & (v >= 0) & (u < 160) & (v < 80)
        u, v, points = u[seen], v[seen], np.flatnonzero(seen)
        same = np.abs(camera.depth_m[v, u] - depth[points]) < 0.02 * depth[points]
        assert same.sum() > 100
        agree.append((camera.labels[v, u] == sample.labels[points])[same].mean())
        # The option changes nothing but the labels.
        without = dataclasses.replace(config, cameras=dataclasses.replace(config.cameras, labels=False))
        plain = LogRenderer(without, 0).view(0, number)
        assert plain.labels is None
        assert np.array_equal(plain.image, camera.image)
    assert min(agree) > 0.97


@pytest.mark.parametrize("depth", ["stored", "lidar"])
def test_a_turned_image_takes_its_truth_and_its_camera_along(reader: SampleReader, depth: str) -> None:
    colour = dataclasses.replace(ImageTruthConfig().colour, enabled=False)
    config = ImageTruthConfig(colour=colour, rotate_deg=20.0, depth=depth)  # type: ignore[arg-type]
    turned = 0
    for batch in batches(reader, config, augment=True, seed=1):
        bright = (batch.images.float().mean(1) * 4 / 256).to(torch.uint8)
        known = batch.image_labels != IGNORE_LABEL
        assert 0.6 < float(known.float().mean()) < 1.0, "corners from outside have no class"
        assert (bright == batch.image_labels)[known].float().mean() > 0.85
        for number, key in enumerate(np.asarray(batch.keys)[batch.cameras.sample]):
            sample = next(s for s in (reader.read(i, depth=True) for i in range(5)) if s.key == key)
            camera = sample.cameras[int((batch.cameras.sample[:number] == batch.cameras.sample[number]).sum())]
            uv, z = project(batch.cameras.K[number].double().numpy(), transform(sample.T_cam_lidar(camera), POINTS))
            before, _ = project(camera.K, transform(sample.T_cam_lidar(camera), POINTS))
            affine = batch.cameras.affine[number].double().numpy()
            seen = z > 1
            np.testing.assert_allclose(uv[seen], before[seen] @ affine[:, :2].T + affine[:, 2], rtol=1e-3, atol=0.05)
            turned += abs(affine[0, 1]) > 0.02
    assert turned > 5


POINTS = np.random.default_rng(0).uniform([-20, -20, -2], [20, 20, 2], (40, 3))


def test_turned_lidar_depth_lies_where_the_turned_image_shows_its_points() -> None:
    sample = make_sample(np.random.default_rng(0), num_points=3000)
    camera = sample.cameras[0]
    turn, place = Turn((48, 96), 7.0), PixelTransform(4, 10, 40, 60, (40, 60))
    uv, z = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
    angle = np.radians(7.0)
    expected = np.zeros((40, 60))
    for (u, v), far in zip(uv, z, strict=True):
        if far <= 0 or not (0 <= np.floor(u + 0.5) < 96 and 0 <= np.floor(v + 0.5) < 48):
            continue
        x, y = u - 47.5, v - 23.5  # against the clock as it is seen, where v points down
        row = int(np.floor(-np.sin(angle) * x + np.cos(angle) * y + 23.5 - 4 + 0.5))
        column = int(np.floor(np.cos(angle) * x + np.sin(angle) * y + 47.5 - 10 + 0.5))
        if 0 <= row < 40 and 0 <= column < 60:
            expected[row, column] = far if expected[row, column] == 0 else min(far, expected[row, column])
    got = lidar_depth(sample, camera, place, turn=turn)
    assert (got > 0).sum() > 50
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_what_is_not_asked_for_draws_nothing(reader: SampleReader) -> None:
    """Runs of earlier versions must find their augmentations again."""
    plain = batches(reader, ImageTruthConfig(), augment=True)
    toned = batches(reader, ImageTruthConfig(tone=ToneConfig(probability=1.0, gamma=(1.0, 1.0))), augment=True)
    assert torch.equal(plain[0].cameras.affine[0], toned[0].cameras.affine[0])
    assert not torch.equal(plain[0].images, toned[0].images)
    rng = np.random.default_rng(3)
    image = np.full((2, 2, 3), 100, np.uint8)
    assert ToneConfig().change(rng, image) is image
    assert rng.random() == np.random.default_rng(3).random()


def test_tone_is_the_power_of_values_times_factors() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    tone = ToneConfig(probability=1.0, gamma=(1.1, 1.1), brightness=(1.2, 1.2), colour=(0.9, 0.9))
    changed = tone.change(np.random.default_rng(0), image)
    for at in np.ndindex(image.shape):
        expected = round(255 * min(1.0, (image[at] / 255) ** 1.1 * 1.2 * 0.9))
        assert int(changed[at]) == expected
    with pytest.raises(ValueError, match="gamma"):
        ToneConfig(gamma=(1.1, 0.9))
