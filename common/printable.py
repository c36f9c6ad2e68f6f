"""Texts from files on a terminal: they may hold control characters, which it must not obey. No heavy import."""

from __future__ import annotations

import logging


def printable(text: str) -> str:
    """The text with "?" for each control character but the line break, tabs as blanks."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text.expandtabs(4))


def printable_line(text: str) -> str:
    """The same on one line."""
    return printable(text).replace("\n", "?")


class PrintableRecord(logging.LogRecord):
    """A log record whose message is printable: keys and names in warnings come from files, too."""

    def getMessage(self) -> str:  # noqa: N802  # logging's name
        """The message."""
        return printable(super().getMessage())
