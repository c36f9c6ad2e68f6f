"""Ranges of a config's fields, checked where the config is made."""

from __future__ import annotations

from typing import Any, get_args


def at_least(config: object, **bounds: int) -> None:
    """Fields must not be smaller than this; None passes.

    Raises:
        ValueError: names the field, its value and the bound.
    """
    for name, bound in bounds.items():
        value = getattr(config, name)
        if value is not None and not value >= bound:
            raise ValueError(f"{name} = {value}: expected at least {bound}")


def positive(config: object, *names: str) -> None:
    """Fields must be above 0; None passes.

    Raises:
        ValueError: names the field and its value.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} = {value}: expected > 0")


def weights(config: object, *names: str) -> None:
    """Weights of a sum must be 0 or more, and not all 0.

    Raises:
        ValueError: names the fields and their values.
    """
    values = [getattr(config, name) for name in names]
    if not min(values) >= 0 or sum(values) == 0:
        stated = ", ".join(f"{name} = {value}" for name, value in zip(names, values, strict=True))
        raise ValueError(f"{stated}: expected 0 or more, not all 0")


def one_of(config: object, **choices: Any) -> None:
    """Fields must be one of a Literal's words.

    Raises:
        ValueError: names the field, its value and the words.
    """
    for name, kind in choices.items():
        if getattr(config, name) not in get_args(kind):
            raise ValueError(f"{name} = {getattr(config, name)!r}: expected one of {', '.join(get_args(kind))}")
