"""What the report shows of a detector's run: the metric by epoch, precision over recall, tables, the worst frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.run_files import json_lines
from common.small_files import DamagedFileError, read_json, read_text
from configs.load import ConfigError
from engine.scores import MEAN
from launchers.drawing.curves import Chart, RunCurve, chart
from launchers.drawing.page import TextTable
from launchers.finetuning.verdict import BenchmarkVerdict, Verdict, read_verdict
from launchers.runs.files import DETECTIONS_FILE, INIT_FILE

_NUM_FAILURES = 10
_SHOWN_CURVES: Mapping[str, tuple[str, str]] = {
    "kitti": ("3D AP", "moderate"),
    "nuscenes": ("AP 2 m", ""),
    "waymo": ("AP", "LEVEL_2"),
    "once": ("AP", "overall"),
    "argoverse2": ("AP 2 m", ""),
    "indoor": ("AP@0.25", ""),
}
"""Benchmark -> metric and subset of the precision-recall curves on the page, one a class."""

Curve = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class DetectionReport:
    """Of one detector's run.

    Attributes:
        init: what it started from, in a few words.
        epoch: of the last judgement; None before the first one.
        headline: title of a figure, with its benchmark -> epochs and values.
        precision: (benchmark, class) -> recalls and precisions.
        tables: figures of the last judgement, class x subset, of each benchmark.
        failures: frames with most errors, of each benchmark.
        notes: what a reader of the figures must know.
    """

    init: str
    epoch: float | None = None
    headline: Mapping[str, Curve] = field(default_factory=dict)
    precision: Mapping[tuple[str, str], Curve] = field(default_factory=dict)
    tables: Sequence[TextTable] = ()
    failures: Sequence[TextTable] = ()
    notes: Sequence[str] = ()


def describe_detector(folder: Path, config: Mapping[str, Any], trouble: list[str]) -> DetectionReport | None:
    """What a detector's run has left; None where the run is another one.

    Args:
        folder: of the run.
        config: resolved; {} where there is none.
        trouble: damaged files are noted here.
    """
    if not config.get("model"):
        return None
    init = _origin(folder, str(config.get("init", "")), trouble)
    verdict: Verdict | None = None
    lines: list[dict[str, Any]] = []
    try:
        lines = list(json_lines((read_text(folder / DETECTIONS_FILE) or "").splitlines()))
        lines = [line for line in lines if isinstance(line.get("benchmarks"), dict) and "epoch" in line]
        verdict = read_verdict(folder)
    except (DamagedFileError, ConfigError) as error:
        trouble.append(str(error))
    if not lines:
        return DetectionReport(init=init)
    last = lines[-1]
    judged = last["benchmarks"]
    parts = verdict.benchmarks if verdict is not None and verdict.step == last.get("step") else {}
    return DetectionReport(
        init=init,
        epoch=float(last["epoch"]),
        headline=_headline(lines),
        precision={
            (name, curve["category"]): _reached(curve) for name, part in parts.items() for curve in _chosen(name, part)
        },
        tables=[_figures(name, part, last) for name, part in judged.items()],
        failures=[_failures(name, part) for name, part in parts.items()],
        notes=[f"{name}: {note}" for name, part in judged.items() for note in part.get("notes", ())],
    )


def _origin(folder: Path, asked: str, trouble: list[str]) -> str:
    """Random weights, or whose; as the config asks where the run has not begun."""
    try:
        tree = read_json(folder / INIT_FILE, {"identity": "text"})
    except DamagedFileError as error:
        trouble.append(str(error))
        tree = None
    return str(tree["identity"]) if tree else asked


def _headline(lines: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """One curve a benchmark's first two figures; the others are in the table."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for line in lines:
        for name, part in line["benchmarks"].items():
            for title, value in list(part.get("headline", {}).items())[:2]:
                epochs, values = curves.setdefault(f"{name}: {title}", ([], []))
                epochs.append(float(line["epoch"]))
                values.append(math.nan if value is None else float(value))
    return dict(curves)


