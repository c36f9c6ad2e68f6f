"""The messages around each sweep of a recording, found in one pass: a second or so is held, however long the log."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Int64

Content = TypeVar("Content")


@dataclass(frozen=True, kw_only=True, eq=False)
class Held(Generic[Content]):
    """A message that is kept.

    Attributes:
        topic: its topic's name.
        written_ns: when the recorder wrote it.
        stamp_ns: when its sensor measured, on the clock by which sensors are paired.
        content: what is made of it later.
    """

    topic: str
    written_ns: int
    stamp_ns: int
    content: Content


@dataclass(frozen=True, kw_only=True, eq=False)
class Window(Generic[Content]):
    """A sweep and what was written about the same time.

    Attributes:
        number: of the sweep in its topic, from 0.
        sweep: None where the recording's index has it and its message cannot be read.
        before: the message of its topic before it; None for the first.
        around: topic -> its messages within reach of the sweep, in the order in which they were written.
    """

    number: int
    sweep: Held[Content] | None
    before: Held[Content] | None
    around: Mapping[str, Sequence[Held[Content]]]


def span(
    written_ns: Int64[np.ndarray, " n"], numbers: Sequence[int], reach_ns: Mapping[str, int]
) -> tuple[int, int, int]:
    """Times of writing from which, and before which, messages are needed for some sweeps, in order; and the reach."""
    reach = max(reach_ns.values())
    before = written_ns[max(numbers[0] - 1, 0)]
    return min(int(before), int(written_ns[numbers[0]]) - reach), int(written_ns[numbers[-1]]) + reach + 1, reach


def windows(
    messages: Iterable[Held[Content]],
    topic: str,
    written_ns: Int64[np.ndarray, " n"],
    numbers: Sequence[int],
    reach_ns: Mapping[str, int],
) -> Iterator[Window[Content]]:
    """A window for each sweep that is asked for.

    Args:
        messages: by their time of writing, of the `span` of these sweeps.
        topic: of the sweeps.
        written_ns: when each message of that topic was written, ascending.
        numbers: of the sweeps, ascending.
        reach_ns: topic -> how long before and after a sweep its messages are needed.
    """
    source = iter(messages)
    held: dict[str, deque[Held[Content]]] = {name: deque() for name in reach_ns}
    last: Held[Content] | None = None  # of the sweeps, the latest that is no longer held
    furthest = max(reach_ns.values())
    ahead: int | None = None
    for number in numbers:
        now = int(written_ns[number])
        while ahead is None or ahead <= now + furthest:
            message = next(source, None)
            if message is None:
                break
            ahead = message.written_ns
            held[message.topic].append(message)
        for name, kept in held.items():
            while kept and kept[0].written_ns < now - reach_ns[name]:
                gone = kept.popleft()
                last = gone if name == topic else last
        around = {
            name: [message for message in kept if message.written_ns <= now + reach_ns[name]]
            for name, kept in held.items()
        }
        of_now = [message for message in around[topic] if message.written_ns == now]
        # Several may be written at one time, as by a recorder that empties its queue.
        place = number - int(np.searchsorted(written_ns, now))
        sweep = of_now[place] if place < len(of_now) else None
        earlier = around[topic][: around[topic].index(sweep)] if sweep is not None else []
        yield Window(number=number, sweep=sweep, before=earlier[-1] if earlier else last, around=around)


def nearest(held: Sequence[Held[Content]], stamp_ns: int) -> Held[Content] | None:
    """The message whose stamp is nearest, the earlier written one of two; None of none."""
    return min(held, key=lambda message: abs(message.stamp_ns - stamp_ns), default=None)
