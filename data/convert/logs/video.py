"""Topics whose messages are frames of one video (H.264, H.265, VP9, AV1), decoded in their order by PyAV ([video]).

A frame that is no key frame needs those before it, back to the last key frame: who wants pictures from some time on
begins reading a few seconds before it, and gets them from the first key frame on.

Sources: ITU-T H.264 and H.265, Annex B; the VP9 bitstream, 6.2; AV1, 5.3 (OBUs with their sizes) and 5.9.2; Foxglove's
CompressedVideo says what a message holds.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from data.convert.logs.base import Message, Picture, Topic
from data.convert.logs.fields import bytes_of, field_of, header_of
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

CODECS = {
    **{"h264": "h264", "avc": "h264", "avc1": "h264", "h265": "hevc", "hevc": "hevc"},
    **{"vp9": "vp9", "av1": "av1"},
}
"""What a message calls its stream -> the codec."""
_DECODERS = {"h264": "h264", "hevc": "hevc", "vp9": "vp9", "av1": "libdav1d"}
"""Codec -> FFmpeg's decoder; its own of AV1 needs a GPU."""
VIDEO_TYPES = ("foxglove.CompressedVideo", "foxglove_msgs/msg/CompressedVideo")
"""Types of messages that are always parts of a video; sensor_msgs/msg/CompressedImage is by its `format`."""

_START = b"\x00\x00\x01"
"""Before each unit of a stream in Annex B's form."""
_KEY_UNITS = {"h264": frozenset((5,)), "hevc": frozenset(range(16, 22))}
"""Types of the units that a decoder can begin at: IDR, and H.265's random access points."""
_AV1_SEQUENCE, _AV1_FRAMES = 1, (3, 6)
"""Types of AV1's OBUs: sequence header; frame header, frame."""


def codec_of(said: str) -> str | None:
    """The codec that a message's `format` names, of `CODECS`; None for images."""
    words = said.lower().replace(";", " ").split()
    return next((CODECS[word] for word in words if word in CODECS), None)


def is_video(topic: Topic, message: Message) -> bool:
    """Whether a message is a part of a video: by its type, or by what a compressed image says of itself."""
    return topic.type in VIDEO_TYPES or codec_of(str(getattr(message.content, "format", ""))) is not None


def is_key_frame(codec: str, data: bytes) -> bool:
    """Whether a decoder can begin at a message: of an Annex B stream, of VP9, or of AV1's OBUs."""
    if codec == "vp9":
        return _is_vp9_key(data)
    if codec == "av1":
        return _is_av1_key(data)
    position = data.find(_START)
    while 0 <= position < len(data) - 3:
        unit = data[position + 3]
        if (unit & 0x1F if codec == "h264" else unit >> 1 & 0x3F) in _KEY_UNITS[codec]:
            return True
        position = data.find(_START, position + 3)
    return False


def _is_vp9_key(data: bytes) -> bool:
    """Two bits of marker and two of profile (and one more of profile 3); then: not shown again, and a key frame."""
    if not data or data[0] >> 6 != 0b10:
        return False
    return not data[0] & (0b0110 if data[0] & 0b110000 == 0b110000 else 0b1100)


def _is_av1_key(data: bytes) -> bool:
    """A sequence header, and behind it a frame that begins: not shown again, and a key frame."""
    at, defined = 0, False
    while at < len(data):
        kind, extended, sized = data[at] >> 3 & 15, data[at] >> 2 & 1, data[at] >> 1 & 1
        at += 1 + extended
        length, shift = 0, 0
        while sized and at < len(data):
            length |= (data[at] & 0x7F) << shift
            shift, at, more = shift + 7, at + 1, data[at] & 0x80
            if not more:
                break
        if kind == _AV1_SEQUENCE:
            defined = True
        elif kind in _AV1_FRAMES:
            return defined and at < len(data) and not data[at] & 0b11100000
        if not sized:
            return False
        at += length
    return False


class VideoDecoder:
    """Decodes the messages of one topic in the order in which they were written.

    Attributes:
        waiting: messages that gave no picture because no key frame had come before them.
    """

    def __init__(self, topic: Topic) -> None:
        self._topic = topic
        self._codec = ""
        self._context: Any = None
        self._numbers = itertools.count()
        self._headers: dict[int, tuple[int, str]] = {}  # of messages whose pictures have not come out yet
        self.waiting = 0

    def read(self, message: Message) -> list[Picture]:
        """The pictures that a message completes: its own as a rule, of streams with B-frames those of earlier ones.

        Raises:
            DamagedError: the message is none of a video, or cannot be decoded; the stream goes on at its next key
                frame.
            ShardError: PyAV is not installed.
        """
        where, stamp_ns, frame = header_of(message)
        said = str(field_of(where, message.content, "format"))
        codec = codec_of(said)
        if codec is None:
            raise DamagedError("image-broken", f"{where} has the format {said!r}, expected one of {', '.join(CODECS)}")
        data = bytes_of(where, field_of(where, message.content, "data")).tobytes()
        if self._codec not in ("", codec):
            raise DamagedError("image-broken", f"{where} has the format {said!r}, those before it are {self._codec}")
        if self._context is None:
            if not is_key_frame(codec, data):
                self.waiting += 1
                return []
            self._context, self._codec = _decoder(codec), codec
        number = next(self._numbers)
        self._headers[number] = (stamp_ns, frame)
        return self._decode(where, data, number)

    def rest(self) -> list[Picture]:
        """What is still to come at the end of the stream, as of streams with B-frames."""
        if self._context is None:
            return []
        pictures = self._decode(f"{self._topic.name}, the end", None, -1)
        self._context = None
        return pictures

    def _decode(self, where: str, data: bytes | None, number: int) -> list[Picture]:
        import av

        packet = None if data is None else av.Packet(data)
        if packet is not None:
            packet.pts = number
        try:
            frames = self._context.decode(packet)
        except av.error.FFmpegError as error:
            self._context = None
            self._headers.clear()
            raise DamagedError("image-broken", f"{where}: {error}") from error
        pictures = []
        for frame in frames:
            if frame.pts not in self._headers:
                self._context = None
                self._headers.clear()
                raise DamagedError("image-broken", f"{where}: it holds more than one picture, expected one a message")
            stamp_ns, name = self._headers.pop(frame.pts)
            rgb = np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
            pictures.append(Picture(stamp_ns=stamp_ns, frame=name, rgb=rgb))
        return pictures


def _decoder(codec: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise ShardError(f"videos need PyAV ({error}): pip install 'tandem-pretrain[video]'") from error
    try:
        context = av.CodecContext.create(_DECODERS[codec], "r")
    except av.codec.codec.UnknownCodecError as error:
        remedy = "install PyAV's wheel, which has it: pip install --only-binary :all: 'tandem-pretrain[video]'"
        raise ShardError(f"this PyAV has no decoder {_DECODERS[codec]!r} of {codec}; {remedy}") from error
    context.thread_count = 1  # several would hold pictures back; whoever reads has a process a core
    return context
