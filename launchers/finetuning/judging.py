"""A detector is judged while it is trained: all ranks find objects in their share of the frames, rank 0 judges.

Each judgement is a line of `detections.jsonl` in the run's folder, which is also the record of what was judged already.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from jaxtyping import Int
from torch import nn

from common.run_files import json_lines
from common.small_files import DamagedFileError, read_text
from configs.detection import FinetuneConfig
from configs.load import ConfigError
from data.loading.detection_frames import frame_truth
from data.loading.loader import DataConfig
from data.storage.manifest import Manifest, load_manifest
from data.storage.reader import SampleError, SampleReader
from engine.checkpoint import told_by_main
from engine.detection.frames import paired
from engine.detection.judge import BENCHMARKS, check_classes, judge
from engine.detection.nuscenes import score_nuscenes
from engine.detection.nuscenes_rules import CLASS_RANGE_M, NuscenesSettings
from engine.distributed import World
from engine.downstream.common import thin
from engine.errors import CheckpointError
from engine.log_files import MetricsFile
from engine.scores import JudgeError, Scores
from launchers.evaluation.detections import NOTHING, JudgedFrame, benchmark_classes, detect, frames_config, pairs_of
from launchers.finetuning.verdict import write_verdict
from launchers.runs.files import DETECTIONS_FILE
from models.detection.base import Detector

logger = logging.getLogger("tandem.pretrain")

METRIC = "detection/"
"""What the names of TensorBoard's scalars begin with."""


