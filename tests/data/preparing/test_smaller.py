"""Smaller stored images: pixels, pairs, superpixels, rectangles and planes still belong together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data.preparing.prepare import PrepareConfig, prepare
from data.preparing.smaller import with_smaller_images
from data.preparing.superpixels import SuperpixelConfig
from data.storage.decode import decode_jpeg
from data.storage.encode import CodecConfig, encode_sample
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from data.views.pairs import point_pixel_pairs
from tests.helpers.samples import full_sample, make_sample
from tests.helpers.toy_converter import ToyConverter

CONFIG = PrepareConfig(samples_per_shard=3, superpixels=SuperpixelConfig(num_segments=12))


def plain(**options):
    return make_sample(np.random.default_rng(0), superpixels=False, **options)


@pytest.mark.parametrize("size", [(48, 96), (37, 51)], ids=str)
@pytest.mark.parametrize("reduction", [2, 3])
def test_a_point_is_seen_at_the_same_place_of_the_image(size, reduction):
    """By the size of a pixel: its centre is at whole numbers in both, so u + 1/2 scales."""
    sample = plain(num_points=3000, image_size=(48, 96))
    image = sample.cameras[0].image[: size[0], : size[1]]
    camera = dataclasses.replace(sample.cameras[0], image_size=size, image=image, depth_m=None, labels=None)
    sample = dataclasses.replace(sample, cameras=(camera,))
    smaller = with_smaller_images(sample, reduction)
    height, width = smaller.cameras[0].image_size
    assert (height, width) == (round(size[0] / reduction), round(size[1] / reduction))
    assert smaller.cameras[0].image.shape == (height, width, 3)
    before = point_pixel_pairs(sample, border_px=0.0)
    after = point_pixel_pairs(smaller, border_px=-0.5)
    where = {int(point): uv for point, uv in zip(after.point, after.uv, strict=True)}
    assert len(before) > 100
    for point, uv in zip(before.point, before.uv, strict=True):
        np.testing.assert_allclose((where[int(point)] + 0.5) * (size[1] / width, size[0] / height), uv + 0.5, atol=1e-9)


def test_pixels_are_means_and_planes_are_not():
    camera = plain(image_labels=True).cameras[0]
    small = with_smaller_images(dataclasses.replace(plain(), cameras=(camera,)), 2).cameras[0]
    means = camera.image.reshape(24, 2, 48, 2, 3).mean(axis=(1, 3))
    assert np.abs(small.image - means).max() <= 0.5
    assert small.depth_m.shape == small.labels.shape == (24, 48)
    assert np.isin(small.depth_m, camera.depth_m).all()
    assert np.isin(small.labels, camera.labels).all()


def test_boxes_and_rectangles_in_pixels_follow():
    sample = full_sample()
    sample = dataclasses.replace(
        sample, cameras=tuple(dataclasses.replace(camera, superpixels=None) for camera in sample.cameras)
    )
    small = with_smaller_images(sample, 2)
    np.testing.assert_allclose(small.boxes.image_boxes_px, (sample.boxes.image_boxes_px + 0.5) / 2 - 0.5)
    for before, after in zip(sample.cameras, small.cameras, strict=True):
        if before.ignored_px is not None:
            np.testing.assert_allclose(after.ignored_px, (before.ignored_px + 0.5) / 2 - 0.5)
    assert any(camera.ignored_px is not None for camera in sample.cameras)


def test_jpegs_of_the_source_are_reduced_too():
    sample = plain()
    jpeg = encode_sample(sample, CodecConfig())["front.jpg"]
    encoded, decoded = (
        dataclasses.replace(sample, cameras=(dataclasses.replace(sample.cameras[0], **as_what),))
        for as_what in ({"image": None, "jpeg": jpeg}, {"image": decode_jpeg("front.jpg", jpeg)})
    )
    small = with_smaller_images(encoded, 2).cameras[0]
    assert small.jpeg is None
    np.testing.assert_array_equal(small.image, with_smaller_images(decoded, 2).cameras[0].image)


def test_whole_images_are_left_alone_and_superpixels_are_made_afterwards():
    sample = plain()
    assert with_smaller_images(sample, 1) is sample
    with pytest.raises(ValueError, match="superpixels of its image at full size"):
        with_smaller_images(make_sample(np.random.default_rng(0)), 2)


def test_a_prepared_set_says_so_and_is_whole(tmp_path):
    prepare(ToyConverter(frames_by_log=(2,)), str(tmp_path / "whole"), CONFIG)
    config = dataclasses.replace(CONFIG, image_reduction=2)
    prepare(ToyConverter(frames_by_log=(2,)), str(tmp_path / "half"), config)
    whole, half = (load_manifest(str(tmp_path / name)) for name in ("whole", "half"))
    assert (whole.image_reduction, half.image_reduction) == (1, 2)
    assert "image_reduction" not in (tmp_path / "whole" / "manifest.json").read_text()
    one, other = SampleReader(whole).read(0), SampleReader(half).read(0)
    for full, small in zip(one.cameras, other.cameras, strict=True):
        assert small.image.shape[:2] == small.superpixels.shape == tuple(side // 2 for side in full.image_size)
        assert small.superpixels.max() < 12
    assert 0.5 < half.num_pairs[0] / whole.num_pairs[0] <= 1.02
    assert half.superpixels == whole.superpixels
    with pytest.raises(ShardError, match="image_reduction"):
        prepare(ToyConverter(frames_by_log=(2,)), str(tmp_path / "half"), CONFIG)


def test_refused_settings_name_the_field():
    with pytest.raises(ValueError, match="image_reduction: got 0"):
        PrepareConfig(image_reduction=0)
