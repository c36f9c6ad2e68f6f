"""Videos of all codecs that are read, made by PyAV's encoders, message by message as cameras publish them."""

from __future__ import annotations

import fractions
import functools
import sys

import av
import numpy as np
import pytest

from data.convert.logs.base import Message, Topic
from data.convert.logs.video import VideoDecoder, codec_of, is_key_frame, is_video
from data.storage.damage import DamagedError
from data.storage.shard import ShardError
from tests.helpers.log_messages import STAMP_NS, from_json, header, made, recorded

FRAMES, EVERY_KEY, SIDE = 7, 4, 64
ENCODERS = {"h264": "libx264", "h265": "libx265", "vp9": "libvpx-vp9", "av1": "libsvtav1"}
OPTIONS = {
    "h264": {"preset": "ultrafast", "tune": "zerolatency", "qp": "10"},
    "h265": {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "x265-params": "log-level=none:qp=10:pools=1:repeat-headers=1",
    },
    "vp9": {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "crf": "10", "b": "0"},
    "av1": {"preset": "12", "crf": "10", "svtav1-params": "pred-struct=1:lp=1"},
}


def picture(number: int) -> np.ndarray:
    """A grey level of its own for each frame, over a slope, so that a wrong one would be seen."""
    row = np.linspace(0, 60, SIDE)
    return np.dstack([np.tile(row + 20 * number + 20, (SIDE, 1))] * 3).astype(np.uint8)


@functools.cache
def stream(codec: str) -> tuple[bytes, ...]:
    """One message a frame, with a key frame every few."""
    return tuple(data for _, data in encoded(codec, 0))


def encoded(codec: str, b_frames: int) -> list[tuple[int, bytes]]:
    """Number of the picture of each message, and its bytes."""
    context = av.CodecContext.create(ENCODERS[codec], "w")
    context.width = context.height = SIDE
    context.pix_fmt, context.time_base, context.gop_size = "yuv420p", fractions.Fraction(1, 10), EVERY_KEY
    context.thread_count = 1
    options = dict(OPTIONS[codec])
    if b_frames:
        del options["tune"]
        context.max_b_frames = b_frames
        options["bf"] = str(b_frames)
    context.options = options
    packets = []
    for number in range(FRAMES):
        frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
        frame.pts = number
        packets += context.encode(frame)
    return [(packet.pts, bytes(packet)) for packet in (*packets, *context.encode(None))]


def message(codec: str, data: bytes, number: int) -> tuple[Topic, Message]:
    at = STAMP_NS + number * 100_000_000
    fields = {
        "timestamp": {"sec": at // 10**9, "nsec": at % 10**9},
        "frame_id": "camera",
        "data": data,
        "format": codec,
    }
    return from_json("foxglove.CompressedVideo", fields)


@pytest.mark.parametrize("codec", ENCODERS)
def test_each_message_gives_its_own_picture(codec: str) -> None:
    packets = stream(codec)
    assert [is_key_frame(str(codec_of(codec)), data) for data in packets] == [
        number % EVERY_KEY == 0 for number in range(FRAMES)
    ]
    decoder = VideoDecoder(message(codec, b"", 0)[0])
    pictures = [one for number, data in enumerate(packets) for one in decoder.read(message(codec, data, number)[1])]
    pictures += decoder.rest()
    assert [one.stamp_ns for one in pictures] == [STAMP_NS + number * 100_000_000 for number in range(FRAMES)]
    for number, one in enumerate(pictures):
        assert (one.frame, one.jpeg) == ("camera", None)
        assert one.rgb is not None
        np.testing.assert_allclose(one.rgb.astype(int), picture(number), atol=8)
    assert decoder.waiting == 0


def test_pictures_that_were_sent_out_of_order_keep_their_own_stamps() -> None:
    """Of a stream with B-frames, whose messages come in the order of decoding, with the stamps of their pictures."""
    packets = encoded("h264", 2)
    assert [number for number, _ in packets] != list(range(FRAMES))
    decoder = VideoDecoder(message("h264", b"", 0)[0])
    pictures = [one for number, data in packets for one in decoder.read(message("h264", data, number)[1])]
    pictures += decoder.rest()
    assert sorted(one.stamp_ns for one in pictures) == [STAMP_NS + n * 100_000_000 for n in range(FRAMES)]
    for one in pictures:
        assert one.rgb is not None
        expected = picture((one.stamp_ns - STAMP_NS) // 100_000_000)
        np.testing.assert_allclose(one.rgb.astype(int), expected, atol=12)


def test_a_stream_begins_at_a_key_frame() -> None:
    packets = stream("h264")
    decoder = VideoDecoder(message("h264", b"", 0)[0])
    pictures = [one for number in range(2, FRAMES) for one in decoder.read(message("h264", packets[number], number)[1])]
    assert decoder.waiting == 2
    assert [one.stamp_ns for one in pictures] == [STAMP_NS + n * 100_000_000 for n in range(4, FRAMES)]
    assert VideoDecoder(message("h264", b"", 0)[0]).rest() == []


def test_damage_costs_its_message_and_the_stream_goes_on_at_a_key_frame() -> None:
    packets = stream("h264")
    decoder = VideoDecoder(message("h264", b"", 0)[0])
    assert len(decoder.read(message("h264", packets[0], 0)[1])) == 1
    with pytest.raises(DamagedError) as error:
        decoder.read(message("h264", b"\x00\x00\x00\x01\x41" + bytes(40), 1)[1])
    assert error.value.reason == "image-broken"
    assert f"/topic at {STAMP_NS + 100_000_000} ns" in error.value.detail
    assert decoder.read(message("h264", packets[2], 2)[1]) == []
    assert [one.stamp_ns for one in decoder.read(message("h264", packets[4], 4)[1])] == [STAMP_NS + 400_000_000]


def test_compressed_images_may_be_a_video() -> None:
    fields = {"header": header("camera"), "format": "h264", "data": np.frombuffer(stream("h264")[0], np.uint8)}
    topic, content = recorded(made("sensor_msgs/msg/CompressedImage", **fields), "/image/h264")
    assert is_video(topic, content)
    (one,) = VideoDecoder(topic).read(content)
    assert one.rgb is not None
    np.testing.assert_allclose(one.rgb.astype(int), picture(0), atol=8)
    still = {**fields, "format": "jpeg"}
    assert not is_video(*recorded(made("sensor_msgs/msg/CompressedImage", **still)))


def test_other_streams_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    topic, vp8 = message("vp8", b"", 0)
    assert is_video(topic, vp8)
    with pytest.raises(DamagedError, match=r"has the format 'vp8', expected one of h264, .*, vp9, av1"):
        VideoDecoder(topic).read(vp8)
    decoder = VideoDecoder(topic)
    decoder.read(message("h264", stream("h264")[0], 0)[1])
    with pytest.raises(DamagedError, match="has the format 'h265', those before it are h264"):
        decoder.read(message("h265", stream("h265")[0], 1)[1])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ShardError, match=r"videos need PyAV .*: pip install 'tandem-pretrain\[video\]'"):
        VideoDecoder(topic).read(message("h264", stream("h264")[0], 0)[1])
