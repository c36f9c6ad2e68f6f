"""Queues runs with all that follows them; the core of `tandem submit`, `sweep` and `requeue`.

Pre-training first, one array, and with it detectors from random weights. Then for each run its detectors and its
evaluations, which wait for it to succeed; random-initialisation rows, which wait for nothing; and one report after all.
Called again, it queues what is neither done nor queued.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.printable import say
from configs.dump import dump
from configs.runs import dump_run
from launchers.cluster.evaluation_jobs import ReportJob
from launchers.cluster.freeze import CodeState, freeze_code, freeze_run, present_code
from launchers.cluster.plan_detectors import random_points, with_detectors
from launchers.cluster.plan_submission import RequestedRun, SubmissionPlan, SubmitRequest, known_jobs, plan_submission
from launchers.cluster.queues import AT_ONCE, After, DebugQueue, LocalQueue, Queue
from launchers.cluster.slurm_queue import SlurmQueue
from launchers.cluster.work import FollowJob, PretrainJob, Work
from launchers.runs import slurm
from launchers.runs.files import LOGS_FOLDER, find_runs
from launchers.runs.job_record import Jobs, read_jobs, submitting, write_jobs


def submit(request: SubmitRequest, *, dry_run: bool = False) -> bool:
    """Check, freeze, queue; says on stdout what it did, or would do: `dry_run` stops after the checks.

    Returns:
        Whether nothing is known to have failed; on SLURM nothing has run yet.

    Raises:
        ConfigError, ShardError, DryBatchError: the dry check found something; nothing was queued.
        RunLockedError: another submission is at work on one of the runs.
        SlurmError: SLURM is not here or refuses; what was queued before is in the runs' jobs.json.
    """
    if request.evaluate:
        request = replace(request, points=with_detectors(request.points))
    plan = plan_submission(request)
    for run in plan.runs:
        _print_status(run, request)
    if dry_run:
        _print_plan(request, plan)
        return True
    with ExitStack() as held:
        for run in plan.runs:
            held.enter_context(submitting(run.point.run_dir, run.jobs))
        code = present_code() if request.where == "debug" else freeze_code(request.root)
        queue = new_queue(request, code)
        runs = _train(plan, request, queue, code)
        if request.evaluate:
            _FollowUps(request=request, queue=queue, active=plan.active).submit(runs)
    say(f"watch: tandem status {request.root}")
    return not queue.failed


def new_queue(request: SubmitRequest, code: CodeState) -> Queue:
    """Where the request's jobs go."""
    logs = request.root.absolute() / LOGS_FOLDER
    if request.where == "debug":
        return DebugQueue(logs=logs)
    if request.where == "local":
        return LocalQueue(logs=logs, config=request.cluster, code=code.folder)
    return SlurmQueue(logs=logs, cluster=request.cluster.name, config=request.cluster, code=code.folder)


# ---- training


def _train(plan: SubmissionPlan, request: SubmitRequest, queue: Queue, code: CodeState) -> list[RequestedRun]:
    """Queue training: one array, and behind each run another of those that build on it; all runs, with their ids."""
    training = {run.point.run_dir: run.training for run in plan.runs}
    due = {run.point.run_dir for run in plan.to_train} | {folder for folder, job in training.items() if job is not None}
    waves: dict[Path | None, list[RequestedRun]] = {None: []}
    for run in plan.to_train:  # a run comes before those that build on it
        waves.setdefault(run.point.after if run.point.after in due else None, []).append(run)
    for before, runs in waves.items():
        if not runs:
            continue
        first = None if before is None else training[before]
        works = [_training_job(run, request, code) for run in runs]
        ids = queue.submit(works, name=request.name, after=AT_ONCE if first is None else After(succeeded=(first,)))
        for run, job in zip(runs, ids, strict=True):
            training[run.point.run_dir] = job
            write_jobs(run.point.run_dir, _with_ids(Jobs(), queue, pretrain=job))
            _print_queued(queue, f"{run.name}: training", job)
    return [replace(run, training=training[run.point.run_dir]) for run in plan.runs]


def _training_job(run: RequestedRun, request: SubmitRequest, code: CodeState) -> PretrainJob:
    """Freeze what a run was asked for, and the work that trains it."""
    config = freeze_run(
        run.point.run_dir,
        config_text=dump_run(run.point.config),
        overrides=run.point.overrides,
        cluster_text=dump(request.cluster) if request.where == "slurm" else None,
        code=code,
    )
    return PretrainJob(run_dir=str(run.point.run_dir), config=str(config), folder=str(Path.cwd()))


def _with_ids(jobs: Jobs, queue: Queue, **ids: Any) -> Jobs:
    """The jobs with more ids; those of processes on this machine mean nothing later and are left out."""
    jobs = replace(jobs, logs=str(queue.logs), cluster=queue.cluster)
    return jobs if queue.cluster is None else replace(jobs, **ids)


# ---- what follows


