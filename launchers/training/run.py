"""One pre-training run from its config: lock, towers, loader, engine, and a record of how it went.

Whatever happens on the way, the run's folder says so (`launchers.runs.attempts`), and all ranks end alike.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from rich.console import Console

from configs.load import ConfigError, dump, load
from configs.schema import PRETRAIN_CHOICES, PretrainConfig
from data.loading.loader import ShardLoader, build_loader
from engine.distributed import World, agree_any, agree_signal, init_distributed, read_launch, shutdown
from engine.errors import CheckpointError, PeerFailedError, PeerLostError, RunLockedError, StopRequested
from engine.preempt import StopSignals
from engine.pretrain import PretrainSettings, PretrainSummary, pretrain
from engine.run_lock import RunLock
from engine.watchdog import Watchdog
from launchers.drawing.pictures import pictures_of_set
from launchers.runs import attempts, slurm
from launchers.runs.provenance import describe_environment
from launchers.training.micro_batch import fit_micro_batch
from launchers.training.stages import method_to_build
from launchers.training.teacher_cache import PoolsTeacher, open_or_build

__all__ = ["load_run", "run", "show", "shutdown"]

CONFIG_FILE = "config.yaml"
_CLEAN_UP_S = 30


def load_run(path: str, overrides: Sequence[str] = ()) -> PretrainConfig:
    """The config of a YAML file and overrides; `run_dir` defaults to runs/<name of the file>."""
    defaults = {"run_dir": f"runs/{Path(path).stem}"}
    return load(PretrainConfig, path, overrides, choices=PRETRAIN_CHOICES, defaults=defaults)


def show(config: PretrainConfig) -> str:
    """The resolved config as YAML."""
    return dump(config, choices=PRETRAIN_CHOICES)


def run(config: PretrainConfig) -> PretrainSummary:
    """Train to the end or to a signal; rank 0 holds the run's lock and notes the attempt.

    Raises:
        ConfigError: settings that do not fit each other or the data.
        RunLockedError: another job trains in this folder.
        StopRequested: told to stop before the first update.
        PeerLostError, PeerFailedError: see `engine.watchdog`.
        ShardError, CheckpointError, DivergenceError: see `data.shards` and `engine.errors`.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    launch = read_launch(os.environ)
    record: attempts.AttemptRecord | None = None
    refused: str | None = None
    with StopSignals() as signals, ExitStack() as held:
        if launch.rank == 0:
            try:
                held.enter_context(_lock(config, signals))
                record = attempts.begin(
                    config.run_dir, launch.world_size, job=slurm.own_job(), nodes=os.environ.get("SLURM_STEP_NODELIST")
                )
            except (RunLockedError, OSError) as error:
                # Told to the other ranks, which would wait for rank 0 otherwise.
                refused = str(error) if isinstance(error, RunLockedError) else f"{config.run_dir}: {error}"
        try:
            summary = _train(config, signals, refused, record)
        except StopRequested as stop:
            if record is not None:
                record.end("preempted", signal=stop.signal)
            raise
        except BaseException as error:
            if isinstance(error, PeerLostError | PeerFailedError):
                # The interpreter's clean-up may wait for the peer that is gone; the kernel ends us then.
                signal.alarm(_CLEAN_UP_S)
            if record is not None:
                record.end("failed", reason=f"{type(error).__name__}: {error}")
            raise
        if record is not None:
            record.end(summary.status, step=summary.step, signal=summary.signal)
    return summary


def _lock(config: PretrainConfig, signals: StopSignals) -> RunLock:
    return RunLock(
        config.run_dir,
        wait_s=config.checkpoint.lock_wait_s,
        job=slurm.own_job(),
        stop=lambda: signals.received is not None,
    )


def _train(
    config: PretrainConfig, signals: StopSignals, refused: str | None, record: attempts.AttemptRecord | None
) -> PretrainSummary:
    """Join the other ranks, then train under the eyes of a watchdog."""
    world = _join(config)
    _stop_together(signals, world)
    _refuse_together(refused, world)
    with Watchdog(
        world,
        heartbeat_s=config.engine.heartbeat_s,
        stall_min=config.engine.stall_min,
        on_verdict=None if record is None else lambda reason: record.end("failed", reason=reason),
    ) as watchdog:
        try:
            return _assemble(config, signals, world, watchdog, record)
        except ValueError as error:
            raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from error


