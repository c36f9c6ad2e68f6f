"""Compares the requested runs with what is already trained, queued or running, and checks them, all before queueing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.run_files import list_checkpoints
from configs.load import ConfigError
from configs.runs import RunConfig
from configs.schema import SlurmConfig
from engine.checkpoint import newest_records
from engine.run_lock import holder
from launchers.cluster.dry_check import check_cluster, check_folder, check_options, check_runs, check_spelling
from launchers.cluster.evaluation_jobs import BaselineJob, EvaluationJob, SelectBestJob
from launchers.cluster.plan_followups import baseline_jobs, evaluation_jobs, selection_job
from launchers.runs import slurm
from launchers.runs.attempts import is_finished
from launchers.runs.changes import changes, check_samples, listed, saved_config
from launchers.runs.files import JOBS_FILE
from launchers.runs.job_record import Jobs, read_jobs
from launchers.training.stages import check_first_stage, first_stage, first_weights, has_begun, is_trained

Where = Literal["slurm", "local", "debug"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One requested run.

    Attributes:
        overrides: as written, for the record.
        after: folder of another point that must be trained before.
        is_first: another point builds on it.
        follows: the training of a detector that follows another point.
    """

    config: RunConfig
    overrides: tuple[str, ...] = ()
    after: Path | None = None
    is_first: bool = False
    follows: bool = False

    @property
    def run_dir(self) -> Path:
        """Folder of the run, absolute."""
        return Path(self.config.run_dir).absolute()


