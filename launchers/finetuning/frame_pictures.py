"""One frame seen by a detector: what it finds, what is right of that, and pictures, while it trains and afterwards."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64
from torch import nn

from common.files import replace_file
from configs.detection import FinetuneConfig
from configs.runs import RunConfig
from data.batch_spec import BatchSpec
from data.sample import Batch, Boxes
from data.storage.reader import SampleError, SampleReader
from data.storage.shard import ShardError
from engine.scores import FrameErrors
from launchers.drawing.canvas import RgbImage, jpeg_bytes
from launchers.drawing.detections import MarkedFrame, detection_views
from launchers.evaluation.detections import Found, JudgedFrame, detect
from launchers.finetuning.judging import JudgedSet, verdict_of
from launchers.finetuning.verdict import BenchmarkVerdict, lowest_counted
from launchers.runs.files import PICTURES_FOLDER
from launchers.training.supervision import Supervised
from models.detection.base import Detector

logger = logging.getLogger("tandem.pretrain")

_ROUNDING = 1e-6
"""Of scores that are computed once more."""

Draw = Callable[[nn.Module, Batch, int], dict[str, RgbImage]]


def shown_set(config: FinetuneConfig) -> JudgedSet:
    """The frames that the detector is judged on; those that it is trained on where nothing judges it."""
    if not config.judge.benchmarks:
        own = dataclasses.replace(
            config.judge, shards=None, split=config.data.split or "train", limit=config.data.limit
        )
        config = dataclasses.replace(config, judge=own)
    return JudgedSet.of(config)


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


def pictures_of_detector(config: RunConfig, _: BatchSpec, run: Supervised) -> Draw:
    """Draws the frame in the middle of those that are judged; where it is damaged, the next one.

    The newest pictures are also kept in the run's folder.
    """
    assert isinstance(config, FinetuneConfig)
    shown: list[JudgedSet] = []

    def draw(objective: nn.Module, _: Batch, step: int) -> dict[str, RgbImage]:
        assert isinstance(objective, Detector)
        if not shown:
            shown.append(shown_set(config))
        frame = _middle(objective, shown[0], config)
        pictures = detection_views(frame, title_of(frame.key, step, config))
        if run.world.is_main:
            keep_pictures(Path(config.run_dir), pictures)
        return pictures

    return draw


def _middle(detector: Detector, shown: JudgedSet, config: FinetuneConfig) -> MarkedFrame:
    for index in np.roll(shown.indices, -(len(shown.indices) // 2)).tolist():
        try:
            return marked_frame(detector, shown, index, config)
        except SampleError as error:
            logger.warning("no picture of a damaged frame: %s", error)
    raise ShardError(f"{shown.manifest.set_name}: none of the {len(shown.indices)} frames to draw can be read")


def title_of(key: str, step: int, config: FinetuneConfig) -> str:
    """Caption of a frame's pictures."""
    judge = f"judged as by {config.judge.benchmarks[0]}" if config.judge.benchmarks else "not judged"
    return f"step {step}: found and labelled boxes of {key}, {judge}"


def keep_pictures(run_dir: Path, pictures: Mapping[str, RgbImage]) -> None:
    """Write the newest pictures into the run's folder, over the earlier ones."""
    folder = run_dir / PICTURES_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        replace_file(folder / f"{name}.jpg", jpeg_bytes(picture), durable=False)
