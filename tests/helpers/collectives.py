"""Counts and times what goes through torch.distributed: calls, bytes, seconds in and before each collective.

`record()` must run before DeepSpeed is imported, which keeps its own references to the functions.

Bytes are those that a rank receives with ring algorithms (Thakur et al. 2005): all-reduce of n bytes 2 n (N-1)/N,
all-gather to n and reduce-scatter of n bytes n (N-1)/N, broadcast n.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

REDUCING, GATHERING, SCATTERING, SENDING = "all-reduce", "all-gather", "reduce-scatter", "broadcast"
FUNCTIONS = {
    "all_reduce": REDUCING,
    "all_gather": GATHERING,
    "all_gather_into_tensor": GATHERING,
    "reduce_scatter_tensor": SCATTERING,
    "reduce_scatter": SCATTERING,
    "reduce": SENDING,
    "broadcast": SENDING,
}


@dataclass
class Record:
    """What went through since `clear()`.

    Attributes:
        split: meet the other ranks before each collective, so that waiting for them is told from moving data. Costs
            one more small collective each.
        calls: by kind.
        received: bytes by kind.
        small: collectives of at most `SMALL_BYTES`.
        moving_s: seconds inside collectives (and waiting for peers, without `split`).
        waiting_s: seconds until all ranks had come, with `split`.
    """

    split: bool = False
    on: bool = False
    calls: dict[str, int] = field(default_factory=dict)
    received: dict[str, float] = field(default_factory=dict)
    small: int = 0
    moving_s: float = 0.0
    waiting_s: float = 0.0

    SMALL_BYTES = 16_384

    def clear(self) -> None:
        self.calls, self.received = {}, {}
        self.small, self.moving_s, self.waiting_s = 0, 0.0, 0.0

    def add(self, kind: str, num_bytes: float) -> None:
        share = (dist.get_world_size() - 1) / dist.get_world_size()
        factor = {REDUCING: 2 * share, GATHERING: share, SCATTERING: share, SENDING: 1.0}[kind]
        self.calls[kind] = self.calls.get(kind, 0) + 1
        self.received[kind] = self.received.get(kind, 0.0) + factor * num_bytes
        self.small += num_bytes <= self.SMALL_BYTES


class _TimedWork:
    """A collective under way; waiting for it counts as moving data."""

    def __init__(self, work: Any, record: Record) -> None:
        self._work, self._record = work, record

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = self._work.wait(*args, **kwargs)
        self._record.moving_s += time.perf_counter() - began
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def record() -> Record:
    """Put counters around torch.distributed's functions, for the rest of the process."""
    kept = Record()
    for name, kind in FUNCTIONS.items():
        setattr(dist, name, _counted(getattr(dist, name), kind, kept))
    return kept


def _counted(function: Callable[..., Any], kind: str, kept: Record) -> Callable[..., Any]:
    meet = dist.all_reduce  # before it is replaced: its own calls are not counted

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not kept.on:
            return function(*args, **kwargs)
        values = [value for value in (*args, *kwargs.values()) if _tensors(value)]
        if kept.split:
            began = time.perf_counter()
            meet(torch.zeros(1, device=_device(values)))
            kept.waiting_s += time.perf_counter() - began
        kept.add(kind, _num_bytes(kind, values))
        began = time.perf_counter()
        work = function(*args, **kwargs)
        kept.moving_s += time.perf_counter() - began
        return work if work is None else _TimedWork(work, kept)

    return call


def _num_bytes(kind: str, values: list[Any]) -> float:
    """Size of the whole: of the larger one of a gather's or scatter's two sides."""
    sizes = [sum(t.numel() * t.element_size() for t in _tensors(value)) for value in values]
    return float(max(sizes)) if kind in (GATHERING, SCATTERING) else float(sizes[0])


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for t in value if isinstance(t, torch.Tensor)] if isinstance(value, list | tuple) else []


def _device(values: list[Any]) -> torch.device:
    return _tensors(values[0])[0].device
