"""Messages of cameras as pictures: compressed and raw images of ROS and Foxglove. Videos: `data.convert.logs.video`."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8

from data.convert.logs.base import Message, Picture, Topic
from data.convert.logs.fields import bytes_of, field_of, header_of, reader_of, whole
from data.convert.logs.video import codec_of
from data.storage.damage import DamagedError
from data.storage.decode import PNG_MARK, check_jpeg, decode_jpeg, jpeg_coding, jpeg_size, png_size
from data.storage.encode import check_image_size

_BAYER = {
    "rggb": cv2.COLOR_BayerRGGB2RGB,
    "bggr": cv2.COLOR_BayerBGGR2RGB,
    "gbrg": cv2.COLOR_BayerGBRG2RGB,
    "grbg": cv2.COLOR_BayerGRBG2RGB,
}
"""The colours of the top-left 2 x 2 pixels, row by row -> OpenCV's code of their interpolation."""
_CHANNELS = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "8uc3": (3, cv2.COLOR_BGR2RGB),  # OpenCV's order, as cv_bridge takes it
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "8uc4": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    "8uc1": (1, cv2.COLOR_GRAY2RGB),
    **{f"bayer_{pattern}8": (1, code) for pattern, code in _BAYER.items()},
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUY2),
}
"""Encoding -> bytes of a pixel and OpenCV's code that makes RGB of them."""
_PLANAR = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21}
"""Encoding with a plane of brightness over one of colours of half its height."""
_DEEP = ("mono16",)
_DEPTH = ("16uc1", "32fc1", "compresseddepth")
"""Encodings of raw depth images, and image_transport's word for compressed ones."""
_COLOUR = ("rgb", "bgr")
"""Beginnings of encodings with colours in the format of a compressed image."""


def read_picture(topic: Topic, message: Message, *, white: float | None = None) -> Picture:
    """A message of a camera as a picture; JPEGs are kept as they were recorded where they are baseline and in colour.

    Args:
        topic: of the message.
        message: of one of `PICTURE_TYPES`.
        white: the value of 16-bit images that becomes 255, such as 4095 of a 12-bit camera; larger ones are clipped.

    Raises:
        DamagedError: another type; a depth image or a video; an encoding that is not known; data that do not fit the
            stated size; 16-bit images while nobody says which value is white.
    """
    return reader_of(topic, PICTURE_TYPES, "images")(message, white)


def why_no_picture(form: str) -> str:
    """Why images of an encoding, or a compressed image's format, are none that a camera took; "" where they may be."""
    words = form.lower().replace(";", " ").split()
    depth = any(word in _DEPTH for word in words)
    return f"its messages are depth images ({form}), no pictures of a camera" if depth else ""


# ---- compressed
def _compressed(message: Message, white: float | None) -> Picture:
    """`format` is "<codec>" or "<encoding>; <codec> compressed <order>"; what the data are, their first bytes say."""
    where, stamp_ns, frame = header_of(message)
    said = str(field_of(where, message.content, "format"))
    data = bytes_of(where, field_of(where, message.content, "data")).tobytes()
    if why := why_no_picture(said):
        raise DamagedError("image-broken", f"{where}: {why}; leave the topic out of cameras")
    if codec_of(said):
        raise DamagedError("image-broken", f"{where} has the format {said!r}: a video, which is read in order")
    where = f"{where} (format {said!r})"
    # ROS' image_transport states the order of the colours that it handed to the codec, which takes BGR for granted:
    # of others red and blue are swapped in the file, as its own subscriber undoes.
    encoding, _, rest = said.lower().partition(";")
    swapped = bool(rest) and encoding.startswith(_COLOUR) and "compressed bgr" not in rest
    if data.startswith(b"\xff\xd8"):
        check_jpeg(where, data, jpeg_size(data))
        baseline, components = jpeg_coding(data)
        if baseline and components == 3 and not swapped:
            return Picture(stamp_ns=stamp_ns, frame=frame, jpeg=data)
        plane = decode_jpeg(where, data)
        if components == 1:  # also the mosaic of a colour camera
            plane = plane[..., 0]
    elif data.startswith(PNG_MARK) or (data.startswith(b"RIFF") and data[8:12] == b"WEBP"):
        plane = _unpacked(where, data, white)
    else:
        raise DamagedError("image-broken", f"{where} begins with {data[:12].hex(' ')}, expected a JPEG, PNG or WebP")
    pattern = encoding.strip().removeprefix("bayer_").removesuffix("8")
    if plane.ndim == 2:
        image = cv2.cvtColor(np.ascontiguousarray(plane), _BAYER.get(pattern, cv2.COLOR_GRAY2RGB))
    else:
        image = plane[..., ::-1] if swapped else plane
    return Picture(stamp_ns=stamp_ns, frame=frame, rgb=np.ascontiguousarray(image))


