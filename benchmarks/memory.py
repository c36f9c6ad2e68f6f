"""Resident memory of a run on the CPU, every 50 updates: it must level off.

    python -m benchmarks.memory --shards runs/street/shards
    python -m benchmarks.memory --config configs/pretrain/ppkt_street.yaml --steps 300

Without a set one of 48 sweeps is made first. Workers of the loader are not counted; their own test is
tests/data/loading/test_memory_flat.py.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import REPOSITORY, STREET, markdown, setting, street_set
from common.run_files import METRICS_FILE
from engine.metric_names import RSS_GIB

EVERY = 50


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(STREET), help="default: SLidR on the street world")
    parser.add_argument("--shards", help="a prepared street set")
    parser.add_argument("--steps", type=int, default=650)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        overrides = (
            *(f"data.shards={street_set(args.shards, Path(folder))}", f"run_dir={run}", "engine.device=cpu"),
            *(f"schedule.steps={args.steps}", f"monitor.log_every={EVERY}"),
        )
        subprocess.run(
            [sys.executable, "-m", "launchers.pretrain", args.config, *overrides],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": str(args.threads)},
            check=True,
        )
        lines = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(setting(seed=0))
    print(markdown(["step", "GiB"], [[str(line["step"]), f"{line[RSS_GIB]:.2f}"] for line in lines]))
    print(f"processor time, workers and start included: {(used.ru_utime + used.ru_stime) / args.steps:.2f} s an update")


if __name__ == "__main__":
    main()
