"""Checks of a config's fields, made where the config is made; every error reads `field: got value, expected range`.

A field that is None passes (no value was given, or "no limit"); NaN never does. Of a tuple every entry is checked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, get_args

from common.nearby import nearest

Number = int | float
"""Spelt out because type checks at run time take `float` alone for floats only."""


class RangeError(ValueError):
    """A field's value is out of its range. The message begins with the field: a reader puts the section before it."""


def expect(config: object, name: str, holds: bool, expected: str) -> None:
    """A condition on a field that no function below states.

    Args:
        config: with the field.
        name: of the field.
        holds: the condition.
        expected: it in words, with what to do about it.

    Raises:
        RangeError: the condition does not hold.
    """
    if not holds:
        raise RangeError(f"{name}: got {getattr(config, name)!r}, expected {expected}")


def _compare(config: object, fits: Callable[[Any, Any], bool], words: str, note: str, bounds: dict[str, Any]) -> None:
    for name, bound in bounds.items():
        value = getattr(config, name)
        several = isinstance(value, (tuple, list))
        entries = value if several else () if value is None else (value,)
        stated = f"{bound[0]} to {bound[1]}" if isinstance(bound, tuple) else bound
        expected = f"{words}{stated}{' each' if several else ''}{f' ({note})' if note else ''}"
        # "Fits", not "does not fit": every comparison with NaN is false.
        expect(config, name, all(fits(entry, bound) for entry in entries), expected)


def at_least(config: object, note: str = "", /, **bounds: Number) -> None:
    """Fields must not be smaller than their bound.

    Args:
        config: with the fields.
        note: what the bound means ("0: off"), or why it is there.
        **bounds: field -> bound.

    Raises:
        RangeError: names the field, its value and the bound.
    """
    _compare(config, operator.ge, "at least ", note, bounds)


def above(config: object, note: str = "", /, **bounds: Number) -> None:
    """Fields must be larger than their bound; arguments as of `at_least`."""
    _compare(config, operator.gt, "above ", note, bounds)


def positive(config: object, *names: str) -> None:
    """Fields must be above 0."""
    above(config, **dict.fromkeys(names, 0))


def at_most(config: object, note: str = "", /, **bounds: Number) -> None:
    """Fields must not be larger than their bound; arguments as of `at_least`."""
    _compare(config, operator.le, "at most ", note, bounds)


def below(config: object, note: str = "", /, **bounds: Number) -> None:
    """Fields must be smaller than their bound; arguments as of `at_least`."""
    _compare(config, operator.lt, "below ", note, bounds)


def between(config: object, note: str = "", /, **bounds: tuple[Number, Number]) -> None:
    """Fields must lie between two bounds or on one of them; arguments as of `at_least`."""
    _compare(config, lambda value, ends: bool(ends[0] <= value <= ends[1]), "", note, bounds)


def share(config: object, *names: str) -> None:
    """Fields must be 0 to 1."""
    between(config, **dict.fromkeys(names, (0, 1)))


def ascending(config: object, *names: str) -> None:
    """Fields must be two finite numbers above 0, in order: the ends of an interval to draw from."""
    for name in names:
        low, high = getattr(config, name)
        expect(config, name, 0 < low <= high < float("inf"), "two numbers above 0, the first not larger")


def weights(config: object, *names: str) -> None:
    """Weights of a sum must be 0 or more, and not all 0.

    Raises:
        RangeError: names the fields and their values.
    """
    values = [getattr(config, name) for name in names]
    if not min(values) >= 0 or sum(values) == 0:
        raise RangeError(f"{', '.join(names)}: got {', '.join(map(str, values))}, expected 0 or more, not all 0")


def one_of(config: object, **choices: Any) -> None:
    """Fields must be one of a Literal's words, or of a collection.

    Raises:
        RangeError: names the field, its value and the words.
    """
    for name, kind in choices.items():
        known = get_args(kind) or tuple(kind)
        value = getattr(config, name)
        expect(config, name, value in known, f"one of {', '.join(map(str, known))}{_near([value], known)}")


def some_of(config: object, note: str = "", /, **choices: Iterable[object]) -> None:
    """Every entry of these fields must be in a collection; arguments as of `at_least`.

    Raises:
        RangeError: names the field, its value and the collection.
    """
    for name, kind in choices.items():
        known = tuple(kind)
        values = getattr(config, name)
        expected = f"some of {', '.join(map(str, known))}{f' ({note})' if note else ''}{_near(values, known)}"
        expect(config, name, set(values) <= set(known), expected)


def _near(values: Iterable[object], known: Iterable[object]) -> str:
    """The known name that the first unknown one is most like."""
    wrong = next((value for value in values if value not in known), None)
    return nearest(wrong, [word for word in known if isinstance(word, str)]) if isinstance(wrong, str) else ""


def different(config: object, *names: str) -> None:
    """No two entries of such a field may be equal."""
    for name in names:
        values = getattr(config, name)
        expect(config, name, len(set(values)) == len(values), "no entry twice")
