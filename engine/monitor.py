"""Logging of a run: TensorBoard, metrics.jsonl, progress on the terminal.

Every number in TensorBoard is in `<run>/metrics.jsonl` too, one JSON object a line. Means are over the updates since
the last line and over ranks; skipped updates count in `train/skipped` only. Rank 0 writes.
"""

from __future__ import annotations

import contextlib
import math
import resource
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from common.ranges import at_least
from common.run_files import EVENTS_FOLDER, METRICS_FILE
from engine.distributed import World, mean_over_ranks
from engine.log_files import EventFile, MetricsFile
from engine.metric_names import (
    CUDA_GIB,
    DATA_S,
    DATA_WAIT_SHARE,
    LOSS,
    POINTS_PER_S,
    RSS_GIB,
    SAMPLES_PER_S,
    SKIPPED,
    STEP_S,
)

RECENT_LINES = 5
"""Log lines whose updates tell how fast a run is now: its mean would hold its slow first updates, or another load of
the machine, against it for hours."""


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """How much a run logs.

    Attributes:
        log_every: updates between lines in metrics.jsonl and TensorBoard.
        picture_every: updates between pictures in TensorBoard; 0 = none.
        tensorboard: whether to write TensorBoard files.
        progress: whether to show progress on the terminal (a bar, or plain lines where it is none).
    """

    log_every: int = 10
    picture_every: int = 500
    tensorboard: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        at_least(self, log_every=1)
        at_least(self, "0: none", picture_every=0)

    def picture_due(self, step: int, *, last: bool) -> bool:
        """Whether pictures are to be made after `step` updates, or after the last one."""
        return self.picture_every > 0 and (last or step % self.picture_every == 0)


def mean_of_each(values: Mapping[str, float], world: World) -> dict[str, float]:
    """Mean of each number over ranks, which all have the same names."""
    if not values:  # every update was skipped, on all ranks alike
        return {}
    names = sorted(values)
    # float64 keeps python's sums as they are on one rank.
    stacked = torch.tensor([values[name] for name in names], dtype=torch.float64).to(world.device)
    return dict(zip(names, mean_over_ranks(stacked, world).tolist(), strict=True))


class Window:
    """Sums of metrics since the last log line. Part of the checkpoint, so that a resumed run logs the same lines."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Add one update's metrics: the same names in every update and on every rank."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def means(self, world: World) -> dict[str, float]:
        """Means over the updates and over ranks; starts the next window."""
        means = mean_of_each({name: value / max(self.count, 1) for name, value in self.sums.items()}, world)
        self.sums, self.count = {}, 0
        return means


class Stopwatch:
    """Where the time of the updates since the last log line went."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget everything so far."""
        self._start = time.perf_counter()
        self._data_s = 0.0
        self._steps = self._samples = self._points = 0

    def waited(self, seconds: float) -> None:
        """Time spent inside `next()` of the batch source."""
        self._data_s += seconds

    def saw(self, num_samples: int, num_points: int) -> None:
        """Count a micro-batch."""
        self._samples += num_samples
        self._points += num_points

    def step(self) -> None:
        """Count an update."""
        self._steps += 1

    def read(self, world: World) -> dict[str, float]:
        """Times an update (mean over ranks), throughput (of all ranks together), memory; starts again."""
        now = time.perf_counter()
        elapsed = max(now - self._start, 1e-9)
        steps = max(self._steps, 1)
        local = [self._data_s / steps, elapsed / steps, self._samples / elapsed, self._points / elapsed]
        data_s, step_s, samples, points = mean_over_ranks(torch.tensor(local, device=world.device), world).tolist()
        self.restart()
        metrics = {
            DATA_S: data_s,
            STEP_S: step_s,
            DATA_WAIT_SHARE: data_s / max(step_s, 1e-9),
            SAMPLES_PER_S: samples * world.world_size,
            POINTS_PER_S: points * world.world_size,
            RSS_GIB: psutil.Process().memory_info().rss / 2**30,
        }
        if world.device.type == "cuda":
            metrics[CUDA_GIB] = torch.cuda.max_memory_allocated(world.device) / 2**30
        return metrics


