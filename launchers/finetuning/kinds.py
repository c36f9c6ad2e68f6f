"""The kinds of networks that `tandem finetune` trains: what each is judged by, and how that is done.

What is the same for all, when a run is judged and what is written, is `launchers.finetuning.judging`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from common.nearby import nearest
from configs.detection import FinetuneConfig
from configs.load import ConfigError
from data.storage.reader import SampleError, SampleReader
from engine.scores import Scores
from launchers.drawing.canvas import RgbImage
from launchers.drawing.page import TextTable
from launchers.finetuning.boxes import BoxKind
from launchers.finetuning.judged_set import JudgedSet
from launchers.finetuning.segments import SegmentKind
from launchers.finetuning.verdict import BenchmarkVerdict
from models.detection.base import DetectorConfig
from models.segmentation.base import SegmenterConfig


@runtime_checkable
class FoundFrame(Protocol):
    """One frame that a network has looked at: what it is judged by, without points."""

    @property
    def index(self) -> int:
        """Row of the frame in its set's manifest."""
        ...

    @property
    def labelled(self) -> bool:
        """Whether somebody has labelled it; others are not judged."""
        ...


@runtime_checkable
class Kind(Protocol):
    """One kind. A frame is a `FoundFrame` that the kind has made itself; so is what `marked` gives.

    Attributes:
        name: "detection" or "segmentation": what its figures' names begin with.
        shown: what its pictures show of a frame.
        benchmarks: names of its metrics.
    """

    name: str
    shown: str

    @property
    def benchmarks(self) -> Collection[str]:
        """See above."""
        ...

    def check(self, judged: JudgedSet, config: FinetuneConfig) -> None:
        """Refuse before the training what would fail after it, by the classes and by the first frame.

        Raises:
            ConfigError: a benchmark judges nothing that the network tells apart, or the set lacks what it needs.
        """
        ...

    def labelled(self, reader: SampleReader, index: int) -> bool:
        """Whether somebody has labelled a frame of a set.

        Raises:
            SampleError: the frame is damaged.
        """
        ...

    def find(
        self,
        network: nn.Module,
        judged: JudgedSet,
        indices: Int[np.ndarray, " n"],
        config: FinetuneConfig,
        *,
        device: torch.device,
        go_on: Callable[[], bool] = ...,
        equal_passes: bool = False,
        submission: Mapping[str, Path] | None = None,
        tables: Path | None = None,
    ) -> Sequence[Any] | None:
        """What a network in evaluation mode says of some frames; damaged ones are left out. None where it was ended.

        Args:
            network: on `device`.
            judged: set of the frames.
            indices: of the frames.
            config: of the network's run.
            device: of the network.
            go_on: asked before every batch; False ends it.
            equal_passes: make a forward pass for every batch, as ranks that share weights must.
            submission: benchmark -> folder; write the files of large frames there while they are in memory.
            tables: folder of nuScenes' tables, for its files.

        Raises:
            ArgumentError: see `submitted`.
        """
        ...

    def judge(self, benchmark: str, frames: Sequence[Any], judged: JudgedSet, config: FinetuneConfig) -> Scores:
        """Verdict of one benchmark.

        Raises:
            JudgeError: the frames lack what it needs.
        """
        ...

    def counted_from(self, scores: Scores, frames: Sequence[Any], config: FinetuneConfig) -> Mapping[str, float]:
        """Class -> the lowest score of an object that counts in `Scores.frames`; {} where scores do not matter."""
        ...

    def submitted(
        self, benchmark: str, folder: Path, frames: Sequence[Any], judged: JudgedSet, config: FinetuneConfig
    ) -> Path:
        """The benchmark's own files of what `find` has found: what to hand in.

        Raises:
            ArgumentError: the benchmark has no such files here; or a frame lacks what they need.
        """
        ...

    def marked(
        self,
        network: nn.Module,
        shown: JudgedSet,
        index: int,
        config: FinetuneConfig,
        *,
        judged: BenchmarkVerdict | None = None,
    ) -> Any:
        """One frame to be drawn, with what the network in evaluation mode says of it; it has a `key`.

        Raises:
            SampleError: the frame is damaged.
        """
        ...

    def views(self, marked: Any, title: str) -> dict[str, RgbImage]:
        """Its pictures."""
        ...

    def table(self, marked: Any) -> TextTable:
        """What is said of it in numbers."""
        ...


_KINDS: Mapping[type, Kind] = {DetectorConfig: BoxKind(), SegmenterConfig: SegmentKind()}


def kind_of(config: FinetuneConfig) -> Kind:
    """The kind of a run's network."""
    return next(kind for settings, kind in _KINDS.items() if isinstance(config.model, settings))


def check_benchmarks(config: FinetuneConfig) -> None:
    """Refuse names that are none of the metrics of the network's kind.

    Raises:
        ConfigError: an unknown benchmark.
    """
    known = kind_of(config).benchmarks
    unknown = [name for name in config.judge.benchmarks if name not in known]
    if unknown:
        others = [kind.name for kind in _KINDS.values() if unknown[0] in kind.benchmarks]
        near = f"; it judges {others[0]}, and the network does {kind_of(config).name}" if others else ""
        near = near or nearest(unknown[0], known)
        raise ConfigError(f"judge.benchmarks: got {unknown[0]!r}, expected any of {', '.join(known)}{near}")


def to_be_judged(config: FinetuneConfig) -> JudgedSet:
    """The frames that a run is judged on, by benchmarks that can judge them.

    Raises:
        ConfigError: an unknown benchmark or split, or see `Kind.check`.
        ShardError: no such set.
    """
    check_benchmarks(config)
    judged = JudgedSet.of(config)
    kind_of(config).check(judged, config)
    return judged


def check_labelled(judged: JudgedSet, config: FinetuneConfig) -> None:
    """Refuse to train what could not be judged: reads frames until one is labelled, mostly the first.

    Raises:
        ConfigError: nobody has labelled any of them.
        ShardError: their storage is away.
    """
    kind, reader = kind_of(config), SampleReader(judged.manifest)
    if not any(_readably_labelled(kind, reader, int(index)) for index in judged.indices):
        raise ConfigError(
            f"judge.split={config.judge.split}: none of its {len(judged.indices)} frames in {judged.manifest.root} is "
            f"labelled, as judge.benchmarks={list(config.judge.benchmarks)} needs; choose another split, another set "
            "(judge.shards), or judge nothing (judge.benchmarks=[])"
        )


def _readably_labelled(kind: Kind, reader: SampleReader, index: int) -> bool:
    try:
        return kind.labelled(reader, index)
    except SampleError:
        return False
