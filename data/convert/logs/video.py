"""Topics whose messages are frames of one H.264 or H.265 stream, decoded one after the other by PyAV (extra `[video]`).

A frame that is no key frame needs those before it, back to the last key frame: who wants pictures from some time on
begins reading a few seconds before it, and gets them from the first key frame on.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from data.convert.logs.base import Message, Picture, Topic
from data.convert.logs.fields import bytes_of, field_of, header_of
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

CODECS = {"h264": "h264", "avc": "h264", "avc1": "h264", "h265": "hevc", "hevc": "hevc"}
"""What a message calls its stream -> the codec."""
VIDEO_TYPES = ("foxglove.CompressedVideo", "foxglove_msgs/msg/CompressedVideo")
"""Types of messages that are always parts of a video; sensor_msgs/msg/CompressedImage is by its `format`."""

_START = b"\x00\x00\x01"
"""Before each unit of a stream in Annex B's form."""
_KEY_UNITS = {"h264": frozenset((5,)), "hevc": frozenset(range(16, 22))}
"""Types of the units that a decoder can begin at: IDR, and H.265's random access points."""


def codec_of(said: str) -> str | None:
    """The codec that a message's `format` names, "h264" or "hevc"; None for images."""
    words = said.lower().replace(";", " ").split()
    return next((CODECS[word] for word in words if word in CODECS), None)


def is_video(topic: Topic, message: Message) -> bool:
    """Whether a message is a part of a video: by its type, or by what a compressed image says of itself."""
    return topic.type in VIDEO_TYPES or codec_of(str(getattr(message.content, "format", ""))) is not None


def is_key_frame(codec: str, data: bytes) -> bool:
    """Whether a decoder can begin at a message of an Annex B stream: "h264" or "hevc"."""
    position = data.find(_START)
    while 0 <= position < len(data) - 3:
        unit = data[position + 3]
        if (unit & 0x1F if codec == "h264" else unit >> 1 & 0x3F) in _KEY_UNITS[codec]:
            return True
        position = data.find(_START, position + 3)
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
            stamp_ns, name = self._headers.pop(frame.pts)
            rgb = np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
            pictures.append(Picture(stamp_ns=stamp_ns, frame=name, rgb=rgb))
        return pictures


def _decoder(codec: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise ShardError(f"videos need PyAV ({error}): pip install 'tandem-pretrain[video]'") from error
    context = av.CodecContext.create(codec, "r")
    context.thread_count = 1  # several would hold pictures back; whoever reads has a process a core
    return context
