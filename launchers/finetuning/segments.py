"""How segmenters are judged: by classes and objects of points. A `launchers.finetuning.kinds.Kind`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from configs.detection import RANDOM, FinetuneConfig
from configs.load import ConfigError
from data.loading.segment_frames import PointTruth, point_truth
from data.storage.manifest import Manifest
from data.storage.reader import SampleError, SampleReader
from engine.scores import JudgeError, Scores
from engine.segmentation.confusion import confusion_of, iou_of
from engine.segmentation.frames import SegmentedFrame, SegmentNames
from engine.segmentation.judge import BENCHMARKS, check_names, judge
from launchers.drawing.canvas import RgbImage
from launchers.drawing.page import TextTable
from launchers.drawing.segments import MarkedPoints, segment_views
from launchers.evaluation.segment_files import files_of
from launchers.evaluation.segments import FoundSegments, judged_frame, names_of, nothing_found, segmented
from launchers.finetuning.judged_set import JudgedSet
from launchers.finetuning.verdict import BenchmarkVerdict
from models.segmentation.base import Segmenter, SegmenterConfig


@dataclass(frozen=True, kw_only=True)
class KeptFrame:
    """What the benchmarks keep of a frame; its points are gone.

    Attributes:
        index: row of the frame in its set's manifest.
        key: of the frame.
        labelled: whether somebody has labelled its points.
        kept: of a labelled frame, benchmark -> what it needs.
    """

    index: int
    key: str
    labelled: bool
    kept: Mapping[str, Any] = field(default_factory=dict)


class SegmentKind:
    """Of segmenters."""

    name, shown = "segmentation", "found and true classes and objects"

    @property
    def benchmarks(self) -> Collection[str]:
        """See `Kind`."""
        return BENCHMARKS

    def check(self, judged: JudgedSet, config: FinetuneConfig) -> None:
        """See `Kind`. A first frame that cannot be read, or that nobody has labelled, says nothing."""
        names = _names(config, judged.manifest)
        if config.data.cut_to_cameras:
            raise ConfigError(
                "data.cut_to_cameras: got true, expected false: a segmenter is judged on all points of a frame, and "
                "would be trained on a part of them"
            )
        try:
            truth = point_truth(SampleReader(judged.manifest), int(judged.indices[0]))
        except SampleError:
            truth = None
        for name in config.judge.benchmarks:
            try:
                check_names(name, names)
            except JudgeError as error:
                raise ConfigError(f"judge.benchmarks={name}: {error}") from error
        if truth is not None:
            _kept(truth, nothing_found(truth.num_points), config.judge.benchmarks, names, judged.manifest)

    def labelled(self, reader: SampleReader, index: int) -> bool:
        """See `Kind`."""
        return point_truth(reader, index).labels is not None

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
    ) -> list[KeptFrame] | None:
        """See `Kind`."""
        assert isinstance(network, Segmenter)
        names, done = _names(config, judged.manifest), []
        files = [
            files_of(
                name,
                folder,
                names,
                split=config.judge.split,
                tables=tables,
                pretrained=config.init != RANDOM,
            )
            for name, folder in (submission or {}).items()
        ]
        frames = segmented(
            network,
            SampleReader(judged.manifest),
            indices,
            judged.data,
            batch_size=config.judge.batch_size,
            device=device,
            go_on=go_on,
            equal_passes=equal_passes,
        )
        for frame in frames:
            if frame is None:
                return None
            for written in files:
                written.write(*frame)
            done.append(_kept(*frame, config.judge.benchmarks, names, judged.manifest))
        for written in files:
            written.finish()
        return done

    def judge(self, benchmark: str, frames: Sequence[KeptFrame], judged: JudgedSet, config: FinetuneConfig) -> Scores:
        """See `Kind`."""
        kept = {frame.key: frame.kept[benchmark] for frame in frames if frame.labelled}
        return judge(benchmark, kept, _names(config, judged.manifest))

    def counted_from(self, scores: Scores, frames: Sequence[KeptFrame], config: FinetuneConfig) -> Mapping[str, float]:
        """See `Kind`: every segment counts, whatever its score."""
        return {}

    def submitted(
        self, benchmark: str, folder: Path, frames: Sequence[KeptFrame], judged: JudgedSet, config: FinetuneConfig
    ) -> Path:
        """See `Kind`: `find` has written them."""
        return folder

    def marked(
        self,
        network: nn.Module,
        shown: JudgedSet,
        index: int,
        config: FinetuneConfig,
        *,
        judged: BenchmarkVerdict | None = None,
    ) -> MarkedPoints:
        """See `Kind`; what is wrong is seen point by point, without a benchmark."""
        assert isinstance(network, Segmenter)
        reader, names = SampleReader(shown.manifest), _names(config, shown.manifest)
        sample = reader.read(index, superpixels=False)
        device = next(network.parameters()).device
        frames = segmented(network, reader, np.array([index]), shown.data, batch_size=1, device=device)
        truth, found = next(frame for frame in frames if frame is not None)
        frame = _frame(truth, found, names, shown.manifest)
        return MarkedPoints(key=sample.key, sample=sample, frame=frame, names=names)

    def views(self, marked: MarkedPoints, title: str) -> dict[str, RgbImage]:
        """See `Kind`."""
        return segment_views(marked, title)

    def table(self, marked: MarkedPoints) -> TextTable:
        """See `Kind`: of each class that is there, its points, their overlap and its objects."""
        frame, names = marked.frame, marked.names
        confusion = confusion_of(frame.true_class, frame.found_class, len(names.classes))
        overlap, rows = iou_of(confusion), []
        for number, name in enumerate(names.classes):
            true, found = frame.true_class == number, frame.found_class == number
            if not true.any() and not found.any():
                continue
            objects = ("", "")
            if name in names.things:
                known = np.zeros(0, np.int64) if frame.true_object is None else frame.true_object[true]
                objects = (_count(known), _count(frame.found_object[found]))
            iou = "–" if np.isnan(overlap[number]) else f"{100 * overlap[number]:.1f}"
            rows.append((name, f"{true.sum()}", f"{found.sum()}", iou, *objects))
        header = ("class", "true points", "found points", "IoU, %", "true objects", "found objects")
        return TextTable(title=f"points of {marked.key}", header=header, rows=tuple(rows), numeric=(1, 2, 3, 4, 5))


def _count(objects: np.ndarray) -> str:
    return str(len(np.unique(objects[objects >= 0])))


def _names(config: FinetuneConfig, manifest: Manifest) -> SegmentNames:
    assert isinstance(config.model, SegmenterConfig)
    return names_of(config.model, manifest)


def _frame(truth: PointTruth, found: FoundSegments, names: SegmentNames, manifest: Manifest) -> SegmentedFrame:
    """In the terms of the metrics; one that nobody has labelled has unlabelled points."""
    if truth.labels is None:
        unlabelled = nothing_found(truth.num_points).found_class
        return SegmentedFrame(key=truth.frame.key, true_class=unlabelled, true_object=unlabelled, **vars(found))
    return judged_frame(truth, found, names, manifest)


def _kept(
    truth: PointTruth, found: FoundSegments, benchmarks: Sequence[str], names: SegmentNames, manifest: Manifest
) -> KeptFrame:
    index, key = truth.frame.index, truth.frame.key
    if truth.labels is None:
        return KeptFrame(index=index, key=key, labelled=False)
    frame, kept = judged_frame(truth, found, names, manifest), {}
    for name in benchmarks:
        try:
            kept[name] = BENCHMARKS[name].keep(frame, names)
        except JudgeError as error:
            raise ConfigError(f"judge.benchmarks={name}: {error}") from error
    return KeptFrame(index=index, key=key, labelled=True, kept=kept)
