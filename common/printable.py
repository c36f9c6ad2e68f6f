"""Texts from files on a terminal: they may hold control characters, which it must not obey. No heavy import."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence


def printable(text: str) -> str:
    """The text with "?" for each control character but the line break, tabs as blanks. Spaces of any width stay."""
    if text.isascii() and text.isprintable():
        return text
    # Different characters only: pages of reports have millions.
    hidden = {c for c in {*text} if not c.isprintable() and c not in "\n\t" and unicodedata.category(c) != "Zs"}
    return text.expandtabs(4).translate(dict.fromkeys(map(ord, hidden), "?"))


def printable_line(text: str) -> str:
    """The same on one line."""
    return printable(text).replace("\n", "?")


def say(text: str) -> None:
    """Print a text with names from files, command lines or other programs in it."""
    print(printable(text))


def listed(names: Sequence[str], shown: int = 3) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


class PrintableRecord(logging.LogRecord):
    """A log record whose message is printable: keys and names in warnings come from files, too."""

    def getMessage(self) -> str:  # noqa: N802  # logging's name
        """The message."""
        return printable(super().getMessage())