def with_first_stages(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points, and before them the first stages that they build on, each once.

    Raises:
        ConfigError: a mistake in a first stage, or one folder requested with different settings.
    """
    firsts: dict[Path, Point] = {}
    own: list[Point] = []
    for point in points:
        config = first_stage(point.config)
        gone = config is not None and not list_checkpoints(Path(config.run_dir))
        if config is None or point.config.first is None or (gone and has_begun(point.config)):
            own.append(point)
            continue
        first = Point(config=config, overrides=point.config.first.overrides, is_first=True)
        if firsts.setdefault(first.run_dir, first).config != config:
            raise ConfigError(
                f"first.run_dir: {first.run_dir} is requested with different settings; give each its own folder"
            )
        own.append(dataclasses.replace(point, after=first.run_dir))
    there = {point.run_dir for point in own}
    return (*(first for folder, first in firsts.items() if folder not in there), *own)


@dataclass(frozen=True, kw_only=True)
class SubmitRequest:
    """What is to be queued, and how.

    Attributes:
        root: folder of code, logs and report: of the sweep, or the run itself.
        cluster: what jobs ask for.
        evaluate: also what follows.
        train: queue the pre-training too; without it, only what follows.
        after: id of a job that trains the (one) run already.
        check: a dry check of data and one batch before anything is queued.
    """

    points: tuple[Point, ...]
    root: Path
    cluster: SlurmConfig
    where: Where
    evaluate: bool = True
    train: bool = True
    after: str | None = None
    check: bool = True

    @property
    def name(self) -> str:
        """Name of the root folder, without the folders above it."""
        return self.root.absolute().name


@dataclass(frozen=True, kw_only=True)
class RequestedRun:
    """A point, and what there is of it already.

    Attributes:
        finished: it needs no more training.
        training: id of the job that trains it, or will.
        select: chooses a checkpoint before the evaluations; None where that is off.
        baselines: random-initialisation rows that its report needs.
    """

    point: Point
    jobs: Jobs
    finished: bool
    training: str | None
    select: SelectBestJob | None
    elements: tuple[EvaluationJob, ...]
    baselines: tuple[BaselineJob, ...]

    @property
    def name(self) -> str:
        """Name of the run's folder, without the folders above it."""
        return self.point.run_dir.name


@dataclass(frozen=True, kw_only=True)
class SubmissionPlan:
    """A request compared with what is already trained, queued or running.

    Attributes:
        runs: in the order of the request.
        to_train: those that are to be queued for training.
        active: ids of jobs that are queued or running, of these runs and those beside them.
    """

    runs: tuple[RequestedRun, ...]
    to_train: tuple[RequestedRun, ...]
    active: frozenset[str]


def plan_submission(request: SubmitRequest) -> SubmissionPlan:
    """Find out what is left to do; what cannot work is refused here, before anything is queued.

    Raises:
        ConfigError, ShardError, DryBatchError: a mistake in settings, data, folders or cluster.
        SlurmError: SLURM is not here or does not answer.
    """
    folders = [point.run_dir for point in request.points]
    for folder in folders:
        if (count := folders.count(folder)) > 1:
            raise ConfigError(f"run_dir: {folder} is requested {count} times; each run needs its own")
    for folder in (request.root, *folders):
        check_folder(folder)
    active: frozenset[str] = frozenset()
    if request.where == "slurm":
        _check_slurm(request)
        queued = slurm.queue(job for jobs in known_jobs(request) for job in jobs.ids())
        active = frozenset(job for job, info in queued.items() if info.active)
    runs = tuple(_requested_run(point, request, active) for point in request.points)
    to_train = tuple(run for run in runs if _is_due(run, request))
    _check_order(to_train, runs)
    for run in to_train:
        if (who := holder(run.point.run_dir)) is not None:
            raise ConfigError(f"{run.point.run_dir} is being trained by {who}; wait for it or cancel it first")
    seconds = check_runs([run.point.config for run in to_train], one_batch=request.check)
    if to_train and request.check:
        print(f"checked: config, shards, folders, one batch at toy width ({seconds:.0f} s)")
    return SubmissionPlan(runs=runs, to_train=to_train, active=active)


def _is_due(run: RequestedRun, request: SubmitRequest) -> bool:
    return (request.train or run.point.follows) and not run.finished and run.training is None


def _check_order(to_train: Sequence[RequestedRun], runs: Sequence[RequestedRun]) -> None:
    """Refuse to train a run on that detectors have started from: they would belong to weights that are gone."""
    due = {run.point.run_dir for run in to_train}
    for run in runs:
        if run.point.follows and run.point.after in due and list_checkpoints(run.point.run_dir):
            raise ConfigError(
                f"{run.point.run_dir} has started from {run.point.after}, which is to be trained on; remove that "
                "folder to train it again afterwards, or leave what follows out (--no-evaluate)"
            )


def known_jobs(request: SubmitRequest) -> list[Jobs]:
    """Jobs of the runs and of those beside them, which may share baselines."""
    folders = {point.run_dir for point in request.points}
    beside = {path.parent for folder in folders for path in folder.parent.glob(f"*/{JOBS_FILE}")}
    return [jobs for folder in sorted(folders | beside) if (jobs := read_jobs(folder)) is not None]


def _check_slurm(request: SubmitRequest) -> None:
    if not slurm.available():
        raise slurm.SlurmError(
            "no SLURM controller answers here; submit from a machine of the cluster, or run on this one with --local"
        )
    check_options(request.cluster)
    check_cluster(request.cluster)
    check_spelling(request.root.absolute(), holds_logs=True)
    for point in request.points:
        check_spelling(point.run_dir, holds_logs=False)


def _requested_run(point: Point, request: SubmitRequest, active: frozenset[str]) -> RequestedRun:
    jobs = read_jobs(point.run_dir) or Jobs()
    follow = point.config.evaluate.configs if request.evaluate else ()
    return RequestedRun(
        point=point,
        jobs=jobs,
        finished=_needs_no_training(point) if request.train or point.follows else is_finished(point.run_dir),
        training=(None if point.follows else request.after) or (jobs.pretrain if jobs.pretrain in active else None),
        # Made here for their errors: a mistake in a downstream file must not show when training is queued already.
        select=selection_job(point.run_dir, point.config) if follow else None,
        elements=tuple(evaluation_jobs(point.run_dir, point.config)) if follow else (),
        baselines=tuple(baseline_jobs([point.config], point.run_dir.parent)) if follow else (),
    )


def _needs_no_training(point: Point) -> bool:
    """Whether a run is finished as it is requested; one that goes on with another schedule is not.

    Raises:
        ConfigError: its folder holds a run that cannot go on like this, or a finished one with other settings.
        CheckpointError, ShardError: it was trained on other samples, or with another first stage, or cannot be read.
    """
    if point.is_first and is_trained(point.config):
        return True
    records = newest_records(point.run_dir)
    if records is None:  # a first stage must have weights; of another run the results may be all that was kept
        return not point.is_first and is_finished(point.run_dir)
    state, resolved = records
    before = saved_config(resolved, point.run_dir)
    found, finished = changes(before, point.config), is_finished(point.run_dir)
    goes_on = not finished or any(change.name.startswith("schedule.") for change in found)
    if wrong := [change for change in found if change.kind == "refused" or not goes_on]:
        raise ConfigError(
            f"{point.run_dir} holds a {'finished ' if finished else ''}run with other settings:{listed(wrong)}\nundo "
            "the change, choose another run_dir or root, or remove the folder"
        )
    check_samples(before, point.config, state, point.run_dir)
    check_first_stage(point.config, state, first_weights(point.config))
    return not goes_on
