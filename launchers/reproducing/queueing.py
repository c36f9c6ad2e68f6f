"""Queues a paper's steps, each behind those that it needs: on SLURM, as processes here, or in this process.

Trainings are jobs like those of `tandem submit`: with a frozen config, and queued again after a pre-emption. All else
is one process that runs the verb. Ids of queued jobs are kept in `queued.json`; called again, what is done or queued is
left as it is.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.files import replace_file
from common.printable import say
from common.small_files import DamagedFileError, read_json, shown
from configs.dump import dump
from configs.load import ConfigError
from configs.runs import dump_run
from configs.schema import SlurmConfig
from launchers.cluster.dry_check import check_cluster, check_folder, check_options
from launchers.cluster.freeze import CodeState, freeze_code, freeze_run, present_code
from launchers.cluster.plan_submission import Where
from launchers.cluster.queues import AT_ONCE, After, DebugQueue, LocalQueue, Queue
from launchers.cluster.slurm_queue import SlurmQueue
from launchers.cluster.work import FollowJob, PretrainJob
from launchers.reproducing.state import State, left
from launchers.reproducing.steps import Step
from launchers.runs import slurm
from launchers.runs.files import LOGS_FOLDER
from launchers.runs.job_record import Jobs, write_jobs
from launchers.training.train import load_any_run

QUEUED_FILE = "queued.json"


@dataclass(frozen=True, kw_only=True)
class CommandWork:
    """A verb that is no training, with its arguments."""

    name: str
    arguments: tuple[str, ...]

    def __call__(self) -> None:
        """Run it; leaves with its exit code where that is not 0."""
        from launchers.cli import main

        if (code := main(list(self.arguments))) != 0:
            sys.exit(code)


def queued_jobs(folder: Path) -> dict[str, str]:
    """Step -> id of the job that it was queued as last.

    Raises:
        DamagedFileError: the file is something else.
    """
    path = folder / QUEUED_FILE
    jobs = dict(read_json(path, {}) or {})
    wrong = next((step for step, job in jobs.items() if not isinstance(job, str)), None)
    if wrong is not None:
        raise DamagedFileError(f"{path}: {wrong}: expected the id of a job as text, got {shown(jobs[wrong])}")
    return jobs


def known_jobs(folder: Path) -> dict[str, slurm.JobInfo]:
    """Step -> what SLURM knows of its job; nothing where there is no SLURM."""
    jobs = queued_jobs(folder)
    if not jobs or not slurm.available():
        return {}
    found = slurm.queue(jobs.values())
    return {step: found[job] for step, job in jobs.items() if job in found}


def check_ready(steps: Sequence[Step]) -> None:
    """Refuse to begin where something is missing for any of the steps.

    Raises:
        ConfigError: names all that is missing.
    """
    missing = dict.fromkeys(text for step in steps for text in step.missing)
    if missing:
        raise ConfigError("nothing was started, since these are missing:" + "".join(f"\n- {text}" for text in missing))


def run_steps(
    steps: Sequence[Step], states: Mapping[str, State], folder: Path, cluster: SlurmConfig, where: Where
) -> bool:
    """Queue steps in order; without SLURM, come back when they are done.

    Args:
        steps: all that are asked for, in order.
        states: of each.
        folder: of the paper, for logs and the code.
        cluster: what jobs ask for.
        where: they go.

    Returns:
        Whether nothing is known to have failed.

    Raises:
        ConfigError: something is missing, or settings that cannot be used; nothing was queued.
        SlurmError: SLURM is not here or refuses.
    """
    due = left(steps, states)
    check_ready(due)
    if not due:
        say("nothing left to do")
        return True
    if where == "slurm":
        _check_slurm(cluster)
    check_folder(folder)
    code = present_code() if where == "debug" else freeze_code(folder)
    jobs = queued_jobs(folder)
    ids = {name: job for name, job in jobs.items() if name in states and states[name].kind == "queued"}
    failed = False
    for step in due:
        queue = _queue(step, folder, cluster, where, code)
        needed = tuple(ids[name] for name in step.config.needs() if name in ids)
        queue.failed = {job for job in needed if job == _FAILED}
        after = After(succeeded=needed) if needed else AT_ONCE
        ids[step.name] = _submit(step, queue, cluster, code, after)
        if queue.failed:
            failed, ids[step.name] = True, _FAILED
        if where == "slurm":
            jobs[step.name] = ids[step.name]
            replace_file(folder / QUEUED_FILE, (json.dumps(jobs, indent=1) + "\n").encode(), durable=False)
            say(f"{step.name} queued as {ids[step.name]}")
    return not failed


_FAILED = "failed"
"""In place of the id of a job on this machine that failed, or was left out."""


def _check_slurm(cluster: SlurmConfig) -> None:
    if not slurm.available():
        raise slurm.SlurmError(
            "no SLURM controller answers here; call it on a machine of the cluster, or run on this one with --local"
        )
    check_options(cluster)
    check_cluster(cluster)


def _queue(step: Step, folder: Path, cluster: SlurmConfig, where: Where, code: CodeState) -> Queue:
    logs = folder.absolute() / LOGS_FOLDER
    if where == "debug":
        return DebugQueue(logs=logs)
    if where == "local":
        own = dataclasses.replace(cluster, tasks_per_node=step.processes, nodes=1)
        return LocalQueue(logs=logs, config=own, code=code.folder)
    return SlurmQueue(logs=logs, cluster=cluster.name, config=sized(cluster, step.processes), code=code.folder)


def sized(cluster: SlurmConfig, processes: int) -> SlurmConfig:
    """The cluster's config for a run of so many processes, one a GPU where machines have any.

    Raises:
        ConfigError: that number does not fill its machines.
    """
    each = min(cluster.tasks, processes)
    nodes = math.ceil(processes / each)
    if nodes * each != processes:
        raise ConfigError(f"cluster.gpus_per_node: got {cluster.tasks}, expected a divisor of {processes}; or --gpus N")
    gpus = each if cluster.gpus_per_node else 0
    return dataclasses.replace(cluster, nodes=nodes, gpus_per_node=gpus, tasks_per_node=each)


def _submit(step: Step, queue: Queue, cluster: SlurmConfig, code: CodeState, after: After) -> str:
    here = str(Path.cwd())
    if not step.trains:
        work = FollowJob(work=CommandWork(name=step.name, arguments=tuple(step.arguments)), folder=here)
        return queue.submit([work], name=step.name, after=after)[0]
    config = load_any_run(step.config.config, step.settings)
    file = freeze_run(
        step.folder,
        config_text=dump_run(config),
        overrides=step.settings,
        cluster_text=None if queue.cluster is None else dump(sized(cluster, step.processes)),
        code=code,
    )
    job = PretrainJob(run_dir=str(step.folder.absolute()), config=str(file), folder=here)
    (id_,) = queue.submit([job], name=step.name, after=after)
    if queue.cluster is not None:  # ids of processes on this machine mean nothing later
        write_jobs(step.folder, Jobs(pretrain=id_, logs=str(queue.logs), cluster=queue.cluster))
    return id_
