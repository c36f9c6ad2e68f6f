"""The compiled kernels, or the reason why there are none."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.native import library

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-std=c++17", "-pthread", "-ffp-contract=fast")
"""Products and sums may be fused here: unlike in other native sources nothing in Python has to give the same bits."""


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The library; None where it cannot be built, which is said once a process."""
    found = library(SOURCE, "sparse convolution by torch, two to four times slower on the CPU", flags=FLAGS)
    if found is not None:
        found.tandem_instructions.restype = ctypes.c_char_p
    return found


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a contiguous CPU tensor's numbers lie; null for None.

    Raises:
        ValueError: the tensor is not contiguous or not on the CPU.
    """
    if tensor is None:
        return ctypes.c_void_p(None)
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"a native kernel got a tensor on {tensor.device} with strides {tensor.stride()}")
    return ctypes.c_void_p(tensor.data_ptr())


def declare(name: str, arguments: Sequence[Any], result: Any = None) -> Any:
    """A function of the library with its types, for a module that has made sure that there is a library."""
    found = kernels()
    if found is None:
        raise RuntimeError("there are no native kernels here")
    function = found[name]  # an object of its own, unlike the attribute
    function.argtypes, function.restype = list(arguments), result
    return function


_kept: list[int] = []
"""Threads of the kernels inside of `torch_on_one_thread`; for all threads, as a backward pass may have its own."""


def threads() -> int:
    """Threads that a kernel may use: torch's setting, outside of `torch_on_one_thread`."""
    return _kept[-1] if _kept else torch.get_num_threads()


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """While inside, torch's own operations run on one thread, and the kernels keep as many as torch had.

    Around the kernels a sparse network has hundreds of small operations a step. OpenMP makes each of them wait until
    all its threads have come, for milliseconds where another process has the core. The kernels wait for nobody who
    comes late (`pool.h`). Besides, sums of torch's depend on the number of its threads, those of the kernels do not.
    """
    before = torch.get_num_threads()
    _kept.append(threads())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _kept.pop()


def threads_for_points(device: torch.device) -> AbstractContextManager[None]:
    """Around work of sparse networks without an image network: `torch_on_one_thread` where the kernels do that work."""
    return torch_on_one_thread() if device.type == "cpu" and kernels() is not None else nullcontext()
