"""The report as one HTML file that needs no other: summary, tables, IoU by class, curves, pictures, how it was made.

Readable on a phone and on a wide screen, light and dark. Every text that comes from a file is escaped, and the page's
policy forbids scripts and anything from outside.
"""

from __future__ import annotations

import base64
import html
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.downstream.metrics import Metric
from engine.downstream.results import Result
from launchers.drawing.canvas import RgbImage, fit_width, jpeg_bytes
from launchers.drawing.curves import Curve, chart, legend
from launchers.evaluation.selection import Selection
from launchers.reporting.table import PROTOCOLS, Group, groups, notes
from launchers.reporting.troubles import Trouble, describe_scores

_PICTURE_WIDTH_PX = 1280

CURVES = (
    ("train/loss", "loss"),
    ("watch/contrastive_accuracy", "contrastive accuracy"),
    ("watch/alignment", "alignment (mean cosine of positives)"),
    ("watch/effective_rank", "effective rank of the features"),
    ("optim/lr", "learning rate"),
    ("optim/grad_norm", "gradient norm"),
    ("perf/samples_per_s", "samples a second"),
    ("perf/data_wait_share", "share of time waiting for data"),
)
"""Metric -> title, in the order of the page."""


@dataclass(frozen=True)
class RunReport:
    """What the page shows of one pre-training run.

    Attributes:
        name: of its folder.
        facts: label -> text: steps, seed, machine, date, ...
        curves: metric -> (steps, values).
        pictures: title -> RGB.
        remark: why something is missing; "" if nothing is.
        last: title of a curve -> its last finite value.
    """

    name: str
    facts: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    pictures: Mapping[str, RgbImage] = field(default_factory=dict)
    remark: str = ""
    last: Mapping[str, float] = field(default_factory=dict)


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2026; --soft: #5b626e; --paper: #fbfbfa; --card: #ffffff; --line: #dcdee3;
  --good: #1a7f37; --bad: #b3261e; --bar: #2a78d6;
  --c0: #2a78d6; --c1: #eb6834; --c2: #1baf7a; --c3: #d99a00; --c4: #e87ba4; --c5: #008300;
  --c6: #4a3aa7; --c7: #e34948; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e5; --soft: #a0a7b3; --paper: #16181d; --card: #1e2127;
  --line: #383c46; --good: #57c478; --bad: #f08b83; --bar: #3987e5;
  --c0: #3987e5; --c1: #d95926; --c2: #199e70; --c3: #c98500; --c4: #d55181; --c5: #2fa32f;
  --c6: #9085e9; --c7: #e66767; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem clamp(.8rem, 3vw, 2.5rem) 3rem; max-width: 84rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .2rem 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, li, .soft { color: var(--soft); } p { margin: .3rem 0; max-width: 75ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.9rem; font-weight: 650; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile small { color: var(--soft); } .up { color: var(--good); } .down { color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; } .n { text-align: right; white-space: nowrap; }
