"""The report as markdown: results, how checkpoints were chosen, what failed, the runs, how the numbers were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.downstream.results import Result
from launchers.evaluation.selection import Selection
from launchers.reporting.report_page import RunReport
from launchers.reporting.table import markdown, plain, table_line
from launchers.reporting.troubles import Trouble, describe_scores


def text_report(
    title: str,
    made: Mapping[str, str],
    results: Sequence[Result],
    runs: Sequence[RunReport],
    *,
    labels: Mapping[str, str],
    chosen: Mapping[str, Selection],
    trouble: Sequence[Trouble],
) -> str:
    """The whole text.

    Args:
        title: heading.
        made: label -> text about the report itself.
        results: downstream results of all runs.
        runs: pre-training runs.
        labels: setting of pre-training -> text that tells it from others.
        chosen: how the best checkpoint was chosen, by run.
        trouble: what is missing, and why.
    """
    parts = [f"# {plain(title)}", "## Results"]
    parts.append(markdown(results, labels).rstrip() if results else "No downstream results yet.")
    if trouble:
        parts += ["## Failed or missing", *(_trouble(t) for t in trouble)]
    if chosen:
        parts += ["## Choice of checkpoints", _choices(chosen)]
    if runs:
        parts += ["## Pre-training", _runs(runs)]
    parts += ["## This report", "\n".join(f"- {plain(k)}: {plain(v)}" for k, v in made.items())]
    return "\n\n".join(parts) + "\n"


def _trouble(trouble: Trouble) -> str:
    head = f"**{plain(trouble.run)}** ({plain(trouble.state)}, {trouble.done} of {trouble.elements} evaluations done)"
    return "\n".join([head, "", *(f"- {plain(line)}" for line in trouble.why)])


def _choices(chosen: Mapping[str, Selection]) -> str:
    rows = [
        (run, f"step {s.step}", f"{s.by} on {s.split}", describe_scores(s), s.date) for run, s in sorted(chosen.items())
    ]
    return _table(CHOICE_HEADER, rows)


CHOICE_HEADER = ("run", "best", "compared by", "scores (* best)", "date")


def _runs(runs: Sequence[RunReport]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.last))
    rows = [
        (run.name, run.facts.get("updates", "–"), *(f"{run.last[n]:.4g}" if n in run.last else "–" for n in names))
        for run in runs
    ]
    return _table(("run", "updates", *names), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(table_line(cells) for cells in (header, ["---"] * len(header), *rows))
