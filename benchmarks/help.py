"""What `tandem VERB --help` costs: processor time of the whole process, seconds, least of some calls.

    python -m benchmarks.help [--calls 5]
    python -m benchmarks.help --begin --old OLD_TREE

With --begin: what commands cost that do nothing but begin (a config shown, a mistake, no runs to tell of); with --old
beside another checkout, in alternation: medians, and the median of the ratios call by call.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import REPOSITORY, markdown, setting
from launchers.cli import VERBS

BEGIN = (
    "pretrain slidr_street --show-config",
    "prepare synthetic - OUT --show-config",
    "prepare kitti-raw /nonexistent OUT",
    "status .",
)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--calls", type=int, default=5, metavar="N")
    p.add_argument("--begin", action="store_true", help="commands that only begin, instead of help texts")
    p.add_argument("--old", type=Path, metavar="OLD_TREE", help="another checkout, measured in alternation")
    args = p.parse_args()
    commands = BEGIN if args.begin else [f"{verb} --help" for verb in VERBS]
    trees = [REPOSITORY] if args.old is None else [args.old.resolve(), REPOSITORY]
    rows: list[tuple[str, ...]] = []
    for command in commands:
        calls = np.array([[_seconds(command.split(), tree) for tree in trees] for _ in range(args.calls)])
        if args.old is None:
            rows.append((command, f"{calls.min():.2f}"))
        else:
            old, new = np.median(calls, axis=0)
            rows.append((command, f"{old:.2f}", f"{new:.2f}", f"{np.median(calls[:, 0] / calls[:, 1]):.2f}"))
    print(setting(0))
    print(markdown(("command", "s") if args.old is None else ("command", "old s", "new s", "old / new"), rows))


def _seconds(words: Sequence[str], tree: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "launchers.cli", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(tree)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check="--help" in words,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
