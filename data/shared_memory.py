"""Large read-only tables that all workers share: one copy a node and run instead of one a worker.

A prepared set of 28 million sweeps has 2 GiB of tables. Pickled to a worker, they would be there once more for each.
"""

from __future__ import annotations

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


class SharesTables:
    """An object whose large arrays move into shared memory when it is first handed to another process."""

    def __getstate__(self) -> dict[str, Any]:
        """All attributes; of shared arrays, where they are."""
        state = self.__dict__
        tables = state.setdefault("_tables", {})
        for name, value in list(state.items()):
            if isinstance(value, np.ndarray) and value.nbytes >= MIN_BYTES and name not in tables:
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
