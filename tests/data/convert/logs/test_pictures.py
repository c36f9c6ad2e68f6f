"""Images of every encoding and format, made by hand, by OpenCV and by PyAV; depth images and others refused by name."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from data.convert.logs.base import Message, Picture
from data.convert.logs.pictures import read_picture
from data.storage.damage import DamagedError
from tests.helpers.log_messages import STAMP_NS, from_json, header, made, protobuf, recorded, topic

HEIGHT, WIDTH = 6, 8
STAMP = {"sec": STAMP_NS // 10**9, "nsec": STAMP_NS % 10**9}


def smooth() -> np.ndarray:
    """RGB that survives JPEG and mosaics to a few grey levels; its channels differ."""
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([40 + 20 * u, 120 + 5 * v, 220 - 15 * u], axis=-1).astype(np.uint8)


RGB = smooth()
GREY = np.arange(48, dtype=np.uint8).reshape(HEIGHT, WIDTH) * 5


# ---- raw
def raw(encoding: str, rows: np.ndarray, *, padding: int = 0, **changed: object) -> Picture:
    """An Image of rows of bytes."""
    rows = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xAA)
    fields = {
        **{"header": header("camera"), "height": HEIGHT, "width": WIDTH, "encoding": encoding, "is_bigendian": 0},
        **{"step": padded.shape[1], "data": padded.reshape(-1)},
    }
    return read_picture(*recorded(made("sensor_msgs/msg/Image", **{**fields, **changed}), "/image"))


def with_alpha(image: np.ndarray) -> np.ndarray:
    return np.dstack([image, np.full(image.shape[:2], 9, np.uint8)])


def mosaic(pattern: str) -> np.ndarray:
    """What a sensor behind such a filter sees of a picture of one colour."""
    colour = dict(zip("rgb", (200, 100, 50), strict=True))
    cell = np.array([colour[letter] for letter in pattern], np.uint8).reshape(2, 2)
    return np.tile(cell, (HEIGHT // 2, WIDTH // 2))


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "rows", "expected"),
    [
        ("rgb8", RGB, RGB),
        ("bgr8", RGB[..., ::-1], RGB),
        ("8UC3", RGB[..., ::-1], RGB),
        ("rgba8", with_alpha(RGB), RGB),
        ("bgra8", with_alpha(RGB[..., ::-1]), RGB),
        ("mono8", GREY, np.dstack([GREY] * 3)),
        ("8UC1", GREY, np.dstack([GREY] * 3)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_raw_encodings(encoding: str, rows: np.ndarray, expected: np.ndarray, padding: int) -> None:
    picture = raw(encoding, rows, padding=padding)
    assert (picture.stamp_ns, picture.frame, picture.jpeg) == (STAMP_NS, "camera", None)
    np.testing.assert_array_equal(picture.rgb, expected)


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_mosaics_are_interpolated_by_their_own_pattern(pattern: str) -> None:
    rgb = raw(f"bayer_{pattern}8", mosaic(pattern), padding=3).rgb
    np.testing.assert_array_equal(rgb, np.broadcast_to(np.array([200, 100, 50], np.uint8), (HEIGHT, WIDTH, 3)))


def yuv_of_one_colour() -> tuple[int, int, int, tuple[int, int, int]]:
    """Brightness and the two colours of a plain picture (BT.601, 16 to 235), and its RGB."""
    r, g, b = 180, 90, 40
    y = 16 + (65.738 * r + 129.057 * g + 25.064 * b) / 256
    u = 128 + (-37.945 * r - 74.494 * g + 112.439 * b) / 256
    v = 128 + (112.439 * r - 94.154 * g - 18.285 * b) / 256
    return round(y), round(u), round(v), (r, g, b)


@pytest.mark.parametrize(
    ("encoding", "order"),
    [("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv"), ("nv12", "uv"), ("nv21", "vu")],
)
def test_brightness_and_colour_apart(encoding: str, order: str) -> None:
    y, u, v, colour = yuv_of_one_colour()
    values = {"y": y, "u": u, "v": v}
    chroma = np.array([values[letter] for letter in order], np.uint8)
    if len(order) == 4:
        rows = np.tile(chroma, (HEIGHT, WIDTH // 2))
    else:
        rows = np.concatenate([np.full((HEIGHT, WIDTH), y, np.uint8), np.tile(chroma, (HEIGHT // 2, WIDTH // 2))])
    rgb = raw(encoding, rows, padding=4).rgb
    assert rgb is not None
    np.testing.assert_allclose(rgb.astype(int), np.broadcast_to(colour, rgb.shape), atol=3)


@pytest.mark.parametrize("big_endian", [0, 1], ids=["little", "big"])
def test_sixteen_bits_need_a_white(big_endian: int) -> None:
    values = (GREY.astype(np.uint16) * 16)[..., None].astype(">u2" if big_endian else "<u2")
    padded = np.pad(values.view(np.uint8).reshape(HEIGHT, -1), ((0, 0), (0, 6)), constant_values=0xFF)
    fields = {
        **{"header": header("camera"), "height": HEIGHT, "width": WIDTH, "encoding": "mono16"},
        **{"is_bigendian": big_endian, "step": padded.shape[1], "data": padded.reshape(-1)},
    }
    at = recorded(made("sensor_msgs/msg/Image", **fields), "/infrared")
    rgb = read_picture(*at, white=4080.0).rgb
    np.testing.assert_array_equal(rgb, np.dstack([GREY] * 3))
    with pytest.raises(DamagedError, match=r"the largest value is 3760 \(of a 12-bit camera\?\); image_max says which"):
        read_picture(*at)


@pytest.mark.parametrize(
    ("encoding", "rows", "changed", "said"),
    [
        (
            "16UC1",
            GREY.astype("<u2"),
            {},
            "its messages are depth images (16UC1), no pictures of a camera; leave the topic out of cameras",
        ),
        ("32FC1", GREY.astype("<f4"), {}, "its messages are depth images (32FC1)"),
        ("rgb16", RGB.astype("<u2"), {}, "(encoding 'rgb16') is none of those that are read: rgb8, bgr8"),
        ("rgb8", RGB, {"step": 10}, "step is 10, a row has 24 bytes"),
        ("rgb8", RGB, {"height": 7}, "144 bytes of data, 7 rows need 168"),
        ("rgb8", RGB, {"width": 0}, "is 6x0 (height x width)"),
        ("rgb8", RGB, {"width": 90_000, "step": 270_000}, "90000"),
        ("yuv422", RGB[..., :2], {"width": 7}, "is 7 wide; pairs of pixels share their colour"),
        ("nv12", GREY, {"height": 5}, "is 5x8; blocks of 2x2 pixels share their colour"),
    ],
    ids=["depth 16UC1", "depth 32FC1", "rgb16", "step", "cut", "empty", "too large", "odd yuv422", "odd nv12"],
)
def test_raw_images_that_cannot_be_read_say_why(encoding, rows, changed, said) -> None:
    with pytest.raises(DamagedError) as error:
        raw(encoding, rows, **changed)
    assert said in error.value.detail


# ---- compressed
def compressed(said: str, data: bytes, white: float | None = None) -> Picture:
    fields = {"header": header("camera"), "format": said, "data": np.frombuffer(data, np.uint8)}
    return read_picture(*recorded(made("sensor_msgs/msg/CompressedImage", **fields), "/image/compressed"), white=white)


def packed(ending: str, image: np.ndarray, *options: int) -> bytes:
    """A file of an image whose colours are in OpenCV's order."""
    return bytes(cv2.imencode(ending, image, list(options))[1])


