"""What went wrong in a run: its last attempt's reason, SLURM's word, the end of the error log, failed evaluations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.run_files import RESULTS_FILE
from launchers.runs.attempts import Attempt
from launchers.runs.files import EVALUATIONS, mtime, read_error, tail
from launchers.runs.job_record import Jobs
from launchers.runs.slurm import JobInfo

STDERR_LINES = 4
LOG_ENDINGS = (".err", ".out", ".log")
PLAIN_LOGS = Path(__file__).resolve().parents[2] / "slurm" / "logs"
"""Where the scripts in slurm/ have sbatch write to."""

SLURM_ENDS = {
    "CANCELLED": "cancelled",
    "TIMEOUT": "timeout",
    "NODE_FAIL": "node failed",
    "OUT_OF_MEMORY": "out of memory",
    "DEADLINE": "deadline",
    "BOOT_FAIL": "node failed",
}
BAD = frozenset({"failed", "died", *SLURM_ENDS.values()})
"""States that ask for an explanation."""


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a run's folder says about its jobs, read before SLURM is asked about all runs at once.

    Attributes:
        jobs: its jobs; none where they cannot be read.
        attempts: oldest first.
        damage: what is wrong with files of the run, a line each.
    """

    folder: Path
    jobs: Jobs
    attempts: tuple[Attempt, ...]
    damage: tuple[str, ...] = ()

    @property
    def ids(self) -> list[str]:
        """All jobs that SLURM is to be asked about."""
        return [*self._trainers, *self.jobs.ids()]

    @property
    def _trainers(self) -> list[str]:
        last = self.attempts[-1].job if self.attempts else None
        return [job for job in (self.jobs.pretrain, last) if job is not None]

    def job(self, queue: Mapping[str, JobInfo]) -> str | None:
        """The pre-training job: the one that is active, else of the submission, else of the last attempt."""
        active = [job for job in self._trainers if job in queue and queue[job].active]
        return next(iter([*active, *self._trainers]), None)


def evaluations(folder: Path, jobs: Jobs, queue: Mapping[str, JobInfo]) -> tuple[int, int, list[str]]:
    """Elements of the downstream evaluation: how many are done, how many there are, what went wrong."""
    root = folder / EVALUATIONS
    made = {path.name for path in root.iterdir() if path.is_dir()} if root.is_dir() else set()
    done, trouble = 0, []
    known = sorted(made | set(jobs.evaluate))
    for name in known:
        info = queue.get(jobs.evaluate.get(name, ""))
        never = info is not None and info.reason == "DependencyNeverSatisfied"
        if info is not None and info.active and not never:
            continue  # whatever lies there is of an earlier attempt, or half of it
        if (reason := read_error(root / name)) is not None:
            trouble.append(f"evaluation {name}: {reason}")
        elif (root / name / RESULTS_FILE).is_file():
            done += 1
        elif never:
            trouble.append(f"evaluation {name}: never starts, since what it waited for failed")
        elif info is not None and ended_badly(info):
            reason = "" if info.reason in ("None", "") else f" ({info.reason})"
            trouble.append(f"evaluation {name}: {info.state.lower()}{reason}")
    return done, len(known), trouble


def ended_badly(info: JobInfo) -> bool:
    """Whether a job is over and did not do its work."""
    return not info.active and info.state != "COMPLETED"


# ---- why


def why(files: RunFiles, state: str, info: JobInfo | None) -> list[str]:
    """Lines that explain a run's state (of `run_status.state_of`); [] where nothing is wrong."""
    lines = list(files.damage)
    last = files.attempts[-1] if files.attempts else None
    if last is not None and state == "finished" and last.status == "failed":
        lines.append(f"started again after its end: {last.reason}")
    if last is not None and state == "preempted":
        done = "" if last.step is None else f" after {last.step} updates"
        lines.append(f"stopped by {last.signal or 'a signal'}{done}; the same command again continues it")
    if state not in BAD:
        return lines
    if last is not None and last.reason:
        lines.append(last.reason)
    elif last is not None and state == "died":
        job = f" of job {last.job}" if last.job else ""
        place = f"process {last.pid} on {last.host}{job}"
        lines.append(f"{place} left no end record: killed hard, or its machine went down")
    if info is not None and info.reason not in ("None", ""):
        lines.append(f"SLURM: {info.state}, {info.reason}")
    try:
        return [*lines, *(stderr_end(files, info.id if info is not None else files.job({})))]
    except OSError as error:
        return [*lines, f"its logs cannot be read: {error}"]


def stderr_end(files: RunFiles, job: str | None) -> list[str]:
    """The last lines that a job wrote to its error log; [] if there is no log to be found."""
    if job is None:
        return []
    folders = [PLAIN_LOGS, *([Path(files.jobs.logs)] if files.jobs.logs else [])]
    whole_id = re.compile(rf"(?<!\d){re.escape(job)}(?!\d)")  # job 12 is not job 112 or 121
    logs = [p for f in folders if f.is_dir() for p in f.iterdir() if whole_id.search(p.name) and p.is_file()]
    logs = [p for p in logs if p.suffix in LOG_ENDINGS and p.stat().st_size > 0]
    if not logs:
        return []
    # Errors go to .err where output is split; of several tasks, the one that spoke last.
    newest = max(logs, key=lambda p: (p.suffix == ".err", mtime(p)))
    lines = [line.rstrip() for line in tail(newest).splitlines() if line.strip()]
    return [f"end of {newest}:", *(f"  {line}" for line in lines[-STDERR_LINES:])]
