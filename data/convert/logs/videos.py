"""Cameras whose topics are videos, read from anywhere in a recording: from the last key frame before on."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence

from data.convert.logs.base import Message, Picture, Recording
from data.convert.logs.fields import bytes_of, field_of
from data.convert.logs.video import VideoDecoder, codec_of, is_key_frame, is_video
from data.storage.damage import DamagedError

logger = logging.getLogger(__name__)

_LOOKED_AT = 2000
"""Frames at the beginning of a video among which its second key frame is looked for."""
_MARGIN = 1.5
"""Of the time between two key frames, which cameras do not keep to the frame."""


class Videos:
    """The videos among the cameras' topics of a recording.

    Attributes:
        lead_ns: topic -> how long before a picture a decoder has to begin to be sure of a key frame; None: at the
            beginning of the recording, since its first frames have no second one.
    """

    def __init__(self, recording: Recording, topics: Iterable[str]) -> None:
        self._recording = recording
        self.lead_ns = {name: self._key_interval_ns(name) for name in topics if self._is_video(name)}

    def _is_video(self, name: str) -> bool:
        first = next(iter(self._recording.messages([name])), None)
        return first is not None and is_video(self._recording.topics[name], first)

    def _key_interval_ns(self, name: str) -> int | None:
        """The longest time between key frames among a video's first frames, and a margin."""
        keys = []
        for message in itertools.islice(self._recording.messages([name]), _LOOKED_AT):
            codec = codec_of(str(field_of(name, message.content, "format")))
            if codec and is_key_frame(codec, bytes_of(name, field_of(name, message.content, "data")).tobytes()):
                keys.append(message.written_ns)
            if len(keys) > 2:
                break
        intervals = [after - before for before, after in itertools.pairwise(keys)]
        return round(_MARGIN * max(intervals)) if intervals else None

    def before(self, start_ns: int) -> Iterator[Message]:
        """What decoders need of the videos before a time, from which on messages are read anyway."""
        without = [name for name, lead_ns in self.lead_ns.items() if lead_ns is None]
        others = [name for name in self.lead_ns if name not in without]
        if without:  # whole; those of the others that are read as well do no harm
            yield from self._recording.messages(list(self.lead_ns), None, start_ns)
        elif others:
            lead_ns = max(lead for lead in self.lead_ns.values() if lead is not None)
            yield from self._recording.messages(others, start_ns - lead_ns, start_ns)

    def decoders(self) -> Decoders:
        """Decoders for one pass over a part of the recording."""
        return Decoders(self._recording, list(self.lead_ns))


class Decoders:
    """A decoder for each video, for one pass."""

    def __init__(self, recording: Recording, topics: Sequence[str]) -> None:
        self._of = {name: VideoDecoder(recording.topics[name]) for name in topics}

    def __contains__(self, topic: str) -> bool:
        return topic in self._of

    def read(self, message: Message) -> list[Picture]:
        """The pictures that a message completes; a damaged one is told, and those who need it will miss it."""
        try:
            return self._of[message.topic].read(message)
        except DamagedError as error:
            logger.warning("%s", error.detail)
            return []

    def rest(self) -> Iterator[tuple[str, Picture]]:
        """What is still to come of each topic at the end."""
        for topic, decoder in self._of.items():
            for picture in decoder.rest():
                yield topic, picture
