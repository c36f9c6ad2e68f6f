"""Status of one run, from the files in its folder and what SLURM says: no torch, a few kilobytes read a run.

A run's own record (attempts.jsonl) says how it ended; SLURM says whether it waits or runs. Where both are silent the
checkpoints and metrics.jsonl speak. Ages are by this machine's clock; nothing is decided by them.
"""

from __future__ import annotations

import dataclasses
import math
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import process_exists
from common.run_files import METRICS_FILE
from engine import metric_names as names
from engine.errors import CheckpointError
from launchers.runs.attempts import Attempt, last_that_trained, read_attempts
from launchers.runs.files import mtime, newest_metrics, newest_state, read_config
from launchers.runs.job_record import Jobs, read_jobs
from launchers.runs.run_trouble import SLURM_ENDS, RunFiles, ended_badly, evaluations
from launchers.runs.run_trouble import why as reasons
from launchers.runs.slurm import JobInfo

SPEED_LINES = 5
"""Lines of metrics that the speed for the time left is averaged over."""
SILENT_S = 600.0
"""A running run that has logged nothing for this long, and for 5 log intervals, is remarked on."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One run, as a line of `tandem status`.

    Attributes:
        state: finished, running, starting, queued, requeued, preempted, failed, died, cancelled, ... or unknown.
        job: SLURM's id of the pre-training job.
        where: nodes it runs on, or why it waits.
        attempts: times that it was started.
        num_steps: updates of the whole run, as far as the folder tells.
        loss: of the newest line of metrics, like (contrastive) accuracy, speed and waiting.
        samples_per_s: of all ranks together.
        data_wait_share: share of the time spent waiting for data.
        eta_s: seconds left, for a running run.
        checkpoint_step: of the newest checkpoint.
        checkpoint_age_s: since it was written.
        evaluations_done: elements with results.
        evaluations: elements known, done or not.
        changes: settings and software that the run went on with and did not have before, a line each.
        why: lines that explain what went wrong.
    """

    run: str
    state: str
    job: str | None
    where: str
    attempts: int
    step: int | None
    num_steps: int | None
    loss: float | None
    accuracy: float | None
    samples_per_s: float | None
    data_wait_share: float | None
    eta_s: float | None
    checkpoint_step: int | None
    checkpoint_age_s: float | None
    evaluations_done: int
    evaluations: int
    changes: tuple[str, ...]
    why: tuple[str, ...]


_NOTHING_KNOWN = RunStatus(
    run="",
    state="unknown",
    job=None,
    where="",
    attempts=0,
    step=None,
    num_steps=None,
    loss=None,
    accuracy=None,
    samples_per_s=None,
    data_wait_share=None,
    eta_s=None,
    checkpoint_step=None,
    checkpoint_age_s=None,
    evaluations_done=0,
    evaluations=0,
    changes=(),
    why=(),
)


def read_files(folder: Path) -> RunFiles:
    """Jobs and attempts of a run. Damaged files are remarks on this run: the others are still to be shown."""
    jobs, damage = None, list[str]()
    try:
        jobs = read_jobs(folder)
    except CheckpointError as error:
        damage.append(str(error))
    attempts = tuple(read_attempts(folder, damage))
    return RunFiles(folder=folder, jobs=jobs or Jobs(), attempts=attempts, damage=tuple(damage))


def run_status(files: RunFiles, queue: Mapping[str, JobInfo]) -> RunStatus:
    """Status of a run; whatever is wrong with its files is said there, and is no error."""
    try:
        return _status(files, queue)
    except OSError as error:  # storage that went away, a folder that this user may not enter
        damage = (*files.damage, f"{error.filename or files.folder}: cannot be read: {error.strerror}")
        return dataclasses.replace(_NOTHING_KNOWN, run=str(files.folder), attempts=len(files.attempts), why=damage)


