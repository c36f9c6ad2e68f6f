"""Chooses the micro-batch of a run that continues on another number of processes, so that its global batch stays.

`data.micro_batch_size` is the run's setting, for the number of processes that it began with. On another number the
launcher derives the micro-batch, so the same command and the same config continue the run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from configs.load import ConfigError
from configs.runs import RunConfig
from engine.distributed import World
from engine.reshard import global_batch
from launchers.training.continuing import Continued

logger = logging.getLogger("tandem.pretrain")

_LISTED = 8
"""Numbers of processes that a message lists, those nearest to the one that does not work."""


def fit_micro_batch(config: RunConfig, world: World, run: Continued | None) -> int:
    """Samples that a process takes in a forward pass, and a line in the log where that is not the run's setting.

    Raises:
        ConfigError: the run's global batch cannot be kept on this number of processes, or not with these settings.
    """
    if run is None or "engine" not in run.state:
        return config.data.micro_batch_size
    before, resolved = run.state["engine"], run.resolved
    setting = (resolved["data"]["micro_batch_size"], resolved["engine"]["accumulation_steps"])
    now = {
        "micro_batch_size": config.data.micro_batch_size,
        "accumulation_steps": config.engine.accumulation_steps,
        "world_size": world.world_size,
    }
    micro = choose_micro_batch(before, now, setting)
    if world.is_main and world.world_size != before["world_size"]:
        logger.info(
            "continuing on %d processes instead of %d: micro-batch %d -> %d keeps the global batch of %d",
            world.world_size,
            before["world_size"],
            before["micro_batch_size"],
            micro,
            global_batch(before),
        )
        _warn_of_other_losses(config)
    return micro


def choose_micro_batch(before: Mapping[str, Any], now: Mapping[str, Any], setting: tuple[int, int]) -> int:
    """The micro-batch that keeps the samples per update.

    `before` and `now` hold micro_batch_size, world_size and accumulation_steps, as the checkpoint's run used them and
    as this start has them configured; `setting` is what that run had configured of the first and the last.

    Raises:
        ConfigError: the samples per update do not divide, or the settings were changed and do not fit.
    """
    total, micro = global_batch(before), int(now["micro_batch_size"])
    if global_batch(now) == total:  # the setting fits as it is
        return micro
    processes, steps = int(now["world_size"]), int(now["accumulation_steps"])
    if (micro, steps) == setting and total % (processes * steps) == 0:
        return total // (processes * steps)
    if total % processes:
        what = f"{processes} processes cannot share them equally"
        remedies = [f"start it on {_numbers(total // steps if total % steps == 0 else total, processes)} processes"]
    else:
        what = f"{micro} samples x {processes} processes x {steps} micro-batches make {global_batch(now)}"
        share = total // processes
        pairs = [(share // n, n) for n in range(1, share + 1) if share % n == 0][:3]
        remedies = [f"data.micro_batch_size={size} engine.accumulation_steps={n}" for size, n in pairs]
    raise ConfigError(
        f"data.micro_batch_size: the run takes {total} samples per update ({before['micro_batch_size']} x "
        f"{before['world_size']} processes x {before['accumulation_steps']} micro-batches), but {what}; "
        f"{', or '.join(remedies)}{'' if total % processes else ' keeps it'}, or begin in another run folder"
    )


def _numbers(total: int, near: int) -> str:
    fitting = sorted((n for n in range(1, total + 1) if total % n == 0), key=lambda n: abs(n - near))
    *some, last = map(str, sorted(fitting[:_LISTED]))
    return f"{', '.join(some)} or {last}" if some else last


def _warn_of_other_losses(config: RunConfig) -> None:
    if config.method.gather_negatives is False:
        logger.warning(
            "method.gather_negatives=false: each process contrasts its own samples only, so the loss depends on the "
            "number of processes and is not that of the run before"
        )
    if not config.engine.sync_bn:
        logger.warning(
            "engine.sync_bn=false: BatchNorm's statistics come from each process' own samples, so the loss depends on "
            "the number of processes; running statistics continue from those of rank 0"
        )
