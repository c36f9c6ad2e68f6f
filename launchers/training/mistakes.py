"""A mistake on one rank, before it even has a config, ends all ranks at once. Light: the slow imports come with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_LAUNCHED = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Variables of the launchers that start several processes: how many."""


@contextmanager
def mistakes_told() -> Iterator[None]:
    """Tell the other ranks of an error inside the block, where there are any; they would wait for this one."""
    try:
        yield
    except (Exception, SystemExit) as error:
        mistake = not isinstance(error, SystemExit) or error.code not in (0, None)
        if mistake and any(os.environ.get(name, "1") != "1" for name in _LAUNCHED):
            from configs.load import ConfigError
            from launchers.training.same_run import tell_mistake

            unread = ConfigError("its command line cannot be read; its own output says why")
            tell_mistake(unread if isinstance(error, SystemExit) else error)
        raise
