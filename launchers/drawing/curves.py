"""Line charts: small multiples, one metric each, the same colour for a run in all of them.

Colours are CSS variables of the page, so that a chart follows its light or dark theme. Nothing runs: values are shown
by the browser's own tooltips on the points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 10.0, 30.0
NUM_COLOURS = 8
"""Runs beyond this many are drawn in the colour of an earlier one, dashed."""
_PLACE = {"update": ".0f", "epoch": ".4g", "recall": ".2f"}
"""What the horizontal axis shows -> how a place on it is written."""
MAX_POINTS = 240
"""Points of one line; longer curves are averaged in equal stretches."""


@dataclass(frozen=True)
class RunCurve:
    """One line of a chart.

    Attributes:
        steps: x values, rising.
        values: y values; not finite where the run has none (the line is broken there).
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class DrawnLine:
    """One run's line, in the chart's coordinates.

    Attributes:
        style: CSS classes.
        parts: corners (x, y) of its unbroken parts.
        marks: (x, y, text) of each value.
    """

    style: str
    parts: Sequence[Sequence[tuple[float, float]]]
    marks: Sequence[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """What the page draws of one metric.

    Attributes:
        x_ticks: (place, label) along the horizontal axis.
        y_ticks: (place, label) along the vertical axis; a grid line at each.
    """

    title: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[DrawnLine]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = _LEFT
    right: float = WIDTH - _RIGHT


def chart(
    title: str,
    curves: Sequence[RunCurve],
    colours: Mapping[str, int],
    *,
    axis: str = "update",
    x_end: float | None = None,
    y_ends: tuple[float, float] | None = None,
) -> Chart | None:
    """One chart, runs in their numbered colours (from 0); None if there is not one finite value.

    Args:
        title: of the chart.
        curves: a line each.
        colours: name of a curve -> its number.
        axis: what the x values are, one of them.
        x_end: right end of the axis; None: by the values.
        y_ends: lower and upper end; None: by the values.
    """
    curves = [thinned(curve) for curve in curves]
    points = [(x, y) for c in curves for x, y in zip(c.steps, c.values, strict=True) if math.isfinite(y)]
    if not points:
        return None
    far = max(x for x, _ in points) if x_end is None else x_end
    xs, ys = ticks(0.0, far), ticks(*(y_ends or (min(y for _, y in points), max(y for _, y in points))))
    x_of = _scale(xs[0], max(xs[-1], far), _LEFT, WIDTH - _RIGHT)
    y_of = _scale(ys[0], ys[-1], HEIGHT - _BOTTOM, _TOP)
    return Chart(
        title,
        x_ticks=[(x_of(x), label) for x, label in zip(xs, tick_labels(xs), strict=True)],
        y_ticks=[(y_of(y), label) for y, label in zip(ys, tick_labels(ys), strict=True)],
        lines=[_drawn(curve, x_of, y_of, colours[curve.name], axis) for curve in curves],
    )


def thinned(curve: RunCurve) -> RunCurve:
    """At most MAX_POINTS points: means over equal stretches, at the stretch's mean step."""
    stretch = -(-len(curve.steps) // MAX_POINTS)
    if stretch <= 1:
        return curve
    steps, values = [], []
    for at in range(0, len(curve.steps), stretch):
        part = [v for v in curve.values[at : at + stretch] if math.isfinite(v)]
        steps.append(sum(curve.steps[at : at + stretch]) / len(curve.steps[at : at + stretch]))
        values.append(sum(part) / len(part) if part else math.nan)
    return RunCurve(curve.name, steps, values)


def ticks(low: float, high: float, target: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) at equal distances that span low to high."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        margin = max(abs(low), 1.0) * 0.1
        low, high = low - margin, high + margin
    rough = (high - low) / target
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= rough * (1 - 1e-9))
    # Rounding must not add a tick beyond the ends.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Linear map from data to the chart's coordinates."""
    factor = (end - start) / (high - low)
    return lambda value: start + (value - low) * factor


def _drawn(
    curve: RunCurve, x_of: Callable[[float], float], y_of: Callable[[float], float], colour: int, axis: str
) -> DrawnLine:
    parts: list[list[tuple[float, float]]] = [[]]
    marks = []
    for x, y in zip(curve.steps, curve.values, strict=True):
        if not math.isfinite(y):
            parts.append([])
            continue
        parts[-1].append((x_of(x), y_of(y)))
        marks.append((x_of(x), y_of(y), f"{curve.name}: {y:.4g} at {axis} {x:{_PLACE[axis]}}"))
    # A single value would have no length: a line from the point to itself shows as a dot.
    return DrawnLine(line_style(colour), [part if len(part) > 1 else part * 2 for part in parts if part], marks)


def line_style(number: int) -> str:
    """CSS classes of the colour with this number."""
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
