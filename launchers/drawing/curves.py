"""Line charts as inline SVG: small multiples, one metric each, the same colour for a run in all of them.

Colours are CSS variables of the page, so that a chart follows its light or dark theme. Nothing runs: values are shown
by the browser's own tooltips on the points.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 10.0, 30.0
NUM_COLOURS = 8
"""Runs beyond this many are drawn in the colour of an earlier one, dashed."""
MAX_POINTS = 240
"""Points of one line; longer curves are averaged in equal stretches."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: of the run.
        steps: x values, rising.
        values: y values; not finite where the run has none (the line is broken there).
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float]


def chart(title: str, curves: Sequence[Curve], colours: Mapping[str, int]) -> str:
    """A figure with one chart; "" if there is not one finite value.

    Args:
        title: of the figure.
        curves: lines.
        colours: number of each run's colour, from 0.
    """
    curves = [thinned(curve) for curve in curves]
    points = [(x, y) for c in curves for x, y in zip(c.steps, c.values, strict=True) if math.isfinite(y)]
    if not points:
        return ""
    xs, ys = ticks(0.0, max(x for x, _ in points)), ticks(min(y for _, y in points), max(y for _, y in points))
    x_of = _scale(xs[0], max(xs[-1], max(x for x, _ in points)), _LEFT, WIDTH - _RIGHT)
    y_of = _scale(ys[0], ys[-1], HEIGHT - _BOTTOM, _TOP)
    grid = [
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y_of(y):.1f}" y2="{y_of(y):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{y_of(y) + 4:.1f}" text-anchor="end">{label}</text>'
        for y, label in zip(ys, tick_labels(ys), strict=True)
    ]
    grid += [
        f'<text class="tick" x="{x_of(x):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{label}</text>'
        for x, label in zip(xs, tick_labels(xs), strict=True)
    ]
    lines = [_line(curve, x_of, y_of, colours[curve.name]) for curve in curves]
    name = html.escape(title)
    return (
        f'<figure class="chart"><figcaption>{name}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{name} over updates">'
        f"{''.join(grid)}{''.join(lines)}</svg></figure>"
    )


def legend(colours: Mapping[str, int]) -> str:
    """Which colour is which run."""
    items = [
        f'<li><svg viewBox="0 0 24 8" aria-hidden="true"><line class="{_class(number)}" x1="1" x2="23" y1="4" y2="4"/>'
        f"</svg>{html.escape(name)}</li>"
        for name, number in colours.items()
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def thinned(curve: Curve) -> Curve:
    """At most MAX_POINTS points: means over equal stretches, at the stretch's mean step."""
    stretch = -(-len(curve.steps) // MAX_POINTS)
    if stretch <= 1:
        return curve
    steps, values = [], []
    for at in range(0, len(curve.steps), stretch):
        part = [v for v in curve.values[at : at + stretch] if math.isfinite(v)]
        steps.append(sum(curve.steps[at : at + stretch]) / len(curve.steps[at : at + stretch]))
        values.append(sum(part) / len(part) if part else math.nan)
    return Curve(curve.name, steps, values)


def ticks(low: float, high: float, target: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) at equal distances that span low to high."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        margin = max(abs(low), 1.0) * 0.1
        low, high = low - margin, high + margin
    rough = (high - low) / target
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


class _scale:  # noqa: N801  (used like a function)
    """Linear map from data to picture coordinates."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.factor, self.start = low, (end - start) / (high - low), start

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.factor


def _line(curve: Curve, x_of: _scale, y_of: _scale, colour: int) -> str:
    segments: list[list[str]] = [[]]
    marks = []
    for x, y in zip(curve.steps, curve.values, strict=True):
        if not math.isfinite(y):
            segments.append([])
            continue
        at = f"{x_of(x):.1f},{y_of(y):.1f}"
        segments[-1].append(at)
        text = html.escape(f"{curve.name}: {y:.4g} at update {x:.0f}")
        # An invisible disc larger than the line is easier to point at, with a finger too.
        marks.append(f'<circle class="hit" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="6"><title>{text}</title></circle>')
    drawn = "".join(
        f'<polyline class="{_class(colour)}" points="{" ".join(s if len(s) > 1 else s * 2)}"/>' for s in segments if s
    )
    return drawn + "".join(marks)


def _class(number: int) -> str:
    return f"run run{number % NUM_COLOURS}" + (" again" if number >= NUM_COLOURS else "")


def tick_labels(values: Sequence[float]) -> list[str]:
    """Ticks as text with as many digits as tell them apart."""
    step = values[1] - values[0]
    largest = max(abs(v) for v in values)
    if largest >= 10_000:
        return [f"{v / 1000:g}k" for v in values]
    decimals = max(0, math.ceil(-math.log10(step) - 1e-9))
    decimals += 0 if abs(step * 10**decimals - round(step * 10**decimals)) < 1e-6 else 1  # steps of 2.5
    if decimals > 4:
        return ["0" if abs(v) < step / 2 else f"{v:.1e}".replace("e-0", "e-") for v in values]
    return [f"{0.0 if abs(v) < step / 2 else v:.{decimals}f}" for v in values]
