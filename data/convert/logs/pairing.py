"""How the sensors of a recording are paired by time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data.convert.logs.base import Message
from data.convert.logs.fields import header_of
from data.convert.logs.window import Held, Window, nearest
from data.storage.damage import DamagedError


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """How samples are made of a recording, see `data.convert.logs.converter.RecordingConverter`."""

    max_image_gap_ms: float
    max_lidar_gap_ms: float
    max_pose_gap_ms: float
    max_delay_ms: float
    min_depth_m: float
    intensity_max: float | None
    image_max: float | None
    deskew: bool
    keep_times: bool
    by_header: bool

    @property
    def max_delay_ns(self) -> int:
        """In nanoseconds."""
        return round(self.max_delay_ms * 1e6)


def stamp_of(message: Message, by_header: bool) -> int:
    """When a message was measured: as its header says, or when it was written."""
    return header_of(message)[1] if by_header else message.written_ns


def near(
    topic: str,
    window: Window[Any],
    sweep: Held[Any],
    settings: ReadSettings,
    *,
    max_gap_ms: float,
    what: str,
    setting: str,
) -> Held[Any]:
    """The message of a topic whose stamp is nearest to a sweep's.

    Args:
        topic: of the message.
        window: of the sweep.
        sweep: whose time it is about.
        settings: how samples are made.
        max_gap_ms: how far away it may be.
        what: an "image" or a "sweep", for messages.
        setting: that says how far, for messages.

    Raises:
        DamagedError: there is none, or none near enough; says whether the two sensors have clocks of their own.
    """
    found = nearest(window.around[topic], sweep.stamp_ns)
    if found is None:
        reach_ms = max_gap_ms + settings.max_delay_ms
        detail = f"{topic}: no {what} was written within {reach_ms:g} ms of the sweep ({setting}, max_delay_ms)"
        raise DamagedError("member-missing", detail)
    gap_ms = abs(found.stamp_ns - sweep.stamp_ns) / 1e6
    if gap_ms > max_gap_ms:
        detail = f"{topic}: the nearest {what} is {gap_ms:.1f} ms from the sweep, allowed are {max_gap_ms:g} ms"
        raise DamagedError("member-missing", f"{detail} ({setting}){_two_clocks(found, sweep, settings)}")
    return found


def _two_clocks(found: Held[Any], sweep: Held[Any], settings: ReadSettings) -> str:
    """A hint where the stamps of two messages that were written together are far apart; "" where not."""
    behind = [(held.written_ns - held.stamp_ns) / 1e9 for held in (found, sweep)]
    if abs(behind[0] - behind[1]) * 1e3 <= settings.max_delay_ms:
        return ""
    return (
        f"; messages of {found.topic} are written {behind[0]:.3f} s after their stamps, those of {sweep.topic} "
        f"{behind[1]:.3f} s: two clocks? stamps=written goes by times of writing"
    )