@dataclass(frozen=True, kw_only=True)
class JudgedSet:
    """The frames that a detector is judged on.

    Attributes:
        manifest: of their set.
        indices: of the frames.
        data: how they are read.
    """

    manifest: Manifest
    indices: Int[np.ndarray, " n"]
    data: DataConfig

    @classmethod
    def of(cls, config: FinetuneConfig) -> JudgedSet:
        """As the section `judge` asks.

        Raises:
            ConfigError: an unknown benchmark or split.
            ShardError: no such set.
        """
        unknown = [name for name in config.judge.benchmarks if name not in BENCHMARKS]
        if unknown:
            raise ConfigError(f"judge.benchmarks: got {unknown[0]!r}, expected any of {', '.join(BENCHMARKS)}")
        manifest = load_manifest(config.judge.shards or config.data.shards, config.data.cache)
        if not {*config.judge.split.split("+")} <= {*manifest.splits}:
            raise ConfigError(
                f"judge.split: got {config.judge.split!r}, expected one of {', '.join(sorted({*manifest.splits}))}, or "
                f"several joined by +, of {manifest.root}; judge.shards names another set"
            )
        return cls(
            manifest=manifest,
            indices=thin(manifest.indices(config.judge.split), config.judge.limit),
            data=frames_config(config.data, num_workers=config.judge.num_workers),
        )

    def share(self, world: World) -> Int[np.ndarray, " m"]:
        """A rank's frames, equally many on all ranks: the last ones begin again with the first."""
        per_rank = -(-len(self.indices) // world.world_size)
        return np.resize(self.indices, per_rank * world.world_size)[world.rank :: world.world_size]


def find_all(
    detector: Detector, judged: JudgedSet, config: FinetuneConfig, world: World, go_on: Callable[[], bool]
) -> list[JudgedFrame] | None:
    """What the detector finds in all frames, on all ranks, which all call it; None where `go_on` ended it."""
    mine = detect(
        detector,
        SampleReader(judged.manifest),
        judged.share(world),
        judged.data,
        batch_size=config.judge.batch_size,
        device=world.device,
        go_on=go_on,
        equal_passes=config.engine.zero_stage == 3 and world.world_size > 1,
    )
    if mine is None:
        return None
    parts: list[list[JudgedFrame]] = [mine]
    if world.world_size > 1:
        parts = [[] for _ in range(world.world_size)]
        dist.all_gather_object(parts, mine)
    by_index = {frame.truth.index: frame for part in parts for frame in part}
    return [by_index[index] for index in sorted(by_index)]


def judge_frames(frames: Sequence[JudgedFrame], judged: JudgedSet, config: FinetuneConfig) -> dict[str, Scores]:
    """Verdict of each benchmark.

    Raises:
        ConfigError: the frames lack what a benchmark needs.
    """
    scores = {}
    for name in config.judge.benchmarks:
        try:
            scores[name] = verdict_of(name, frames, judged.manifest, config.model.classes)
        except JudgeError as error:
            raise ConfigError(f"judge.benchmarks={name}, judge.split={config.judge.split}: {error}") from error
    return scores


def verdict_of(benchmark: str, frames: Sequence[JudgedFrame], manifest: Manifest, classes: Sequence[str]) -> Scores:
    """Of one benchmark; nuScenes' means are over the detector's classes, and say so where these are not all ten.

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
    return judge(benchmark, truth, found)


def record_of(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Verdicts as JSON has them, without curves and frames; what is no number is null."""
    return {
        name: {
            "benchmark": verdict.benchmark,
            "unit": verdict.unit,
            "headline": {title: _number(value) for title, value in verdict.headline.items()},
            "rows": [
                [row.category, row.subset, row.metric, _number(row.value), row.unit, row.num_true]
                for row in verdict.rows
            ],
            "notes": list(verdict.notes),
        }
        for name, verdict in scores.items()
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def judged_steps(run_dir: Path) -> list[int]:
    """Updates after which a run was judged.

    Raises:
        CheckpointError: its record cannot be read.
    """
    try:
        texts = (read_text(run_dir / DETECTIONS_FILE) or "").splitlines()
    except DamagedFileError as error:
        raise CheckpointError(f"{error}; move it away, and the run is judged again") from error
    return [line["step"] for line in json_lines(texts) if isinstance(line.get("step"), int)]


def check_benchmarks(judged: JudgedSet, config: FinetuneConfig) -> None:
    """Refuse before the training what would fail after it: by the classes, and by the first frame, nothing found in it.

    A frame that cannot be read, or that nobody has labelled, says nothing.

    Raises:
        ConfigError: a benchmark judges none of the detector's classes; or see `judge_frames`.
    """
    for name in config.judge.benchmarks:
        try:
            check_classes(name, benchmark_classes(config.model.classes, judged.manifest, name))
        except JudgeError as error:
            raise ConfigError(f"judge.benchmarks={name}: {error}") from error
    try:
        truth = frame_truth(SampleReader(judged.manifest), int(judged.indices[0]))
    except SampleError:
        return
    if truth.boxes is not None:
        judge_frames([JudgedFrame(truth=truth, found=NOTHING)], judged, config)


class Judging:
    """Judges a detector every so many epochs or updates and at the end; an `engine.measuring.Measurement`."""

    def __init__(self, config: FinetuneConfig, world: World, *, steps_per_epoch: float) -> None:
        """Open the set.

        Raises:
            ConfigError, ShardError: see `JudgedSet.of`; or the first frame lacks what a benchmark needs.
            CheckpointError: see `judged_steps`.
        """
        self._config, self._world, self._steps_per_epoch = config, world, steps_per_epoch
        self._judged = JudgedSet.of(config)
        check_benchmarks(self._judged, config)
        self._steps: Iterable[int] = told_by_main(lambda: judged_steps(Path(config.run_dir)), world)
        self._file: MetricsFile | None = None
        self._begun = 0

    def begin(self, step: int) -> None:
        """See `Measurement`."""
        self._begun = step
        self._steps = {taken for taken in self._steps if taken <= step}

    def due(self, step: int, *, last: bool) -> bool:
        """See `Measurement`."""
        return step not in self._steps and (last or self._ends_period(step))

    def _ends_period(self, step: int) -> bool:
        """Whether the last of so many epochs, or of so many updates, ended with this update."""
        judge = self._config.judge
        if judge.every_steps > 0 and step % judge.every_steps == 0:
            return True
        period = judge.every_epochs * self._steps_per_epoch
        return period > 0 and math.floor(step / period + 1e-9) > math.floor((step - 1) / period + 1e-9)

    def __call__(self, objective: nn.Module, step: int, stopped: Callable[[], bool]) -> Mapping[str, float] | None:
        """See `Measurement`."""
        assert isinstance(objective, Detector)
        began = time.perf_counter()
        frames = find_all(objective, self._judged, self._config, self._world, lambda: not stopped())
        if frames is None:
            return None
        self._steps = {*self._steps, step}
        if not self._world.is_main:
            return {}
        scores = judge_frames(frames, self._judged, self._config)
        line = {
            "step": step,
            "epoch": step / self._steps_per_epoch,
            "time": time.time(),
            "seconds": time.perf_counter() - began,
            "set": self._judged.manifest.set_name,
            "data": self._judged.manifest.fingerprint(),
            "split": self._config.judge.split,
            "frames": len(frames),
            "left_out": len(self._judged.indices) - len(frames),
            "benchmarks": record_of(scores),
        }
        if self._file is None:
            self._file = MetricsFile(Path(self._config.run_dir) / DETECTIONS_FILE, self._begun)
        run_dir, names = Path(self._config.run_dir), self._config.model.classes
        write_verdict(run_dir, step, self._config.judge.split, scores, frames, names)
        self._file.append(line)  # last: it says that the step was judged
        for name, verdict in scores.items():
            shown = ", ".join(f"{title} {value:.2f}" for title, value in verdict.headline.items())
            logger.info("step %d, %s (%s, %d frames): %s", step, name, line["split"], len(frames), shown)
        return {
            f"{METRIC}{name}/{title}": value
            for name, verdict in scores.items()
            for title, value in verdict.headline.items()
        }
