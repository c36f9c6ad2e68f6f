"""This tree against another one on the same batches, in alternation, in one run.

    git worktree add ../old 5e0c8f0
    python -m benchmarks.against ../old step step-uncached --precision fp32,bf16 --threads 1
    python -m benchmarks.against ../old network layer maps --points '/data/kitti_raw/**/velodyne_points/data/*.bin'
    python -m benchmarks.against ../old adamw --preset res16unet34c --memory

Two processes, one in each tree, wait for each other: each pair of repetitions has the same batch, and the tree that
begins changes. What else runs on the machine disturbs both alike, so the ratios old / new are formed pair by pair;
reported is their median with the quartiles. Batches are made once, by this tree, and every repetition has its own, as
in training: the loader and neighbour maps that it builds are not part of a step. `--memory` adds the greatest resident
memory of a first repetition in three fresh processes of each tree, whole and above what was resident before it.

Cases: step (a training step of slidr_street, DeepSpeed and optimizer included, teacher cached), step-uncached (the
teacher in it), network and network-forward (a Res16UNet with its maps), layer and layer-forward (a submanifold
convolution, its map given), maps (all of a Res16UNet), adamw (one update).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.against_cases import CASES
from benchmarks.common import REPOSITORY, STREET, markdown, setting, street_set
from benchmarks.sparse import sweeps
from data.loading.loader import build_loader
from data.sample import Batch
from engine.distributed import init_distributed, shutdown
from launchers.training.teacher_cache import open_or_build
from launchers.training.train import load_run
from models.methods.base import PoolsTeacher

WARM_UP = 2
FRESH = 3
"""Processes of each tree whose memory is measured."""
TREES = ("old", "new")
ENVIRONMENT = dict(os.environ)
"""As it was before this process became a rank: each child is a run of its own."""


@dataclass
class Child:
    """A case in one tree."""

    process: subprocess.Popen[str]

    def ask(self, number: int | None = None) -> dict[str, Any]:
        """One repetition; None: wait until it is ready."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if number is not None:
            print(number, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process in {self.process.args!r} ended; its messages are above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass
class Result:
    """Answers of both trees, pair by pair."""

    old: list[dict[str, Any]] = field(default_factory=list)
    new: list[dict[str, Any]] = field(default_factory=list)

    def ratio(self, key: str) -> str:
        """Median of old / new with the quartiles."""
        pairs = [old[key] / new[key] for old, new in zip(self.old, self.new, strict=True)]
        low, mid, high = np.percentile(pairs, (25, 50, 75))
        return f"{mid:.2f} ({low:.2f}-{high:.2f})"

    def median(self, tree: str, key: str) -> float:
        """Of one tree alone."""
        return float(np.median([answer[key] for answer in getattr(self, tree)]))

    def difference(self) -> float:
        """Greatest relative difference of the values that the trees computed."""
        both = [(old["value"], new["value"]) for old, new in zip(self.old, self.new, strict=True)]
        return float(max(abs(old - new) / max(abs(old), 1e-12) for old, new in both))


@contextmanager
def child(tree: Path, spec: Mapping[str, Any]) -> Iterator[Child]:
    """A process of the case that imports from `tree` alone."""
    # Not `python FILE`, which would put this folder, and its `common.py`, before the tree.
    code = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).with_name("against_cases.py")), json.dumps(spec)],
        cwd=tree,
        env={**ENVIRONMENT, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(spec["threads"])},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        one = Child(process)
        one.ask()
        yield one
    finally:
        process.kill()
        process.communicate()


def compare(trees: Mapping[str, Path], spec: Mapping[str, Any], pairs: int) -> Result:
    """Time a case in both trees."""
    result = Result()
    with child(trees["old"], spec) as old, child(trees["new"], spec) as new:
        for number in range(WARM_UP + pairs):
            order = (old, new) if number % 2 else (new, old)
            answers = {id(one): one.ask(number) for one in order}
            if number >= WARM_UP:
                result.old.append(answers[id(old)])
                result.new.append(answers[id(new)])
    return result


def fresh(trees: Mapping[str, Path], spec: Mapping[str, Any]) -> Result:
    """A first repetition in processes that have done nothing before it."""
    result = Result()
    for number in range(FRESH):
        for name in TREES:
            with child(trees[name], spec) as one:
                getattr(result, name).append(one.ask(number))
    return result


