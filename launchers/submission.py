"""Queues runs with all that follows them; the core of `tandem submit`, `sweep` and `requeue`.

Pre-training first, one array. Then for each run its evaluations, which wait for it to succeed; random-initialisation
rows, which wait for nothing; and one report after all. Called again, it queues what is neither done nor queued.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from configs.load import ConfigError, dump
from configs.schema import PRETRAIN_CHOICES, ClusterConfig, PretrainConfig
from engine.distributed import free_port
from engine.run_lock import holder
from launchers import slurm
from launchers.dry_check import check_cluster, check_folder, check_runs, check_spelling
from launchers.followup import baseline_jobs, evaluation_jobs, report_job, selection_job
from launchers.freeze import CodeState, freeze_code, freeze_run
from launchers.jobs import FollowJob, PretrainJob, Work
from launchers.jobs_file import JOBS_FILE, Jobs, read_jobs, write_jobs
from launchers.queues import LOGS_FOLDER, After, DebugQueue, LocalQueue, Queue, SlurmQueue
from launchers.run_folder import CONFIG_FILE
from launchers.settings import flat

Where = Literal["slurm", "local", "debug"]

_SAME_NUMBERS = ("data.num_workers", "data.prefetch", "data.start_method", "engine.timeout_min")
"""Settings that may differ from those of a finished run without making it another one."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run that is asked for.

    Attributes:
        config: of the run.
        overrides: as written, for the record.
    """

    config: PretrainConfig
    overrides: tuple[str, ...] = ()

    @property
    def run_dir(self) -> Path:
        """Folder of the run, absolute."""
        return Path(self.config.run_dir).absolute()


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be queued, and how.

    Attributes:
        points: the runs.
        root: folder of code, logs and report: of the sweep, or the run itself.
        cluster: what jobs ask for.
        where: SLURM, processes on this machine, or this process.
        evaluate: also what follows.
        train: queue the pre-training too; without it, only what follows.
        after: id of a job that trains the (one) run already.
        check: a dry check of data and one batch before anything is queued.
    """

    points: tuple[Point, ...]
    root: Path
    cluster: ClusterConfig
    where: Where
    evaluate: bool = True
    train: bool = True
    after: str | None = None
    check: bool = True


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A point and how it stands.

    Attributes:
        point: what is asked for.
        jobs: of earlier submissions.
        finished: it needs no more training.
        training: id of the job that trains it, or will.
    """

    point: Point
    jobs: Jobs
    finished: bool
    training: str | None

    @property
    def to_train(self) -> bool:
        return not self.finished and self.training is None


def submit(order: Order, *, dry_run: bool = False) -> None:
    """Check, freeze, queue; says on stdout what it did.

    Args:
        order: what is wanted.
        dry_run: stop after the checks and say what would be queued.

    Raises:
        ConfigError, ShardError, DryBatchError: the dry check found something; nothing was queued.
        SlurmError: SLURM is not here or refuses; what was queued before is in the runs' jobs.json.
    """
    _check_apart(order.points)
    for folder in (order.root, *(point.run_dir for point in order.points)):
        check_folder(folder)
    if order.where == "slurm":
        _check_slurm(order)
    active = _active(order, (job for jobs in _known_jobs(order) for job in jobs.ids()))
    runs = [_stand(point, order, active) for point in order.points]
    new = [run for run in runs if run.to_train and order.train]
    _check(order, new)
    for run in runs:
        _say(run)
    if dry_run:
        _say_plan(order, runs)
        return
    code = freeze_code(order.root) if order.where != "debug" else None
    queue = _queue(order, code)
    for run in new:
        _freeze(run.point, order, code)
    runs = _train(runs, new, order, queue)
    if order.evaluate:
        _follow(runs, order, queue, active)
    print(f"watch: tandem status {order.root}")


# ------------------------------------------------------------------------------------------------------------ checks


def _check_apart(points: Sequence[Point]) -> None:
    folders: dict[Path, int] = {}
    for point in points:
        folders[point.run_dir] = folders.get(point.run_dir, 0) + 1
    twice = [str(folder) for folder, count in folders.items() if count > 1]
    if twice:
        raise ConfigError(f"run_dir: {twice[0]} is asked for {folders[Path(twice[0])]} times; each run needs its own")


def _check_slurm(order: Order) -> None:
    if not slurm.available():
        raise slurm.SlurmError(
            "no SLURM controller answers here; submit from a machine of the cluster, or run on this one with --local"
        )
    check_cluster(order.cluster)
    check_spelling(order.root.absolute())


def _check(order: Order, new: Sequence[_Run]) -> None:
    for run in new:
        who = holder(run.point.run_dir)
        if who is not None:
            raise ConfigError(f"{run.point.run_dir} is being trained by {who}; wait for it or cancel it first")
    seconds = check_runs([run.point.config for run in new], one_batch=order.check)
    if new and order.check:
        print(f"checked: config, shards, folders, one batch at toy width ({seconds:.0f} s)")


def _known_jobs(order: Order) -> list[Jobs]:
    """Jobs of the runs and of those beside them, which may share baselines."""
    folders = {point.run_dir for point in order.points}
    beside = {path.parent for folder in folders for path in folder.parent.glob(f"*/{JOBS_FILE}")}
    return [jobs for folder in sorted(folders | beside) if (jobs := read_jobs(folder)) is not None]


def _active(order: Order, ids: Iterable[str]) -> set[str]:
    if order.where != "slurm":
        return set()
    return {job for job, info in slurm.queue(ids).items() if info.active}


def _stand(point: Point, order: Order, active: set[str]) -> _Run:
    jobs = read_jobs(point.run_dir) or Jobs()
    finished = _work(point).done()
    changed = _changes(point)
    if finished and changed and order.train:
        if not all(line.startswith("schedule.") for line in changed):
            raise ConfigError(
                f"{point.run_dir} holds a finished run with other settings: {'; '.join(changed[:3])}. Choose another "
                "run_dir or root, or remove the folder"
            )
        finished = False  # a longer schedule continues the run
    training = order.after or (jobs.pretrain if jobs.pretrain in active else None)
    return _Run(point=point, jobs=jobs, finished=finished, training=training)


def _changes(point: Point) -> list[str]:
    """Settings that differ from those that the folder's run had, as `name: was -> is`."""
    path = point.run_dir / CONFIG_FILE
    if not path.is_file():
        return []
    was = yaml.safe_load(path.read_text(encoding="utf-8"))
    now = yaml.safe_load(dump(point.config, choices=PRETRAIN_CHOICES))
    before, after = {"seed": was.get("seed"), **flat(was)}, {"seed": now["seed"], **flat(now)}
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in sorted(set(before) | set(after))
        if before.get(name) != after.get(name) and name not in _SAME_NUMBERS
    ]


