"""One run from its config: towers, loader, engine.

What differs between kinds of runs, how the objective is built and what is measured of it, comes from the caller.

Lock, watchdog and the record of how it went are `launchers.training.supervision`'s.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from common.files import replace_file
from configs.load import load
from configs.runs import RunConfig, dump_run, read_run
from configs.schema import PRETRAIN_CHOICES, PretrainConfig
from data.batch_spec import BatchSpec
from data.loading.loader import ShardLoader, build_loader
from data.storage.teacher_cache import TeacherCache
from engine.checkpoint import told_by_main
from engine.distributed import World
from engine.errors import CheckpointError
from engine.measuring import Measurement
from engine.precision import fastest_precision
from engine.pretrain import Pictures, PretrainSummary, pretrain
from launchers.drawing.training_pictures import pictures_of_set
from launchers.runs.changes import begun_with
from launchers.runs.files import CONFIG_FILE, ENVIRONMENT_FILE
from launchers.runs.provenance import describe_environment
from launchers.runs.settings import fingerprint_of
from launchers.runs.terminal import terminal
from launchers.training.continuing import Continued, continued, finished_before, warn_of
from launchers.training.micro_batch import fit_micro_batch
from launchers.training.stages import check_first_stage, first_weights, method_to_build, method_without_weights
from launchers.training.supervision import Supervised, supervised
from launchers.training.teacher_cache import teacher_cache
from models.lidar.native.library import threads_for_points
from models.methods.base import Objective

logger = logging.getLogger("tandem.pretrain")


def load_run(path: str, overrides: Sequence[str] = ()) -> PretrainConfig:
    """The config of a YAML file (path or name) and overrides; `run_dir` defaults to runs/<name of the file>."""
    return load(PretrainConfig, path, overrides, choices=PRETRAIN_CHOICES, defaults=_default_folder(path))


def load_any_run(path: str, overrides: Sequence[str] = (), *, kind: type[RunConfig] | None = None) -> RunConfig:
    """The same of a run of any kind; None: as the file says."""
    return read_run(path, overrides, defaults=_default_folder(path), kind=kind)


def _default_folder(path: str) -> dict[str, object]:
    return {"run_dir": f"runs/{Path(path).stem}"}


def resolved_yaml(config: RunConfig) -> str:
    """The resolved config as YAML."""
    return dump_run(config)


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """An objective, and what it started from.

    Attributes:
        objective: with the weights of its start, or with any where a checkpoint replaces them.
        fingerprint: JSON values that must not change when the run continues, beside those of its settings.
        record: name of a file in the run's folder -> its text, beside config and environment.
    """

    objective: Objective
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, str] = field(default_factory=dict)


def assemble_method(config: RunConfig, before: Continued | None, world: World) -> Assembled:
    """The objective of a pre-training run, built with its first stage if it has one.

    Raises:
        CheckpointError: another first stage than the run was built with.
    """
    first = None if config.first is None else told_by_main(lambda: first_weights(config), world)
    if before is not None:
        first = check_first_stage(config, before.state, first)
    # A checkpoint holds the first stage's network, too. A teacher cache goes by the weights that it is built with.
    filled = before is not None and not config.method.caches_teacher
    objective = (method_without_weights(config) if filled else method_to_build(config)).build()
    return Assembled(objective=objective, fingerprint={} if first is None else {"first": first})


def _pictures_of_set(config: RunConfig, spec: BatchSpec, _: Supervised) -> Pictures:
    return pictures_of_set(config.data, spec)


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """What differs between kinds of runs; all ranks call each alike, unless stated otherwise.

    Attributes:
        assemble: (config, what is continued, processes) -> the objective; torch is seeded alike on all ranks.
        measure: (config, run, batches) -> what is measured while it trains, if anything is.
        pictures: (config, what batches hold, run) -> what draws pictures; called by the ranks that draw.
        owes: (config, step, processes) -> whether a run that has come to its end at a step has yet to be measured.
    """

    assemble: Callable[[RunConfig, Continued | None, World], Assembled] = assemble_method
    measure: Callable[[RunConfig, Supervised, ShardLoader], Measurement | None] = lambda *_: None
    pictures: Callable[[RunConfig, BatchSpec, Supervised], Pictures] = _pictures_of_set
    owes: Callable[[RunConfig, int, World], bool] = lambda *_: False


PRETRAINING = RunParts()


def train(config: RunConfig, parts: RunParts = PRETRAINING) -> PretrainSummary:
    """Train to the end or to a signal; all processes of the run call it.

    Raises:
        ConfigError: settings that do not fit each other or the data.
        RunLockedError: another job trains in this folder.
        StopRequested: a stop signal came before the first update.
        PeerLostError, PeerFailedError: see `engine.watchdog`.
        ShardError, CheckpointError, DivergenceError: see `data.storage.shard` and `engine.errors`.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with supervised(config) as run:
        world, spec = run.world, config.method.batch_spec()
        provenance: dict[str, str] = {}  # what is needed to run it again, by file
        if run.record is not None:
            provenance[ENVIRONMENT_FILE] = json.dumps(describe_environment(), indent=1) + "\n"
            run.record.keep(ENVIRONMENT_FILE, provenance[ENVIRONMENT_FILE])
        # Before anything is built from a config that may be another run's.
        before = continued(config, world)
        if before is not None:
            config = begun_with(config, before.config)
        else:
            config = begun_with(config, None, fastest_precision(world))
        resolved = yaml.safe_load(resolved_yaml(config))
        if run.record is not None:
            provenance[CONFIG_FILE] = resolved_yaml(config)
        done = None if before is None else finished_before(config, before, world)
        if done is not None and not parts.owes(config, done.step, world):
            run.summary = done
            if world.is_main:
                _print_nothing_to_do(done)
            return done
        if before is not None and world.is_main:
            warn_of(before)
        # The config stays as it is: on another number of processes the next start derives from it again.
        data = dataclasses.replace(config.data, micro_batch_size=fit_micro_batch(config, world, before))
        torch.manual_seed(config.seed)  # initial weights are the same on every rank
        assembled = parts.assemble(config, before, world)
        objective = assembled.objective
        cache = teacher_cache(objective, config.method, data, run)
        source = build_loader(
            data,
            spec=spec,
            seed=config.seed,
            rank=world.rank,
            world_size=world.world_size,
            teacher_cache=cache,
            finish=objective.map_maker() if data.maps_in_workers else None,
        )

        def begin(step: int) -> None:
            """Note on rank 0 that the run is this config's from here on."""
            _write_provenance(Path(config.run_dir), {**provenance, **assembled.record})
            if run.record is not None:
                run.record.resumed(step, {c.name: (c.before, c.now) for c in (before.changes if before else ())})

        with threads_for_points(world.device) if _only_points(config, cache) else nullcontext():
            run.summary = pretrain(
                objective,
                source,
                config,
                config.run_dir,
                micro_batch_size=data.micro_batch_size,
                fingerprint=fingerprint_of(resolved) | dict(assembled.fingerprint),
                resolved_config=resolved,
                # At ZeRO-3 a forward pass needs all ranks, so all of them draw.
                pictures=parts.pictures(config, spec, run) if world.is_main or config.engine.zero_stage == 3 else None,
                measurement=parts.measure(config, run, source),
                watchdog=run.watchdog,
                on_begin=begin,
            )
        if world.is_main:
            _print_summary(run.summary, source, world)
    return run.summary


