"""torch's optimizers without its compiler.

Nothing here is compiled by torch, yet torch 2.13 imports its compiler (`torch._dynamo` and 800 other modules) for the
sole purpose of keeping it away from the methods of optimizers, which was a third of the processor time in which a run
starts, in every process. Arithmetic and state are torch's own.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch

_KEPT_AWAY = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def leave_dynamo_out() -> None:
    """Let the methods that all optimizers share be called as they are, unless the compiler is loaded already.

    torch looks for the uncompiled form of a method at the method itself, under `__dynamo_disable`, and imports the
    compiler to make one where there is none. A torch that does this in another way only starts more slowly.
    """
    if "torch._dynamo" in sys.modules:
        return
    for name in _KEPT_AWAY:
        plain = inspect.unwrap(getattr(torch.optim.Optimizer, name))
        plain.__dict__.setdefault("__dynamo_disable", plain)


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`."""

    def __init__(self, *args: Any, **numbers: Any) -> None:
        """As torch's."""
        leave_dynamo_out()
        super().__init__(*args, **numbers)

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class SGD(torch.optim.SGD):
    """`torch.optim.SGD`."""

    def __init__(self, *args: Any, **numbers: Any) -> None:
        """As torch's."""
        leave_dynamo_out()
        super().__init__(*args, **numbers)

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))
