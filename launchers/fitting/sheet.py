"""What `tandem fit` shows: tables, and pictures of the distributions."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from launchers.drawing.canvas import RgbImage
from launchers.drawing.page import TextTable
from launchers.fitting.compare import Difference
from launchers.fitting.sensors import RING_EDGES_M, Sensors

COLOURS = ("#2a78d6", "#d20f69")


def tables(found: Sequence[Difference], trained: Sensors, other: Sensors) -> list[TextTable]:
    """The comparison, and what would help."""
    header = ("", "", trained_name(trained), other.set_name, "differs", "may")
    rows = tuple(
        ("DIFFERS" if one.beyond else "ok", one.name, one.trained, one.other, one.differs, one.limit) for one in found
    )
    sweeps = f"medians over {trained.num_sweeps} and {other.num_sweeps} sweeps"
    result = [TextTable(title=sweeps, header=header, rows=rows)]
    advice: dict[str, str] = {}  # one text may help with several
    for one in found:
        for text in one.advice if one.beyond else ():
            advice.setdefault(text, one.name)
    if advice:
        result.append(TextTable(title="what would help", rows=tuple((name, text) for text, name in advice.items())))
    return result


def trained_name(trained: Sensors) -> str:
    """How the run's set is called beside another of the same name."""
    return f"{trained.set_name} (the run's)"


def verdict(found: Sequence[Difference]) -> str:
    """One sentence."""
    beyond = [one.name for one in found if one.beyond]
    if not beyond:
        return "nothing differs by more than the thresholds: the weights should serve this set as well as their own"
    return f"{len(beyond)} of {len(found)} differ by more than the thresholds: {', '.join(beyond)}"


def pictures(trained: Sensors, other: Sensors) -> dict[str, RgbImage]:
    """Density by range and intensities of both sets."""
    figure = Figure(figsize=(11, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot, which looks for a display and keeps figures alive
    left, right = figure.subplots(1, 2)
    ends = np.array([*RING_EDGES_M[1:], RING_EDGES_M[-1] * 1.3])
    widths = np.diff(ends, prepend=0.0)
    areas = np.pi * np.diff(ends**2, prepend=0.0)
    bins = np.linspace(0.0, 1.0, len(trained.intensities) + 1)
    for sensors, colour, name in (
        (trained, COLOURS[0], trained_name(trained)),
        (other, COLOURS[1], other.set_name),
    ):
        density = np.array(sensors.rings) / areas
        left.step(ends - widths, density, where="post", color=colour, label=name)
        right.stairs(100 * np.array(sensors.intensities), bins, color=colour, label=name)
    left.set(yscale="log", xlabel="distance, m", ylabel="points of a sweep per square metre")
    right.set(yscale="log", xlabel="intensity", ylabel="points, %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    decoded = cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None  # it was written two lines above
    return {"density by range, and intensities": np.asarray(decoded[..., ::-1])}
