"""Frames of a detector's run seen by its newest weights: the worst ones, or one by its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from configs.detection import FinetuneConfig
from configs.load import ArgumentError
from data.storage.reader import SampleError
from engine.checkpoint import read_state
from launchers.drawing.canvas import RgbImage
from launchers.drawing.detections import MarkedFrame, detection_views
from launchers.drawing.page import TextTable
from launchers.finetuning.frame_pictures import marked_frame, shown_set, title_of
from launchers.finetuning.judging import JudgedSet
from launchers.finetuning.verdict import BenchmarkVerdict, read_verdict
from launchers.training.restore import build_objective, find_checkpoint_folder, load_run_config
from models.detection.base import Detector
from models.methods.base import Objective


@dataclass(frozen=True, kw_only=True)
class TrainedDetector:
    """A run's newest weights, and what was said of its frames.

    Attributes:
        step: updates of the weights.
        shown: set and frames.
        judged: verdict of the run's first benchmark; None where there is none of this step.
    """

    detector: Detector
    config: FinetuneConfig
    step: int
    shown: JudgedSet
    judged: BenchmarkVerdict | None

    @classmethod
    def of(cls, run_dir: Path, objective: Objective, config: FinetuneConfig, step: int) -> TrainedDetector:
        """Of a network that was built.

        Raises:
            ConfigError: the run's verdict is damaged.
            ShardError: its set is not there.
        """
        assert isinstance(objective, Detector)
        verdict = read_verdict(run_dir)
        parts: Mapping[str, BenchmarkVerdict] = {}
        if verdict is not None and (verdict.step, verdict.split) == (step, config.judge.split):
            parts = verdict.benchmarks
        judged = parts.get(config.judge.benchmarks[0]) if config.judge.benchmarks else None
        return cls(detector=objective, config=config, step=step, shown=shown_set(config), judged=judged)

    @torch.no_grad()
    def frame(self, index: int) -> MarkedFrame:
        """One frame, by its row in the set's manifest; raises `SampleError` where it is damaged."""
        return marked_frame(self.detector, self.shown, index, self.config, judged=self.judged)

    def views(self, frame: MarkedFrame) -> dict[str, RgbImage]:
        """Pictures of a frame, their names behind its key."""
        drawn = detection_views(frame, title_of(frame.key, self.step, self.config))
        return {f"{frame.key}.{name}": picture for name, picture in drawn.items()}


def worst_frames(
    run_dir: Path, objective: Objective, config: FinetuneConfig, step: int, num: int
) -> tuple[dict[str, RgbImage], str]:
    """Pictures of the judged frames with most errors; of frames that are spread evenly where none was judged.

    Returns:
        Pictures by name, and why there are fewer ("" if nothing is amiss).

    Raises:
        ConfigError, ShardError: see `TrainedDetector.of`.
    """
    run = TrainedDetector.of(run_dir, objective, config, step)
    manifest, order = run.shown.manifest, run.shown.indices
    rows = order[:: max(1, len(order) // max(num, 1))][:num].tolist()
    if run.judged is not None:
        wanted = [frame.key.encode() for frame in run.judged.worst(num)]
        rows = [int(row) for key in wanted for row in np.flatnonzero(manifest.keys == key)[:1]]
    pictures: dict[str, RgbImage] = {}
    damaged: list[str] = []
    for row in rows:
        try:
            pictures |= run.views(run.frame(row))
        except SampleError as error:
            damaged.append(str(error))
    return pictures, "; ".join(damaged)


def trained_detector(run_dir: Path) -> TrainedDetector:
    """A detector's run with its newest weights.

    Raises:
        ArgumentError: the run is no detector's.
        CheckpointError: there is no intact checkpoint.
        ConfigError, ShardError: see `TrainedDetector.of`.
    """
    checkpoint = find_checkpoint_folder(run_dir)
    config = load_run_config(checkpoint)
    if not isinstance(config, FinetuneConfig):
        raise ArgumentError(
            f"--frame draws what a detector found; {run_dir} is a pre-training run, expected one of `tandem finetune`"
        )
    step = int(read_state(checkpoint)["step"])
    return TrainedDetector.of(run_dir, build_objective(checkpoint, config), config, step)


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
