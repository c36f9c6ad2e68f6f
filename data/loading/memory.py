"""Memory for the large tensors of a batch: written once, in the worker, where the trainer reads it."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

LARGE_BYTES = 1 << 20
"""From here on a tensor is handed over by itself: a file descriptor and a round trip cost half a millisecond, copying a
megabyte into new memory as much."""


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT_BYTES = 256 << 20


def keep_freed_memory() -> None:
    """Let this process use freed memory again, where the C library can be told to (glibc).

    By default blocks of megabytes, such as a decoded image, go back to the system when they are freed, and each of
    their pages costs a fault of up to 2 microseconds when the next one is written.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def room(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor without content; one that is large, and made by a worker, lies in memory that the trainer shares."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE_BYTES or get_worker_info() is None:
        return torch.empty(tuple(shape), dtype=dtype)
    # `share_memory_` of an empty tensor would copy what is not there yet.
    storage = torch.UntypedStorage._new_shared(size)
    return torch.empty(0, dtype=dtype).set_(storage).view(tuple(shape))


def handed_over_alone(tensor: Tensor) -> bool:
    """Whether a tensor of a batch is sent as it lies in memory."""
    return (
        tensor.nbytes >= LARGE_BYTES and tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    )
