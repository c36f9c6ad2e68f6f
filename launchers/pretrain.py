"""`tandem pretrain CONFIG [section.field=value ...]`: train a method on shards; continues where it stopped.

Alone, under torchrun or under srun: the same command. A folder that has checkpoints is continued; a signal
(SIGTERM, SIGUSR1, SIGINT) finishes the step, writes a checkpoint and leaves with code 75 ("try again").
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from configs.load import ConfigError, dump, load
from configs.schema import PRETRAIN_CHOICES, PretrainConfig
from data.loader import build_loader
from engine.distributed import World, init_distributed, shutdown
from engine.pretrain import PretrainSettings, PretrainSummary, pretrain
from launchers.cli import guarded
from launchers.pictures import pictures_of_set
from launchers.provenance import describe_environment
from launchers.teacher_cache import PoolsTeacher, open_or_build

TRY_AGAIN = 75
"""Exit code of a run that was told to stop and can be continued (EX_TEMPFAIL of sysexits.h)."""

CONFIG_FILE = "config.yaml"


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = argparse.ArgumentParser(
        prog="tandem pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("config", help="YAML file of the run, for example configs/pretrain/slidr_street.yaml")
    p.add_argument("overrides", nargs="*", metavar="section.field=value", help="for example optim.lr=0.1")
    p.add_argument("--show-config", action="store_true", help="print the resolved config and stop")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 when the run is finished, 75 when it was told to stop before."""
    options = parser().parse_args(argv)
    config = load_run(options.config, options.overrides)
    if options.show_config:
        print(dump(config, choices=PRETRAIN_CHOICES), end="")
        return 0
    try:
        summary = run(config)
    finally:
        shutdown()
    return 0 if summary.status == "finished" else TRY_AGAIN


def load_run(path: str, overrides: Sequence[str] = ()) -> PretrainConfig:
    """The config of a YAML file and overrides; `run_dir` defaults to runs/<name of the file>."""
    defaults = {"run_dir": f"runs/{Path(path).stem}"}
    return load(PretrainConfig, path, overrides, choices=PRETRAIN_CHOICES, defaults=defaults)


def run(config: PretrainConfig) -> PretrainSummary:
    """Assemble towers, loader and engine, and train to the end or to a signal.

    Raises:
        ConfigError: settings that do not fit each other or the data.
        ShardError, CheckpointError, DivergenceError: see `data.shards` and `engine.errors`.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    world = init_distributed(config.engine.device, timeout_min=config.engine.timeout_min)
    resolved = yaml.safe_load(dump(config, choices=PRETRAIN_CHOICES))
    torch.manual_seed(config.seed)  # initial weights are the same on every rank
    try:
        objective = config.method.build()
        cache = None
        if getattr(getattr(config.method, "teacher", None), "cache", False) and isinstance(objective, PoolsTeacher):
            cache = open_or_build(objective, config.data, world)
        source = build_loader(
            config.data, seed=config.seed, rank=world.rank, world_size=world.world_size, teacher_cache=cache
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
            micro_batch_size=config.data.micro_batch_size,
            fingerprint={"method": resolved["method"], "voxel": resolved["data"]["voxel"]},
            resolved_config=resolved,
            pictures=pictures_of_set(config.data) if world.is_main or config.engine.zero_stage == 3 else None,
        )
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from error
    if world.is_main:
        _tell(summary, source.counters, world)
    return summary


def _write_provenance(config: PretrainConfig, resolved: dict[str, Any]) -> None:
    """What is needed to run it again: the resolved config, the git commit, the environment."""
    folder = Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(dump(config, choices=PRETRAIN_CHOICES))
    (folder / "environment.json").write_text(json.dumps(describe_environment(), indent=1) + "\n")


def _tell(summary: PretrainSummary, skipped: dict[str, int], world: World) -> None:
    console = Console(highlight=False)
    console.print(
        f"{summary.status} at step {summary.step} of {summary.num_steps} on {world.world_size} process(es) after "
        f"{summary.seconds / 60:.1f} min, peak memory {summary.peak_rss_gib:.2f} GiB, loss {summary.loss:.4f}"
    )
    if skipped or summary.skipped:
        console.print(f"skipped: {summary.skipped} updates, samples {dict(skipped)}")
    console.print(f"checkpoint: {summary.checkpoint}")


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