def _unpacked(where: str, data: bytes, white: float | None) -> Shaped[np.ndarray, "H W *channels"]:
    """A PNG or WebP as 8-bit RGB, or as one plane where it is grey."""
    if data.startswith(PNG_MARK):
        check_image_size(where, *png_size(data))  # before the decoder allocates what the header states
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DamagedError("image-broken", f"{where}: {error}") from error
    if image is None:
        raise DamagedError("image-broken", f"{where} cannot be decoded")
    check_image_size(where, *image.shape[:2])
    image = image if image.dtype == np.uint8 else eight_bits(where, image, white)
    return np.asarray(image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def eight_bits(
    where: str, image: Shaped[np.ndarray, "H W *channels"], white: float | None
) -> UInt8[np.ndarray, "H W *channels"]:
    """Values of 16 bits as 0 to 255; `white` becomes 255.

    Raises:
        DamagedError: nobody says what white is.
    """
    if white is None:
        most = int(image.max())
        detail = f"{where} has 16 bits a channel, the largest value is {most} (of a {most.bit_length()}-bit camera?)"
        raise DamagedError("image-broken", f"{detail}; image_max says which one is white")
    return np.asarray(np.rint(np.clip(image / np.float32(white), 0, 1) * 255).astype(np.uint8))


# ---- raw
def _raw(message: Message, white: float | None) -> Picture:
    where, stamp_ns, frame = header_of(message)
    content = message.content
    said = str(field_of(where, content, "encoding"))
    encoding = said.lower()
    if why := why_no_picture(said):
        raise DamagedError("image-broken", f"{where}: {why}; leave the topic out of cameras")
    where = f"{where} (encoding {said!r})"
    size = whole(where, content, "height"), whole(where, content, "width")
    if min(size) < 1:
        raise DamagedError("image-size", f"{where} is {size[0]}x{size[1]} (height x width)")
    check_image_size(where, *size)
    data, step = bytes_of(where, field_of(where, content, "data")), whole(where, content, "step")
    if encoding in _CHANNELS:
        channels, code = _CHANNELS[encoding]
        image = _rows(where, data, size[0], size[1] * channels, step).reshape(*size, channels)
        if channels == 2 and size[1] % 2:
            raise DamagedError("image-size", f"{where} is {size[1]} wide; pairs of pixels share their colour")
    elif encoding in _PLANAR:
        if size[0] % 2 or size[1] % 2:
            raise DamagedError("image-size", f"{where} is {size[0]}x{size[1]}; blocks of 2x2 pixels share their colour")
        code = _PLANAR[encoding]
        image = _rows(where, data, size[0] * 3 // 2, size[1], step)
    elif encoding in _DEEP:
        order = ">" if getattr(content, "is_bigendian", False) else "<"
        values = _rows(where, data, size[0], size[1] * 2, step).view(f"{order}u2")
        image, code = eight_bits(where, values, white), cv2.COLOR_GRAY2RGB
    else:
        known = ", ".join((*_CHANNELS, *_PLANAR, *_DEEP))
        raise DamagedError("image-broken", f"{where} is none of those that are read: {known}")
    rgb = image if code is None else cv2.cvtColor(image, code)
    return Picture(stamp_ns=stamp_ns, frame=frame, rgb=np.asarray(rgb))


def _rows(where: str, data: UInt8[np.ndarray, " n"], rows: int, used: int, step: int) -> UInt8[np.ndarray, "rows used"]:
    """Rows of so many used bytes, `step` apart, without the padding between them."""
    if step < used:
        raise DamagedError("array-broken", f"{where}: step is {step}, a row has {used} bytes")
    needed = step * (rows - 1) + used
    if len(data) < needed:
        raise DamagedError("array-broken", f"{where}: {len(data)} bytes of data, {rows} rows need {needed}")
    return np.ascontiguousarray(np.ndarray((rows, used), np.uint8, data, strides=(step, 1)))


PICTURE_TYPES: dict[str, Callable[[Message, float | None], Picture]] = {
    "sensor_msgs/msg/CompressedImage": _compressed,
    "foxglove.CompressedImage": _compressed,
    "foxglove_msgs/msg/CompressedImage": _compressed,
    "sensor_msgs/msg/Image": _raw,
    "foxglove.RawImage": _raw,
    "foxglove_msgs/msg/RawImage": _raw,
}
"""Type of messages -> what reads them."""
