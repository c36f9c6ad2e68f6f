"""Draws the sketches of methods: `models.visuals` in, uint8 RGB images out. No drawing here knows a method.

Letters: n values, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from data.sample import Batch
from launchers.drawing import canvas
from launchers.drawing.canvas import RgbImage
from launchers.drawing.scenes import birds_eye_uv, birds_eye_view, projection_view
from models.visuals import MatchSketch, PixelSketch, PointSketch, ProjectionSketch, Scale, Sketch

WIDTH_PX = 640
"""Images are enlarged up to about this width; views from above are as wide."""
MAX_LINES = 250
"""Lines of a match sketch that are drawn, evenly spread: more hide the image and each other."""
_FIXED_ENDS = {"share": (0.0, 1.0), "similarity": (-1.0, 1.0)}
_MIN_RANGE_M, _MAX_RANGE_M, _ROOM_M = 2.0, 80.0, 15.0
"""Distances are coloured up to _MAX_RANGE_M, or up to the farthest where that is nearer than _ROOM_M."""
_USUAL_M = 12.0
"""Distance at which `projection_view` draws dots of middle size, for values that are no distances."""


@runtime_checkable
class Sketcher(Protocol):
    """An objective that makes sketches."""

    def sketches(self, batch: Batch) -> Mapping[str, Sketch]:
        """Of a batch of one sample, by name."""
        ...


def draw(sketch: Sketch) -> RgbImage:
    """One sketch with its caption and scale."""
    if isinstance(sketch, PointSketch):
        return _points(sketch)
    if isinstance(sketch, PixelSketch):
        return _pixels(sketch)
    return _projection(sketch) if isinstance(sketch, ProjectionSketch) else _matches(sketch)


# ---- colours


class _Colours(NamedTuple):
    """Colours of values, and the ends of their scale (None for labels, which have none)."""

    rgb: UInt8[np.ndarray, "n 3"]
    ends: tuple[float, float] | None
    unit: str = ""

    def scaled(self, view: RgbImage) -> RgbImage:
        """The view with its scale below."""
        return view if self.ends is None else canvas.with_scale(view, *self.ends, self.unit)


def _coloured(values: Float[np.ndarray, " n"], scale: Scale) -> _Colours:
    """Colours of values; what is not finite is grey."""
    known = np.isfinite(values)
    if scale == "labels":
        known &= values >= 0
        ids = np.where(known, values, 0).astype(np.int64)
        rgb = canvas.class_palette(int(ids.max(initial=0)) + 1)[ids]
        ends = None
    else:
        low, high = (values[known].min(), values[known].max()) if known.any() else (0.0, 1.0)
        ends = _FIXED_ENDS.get(scale) or (float(low), max(float(high), float(low) + 1e-6))
        if scale == "metres":
            ends = (0.0, _MAX_RANGE_M if high > _ROOM_M else max(1.0, float(np.ceil(high))))
        rgb = canvas.turbo(values, *ends)
    rgb[~known] = canvas.UNLABELLED
    return _Colours(rgb, ends, "m" if scale == "metres" else "")


# ---- sketches


def _points(sketch: PointSketch) -> RgbImage:
    points, values = _floats(sketch.points), _floats(sketch.values)
    colours = _coloured(values, sketch.scale)
    range_m = _reach(points)
    view = birds_eye_view(points, colours.rgb, range_m=range_m, size_px=WIDTH_PX)
    if sketch.marked is not None:
        marked = sketch.marked.cpu().numpy()
        view = _ringed(view, birds_eye_uv(points[marked], range_m=range_m, size_px=WIDTH_PX), colours.rgb[marked])
    return canvas.captioned(colours.scaled(view), sketch.caption)


def _pixels(sketch: PixelSketch) -> RgbImage:
    image, values = _rgb(sketch.image), _floats(sketch.values)
    colours = _coloured(values.ravel(), sketch.scale)
    factor = canvas.enlargement((image.shape[0], image.shape[1]), WIDTH_PX)
    labels = sketch.scale == "labels"
    heat = canvas.enlarge(colours.rgb.reshape(image.shape), factor, smooth=not labels)
    view = canvas.blend(canvas.enlarge(canvas.dimmed(image, 0.9), factor), heat, 0.5 if labels else 0.6)
    if labels:
        ids = np.nan_to_num(values, nan=-1.0).astype(np.int64)
        view[canvas.boundaries(np.kron(ids, np.ones((factor, factor), dtype=np.int64)))] = canvas.FOREGROUND
    return canvas.captioned(colours.scaled(view), sketch.caption)


def _projection(sketch: ProjectionSketch) -> RgbImage:
    image, uv, values = _rgb(sketch.image), _floats(sketch.uv), _floats(sketch.values)
    inside = _inside(uv, image)
    colours = _coloured(values, sketch.scale)
    # Of distances, near dots are large and on top; other values say nothing of that.
    depth = values[inside] if sketch.scale == "metres" else np.full(int(inside.sum()), _USUAL_M)
    view = projection_view(image, uv[inside], depth, colours.rgb[inside], target_width=WIDTH_PX)
    caption = sketch.caption
    if not inside.all():
        caption += f" ({int((~inside).sum())} of {len(inside)} outside the image)"
    return canvas.captioned(colours.scaled(view), caption)


def _matches(sketch: MatchSketch) -> RgbImage:
    image, matched, true = _rgb(sketch.image), _floats(sketch.found), _floats(sketch.true)
    finite = np.isfinite(matched).all(axis=1) & np.isfinite(true).all(axis=1)
    matched, true = matched[finite], true[finite]
    length = np.linalg.norm(matched - true, axis=1)
    high = max(1.0, float(np.percentile(length, 95))) if len(length) else 1.0
    factor = canvas.enlargement((image.shape[0], image.shape[1]), WIDTH_PX)
    view = canvas.enlarge(canvas.dimmed(image, 0.6), factor)
    shown = np.arange(len(length))[:: max(1, -(-len(length) // MAX_LINES))]  # rounded up: at most MAX_LINES remain
    shown = shown[np.argsort(-length[shown], kind="stable")]  # short lines over long ones
    colours = canvas.turbo(length[shown], 0.0, high)
    _draw_lines(view, canvas.enlarged_uv(true[shown], factor), canvas.enlarged_uv(matched[shown], factor), colours)
    middle = f", median {np.median(length):.1f} px of {len(length)}" if len(length) else ", none"
    return canvas.captioned(canvas.with_scale(view, 0.0, high, "px"), sketch.caption + middle)


def _draw_lines(
    view: RgbImage, start: Float[np.ndarray, "n 2"], end: Float[np.ndarray, "n 2"], colours: UInt8[np.ndarray, "n 3"]
) -> None:
    """Lines into `view`, a dot where each starts; ends far outside are clipped, since OpenCV's integers overflow."""
    reach = 4.0 * max(view.shape[:2])
    for a, b, colour in zip(np.clip(start, -reach, reach), np.clip(end, -reach, reach), colours.tolist(), strict=True):
        at = (round(float(a[0])), round(float(a[1])))
        cv2.line(view, at, (round(float(b[0])), round(float(b[1]))), colour, 1, cv2.LINE_AA)
        cv2.circle(view, at, 2, colour, -1, cv2.LINE_AA)


