"""`python -m launchers.cluster.srun_reaper RUN_DIR PID [FIRST] &`: ends an srun that does not see the end of its step.

After `kill -9` of a slurmstepd its tasks leave in good order, but srun waits for that daemon's last word for
ever (seen with SLURM 22.05). A batch script starts this beside srun: when the run's history says that the attempt has
ended and srun is still there a while later, srun is killed, and the script continues as after any other death. FIRST is
the folder of an earlier stage that the same step trains. Ends by itself with the process PID, the batch script's shell.
No torch import.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from launchers.cli import verb_parser
from launchers.runs import slurm
from launchers.runs.attempts import read_attempts

GRACE_S = 45.0
"""How long srun may outlive the attempt's end: more than a process takes to leave."""

POLL_S = 2.0


def watch(
    stages: Sequence[Path], shell: int, job: str | None, *, grace_s: float = GRACE_S, poll_s: float = POLL_S
) -> int:
    """Watch until the shell, srun's parent, is gone or an srun had to be killed; returns how many were."""
    known = [len(read_attempts(folder)) for folder in stages]
    over_since: float | None = None  # monotonic: the clock may be set while a job runs
    while psutil.pid_exists(shell):
        if not _over(stages, known, job):
            over_since = None
        elif over_since is None:
            over_since = time.monotonic()
        elif time.monotonic() - over_since > grace_s:
            return _kill(shell, grace_s)
        time.sleep(poll_s)
    return 0


def _over(stages: Sequence[Path], known: Sequence[int], job: str | None) -> bool:
    """Whether all training has ended: the run's own, or that of an earlier stage without which it does not begin."""
    own, *earlier = (
        [attempt for attempt in read_attempts(folder)[before:] if attempt.job == job]
        for folder, before in zip(stages, known, strict=True)
    )
    before = [attempt for stage in earlier for attempt in stage]
    if any(attempt.ended is None for attempt in (*own, *before)):
        return False
    return bool(own) or any(attempt.status != "finished" for attempt in before)


def _kill(shell: int, grace_s: float) -> int:
    try:
        steps = [child for child in psutil.Process(shell).children() if child.name() == "srun"]
    except psutil.NoSuchProcess:
        return 0
    if steps:
        print(f"the run's processes have ended, srun has not for {grace_s:.0f} s: killed, it would wait for ever")
        sys.stdout.flush()
    for step in steps:
        step.kill()
    return len(steps)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = verb_parser("python -m launchers.cluster.srun_reaper", __doc__)
    parser.add_argument("run_dir", type=Path, help="folder of the run")
    parser.add_argument("pid", type=int, help="process of the batch script's shell")
    parser.add_argument("first", type=Path, nargs="*", help="folder of an earlier stage that the step trains as well")
    options = parser.parse_args(argv)
    watch((options.run_dir, *options.first), options.pid, slurm.own_job(os.environ))
    return 0


if __name__ == "__main__":
    sys.exit(main())
