from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.distributed import World, init_distributed, shutdown


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """One process group for all in-process tests: DeepSpeed keeps handles to it."""
    yield init_distributed("cpu")
    shutdown()
