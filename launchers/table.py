"""Downstream results as rows: one table for the terminal, for markdown and for the report page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.downstream.results import Difference, Result, baseline_of, paired_difference

PROTOCOLS = {"linear_probe": "linear probe", "knn": "kNN", "finetune": "fine-tuning"}
"""Protocol -> name for people; also their order."""

HEADER = (
    *("initialisation", "mIoU %", "over random", "accuracy %", "seeds", "rate"),
    *("teacher", "labels seen in pre-training"),
)
"""Numbers first: a phone shows them without scrolling sideways."""
NUMERIC = (1, 2, 3, 4, 5)
"""Columns of `HEADER` that hold numbers."""

LEAKS = {
    "none": "none",
    "ssl-teacher": "none (self-supervised teacher)",
    "supervised-teacher": "image classes",
    "class-agnostic-masks": "masks without classes",
    "class-name-prompts": "names of the classes",
    "unknown": "unknown",
}
"""Label-leak level -> what it means."""


@dataclass(frozen=True)
class Group:
    """Results that may be compared: same protocol, set, labels, settings.

    Attributes:
        title: what they share.
        results: random initialisation first, then by rising mIoU.
        gains: paired difference of each to random initialisation; None where there is none.
    """

    title: str
    results: tuple[Result, ...]
    gains: tuple[Difference | None, ...]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Cells in the order of `HEADER`."""
        return [_row(result, gain) for result, gain in zip(self.results, self.gains, strict=True)]


def groups(results: Sequence[Result]) -> list[Group]:
    """Sort results into comparable groups: by set, then protocol, then labels."""
    order = list(PROTOCOLS)
    keyed: dict[tuple[str, int, str, str, str], list[Result]] = {}
    for r in results:
        rank = order.index(r.protocol) if r.protocol in order else len(order)
        keyed.setdefault((r.dataset, rank, r.protocol, r.labels, r.fingerprint), []).append(r)
    made = []
    for (dataset, _, protocol, labels, _), members in sorted(keyed.items()):
        members.sort(key=lambda r: (r.pretrained, r.miou_mean))
        gains = []
        for r in members:
            baseline = baseline_of(r, results) if r.pretrained else None
            gains.append(paired_difference(r, baseline) if baseline is not None else None)
        title = f"{dataset}: {PROTOCOLS.get(protocol, protocol)}, labels: {labels}"
        made.append(Group(title, tuple(members), tuple(gains)))
    return made


def plus_minus(mean: float, std: float | None, *, sign: bool = False) -> str:
    """E.g. "31.2 ± 1.4", or the mean alone where there is one measurement."""
    text = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    return text if std is None else f"{text} ± {std:.1f}"


def _row(result: Result, gain: Difference | None) -> tuple[str, ...]:
    rates = sorted(set(result.lr))
    accuracy = sum(result.accuracy) / len(result.accuracy)
    return (
        result.init + (f" ({result.pretraining})" if result.pretraining else ""),
        plus_minus(result.miou_mean, result.miou_std),
        "–" if gain is None else plus_minus(gain.mean, gain.std, sign=True),
        f"{accuracy:.1f}",
        str(len(result.seeds)),
        (", ".join(f"{lr:g}" for lr in rates) or "–") + (" *" if result.lr_at_edge else ""),
        result.teacher or "–",
        LEAKS[result.leak],
    )


def notes(results: Sequence[Result]) -> list[str]:
    """What a reader of the table must know."""
    lines = [
        "mIoU over the classes of the test split, every point with its voxel's prediction; ± is the sample standard "
        "deviation over seeds.",
        "over random: difference to random initialisation under the same budget, seed by seed on the same label draws.",
    ]
    limits = sorted({str(q) for r in results if r.protocol == "knn" and (q := r.settings.get("queries_per_sweep"))})
    if limits:
        lines.append(f"kNN: {', '.join(limits)} random voxels of each test sweep, with all of their points.")
    if any(r.lr_at_edge for r in results):
        lines.append("* the best learning rate was at the end of the grid; a wider one might give more.")
    return lines


def print_table(results: Sequence[Result], console: Console) -> None:
    """To the terminal: one table, narrow enough for 80 columns."""
    datasets = sorted({r.dataset for r in results})
    table = Table()
    for name in ("protocol", "labels", "initialisation"):
        table.add_column(name, overflow="fold")
    for name in ("mIoU %", "over random", "runs", "rate"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups(results):
        best = max(r.miou_mean for r in group.results)
        table.add_section()
        for number, (result, row) in enumerate(zip(group.results, group.rows, strict=True)):
            what = (_protocol(result, several=len(datasets) > 1), result.labels) if number == 0 else ("", "")
            init = f"{result.init}, {result.teacher}" if result.teacher else result.init
            cells = (*what, init, row[1], row[2], row[4], row[5])
            table.add_row(*map(escape, cells), style="bold" if result.miou_mean == best else "")
    console.print(escape(f"evaluated on {', '.join(datasets) or 'nothing'}"))
    console.print(table)
    for line in notes(results):
        console.print(escape(line), style="dim")


def _protocol(result: Result, *, several: bool) -> str:
    name = PROTOCOLS.get(result.protocol, result.protocol)
    return f"{name}, {result.dataset}" if several else name


def markdown(results: Sequence[Result]) -> str:
    """As markdown, one table a group."""
    blocks = []
    for group in groups(results):
        rule = ["---:" if column in NUMERIC else "---" for column in range(len(HEADER))]
        lines = [f"**{_plain(group.title)}**", "", *(_line(cells) for cells in (HEADER, rule, *group.rows))]
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, "\n".join(f"- {line}" for line in notes(results))]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def _plain(text: str) -> str:
    """Names come from files: nothing in them may end a cell or start markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
