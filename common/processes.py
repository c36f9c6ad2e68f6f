"""Worker processes that end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing import connection


def end_with_parent() -> None:
    """Make this worker end when its parent is gone; after `kill -9` it would wait for work for ever.

    torch's own check looks at the parent's process id, which is the fork server's and outlives a killed trainer.
    """
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)  # sys.exit would end this thread only
