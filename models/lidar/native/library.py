"""The compiled kernels, or the reason why there are none."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
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


def threads() -> int:
    """Threads that a kernel may use: torch's setting."""
    return torch.get_num_threads()
