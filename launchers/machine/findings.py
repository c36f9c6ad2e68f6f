"""What `tandem doctor` finds, and how it is shown without names of people and machines. No heavy import."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["fine", "note", "missing", "broken"]

_SHORTEST_NAME = 3
"""Letters of a name that is looked for in texts: a shorter one is part of too many words."""
_COMMON_NAMES = frozenset({"root", "user", "users", "home", "localhost", "tandem", "data", "runs", "none"})
"""Names that tell nothing of anybody."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line.

    Attributes:
        section: heading that it stands below.
        name: what was looked at.
        value: what was found.
        state: "fine"; "note", worth knowing; "missing", some choice does not work, or is slow, without it; "broken",
            training needs it.
        remedy: what to do, a command where there is one; "" where nothing is to be done.
    """

    section: str
    name: str
    value: str
    state: State = "fine"
    remedy: str = ""


def anonymous(text: str) -> str:
    """The text with "~" for the home folder, "USER" for this user's name and "HOST" for this machine's."""
    for home in _homes():
        text = re.sub(rf"{re.escape(home)}(?=[/\s'\":,;)]|$)", "~", text)
    for name, stand_in in _names():
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", stand_in, text, flags=re.IGNORECASE)
    return text


def _homes() -> list[str]:
    """The home folder as it is named, and where links lead."""
    home = os.path.expanduser("~")
    found = [path for path in (str(Path(home).resolve()), home) if path not in ("/", "~")]
    return sorted({*found}, key=len, reverse=True)


def _names() -> Iterable[tuple[str, str]]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user that the system does not know
        user = ""
    host = socket.gethostname()
    for name, stand_in in ((host, "HOST"), (host.partition(".")[0], "HOST"), (user, "USER")):
        if len(name) >= _SHORTEST_NAME and name.lower() not in _COMMON_NAMES:
            yield name, stand_in


def human_gib(count: int | float) -> str:
    """Bytes in GiB; less than one in MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
