"""Memory that the C library keeps: without this, a run on the CPU holds more than twice what it uses.

Tensors change their size with every batch. glibc serves them from one heap, of which it gives back the end alone: what
lives long (the kernels that oneDNN prepares for each new shape, some 0.5 MB each; Python's objects) keeps the holes
apart, and the heap grows for hundreds of updates. A tensor with a mapping of its own goes back to the kernel when it
dies. glibc decides by size, with a limit that it raises up to 32 MiB as it sees tensors die. Here it is fixed: small
and medium tensors stay in the heap, where memory is warm, and the few large ones cost a mapping each.
"""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
"""`malloc.h`."""
MAPPED_BYTES = 8 * 2**20
"""Tensors from this size on have their own mapping."""


def map_large_tensors(num_bytes: int = MAPPED_BYTES) -> bool:
    """Let large tensors leave no holes in the heap of this process; False where the C library has no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, num_bytes))
