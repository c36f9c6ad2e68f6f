"""Several optimisers in one run: parts of the objective ("towers") with their own optimiser, rates and layer decay.

A tower is named by the beginning of its parameters' names: "image_backbone", "backbone", "backbone.encoder". A
parameter belongs to the longest name that fits; what no name fits is trained as the run says. Every tower follows the
run's schedule: its rate in an update is its own peak times the schedule's factor.

One torch optimiser holds the groups of all towers and hands each to torch's own SGD or AdamW arithmetic. DeepSpeed's
ZeRO, which puts flat buffers into the place of a group's parameters, need not know. A group has one kind, so its
buffers have that kind's state, and a checkpoint can be resharded for other numbers of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from common.ranges import above, at_least, at_most, below, positive
from engine.eager_optim import leave_dynamo_out
from engine.interfaces import HasLayers

Kind = Literal["sgd", "adamw"]

NUMBERS: dict[str, tuple[str, ...]] = {"sgd": ("momentum", "dampening"), "adamw": ("betas", "eps")}
"""Settings of each kind, besides the rate and the weight decay, that a group carries."""


@dataclass(frozen=True, kw_only=True)
class TowerOptimConfig:
    """How a tower is trained. null: as the run's `optim` section says.

    Attributes:
        name: "sgd" or "adamw".
        lr: peak learning rate; where `optim.reference_batch_size` is set, at that batch size, as `optim.lr` is.
        momentum: of SGD.
        dampening: of SGD's momentum.
        betas: decay of AdamW's two running means.
        eps: added to AdamW's denominator.
        weight_decay: L2 term of SGD, decoupled decay of AdamW.
        layer_decay: a layer's rate is the tower's times this to the power of the layers above it; null or 1: all alike.
            The tower, or one module inside it, must number its layers (`engine.interfaces.HasLayers`); what lies
            outside of that module (a head) counts as above all of them.
    """

    name: Kind | None = None
    lr: float | None = None
    momentum: float | None = None
    dampening: float | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None
    weight_decay: float | None = None
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        above(self, layer_decay=0)
        at_most(self, layer_decay=1)


def check_numbers(config: object) -> None:
    """Check the ranges of an optimiser's settings; None passes.

    Raises:
        RangeError: names the setting.
    """
    positive(config, "lr", "eps")
    at_least(config, weight_decay=0, momentum=0, dampening=0, betas=0)
    below(config, momentum=1, dampening=1, betas=1)


# ---- which parameter belongs to which tower


def tower_of(name: str, towers: Iterable[str]) -> str | None:
    """The longest tower name that a parameter's name begins with; None where none fits.

    Whole parts between dots count: "backbone" fits "backbone.stem.weight" and not "backbone2.weight".
    """
    fitting = [tower for tower in towers if name == tower or name.startswith(f"{tower}.")]
    return max(fitting, key=len, default=None)


def check_towers(names: Iterable[str], towers: Iterable[str]) -> None:
    """Refuse towers that none of the trainable parameters, by their names, belongs to.

    Raises:
        ValueError: names the tower and what there is.
    """
    names, towers = list(names), list(towers)
    used = {tower_of(name, towers) for name in names}
    for tower in towers:
        if tower not in used:
            known = ", ".join(sorted({name.split(".")[0] for name in names}))
            raise ValueError(
                f"towers.{tower}: no trainable parameter of the objective begins with {tower!r} (or longer names take "
                f"them all), expected one of {known}, or a longer beginning of a parameter's name"
            )


def layer_scales(objective: nn.Module, tower: str, decay: float) -> Callable[[str], float]:
    """What multiplies the rate of each parameter of a tower, by its full name: decay ** (layers above its own).

    Raises:
        ValueError: nothing in the tower numbers its layers, or several modules do.
    """
    try:
        found = dict(_numbered(objective.get_submodule(tower), tower))
    except AttributeError:  # the name of a parameter, or the beginning of one
        found = {}
    if len(found) != 1:
        what = "no module in it" if not found else "each of " + ", ".join(sorted(found))
        raise ValueError(
            f"layer_decay={decay} of {tower}: expected one module that numbers its layers (num_layers, "
            f"layer_of(name)), but {what} does; set layer_decay for a tower that has one"
        )
    ((place, module),) = found.items()

    def scale(name: str) -> float:
        if not name.startswith(f"{place}."):
            return 1.0
        layer = module.layer_of(name.removeprefix(f"{place}."))
        if not 0 <= layer < module.num_layers:
            raise ValueError(f"{place}: layer_of({name!r}) is {layer}, expected 0 to {module.num_layers - 1}")
        return float(decay ** (module.num_layers - 1 - layer))

    return scale


def _numbered(module: nn.Module, place: str) -> Iterator[tuple[str, HasLayers]]:
    """The outermost modules that number their layers."""
    if isinstance(module, HasLayers):
        yield place, module
        return
    for name, child in module.named_children():
        yield from _numbered(child, f"{place}.{name}")


# ---- the optimiser


def fused(params: Sequence[Tensor]) -> bool:
    """Whether torch's fused AdamW takes these parameters: on the CPU, where it needs a third of the time.

    On CUDA torch chooses itself: its fused form keeps the count of updates there, the other one on the CPU, and a run
    must be able to go on where another one left off.
    """
    return all(p.device.type == "cpu" and p.is_floating_point() for p in params)


def lay_gradients_like(params: Iterable[Tensor]) -> None:
    """Give each gradient its parameter's strides: torch 2.13's fused AdamW goes through both as they lie in memory.

    Its form for CUDA refuses other strides, that for the CPU silently updates the wrong elements
    (findings/torch_fused_adamw_strides.sh). Autograd and ZeRO keep them alike; this costs a comparison.
    """
    for p in params:
        if p.grad is not None and p.grad.stride() != p.stride():
            p.grad = torch.empty_like(p).copy_(p.grad)


class TowersOptimizer(torch.optim.Optimizer):
    """SGD and AdamW side by side: a group's `kind` says which.

    The arithmetic is torch's own, so a tower is trained bit for bit as by `torch.optim.SGD` or `torch.optim.AdamW`.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        """Take groups with params, kind, weight_decay and the numbers of their kind (`NUMBERS`).

        Raises:
            ValueError: a group lacks a number or has an unknown kind.
        """
        for group in groups:
            kind = group.get("kind")
            if kind not in NUMBERS:
                raise ValueError(f"a parameter group's kind is {kind!r}, expected one of {', '.join(NUMBERS)}")
            missing = [key for key in ("weight_decay", *NUMBERS[kind]) if key not in group]
            if missing:
                raise ValueError(f"a parameter group of kind {kind!r} lacks {', '.join(missing)}")
        leave_dynamo_out()
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient.

        Raises:
            ValueError: a closure is given.
        """
        if closure is not None:
            raise ValueError("TowersOptimizer.step() takes no closure: gradients must be there already")
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:  # at ZeRO 3 all groups but one are empty
                (_sgd_step if group["kind"] == "sgd" else _adamw_step)(group, params, self.state)


