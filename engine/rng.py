"""State of all random number generators of a process, as tensors and plain numbers (loadable with weights_only)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def get_rng_state() -> dict[str, Any]:
    """States of python's, numpy's and torch's generators (CUDA: the current device)."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(kind), [int(k) for k in keys], int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Continue where `get_rng_state` was called."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_everything(seed: int, rank: int, step: int = 0) -> None:
    """Seed python, numpy and torch, each rank differently.

    `step` is not 0 where a run continues on processes that have no saved states of their own.
    """
    mixed = np.random.SeedSequence([seed, rank, step]).generate_state(1, dtype=np.uint32)
    random.seed(int(mixed[0]))
    np.random.seed(int(mixed[0]))
    torch.manual_seed(int(mixed[0]))
