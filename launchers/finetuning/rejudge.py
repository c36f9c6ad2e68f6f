"""Judges a checkpoint of `tandem finetune` once more, on any split: `tandem evaluate --detector RUN`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.files import replace_file
from common.run_files import CHECKPOINT_CONFIG
from configs.detection import FinetuneConfig
from configs.load import ArgumentError, ConfigError
from configs.runs import read_run
from engine.scores import Scores
from launchers.evaluation.common import device_of
from launchers.evaluation.networks import identity_of, run_folder_of
from launchers.finetuning.judged_set import JudgedSet
from launchers.finetuning.judging import judge_frames, record_of
from launchers.finetuning.kinds import kind_of, to_be_judged
from launchers.training.restore import build_objective, find_checkpoint_folder
from models.lidar.native.library import threads_for_points

FOLDER = "judged"
"""Of a run: verdicts of `tandem evaluate --detector`."""


@dataclass(frozen=True, kw_only=True)
class Rejudged:
    """What came of it.

    Attributes:
        scores: of each benchmark.
        results: file with all figures.
        submissions: files or folders to hand in.
    """

    scores: dict[str, Scores]
    results: Path
    submissions: tuple[Path, ...]


def rejudge(
    source: Path,
    overrides: Sequence[str],
    *,
    device: str = "auto",
    out: Path | None = None,
    submission: Path | None = None,
    tables: Path | None = None,
) -> Rejudged:
    """Look at the frames of a split with a checkpoint, judge, write.

    Those that `judge.limit` leaves, and all of them for a submission, unless an override says otherwise.

    Args:
        source: a run's folder (its newest checkpoint) or a checkpoint's.
        overrides: `judge.<field>=value`, or `data.shards=...` where the set lies elsewhere now.
        device: "auto", "cpu" or "cuda".
        out: folder of the results; None: `judged/` of the run.
        submission: folder for the benchmarks' files; None: none are written. With it, a split may have no labels.
        tables: folder of nuScenes' tables, which its files of points need.

    Raises:
        ConfigError: the run is one of pre-training, an override is of something else, or nothing is asked for.
        CheckpointError: there is no intact checkpoint.
        ArgumentError: see `launchers.finetuning.kinds.Kind.submitted`.
    """
    wrong = [text for text in overrides if not text.startswith(("judge.", "data.shards=", "data.cache."))]
    if wrong:
        raise ConfigError(f"override {wrong[0]!r}: the network is trained already; only judge.* can change")
    if submission is not None and not any(text.startswith("judge.limit=") for text in overrides):
        overrides = [*overrides, "judge.limit=null"]  # the run's is for looking now and then while it trains
    checkpoint = find_checkpoint_folder(source)
    config = read_run(checkpoint / CHECKPOINT_CONFIG, overrides)
    if not isinstance(config, FinetuneConfig):
        raise ConfigError(f"{checkpoint}: is a pre-training run, expected one of tandem finetune")
    if not config.judge.benchmarks:
        raise ConfigError("judge.benchmarks: got [], expected one at least, for example judge.benchmarks=[kitti]")
    judged, kind = to_be_judged(config), kind_of(config)
    places = {} if submission is None else {name: submission / name for name in config.judge.benchmarks}
    frames = _found(checkpoint, config, judged, device, places, tables)
    labelled = any(frame.labelled for frame in frames)
    if not labelled and submission is None:
        raise ArgumentError(f"judge.split={config.judge.split} has no labels; --submission writes what was found in it")
    scores = judge_frames(frames, judged, config) if labelled else {}
    folder = out or run_folder_of(checkpoint) / FOLDER
    name = f"{judged.manifest.set_name}_{config.judge.split}_{checkpoint.name}.json"
    record = {
        "checkpoint": identity_of(checkpoint),
        "set": judged.manifest.set_name,
        "split": config.judge.split,
        "frames": len(frames),
        "left_out": len(judged.indices) - len(frames),
        "benchmarks": record_of(scores),
    }
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / name, (json.dumps(record, indent=1) + "\n").encode())
    return Rejudged(
        scores=scores,
        results=folder / name,
        submissions=tuple(kind.submitted(name, place, frames, judged, config) for name, place in places.items()),
    )


@torch.no_grad()
def _found(
    checkpoint: Path,
    config: FinetuneConfig,
    judged: JudgedSet,
    device: str,
    submission: Mapping[str, Path],
    tables: Path | None,
) -> Sequence[Any]:
    place = device_of(device)
    network = build_objective(checkpoint, config).to(place)
    with threads_for_points(place):
        found = kind_of(config).find(
            network, judged, judged.indices, config, device=place, submission=submission, tables=tables
        )
    assert found is not None  # nothing ends it early
    return found
