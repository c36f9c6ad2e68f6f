"""Optimizers and parameter groups.

The learning rate of a group in an update is peak * lr_scale(step) * the group's own `lr_scale`. DeepSpeed gets the
optimizer as an object, so it builds no kernel of its own. Parts of the objective can have an optimizer, rates and
decays of their own: `engine.tower_optim`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from common.ranges import at_least
from engine.eager_optim import SGD, AdamW
from engine.interfaces import HasParamGroups
from engine.tower_optim import (
    NUMBERS,
    TowerOptimConfig,
    TowersOptimizer,
    check_numbers,
    check_towers,
    fused,
    lay_gradients_like,
    layer_scales,
    tower_of,
)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and its numbers. The defaults are SLidR's (Sautier et al., CVPR 2022, supplementary).

    Attributes:
        name: "sgd" or "adamw".
        lr: peak learning rate, at `reference_batch_size` samples per update where that is set.
        momentum: of SGD.
        dampening: of SGD's momentum.
        betas: decay of AdamW's two running means.
        eps: added to AdamW's denominator.
        weight_decay: L2 term of SGD, decoupled decay of AdamW.
        decay_norms_and_biases: whether parameters with fewer than 2 dimensions decay too.
        reference_batch_size: samples per update that `lr` was found for; the rate then grows linearly with the
            run's global batch size (Goyal et al. 2017). null: `lr` is taken as it is.
        towers: beginning of parameters' names ("image_backbone") -> what is different for them.
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
    towers: dict[str, TowerOptimConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_numbers(self)
        at_least(self, "samples, or null", reference_batch_size=1)


def peak_lr(config: OptimConfig, global_batch_size: int) -> float:
    """Peak learning rate of a run."""
    if config.reference_batch_size is None:
        return config.lr
    return config.lr * global_batch_size / config.reference_batch_size


def optimizer_name(config: OptimConfig) -> str:
    """The run's optimizers in words: a run cannot continue with others."""
    others = {tower: own.name for tower, own in config.towers.items() if own.name not in (None, config.name)}
    return ", ".join([config.name, *(f"{tower}: {name}" for tower, name in sorted(others.items()))])


def state_numbers(config: OptimConfig) -> int:
    """Numbers that the optimizer keeps for a parameter; with towers, the most that any of them keeps."""
    settings = [_tower_settings(config, tower) for tower in ("", *config.towers)]
    return max(2 if s["kind"] == "adamw" else int(s["momentum"] > 0) for s in settings)