th, td { text-align: left; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th.n, td.n { text-align: right; } .best td { font-weight: 650; }
.group th { color: var(--ink); padding-top: 1rem; }
ul { padding-left: 1.1rem; margin: .7rem 0; max-width: 80ch; font-size: .93rem; }
.classes { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: .5rem 2.5rem; }
.iou { table-layout: fixed; } .iou th { white-space: normal; overflow-wrap: anywhere; }
.iou td { padding-right: 1.2rem; }
.bar { display: block; height: 5px; border-radius: 3px; background: var(--bar); opacity: .85; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; font-size: .93rem; margin-bottom: .25rem; }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem .6rem .3rem; }
.chart figcaption { padding-left: .4rem; } .chart svg { width: 100%; height: auto; display: block; }
.grid { stroke: var(--line); stroke-width: 1; } .tick { fill: var(--soft); font: 11px system-ui, sans-serif; }
.run { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; } .again { stroke-dasharray: 5 4; }
.run0 { stroke: var(--c0); } .run1 { stroke: var(--c1); } .run2 { stroke: var(--c2); } .run3 { stroke: var(--c3); }
.run4 { stroke: var(--c4); } .run5 { stroke: var(--c5); } .run6 { stroke: var(--c6); } .run7 { stroke: var(--c7); }
.hit { fill: transparent; } .hit:hover { fill: var(--ink); fill-opacity: .35; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; margin: .4rem 0 .8rem; }
.legend svg { width: 24px; height: 8px; margin-right: .4rem; vertical-align: middle; }
.pictures { display: grid; gap: 1.2rem; }
.pictures img { max-width: 100%; height: auto; display: block; border-radius: 6px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .3rem 0; font-size: .93rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; } dt { margin-top: .4rem; } body { font-size: 15px; } }
"""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(
    title: str,
    made: Mapping[str, str],
    results: Sequence[Result],
    runs: Sequence[RunReport],
    *,
    labels: Mapping[str, str] | None = None,
    chosen: Mapping[str, Selection] | None = None,
    trouble: Sequence[Trouble] = (),
) -> str:
    """The whole page.

    Args:
        title: heading.
        made: label -> text about the report itself: date, command, machine.
        results: downstream results of all runs.
        runs: pre-training runs.
        labels: setting of pre-training -> text that tells it from others.
        chosen: how the best checkpoint was chosen, by run.
        trouble: what is missing, and why.
    """
    grouped = groups(results, labels)
    colours = {run.name: number for number, run in enumerate(runs)}
    body = [
        f"<h1>{html.escape(title)}</h1>",
        _summary(grouped),
        _tables(grouped, results),
        _troubles(trouble),
        _choices(chosen or {}),
        _curves(runs, colours),
        _pictures(runs),
        _class_tables(grouped),
        _provenance(made, results, runs),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _troubles(found: Sequence[Trouble]) -> str:
    """Runs and evaluations without results, and why."""
    if not found:
        return ""
    rows = [
        _tr((t.run, t.state, f"{t.done} of {t.elements}", " · ".join(t.why)), (2,), "down" if t.why else "")
        for t in found
    ]
    header = ("run", "pre-training", "evaluations", "why")
    return f"<section><h2>Failed or missing</h2>{_table(header, rows, (2,))}</section>"


def _choices(chosen: Mapping[str, Selection]) -> str:
    """Which checkpoint was chosen, on what."""
    if not chosen:
        return ""
    rows = [
        _tr((run, f"step {s.step}", f"{s.by} on {s.split}", describe_scores(s)), ())
        for run, s in sorted(chosen.items())
    ]
    table = _table(("run", "best", "compared by", "scores (* best)"), rows, ())
    return f"<section><h2>Choice of checkpoints</h2>{table}</section>"


def _summary(grouped: Sequence[Group]) -> str:
    """One tile a protocol: the gain of the best pre-trained network over random initialisation."""
    tiles = []
    for group in grouped:
        pairs = [(r, g) for r, g in zip(group.results, group.gains, strict=True) if g is not None]
        if not pairs:
            continue
        result, gain = pairs[-1]
        # Of several rows the best is shown, and it was found on the numbers shown: a reader must know.
        best_of = f"; best of {len(pairs)} rows" if len(pairs) > 1 else ""
        beyond_noise = gain.std is None or abs(gain.mean) > gain.std
        measure = result.measure
        direction = ("up" if measure.sign * gain.mean > 0 else "down") if beyond_noise else "level"
        tiles.append(
            f'<div class="tile"><small>{html.escape(group.title)}</small>'
            f'<b class="{direction}">{measure.text(gain.mean, gain.std, sign=True)}</b>'
            f"<small>{html.escape(_points(measure))} over random initialisation: {measure.text(result.mean)} against "
            f"{measure.text(result.mean - gain.mean)}, {gain.num_pairs} paired run{'s' if gain.num_pairs > 1 else ''}"
            f" ({html.escape(result.init)}{best_of})</small></div>"
        )
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _tables(grouped: Sequence[Group], results: Sequence[Result]) -> str:
    if not grouped:
        return "<h2>Results</h2><p>No downstream results yet: run <code>tandem evaluate</code>.</p>"
    tables = []
    # Groups with the same columns share a table, so that their numbers stand below each other.
    for header, same in itertools.groupby(grouped, key=lambda group: group.header):
        members, body = list(same), []
        for group in members:
            body.append(f'<tr class="group"><th colspan="{len(header)}">{html.escape(group.title)}</th></tr>')
            for result, row in zip(group.results, group.rows, strict=True):
                best = result.goodness == group.best and len(group.results) > 1
                body.append(_tr(row, group.numeric, "best" if best else ""))
        tables.append(_table(header, body, members[0].numeric))
    remarks = "".join(f"<li>{html.escape(line)}</li>" for line in notes(results))
    return f"<section><h2>Results</h2>{''.join(tables)}<ul>{remarks}</ul></section>"


def _points(measure: Metric) -> str:
    return f"{measure.title} points" if measure.unit == "%" else measure.heading


def _table(header: Sequence[str], rows: Sequence[str], numeric: Sequence[int]) -> str:
    head = _tr(header, numeric, tag="th")
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _tr(cells: Sequence[str], numeric: Sequence[int], kind: str = "", tag: str = "td") -> str:
    inside = "".join(
        f"<{tag}{' class=n' if c in numeric else ''}>{html.escape(cell)}</{tag}>" for c, cell in enumerate(cells)
    )
    return f"<tr{f' class={kind}' if kind else ''}>{inside}</tr>"


def _class_tables(grouped: Sequence[Group]) -> str:
    """IoU of each class, a bar in each cell so that columns can be compared at a glance."""
    blocks = []
    for group in grouped:
        names = list(dict.fromkeys(name for r in group.results for name in r.class_iou))
        if not names:
            continue
        head = "".join(f"<th>{html.escape(_column(r))}</th>" for r in group.results)
        lines = []
        for name in names:
            cells = "".join(_iou_cell(r.class_iou.get(name)) for r in group.results)
            lines.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
        blocks.append(
            f"<div><h3>{html.escape(group.title)}</h3>"
            f'<div class="scroll"><table class="iou"><thead><tr><th>class</th>{head}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div></div>"
        )
    return f'<section><h2>IoU by class, %</h2><div class="classes">{"".join(blocks)}</div></section>' if blocks else ""


def _column(result: Result) -> str:
    return f"{result.init} · {result.teacher}" if result.teacher else result.init


def _iou_cell(value: float | None) -> str:
    if value is None:
        return '<td class="soft">no test point</td>'
    return f'<td>{value:.1f}<span class="bar" style="width:{max(0.0, min(value, 100.0)):.1f}%"></span></td>'


def _curves(runs: Sequence[RunReport], colours: Mapping[str, int]) -> str:
    figures = []
    for metric, title in CURVES:
        lines = [Curve(run.name, *run.curves[metric]) for run in runs if metric in run.curves]
        figures.append(chart(title, lines, colours) if lines else "")
    if not any(figures):
        return ""
    return (
        f"<section><h2>Pre-training</h2><p>Horizontal axis: updates.</p>{legend(colours)}"
        f'<div class="charts">{"".join(figures)}</div></section>'
    )


def _pictures(runs: Sequence[RunReport]) -> str:
    figures = []
    for run in runs:
        for name, image in run.pictures.items():
            small = fit_width(image, _PICTURE_WIDTH_PX)
            text = html.escape(f"{run.name}: {name}")
            content = base64.b64encode(jpeg_bytes(small)).decode()
            figures.append(
                f'<figure><figcaption>{text}</figcaption><img alt="{text}" width="{small.shape[1]}" '
                f'height="{small.shape[0]}" loading="lazy" src="data:image/jpeg;base64,{content}"></figure>'
            )
    return f'<section><h2>Pictures</h2><div class="pictures">{"".join(figures)}</div></section>' if figures else ""


def _provenance(made: Mapping[str, str], results: Sequence[Result], runs: Sequence[RunReport]) -> str:
    blocks = [f"<h3>This report</h3>{_facts(made)}"]
    for run in runs:
        facts = dict(run.facts) | ({"remark": run.remark} if run.remark else {})
        blocks.append(f"<h3>Pre-training: {html.escape(run.name)}</h3>{_facts(facts)}")
    header = (
        "protocol",
        "initialisation",
        "date",
        "seeds",
        "result of each",
        "rates tried: result on validation data",
        "time, s",
        "machine",
        "weights",
    )
    rows = [
        (
            f"{PROTOCOLS.get(r.protocol, r.protocol)}, {r.labels}",
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
    if rows:
        blocks.append("<h3>Evaluations</h3>" + _table(header, [_tr(row, (6,)) for row in rows], (6,)))
    return f"<section><h2>How the numbers were made</h2>{''.join(blocks)}</section>"


def _facts(facts: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items()) + "</dl>"
