"""Time lost by a pre-emption, and the time of a checkpoint, with real processes.

    python -m benchmarks.survival                               # a small street set, made in a temporary folder
    python -m benchmarks.survival --shards runs/street/shards --processes 2 --times 5

A street run gets SIGUSR1 after some updates, leaves with code 75, is started again at once and continues.
Lost is the time from the signal to the end of the first new update, without queueing, less one update. Its parts:

    finish step   signal -> the checkpoint begins: the rest of the update under way, metrics
    checkpoint    write, fsync, sha256, rename
    leave         until the process is gone: workers, process group, DeepSpeed
    imports       process start -> torch and DeepSpeed are imported, the run's config is read
    build         process group, networks, the newest checkpoint found and verified, DeepSpeed, states restored
    first batch   loader workers start and make it; dry batch
    first update

Checkpoints by size and stage: an MLP with AdamW (the file sizes are those of any network with as many parameters).
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import STREET, markdown, outputs, ranks, setting, street_set

PARTS = ("finish step", "checkpoint", "leave", "imports", "build", "first batch", "first update")
STEPS_BEFORE = 5
"""Updates before a signal, and after a restart."""
WIDTHS = {"1.7 M": 1290, "38 M": 6160}
"""Of the MLP, for about this many parameters: the street run's network and SLidR's."""
CHECKPOINTS = ((0, 1, "1.7 M"), (0, 1, "38 M"), (1, 2, "38 M"), (3, 2, "38 M"))
"""Stage, processes, size."""
REPEATS = 3


# ---- child: one rank


def trained(marks: Path, argv: list[str]) -> None:
    """`tandem pretrain` that notes when it passes what; rank 0 writes."""
    import os
    import sys
    from functools import wraps

    file = marks.open("a")

    def mark(name: str) -> None:
        if os.environ["RANK"] == "0":
            file.write(json.dumps([name, time.time()]) + "\n")
            file.flush()

    from engine.preempt import StopSignals
    from launchers import pretrain as verb
    from launchers.cli import guarded

    StopSignals().catch()

    from engine import checkpoint
    from engine.zero import ZeroEngine
    from launchers.training import train as training

    def around(owner: Any, name: str, before: str, after: str) -> None:
        function = getattr(owner, name)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if before:
                mark(before)
            result = function(*args, **kwargs)
            if after:
                mark(after)
            return result

        setattr(owner, name, call)

    around(checkpoint, "save_checkpoint", "checkpoint begins", "checkpoint ends")
    around(ZeroEngine, "__init__", "", "built")
    around(ZeroEngine, "load_shard", "", "built")
    around(ZeroEngine, "update", "", "update")
    around(training, "train", "imported", "")
    around(ZeroEngine, "discard", "", "dry batch")
    sys.exit(guarded(verb.main, argv))


def written(folder: Path, stage: int, width: int) -> None:
    """Write a checkpoint some times; rank 0 prints seconds and bytes."""
    from engine.checkpoint import newest_intact, save_checkpoint
    from engine.deepspeed_config import EngineConfig, quiet_deepspeed
    from engine.distributed import init_distributed, shutdown
    from engine.optim import OptimConfig, build_optimizer
    from engine.zero import ZeroEngine
    from tests.helpers.toy_objective import ToyObjective, ToySource

    world = init_distributed("cpu")
    objective = ToyObjective(width=width, norm=False).train()
    config = EngineConfig(zero_stage=stage, device="cpu")
    optimizer = build_optimizer(objective, OptimConfig(name="adamw"), 1e-3)
    spent: list[float] = []
    with quiet_deepspeed():
        engine = ZeroEngine(objective, optimizer, config, world, micro_batch_size=4)
        total, _, _ = engine.forward(next(ToySource(rank=world.rank, world_size=world.world_size).batches(0)))
        engine.backward(total, last=True)
        engine.update(1e-3)
        for step in range(REPEATS):
            began = time.perf_counter()
            weights = engine.weights()
            shard = {"shard": engine.shard() if stage > 0 or world.is_main else None}
            made = save_checkpoint(
                folder, step, weights=weights, rank_state=shard, state={}, config={}, world=world, keep=1
            )
            spent.append(time.perf_counter() - began)
        engine.close()
    shutdown()
    if world.is_main:
        began = time.perf_counter()
        newest_intact(folder)
        verified = time.perf_counter() - began
        print(json.dumps([median(spent), verified, sum(file.stat().st_size for file in made.iterdir())]))


# ---- parent


def preemptions(shards: str, folder: Path, options: argparse.Namespace) -> list[dict[str, float]]:
    """Signal and restart a run some times; seconds of each part."""
    argv = [str(STREET), f"data.shards={shards}", f"run_dir={folder / 'run'}", "schedule.steps=100000"]
    argv += ["checkpoint.every_steps=0", "checkpoint.every_min=0", "monitor.picture_every=0", "monitor.progress=false"]
    argv += options.overrides
    found = []
    marks, processes, started = start(folder / "marks_0", argv, options.processes)
    wait_for(marks, processes, STEPS_BEFORE)
    for number in range(1, options.times + 1):
        signalled = time.time()
        for process in processes:
            process.send_signal(signal.SIGUSR1)
        for process in processes:
            process.wait()
        gone = time.time()
        outputs(processes, codes=(75,))  # after it: the fork server's death takes a second that nobody waits for
        old = marks
        marks, processes, started = start(folder / f"marks_{number}", argv, options.processes)
        wait_for(marks, processes, STEPS_BEFORE)
        found.append(parts(read(old), read(marks), signalled, gone, started))
    for process in processes:
        process.send_signal(signal.SIGUSR1)
    outputs(processes, codes=(75,))
    return found


def start(marks: Path, argv: list[str], world_size: int) -> tuple[Path, Any, float]:
    """Start the run; where its marks are, its processes, and when."""
    began = time.time()
    return marks, ranks("benchmarks.survival", ["--train", str(marks), "--", *argv], world_size), began


def read(marks: Path) -> list[tuple[str, float]]:
    """Marks that are there."""
    if not marks.exists():
        return []
    whole = [line for line in marks.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [(name, when) for name, when in map(json.loads, whole)]


def wait_for(marks: Path, processes: Any, updates: int) -> None:
    """Wait until this many updates are done.

    Raises:
        RuntimeError: the run ended instead.
    """
    while sum(name == "update" for name, _ in read(marks)) < updates:
        if any(process.poll() is not None for process in processes):
            raise RuntimeError("the run ended before its updates were done; its messages are above")
        time.sleep(0.05)


def parts(
    old: list[tuple[str, float]], new: list[tuple[str, float]], signalled: float, gone: float, started: float
) -> dict[str, float]:
    """Seconds of each part, and what was lost."""
    begins, ends = (
        min(t for n, t in old if n == f"checkpoint {edge}" and t > signalled) for edge in ("begins", "ends")
    )
    imported, built = (max(t for n, t in new if n == name) for name in ("imported", "built"))
    updates = [t for n, t in new if n == "update"]
    ready = max((t for n, t in new if n == "dry batch" and t < updates[0]), default=built)
    passed = (signalled, begins, ends, gone), (started, imported, built, ready, updates[0])
    spent = (after - before for times in passed for before, after in itertools.pairwise(times))
    found = dict(zip(PARTS, spent, strict=True))
    usual = median(b - a for a, b in itertools.pairwise(updates))
    return found | {"usual update": usual, "lost": sum(found.values()) - usual}


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", help="a prepared set; a small street set is made without")
    parser.add_argument("--processes", type=int, default=1, help="of the pre-empted run (default: %(default)s)")
    parser.add_argument("--times", type=int, default=3, help="pre-emptions (default: %(default)s)")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=3, metavar=("FOLDER", "STAGE", "WIDTH"), help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="of slidr_street.yaml")
    options = parser.parse_intermixed_args()
    if options.train is not None:
        trained(options.train, options.overrides)
    elif options.write is not None:
        written(Path(options.write[0]), *map(int, options.write[1:]))
    else:
        where = setting(0)
        with tempfile.TemporaryDirectory() as folder:
            shards = street_set(options.shards, Path(folder))
            show_preemptions(preemptions(shards, Path(folder), options), options.processes, where)
        show_checkpoints(where)


def show_preemptions(found: list[dict[str, float]], processes: int, where: str) -> None:
    print(f"pre-emption of the street run, {processes} process(es), {len(found)} times, {where}\n")
    rows = []
    for name in (*PARTS, "usual update", "lost"):
        values = [one[name] for one in found]
        rows.append([name, f"{median(values):.2f}", f"{min(values):.2f} to {max(values):.2f}"])
    print(markdown(("part", "median, s", "range, s"), rows))


def show_checkpoints(where: str) -> None:
    print(f"\ncheckpoints, median of {REPEATS}, {where}\n")
    rows = []
    for stage, processes, name in CHECKPOINTS:
        with tempfile.TemporaryDirectory() as folder:
            argv = ["--write", folder, str(stage), str(WIDTHS[name])]
            texts = outputs(ranks("benchmarks.survival", argv, processes))
        spent, verified, size = json.loads(texts[0].splitlines()[-1])
        cells = [name, str(stage), str(processes), f"{size / 2**20:.0f}", f"{spent:.2f}", f"{verified:.2f}"]
        rows.append([*cells, f"{size / spent / 1e6:.0f}"])
    print(markdown(("parameters", "stage", "processes", "MiB", "write, s", "verify, s", "MB/s"), rows))


if __name__ == "__main__":
    main()
