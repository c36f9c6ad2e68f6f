"""Recall curves of registrations: share of images whose error is below a threshold, for translation and rotation."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from configs.load import ConfigError
from engine.downstream.pose_errors import RRE_LIMIT_DEG, RTE_LIMIT_M, recall_curve
from launchers.drawing.canvas import RgbImage
from launchers.runs.files import REGISTRATION_FOLDER

ERRORS_FILE, PICTURE_FILE = "errors.json", "recall.png"
"""In the folder of a registration: the errors of every image, and the recall curves."""

_PANELS = (("rte_m", "RTE below, m", RTE_LIMIT_M), ("rre_deg", "RRE (geodesic) below, degrees", RRE_LIMIT_DEG))
_STEPS = 200
_COLOURS = ("#2a78d6", "#2da500", "#d20f69", "#5a3c00", "#00a5b4", "#780087", "#78964b", "#004b3c")
"""As the report's curves on a light page."""


def recall_figure(errors: Mapping[str, Mapping[str, Sequence[float | None]]]) -> bytes:
    """A PNG with one line a name, translation on the left and rotation on the right.

    Args:
        errors: name -> "rte_m" and "rre_deg" -> error of each image, None where no pose was found.
    """
    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot, which looks for a display and keeps figures alive
    for axes, (key, title, limit) in zip(figure.subplots(1, 2), _PANELS, strict=True):
        columns = {name: _column(entry[key]) for name, entry in errors.items()}
        finite = [value for column in columns.values() for value in column.tolist() if math.isfinite(value)]
        longest = max(2 * limit, float(np.quantile(finite, 0.95)) if finite else 0.0)
        thresholds = np.linspace(0.0, longest, _STEPS + 1)[1:].tolist()
        axes.set_prop_cycle(color=_COLOURS)
        for name, column in columns.items():
            axes.plot(thresholds, (100 * recall_curve(column, thresholds)).tolist(), label=name)
        axes.axvline(limit, color="grey", linewidth=0.8, linestyle=":")
        axes.set(xlabel=title, ylabel="images, %", xlim=(0, longest), ylim=(0, 100))
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def recall_pictures(run_dir: Path) -> dict[str, RgbImage]:
    """The recall curves that evaluations of a run have left in its folder, by title."""
    pictures = {}
    for file in sorted(run_dir.rglob(f"{REGISTRATION_FOLDER}/{PICTURE_FILE}")):
        where = file.parent.parent.relative_to(run_dir).as_posix()
        picture = cv2.imread(str(file))
        if picture is None:
            raise ConfigError(f"{file}: not readable as a picture; remove it, and evaluate again")
        pictures["registration: recall" + ("" if where == "." else f" ({where})")] = np.asarray(picture[..., ::-1])
    return pictures


def _column(values: Sequence[float | None]) -> Float[torch.Tensor, " B"]:
    return torch.tensor([math.inf if value is None else value for value in values], dtype=torch.float64)