def _chosen(benchmark: str, part: BenchmarkVerdict) -> list[Mapping[str, Any]]:
    """A curve a class: those of the figure that papers compare; of a benchmark that is not known the first ones."""
    wanted = _SHOWN_CURVES.get(benchmark)
    if wanted is not None:
        return [curve for curve in part.curves if (curve["metric"], curve["subset"]) == wanted]
    return list({curve["category"]: curve for curve in reversed(part.curves)}.values())[::-1]


def _reached(curve: Mapping[str, Any]) -> Curve:
    """Recalls and precisions, up to the highest recall that is reached."""
    precision = [math.nan if value is None else float(value) for value in curve["precision"]]
    while precision and not precision[-1] > 0:
        precision.pop()
    return curve["recall"][: len(precision)], precision


def _figures(name: str, part: Mapping[str, Any], line: Mapping[str, Any]) -> TextTable:
    """All figures: a row a class and metric, a column a subset; where there is one subset, a row a class."""
    rows = part["rows"]
    subsets, metrics = (list(dict.fromkeys(row[place] for row in rows)) for place in (1, 2))
    across_subsets = len(subsets) > 1
    columns = subsets if across_subsets else metrics
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for category, subset, metric, value, unit, num_true in rows:
        key = (category, metric) if across_subsets else (category,)
        text = "–" if value is None else f"{value:.2f}" + (f" {unit}" if unit not in {"", "%"} else "")
        column = subset if across_subsets else metric
        cells.setdefault(key, {})[column] = f"{text} ({num_true})" if category != MEAN else text
    header = ("class", "metric", *columns) if across_subsets else ("class", *columns)
    table = tuple((*key, *(row.get(column, "–") for column in columns)) for key, row in cells.items())
    first = len(header) - len(columns)
    title = f"{part['benchmark']}: {line.get('frames')} frames of {line.get('split')}, step {line.get('step')}"
    return TextTable(title=title, header=header, rows=table, numeric=tuple(range(first, len(header))))


def _failures(name: str, part: BenchmarkVerdict) -> TextTable:
    rows = tuple(
        (frame.key, str(len(frame.missed)), str(len(frame.false)), str(len(frame.right)))
        for frame in part.worst(_NUM_FAILURES)
    )
    wrong = sum(frame.count > 0 for frame in part.frames)
    return TextTable(
        title=f"{name}: {wrong} of {len(part.frames)} frames have errors; those with most",
        header=("frame", "missed", "false", "right"),
        rows=rows,
        numeric=(1, 2, 3),
    )


# ---- charts of several runs


def epoch_charts(runs: Mapping[str, DetectionReport], colours: Mapping[str, int]) -> list[tuple[Chart, str]]:
    """The metric by epoch, all runs in one chart, and how each reads."""
    titles = dict.fromkeys(title for run in runs.values() for title in run.headline)
    charts = [
        chart(
            title,
            [RunCurve(name, *run.headline[title]) for name, run in runs.items() if title in run.headline],
            colours,
            axis="epoch",
        )
        for title in titles
    ]
    return [(drawn, "by epoch, on the frames that are judged while training") for drawn in charts if drawn is not None]


def precision_charts(runs: Mapping[str, DetectionReport], colours: Mapping[str, int]) -> list[tuple[Chart, str]]:
    """Precision over recall of each class, all runs in one chart."""
    keys = dict.fromkeys(key for run in runs.values() for key in run.precision)
    charts = []
    for key in keys:
        curves = [RunCurve(name, *run.precision[key]) for name, run in runs.items() if key in run.precision]
        metric, subset = _SHOWN_CURVES.get(key[0], ("", ""))
        what = ", ".join(part for part in (key[0], metric, subset) if part)
        drawn = chart(f"{key[1]}", curves, colours, axis="recall", x_end=1.0, y_ends=(0.0, 1.0))
        if drawn is not None:
            charts.append((drawn, f"precision over recall: {what}"))
    return charts
