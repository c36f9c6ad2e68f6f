"""What a plan measures on this machine: the time of an update, of the teacher, and the speed of writing."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from common.files import file_sha256
from common.nearby import nearby
from common.run_files import METRICS_FILE
from configs.load import ConfigError
from configs.runs import RunConfig
from engine import metric_names as names
from launchers.planning.figures import StepTime
from launchers.runs.files import read_config, read_metrics
from launchers.training.train import train
from models.image.teacher import FrozenTeacher
from models.methods.base import Objective

MEASURED_STEPS = 8
"""Updates of --measure; the first quarter is not counted."""
PROBE_BYTES = 64 * 2**20
"""Written to measure the file system: more than a disk's own cache takes at once would cost time, less would not show
the cost of fsync."""


def step_here(config: RunConfig, objective: Objective, cameras: int) -> StepTime:
    """Train a few updates in this process on the run's shards, and time the teacher beside them."""
    with tempfile.TemporaryDirectory() as folder:
        measured = dataclasses.replace(
            config,
            run_dir=folder,
            schedule=dataclasses.replace(config.schedule, steps=MEASURED_STEPS, warmup_steps=0),
            # Nothing but training between two log lines.
            checkpoint=dataclasses.replace(config.checkpoint, every_steps=0, every_min=0.0, keep_every=0),
            monitor=dataclasses.replace(config.monitor, log_every=1, picture_every=0, tensorboard=False),
        )
        train(measured)
        step = step_of_run(Path(folder), config)
    step = dataclasses.replace(step, source=f"measured here, 1 process, {torch.get_num_threads()} thread(s)")
    return dataclasses.replace(step, teacher_share=teacher_time(config, objective, cameras) / step.seconds)


def _has_metrics(folder: Path) -> bool:
    return (folder / METRICS_FILE).is_file()


def step_of_run(folder: Path, config: RunConfig) -> StepTime:
    """Median update of a run, scaled to this config's samples a process.

    Raises:
        ConfigError: the folder has no metrics.
    """
    lines = [line for line in read_metrics(folder) if line.get(names.STEP_S)]
    if not lines:
        hint = nearby(folder, _has_metrics) or "; name the folder of a run that has trained"
        raise ConfigError(f"{folder}: no metrics.jsonl with {names.STEP_S}{hint}")
    counted = lines[len(lines) // 4 :]  # the first ones compile, fill caches and start workers
    tree = read_config(folder, strict=True)
    try:
        there = int(tree["data"]["micro_batch_size"]) * int(tree["engine"]["accumulation_steps"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder}: its config has no data.micro_batch_size and engine.accumulation_steps") from error
    here = config.data.micro_batch_size * config.engine.accumulation_steps
    seconds = median([float(line[names.STEP_S]) for line in counted])
    scaled = "" if there == here else f", {there} -> {here} samples per process"
    return StepTime(
        seconds=seconds * here / there,
        source=f"median of {len(counted)} lines of {folder}{scaled}",
        data_wait_share=median([float(line[names.DATA_WAIT_SHARE]) for line in counted]),
    )


def teacher_time(config: RunConfig, objective: Objective, cameras: int) -> float:
    """Seconds of the teacher's forward pass on one update's images; 0 where its features are cached."""
    teacher = next((module for module in objective.modules() if isinstance(module, FrozenTeacher)), None)
    if teacher is None or config.method.caches_teacher:
        return 0.0
    device = torch.device("cuda" if torch.cuda.is_available() and config.engine.device != "cpu" else "cpu")
    teacher = teacher.to(device)
    images = torch.zeros(config.data.micro_batch_size * cameras, 3, *config.data.image_size, dtype=torch.uint8)
    spent = []
    for _ in range(3):
        began = time.perf_counter()
        with torch.no_grad():
            float(teacher(images.to(device)).float().mean())  # waits for the device
        spent.append(time.perf_counter() - began)
    return min(spent) * config.engine.accumulation_steps


def measured_writing(run_dir: Path) -> float | None:
    """Bytes a second of writing, fsync and hashing in the nearest folder that exists; None where it is not writable."""
    folder = next(parent for parent in (run_dir, *run_dir.absolute().parents) if parent.is_dir())
    block = os.urandom(2**20)  # random, since a file system that compresses would look faster
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".plan_") as file:
            began = time.perf_counter()
            for _ in range(PROBE_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            file_sha256(Path(file.name))
            return PROBE_BYTES / (time.perf_counter() - began)
    except OSError:
        return None
