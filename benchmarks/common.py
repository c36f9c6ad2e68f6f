"""What benchmarks share: a street set, children that are ranks, time by stage, where and when it was measured."""

from __future__ import annotations

import datetime
import functools
import glob
import os
import pkgutil
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import torch
from jaxtyping import Float32

from data.convert.base import Converter
from data.preparing.prepare import PrepareConfig, prepare
from data.sample import Sample
from engine.distributed import free_port

REPOSITORY = Path(__file__).resolve().parent.parent
STREET = REPOSITORY / "configs" / "pretrain" / "slidr_street.yaml"
FRAMES = 48
"""Of the set that is made where none is given."""


def street_set(given: str | None, folder: Path) -> str:
    """The given set, or a small one made now (some 10 s)."""
    if given is not None:
        return given
    out = folder / "shards"
    command = [sys.executable, "-m", "launchers.prepare", "synthetic", "-", str(out), f"--limit={FRAMES}"]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    return str(out)


def ranks(module: str, argv: Sequence[str], world_size: int, *, threads: int = 1) -> list[subprocess.Popen[str]]:
    """`python -m module ARGV` as `world_size` ranks on this machine; standard output is piped."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    env = {**os.environ, **shared, "OMP_NUM_THREADS": str(threads)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *argv],
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=REPOSITORY,
            text=True,
            stdout=subprocess.PIPE,
        )
        for rank in range(world_size)
    ]


def outputs(processes: Sequence[subprocess.Popen[str]], *, codes: Sequence[int] = (0,)) -> list[str]:
    """Standard output of each rank, once all have ended.

    Raises:
        RuntimeError: one ended with another exit code than those expected.
    """
    texts = [process.communicate()[0] for process in processes]
    for rank, process in enumerate(processes):
        if process.returncode not in codes:
            raise RuntimeError(f"rank {rank} ended with code {process.returncode}; its messages are above")
    return texts


class CallTimer:
    """Own processor time of functions, by stage: a busy machine shifts it less than a clock's."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted; the time of timed functions inside it is theirs."""

        @functools.wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            self._inner.append(0.0)
            start = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                taken = time.process_time() - start
                self.seconds[stage] += taken - self._inner.pop()
                self._inner[-1] += taken

        return run

    @contextmanager
    def over(self, stages: Mapping[str, Sequence[tuple[Any, str]]]) -> Iterator[None]:
        """Time functions inside the block.

        Args:
            stages: stage -> where the functions are looked up, as (module or class, name).
        """
        with ExitStack() as stack:
            for stage, places in stages.items():
                for owner, name in places:
                    timed = self.timed(stage, getattr(owner, name))
                    stack.enter_context(mock.patch.object(owner, name, timed))
            yield


def seconds_of(call: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds that a call takes; on a GPU, until it has done what was queued.

    Args:
        call: what is timed.
        clock: the process's own time (of all threads), which other work on the machine disturbs less than the time of
            day; `time.perf_counter` where devices or disks are waited for.
    """
    wait_for_device()
    began = clock()
    call()
    wait_for_device()
    return clock() - began


def wait_for_device() -> None:
    """Until the GPU has done what was queued, if this process uses one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def kitti_sweeps(pattern: str | None) -> list[str]:
    """Files of KITTI sweeps that a glob names; [] without one."""
    return sorted(glob.glob(pattern, recursive=True)) if pattern else []


def kitti_points(file: str) -> Float32[np.ndarray, "N 4"]:
    """x, y, z, intensity of a file of KITTI."""
    return np.fromfile(file, np.float32).reshape(-1, 4)


def converted(
    converter: Converter, frames: int, stages: Mapping[str, Sequence[str]], *, repeats: int
) -> tuple[str, list[Sample]]:
    """Speed of a converter, in words, and what it made of the first frames of its only log.

    Args:
        converter: of a set with one log.
        frames: number of them.
        stages: stage -> dotted names of its functions; each has its own time, without that of others in it.
        repeats: the fastest counts: what else runs on the machine only makes it slower.
    """
    (log,) = converter.logs()
    list(converter.frames(log, 0, 1))  # imports, tables of numpy and Arrow
    runs = []
    for _ in range(repeats):
        watch = CallTimer()
        with watch.over({stage: [_place(name) for name in names] for stage, names in stages.items()}):
            began = time.process_time()
            samples = [item for item in converter.frames(log, 0, frames) if isinstance(item, Sample)]
            runs.append((time.process_time() - began, watch.seconds))
    if len(samples) != frames:
        raise RuntimeError(f"{log}: {len(samples)} of {frames} frames could be converted")
    total, seconds = min(runs, key=lambda run: run[0])
    parts = ", ".join(f"{stage} {1e3 * spent / frames:.0f}" for stage, spent in seconds.items())
    return f"{frames / total:.2f} frames/s of a core; {1e3 * total / frames:.0f} ms ({parts})", samples


def _place(dotted: str) -> tuple[Any, str]:
    """A function for `CallTimer.over` by its dotted name, also that of a method."""
    owner, _, name = dotted.rpartition(".")
    return pkgutil.resolve_name(owner), name


def prepared(converter: Converter, root: Path, frames: int) -> str:
    """Frames a second and core of a whole preparation with superpixels, and the size of what it made."""
    began = time.process_time()
    summary = prepare(converter, str(root), PrepareConfig())
    spent = time.process_time() - began
    size = sum(shard.num_bytes for shard in summary.manifest.shards)
    return f"prepared with superpixels: {frames / spent:.2f} frames/s of a core, {size / frames / 1e6:.2f} MB a sample"


def setting(seed: int) -> str:
    """Date, machine, load and seed, for the lab book."""
    cpu = platform.processor() or platform.machine()
    load = os.getloadavg()[0]
    return (
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}, {os.cpu_count()} cores ({cpu}), "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, load before {load:.1f}, seed {seed}"
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for docs/lab_book.md."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
