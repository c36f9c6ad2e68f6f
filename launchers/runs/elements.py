"""Where evaluations that follow a run leave their results and their errors. No torch import."""

from __future__ import annotations

from pathlib import Path

EVALUATIONS = "evaluation"
"""Folder inside a run: one folder for each of its elements."""
BASELINES = "baselines"
"""Folder beside the runs: random-initialisation rows, one folder a key."""
ERROR_FILE = "error.txt"
"""In an element's folder: why it failed, first line for tables, then where."""


def read_error(folder: Path) -> str | None:
    """Why the job of a folder failed, one line; None if it did not."""
    try:
        lines = (folder / ERROR_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    return next((line.strip() for line in lines if line.strip()), "no reason recorded")
