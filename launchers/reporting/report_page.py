"""The report as one HTML file that needs no other: summary, tables, IoU by class, curves, pictures, how it was made.

Readable on a phone and on a wide screen, light and dark. Every text that comes from a file is escaped, and the page's
policy forbids scripts and anything from outside.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.downstream.metrics import Metric
from engine.downstream.protocols import title_of
from engine.downstream.results import Result
from launchers.drawing.canvas import RgbImage
from launchers.drawing.curves import Chart, RunCurve, chart, line_style
from launchers.drawing.page import embedded, template
from launchers.reporting.collect import ReportSources
from launchers.reporting.detection_report import DetectionReport, epoch_charts, precision_charts
from launchers.reporting.table import (
    DETECTION_HEADER,
    DETECTION_NUMERIC,
    DETECTION_TITLE,
    Group,
    detection_rows,
    explanations,
    groups,
    is_detection,
    notes,
)
from launchers.reporting.troubles import choice_rows

_PICTURE_WIDTH_PX = 1280
MOST_PREDICTIONS = 24
"""Pictures of predictions on the page, some 100 kB each."""

CURVES = (
    ("train/loss", "loss", "falls; says nothing of other temperatures, batches or methods"),
    ("watch/contrastive_accuracy", "contrastive accuracy", "share whose partner is the most similar; rises, up to 1"),
    ("watch/alignment", "alignment", "mean cosine of partners, -1 to 1; rises"),
    ("watch/effective_rank", "effective rank", "directions that the features use; near 1: collapsed"),
    ("optim/lr", "learning rate", "as the schedule has it"),
    ("optim/grad_norm", "gradient norm", "before clipping; steady, or slowly falling"),
    ("perf/samples_per_s", "samples a second", "of all processes together; steady"),
    ("perf/data_wait_share", "waiting for data", "share of the time; above 0.1: more workers, or faster storage"),
)
"""Metric, title, and how it reads, in the order of the page."""


@dataclass(frozen=True)
class RunReport:
    """What the page shows of one run.

    Attributes:
        name: of its folder.
        facts: label -> text: steps, seed, machine, date, ...
        curves: metric -> (steps, values).
        pictures: title -> RGB.
        remark: why something is missing; "" if nothing is.
        last: title of a curve -> its last finite value.
        detection: of a detector's run: how it was judged; None for another run.
    """

    name: str
    facts: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    pictures: Mapping[str, RgbImage] = field(default_factory=dict)
    remark: str = ""
    last: Mapping[str, float] = field(default_factory=dict)
    detection: DetectionReport | None = None


def by_kind(runs: Sequence[RunReport]) -> dict[str, list[RunReport]]:
    """Runs of pre-training apart from the trainings of detectors, by what each kind is called."""
    kinds = {
        "Pre-training": [run for run in runs if run.detection is None],
        "Training with labels": [run for run in runs if run.detection is not None],
    }
    return {kind: group for kind, group in kinds.items() if group}


_TEMPLATE = template(Path(__file__).with_name("report.html.j2"))


def page(
    sources: ReportSources,
    runs: Sequence[RunReport],
    title: str,
    made: Mapping[str, str],
    predictions: Mapping[str, RgbImage] | None = None,
    more_predictions: int = 0,
) -> str:
    """The report as HTML.

    Args:
        sources: results.
        runs: of pre-training, and of detectors.
        title: heading.
        made: how it came about, label -> text: date, command, machine.
        predictions: pictures of what evaluated networks predict, by title.
        more_predictions: pictures that are not on the page.
    """
    grouped = groups(sources.results, sources.labels)
    colours = {run.name: number for number, run in enumerate(runs)}
    detectors = {run.name: run.detection for run in runs if run.detection is not None}
    return _TEMPLATE.render(
        title=title,
        made=made,
        runs=runs,
        trouble=sources.trouble,
        tiles=_tiles(grouped),
        tables=[
            list(same)
            for _, same in itertools.groupby(
                (g for g in grouped if not is_detection(g)), key=lambda group: group.header
            )
        ],
        detection={
            "title": DETECTION_TITLE,
            "header": DETECTION_HEADER,
            "numeric": DETECTION_NUMERIC,
            "rows": detection_rows(grouped),
        },
        remarks=notes(sources.results),
        explanations=explanations(sources.results),
        choices=[row[:-1] for row in choice_rows(sources.chosen)],  # a page has no room for the dates
        detectors=detectors,
        detector_legend=[(f"{name}, from {d.init}", line_style(colours[name])) for name, d in detectors.items()],
        epoch_charts=epoch_charts(detectors, colours),
        precision_charts=precision_charts(detectors, colours),
        trainings=[
            {
                "title": kind,
                "charts": _charts(group, colours),
                "legend": [(run.name, line_style(colours[run.name])) for run in group],
            }
            for kind, group in by_kind(runs).items()
        ],
        pictures=[
            embedded(f"{run.name}: {name}", image, _PICTURE_WIDTH_PX)
            for run in runs
            for name, image in run.pictures.items()
        ],
        predictions=[embedded(name, image, _PICTURE_WIDTH_PX) for name, image in (predictions or {}).items()],
        more_predictions=more_predictions,
        class_tables=_class_tables(grouped),
        evaluations=_evaluations(sources.results),
    )


def _tiles(grouped: Sequence[Group]) -> list[dict[str, str]]:
    """One a protocol: the gain of the best pre-trained network over random initialisation."""
    tiles = []
    for group in grouped:
        pairs = [
            (r, g, why) for r, g, why in zip(group.results, group.gains, group.doubts, strict=True) if g is not None
        ]
        if not pairs:
            continue
        result, gain, why = pairs[-1]
        # Of several rows the best is shown, and it was found on the numbers shown: a reader must know.
        best_of = f"; best of {len(pairs)} rows" if len(pairs) > 1 else ""
        measure = result.measure
        tiles.append(
            {
                "title": group.title,
                "direction": "level" if why else "up" if measure.sign * gain.mean > 0 else "down",
                "gain": measure.difference_text(gain.value, gain.reference, gain.std),
                "explanation": f"{_points(measure)} over random initialisation: {measure.text(gain.value)} against "
                f"{measure.text(gain.reference)}, {gain.num_pairs} paired run"
                f"{'s' if gain.num_pairs > 1 else ''} ({result.init}{best_of})",
                "doubt": "May be chance: " + "; ".join(why) + "." if why else "",
            }
        )
    return tiles


def _points(measure: Metric) -> str:
    text = f"{measure.title} points" if measure.unit == "%" else measure.heading
    return text if measure.higher_is_better else f"{text} (lower is better)"  # not by the colour alone


def _charts(runs: Sequence[RunReport], colours: Mapping[str, int]) -> list[tuple[Chart, str]]:
    """Charts, and how each reads."""
    charts = (
        (chart(title, [RunCurve(r.name, *r.curves[metric]) for r in runs if metric in r.curves], colours), reading)
        for metric, title, reading in CURVES
    )
    return [(drawn, reading) for drawn, reading in charts if drawn is not None]


def _class_tables(grouped: Sequence[Group]) -> list[dict[str, object]]:
    """IoU of each class, a column for each result; None where a result has none."""
    tables: list[dict[str, object]] = []
    for group in grouped:
        names = dict.fromkeys(name for r in group.results for name in r.class_iou)
        if names:
            columns = [f"{r.init} · {r.teacher}" if r.teacher else r.init for r in group.results]
            values = {name: [r.class_iou.get(name) for r in group.results] for name in names}
            tables.append({"title": group.title, "columns": columns, "values": values})
    return tables


def _evaluations(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """How each result was made: a heading and rows."""
    measured = ("protocol", "initialisation", "date", "seeds", "result of each")
    header = (*measured, "rates tried: result on validation data", "time, s", "machine", "weights")
    rows = [
        (
            f"{title_of(r.protocol)}, {r.labels}",
            r.init,
            r.date,
            ", ".join(map(str, r.seeds)),
            f"{r.measure.heading}: " + ", ".join(map(r.measure.text, r.values)),
            ", ".join(f"{lr}: {'diverged' if m is None else r.measure.text(m)}" for lr, m in r.tuning.items()) or "–",
            f"{r.seconds:.0f}",
            r.machine,
            "; ".join(r.checkpoint) or "–",
        )
        for r in results
    ]
    return [header, *rows]