def flat(part: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """A batch as arrays: "points", "pairs.uv", ...; numbers as arrays without axes."""
    arrays: dict[str, np.ndarray] = {}
    for one in dataclasses.fields(part):
        value = getattr(part, one.name)
        if dataclasses.is_dataclass(value):
            arrays |= flat(value, f"{prefix}{one.name}.")
        elif isinstance(value, torch.Tensor):
            arrays[prefix + one.name] = value.numpy()
        elif value is not None:
            arrays[prefix + one.name] = np.asarray(value)
    return arrays


def street_batches(config_path: str, overrides: Sequence[str], number: int, folder: Path) -> None:
    """Batches of a run, augmented as in training, with pooled features where its teacher is cached."""
    config = load_run(config_path, overrides)
    objective = config.method.build()
    world = init_distributed("cpu")
    cached = config.method.caches_teacher and isinstance(objective, PoolsTeacher)
    cache = open_or_build(objective, config.data, world) if cached else None  # type: ignore[arg-type]
    source = build_loader(
        config.data, spec=config.method.batch_spec(), seed=0, rank=0, world_size=1, teacher_cache=cache
    )
    stream: Iterator[Batch] = iter(source.batches(0))
    folder.mkdir()
    for place in range(number):
        np.savez(folder / f"{place}.npz", **flat(next(stream)))  # type: ignore[arg-type]
    stream.close()  # type: ignore[attr-defined]
    shutdown()


def sweep_batches(args: argparse.Namespace, number: int, folder: Path) -> None:
    """Voxels of KITTI's sweeps, some others of them left out in each batch."""
    everything = sweeps(args.points, args.batch, args.voxel_size_m, args.thin)
    generator = torch.Generator().manual_seed(0)
    folder.mkdir()
    for place in range(number):
        share = 0.85 + 0.1 * float(torch.rand((), generator=generator))
        kept = everything[torch.rand(len(everything), generator=generator) < share]
        np.savez(folder / f"{place}.npz", voxel_coords=kept.numpy())


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old_tree", type=Path, metavar="OLD_TREE", help="a checkout of the other revision")
    parser.add_argument("cases", nargs="+", choices=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--pairs", type=int, default=9, help="of repetitions (default: %(default)s)")
    parser.add_argument("--precision", default="fp32,bf16", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--memory", action="store_true", help="also in fresh processes")
    parser.add_argument("--shards", help="a prepared street set; 48 frames are made without")
    config = str(STREET.relative_to(REPOSITORY))
    parser.add_argument("--config", default=config, help="of the steps, in both trees (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.field=value", help="of the steps' config"
    )
    parser.add_argument("--preset", default="res16unet_tiny", help="of network and adamw (default: %(default)s)")
    parser.add_argument("--channels", type=int, default=32, help="of layer (default: %(default)s)")
    parser.add_argument(
        "--points", help="glob of KITTI .bin sweeps for network, layer and maps; without, street batches"
    )
    parser.add_argument("--batch", type=int, default=2, help="sweeps of a batch (default: %(default)s)")
    parser.add_argument("--voxel-size-m", type=float, default=0.1, help="of sweeps (default: %(default)s)")
    parser.add_argument("--thin", type=int, default=1, help="every n-th point of sweeps (default: %(default)s)")
    args = parser.parse_args()
    if not (args.old_tree / "models").is_dir():
        parser.error(
            f"OLD_TREE is {args.old_tree}, expected a checkout: make one by `git worktree add FOLDER REVISION`"
        )
    return args


def main() -> None:
    """Measure and print."""
    args = parse()
    trees = {"old": args.old_tree.resolve(), "new": REPOSITORY}
    revisions = {name: _revision(tree) for name, tree in trees.items()}
    number = WARM_UP + args.pairs
    torch.set_num_threads(args.threads)
    times: list[list[str]] = []
    memory: list[list[str]] = []
    with tempfile.TemporaryDirectory() as root:
        shards = ""
        for case in args.cases:
            sweep = args.points and not case.startswith("step")
            overrides = [*args.set, *(["method.teacher.cache=false"] if case == "step-uncached" else [])]
            kind = "sweeps" if sweep else "uncached" if case == "step-uncached" else "street"
            data = Path(root) / kind
            if case != "adamw" and not sweep:
                shards = shards or str(Path(street_set(args.shards, Path(root))).resolve())
                overrides.append(f"data.shards={shards}")
            if case != "adamw" and not data.exists():
                sweep_batches(args, number, data) if sweep else street_batches(args.config, overrides, number, data)
            for precision in ("fp32",) if case in ("maps", "adamw") else args.precision.split(","):
                spec = {
                    **{"case": case, "precision": precision, "threads": args.threads, "data": str(data)},
                    **{"config": args.config, "overrides": overrides},
                    **{"preset": args.preset, "channels": args.channels},
                }
                label = f"{case}{_detail(args, case)}, {precision}"
                result = compare(trees, spec, args.pairs)
                times.append(_time_row(label, result))
                print(" ".join(times[-1]), file=sys.stderr)
                if args.memory:
                    memory.append(_memory_row(label, fresh(trees, spec)))
    print(
        f"{setting(0)}; {args.threads} thread(s), {args.pairs} pairs; old {revisions['old']}, new {revisions['new']}\n"
    )
    print(markdown(("case", "old ms", "new ms", "old / new", "of processor time", "load", "values differ by"), times))
    if memory:
        print()
        print(markdown(("case", "old MiB above start", "new", "old / new", "old MiB in all", "new"), memory))


def _detail(args: argparse.Namespace, case: str) -> str:
    if case.startswith("layer"):
        return f" {args.channels}"
    return f" {args.preset}" if case.startswith(("network", "adamw")) else ""


def _time_row(label: str, result: Result) -> list[str]:
    wall = [f"{1e3 * result.median(tree, 'wall'):.1f}" for tree in TREES]
    return [label, *wall, result.ratio("wall"), result.ratio("cpu"), f"{os.getloadavg()[0]:.1f}",
            f"{result.difference():.0e}"]  # fmt: skip


def _memory_row(label: str, result: Result) -> list[str]:
    added, peak = ([f"{result.median(tree, key) / 2**20:.0f}" for tree in TREES] for key in ("added", "peak"))
    return [label, *added, result.ratio("added"), *peak]


def _revision(tree: Path) -> str:
    git = ["git", "-C", str(tree)]
    name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return (name.stdout.strip() or "without git") + (" with changes" if changed.stdout else "")


if __name__ == "__main__":
    main()