def peak_rss_gib() -> float:
    """Largest resident memory of this process so far (workers not counted), GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Monitor:
    """Writes a run's metrics and shows its progress. On ranks other than 0 it does nothing.

    Attributes:
        active: whether this rank writes.
    """

    def __init__(self, run_dir: Path, config: MonitorConfig, world: World, *, step: int, num_steps: int) -> None:
        """Open the files; lines of an earlier attempt beyond `step` are dropped."""
        self.active = world.is_main
        self._metrics: MetricsFile | None = None
        self._events: EventFile | None = None
        self._progress: Progress | None = None
        self._num_steps = num_steps
        self._recent = deque([(step, time.monotonic())], maxlen=RECENT_LINES + 1)  # updates done, and when
        self._console = Console(stderr=True)
        self._plain = config.progress and not self._console.is_terminal
        if not self.active:
            return
        self._metrics = MetricsFile(run_dir / METRICS_FILE, step)
        if config.tensorboard:
            self._events = EventFile(run_dir / EVENTS_FOLDER, step)
        if config.progress and not self._plain:
            self._progress = _progress_bar(self._console)
            self._task = self._progress.add_task("pre-training", total=num_steps, completed=step, note="", left="")
            self._progress.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line."""
        if self._metrics is None:
            return
        self._recent.append((step, time.monotonic()))
        # JSON has no NaN: a number that is not finite becomes null.
        line = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._metrics.append({"step": step, "time": time.time(), **line})
        if self._events is not None:
            self._events.add(step, partial(_add_scalars, step=step, metrics=dict(metrics)))
        if self._plain:
            with contextlib.suppress(OSError):  # a full disk behind the job's output: there is no place to say so
                sys.stderr.write(f"step {step}/{self._num_steps}  {_note(metrics)}  {self._left()}\n")

    def pictures(self, step: int, images: Mapping[str, UInt8[np.ndarray, "H W 3"]]) -> None:
        """Put pictures into TensorBoard."""
        if self._events is not None:
            self._events.add(step, partial(_add_pictures, step=step, images=dict(images)))

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Put what was measured apart from training (`engine.measuring`) into TensorBoard."""
        if self._events is not None:
            self._events.add(step, partial(_add_scalars, step=step, metrics=dict(values)))

    def advance(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Move the progress bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)
            if metrics:
                self._progress.update(self._task, note=_note(metrics), left=self._left())

    def close(self) -> None:
        """Flush and close everything."""
        if self._progress is not None:
            self._progress.stop()
        if self._events is not None:
            self._events.close()
        if self._metrics is not None:
            self._metrics.close()

    def _left(self) -> str:
        """Time to the end at the speed of the updates between the newest log lines, with all that comes between."""
        (first, began), (step, now) = self._recent[0], self._recent[-1]
        if step == first:
            return ""
        left_s = (now - began) / (step - first) * (self._num_steps - step)
        minutes, seconds = divmod(round(left_s), 60)
        return f"{minutes // 60:d}:{minutes % 60:02d}:{seconds:02d} left"


def _add_scalars(writer: Any, *, step: int, metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        writer.add_scalar(name, value, step)


def _add_pictures(writer: Any, *, step: int, images: Mapping[str, UInt8[np.ndarray, "H W 3"]]) -> None:
    for name, image in images.items():
        writer.add_image(f"pictures/{name}", image, step, dataformats="HWC")


def _progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def _note(metrics: Mapping[str, float]) -> str:
    words = [f"loss {metrics[LOSS]:.4f}"] if LOSS in metrics else []
    if SAMPLES_PER_S in metrics:
        words.append(f"{metrics[SAMPLES_PER_S]:.1f} samples/s")
        words.append(f"waiting for data {metrics[DATA_WAIT_SHARE]:.0%}")
    if metrics.get(SKIPPED):
        words.append(f"skipped {metrics[SKIPPED]:.0f}")
    return "  ".join(words)
