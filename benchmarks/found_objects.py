"""What a detector's last checkpoint finds, for the benchmarks that look at it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from common.run_files import CHECKPOINT_CONFIG
from configs.detection import FinetuneConfig
from configs.runs import read_run
from data.storage.reader import SampleReader
from launchers.evaluation.detections import JudgedFrame, detect
from launchers.finetuning.judged_set import JudgedSet
from launchers.training.restore import build_objective, find_checkpoint_folder
from models.detection.base import Detector


def found_by(run: Path, overrides: Sequence[str] = ()) -> tuple[FinetuneConfig, JudgedSet, list[JudgedFrame]]:
    """Config of a run of `tandem finetune`, the frames it is judged on, and what it finds there, on the CPU."""
    checkpoint = find_checkpoint_folder(run)
    config = read_run(checkpoint / CHECKPOINT_CONFIG, overrides)
    assert isinstance(config, FinetuneConfig)
    judged = JudgedSet.of(config)
    detector = build_objective(checkpoint, config).eval()
    assert isinstance(detector, Detector)
    with torch.no_grad():
        frames = detect(
            detector,
            SampleReader(judged.manifest),
            judged.indices,
            judged.data,
            batch_size=config.judge.batch_size,
            device=torch.device("cpu"),
        )
    assert frames is not None  # nothing ends it early
    return config, judged, list(frames)
