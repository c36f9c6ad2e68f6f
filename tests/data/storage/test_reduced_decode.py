"""Images decoded no larger than their crop needs: the same geometry, and the same grey levels up to rounding."""

import dataclasses
import itertools
import math

import cv2
import numpy as np
import pytest

from data.batch_spec import BatchSpec
from data.geometry import project, transform
from data.order import SampleDraws
from data.storage.damage import DamagedError
from data.storage.decode import decode_jpeg
from data.storage.encode import CodecConfig, encode_sample
from data.storage.manifest import SetInfo, load_manifest
from data.storage.reader import SampleError, SampleReader
from data.storage.shard_writer import join_manifest, write_shard
from data.views.augment import AugmentConfig, ImageAugmentConfig, PixelTransform, draw_pixel_transform
from data.views.reading import read_view
from data.views.view import ViewConfig
from tests.helpers.samples import CAMERA_NAMES, make_sample

SIZE, OUT = (480, 800), (56, 96)


def jpeg_of(image: np.ndarray) -> bytes:
    done, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert done
    return bytes(data.tobytes())


def texture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Detail of every size, as in photographs: each octave half as strong as the one before."""
    rng = np.random.default_rng(seed)
    image = np.full((*size, 3), 128.0)
    for octave in range(1, 7):
        cells = rng.normal(0, 30 / octave, (3 * 2**octave, 5 * 2**octave, 3))
        image += cv2.resize(cells, size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(image, 0, 255).astype(np.uint8)


def crops(count: int, size: tuple[int, int] = SIZE, out: tuple[int, int] = OUT) -> list[PixelTransform]:
    rng, config = np.random.default_rng(3), AugmentConfig(min_pairs=1)
    uv = rng.uniform(0, 1, (500, 2)) * size[::-1]
    return [draw_pixel_transform(rng, uv, size, out, config) for _ in range(count)]


def test_crops_lie_between_the_pixels_of_the_reduced_image_and_are_no_smaller_than_the_result():
    seen = set()
    for size, out in itertools.product([(900, 1600), (375, 1242), (480, 640), (96, 160)], [(224, 416), (56, 96)]):
        for crop in crops(50, size, out):
            factor = crop.reduction
            seen.add(factor)
            assert all(side % factor == 0 for side in (crop.top, crop.left, crop.height, crop.width))
            assert factor == 1 or (crop.height >= factor * out[0] and crop.width >= factor * out[1])
            # Whole images with odd sides stay as they are; all other crops are decoded as small as they can be.
            if (crop.height, crop.width) != size:
                assert factor == 8 or crop.height < 2 * factor * out[0] or crop.width < 2 * factor * out[1]
    assert seen == {1, 2, 4, 8}


def test_grey_levels_are_those_of_the_whole_image():
    """Both average; they differ by the shape of the average and by rounding."""
    jpeg = jpeg_of(texture(0))
    whole = decode_jpeg("x", jpeg)
    reduced = [crop for crop in crops(24) if crop.reduction > 1]
    assert len(reduced) > 10
    for crop in reduced:
        expected = crop.image(whole).astype(float)
        got = crop.image(decode_jpeg("x", jpeg, crop.reduction), crop.reduction).astype(float)
        assert np.abs(got - expected).mean() < 1.0
        assert abs((got - expected).mean()) < 0.1


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_edges_stay_where_they_are(axis, mirrored):
    """An edge's place, from how much of the result is bright, against where `uv` says that it comes to lie."""
    for factor in (1, 2, 4):
        for edge in (201, 222, 243):  # odd, so no multiple of the blocks that are averaged
            image = np.zeros((*SIZE, 3), np.uint8)
            image[(slice(edge, None), slice(None))[:: 1 if axis == 0 else -1]] = 255
            place = PixelTransform(80, 120, 56 * 5, 96 * 5, OUT, mirrored)
            small = place.image(decode_jpeg("x", jpeg_of(image), factor), factor).astype(float)[..., 0]
            bright = small.sum(axis=axis) / 255
            # Between two pixels' centres lies the border of the bright part.
            uv = place.uv(np.array([[edge - 0.5, edge - 0.5]]))[0]
            end = uv[1 - axis] + 0.5
            expected = end if axis == 1 and mirrored else OUT[axis] - end
            np.testing.assert_allclose(bright, expected, atol=0.1)


