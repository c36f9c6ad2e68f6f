"""Memory that the C library keeps: without this, a run on the CPU holds more than twice what it uses.

Tensors change their size with every batch. glibc serves them from one heap, of which it gives back the end alone: what
lives long (the kernels that oneDNN prepares for each new shape, some 0.5 MB each; Python's objects) keeps the holes
apart, and the heap grows for hundreds of updates. A tensor with a mapping of its own goes back to the kernel when it
dies. glibc decides by size, with a limit that it raises up to 32 MiB as it sees tensors die. Here it is fixed: small
and medium tensors stay in the heap, where memory is warm, and the few large ones cost a mapping each.

With that limit fixed, glibc gives the heap's end back as soon as 128 KiB are free there, several times a step, and the
kernel clears each page anew for the next tensor. So an end of some size is kept.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""`malloc.h`."""
MAPPED_BYTES = 8 * 2**20
"""Tensors from this size on have their own mapping."""
KEPT_BYTES = 256 * 2**20
"""Free memory at the heap's end that stays with the process: what tensors of a step take and leave."""


def map_large_tensors(num_bytes: int = MAPPED_BYTES) -> bool:
    """Let large tensors leave no holes in the heap of this process; False where the C library has no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(option, value) for option, value in ((_M_MMAP_THRESHOLD, num_bytes), (_M_TRIM_THRESHOLD, KEPT_BYTES))
    )
