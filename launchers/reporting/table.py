"""Downstream results as rows: one table for the terminal, for markdown and for the report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.downstream.metrics import METRICS
from engine.downstream.protocols import PROTOCOLS, title_of
from engine.downstream.results import Difference, Result, baseline_of, paired_difference
from launchers.reporting.detection_results import PROTOCOL
from launchers.reporting.doubts import LEAST_PAIRS, LEAST_TEST_SAMPLES, doubts, test_samples
from launchers.reporting.repetitions import rows_of

LEAKS = {
    "none": "none",
    "ssl-teacher": "none (self-supervised teacher)",
    "supervised-teacher": "image classes",
    "class-agnostic-masks": "masks without classes",
    "class-name-prompts": "names of the classes",
    "unknown": "unknown",
}
"""Label-leak level -> what it means."""
_TEXTS = ("teacher", "labels seen in pre-training")
"""Last columns of every table."""
_NUMBERS_WIDTH = 61
"""Columns of the terminal that the numbers and the gaps take, with two learning rates and a mark."""
_LEAST_NAME_WIDTH = 19
DETECTION_TITLE = "Trained with labels: start x network x labels"
DETECTION_HEADER = ("network", "labels", "initialisation", "metric", "value", "over random", "runs", "learnt from")
DETECTION_NUMERIC = (4, 5, 6)
_DOUBTFUL, _UNEQUAL = "?", "‡"
"""Marks behind a gain: may be chance; over other seeds than the two means that stand in the table."""


@dataclass(frozen=True)
class Group:
    """Results that may be compared: same protocol, set, labels, settings.

    Attributes:
        results: random initialisation first, then from worse to better; all have the same main metric.
        gains: paired difference of each to random initialisation; None where there is none.
    """

    title: str
    results: tuple[Result, ...]
    gains: tuple[Difference | None, ...]

    @property
    def doubts(self) -> tuple[tuple[str, ...], ...]:
        """Why each gain may be chance; () where nothing speaks for that, or there is no gain."""
        pairs = zip(self.results, self.gains, strict=True)
        return tuple(() if gain is None else doubts(result, gain) for result, gain in pairs)

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the columns; numbers first: a phone shows them without scrolling sideways."""
        first, *others = (METRICS[name].heading for name in self.metrics)
        return ("initialisation", first, "over random", *others, "seeds", "rate", *_TEXTS)

    @property
    def numeric(self) -> tuple[int, ...]:
        """Columns that hold numbers."""
        return tuple(range(1, len(self.header) - len(_TEXTS)))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, the main one first."""
        main = self.results[0].metric
        return (main, *(name for name in self.results[0].metrics if name != main and METRICS[name].in_tables))

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Cells in the order of `header`."""
        baseline = baseline_of(self.results[0], self.results)  # of all rows, which have one protocol and task
        rows = zip(self.results, self.gains, self.doubts, strict=True)
        return [_row(r, self.metrics, _gain_text(r, gain, baseline, bool(why))) for r, gain, why in rows]

    @property
    def leader(self) -> Result | None:
        """The best result, if it is better than every other by more than chance; else no result stands out."""
        if len(self.results) < 2:
            return None
        best = max(range(len(self.results)), key=lambda row: self.results[row].goodness)
        result, gain = self.results[best], self.gains[best]
        if gain is None or self.doubts[best]:
            return None
        rivals = [other for other in self.results if other.pretrained and other is not result]
        return result if all(_beyond(result, rival) for rival in rivals) else None


def _beyond(better: Result, other: Result) -> bool:
    """Whether two pre-trained networks can be paired, and differ by more than chance."""
    repeated = [r.seeds == r.pretrain_seeds for r in (better, other)]  # seeds of pre-training, or of the protocol
    difference = paired_difference(better, other) if repeated[0] == repeated[1] else None
    return difference is not None and not doubts(better, difference)


def groups(results: Sequence[Result], labels: Mapping[str, str] | None = None) -> list[Group]:
    """Sort results into comparable groups: by set, then protocol, then labels. Repetitions become one row.

    `labels` maps settings of pre-training to texts that tell them apart.
    """
    order = list(PROTOCOLS)
    keyed: dict[tuple[str, int, str, str, str], list[Result]] = {}
    for r in results:
        rank = order.index(r.protocol) if r.protocol in order else len(order)
        keyed.setdefault((r.dataset, rank, r.protocol, r.labels, r.fingerprint), []).append(r)
    return [Group(_title(members[0]), *rows_of(members, results, labels or {})) for _, members in sorted(keyed.items())]


