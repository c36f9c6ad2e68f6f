"""Frames of a run of `tandem finetune` seen by its newest weights: the worst ones, or one by its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.detection import FinetuneConfig
from configs.load import ArgumentError
from data.storage.reader import SampleError
from engine.checkpoint import read_state
from launchers.drawing.canvas import RgbImage
from launchers.drawing.page import TextTable
from launchers.finetuning.frame_pictures import shown_set, title_of
from launchers.finetuning.judged_set import JudgedSet
from launchers.finetuning.kinds import kind_of
from launchers.finetuning.verdict import BenchmarkVerdict, read_verdict
from launchers.training.restore import build_objective, find_checkpoint_folder, load_run_config
from models.methods.base import Objective


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """A run's newest weights, and what was said of its frames.

    Attributes:
        step: updates of the weights.
        shown: set and frames.
        judged: verdict of the run's first benchmark; None where there is none of this step.
    """

    network: Objective
    config: FinetuneConfig
    step: int
    shown: JudgedSet
    judged: BenchmarkVerdict | None

    @classmethod
    def of(cls, run_dir: Path, objective: Objective, config: FinetuneConfig, step: int) -> TrainedNetwork:
        """Of a network that was built.

        Raises:
            ConfigError: the run's verdict is damaged.
            ShardError: its set is not there.
        """
        verdict = read_verdict(run_dir)
        parts: Mapping[str, BenchmarkVerdict] = {}
        if verdict is not None and (verdict.step, verdict.split) == (step, config.judge.split):
            parts = verdict.benchmarks
        judged = parts.get(config.judge.benchmarks[0]) if config.judge.benchmarks else None
        return cls(network=objective, config=config, step=step, shown=shown_set(config), judged=judged)

    @torch.no_grad()
    def frame(self, index: int) -> Any:
        """One frame, by its row in the set's manifest, see `Kind.marked`; raises `SampleError` where it is damaged."""
        return kind_of(self.config).marked(self.network, self.shown, index, self.config, judged=self.judged)

    def views(self, frame: Any) -> dict[str, RgbImage]:
        """Pictures of a frame, their names behind its key."""
        drawn = kind_of(self.config).views(frame, title_of(frame.key, self.step, self.config))
        return {f"{frame.key}.{name}": picture for name, picture in drawn.items()}

    def table(self, frame: Any) -> TextTable:
        """What is said of a frame."""
        return kind_of(self.config).table(frame)


def worst_frames(
    run_dir: Path, objective: Objective, config: FinetuneConfig, step: int, num: int
) -> tuple[dict[str, RgbImage], str]:
    """Pictures of the judged frames with most errors; of frames that are spread evenly where none was judged.

    Returns:
        Pictures by name, and why there are fewer ("" if nothing is amiss).

    Raises:
        ConfigError, ShardError: see `TrainedNetwork.of`.
    """
    run = TrainedNetwork.of(run_dir, objective, config, step)
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


def trained_network(run_dir: Path) -> TrainedNetwork:
    """A run of `tandem finetune` with its newest weights.

    Raises:
        ArgumentError: the run is one of pre-training.
        CheckpointError: there is no intact checkpoint.
        ConfigError, ShardError: see `TrainedNetwork.of`.
    """
    checkpoint = find_checkpoint_folder(run_dir)
    config = load_run_config(checkpoint)
    if not isinstance(config, FinetuneConfig):
        raise ArgumentError(
            f"--frame draws what a detector or a segmenter found; {run_dir} is a pre-training run, expected one of "
            "`tandem finetune`"
        )
    step = int(read_state(checkpoint)["step"])
    return TrainedNetwork.of(run_dir, build_objective(checkpoint, config), config, step)