def _only_points(config: RunConfig, cache: TeacherCache | None) -> bool:
    """Whether no image network runs in a step.

    An image network gains by torch's threads, where it has cores of its own. This follows from the config alone: what a
    timing would choose could be another number of threads, and other last digits, when the run goes on.
    """
    return not config.method.image_networks() and (not config.method.teachers() or cache is not None)


def _write_provenance(folder: Path, texts: Mapping[str, str]) -> None:
    try:
        for name, text in texts.items():
            replace_file(folder / name, text.encode(), durable=False)
    except OSError as error:
        raise CheckpointError(
            f"the run's folder {folder} cannot be written: {error}; free disk space, repair its permissions, or choose "
            "another run_dir"
        ) from error


def _print_nothing_to_do(summary: PretrainSummary) -> None:
    console = terminal()
    with suppress(OSError):
        console.print(
            f"nothing to do: finished before, at step {summary.step} of {summary.num_steps}, loss {summary.loss:.4f}\n"
            f"checkpoint: {summary.checkpoint}"
        )


def _print_summary(summary: PretrainSummary, source: ShardLoader, world: World) -> None:
    console = terminal()
    try:
        console.print(
            f"{summary.status} at step {summary.step} of {summary.num_steps} on {world.world_size} process(es) after "
            f"{summary.seconds / 60:.1f} min, peak memory {summary.peak_rss_gib:.2f} GiB, loss {summary.loss:.4f}"
        )
        if summary.status == "preempted":
            console.print(f"stopped by {summary.signal} before its end; the same command again continues it")
        if source.counters or summary.skipped:
            console.print(f"skipped: {summary.skipped} updates, samples {source.counters}")
        console.print(f"checkpoint: {summary.checkpoint}")
    except OSError as error:  # a full disk behind the job's output makes no finished run a failed one
        logger.warning("the summary could not be printed: %s", error)