def _title(result: Result) -> str:
    """What the rows of a group have in common, with the number of frames that it was measured on."""
    tested = test_samples(result)
    on = "" if tested is None else f", measured on {tested[0]} {tested[1]}"
    return f"{result.dataset}: {title_of(result.protocol)}, labels: {result.labels}{on}"


def _gain_text(result: Result, gain: Difference | None, baseline: Result | None, doubtful: bool) -> str:
    """The difference of the two figures as the table shows them, marked where it may be chance."""
    if gain is None or baseline is None:
        return "–"
    shown = result.measure.text
    same = (shown(gain.value), shown(gain.reference)) == (shown(result.mean), shown(baseline.mean))
    marks = _DOUBTFUL * doubtful + _UNEQUAL * (not same)
    return f"{result.measure.difference_text(gain.value, gain.reference, gain.std)} {marks}".rstrip()


def _row(result: Result, metrics: Sequence[str], gain: str) -> tuple[str, ...]:
    rates = sorted(set(result.lr))
    return (
        result.init + (f" ({result.pretraining})" if result.pretraining else ""),
        result.measure.text(result.mean, result.std),
        gain,
        *(METRICS[name].text(result.mean_of(name)) for name in metrics[1:]),
        str(len(result.seeds)),
        (", ".join(f"{lr:g}" for lr in rates) or "–") + (" *" if result.lr_at_edge else ""),
        result.teacher or "–",
        LEAKS[result.leak],
    )


def is_detection(group: Group) -> bool:
    """Whether a group's records are of detectors."""
    return group.results[0].protocol.startswith(PROTOCOL)


def detection_rows(groups: Sequence[Group]) -> list[tuple[tuple[str, ...], bool]]:
    """Cells in the order of `DETECTION_HEADER`, and whether the row is better than random by more than chance.

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
    return first.dataset, first.protocol, float(first.settings.get("train_sweeps", "inf"))


def notes(results: Sequence[Result]) -> list[str]:
    """Remarks on how to read the table."""
    made = groups(results)
    remarks = list(dict.fromkeys(PROTOCOLS[r.protocol].remark for r in results if r.protocol in PROTOCOLS))
    lines = [
        *remarks,
        "± is the sample standard deviation over seeds.",
        "over random: difference to random initialisation under the same budget, seed by seed on the same label draws.",
    ]
    errors = dict.fromkeys(r.measure.title for r in results if not r.measure.higher_is_better)
    if errors:
        lines.append(f"{', '.join(errors)}: lower is better, so a difference below 0 is a gain.")
    if any(group.leader for group in made if not is_detection(group)):
        lines.append("Bold: better than every other row of its group by more than chance.")
    if any(beyond for _, beyond in detection_rows(made)):
        lines.append(
            "Bold in the table of networks trained with labels: better than random initialisation by more than chance."
        )
    gains = [row[2] for group in made for row in group.rows]
    if any(_DOUBTFUL in gain for gain in gains):
        lines.append(
            f"{_DOUBTFUL} may be chance: fewer than {LEAST_TEST_SAMPLES} test (or labelled) frames, fewer than "
            f"{LEAST_PAIRS} paired runs, or a 95 % interval (Student's t over the pairs) that contains 0."
        )
        reasons: dict[str, list[str]] = {}
        for group in made:
            reasons.setdefault("; ".join(dict.fromkeys(why for row in group.doubts for why in row)), []).append(
                group.title
            )
        lines += [f"{_DOUBTFUL} {'; '.join(titles)}: {why}." for why, titles in reasons.items() if why]
    if any(_UNEQUAL in gain for gain in gains):
        lines.append(f"{_UNEQUAL} over the seeds that both rows have, so not the difference of the two means shown.")
    if any(r.pretrained and len(r.pretrain_seeds) == 1 for group in made for r in group.results):
        lines.append("Rows of one pre-training run: ± does not contain what another seed of pre-training would give.")
    if any(len(r.pretrain_seeds) > 1 for group in made for r in group.results):
        lines.append(
            "Several runs in one row: each run counts once, with the mean over its protocol's seeds; ± is over "
            "pre-training runs. Over random: each run on each draw against random initialisation on the same draw."
        )
    if any(r.chosen for r in results):
        lines.append("best step: chosen on logs held out from the train split; the test split had no say in it.")
    limits = sorted({str(q) for r in results if r.protocol == "knn" and (q := r.settings.get("queries_per_sweep"))})
    if limits:
        lines.append(f"kNN: {', '.join(limits)} random voxels of each test sweep, with all of their points.")
    if kept := dict.fromkeys(title_of(r.protocol) for r in results if r.kept_frozen):
        lines.append(
            f"{', '.join(kept)}: every parameter and buffer of the frozen network was bit-equal before and after."
        )
    if any(r.lr_at_edge for r in results):
        lines.append("* the best learning rate was at the end of the grid; a wider one might give more.")
    return lines


def explanations(results: Sequence[Result]) -> dict[str, str]:
    """What the protocols and measures of the tables mean, by their titles in the tables' order."""
    made = groups(results)
    protocols = (PROTOCOLS[group.results[0].protocol] for group in made if group.results[0].protocol in PROTOCOLS)
    names = dict.fromkeys(name for group in made for name in group.metrics)
    ideas = {protocol.title: protocol.idea for protocol in protocols if protocol.idea}
    return ideas | {METRICS[name].heading: METRICS[name].explanation for name in names}


