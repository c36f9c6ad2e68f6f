"""Large blocks of memory leave no holes in the heap."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tells of glibc")

CHILD = """
import psutil, sys
from engine.heap import map_large_tensors
if sys.argv[1] == "mapped":
    assert map_large_tensors()
for _ in range(3):
    b"x" * (31 << 20)  # glibc raises its own limit as it sees these die
before = psutil.Process().memory_info().rss
blocks = [b"x" * (10 << 20) for _ in range(16)]
del blocks[::2]  # those that live pin the holes between them
print(round((psutil.Process().memory_info().rss - before) / 2**20))
"""


def left_mib(how: str) -> int:
    """Resident memory that is left of 160 MiB in 16 blocks when every other has died, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", CHILD, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_of_large_blocks_goes_back_at_once() -> None:
    assert left_mib("mapped") == pytest.approx(80, abs=5)


def test_without_it_the_heap_keeps_them() -> None:
    """If this fails, the C library has learnt better and `engine.heap` can go."""
    assert left_mib("as it is") > 120


FAULTS = """
import resource
from engine.heap import map_large_tensors
assert map_large_tensors()
for number in range(60):
    if number == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"x" * (4 << 20) for _ in range(8)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_the_end_of_the_heap_stays_warm() -> None:
    """50 rounds of 32 MiB are 400,000 pages, if each comes from the kernel again."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000
