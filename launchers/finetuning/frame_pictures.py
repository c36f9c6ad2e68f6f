"""One frame seen by a detector: what it finds, what is right of that, and pictures, while it trains and afterwards."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from torch import nn

from common.files import replace_file
from configs.detection import FinetuneConfig
from configs.runs import RunConfig
from data.batch_spec import BatchSpec
from data.sample import Batch, Boxes
from data.storage.reader import SampleError, SampleReader
from data.storage.shard import ShardError
from engine.detection.scores import FrameErrors
from launchers.drawing.canvas import RgbImage, jpeg_bytes
from launchers.drawing.detections import MarkedFrame, detection_views
from launchers.evaluation.detections import Found, JudgedFrame, detect
from launchers.finetuning.judging import JudgedSet, verdict_of
from launchers.finetuning.verdict import lowest_counted
from launchers.runs.files import PICTURES_FOLDER
from launchers.training.supervision import Supervised
from models.detection.base import Detector

logger = logging.getLogger("tandem.pretrain")

_LATER_FIRST = frozenset({"nuscenes"})
"""Benchmarks that of equal scores take the later object first."""

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
    counted_from: Mapping[str, float] | None = None,
) -> MarkedFrame:
    """What a detector in evaluation mode finds in one frame, as the first of the run's benchmarks judges it.

    Args:
        detector: on any device.
        shown: set of the frame.
        index: row of the frame in the set's manifest.
        config: of the detector's run.
        counted_from: class -> score from which on what is found counts, of a judgement of many frames
            (`launchers.finetuning.verdict`); None: from the score of best F1 in this frame on.

    Raises:
        SampleError: the frame is damaged.
    """
    reader, names = SampleReader(shown.manifest), config.model.classes
    sample = reader.read(index, superpixels=False)
    device = next(detector.parameters()).device
    frames = detect(detector, reader, np.array([index]), shown.data, batch_size=1, device=device)
    assert frames  # it can be read, and nothing ends it early
    frame = frames[0]
    if counted_from is None and config.judge.benchmarks and frame.truth.boxes is not None:
        verdict = verdict_of(config.judge.benchmarks[0], [frame], shown.manifest, names)
        counted_from = lowest_counted(verdict, [frame], names)
    frame = dataclasses.replace(frame, found=_counted(frame.found, names, counted_from))
    errors = _errors(frame, shown, config)
    truth, of_classes = _truth(frame.truth.boxes, shown, config)
    found = frame.found
    missed = _mask(errors.missed, len(truth))
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
        right=_mask(errors.right, len(found.scores)),
        wrong=_mask(errors.false, len(found.scores)),
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


def _counted(found: Found, names: tuple[str, ...], counted_from: Mapping[str, float] | None) -> Found:
    """Objects that count, by falling score."""
    order = np.argsort(-found.scores, kind="stable")
    if counted_from is not None:
        least = np.array([counted_from.get(name, np.inf) for name in names])
        order = order[found.scores[order] >= least[found.classes[order]]]
    return _rows(found, order)


def _rows(found: Found, rows: np.ndarray) -> Found:
    columns = {field.name: getattr(found, field.name)[rows] for field in dataclasses.fields(found)}
    return Found(**columns)


def _errors(frame: JudgedFrame, shown: JudgedSet, config: FinetuneConfig) -> FrameErrors:
    """What is right, wrong and missed; nothing of it where no benchmark judges the run or nobody labelled the frame."""
    none = np.zeros(0, np.int64)
    if not config.judge.benchmarks or frame.truth.boxes is None:
        return FrameErrors(key=frame.truth.key, missed=none, false=none, right=none)
    benchmark, count = config.judge.benchmarks[0], len(frame.found.scores)
    # Equal scores leave no choice of where counting begins; their order is that of the scores all the same.
    order = np.arange(count)[::-1] if benchmark in _LATER_FIRST else np.arange(count)
    found = dataclasses.replace(_rows(frame.found, order), scores=np.ones(count))
    verdict = verdict_of(benchmark, [dataclasses.replace(frame, found=found)], shown.manifest, config.model.classes)
    if not verdict.frames:
        return FrameErrors(key=frame.truth.key, missed=none, false=none, right=none)
    errors = verdict.frames[0]
    return dataclasses.replace(errors, false=order[errors.false], right=order[errors.right])


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
