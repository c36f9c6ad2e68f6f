"""The messages that docs/first_hour.md explains are those that the code prints."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHELLS = "command not found"
"""A shell's own words, none of ours."""


def test_messages_are_those_of_the_code() -> None:
    sources = [
        path
        for package in ("launchers", "configs", "engine", "models", "data")
        for path in (ROOT / package).rglob("*.py")
    ]
    text = "\n".join(path.read_text(encoding="utf-8") for path in [*sources, ROOT / ".ci" / "setup"])
    text = re.sub(r'"\n\s*f?"', "", text)  # strings over several lines
    page = (ROOT / "docs" / "first_hour.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|", page.partition("## When it stops")[2], re.M)
    assert len(rows) > 6
    for message in rows:
        for part in re.split(r"\.\.\.|: (?=\.\.\.)|^[\w.]+: ", message):
            words = part.strip(" :;?")
            assert words in text or SHELLS in words, f"{message}: no code says {words!r}"
