"""What the settings of all networks that learn from labels have in common."""

from __future__ import annotations

from dataclasses import dataclass

from models.methods.base import MethodConfig


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(MethodConfig):
    """Settings of a network that learns from labels.

    Attributes:
        classes: names of the set's classes that are told apart, in the order of the network's outputs.
    """

    classes: tuple[str, ...] = ()
