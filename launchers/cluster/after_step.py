"""`python -m launchers.cluster.after_step CODE RUN_DIR [FIRST]`: what a batch script does when its training has ended.

The one place that requeues. It runs once a job, in the batch script, however many ranks got a signal or died:

- finished (0), a mistake in the config (2), a named failure (1): never again by itself;
- stopped by a signal (75): queued again, continues from the checkpoint that it wrote;
- a peer lost (70), killed (128 and more), or begun and ended without a word in attempts.jsonl: queued again, unless
  that happened several times in a row without a newer checkpoint;
- cancelled, requeued or ended by SLURM itself: left alone.

Of a run of two stages in one job, FIRST is the folder of the first: a newer checkpoint of either is progress.

Each decision is a line of `<run>/requeues.jsonl`. No torch import.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from common.run_files import json_lines, newest_step
from launchers.cli import PEER_LOST, TRY_AGAIN, USAGE_ERROR, guarded, verb_parser
from launchers.runs import slurm
from launchers.runs.attempts import Attempt, read_attempts
from launchers.runs.files import REQUEUES_FILE

MAX_DEATHS = 3
"""Deaths in a row without a newer checkpoint after which a job is not queued again."""

MAX_STOPS = 10
"""The same for stops: with a time limit shorter than its start, a run would be queued again for ever."""

_SIGNALLED = 128
"""Exit codes of a shell from here on mean "killed by a signal"."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a training step ended.

    Attributes:
        code: of srun, or of the process.
        cut_short: whether the run's own record has this job's beginning and no end: it died too suddenly to write it.
        step: of the newest checkpoint, None without one; of two stages their sum.
    """

    code: int
    cut_short: bool
    step: int | None


@dataclass(frozen=True, kw_only=True)
class OwnJob:
    """This batch script's job as SLURM sees it now.

    Attributes:
        state: "RUNNING" while the script is in charge; "COMPLETING" when SLURM is ending it.
        reason: why; "TimeLimit" at the end of the time.
        restarts: times that it was started again.
    """

    state: str
    reason: str
    restarts: int


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do, and why in words."""

    requeue: bool
    why: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of requeues.jsonl.

    Attributes:
        time: seconds since 1970; nothing is decided by it.
    """

    time: float
    job: str
    code: int
    step: int | None
    requeue: bool
    why: str


def decide(ended: Ended, job: OwnJob, own_restarts: int, before: Sequence[Entry]) -> Decision:
    """Whether the job is to be queued again.

    `own_restarts` is SLURM_RESTART_COUNT of this batch script; `before` are earlier decisions about the job, oldest
    first.
    """
    if ended.code == 0:
        return Decision(requeue=False, why="finished")
    if reason := _slurms_doing(job, own_restarts):
        return Decision(requeue=False, why=reason)
    stopped = ended.code == TRY_AGAIN
    died = ended.code == PEER_LOST or ended.code >= _SIGNALLED or (ended.cut_short and ended.code != USAGE_ERROR)
    if not stopped and not died:
        return Decision(requeue=False, why=f"failed with code {ended.code}: see its last messages; fix that first")
    what = "stopped to be continued" if stopped else f"died (code {ended.code})"
    most = MAX_STOPS if stopped else MAX_DEATHS
    in_a_row = 1 + _without_progress(before, ended.step, stopped=stopped)  # this one counts
    at = "before its first checkpoint" if ended.step is None else f"at checkpoint {ended.step}"
    if in_a_row >= most:
        why = f"{what} for the {in_a_row}th time in a row {at}: given up; submit it again when that is fixed"
        return Decision(requeue=False, why=why)
    return Decision(requeue=True, why=f"{what} {at}")


def _slurms_doing(job: OwnJob, own_restarts: int) -> str | None:
    """Why the job is no longer this script's to decide about, None if it is."""
    if job.restarts > own_restarts:
        return "SLURM has queued the job again already"
    if job.state == "COMPLETING" and job.reason == "TimeLimit":
        return None  # the signal before the limit came too late for the step; it may be requeued still
    if job.state != "RUNNING":
        return f"cancelled or ended by SLURM (state {job.state}, reason {job.reason})"
    return None


def _without_progress(before: Sequence[Entry], step: int | None, *, stopped: bool) -> int:
    """Requeues of the same kind just before this one, with the same newest checkpoint."""
    count = 0
    for entry in reversed(before):
        if entry.step != step or not entry.requeue:
            break
        count += (entry.code == TRY_AGAIN) == stopped
    return count


def cut_short(attempts: Sequence[Attempt], job: str) -> bool:
    """Whether the newest attempt is this job's and does not say how it ended."""
    return bool(attempts) and attempts[-1].job == job and attempts[-1].status == "running"


def read_entries(run_dir: Path, job: str) -> list[Entry]:
    """Earlier decisions about a job, oldest first; a line cut short by a crash is passed over."""
    try:
        lines = (run_dir / REQUEUES_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    entries = []
    for line in json_lines(lines):
        with suppress(TypeError):
            entries.append(Entry(**line))
    return [entry for entry in entries if entry.job == job]


def look_up(job: str) -> OwnJob:
    """Ask SLURM about the own job.

    Raises:
        SlurmError: SLURM does not answer.
    """
    words = slurm.run_command("scontrol", "--oneliner", "show", "job", job).split()
    fields = {name: value for name, sign, value in (word.partition("=") for word in words) if sign}
    return OwnJob(
        state=fields.get("JobState", "unknown"),
        reason=fields.get("Reason", "None"),
        restarts=int(fields.get("Restarts", "0")),
    )


def progress(stages: Sequence[Path]) -> int | None:
    """Updates that the newest checkpoints of a job's stages had seen, together; None before the first."""
    steps = [step for folder in stages if (step := newest_step(folder)) is not None]
    return sum(steps) if steps else None


def after_step(code: int, run_dir: Path, env: Mapping[str, str], *, first: Sequence[Path] = ()) -> Decision:
    """Decide, note and, where so decided, requeue; `first` are the folders of earlier stages in the same job.

    Raises:
        SlurmError: SLURM refuses or does not answer.
    """
    job = slurm.own_job(env)
    if job is None:
        return Decision(requeue=False, why="not in a SLURM job")
    stages = (run_dir, *first)
    cut = any(cut_short(read_attempts(folder), job) for folder in stages)
    ended = Ended(code=code, cut_short=cut, step=progress(stages))
    restarts = int(env.get("SLURM_RESTART_COUNT", "0"))
    decision = decide(ended, look_up(job), restarts, read_entries(run_dir, job))
    if run_dir.is_dir():  # a step that failed at once has no folder, and gets none
        entry = Entry(time=time.time(), job=job, code=code, step=ended.step, **asdict(decision))
        with (run_dir / REQUEUES_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry)) + "\n")
    if decision.requeue:
        slurm.requeue(job)
    return decision


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 when the job was queued again or needs nothing, 1 when it stays down."""
    parser = verb_parser("python -m launchers.cluster.after_step", __doc__)
    parser.add_argument("code", type=int, help="exit code of the training step")
    parser.add_argument("run_dir", type=Path, help="folder of the run")
    parser.add_argument("first", type=Path, nargs="*", help="folder of an earlier stage that the job trains as well")
    options = parser.parse_args(argv)
    if options.code == 0:
        return 0
    decision = after_step(options.code, options.run_dir, os.environ, first=options.first)
    print(f"after the step: {'queued again' if decision.requeue else 'not queued again'}: {decision.why}", flush=True)
    return 0 if decision.requeue else 1


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
