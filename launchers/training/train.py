"""One pre-training run from its config: towers, loader, engine.

Lock, watchdog and the record of how it went are `launchers.training.supervision`'s.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from configs.load import dump, load
from configs.schema import PRETRAIN_CHOICES, PretrainConfig
from data.loading.loader import ShardLoader, build_loader
from engine.distributed import World
from engine.errors import CheckpointError
from engine.pretrain import PretrainSummary, pretrain
from launchers.drawing.training_pictures import pictures_of_set
from launchers.runs.files import CONFIG_FILE, ENVIRONMENT_FILE
from launchers.runs.provenance import describe_environment
from launchers.training.micro_batch import fit_micro_batch
from launchers.training.stages import method_to_build
from launchers.training.supervision import supervised
from launchers.training.teacher_cache import teacher_cache

logger = logging.getLogger("tandem.pretrain")


def load_run(path: str, overrides: Sequence[str] = ()) -> PretrainConfig:
    """The config of a YAML file (path or name) and overrides; `run_dir` defaults to runs/<name of the file>."""
    defaults = {"run_dir": f"runs/{Path(path).stem}"}
    return load(PretrainConfig, path, overrides, choices=PRETRAIN_CHOICES, defaults=defaults)


def resolved_yaml(config: PretrainConfig) -> str:
    """The resolved config as YAML."""
    return dump(config, choices=PRETRAIN_CHOICES)


def train(config: PretrainConfig) -> PretrainSummary:
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
        world, spec, resolved = run.world, config.method.batch_spec(), yaml.safe_load(resolved_yaml(config))
        # The config stays as it is: on another number of processes the next start derives from it again.
        data = dataclasses.replace(config.data, micro_batch_size=fit_micro_batch(config, world))
        torch.manual_seed(config.seed)  # initial weights are the same on every rank
        objective = method_to_build(config).build()
        cache = teacher_cache(objective, config.method, data, run)
        source = build_loader(
            data, spec=spec, seed=config.seed, rank=world.rank, world_size=world.world_size, teacher_cache=cache
        )
        if world.is_main:
            _write_provenance(config, resolved)
        run.summary = pretrain(
            objective,
            source,
            config,
            config.run_dir,
            micro_batch_size=data.micro_batch_size,
            fingerprint={"method": resolved["method"], "voxel": resolved["data"]["voxel"]},
            resolved_config=resolved,
            # At ZeRO-3 a forward pass needs all ranks, so all of them draw.
            pictures=pictures_of_set(config.data, spec) if world.is_main or config.engine.zero_stage == 3 else None,
            watchdog=run.watchdog,
            on_resume=run.resumed,
        )
        if world.is_main:
            _print_summary(run.summary, source, world)
    return run.summary


def _write_provenance(config: PretrainConfig, resolved: dict[str, Any]) -> None:
    """What is needed to run it again: the resolved config, the git commit, the environment."""
    folder = Path(config.run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(resolved_yaml(config))
        (folder / ENVIRONMENT_FILE).write_text(json.dumps(describe_environment(), indent=1) + "\n")
    except OSError as error:
        raise CheckpointError(
            f"the run's folder {folder} cannot be written: {error}; free disk space, repair its permissions, or choose "
            "another run_dir"
        ) from error


def _print_summary(summary: PretrainSummary, source: ShardLoader, world: World) -> None:
    console = Console(highlight=False)
    try:
        console.print(
            f"{summary.status} at step {summary.step} of {summary.num_steps} on {world.world_size} process(es) after "
            f"{summary.seconds / 60:.1f} min, peak memory {summary.peak_rss_gib:.2f} GiB, loss {summary.loss:.4f}"
        )
        if source.counters or summary.skipped:
            console.print(f"skipped: {summary.skipped} updates, samples {source.counters}")
        console.print(f"checkpoint: {summary.checkpoint}")
    except OSError as error:  # a full disk behind the job's output makes no finished run a failed one
        logger.warning("the summary could not be printed: %s", error)