def _join(config: PretrainConfig) -> World:
    try:
        return init_distributed(config.engine.device, timeout_min=config.engine.timeout_min)
    except dist.DistError as error:
        raise PeerLostError(
            f"the processes did not all meet at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} within "
            f"engine.timeout_min={config.engine.timeout_min:g} min: {error}. The outputs of the other processes say "
            "which of them never came"
        ) from error


def _assemble(
    config: PretrainConfig,
    signals: StopSignals,
    world: World,
    watchdog: Watchdog,
    record: attempts.AttemptRecord | None,
) -> PretrainSummary:
    """Towers, loader, engine."""
    resolved = yaml.safe_load(show(config))
    # The config stays as it is: on another number of processes the next start derives from it again.
    data = dataclasses.replace(config.data, micro_batch_size=fit_micro_batch(config, world))
    torch.manual_seed(config.seed)  # initial weights are the same on every rank
    objective = method_to_build(config).build()
    spec, cache = config.method.batch_spec(), None
    if config.method.caches_teacher and isinstance(objective, PoolsTeacher):
        watchdog.phase("teacher cache", 0)
        cache = open_or_build(objective, data, world, signals)
        watchdog.phase("start", 0)
        _stop_together(signals, world)
    elif config.method.caches_teacher:
        logging.getLogger("tandem.pretrain").warning(
            "method.teacher.cache=true has no effect: this method does not pool its teacher over superpixels"
        )
    source = build_loader(
        data, spec=spec, seed=config.seed, rank=world.rank, world_size=world.world_size, teacher_cache=cache
    )
    if world.is_main:
        _write_provenance(config, resolved)
    summary = pretrain(
        objective,
        source,
        PretrainSettings(
            seed=config.seed,
            engine=config.engine,
            optim=config.optim,
            schedule=config.schedule,
            checkpoint=config.checkpoint,
            monitor=config.monitor,
        ),
        config.run_dir,
        micro_batch_size=data.micro_batch_size,
        fingerprint={"method": resolved["method"], "voxel": resolved["data"]["voxel"]},
        resolved_config=resolved,
        pictures=pictures_of_set(config.data, spec) if world.is_main or config.engine.zero_stage == 3 else None,
        watchdog=watchdog,
        on_resume=None if record is None else record.resumed,
    )
    if world.is_main:
        try:
            _tell(summary, source, world)
        except OSError as error:  # a full disk behind the job's output makes no finished run a failed one
            logging.getLogger("tandem.pretrain").warning("the summary could not be printed: %s", error)
    return summary


def _stop_together(signals: StopSignals, world: World) -> None:
    """Leave on all ranks when one was told to stop, at a moment when nothing has to be saved.

    Raises:
        StopRequested: on all ranks.
    """
    told = agree_signal(signals, world)
    if told is not None:
        raise StopRequested(told)


def _refuse_together(refused: str | None, world: World) -> None:
    """Leave on all ranks when rank 0 may not use the run's folder.

    Raises:
        RunLockedError: on all ranks.
    """
    (any_refused,) = agree_any([refused is not None], world)
    if not any_refused:
        return
    told = [refused]
    if world.world_size > 1:
        dist.broadcast_object_list(told, src=0, device=world.device)
    raise RunLockedError(str(told[0]))


def _write_provenance(config: PretrainConfig, resolved: dict[str, Any]) -> None:
    """What is needed to run it again: the resolved config, the git commit, the environment."""
    folder = Path(config.run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(show(config))
        (folder / "environment.json").write_text(json.dumps(describe_environment(), indent=1) + "\n")
    except OSError as error:
        raise CheckpointError(
            f"the run's folder {folder} cannot be written: {error}; free disk space, mend its rights, or choose "
            "another run_dir"
        ) from error


def _tell(summary: PretrainSummary, source: ShardLoader, world: World) -> None:
    console = Console(highlight=False)
    console.print(
        f"{summary.status} at step {summary.step} of {summary.num_steps} on {world.world_size} process(es) after "
        f"{summary.seconds / 60:.1f} min, peak memory {summary.peak_rss_gib:.2f} GiB, loss {summary.loss:.4f}"
    )
    if source.counters or summary.skipped:
        console.print(f"skipped: {summary.skipped} updates, samples {source.counters}")
    console.print(f"checkpoint: {summary.checkpoint}")