BGR = np.ascontiguousarray(RGB[..., ::-1])
FINE = (
    *(cv2.IMWRITE_JPEG_QUALITY, 100),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)


@pytest.mark.parametrize("said", ["jpeg", "jpg", "", "rgb8; jpeg compressed bgr8", "bgr8; jpeg compressed bgr8", "png"])
def test_jpegs_in_colour_are_kept_whatever_they_are_called(said: str) -> None:
    data = packed(".jpg", BGR, *FINE)
    picture = compressed(said, data)
    assert (picture.jpeg, picture.rgb) == (data, None)
    assert (picture.stamp_ns, picture.frame) == (STAMP_NS, "camera")


@pytest.mark.parametrize(
    ("said", "image", "options", "expected"),
    [
        ("jpeg", BGR, (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), RGB),
        ("jpeg", GREY // 8 + 100, (), np.dstack([GREY // 8 + 100] * 3)),
        ("mono8; jpeg compressed ", GREY // 8 + 100, (), np.dstack([GREY // 8 + 100] * 3)),
        ("rgb8; jpeg compressed rgb8", RGB, (), RGB),
        ("bgr8; jpeg compressed ", RGB, (), RGB),
    ],
    ids=["progressive", "grey", "mono8", "compressed rgb8", "compressed as it was"],
)
def test_other_jpegs_are_decoded(said, image, options, expected) -> None:
    picture = compressed(said, packed(".jpg", image, *FINE, *options))
    assert picture.jpeg is None
    assert picture.rgb is not None
    np.testing.assert_allclose(picture.rgb.astype(int), expected, atol=3)
    if expected is RGB:  # red rises to the right and blue falls
        assert (picture.rgb[0, 0] < picture.rgb[0, -1])[0]
        assert (picture.rgb[0, 0] > picture.rgb[0, -1])[2]


def test_a_mosaic_in_a_compressed_image_is_interpolated() -> None:
    picture = compressed("bayer_grbg8; png compressed ", packed(".png", mosaic("grbg")))
    np.testing.assert_array_equal(picture.rgb, np.broadcast_to((200, 100, 50), (HEIGHT, WIDTH, 3)))


@pytest.mark.parametrize(
    ("said", "ending", "image", "options", "expected"),
    [
        ("png", ".png", BGR, (), RGB),
        ("bgr8; png compressed bgr8", ".png", BGR, (), RGB),
        ("bgr8; png compressed ", ".png", RGB, (), RGB),
        ("mono8; png compressed ", ".png", GREY, (), np.dstack([GREY] * 3)),
        ("bgra8; png compressed bgr8", ".png", with_alpha(BGR), (), RGB),
        ("webp", ".webp", BGR, (cv2.IMWRITE_WEBP_QUALITY, 101), RGB),
        ("jpeg", ".png", BGR, (), RGB),
    ],
    ids=["png", "bgr8 as bgr8", "as it was", "mono8", "alpha", "webp", "png called jpeg"],
)
def test_lossless_images(said, ending, image, options, expected) -> None:
    picture = compressed(said, packed(ending, image, *options))
    assert picture.jpeg is None
    np.testing.assert_array_equal(picture.rgb, expected)


def test_pngs_of_sixteen_bits_need_a_white() -> None:
    data = packed(".png", GREY.astype(np.uint16) * 16)
    np.testing.assert_array_equal(compressed("mono16; png compressed ", data, 4080.0).rgb, np.dstack([GREY] * 3))
    with pytest.raises(DamagedError, match="the largest value is 3760"):
        compressed("mono16; png compressed ", data)


@pytest.mark.parametrize(
    ("said", "data", "expected"),
    [
        ("16UC1; compressedDepth png", bytes(20), "depth images .16UC1; compressedDepth png."),
        (
            "32FC1; compressedDepth",
            bytes(20),
            r"depth images \(32FC1; compressedDepth\), no pictures of a camera; leave the topic out of cameras",
        ),
        ("h264", b"\x00\x00\x00\x01\x65", "has the format 'h264': a video, which is read in order"),
        ("tiff", b"II*\x00" + bytes(20), "begins with 49 49 2a 00"),
        ("jpeg", packed(".jpg", BGR)[:-40], "ends before its end-of-image mark"),
        ("png", packed(".png", BGR)[:-30], "cannot be decoded"),
        ("jpeg", b"", "begins with , expected a JPEG, PNG or WebP"),
    ],
    ids=["compressedDepth png", "compressedDepth", "h264", "tiff", "cut JPEG", "cut PNG", "empty"],
)
def test_compressed_images_that_cannot_be_read_say_why(said: str, data: bytes, expected: str) -> None:
    with pytest.raises(DamagedError, match=expected) as error:
        compressed(said, data)
    assert error.value.reason == "image-broken"
    assert f"/image/compressed at {STAMP_NS} ns" in error.value.detail


# ---- Foxglove
def test_foxglove_images() -> None:
    data = packed(".jpg", BGR, *FINE)
    from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage

    message = CompressedImage(frame_id="camera", data=data, format="jpeg")
    message.timestamp.FromNanoseconds(STAMP_NS)
    fields = {"timestamp": STAMP, "frame_id": "camera", "data": data, "format": "jpeg"}
    for at in (protobuf(message), from_json("foxglove.CompressedImage", fields)):
        picture = read_picture(*at)
        assert (picture.stamp_ns, picture.frame, picture.jpeg) == (STAMP_NS, "camera", data)
    plain = {
        **{"timestamp": STAMP, "frame_id": "camera", "width": WIDTH, "height": HEIGHT, "encoding": "rgb8"},
        **{"step": WIDTH * 3, "data": RGB.tobytes()},
    }
    np.testing.assert_array_equal(read_picture(*from_json("foxglove.RawImage", plain)).rgb, RGB)
    avif = {**fields, "data": b"\x00\x00\x00\x20ftypavif", "format": "avif"}
    with pytest.raises(DamagedError, match="begins with 00 00 00 20 66 74 79 70 61 76 69 66"):
        read_picture(*from_json("foxglove.CompressedImage", avif))


def test_other_types_are_refused_by_name() -> None:
    with pytest.raises(DamagedError, match=r"expected images: one of foxglove\.CompressedImage"):
        read_picture(topic("sensor_msgs/msg/PointCloud2"), Message(topic="/topic", written_ns=0, content=None))
