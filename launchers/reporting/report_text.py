"""The report as markdown: results, how checkpoints were chosen, what failed, the runs, how the numbers were made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from launchers.reporting.collect import ReportSources
from launchers.reporting.detection_report import DetectionReport
from launchers.reporting.report_page import RunReport, by_kind
from launchers.reporting.table import markdown, plain, table_line
from launchers.reporting.troubles import Trouble, choice_rows


def text_report(sources: ReportSources, runs: Sequence[RunReport], title: str, made: Mapping[str, str]) -> str:
    """The report as markdown; arguments as of `report_page.page`."""
    parts = [f"# {plain(title)}", "## Results"]
    parts.append(
        markdown(sources.results, sources.labels).rstrip() if sources.results else "No downstream results yet."
    )
    if sources.trouble:
        parts += ["## Failed or missing", *(_trouble(t) for t in sources.trouble)]
    if sources.chosen:
        parts += ["## Choice of checkpoints", _table(choice_rows(sources.chosen))]
    if detectors := {run.name: run.detection for run in runs if run.detection is not None}:
        parts += ["## Detectors", _detectors(detectors)]
    for heading, group in by_kind(runs).items():
        parts += [f"## {heading}", _runs(group)]
    parts += ["## This report", "\n".join(f"- {plain(k)}: {plain(v)}" for k, v in made.items())]
    return "\n\n".join(parts) + "\n"


def _trouble(trouble: Trouble) -> str:
    head = f"**{plain(trouble.run)}** ({plain(trouble.state)}, {trouble.done} of {trouble.elements} evaluations done)"
    return "\n".join([head, "", *(f"- {plain(line)}" for line in trouble.why)])


def _detectors(runs: Mapping[str, DetectionReport]) -> str:
    """Figures of the last judgement of each run, and its worst frames."""
    titles = list(dict.fromkeys(title for run in runs.values() for title in run.headline))
    rows = [
        (
            name,
            run.init,
            "–" if run.epoch is None else f"{run.epoch:.4g}",
            *(_figure(run.headline[t][1][-1] if t in run.headline else math.nan) for t in titles),
        )
        for name, run in runs.items()
    ]
    parts = [_table([("run", "from", "epoch", *titles), *rows])]
    for name, run in runs.items():
        parts += [
            f"{plain(name)}, {plain(table.title)}:\n\n{_table([table.header, *table.rows])}" for table in run.failures
        ]
    return "\n\n".join(parts)


def _figure(value: float) -> str:
    """Of a headline; a benchmark of whose classes there is no object has none."""
    return f"{value:.2f}" if math.isfinite(value) else "–"


def _runs(runs: Sequence[RunReport]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.last))
    rows = [
        (run.name, run.facts.get("state", "–"), *(f"{run.last[n]:.4g}" if n in run.last else "–" for n in names))
        for run in runs
    ]
    return _table([("run", "state", *names), *rows])


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; the first row is the heading."""
    header, *others = rows
    return "\n".join(table_line(cells) for cells in (header, ["---"] * len(header), *others))
