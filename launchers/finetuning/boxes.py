"""How detectors are judged: by boxes. A `launchers.finetuning.kinds.Kind`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from configs.detection import RANDOM, FinetuneConfig
from configs.load import ConfigError
from data.loading.detection_frames import frame_truth
from data.storage.reader import SampleError, SampleReader
from engine.detection.judge import BENCHMARKS, check_classes
from engine.scores import JudgeError, Scores
from launchers.drawing.canvas import RgbImage
from launchers.drawing.detections import MarkedFrame, detection_views
from launchers.drawing.page import TextTable
from launchers.evaluation.detections import NOTHING, JudgedFrame, benchmark_classes, detect
from launchers.evaluation.submission import Given, write_submission
from launchers.finetuning.box_frames import lowest_counted, marked_frame, objects_table, verdict_of
from launchers.finetuning.judged_set import JudgedSet
from launchers.finetuning.verdict import BenchmarkVerdict
from models.detection.base import Detector


class BoxKind:
    """Of detectors."""

    name, shown = "detection", "found and labelled boxes"

    @property
    def benchmarks(self) -> Collection[str]:
        """See `Kind`."""
        return BENCHMARKS

    def check(self, judged: JudgedSet, config: FinetuneConfig) -> None:
        """See `Kind`. A first frame that cannot be read, or that nobody has labelled, says nothing."""
        names = config.judge.benchmarks
        for name in names:
            try:
                own = benchmark_classes(config.model.classes, judged.manifest, name)
                check_classes(name, own, of_set=judged.manifest.box_categories or judged.manifest.class_names)
            except JudgeError as error:
                raise ConfigError(f"judge.benchmarks={name}: {error}") from error
        try:
            truth = frame_truth(SampleReader(judged.manifest), int(judged.indices[0]))
        except SampleError:
            return
        if truth.boxes is None:
            return
        for name in names:
            try:
                self.judge(name, [JudgedFrame(truth=truth, found=NOTHING)], judged, config)
            except JudgeError as error:
                raise ConfigError(f"judge.benchmarks={name}, judge.split={config.judge.split}: {error}") from error

    def labelled(self, reader: SampleReader, index: int) -> bool:
        """See `Kind`."""
        return frame_truth(reader, index).boxes is not None

    def find(
        self,
        network: nn.Module,
        judged: JudgedSet,
        indices: Int[np.ndarray, " n"],
        config: FinetuneConfig,
        *,
        device: torch.device,
        go_on: Callable[[], bool] = lambda: True,
        equal_passes: bool = False,
        submission: Mapping[str, Path] | None = None,
        tables: Path | None = None,
    ) -> list[JudgedFrame] | None:
        """See `Kind`; frames are small, and files are written of all together."""
        assert isinstance(network, Detector)
        return detect(
            network,
            SampleReader(judged.manifest),
            indices,
            judged.data,
            batch_size=config.judge.batch_size,
            device=device,
            go_on=go_on,
            equal_passes=equal_passes,
        )

    def judge(self, benchmark: str, frames: Sequence[JudgedFrame], judged: JudgedSet, config: FinetuneConfig) -> Scores:
        """See `Kind`."""
        return verdict_of(benchmark, frames, judged.manifest, config.model.classes)

    def counted_from(
        self, scores: Scores, frames: Sequence[JudgedFrame], config: FinetuneConfig
    ) -> Mapping[str, float]:
        """See `Kind`."""
        return lowest_counted(scores, frames, config.model.classes)

    def submitted(
        self, benchmark: str, folder: Path, frames: Sequence[JudgedFrame], judged: JudgedSet, config: FinetuneConfig
    ) -> Path:
        """See `Kind`."""
        return write_submission(folder, benchmark, frames, judged.manifest, config.model.classes, given_to(config))

    def marked(
        self,
        network: nn.Module,
        shown: JudgedSet,
        index: int,
        config: FinetuneConfig,
        *,
        judged: BenchmarkVerdict | None = None,
    ) -> MarkedFrame:
        """See `Kind`."""
        assert isinstance(network, Detector)
        return marked_frame(network, shown, index, config, judged=judged)

    def views(self, marked: MarkedFrame, title: str) -> dict[str, RgbImage]:
        """See `Kind`."""
        return detection_views(marked, title)

    def table(self, marked: MarkedFrame) -> TextTable:
        """See `Kind`."""
        return objects_table(marked)


def given_to(config: FinetuneConfig) -> Given:
    """What a run's detector looks at, and whether it began with weights from elsewhere."""
    return Given(
        points=config.model.tower("backbone") is not None,
        images=config.model.batch_spec().images,
        pretrained=config.init != RANDOM,
    )
