"""One run folder, one run: `<run>/run.lock` is held by rank 0 for as long as it trains. No torch import."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from common import file_lock
from common.file_lock import FileLock
from common.run_files import LOCK_FILE
from engine.errors import RunLockedError

POLL_S = 0.5
logger = logging.getLogger("tandem.pretrain")


class RunLock:
    """Holds a run's folder inside a `with` block.

    Attributes:
        path: the lock file.
    """

    def __init__(
        self, run_dir: str | Path, *, wait_s: float, job: str | None = None, stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Nothing is touched before the `with` block begins.

        Args:
            run_dir: folder of the run.
            wait_s: how long to wait for a holder that may be about to end, seconds.
            job: SLURM's id of this job, shown to whom we keep out.
            stop: asked while waiting; True ends the wait at once.
        """
        self.path = Path(run_dir) / LOCK_FILE
        self._lock = FileLock(self.path, job=job)
        self._wait_s, self._stop = wait_s, stop

    def __enter__(self) -> RunLock:
        """Take the lock.

        Raises:
            RunLockedError: another process holds it.
            OSError: the folder cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder, deadline, announced = self.path.parent, time.monotonic() + self._wait_s, False
        while not self._lock.take():
            if time.monotonic() >= deadline or self._stop():
                raise RunLockedError(
                    f"{folder} is being trained by {self._lock.holder}; got no lock on {self.path.name} in "
                    f"{self._wait_s:.0f} s. Wait for that job or cancel it, or choose another run_dir; two jobs in one "
                    "folder would spoil each other's checkpoints"
                )
            if not announced:
                logger.info("%s is still held by %s; waiting up to %.0f s", folder, self._lock.holder, self._wait_s)
                announced = True
            time.sleep(min(POLL_S, max(deadline - time.monotonic(), 0.01)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._lock.release()


def holder(run_dir: str | Path) -> str | None:
    """Who trains in a folder at this moment, in words; None if no process does or there is no lock file."""
    return file_lock.holder(Path(run_dir) / LOCK_FILE)