def print_table(results: Sequence[Result], console: Console, labels: Mapping[str, str] | None = None) -> None:
    """Print to the terminal: one table a group, narrow enough for 80 columns."""
    made = groups(results, labels)
    if not made:
        console.print("no results yet")
    names = [_name(result) for group in made if not is_detection(group) for result in group.results]
    # All tables get the same first column, so that the numbers stand below each other.
    width = min(max(map(len, ["initialisation", *names])), max(console.width - _NUMBERS_WIDTH, _LEAST_NAME_WIDTH))
    for group in made:
        if is_detection(group):
            continue
        table = Table(title=escape(group.title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        table.add_column("initialisation", overflow="fold", width=width)
        for name, least in ((group.header[1], 11), ("over random", 13), ("seeds", 5), ("rate", 6)):
            table.add_column(name, justify="right", no_wrap=True, min_width=least)
        for result, row in zip(group.results, group.rows, strict=True):
            cells = (_name(result), row[1], row[2], *row[-2 - len(_TEXTS) : -len(_TEXTS)])
            table.add_row(*map(escape, cells), style="bold" if result is group.leader else "")
        console.print(table)
    if rows := detection_rows(made):
        table = Table(title=DETECTION_TITLE, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for column, name in enumerate(DETECTION_HEADER):
            table.add_column(name, justify="right" if column in DETECTION_NUMERIC else "left", overflow="fold")
        for cells, beyond_chance in rows:
            table.add_row(*map(escape, cells), style="bold" if beyond_chance else "")
        console.print(table)
    for metric in dict.fromkeys(result.measure for result in results):
        console.print(escape(f"{metric.heading}: {metric.explanation}"), style="dim")
    for line in notes(results):
        console.print(escape(line), style="dim")


def _name(result: Result) -> str:
    return f"{result.init}, {result.teacher}" if result.teacher else result.init


def markdown(results: Sequence[Result], labels: Mapping[str, str] | None = None) -> str:
    """As markdown, one table a group; `labels` as in `groups`."""
    blocks = []
    made = groups(results, labels)
    for group in made:
        if is_detection(group):
            continue
        rule = ["---:" if column in group.numeric else "---" for column in range(len(group.header))]
        lines = [f"**{plain(group.title)}**", "", *(table_line(cells) for cells in (group.header, rule, *group.rows))]
        blocks.append("\n".join(lines))
    if rows := detection_rows(made):
        rule = ["---:" if column in DETECTION_NUMERIC else "---" for column in range(len(DETECTION_HEADER))]
        shown = (tuple(f"**{cell}**" for cell in cells) if beyond else cells for cells, beyond in rows)
        blocks.append("\n".join([f"**{DETECTION_TITLE}**", "", *map(table_line, (DETECTION_HEADER, rule, *shown))]))
    remarks = ("- " + line.replace("*", "\\*") for line in notes(results))  # a bare star would start a list
    explained = [f"- {plain(name)}: {plain(text)}" for name, text in explanations(results).items()]
    return "\n\n".join([*blocks, "\n".join(remarks), "What protocols and measures mean:", "\n".join(explained)]) + "\n"


def table_line(cells: Sequence[str]) -> str:
    """A line of a markdown table."""
    return "| " + " | ".join(plain(cell) for cell in cells) + " |"


def plain(text: str) -> str:
    """Names come from files: nothing in them may end a cell or start markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
