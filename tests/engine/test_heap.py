"""Large tensors leave no holes in the heap."""

from __future__ import annotations

import gc

import psutil
import pytest
import torch

from engine.heap import map_large_tensors


def grown_mib(count: int, num_bytes: int) -> float:
    """Resident memory that is left when every other of many tensors has died."""
    gc.collect()
    before = psutil.Process().memory_info().rss
    tensors = [torch.ones(num_bytes, dtype=torch.uint8) for _ in range(count)]
    del tensors[::2]
    left = psutil.Process().memory_info().rss - before
    assert len(tensors) == count // 2
    return left / 2**20


def test_memory_of_large_tensors_goes_back_at_once() -> None:
    """Between others that live, which pins it in the heap."""
    if not map_large_tensors():
        pytest.skip("the C library has no mallopt")
    assert grown_mib(16, 10 * 2**20) == pytest.approx(80, abs=15)
