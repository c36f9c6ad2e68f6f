"""What the benchmarks of whole runs share: a street set, children that are ranks, where and when it was measured."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

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
    """`python -m module ARGV` as so many ranks on this machine; standard output is piped."""
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
