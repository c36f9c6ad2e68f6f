"""Steps with one thread and with several, on an idle machine and beside work on one core.

    python -m benchmarks.threads --shards runs/street/shards
    python -m benchmarks.threads --busy 1 --precision fp32 --uncached

A step of slidr_street (DeepSpeed and optimizer included), its batches made before. The settings take turns step by step
on the same batch, so that what else runs on the machine disturbs all alike; reported are medians and, of each setting,
the median of its ratios to one thread. `kernels` are the native ones (sparse convolution, neighbour maps), `torch` all
else. `--busy` starts as many processes that do nothing but count, with the same priority.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from benchmarks.common import STREET, markdown, setting, street_set
from benchmarks.step import training
from data.sample import Batch
from engine.distributed import init_distributed, shutdown
from engine.zero import ZeroEngine
from launchers.training.train import load_run

WARM_UP = 2
_SEED = 0


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Processes that keep a core busy each."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def step(engine: ZeroEngine, batch: Batch, rate: float) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    total, _, _ = engine.forward(batch)
    engine.backward(total, last=True)
    engine.update(rate)
    return time.perf_counter() - began


def measure(
    engine: ZeroEngine, batches: Sequence[Batch], rate: float, settings: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], list[float]]:
    """Seconds of each batch's step with (threads of the kernels, threads of torch)."""
    seconds: dict[tuple[int, int], list[float]] = {choice: [] for choice in settings}
    for number, batch in enumerate(batches):
        # Who begins changes.
        turn = number % len(settings)
        for kernels, of_torch in (*settings[turn:], *settings[:turn]):
            torch.set_num_threads(of_torch)
            with mock.patch.object(torch, "get_num_threads", lambda kernels=kernels: kernels):
                spent = step(engine, batch, rate)
            if number >= WARM_UP:
                seconds[kernels, of_torch].append(spent)
    return seconds


def show(seconds: dict[tuple[int, int], list[float]], title: str) -> None:
    """The table."""
    first, *_ = seconds.values()
    rows = [
        [
            f"{kernels}, {of_torch}",
            f"{1e3 * np.median(spent):.0f}",
            f"{np.median(np.divide(spent, first)):.2f}",
        ]
        for (kernels, of_torch), spent in seconds.items()
    ]
    print(f"{title}\n\n{markdown(('threads: kernels, torch', 'ms a step', 'to one thread'), rows)}\n", flush=True)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", help="a prepared set; 48 frames of the street world are made without")
    parser.add_argument("--preset", default="res16unet_tiny", help="of the 3D network (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=15, help="measured steps of each setting (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="beside one (default: %(default)s)")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1], help="busy processes (default: 0, then 1)")
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp32"], choices=("bf16", "fp32"))
    parser.add_argument("--uncached", action="store_true", help="the teacher in each step")
    options = parser.parse_args()
    many = options.threads
    print(setting(_SEED))
    with tempfile.TemporaryDirectory() as folder:
        shards = street_set(options.shards, Path(folder))
        overrides = [f"data.shards={shards}", f"method.backbone.preset={options.preset}"]
        overrides += [f"method.teacher.cache={str(not options.uncached).lower()}"]
        for precision in options.precision:
            config = replace(load_run(str(STREET), [*overrides, f"engine.precision={precision}"]), run_dir=folder)
            try:
                with training(config, init_distributed("cpu")) as (engine, stream):
                    batches = list(islice(stream, WARM_UP + options.steps))
                    with suppress(AttributeError):
                        stream.close()  # type: ignore[attr-defined]
                    for number in options.busy:
                        with busy(number):
                            spent = measure(engine, batches, config.optim.lr, [(1, 1), (many, 1), (many, many)])
                        show(spent, f"{options.preset}, {precision}, {number} busy")
            finally:
                shutdown()


if __name__ == "__main__":
    main()
