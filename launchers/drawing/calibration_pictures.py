"""`tandem inspect --calibration`: borders of the sweep's objects over the image's edges, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float

from data.calibration.check import CalibrationCheck, CalibrationVerdict, Motion, motion_between, projected_edges
from data.calibration.depth_edges import edge_strength
from data.sample import CameraView, Sample
from data.storage.manifest import Manifest
from data.storage.reader import SampleError, SampleReader, blamed_on
from launchers.drawing import canvas
from launchers.drawing.canvas import RgbImage
from launchers.drawing.page import TextTable

_SIDE_COLOUR = (70, 220, 255)
_TOP_COLOUR = (255, 170, 50)
_EDGE_COLOUR = (235, 235, 235)
_WIDTH_PX = 960
_CURVE_SIZE = (180, 640)


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationReport:
    """Evidence for a set's calibration from its samples, and a verdict for each camera.

    Attributes:
        damaged: samples that could not be read: key, reason, detail.
    """

    check: CalibrationCheck
    verdicts: tuple[CalibrationVerdict, ...]
    damaged: tuple[tuple[str, str, str], ...]

    def tables(self) -> list[TextTable]:
        """Figures of each camera, and one line in words; marked where it is a warning."""
        rows = [
            (
                verdict.camera,
                verdict.status,
                f"{verdict.score:.2f}",
                f"{verdict.best_score:.2f}",
                f"{verdict.background:.2f}",
                f"{verdict.shift_px[0]:+.1f} ± {verdict.shift_error_px[0]:.1f}",
                f"{verdict.shift_px[1]:+.1f} ± {verdict.shift_error_px[1]:.1f}",
                f"{verdict.sure:.0%}",
                "unknown" if verdict.time_offset_ms is None else f"{verdict.time_offset_ms:+.0f}",
            )
            for verdict in self.verdicts
        ]
        header = ("camera", "verdict", "score", "best", "elsewhere", "shift u px", "shift v px", "sure", "time ms")
        figures = TextTable(title="calibration", header=header, rows=tuple(rows), numeric=tuple(range(2, len(header))))
        marks = dict.fromkeys(("shift", "time", "heading"), "WARNING ")
        lines = tuple((marks.get(verdict.status, "") + verdict.message(),) for verdict in self.verdicts)
        words = TextTable(title="calibration in words", rows=lines or (("no images in these samples",),))
        return [figures, words]


def check_set(manifest: Manifest, reader: SampleReader, indices: Sequence[int]) -> CalibrationReport:
    """Judge the calibration of a prepared set by some of its samples; ego motion comes from their neighbours."""
    check = CalibrationCheck()
    damaged = []
    for index in indices:
        try:
            sample = reader.read(index, superpixels=False, labels=False)
            with blamed_on(sample.key, reader.shard_of(index)):
                check.add(sample, _motion(manifest, reader, index, sample))
        except SampleError as error:
            damaged.append((manifest.key(index), error.reason, error.detail))
    return CalibrationReport(check=check, verdicts=check.verdicts(), damaged=tuple(damaged))


def _motion(manifest: Manifest, reader: SampleReader, index: int, sample: Sample) -> Motion | None:
    """From the sample to the next one of its log, or from the one before."""
    order = manifest.indices(log=sample.log)
    at = int(np.flatnonzero(order == index)[0])
    for neighbour in (at + 1, at - 1):
        if 0 <= neighbour < len(order):
            try:
                other = reader.read(int(order[neighbour]), images=False, superpixels=False, labels=False)
            except SampleError:  # not this sample's fault
                continue
            first, second = (sample, other) if neighbour > at else (other, sample)
            motion = motion_between(first, second)
            if motion is not None:
                return motion
    return None


# ---- pictures
def calibration_view(sample: Sample, report: CalibrationReport) -> RgbImage | None:
    """Every camera of a sample: borders over edges as projected, shifted where that fits better, and the scores."""
    verdicts = {verdict.camera: verdict for verdict in report.verdicts}
    cells = []
    for camera in sample.cameras:
        if camera.image is None or camera.name not in verdicts:
            continue
        verdict = verdicts[camera.name]
        cells.append(canvas.captioned(_borders_over_edges(sample, camera, (0.0, 0.0)), f"{camera.name}: as calibrated"))
        if verdict.status == "shift":
            u, v = verdict.shift_px
            moved = _borders_over_edges(sample, camera, verdict.shift_px)
            cells.append(canvas.captioned(moved, f"{camera.name}: moved by {u:+.1f}, {v:+.1f} px, as fits better"))
        cells.append(
            canvas.captioned(
                _curves(report.check.profiles(camera.name)),
                f"{camera.name}: score over a shift to the side (u) and up or down (v), best at 0",
            )
        )
    return canvas.tiled(cells, columns=1) if cells else None


def _borders_over_edges(sample: Sample, camera: CameraView, shift_px: tuple[float, float]) -> RgbImage:
    assert camera.image is not None
    uv, edges = projected_edges(sample, camera)
    strength = np.maximum(*edge_strength(camera.image))
    glow = np.clip((strength - 1.0) / 2.0, 0, 1)[..., None]
    ground = canvas.dimmed(camera.image, 0.35).astype(np.float32)
    view = np.round(ground * (1 - glow) + np.array(_EDGE_COLOUR, np.float32) * glow * 0.8).clip(0, 255).astype(np.uint8)
    factor = canvas.enlargement(camera.image_size, _WIDTH_PX)
    colours = np.where(edges.top[:, None], np.array(_TOP_COLOUR), np.array(_SIDE_COLOUR)).astype(np.uint8)
    uv = canvas.enlarged_uv(uv + np.array(shift_px), factor)
    radius = np.full(len(uv), max(1.0, view.shape[1] * factor / 700))
    painted = canvas.paint_points(canvas.enlarge(view, factor), uv, colours, radius)
    names = ("borders at a side", "borders on top", "edges of the image")
    return canvas.with_legend(painted, names, np.array([_SIDE_COLOUR, _TOP_COLOUR, _EDGE_COLOUR], dtype=np.uint8))


def _curves(profiles: dict[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]]) -> RgbImage:
    """Score over the shift in u and in v; a line marks the calibration as it is."""
    height, width = _CURVE_SIZE
    chart = np.full((height, width, 3), canvas.BACKGROUND, dtype=np.uint8)
    if not profiles:
        return chart
    most = max(float(score.max()) for _, score in profiles.values()) or 1.0  # all scores may be 0
    reach = max(float(np.abs(axis).max()) for axis, _ in profiles.values())
    left, right, bottom, top = 40, width - 10, height - 24, 10

    def at(axis: Float[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> np.ndarray:
        u = left + (axis + reach) / (2 * reach) * (right - left)
        return np.round(np.stack([u, bottom - score / most * (bottom - top)], axis=1)).astype(np.int32)

    middle = round((left + right) / 2)
    cv2.line(chart, (middle, top), (middle, bottom), (90, 92, 100), 1)
    cv2.line(chart, (left, bottom), (right, bottom), (90, 92, 100), 1)
    for name, (axis, score) in profiles.items():
        colour = _SIDE_COLOUR if name == "u" else _TOP_COLOUR
        points = at(np.asarray(axis, dtype=np.float64), np.asarray(score, dtype=np.float64))
        cv2.polylines(chart, [points], False, colour, 1, cv2.LINE_AA)
        end = -1 if name == "u" else 0
        canvas.put_text(chart, name, int(points[end, 0]) - 4, int(points[end, 1]) - 6, scale=0.4, colour=colour)
    for value, u in ((-reach, left), (0.0, middle), (reach, right - 44)):
        canvas.put_text(chart, f"{value:.0f} px", u, height - 6, scale=0.45, colour=canvas.FOREGROUND)
    canvas.put_text(chart, f"{most:.1f}", 4, top + 8, scale=0.45)
    canvas.put_text(chart, "0", 4, bottom, scale=0.45)
    return chart
