"""What a run's folder says of the run, compared with the config that it is started with, before anything is built.

`launchers.runs.changes` says what may change. A change that may is a warning, and goes into the run's record.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.run_files import step_of
from configs.runs import RunConfig
from engine import metric_names as names
from engine.checkpoint import find_checkpoint, peek
from engine.checkpoint_writer import software_versions
from engine.distributed import World
from engine.errors import CheckpointError
from engine.monitor import peak_rss_gib
from engine.pretrain import PretrainSummary
from engine.reshard import global_batch
from engine.schedule import total_steps
from launchers.runs.changes import Change, changes, check_samples, listed, saved_config
from launchers.runs.files import newest_metrics

logger = logging.getLogger("tandem.pretrain")


@dataclass(frozen=True, kw_only=True)
class Continued:
    """The run that this start continues, as its newest checkpoint has it.

    Attributes:
        state: state.json.
        resolved: config.json.
        config: the same as this version reads it.
        changes: what is recorded: settings, number of processes, software.
    """

    state: Mapping[str, Any]
    resolved: Mapping[str, Any]
    config: RunConfig
    changes: tuple[Change, ...]


def continued(config: RunConfig, world: World) -> Continued | None:
    """What is continued; None where the folder has no checkpoint. All processes of the run call it.

    Raises:
        CheckpointError: the folder's run is another one; names the settings with both values.
    """
    run_dir = Path(config.run_dir)
    checkpoint = peek(run_dir, world)
    if checkpoint is None:
        return None
    state, resolved = checkpoint
    before = saved_config(resolved, run_dir)
    found = changes(before, config)
    if refused := [change for change in found if change.kind == "refused"]:
        raise CheckpointError(
            f"{run_dir} holds a run with other settings:{listed(refused)}\nundo the change, or start in another run "
            "folder"
        )
    check_samples(before, config, state, run_dir)
    now: dict[str, object] = {"processes": world.world_size}
    now |= {f"software.{name}": version for name, version in software_versions().items()}
    was: dict[str, object] = {"processes": (state.get("engine") or {}).get("world_size")}
    was |= {f"software.{name}": version for name, version in (state.get("versions") or {}).items()}
    for name, value in now.items():
        if was.get(name) not in (None, value):
            found.append(Change(name, was[name], value, "recorded"))
    return Continued(state=state, resolved=resolved, config=before, changes=tuple(found))


def warn_of(before: Continued) -> None:
    """Say once, in the log, with what the run goes on that it did not have."""
    settings = [str(change) for change in before.changes if not change.name.startswith("software.")]
    software = [str(change).removeprefix("software.") for change in before.changes if str(change) not in settings]
    if settings:
        logger.warning("the run goes on with other settings from here: %s", "; ".join(settings))
    if software:
        logger.warning(
            "the run goes on with other software than its checkpoint was written with: %s; its numbers may differ by "
            "rounding from those of an undisturbed run",
            "; ".join(software),
        )


def finished_before(config: RunConfig, before: Continued, world: World) -> PretrainSummary | None:
    """How the run ended, where there is nothing left to do; without data or network. All processes of the run call it.

    Raises:
        CheckpointError: there are checkpoints, and every one is damaged.
        ValueError: a schedule that does not fit the run.
    """
    began, state, run_dir = time.perf_counter(), before.state, Path(config.run_dir)
    if config.schedule.steps is None and not ("source" in state and "engine" in state):
        return None
    num_steps = config.schedule.steps or total_steps(
        config.schedule,
        samples_per_epoch=int(state["source"]["samples_per_epoch"]),
        global_batch_size=global_batch(state["engine"]),
    )
    if state["step"] < num_steps:
        return None
    checkpoint = find_checkpoint(run_dir, world)
    if checkpoint is None or step_of(checkpoint) != state["step"]:
        return None  # the newest is damaged: the run goes on from the one before
    settings = [c for c in before.changes if "." in c.name and not c.name.startswith("software.")]
    if settings:
        logger.warning("the run is finished, so nothing of this has an effect: %s", "; ".join(map(str, settings)))
    lines = newest_metrics(run_dir, 1, [])
    loss = state.get("loss", lines[-1].get(names.LOSS) if lines else None)  # checkpoints before 0.3 lack it
    return PretrainSummary(
        status="finished",
        signal=None,
        step=state["step"],
        num_steps=num_steps,
        skipped=int(state.get("skipped", 0)),
        loss=float("nan") if loss is None else float(loss),
        seconds=time.perf_counter() - began,
        peak_rss_gib=peak_rss_gib(),
        checkpoint=checkpoint,
    )
