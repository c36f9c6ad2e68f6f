"""The console that all verbs print tables and progress to. Plain text and errors go through `common.printable`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.progress import Progress
from rich.segment import Segment

from common.printable import printable


def terminal(*, width: int | None = None, highlight: bool = False) -> Console:
    """A console that styles text as ever, and in whose texts control characters are "?".

    Args:
        width: columns where the output is no terminal; None: rich's own 80.
        highlight: colour numbers.
    """
    made = Console(highlight=highlight, width=None if sys.stdout.isatty() else width)
    made.push_render_hook(_Printable())
    return made


@contextmanager
def drawn_late(bar: Progress) -> Iterator[Callable[[], None]]:
    """Yields what begins to draw a bar, to be called at each report.

    An error that comes before the first report is then told without an empty bar above it.
    """
    try:
        yield bar.start
    finally:
        if bar.live.is_started:
            bar.stop()


class _Printable(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Wrapped(one) for one in renderables]


class _Wrapped:
    """Renders as what it wraps, in printable segments; what moves the cursor or sets styles is rich's own."""

    def __init__(self, inner: ConsoleRenderable) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._inner, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