def param_groups(objective: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Trainable parameters in groups, each with `lr_scale` and `weight_decay`.

    Args:
        objective: its own `param_groups()` is used where it has one, else all parameters are one group.
        config: optimizer settings. With towers, a group holds parameters of one tower and one layer only and says
            all that its optimizer needs; an objective's own `lr_scale` multiplies the tower's rate, its own
            `weight_decay` replaces the tower's.

    Raises:
        ValueError: nothing to train, the objective's groups miss or repeat a trainable parameter, or a tower has none.
    """
    names = {p: name for name, p in objective.named_parameters() if p.requires_grad}
    if not names:
        raise ValueError("the objective has no trainable parameter (requires_grad is False everywhere)")
    given: list[dict[str, Any]] = [{"params": list(names)}]
    if isinstance(objective, HasParamGroups):
        given = [dict(group) for group in objective.param_groups()]
    if config.towers:
        check_towers(names.values(), config.towers)
        given = [part for group in given for part in _split_by_tower(group, objective, names, config)]
    groups: list[dict[str, Any]] = []
    for group in given:
        trainable = [p for p in _listed(group["params"]) if p.requires_grad]
        rest = {"lr_scale": 1.0, "weight_decay": config.weight_decay} | {
            k: v for k, v in group.items() if k != "params"
        }
        small = [] if config.decay_norms_and_biases else [p for p in trainable if p.ndim < 2]
        small_ids = {id(p) for p in small}
        groups.append(rest | {"params": [p for p in trainable if id(p) not in small_ids]})
        groups.append(rest | {"params": small, "weight_decay": 0.0})  # an empty group is dropped below
    _check_cover(names, [p for group in groups for p in group["params"]])
    return [group for group in groups if group["params"]]


def build_optimizer(objective: nn.Module, config: OptimConfig, lr: float) -> torch.optim.Optimizer:
    """The optimizer over the objective's trainable parameters.

    Raises:
        ValueError: see `param_groups`.
    """
    groups = param_groups(objective, config)
    if config.towers:
        return TowersOptimizer(groups, lr)
    if config.name == "adamw":
        return adamw(groups, lr=lr, betas=config.betas, eps=config.eps)
    return SGD(groups, lr=lr, momentum=config.momentum, dampening=config.dampening)


def adamw(groups: Sequence[dict[str, Any]], **numbers: Any) -> torch.optim.AdamW:
    """AdamW of torch, fused where its parameters are on the CPU; `numbers` are its own."""
    fuse = fused([p for group in groups for p in _listed(group["params"])])
    optimizer = AdamW(groups, fused=fuse or None, **numbers)
    if fuse:
        optimizer.register_step_pre_hook(_lay_gradients)
    return optimizer


def _lay_gradients(optimizer: torch.optim.Optimizer, *_: object) -> None:
    # The groups of now: ZeRO has put flat buffers into the place of their parameters.
    lay_gradients_like(p for group in optimizer.param_groups for p in group["params"])


def set_lr(groups: Iterable[dict[str, Any]], lr: float) -> None:
    """Set the rate of the coming update; `lr` is that of a group with lr_scale 1."""
    for group in groups:
        group["lr"] = lr * group["lr_scale"]


def in_form_of(groups: Sequence[Mapping[str, Any]], state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state, of another machine or version, with the form of AdamW that these groups have.

    torch reads from the state's own groups whether AdamW is fused, and puts its count of updates where that form needs
    it, which on CUDA is another place than for the other forms.
    """
    form = {key: groups[0][key] for key in ("fused",) if key in groups[0]}
    return {**state, "param_groups": [{**group, **form} for group in state["param_groups"]]}


@contextmanager
def momentum_of(groups: Sequence[dict[str, Any]], value: float | None) -> Iterator[None]:
    """Give all groups a momentum (SGD), or first beta (AdamW), for one update; None leaves them alone.

    Afterwards they have their configured one again, so that no checkpoint depends on where in a cycle it was written.
    """
    moved = ("betas", "momentum")
    configured: list[dict[str, Any]] = [{key: group[key] for key in moved if key in group} for group in groups]
    try:
        if value is not None:
            for group, own in zip(groups, configured, strict=True):
                group |= {"betas": (value, own["betas"][1])} if "betas" in own else {"momentum": value}
        yield
    finally:
        for group, own in zip(groups, configured, strict=True):
            group.update(own)


def _split_by_tower(
    group: dict[str, Any], objective: nn.Module, names: dict[nn.Parameter, str], config: OptimConfig
) -> list[dict[str, Any]]:
    """The group's trainable parameters, tower by tower and, with layer decay, rate by rate."""
    parts: dict[tuple[str, float], list[nn.Parameter]] = {}
    scales = {
        tower: layer_scales(objective, tower, own.layer_decay)
        for tower, own in config.towers.items()
        if own.layer_decay not in (None, 1.0)
    }
    for p in (p for p in _listed(group["params"]) if p.requires_grad):
        tower = tower_of(names.get(p, ""), config.towers) or ""
        scale = scales[tower](names[p]) if tower in scales else 1.0
        parts.setdefault((tower, scale), []).append(p)
    own_scale = group.get("lr_scale", 1.0)
    return [
        _tower_settings(config, tower)
        | {k: v for k, v in group.items() if k != "params"}
        | {"params": params, "lr_scale": own_scale * scale * _of_tower(config, tower, "lr") / config.lr}
        for (tower, scale), params in parts.items()
    ]


def _tower_settings(config: OptimConfig, tower: str) -> dict[str, Any]:
    """Kind, weight decay and the kind's numbers of a tower; "" is the run."""
    kind = _of_tower(config, tower, "name")
    return {"kind": kind} | {key: _of_tower(config, tower, key) for key in ("weight_decay", *NUMBERS[kind])}


def _of_tower(config: OptimConfig, tower: str, key: str) -> Any:
    own = getattr(config.towers.get(tower, TowerOptimConfig()), key)
    return getattr(config, key) if own is None else own


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
