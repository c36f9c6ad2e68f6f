"""A network is judged while it is trained: all ranks look at their share of the frames, rank 0 judges.

Each judgement is a line of `detections.jsonl` in the run's folder, which is also the record of what was judged already.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from common.run_files import json_lines
from common.small_files import DamagedFileError, read_text
from configs.detection import FinetuneConfig
from configs.load import ConfigError
from engine.checkpoint import told_by_main
from engine.distributed import World
from engine.errors import CheckpointError
from engine.log_files import MetricsFile
from engine.scores import JudgeError, Scores
from launchers.finetuning.judged_set import JudgedSet
from launchers.finetuning.kinds import check_labelled, kind_of, to_be_judged
from launchers.finetuning.verdict import write_verdict
from launchers.runs.files import DETECTIONS_FILE

logger = logging.getLogger("tandem.pretrain")


def find_all(
    network: nn.Module, judged: JudgedSet, config: FinetuneConfig, world: World, go_on: Callable[[], bool]
) -> list[Any] | None:
    """What the network says of all frames, on all ranks, which all call it; None where `go_on` ended it."""
    mine = kind_of(config).find(
        network,
        judged,
        judged.share(world),
        config,
        device=world.device,
        go_on=go_on,
        equal_passes=config.engine.zero_stage == 3 and world.world_size > 1,
    )
    if mine is None:
        return None
    parts: list[Sequence[Any]] = [mine]
    if world.world_size > 1:
        parts = [[] for _ in range(world.world_size)]
        dist.all_gather_object(parts, mine)
    by_index = {frame.index: frame for part in parts for frame in part}
    return [by_index[index] for index in sorted(by_index)]


def judge_frames(frames: Sequence[Any], judged: JudgedSet, config: FinetuneConfig) -> dict[str, Scores]:
    """Verdict of each benchmark.

    Raises:
        ConfigError: the frames lack what a benchmark needs.
    """
    scores = {}
    for name in config.judge.benchmarks:
        try:
            scores[name] = kind_of(config).judge(name, frames, judged, config)
        except JudgeError as error:
            raise ConfigError(f"judge.benchmarks={name}, judge.split={config.judge.split}: {error}") from error
    return scores


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


class Judging:
    """Judges a network every so many epochs or updates and at the end; an `engine.measuring.Measurement`."""

    def __init__(self, config: FinetuneConfig, world: World, *, steps_per_epoch: float) -> None:
        """Open the set.

        Raises:
            ConfigError, ShardError: see `launchers.finetuning.kinds.to_be_judged` and `check_labelled`.
            CheckpointError: see `judged_steps`.
        """
        self._config, self._world, self._steps_per_epoch = config, world, steps_per_epoch
        self._judged = to_be_judged(config)
        check_labelled(self._judged, config)
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
        kind = kind_of(self._config)
        counted = {name: kind.counted_from(verdict, frames, self._config) for name, verdict in scores.items()}
        write_verdict(Path(self._config.run_dir), step, self._config.judge.split, scores, counted)
        self._file.append(line)  # last: it says that the step was judged
        for name, verdict in scores.items():
            shown = ", ".join(f"{title} {value:.2f}" for title, value in verdict.headline.items())
            logger.info("step %d, %s (%s, %d frames): %s", step, name, line["split"], len(frames), shown)
        return {
            f"{kind.name}/{name}/{title}": value
            for name, verdict in scores.items()
            for title, value in verdict.headline.items()
        }
