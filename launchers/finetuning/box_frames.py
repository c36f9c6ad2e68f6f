"""One frame as a detector sees it: what it finds, what a benchmark says of that, which of it is right."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64

from configs.detection import FinetuneConfig
from data.sample import Boxes
from data.storage.manifest import Manifest
from data.storage.reader import SampleReader
from engine.detection.frames import paired
from engine.detection.indoor import score_indoor
from engine.detection.judge import judge
from engine.detection.nuscenes import score_nuscenes
from engine.detection.nuscenes_rules import CLASS_RANGE_M, NuscenesSettings
from engine.scores import FrameErrors, JudgeError, Scores
from launchers.drawing.detections import MarkedFrame
from launchers.drawing.page import TextTable
from launchers.evaluation.detections import Found, JudgedFrame, benchmark_classes, detect, pairs_of
from launchers.finetuning.judged_set import JudgedSet
from launchers.finetuning.verdict import BenchmarkVerdict
from models.detection.base import Detector

_ROUNDING = 1e-6
"""Of scores that are computed once more."""


def verdict_of(benchmark: str, frames: Sequence[JudgedFrame], manifest: Manifest, classes: Sequence[str]) -> Scores:
    """Of one benchmark; "indoor" judges the detector's classes, and so do nuScenes' means, which then say so.

    Raises:
        JudgeError: the frames lack what it needs.
    """
    if benchmark == "kitti" and manifest.image_reduction != 1:
        raise JudgeError(
            "KITTI's metric sorts objects by their height in pixels of the recorded image, and images of "
            f"{manifest.root} are {manifest.stored_images}; prepare the set with image_reduction=1"
        )
    truth, found = pairs_of(frames, manifest, classes, benchmark)
    if benchmark == "nuscenes":
        own = benchmark_classes(classes, manifest, benchmark)
        if known := tuple(name for name in CLASS_RANGE_M if name in own):
            return score_nuscenes(paired(truth, found), NuscenesSettings(classes=known, other_classes=True))
    if benchmark == "indoor":
        return score_indoor(paired(truth, found), benchmark_classes(classes, manifest, benchmark))
    return judge(benchmark, truth, found)


def lowest_counted(scores: Scores, frames: Sequence[JudgedFrame], names: Sequence[str]) -> dict[str, float]:
    """See `BenchmarkVerdict`: the lowest score of each class among the objects that are right or wrong."""
    by_key = {frame.truth.key: frame.found for frame in frames}
    least: dict[str, float] = {}
    for errors in scores.frames:
        found, rows = by_key[errors.key], np.concatenate([errors.right, errors.false])
        for number, score in zip(found.classes[rows].tolist(), found.scores[rows].tolist(), strict=True):
            least[names[number]] = min(score, least.get(names[number], math.inf))
    return least


def marked_frame(
    detector: Detector,
    shown: JudgedSet,
    index: int,
    config: FinetuneConfig,
    *,
    judged: BenchmarkVerdict | None = None,
) -> MarkedFrame:
    """What a detector in evaluation mode finds in one frame, as the first of the run's benchmarks judges it.

    Args:
        detector: on any device.
        shown: set of the frame.
        index: row of the frame in the set's manifest.
        config: of the detector's run.
        judged: what the benchmark said of many frames with these weights, where it was asked. A frame that is not among
            them, or in which the detector now finds other objects (on another device, say), is judged alone.

    Raises:
        SampleError: the frame is damaged.
    """
    reader, names = SampleReader(shown.manifest), config.model.classes
    sample = reader.read(index, superpixels=False)
    device = next(detector.parameters()).device
    frames = detect(detector, reader, np.array([index]), shown.data, batch_size=1, device=device)
    assert frames  # it can be read, and nothing ends it early
    frame = frames[0]
    errors, counted_from = _judged_before(frame, names, judged) or _judged_alone(frame, shown, config)
    truth, of_classes = _truth(frame.truth.boxes, shown, config)
    missed, (right, wrong) = _mask(errors.missed, len(truth)), _marks(frame.found, errors)
    shown_rows = np.flatnonzero(right | wrong | _counted(frame.found, names, counted_from))
    found = _rows(frame.found, shown_rows)
    kept = of_classes | missed
    class_names = shown.manifest.class_names
    labels = [] if frame.truth.boxes is None else frame.truth.boxes.classes[kept].tolist()
    return MarkedFrame(
        key=sample.key,
        points=sample.points_lidar.astype(np.float64),
        truth=truth[kept],
        truth_names=tuple(class_names[label] if label < len(class_names) else "" for label in labels),
        missed=missed[kept],
        found=found.boxes,
        found_names=tuple(names[number] for number in found.classes.tolist()),
        scores=found.scores,
        right=right[shown_rows],
        wrong=wrong[shown_rows],
        cameras=sample.cameras,
        T_cam_lidar=tuple(frame.truth.T_cam_lidar(camera) for camera in frame.truth.cameras),
    )


def _mask(rows: np.ndarray, length: int) -> np.ndarray:
    return np.isin(np.arange(length), rows)


def _truth(
    boxes: Boxes | None, shown: JudgedSet, config: FinetuneConfig
) -> tuple[Float64[np.ndarray, "K 7"], np.ndarray]:
    """All labelled boxes, and which are of the detector's classes."""
    if boxes is None:
        return np.zeros((0, 7)), np.zeros(0, dtype=bool)
    names = shown.manifest.class_names
    wanted = [number for number, name in enumerate(names) if name in config.model.classes]
    rows = np.column_stack([boxes.centers_m, boxes.sizes_m, boxes.yaws]).astype(np.float64)
    return rows, np.isin(boxes.classes, wanted)


