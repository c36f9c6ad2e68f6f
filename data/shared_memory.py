"""Large read-only tables that all workers share: one copy a node and run instead of one a worker.

A prepared set of 28 million sweeps has 2 GiB of tables. Pickled to a worker, they would be there once more for each.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

if TYPE_CHECKING:  # sets are prepared and verified without torch, which takes seconds
    import torch

MIN_BYTES = 4 << 20
"""Smaller tables are pickled: a copy costs less than a shared segment and its file descriptor."""


@dataclass(frozen=True)
class _Table:
    """A table in shared memory; torch's pickler hands over where it is, any other pickler what it holds."""

    memory: torch.Tensor
    dtype: str
    shape: tuple[int, ...]

    def array(self) -> Shaped[np.ndarray, "..."]:
        array = self.memory.numpy().view(self.dtype).reshape(self.shape)
        array.flags.writeable = False
        return array


@dataclass(frozen=True)
class _Mapped:
    """A table in a file that is mapped: each process maps it for itself, and the machine has its pages once."""

    path: str
    identity: tuple[int, int, int]
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @staticmethod
    def of(array: np.memmap[Any, Any]) -> _Mapped:
        # Where it begins in the file, also of a part of what was mapped, which has the offset of the whole.
        begin = np.frombuffer(array._mmap, np.uint8).ctypes.data  # type: ignore[attr-defined]
        offset = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY + array.ctypes.data - begin
        path = str(array.filename)
        return _Mapped(path, _identity(path), offset, array.dtype.str, array.shape)

    def array(self) -> Shaped[np.ndarray, "..."]:
        if _identity(self.path) != self.identity:
            raise OSError(f"{self.path} was replaced while it was in use; start again")
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


def _identity(path: str) -> tuple[int, int, int]:
    """Changes when another file takes the place of this one."""
    state = os.stat(path)
    return state.st_ino, state.st_size, state.st_mtime_ns


class SharesTables:
    """An object whose large arrays move into shared memory when it is first handed to another process.

    Arrays that are mapped from a file are mapped there again.
    """

    def __getstate__(self) -> dict[str, Any]:
        """All attributes; of shared arrays, where they are."""
        state = self.__dict__
        tables = state.setdefault("_tables", {})
        for name, value in list(state.items()):
            if isinstance(value, np.memmap) and value.flags.c_contiguous and name not in tables:
                tables[name] = _Mapped.of(value)
            elif isinstance(value, np.ndarray) and value.nbytes >= MIN_BYTES and name not in tables:
                tables[name] = _shared(value)
                state[name] = tables[name].array()  # this process needs no second copy either
        return {name: value for name, value in state.items() if name not in tables}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The attributes again."""
        arrays = {name: table.array() for name, table in state["_tables"].items()}
        self.__dict__.update(state | arrays)


def _shared(array: Shaped[np.ndarray, "..."]) -> _Table:
    import torch

    memory = torch.empty(array.nbytes, dtype=torch.uint8).share_memory_()
    memory.numpy()[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return _Table(memory, array.dtype.str, array.shape)