def test_dots_are_found_where_pairs_say(tmp_path):
    """Through shards and loader: a bright square drawn around a point's pixel is bright at the pair's coordinates."""
    rng = np.random.default_rng(1)
    sample = make_sample(rng, num_points=400, image_size=SIZE)
    cameras = []
    for camera in sample.cameras:
        uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
        image = np.zeros((*SIZE, 3), np.uint8)
        for u, v in uv[depth > 1]:
            if 8 < u < SIZE[1] - 8 and 8 < v < SIZE[0] - 8:
                cv2.circle(image, (round(u), round(v)), 10, (255, 255, 255), -1)
        cameras.append(dataclasses.replace(camera, image=image))
    table = write_shard(tmp_path / "shard-000000.tar", [dataclasses.replace(sample, cameras=tuple(cameras))])
    info = SetInfo(set_name="dots", camera_names=CAMERA_NAMES, logs=("log-000",), splits=("train",))
    reader = SampleReader(join_manifest(str(tmp_path), info, [table]))
    config = ViewConfig(image_size=OUT, augment=AugmentConfig(min_pairs=5))
    factors = set()
    for epoch in range(12):
        view = read_view(reader, 0, config, BatchSpec(superpixels=True), SampleDraws(0, epoch, 0), None)
        factors |= {moved.reduction for moved in view.cameras.transforms}
        columns, rows = np.rint(view.pairs.uv).astype(int).T
        bright = np.stack(view.images)[view.pairs.camera, rows, columns, 0]
        inside = (columns > 3) & (columns < OUT[1] - 4) & (rows > 3) & (rows < OUT[0] - 4)
        assert inside.sum() > 20
        assert np.median(bright[inside]) > 240
        assert (bright[inside] > 128).mean() > 0.95
    assert max(factors) >= 2


def test_sides_are_rounded_up_and_other_files_refused():
    jpeg = jpeg_of(texture(1, (75, 101)))
    for factor in (1, 2, 4, 8):
        assert decode_jpeg("x", jpeg, factor).shape == (math.ceil(75 / factor), math.ceil(101 / factor), 3)
    grey = cv2.imencode(".jpg", texture(2, (64, 64))[..., 0])[1].tobytes()
    image = decode_jpeg("x", grey, 2)
    assert image.shape == (32, 32, 3)
    assert (image[..., :1] == image).all()
    for broken in (jpeg[:-40], jpeg[:200] + b"\xff\xd9", b"\xff\xd8\xff\xd9"):
        with pytest.raises(DamagedError, match="image-broken"):
            decode_jpeg("x", broken, 2)


def test_an_image_that_was_stored_broken_is_a_counted_skip(tmp_path):
    """Its checksum is right, its header and its end too: only decoding finds it, after the crop was drawn."""
    sample = make_sample(np.random.default_rng(0))
    members = encode_sample(sample, CodecConfig())
    jpeg = members["front.jpg"]
    # Without its tables nothing can be decoded.
    start = jpeg.index(b"\xff\xdb")
    end = jpeg.index(b"\xff\xc0")
    broken = jpeg[:start] + jpeg[end:]
    cameras = tuple(
        dataclasses.replace(camera, jpeg=broken) if camera.name == "front" else camera for camera in sample.cameras
    )
    table = write_shard(tmp_path / "shard-000000.tar", [dataclasses.replace(sample, cameras=cameras)])
    info = SetInfo(set_name="one", camera_names=CAMERA_NAMES, logs=("log-000",), splits=("train",))
    join_manifest(str(tmp_path), info, [table])
    reader = SampleReader(load_manifest(str(tmp_path)))
    config = ViewConfig(
        image_size=(24, 48), augment=AugmentConfig(min_pairs=1, image=ImageAugmentConfig(enabled=False))
    )
    with pytest.raises(SampleError) as caught:
        read_view(reader, 0, config, BatchSpec(), SampleDraws(0, 0, 0), None)
    assert (caught.value.reason, caught.value.key) == ("image-broken", sample.key)