Judgement = tuple[FrameErrors, Mapping[str, float] | None]
"""Errors of a frame, and the score from which on each class counts; None: all of them."""


def _judged_before(frame: JudgedFrame, names: Sequence[str], judged: BenchmarkVerdict | None) -> Judgement | None:
    """What was said of the frame among others; None where nothing was, or not of these detections."""
    errors = None if judged is None else judged.errors_of(frame.truth.key)
    if judged is None or errors is None:
        return None
    rows, found = np.concatenate([errors.right, errors.false]), frame.found
    if rows.size and rows.max() >= len(found.scores):
        return None
    least = _least(names, judged.counted_from)[found.classes[rows]]
    return (errors, judged.counted_from) if (found.scores[rows] >= least - _ROUNDING).all() else None


def _judged_alone(frame: JudgedFrame, shown: JudgedSet, config: FinetuneConfig) -> Judgement:
    """Counting from the score of best F1 in this frame on; nothing is judged without a benchmark or labels."""
    none = np.zeros(0, np.int64)
    nothing = FrameErrors(key=frame.truth.key, missed=none, false=none, right=none)
    if not config.judge.benchmarks or frame.truth.boxes is None:
        return nothing, None
    verdict = verdict_of(config.judge.benchmarks[0], [frame], shown.manifest, config.model.classes)
    errors = verdict.frames[0] if verdict.frames else nothing
    return errors, lowest_counted(verdict, [frame], config.model.classes)


def _marks(found: Found, errors: FrameErrors) -> tuple[Bool[np.ndarray, " D"], Bool[np.ndarray, " D"]]:
    return _mask(errors.right, len(found.scores)), _mask(errors.false, len(found.scores))


def _counted(found: Found, names: Sequence[str], counted_from: Mapping[str, float] | None) -> Bool[np.ndarray, " D"]:
    """Objects whose scores count, whatever the benchmark says of them."""
    if counted_from is None:
        return np.ones(len(found.scores), dtype=bool)
    return np.asarray(found.scores >= _least(names, counted_from)[found.classes])


def _least(names: Sequence[str], counted_from: Mapping[str, float]) -> Float64[np.ndarray, " classes"]:
    return np.array([counted_from.get(name, np.inf) for name in names])


def _rows(found: Found, rows: Int64[np.ndarray, " d"]) -> Found:
    return Found(**{field.name: getattr(found, field.name)[rows] for field in dataclasses.fields(found)})


def objects_table(frame: MarkedFrame) -> TextTable:
    """Every object of a frame with what is said of it, missed and wrong ones first, then by distance."""
    marks = ["right" if r else "wrong" if w else "not counted" for r, w in zip(frame.right, frame.wrong, strict=True)]
    rows = [
        *(
            ("missed" if m else "labelled", n, "", b)
            for m, n, b in zip(frame.missed, frame.truth_names, frame.truth, strict=True)
        ),
        *(
            (m, n, f"{s:.2f}", b)
            for m, n, s, b in zip(marks, frame.found_names, frame.scores, frame.found, strict=True)
        ),
    ]
    places = ("missed", "wrong", "right", "not counted", "labelled")
    rows.sort(key=lambda row: (places.index(row[0]), float(np.hypot(*row[3][:2]))))
    cells = tuple(
        (
            mark,
            name,
            score,
            f"{np.hypot(*box[:2]):.1f}",
            *(f"{value:.1f}" for value in box[:6]),
            f"{np.degrees(np.arctan2(np.sin(box[6]), np.cos(box[6]))):.0f}",
        )
        for mark, name, score, box in rows
    )
    header = ("", "class", "score", "distance, m", "x", "y", "z", "length", "width", "height", "heading, degrees")
    return TextTable(title=f"objects of {frame.key}", header=header, rows=cells, numeric=tuple(range(2, len(header))))