def _sgd_step(group: Mapping[str, Any], params: list[Tensor], state: Mapping[Any, dict[str, Any]]) -> None:
    moves = group["momentum"] != 0
    buffers: list[Tensor | None] = [state[p].get("momentum_buffer") if moves else None for p in params]
    sgd(
        params,
        [p.grad for p in params if p.grad is not None],
        buffers,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        dampening=group["dampening"],
        nesterov=False,
        maximize=False,
    )
    if moves:
        for p, buffer in zip(params, buffers, strict=True):
            state[p]["momentum_buffer"] = buffer


def _adamw_step(group: Mapping[str, Any], params: list[Tensor], state: Mapping[Any, dict[str, Any]]) -> None:
    for p in params:
        if not state[p]:
            state[p]["step"] = torch.tensor(0.0)  # on the CPU, as torch keeps it: no launch of a kernel to count
            state[p]["exp_avg"], state[p]["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
    beta1, beta2 = group["betas"]
    fuse = fused(params)
    if fuse:
        lay_gradients_like(params)
    adamw(
        params,
        [p.grad for p in params if p.grad is not None],
        [state[p]["exp_avg"] for p in params],
        [state[p]["exp_avg_sq"] for p in params],
        [],
        [state[p]["step"] for p in params],
        fused=fuse or None,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        beta1=beta1,
        beta2=beta2,
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )
