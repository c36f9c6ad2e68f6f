"""Retries checkpoint writes while storage is full or unavailable, and decides which failed one ends the run.

All ranks decide alike without asking each other: `save_checkpoint` fails on all or on none, and what follows depends on
counts, never on clocks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from common.retry import growing_delays
from engine.checkpoint import CheckpointConfig
from engine.errors import CheckpointError

_FIRST_DELAY_S, _MAX_DELAY_S = 1.0, 30.0

logger = logging.getLogger("tandem.checkpoint")


class CheckpointRetry:
    """Writes checkpoints, again if need be.

    Attributes:
        failures: checkpoints in a row that could not be written.
    """

    def __init__(self, config: CheckpointConfig) -> None:
        self.failures = 0
        self._config = config

    def write(self, save: Callable[[], Path], *, must: bool) -> Path | None:
        """Write one; None if it failed and the run continues without it.

        Args:
            save: writes it, see `save_checkpoint`.
            must: the run ends after it, so that giving up would lose what was trained since the one before.

        Raises:
            CheckpointError: too many failures in a row, or one that must be there failed for `retry_min` minutes.
        """
        delays = growing_delays(_FIRST_DELAY_S, _MAX_DELAY_S, self._config.retry_min * 60) if must else iter(())
        while True:
            try:
                written = save()
            except CheckpointError as error:
                delay = next(delays, None)
                if delay is not None:
                    logger.warning("%s\ntrying again in %.0f s", error, delay)
                    time.sleep(delay)
                    continue
                self.failures += 1
                if must or self.failures > self._config.max_failures:
                    raise
                logger.warning(
                    "%s\nthe run continues; failures in a row: %d, of which checkpoint.max_failures allows %d",
                    error,
                    self.failures,
                    self._config.max_failures,
                )
                return None
            self.failures = 0
            return written