# ----------------------------------------------------------------------------------------------------------- queueing


def _queue(order: Order, code: CodeState | None) -> Queue:
    logs = order.root.absolute() / LOGS_FOLDER
    if code is None:
        return DebugQueue(logs=logs)
    if order.where == "slurm":
        return SlurmQueue(config=order.cluster, logs=logs, code=code.folder)
    return LocalQueue(config=order.cluster, logs=logs, code=code.folder)


def _freeze(point: Point, order: Order, code: CodeState | None) -> None:
    if code is None:
        return
    freeze_run(
        point.run_dir,
        config_text=dump(point.config, choices=PRETRAIN_CHOICES),
        overrides=point.overrides,
        cluster_text=dump(order.cluster) if order.where == "slurm" else None,
        code=code,
    )


def _work(point: Point, local_port: int = 0) -> PretrainJob:
    from launchers import freeze

    config = point.run_dir / freeze.SUBMISSION_FOLDER / freeze.CONFIG_FILE
    return PretrainJob(run_dir=str(point.run_dir), config=str(config), folder=str(Path.cwd()), local_port=local_port)


def _train(runs: Sequence[_Run], new: Sequence[_Run], order: Order, queue: Queue) -> list[_Run]:
    """Queue the array of pre-training; the runs with the ids that they are trained by."""
    if not new:
        return list(runs)
    works: list[Work] = [_work(run.point, free_port() if order.where == "local" else 0) for run in new]
    ids = queue.submit(works, name=order.root.absolute().name)
    by_folder = {run.point.run_dir: job for run, job in zip(new, ids, strict=True)}
    result = []
    for run in runs:
        job = by_folder.get(run.point.run_dir)
        if job is not None:
            run = replace(run, training=job, jobs=Jobs(logs=str(queue.logs), cluster=queue.cluster))
            _record(run, queue, pretrain=job)
            print(f"{run.point.run_dir.name}: training {_named(queue, job)}")
        result.append(run)
    return result


def _record(run: _Run, queue: Queue, **ids: Any) -> Jobs:
    """Add ids to the run's jobs.json; those of processes on this machine mean nothing later and are left out."""
    jobs = read_jobs(run.point.run_dir) or run.jobs
    if "pretrain" in ids:
        jobs = run.jobs
    jobs = replace(jobs, logs=str(queue.logs), cluster=queue.cluster)
    if queue.cluster is not None:
        jobs = replace(jobs, **ids)
    write_jobs(run.point.run_dir, jobs)
    return jobs


def _named(queue: Queue, job: str) -> str:
    return f"queued as {job}" if queue.cluster is not None else "over"


