"""`tandem cancel`: end the jobs of runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from common.nearby import nearby
from configs.load import ArgumentError
from launchers.cli import guarded
from launchers.options.cancel import parser
from launchers.runs import slurm
from launchers.runs.files import JOBS_FILE, find_runs, holds_runs
from launchers.runs.job_record import read_jobs
from launchers.runs.run_status import read_files


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 when the jobs are cancelled or none was active."""
    runs = runs_below([Path(path) for path in parser().parse_args(argv).runs])
    ids = own_jobs(runs)
    active = [info for info in slurm.queue(ids).values() if info.active]
    if not active:
        print(f"no active jobs of {len(runs)} run(s)")
        return 0
    slurm.cancel(info.id for info in active)
    print(f"cancelled {len(active)} job(s) of {len(runs)} run(s): {', '.join(info.id for info in active)}")
    return 0


def runs_below(paths: Sequence[Path]) -> list[Path]:
    """The runs at or below some folders, each once.

    Raises:
        ArgumentError: a path is no folder, or holds no runs.
    """
    runs: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            hint = nearby(path, holds_runs) or "; name a run's folder or one that holds runs"
            raise ArgumentError(f"{path}: no such folder{hint}")
        below = dict.fromkeys(run.absolute() for run in find_runs(path))
        if not below:
            hint = nearby(path, holds_runs) or "; name a run's folder or one that holds runs"
            raise ArgumentError(f"{path}: no runs in it{hint}")
        runs |= below
    return list(runs)


def own_jobs(runs: Sequence[Path]) -> list[str]:
    """Ids of jobs that work for these runs and for no other run beside them."""
    ids = {job for run in runs for job in read_files(run).ids}
    # A sweep's runs lie beside each other and share jobs.
    beside = {path.parent for run in runs for path in run.parent.glob(f"*/{JOBS_FILE}")} - set(runs)
    others = {job for run in beside if (jobs := read_jobs(run)) is not None for job in jobs.ids()}
    return sorted(ids - others)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