def _ringed(view: RgbImage, uv: Float[np.ndarray, "n 2"], colours: UInt8[np.ndarray, "n 3"]) -> RgbImage:
    """The view with discs that have a white ring, few of them large, many small."""
    ringed = view.copy()
    radius = 4 if len(uv) <= 200 else 2
    here = _inside(uv, view)
    for (u, v), colour in zip(np.round(uv[here]).astype(int).tolist(), colours[here].tolist(), strict=True):
        cv2.circle(ringed, (u, v), radius + 1, canvas.FOREGROUND, -1, cv2.LINE_AA)
        cv2.circle(ringed, (u, v), radius, colour, -1, cv2.LINE_AA)
    return np.asarray(ringed)


def _reach(points: Float[np.ndarray, "n 3"]) -> float:
    """Metres from the middle to each side: all but the farthest twentieth, whether of a street or of a room."""
    if len(points) == 0:
        return _MAX_RANGE_M
    far = float(np.percentile(np.abs(points[:, :2]).max(axis=1), 95))
    return float(np.clip(np.ceil(far), _MIN_RANGE_M, _MAX_RANGE_M))


def _inside(uv: Float[np.ndarray, "n 2"], image: RgbImage) -> Bool[np.ndarray, " n"]:
    size = np.array([image.shape[1], image.shape[0]])
    return np.asarray((np.isfinite(uv) & (uv >= -0.5) & (uv < size - 0.5)).all(axis=1))


def _floats(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().double().numpy())


def _rgb(image: Tensor) -> RgbImage:
    return np.ascontiguousarray(image.detach().cpu().numpy().transpose(1, 2, 0))