def _follow(runs: Sequence[_Run], order: Order, queue: Queue, active: set[str]) -> None:
    """Queue evaluations, baselines and the report."""
    folder = str(Path.cwd())
    waited: list[str] = []
    fresh = 0
    for run in runs:
        ids, count = _evaluate(run, queue, active, folder)
        waited += ids
        fresh += count
    with_work = [run for run in runs if run.point.config.evaluate.configs]
    if not with_work:
        print("no evaluations: evaluate.configs is empty")
        return
    ids, count = _baselines(with_work, order, queue, active, folder)
    waited += ids
    fresh += count
    waited += [run.training for run in runs if run.training is not None]
    if not waited:
        print(f"nothing left to do; `tandem report {order.root}` writes the report again")
        return
    old = {run.jobs.report for run in with_work if run.jobs.report in active}
    if not fresh and old:
        return
    slurm.cancel(sorted(job for job in old if job is not None))
    report = FollowJob(work=report_job(order.root.absolute(), [run.point.run_dir for run in runs]), folder=folder)
    # Whole arrays instead of all their elements: sbatch's line would grow with the sweep.
    after = After(ended=tuple(dict.fromkeys(map(_array, waited))))
    job = queue.submit([report], name=f"{order.root.absolute().name}-report", after=after)[0]
    for run in with_work:
        _record(run, queue, report=job)
    print(f"report {_named(queue, job)}")


def _evaluate(run: _Run, queue: Queue, active: set[str], folder: str) -> tuple[list[str], int]:
    """Queue the run's elements that are neither done nor queued; the ids to wait for, and how many are new."""
    config, name = run.point.config, run.point.run_dir.name
    stale = run.training is not None  # results that are there belong to an earlier checkpoint
    after = After(succeeded=(run.training,)) if run.training is not None else After()
    select = selection_job(run.point.run_dir, config)
    if select is not None and (stale or not select.done()):
        chosen = run.jobs.select if run.jobs.select in active else None
        if chosen is None:
            chosen = queue.submit([FollowJob(work=select, folder=folder)], name=f"{name}-select", after=after)[0]
            _record(run, queue, select=chosen)
        after = After(succeeded=(chosen,))
    jobs = evaluation_jobs(run.point.run_dir, config)
    queued = {j.name: run.jobs.evaluate[j.name] for j in jobs if run.jobs.evaluate.get(j.name) in active}
    works = [FollowJob(work=j, folder=folder) for j in jobs if j.name not in queued and (stale or not j.done())]
    if works:
        ids = queue.submit(list(works), name=f"{name}-evaluate", after=after)
        queued |= {work.name: job for work, job in zip(works, ids, strict=True)}
        _record(run, queue, evaluate={**run.jobs.evaluate, **queued})
        print(f"{name}: {len(works)} evaluations {_named(queue, _array(ids[0]))}")
    return list(queued.values()), len(works)


def _baselines(
    runs: Sequence[_Run], order: Order, queue: Queue, active: set[str], folder: str
) -> tuple[list[str], int]:
    """Queue the random-initialisation rows that no run has and none has queued; like `_evaluate`."""
    queued: dict[str, str] = {}
    known = [jobs.baselines for jobs in _known_jobs(order)]
    works: list[tuple[str, Work]] = []
    wanted: dict[Path, list[str]] = {}
    by_parent = itertools.groupby(sorted(runs, key=lambda r: r.point.run_dir), key=lambda r: r.point.run_dir.parent)
    for parent, group in by_parent:
        for run in group:
            jobs = baseline_jobs([run.point.config], parent)
            wanted[run.point.run_dir] = [job.key for job in jobs]
            for job in jobs:
                there = [found[job.key] for found in known if found.get(job.key) in active]
                if there:
                    queued[job.key] = there[0]
                elif not job.done() and job.key not in dict(works):
                    works.append((job.key, FollowJob(work=job, folder=folder)))
    if works:
        ids = queue.submit([work for _, work in works], name=f"{order.root.absolute().name}-random")
        queued |= {key: job for (key, _), job in zip(works, ids, strict=True)}
        print(f"random initialisation: {len(works)} jobs {_named(queue, _array(ids[0]))}")
    for run in runs:
        own = {key: queued[key] for key in wanted[run.point.run_dir] if key in queued}
        if own:
            _record(run, queue, baselines=own)
    return list(queued.values()), len(works)


def _array(job: str) -> str:
    """The array that an element belongs to."""
    return job.partition("_")[0]


# ------------------------------------------------------------------------------------------------------------ words


def _say(run: _Run) -> None:
    name = run.point.run_dir.name
    if run.finished:
        print(f"{name}: finished before")
    elif run.training is not None:
        print(f"{name}: is in the queue as {run.training}")


def _say_plan(order: Order, runs: Sequence[_Run]) -> None:
    new = [run for run in runs if run.to_train and order.train]
    asked = order.cluster
    print(f"would train {len(new)} of {len(runs)} runs, each on {asked.nodes} x {asked.tasks} process(es):")
    for run in new:
        print(f"  {run.point.run_dir}")
    if order.evaluate:
        elements = sum(len(evaluation_jobs(run.point.run_dir, run.point.config)) for run in runs)
        print(f"then {elements} evaluations, random initialisation beside them, and a report in {order.root}")
    print("nothing was queued (--dry-run)")
