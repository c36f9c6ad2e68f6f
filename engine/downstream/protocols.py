"""What all families of protocols share: their names, the networks they start from, the record before it is measured.

A family measures one kind of network (its tower): `engine.downstream.evaluate` the 3D network, by segmentation of
sweeps. A new protocol is a name and a tower here, its settings in `ProtocolsConfig`, its measuring function, and that
function's line in `launchers.evaluate.FAMILIES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from engine.downstream.results import LeakLevel, Result, fingerprint

ProtocolName = Literal[
    "linear_probe", "knn", "finetune", "depth", "depth_frozen", "image_linear_probe", "image_finetune", "registration"
]
ORDER: tuple[ProtocolName, ...] = get_args(ProtocolName)

Tower = Literal["backbone", "image_backbone", "objective"]
"""The part of a method that a protocol measures, by its attribute's name in configs and objectives; or all of it."""

TOWERS: dict[ProtocolName, Tower] = {
    "linear_probe": "backbone",
    "knn": "backbone",
    "finetune": "backbone",
    "depth": "image_backbone",
    "depth_frozen": "image_backbone",
    "image_linear_probe": "image_backbone",
    "image_finetune": "image_backbone",
    "registration": "objective",
}
"""Protocol -> what it measures."""

DRAWN: tuple[ProtocolName, ...] = ("finetune", "depth", "depth_frozen", "image_finetune")
"""Protocols that train on drawn samples, with a number of labels of their own; the others use all labels, or none."""

TOWER_TITLES: dict[Tower, str] = {
    "backbone": "3D network",
    "image_backbone": "image network",
    "objective": "whole method",
}
"""Tower -> name for people."""


def of_tower(protocols: Sequence[ProtocolName], tower: Tower) -> tuple[ProtocolName, ...]:
    """Those of the protocols that measure one tower, in `ORDER`."""
    return tuple(p for p in ORDER if p in protocols and TOWERS[p] == tower)


@dataclass(frozen=True, kw_only=True)
class Initialisation:
    """Where a network's weights come from.

    Attributes:
        name: for tables: the method's name, or "random".
        pretrained: False for the random baseline.
        networks: makers of the tower, in evaluation-ready form on the CPU; the r-th seed of a protocol uses number
            r modulo their count. One for a single checkpoint; several for repeated pre-training or random draws.
        checkpoint: identity of each network's weights; empty for random ones.
        teacher: image network that taught it, "" for none.
        leak: label-leak level.
        pretraining: how it was made, for people, e.g. "600 steps, seed 0".
        setting, pretrain_seeds, chosen: see `Result`.
    """

    name: str
    pretrained: bool
    networks: tuple[Callable[[], nn.Module], ...]
    checkpoint: tuple[str, ...] = ()
    teacher: str = ""
    leak: LeakLevel = "none"
    pretraining: str = ""
    setting: str = ""
    pretrain_seeds: tuple[int, ...] = ()
    chosen: tuple[str, ...] = ()

    def labelled(self, result: Result) -> Result:
        """A record of these weights with what is known of them now; no number changes."""
        return dataclasses.replace(result, setting=self.setting, pretrain_seeds=self.pretrain_seeds, chosen=self.chosen)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A protocol on a set as it will be measured; the same for every initialisation.

    Attributes:
        protocol: its name.
        dataset: name of the set.
        labels: which labels it may use, for tables.
        seeds: one run each.
        metric: the main metric.
        settings: all that shapes the number, seeds aside; JSON values.
        context: what else shapes it (identity of the data, of the network); JSON values.
        task: what is predicted and on which samples; JSON values.
    """

    protocol: ProtocolName
    dataset: str
    labels: str
    seeds: tuple[int, ...]
    metric: str
    settings: Mapping[str, Any]
    context: Mapping[str, Any]
    task: Sequence[Any]

    def blank(self, init: Initialisation) -> Result:
        """The record before it is measured: who, what, how."""
        identity = {"settings": dict(self.settings), "context": dict(self.context), "task": list(self.task)}
        return Result(
            protocol=self.protocol,
            dataset=self.dataset,
            labels=self.labels,
            init=init.name,
            pretrained=init.pretrained,
            teacher=init.teacher,
            leak=init.leak,
            pretraining=init.pretraining,
            setting=init.setting,
            pretrain_seeds=init.pretrain_seeds,
            chosen=init.chosen,
            seeds=self.seeds,
            metric=self.metric,
            metrics={self.metric: (0.0,) * len(self.seeds)},
            checkpoint=init.checkpoint,
            settings=self.settings,
            fingerprint=fingerprint(identity),
        )
