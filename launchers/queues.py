"""Where jobs go: SLURM, processes on this machine, or this process. All three by the same call.

`submit(works, ...)` queues an array and returns an id for each element. On SLURM it returns at once and the order is
kept by dependencies; the other two come back when the work is done, and leave out what depends on something failed.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from configs.schema import ClusterConfig, ResourcesConfig
from engine.distributed import free_port
from launchers import slurm
from launchers.jobs import PretrainJob, Work

LOGS_FOLDER = "logs"

_LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SURVIVORS_FINISH = ("--kill-on-bad-exit=0", "--wait=120")
"""When one process of a run has ended, the others find out by themselves which, note it, and leave with the code that
decides what comes next; SLURM ends them two minutes later."""
_NO_LIMIT_MIN = 60 * 24 * 365
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class After:
    """What a job waits for.

    Attributes:
        succeeded: ids that must have succeeded; if one fails, the job is cancelled.
        ended: ids that must have ended in whatever way.
    """

    succeeded: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()


@runtime_checkable
class Queue(Protocol):
    """Takes jobs."""

    @property
    def logs(self) -> Path:
        """Folder of their output."""
        ...

    @property
    def cluster(self) -> str | None:
        """Name for jobs.json; None without SLURM."""
        ...

    def submit(self, works: Sequence[Work], *, name: str, after: After = ...) -> list[str]:
        """Queue an array, at least one element; an id for each."""
        ...

    @property
    def failed(self) -> set[str]:
        """Ids of jobs that are known to have failed when `submit` comes back."""
        ...


@dataclass(kw_only=True)
class SlurmQueue:
    """Job arrays by submitit and sbatch.

    Attributes:
        config: the cluster, and what pre-training asks for; other work gets `config.evaluate`.
        logs: folder of output.
        code: folder of the frozen code.
    """

    config: ClusterConfig
    logs: Path
    code: Path

    @property
    def cluster(self) -> str | None:
        """Name of the cluster."""
        return self.config.name

    def submit(self, works: Sequence[Work], *, name: str, after: After = After()) -> list[str]:
        """Queue an array; pre-training is throttled to `array_parallelism` elements at a time.

        Raises:
            SlurmError: sbatch refuses; its words are in the message.
        """
        import submitit

        with _own_variables_only():
            executor = submitit.SlurmExecutor(folder=self.logs, python=_python(self.code))
            executor.update_parameters(**sbatch_parameters(self.config, works, name=name, after=after, code=self.code))
            try:
                jobs = executor.submit_array(list(works))
            except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
                raise slurm.SlurmError(f"sbatch refused {name}: {' '.join(str(error).split())}") from error
        ids = [str(job.job_id) for job in jobs]
        self._warn(ids[0])
        return ids

    def _warn(self, job: str) -> None:
        """What sbatch lets pass and the partition never starts."""
        info = slurm.queue([job]).get(job)
        if info is not None and info.reason.startswith("Partition"):
            print(
                f"job {job} cannot start as things are ({info.reason}); see sinfo. Where it asks for more than its "
                "partition allows, cancel it and ask for less (cluster.time_min, --nodes)",
                file=sys.stderr,
            )

    @property
    def failed(self) -> set[str]:
        """None: nothing has run yet."""
        return set()


def sbatch_parameters(
    config: ClusterConfig, works: Sequence[Work], *, name: str, after: After, code: Path
) -> dict[str, Any]:
    """What submitit is told about an array (its names for sbatch's options)."""
    training = isinstance(works[0], PretrainJob)
    asked: ResourcesConfig = config if training else config.evaluate
    parameters: dict[str, Any] = {
        "job_name": job_name(name),
        "time": asked.time_min,
        "nodes": asked.nodes,
        "ntasks_per_node": asked.tasks,
        "cpus_per_task": asked.cpus_per_task,
        "signal_delay_s": min(config.signal_s, 60 * asked.time_min // 2),
        "array_parallelism": config.array_parallelism if training else len(works),
        "setup": [*config.setup, *(_after_step([w for w in works if isinstance(w, PretrainJob)], code))],
        # srun does not take over cpus-per-task from sbatch since SLURM 22.05.
        "srun_args": [*_SURVIVORS_FINISH, f"--cpus-per-task={asked.cpus_per_task}"],
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes"}
        | {option: True if value.lower() == "true" else value for option, value in config.sbatch.items()},
        "partition": asked.partition or config.partition,
        "account": config.account,
        "qos": config.qos,
        "gpus_per_node": asked.gpus_per_node or None,
        "mem": None if asked.mem_gb is None else f"{round(asked.mem_gb * 1024)}M",
        "dependency": _dependency(after),
    }
    return {key: value for key, value in parameters.items() if value is not None}


def job_name(name: str) -> str:
    """A name that is safe in a batch script and readable in `squeue`."""
    return "tandem-" + (re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-")[:60] or "run")


def _dependency(after: After) -> str | None:
    parts = [f"afterok:{':'.join(after.succeeded)}"] if after.succeeded else []
    parts += [f"afterany:{':'.join(after.ended)}"] if after.ended else []
    return ",".join(parts) or None


def _after_step(works: Sequence[PretrainJob], code: Path) -> list[str]:
    """Shell lines: when the batch script ends, decide in one place whether the run is queued again."""
    if not works:
        return []
    runs = " ".join(shlex.quote(work.run_dir) for work in works)
    return [
        f"runs=({runs})",
        "run_dir=${runs[${SLURM_ARRAY_TASK_ID:-0}]}",
        f"after_step() {{ code=$?; cd {shlex.quote(str(code))} && "
        f'{shlex.quote(sys.executable)} -m launchers.after_step "$code" "$run_dir"; }}',
        "trap after_step EXIT",
        "trap : TERM",  # at a cancellation the script gets it too, and has to outlive srun
    ]


def _python(code: Path) -> str:
    """Command that starts Python with the frozen code first on its path."""
    return shlex.join(["env", f"--chdir={code}", sys.executable])


@contextmanager
def _own_variables_only() -> Iterator[None]:
    """Hide what a surrounding job or launcher has set: the new job would take it for its own."""
    kept = {"SLURM_CONF"}
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if (name.startswith(("SLURM_", "SUBMITIT_")) and name not in kept) or name in _LAUNCH_VARIABLES
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


@dataclass(kw_only=True)
class LocalQueue:
    """Processes on this machine, started by submitit; comes back when they are done.

    Attributes:
        config: processes and GPUs of a run, and how many runs at a time.
        logs: folder of output.
        code: folder of the frozen code.
        failed: ids of jobs that did not bring their result, or were left out.
    """

    config: ClusterConfig
    logs: Path
    code: Path
    failed: set[str] = field(default_factory=set)
    cluster: str | None = None

    def submit(self, works: Sequence[Work], *, name: str, after: After = After()) -> list[str]:
        """Run the works, `array_parallelism` at a time; Ctrl-C asks them to stop and write a checkpoint."""
        if self.failed.intersection(after.succeeded):
            print(f"{name}: left out, what it depends on has failed")
            return self._left_out(works)
        ids: list[str] = []
        running: list[tuple[Work, Any]] = []
        try:
            for work in works:
                while len(running) >= self.config.array_parallelism:
                    running = self._still_running(running)
                job = self._start(work)
                print(f"{work.name}: started, output in {job.paths.stdout}")
                running.append((work, job))
                ids.append(str(job.job_id))
            while running:
                running = self._still_running(running)
        except KeyboardInterrupt:
            print("stopping: what trains writes a checkpoint first", file=sys.stderr)
            for _, job in running:
                job._process.send_signal(signal.SIGTERM)  # submitit hands it on to the job's processes
            while running:
                running = self._still_running(running)
            raise
        return ids

    def _start(self, work: Work) -> Any:
        import submitit

        asked: ResourcesConfig = self.config.evaluate
        if isinstance(work, PretrainJob):
            asked, work = self.config, replace(work, local_port=free_port())
        # submitit hides all GPUs from jobs that ask for none; a run without wishes sees what we see.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = "-u CUDA_VISIBLE_DEVICES" if visible is None else f"CUDA_VISIBLE_DEVICES={shlex.quote(visible)}"
        prefix = "" if asked.gpus_per_node else f"env {seen} "
        executor = submitit.LocalExecutor(folder=self.logs, python=prefix + _python(self.code))
        executor.update_parameters(
            nodes=1, tasks_per_node=asked.tasks, gpus_per_node=asked.gpus_per_node, timeout_min=_NO_LIMIT_MIN
        )
        with _own_variables_only(), _sigint_ignored():
            return executor.submit(work)

    def _still_running(self, running: Sequence[tuple[Work, Any]]) -> list[tuple[Work, Any]]:
        time.sleep(_POLL_S)
        left = []
        for work, job in running:
            if not job.done():
                left.append((work, job))
                continue
            good = _succeeded(job)
            print(f"{work.name}: {'done' if good else f'failed or stopped; see {job.paths.stderr}'}")
            if not good:
                self.failed.add(str(job.job_id))
        return left

    def _left_out(self, works: Sequence[Work]) -> list[str]:
        ids = [f"left-out-{len(self.failed) + number}" for number in range(len(works))]
        self.failed.update(ids)
        return ids


def _succeeded(job: Any) -> bool:
    """Whether all processes of a job that is over came to their end (one that leaves with a code writes no result)."""
    from submitit.core.utils import pickle_load

    results = [job.task(number).paths.result_pickle for number in range(job.num_tasks)]
    return all(path.exists() and pickle_load(path)[0] == "success" for path in results)


@contextmanager
def _sigint_ignored() -> Iterator[None]:
    """Children started here do not die of the terminal's Ctrl-C, which reaches them too; they are told by SIGTERM."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(kw_only=True)
class DebugQueue:
    """This process, one work after another; what fails raises here, where a debugger sees it.

    Attributes:
        logs: of no use here; output goes to the terminal.
    """

    logs: Path
    cluster: str | None = None

    def submit(self, works: Sequence[Work], *, name: str, after: After = After()) -> list[str]:
        """Run the works here."""
        for work in works:
            print(f"{name}: {work.name} in this process")
            work()
        return [f"here-{number}" for number in range(len(works))]

    @property
    def failed(self) -> set[str]:
        """None: what fails raises."""
        return set()
