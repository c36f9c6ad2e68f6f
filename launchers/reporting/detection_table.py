"""One table of what detectors gained: method x detector x labels, from the groups of comparable records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from launchers.reporting.detection_results import PROTOCOL

if TYPE_CHECKING:
    from launchers.reporting.table import Group

HEADER = ("detector", "labels", "initialisation", "metric", "value", "over random", "runs", "learnt from")
NUMERIC = (4, 5, 6)
TITLE = "Detection: method x detector x labels"


def is_detection(group: Group) -> bool:
    """Whether a group's records are of detectors."""
    return group.results[0].protocol.startswith(PROTOCOL)


def detection_rows(groups: Sequence[Group]) -> list[tuple[tuple[str, ...], bool]]:
    """Cells in the order of `HEADER`, and whether the gain of the row is beyond chance and one for the better.

    By set and detector, few labels first; random initialisation first of each.
    """
    rows = []
    for group in sorted(filter(is_detection, groups), key=_order):
        detector, _, benchmark = group.results[0].protocol.removeprefix(PROTOCOL).rpartition(", ")
        for result, gain, why, cells in zip(group.results, group.gains, group.doubts, group.rows, strict=True):
            heading = f"{result.measure.heading} ({result.dataset}, {benchmark})"
            runs = str(len(result.seeds))
            row = (detector, result.labels, result.init, heading, *cells[1:3], runs, result.teacher or "–")
            rows.append((row, gain is not None and not why and result.measure.sign * gain.mean > 0))
    return rows


def _order(group: Group) -> tuple[str, str, float]:
    first = group.results[0]
    return first.dataset, first.protocol, first.settings.get("train_sweeps", float("inf"))
