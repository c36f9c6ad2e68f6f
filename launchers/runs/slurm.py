"""SLURM's commands as functions: what is queued, requeue, cancel. No accounting is needed, so no `sacct`.

Job ids are SLURM's own spelling: "12" for a plain job, "12_0" for element 0 of array 12. Whoever may have no SLURM asks
`available()` first. Each call is one process of some 10 ms; ask for many ids at once.
"""

from __future__ import annotations

import ctypes
import getpass
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

COMMAND_TIMEOUT_S = 60.0
"""How long a command may take; a controller that answers later than this is as good as down."""

ACTIVE = frozenset(
    {"PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "RESIZING"}
    | {"SIGNALING", "STAGE_OUT", "STOPPED", "PREEMPTED", "REQUEUE_FED", "SPECIAL_EXIT"}
)
"""States of a job that has not ended for good."""

_PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that this process gets when its parent dies."""
_JOB_ID = re.compile(r"\d+(?:_\d+)?")


class SlurmError(RuntimeError):
    """A SLURM command that failed, with what it printed."""


@dataclass(frozen=True, kw_only=True)
class JobInfo:
    """One job as SLURM sees it now.

    Attributes:
        id: "12" or "12_0".
        state: SLURM's word, such as PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, NODE_FAIL.
        reason: why it waits or ended that way ("None" if SLURM gives no reason).
        nodes: compressed list of its nodes, "" before it has any.
        time_left: until its limit, as SLURM prints it (1-02:03:04, UNLIMITED, INVALID).
    """

    id: str
    state: str
    reason: str
    nodes: str
    time_left: str

    @property
    def active(self) -> bool:
        """Whether it is queued or running: it may still do something."""
        return self.state in ACTIVE


def available() -> bool:
    """Whether SLURM's commands are here and a controller answers."""
    if shutil.which("sbatch") is None or shutil.which("squeue") is None:
        return False
    try:
        run_command("scontrol", "ping", timeout_s=15.0)
    except SlurmError:
        return False
    return True


def own_job(env: Mapping[str, str] | None = None) -> str | None:
    """Id of the job that this process runs in, None outside a job."""
    env = os.environ if env is None else env
    if "SLURM_ARRAY_JOB_ID" in env and "SLURM_ARRAY_TASK_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID")


def queue(ids: Iterable[str]) -> dict[str, JobInfo]:
    """State of jobs by id; those that SLURM has forgotten (some minutes after their end) are absent.

    An array's bare number asks for all its elements.

    Raises:
        SlurmError: the controller does not answer, or an id is not one.
    """
    asked = _checked(ids)
    if not asked:
        return {}
    arrays = sorted({job.partition("_")[0] for job in asked})
    command = ("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%N|%L|%r", "--jobs")
    try:
        # Elements are picked out of whole arrays here: squeue refuses all when it does not know one of them.
        text = run_command(*command, ",".join(arrays))
    except SlurmError as error:
        if "Invalid job id" not in str(error):
            raise
        text = ""
    jobs = {}
    for line in text.splitlines():
        job, state, nodes, time_left, reason = line.split("|", 4)
        if job in asked or job.partition("_")[0] in asked:
            jobs[job] = JobInfo(id=job, state=state, reason=reason, nodes=nodes, time_left=time_left)
    return jobs


def requeue(job: str) -> None:
    """Put a running job back into the queue; it starts again from its batch script.

    Raises:
        SlurmError: SLURM refuses (unknown, ended and forgotten, not requeueable).
    """
    run_command("scontrol", "requeue", *_checked([job]))


def cancel(ids: Iterable[str]) -> None:
    """Cancel jobs, queued or running; those that have ended already are passed over.

    Raises:
        SlurmError: the controller does not answer, or the jobs belong to another user.
    """
    checked = _checked(ids)
    if checked:
        run_command("scancel", "--quiet", *checked)


def send_signal(job: str, name: str) -> None:
    """Send a signal ("USR2") to all processes of a running job's steps.

    Raises:
        SlurmError: SLURM refuses.
    """
    run_command("scancel", f"--signal={name}", *_checked([job]))


def stop_with_slurmstepd() -> None:
    """In a job step: get SIGTERM when slurmstepd is killed, instead of living on unseen.

    Called by the step's process itself: `setpriv --pdeathsig` in a batch script needs util-linux 2.33, which clusters
    with older distributions lack. Linux only; elsewhere there is no such signal.
    """
    if "SLURM_STEP_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def partitions() -> tuple[str, ...]:
    """Names of the partitions that jobs can be sent to.

    Raises:
        SlurmError: the controller does not answer.
    """
    return tuple(dict.fromkeys(run_command("sinfo", "--noheader", "--format=%R").split()))


def accounts() -> tuple[str, ...] | None:
    """Accounts that this user may charge; None where the cluster keeps no accounts.

    Raises:
        SlurmError: the controller or the accounting service does not answer.
    """
    settings = run_command("scontrol", "show", "config")
    kind = re.search(r"^AccountingStorageType\s*=\s*(\S+)", settings, re.MULTILINE)
    if kind is None or not kind.group(1).endswith("slurmdbd"):
        return None
    command = ("sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={getpass.getuser()}")
    return tuple(dict.fromkeys(run_command(*command, "format=account").split()))


def run_command(*command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """Run one of SLURM's commands; returns what it printed.

    Raises:
        SlurmError: not installed, too slow or failed.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except FileNotFoundError:
        raise SlurmError(f"{command[0]}: no such command; is this a machine of the cluster?") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"`{_shown(command)}` gave no answer in {timeout_s:.0f} s; is the controller up?") from None
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split()) or "it printed nothing"
        raise SlurmError(f"`{_shown(command)}` failed with code {done.returncode}: {said}")
    return done.stdout


def _checked(ids: Iterable[str]) -> list[str]:
    unique = list(dict.fromkeys(ids))
    for job in unique:
        if not _JOB_ID.fullmatch(job):
            raise SlurmError(f"{job!r} is no job id; expected for example 12 or 12_0")
    return unique


def _shown(command: Sequence[str], most: int = 200) -> str:
    text = " ".join(command)
    return text if len(text) <= most else text[:most] + " ..."
