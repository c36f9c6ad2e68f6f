"""Optimizers and parameter groups.

The learning rate of a group in an update is peak * lr_scale(step) * the group's own `lr_scale`. DeepSpeed gets the
optimizer as an object, so it builds no kernel of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from engine.protocols import HasParamGroups


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and its numbers. The defaults are SLidR's (Sautier et al., CVPR 2022, supplementary).

    Attributes:
        name: "sgd" or "adamw".
        lr: peak learning rate, at `reference_batch_size` samples an update where that is set.
        momentum: of SGD.
        dampening: of SGD's momentum.
        betas: decay of AdamW's two running means.
        eps: added to AdamW's denominator.
        weight_decay: L2 term of SGD, decoupled decay of AdamW.
        decay_norms_and_biases: whether parameters with fewer than 2 dimensions decay too.
        reference_batch_size: samples an update that `lr` was found for; the rate then grows linearly with the
            run's global batch size (Goyal et al. 2017). null: `lr` is taken as it is.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.5
    momentum: float = 0.9
    dampening: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    decay_norms_and_biases: bool = True
    reference_batch_size: int | None = None

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr}, expected a positive number")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay={self.weight_decay}, expected 0 or more")
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps}, expected a positive number")
        shares = {"momentum": self.momentum, "dampening": self.dampening}
        shares |= {f"betas[{i}]": beta for i, beta in enumerate(self.betas)}
        for field, value in shares.items():
            if not 0 <= value < 1:
                raise ValueError(f"{field}={value}, expected 0 <= {field} < 1")
        if self.reference_batch_size is not None and self.reference_batch_size < 1:
            raise ValueError(f"reference_batch_size={self.reference_batch_size}, expected at least 1 sample, or null")


def peak_lr(config: OptimConfig, global_batch_size: int) -> float:
    """Peak learning rate of a run.

    Args:
        config: optimizer settings.
        global_batch_size: samples an update.
    """
    if config.reference_batch_size is None:
        return config.lr
    return config.lr * global_batch_size / config.reference_batch_size


def param_groups(objective: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Trainable parameters in groups, each with `lr_scale` and `weight_decay`.

    Args:
        objective: its own `param_groups()` is used where it has one, else all parameters are one group.
        config: optimizer settings.

    Raises:
        ValueError: nothing to train, or the objective's groups miss or repeat a trainable parameter.
    """
    names = {p: name for name, p in objective.named_parameters() if p.requires_grad}
    if not names:
        raise ValueError("the objective has no trainable parameter (requires_grad is False everywhere)")
    given: list[dict[str, Any]] = [{"params": list(names)}]
    if isinstance(objective, HasParamGroups):
        given = [dict(group) for group in objective.param_groups()]
    groups: list[dict[str, Any]] = []
    for group in given:
        trainable = [p for p in _listed(group["params"]) if p.requires_grad]
        rest = {"lr_scale": 1.0, "weight_decay": config.weight_decay} | {
            k: v for k, v in group.items() if k != "params"
        }
        small = [] if config.decay_norms_and_biases else [p for p in trainable if p.ndim < 2]
        small_ids = {id(p) for p in small}
        groups.append(rest | {"params": [p for p in trainable if id(p) not in small_ids]})
        groups.append(rest | {"params": small, "weight_decay": 0.0})
    _check_cover(names, [p for group in groups for p in group["params"]])
    return [group for group in groups if group["params"]]


def build_optimizer(objective: nn.Module, config: OptimConfig, lr: float) -> torch.optim.Optimizer:
    """The optimizer over the objective's trainable parameters.

    Args:
        objective: what is trained.
        config: optimizer settings.
        lr: peak learning rate (see `peak_lr`).

    Raises:
        ValueError: see `param_groups`.
    """
    groups = param_groups(objective, config)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.eps)
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, dampening=config.dampening)


def set_lr(groups: Iterable[dict[str, Any]], lr: float) -> None:
    """Set the rate of the coming update.

    Args:
        groups: the optimizer's groups.
        lr: rate of a group with lr_scale 1.
    """
    for group in groups:
        group["lr"] = lr * group["lr_scale"]


def _listed(params: object) -> list[nn.Parameter]:
    return [params] if isinstance(params, nn.Parameter) else list(params)  # type: ignore[call-overload]


def _check_cover(names: dict[nn.Parameter, str], grouped: list[nn.Parameter]) -> None:
    seen: set[int] = set()
    for p in grouped:
        if id(p) in seen:
            raise ValueError(f"param_groups(): {names.get(p, 'a parameter')} is in two groups, expected in one")
        seen.add(id(p))
    missing = [name for p, name in names.items() if id(p) not in seen]
    if missing:
        raise ValueError(
            f"param_groups(): {len(missing)} trainable parameters are in no group (the first: {missing[0]}); "
            "add them or set requires_grad=False"
        )