@dataclass(frozen=True, kw_only=True)
class _FollowUps:
    """Queues evaluations, baselines and the report of the requested runs; `active` are ids of earlier jobs."""

    request: SubmitRequest
    queue: Queue
    active: frozenset[str]

    def submit(self, runs: Sequence[RequestedRun]) -> None:
        started_from = {run.point.after for run in runs if run.point.follows}
        followed = [r for r in runs if r.elements or r.point.follows or r.point.run_dir in started_from]
        if not followed:
            say("no evaluations: evaluate.configs is empty")
            return
        evaluated = [run for run in runs if run.elements]
        pending = [job for run in evaluated for job in self._evaluations(run)]
        pending += self._baselines(evaluated)
        self._note_random_detectors(runs)
        pending += [run.training for run in runs if run.training is not None]
        if not pending:
            say(f"nothing left to do; `tandem report {self.request.root}` writes the report again")
            return
        self._report(followed, pending)

    def _evaluations(self, run: RequestedRun) -> list[str]:
        """Queue the elements that are neither done nor queued; ids of all that are not done."""
        stale = run.training is not None  # results that are there belong to an earlier checkpoint
        after = AT_ONCE if run.training is None else After(succeeded=(run.training,))
        if run.select is not None and (stale or not run.select.done()):
            chosen = run.jobs.select if run.jobs.select in self.active else None
            if chosen is None:
                chosen = self._queued([run.select], f"{run.name}-select", after)[0]
                self._record(run, select=chosen)
            after = After(succeeded=(chosen,))
        before = {name: job for name, job in run.jobs.evaluate.items() if job in self.active}
        new = [job for job in run.elements if job.name not in before and (stale or not job.done())]
        ids = self._queued(new, f"{run.name}-evaluate", after)
        if new:
            fresh = {job.name: id_ for job, id_ in zip(new, ids, strict=True)}
            self._record(run, evaluate={**run.jobs.evaluate, **fresh})
            _print_queued(self.queue, f"{run.name}: {len(new)} evaluations", _array(ids[0]))
        return [*before.values(), *ids]

    def _baselines(self, runs: Sequence[RequestedRun]) -> list[str]:
        """Queue the random-initialisation rows that are neither there nor queued; ids of all that are not there."""
        known = {key: job for jobs in known_jobs(self.request) for key, job in jobs.baselines.items()}
        queued = {key: job for key, job in known.items() if job in self.active}
        new = {job.key: job for run in runs for job in run.baselines if job.key not in queued and not job.done()}
        ids = self._queued(list(new.values()), f"{self.request.name}-random", AT_ONCE)
        if new:
            queued |= dict(zip(new, ids, strict=True))
            _print_queued(self.queue, f"random initialisation: {len(new)} jobs", _array(ids[0]))
        for run in runs:
            own = {job.key: queued[job.key] for job in run.baselines if job.key in queued}
            if own:
                self._record(run, baselines=own)
        return [queued[key] for key in {job.key for run in runs for job in run.baselines} if key in queued]

    def _note_random_detectors(self, runs: Sequence[RequestedRun]) -> None:
        """Record the trainings from random weights as jobs of the runs that are compared with them."""
        training = {run.point.run_dir: run.training for run in runs if run.training is not None}
        for run in runs:
            folders = [] if run.point.follows else [point.run_dir for point in random_points(run.point)]
            own = {folder.name: training[folder] for folder in folders if folder in training}
            if own:
                known = read_jobs(run.point.run_dir) or Jobs()
                self._record(run, baselines={**known.baselines, **own})

    def _report(self, runs: Sequence[RequestedRun], pending: Sequence[str]) -> None:
        """Queue the report, in place of one that waits, unless nothing is new."""
        waiting = sorted({run.jobs.report for run in runs if run.jobs.report is not None} & self.active)
        if waiting and self.active.issuperset(pending):
            return
        slurm.cancel(waiting)
        # All runs of the root, also those that this call does not touch.
        folders = {run.point.run_dir for run in runs} | {found.absolute() for found in find_runs(self.request.root)}
        root = str(self.request.root.absolute())
        report = ReportJob(root=root, run_dirs=tuple(map(str, sorted(folders))))
        # Whole arrays instead of all their elements: sbatch's line would grow with the sweep.
        after = After(ended=tuple(dict.fromkeys(map(_array, pending))))
        job = self._queued([report], f"{self.request.name}-report", after)[0]
        for run in runs:
            self._record(run, report=job)
        _print_queued(self.queue, "report", job)

    def _queued(self, works: Sequence[Work], name: str, after: After) -> list[str]:
        folder = str(Path.cwd())
        jobs = [FollowJob(work=work, folder=folder) for work in works]
        return self.queue.submit(jobs, name=name, after=after) if jobs else []

    def _record(self, run: RequestedRun, **ids: Any) -> None:
        write_jobs(run.point.run_dir, _with_ids(read_jobs(run.point.run_dir) or Jobs(), self.queue, **ids))


def _array(job: str) -> str:
    """The array that an element belongs to."""
    return job.partition("_")[0]


# ---- output


def _print_queued(queue: Queue, what: str, job: str) -> None:
    if queue.cluster is not None:  # elsewhere it is over by now, and the queue has said how it went
        say(f"{what} queued as {job}")


def _print_status(run: RequestedRun, request: SubmitRequest) -> None:
    if run.finished:
        say(f"{run.name}: finished before")
    elif run.training is not None:
        say(f"{run.name}: is in the queue as {run.training}")
    elif not request.train:
        say(f"{run.name}: is not finished; what follows sees its newest checkpoint")


def _print_plan(request: SubmitRequest, plan: SubmissionPlan) -> None:
    asked = request.cluster
    counts = f"{len(plan.to_train)} of {len(plan.runs)} runs"
    say(f"would train {counts}, each on {asked.nodes} x {asked.tasks} process(es):")
    for run in plan.to_train:
        say(f"  {run.point.run_dir}")
    elements = sum(len(run.elements) for run in plan.runs)
    if elements:
        say(f"then {elements} evaluations, random initialisation beside them")
    if elements or any(run.point.follows for run in plan.runs):
        say(f"then a report in {request.root}")
    say("nothing was queued (--dry-run)")