def _status(files: RunFiles, queue: Mapping[str, JobInfo]) -> RunStatus:
    folder, now, damage = files.folder, time.time(), list(files.damage)
    lines = newest_metrics(folder, SPEED_LINES, damage)
    last_line: Mapping[str, Any] = lines[-1] if lines else {}
    state_json, written = newest_state(folder, damage)
    steps = (last_line.get("step"), state_json.get("step"))
    step = max((step for step in steps if isinstance(step, int)), default=None)
    num_steps = total_steps(read_config(folder, trouble=damage), state_json, last_line)
    files = dataclasses.replace(files, damage=tuple(damage))
    job = files.job(queue)
    info = queue.get(job) if job is not None else None
    last = last_that_trained(files.attempts)
    where = ""
    if info is not None and info.active:
        where = info.reason if info.state == "PENDING" else info.nodes
    state = state_of(last, info, alive=_alive(last), step=step, num_steps=num_steps)
    done, known, trouble = evaluations(folder, files.jobs, queue)
    return RunStatus(
        run=str(folder),
        state=state,
        job=job,
        where=where,
        attempts=len(files.attempts),
        step=step,
        num_steps=num_steps,
        loss=last_line.get(names.LOSS),
        accuracy=last_line.get(names.WATCH + names.ACCURACY),
        samples_per_s=last_line.get(names.SAMPLES_PER_S),
        data_wait_share=last_line.get(names.DATA_WAIT_SHARE),
        eta_s=time_left(lines, step, num_steps) if state == "running" else None,
        checkpoint_step=state_json.get("step"),
        checkpoint_age_s=max(0.0, now - written) if written else None,
        evaluations_done=done,
        evaluations=known,
        changes=tuple(
            f"after update {attempt.resumed}: {name}: {before} -> {changed}"
            for attempt in files.attempts
            for name, (before, changed) in attempt.changes.items()
        ),
        why=(*reasons(files, state, info), *_silence(folder, state, lines, now), *trouble),
    )


# ---- state


def state_of(
    last: Attempt | None, info: JobInfo | None, *, alive: bool | None, step: int | None, num_steps: int | None
) -> str:
    """One word for a run, from its last attempt and its pre-training job, where SLURM still knows that.

    `alive`: whether the last attempt's process is there; None where this machine cannot know.
    """
    recorded = last.status if last is not None else None
    if recorded == "finished":
        return "finished"
    if info is not None and info.active:
        if info.state == "PENDING":
            return "queued" if recorded is None else "requeued"
        if info.state == "RUNNING":
            return "running" if recorded == "running" else "starting"
        return info.state.lower().replace("_", " ")
    if info is not None and ended_badly(info) and (last is None or recorded == "running" or last.job != info.id):
        # The job ended without a word from the run: SLURM's own reason is the best there is.
        return SLURM_ENDS.get(info.state, "failed" if recorded is None else "died")
    if info is not None and recorded == "running":
        return "died"
    if recorded == "running":
        return "died" if alive is False else "running"
    if recorded is not None:
        return recorded
    if step is None:
        return "not started"
    # Folders of versions that kept no record of attempts.
    return "finished" if num_steps is not None and step >= num_steps else "unknown"


def _alive(last: Attempt | None) -> bool | None:
    if last is None or last.host != socket.gethostname():
        return None
    return process_exists(last.pid)


# ---- progress


def total_steps(config: Mapping[str, Any], state: Mapping[str, Any], line: Mapping[str, Any]) -> int | None:
    """Updates of the whole run: as configured, as the checkpoint says, or from the epochs that a step makes."""
    schedule = config.get("schedule") or {}
    if schedule.get("steps") is not None:
        return int(schedule["steps"])
    if "num_steps" in state:
        return int(state["num_steps"])
    epochs, epoch, step = schedule.get("epochs"), line.get(names.EPOCH), line.get("step")
    if not epochs or not epoch or not step:
        return None
    # `train/epoch` grows by the same amount every update; the tolerance is for its rounding.
    total = int(epochs) * int(step) / float(epoch) - 1e-6
    return math.ceil(total) if math.isfinite(total) else None


def time_left(lines: Sequence[Mapping[str, Any]], step: int | None, num_steps: int | None) -> float | None:
    """Seconds to the end at the speed of the newest lines; None where that is not known."""
    speeds = [float(line[names.STEP_S]) for line in lines if line.get(names.STEP_S)]
    if not speeds or step is None or num_steps is None:
        return None
    left = sum(speeds) / len(speeds) * max(num_steps - step, 0)
    return left if math.isfinite(left) else None


def _silence(folder: Path, state: str, lines: Sequence[Mapping[str, Any]], now: float) -> list[str]:
    if state != "running" or not lines:
        return []
    interval = abs(lines[-1]["step"] - lines[-2]["step"]) if len(lines) > 1 else 1
    expected = 5 * interval * float(lines[-1].get(names.STEP_S) or 0.0)
    silent = now - mtime(folder / METRICS_FILE)
    if silent < max(SILENT_S, expected):
        return []
    return [f"has logged nothing for {silent / 60:.0f} min"]
