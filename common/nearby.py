"""What was meant where something else was given: the nearest name; a folder in that one, around it or beside it."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_MOST_ENTRIES = 2000
"""Files and folders that are looked at; a message must not take minutes on a large file system."""


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """The known name that is most like the one given, for the end of a message: "; did you mean 'x'?", or ""."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def nearby(given: str | Path, is_wanted: Callable[[Path], bool]) -> str:
    """Folders of a kind near a path, for the end of a message: "; did you mean X?", or "" without any."""
    path = Path(given)
    try:
        found = list(itertools.islice(filter(is_wanted, _inside_or_beside(path)), 4))
        found = found or list(itertools.islice(filter(is_wanted, path.parents[:2]), 1))
    except OSError:  # not ours to read: no hint
        return ""
    more = ", ..." if len(found) > 3 else ""
    return f"; did you mean {' or '.join(map(str, found[:3]))}{more}?" if found else ""


def _inside_or_beside(path: Path) -> Iterator[Path]:
    """Folders on two levels in a folder; of a path that is not there, folders with nearly its name."""
    if path.is_dir():
        inside = _folders_in([path])
        yield from inside
        yield from _folders_in(inside)
    elif path.parent.is_dir():
        beside = {folder.name: folder for folder in _folders_in([path.parent])}
        yield from (beside[name] for name in difflib.get_close_matches(path.name, beside, n=3))


def _folders_in(parents: Iterable[Path]) -> list[Path]:
    looked_at = itertools.islice(_entries(parents), _MOST_ENTRIES)
    return sorted(Path(entry.path) for entry in looked_at if not entry.name.startswith(".") and entry.is_dir())


def _entries(parents: Iterable[Path]) -> Iterator[os.DirEntry[str]]:
    for parent in parents:
        with os.scandir(parent) as entries:
            yield from entries
