"""A detection metric's verdict on the terminal: a line a metric, a column a subset, headline, notes, worst frames."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from engine.scores import Scores

_OBJECTS = "objects"
_MOST_CLASSES = 12
"""That are shown whether they have objects or not: all of nuScenes, not of Argoverse 2."""


def print_scores(scores: Scores, console: Console, num_worst: int = 0) -> None:
    """The table of all figures, then the headline, the notes and the frames with most errors.

    Args:
        scores: a verdict.
        console: is written to.
        num_worst: frames to name.
    """
    console.print(f"{scores.benchmark}{f', {scores.unit}' if scores.unit else ''}", soft_wrap=True)
    console.print(_table(scores))
    hidden = len({row.category for row in scores.rows}) - len(_shown(scores))
    if hidden:
        console.print(f"not shown: {hidden} classes without objects")
    for name, value in scores.headline.items():
        console.print(f"{name}: {_number(value, scores.unit)} {scores.unit}".rstrip(), soft_wrap=True)
    for note in scores.notes:
        console.print(f"note: {note}", soft_wrap=True)
    for frame in scores.worst_frames(num_worst):
        console.print(f"frame {frame.key}: {len(frame.missed)} missed, {len(frame.false)} false", soft_wrap=True)


def _table(scores: Scores) -> Table:
    """For each class the number of objects, then a line a metric; a column a subset."""
    subsets = list(dict.fromkeys(row.subset for row in scores.rows))
    table = Table()
    table.add_column("class")
    table.add_column("metric")
    for subset in subsets:
        table.add_column(subset or "all", justify="right")
    for category in _shown(scores):
        rows = [row for row in scores.rows if row.category == category]
        counts = {row.subset: row.num_true for row in rows}
        table.add_row(category, _OBJECTS, *(f"{counts[subset]:,}" if subset in counts else "" for subset in subsets))
        for metric in dict.fromkeys(row.metric for row in rows):
            values = {row.subset: _number(row.value, row.unit) for row in rows if row.metric == metric}
            table.add_row("", metric, *(values.get(subset, "") for subset in subsets))
        table.add_section()
    return table


def _shown(scores: Scores) -> list[str]:
    """Classes of the table: of many, only those with objects."""
    categories = list(dict.fromkeys(row.category for row in scores.rows))
    some = {row.category for row in scores.rows if row.num_true}
    return categories if len(categories) <= _MOST_CLASSES else [name for name in categories if name in some]


def _number(value: float, unit: str) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}" if unit == "%" else f"{value:.4f}"
