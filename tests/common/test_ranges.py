"""Range checks: one grammar of errors, bounds kept exactly, NaN refused, None let through."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from common import ranges


@dataclass(frozen=True)
class _Config:
    field: Any
    other: Any = 1


@pytest.mark.parametrize(
    ("check", "inside", "outside", "expected"),
    [
        (lambda c: ranges.at_least(c, field=2), 2, 1, "at least 2"),
        (lambda c: ranges.at_least(c, "0: off", field=0), 0, -1, "at least 0 (0: off)"),
        (lambda c: ranges.above(c, field=-1), 0, -1, "above -1"),
        (lambda c: ranges.positive(c, "field"), 0.1, 0, "above 0"),
        (lambda c: ranges.at_most(c, field=2), 2, 2.5, "at most 2"),
        (lambda c: ranges.below(c, field=2), 1.9, 2, "below 2"),
        (lambda c: ranges.between(c, field=(1, 3)), 3, 4, "1 to 3"),
        (lambda c: ranges.share(c, "field"), 1, 1.5, "0 to 1"),
        (lambda c: ranges.ascending(c, "field"), (1, 1), (2, 1), "two numbers above 0, the first not larger"),
        (lambda c: ranges.at_least(c, field=1), (1, 2), (1, 0), "at least 1 each"),
        (lambda c: ranges.one_of(c, field=Literal["a", "b"]), "a", "c", "one of a, b"),
        (lambda c: ranges.one_of(c, field=(0, 1)), 1, 2, "one of 0, 1"),
        (lambda c: ranges.some_of(c, field=range(2)), (1, 0), (1, 2), "some of 0, 1"),
        (lambda c: ranges.different(c, "field"), (1, 2), (1, 1), "no entry twice"),
        (lambda c: ranges.expect(c, "field", c.field % 2 == 0, "an even number"), 2, 3, "an even number"),
    ],
)
def test_a_value_outside_is_refused_with_field_value_and_range(
    check: Any, inside: object, outside: object, expected: str
) -> None:
    check(_Config(inside))
    with pytest.raises(ranges.RangeError) as caught:
        check(_Config(outside))
    assert str(caught.value) == f"field: got {outside!r}, expected {expected}"


@pytest.mark.parametrize(
    "check",
    [
        lambda c: ranges.at_least(c, field=0),
        lambda c: ranges.positive(c, "field"),
        lambda c: ranges.at_most(c, field=1),
        lambda c: ranges.below(c, field=math.inf),
        lambda c: ranges.share(c, "field"),
    ],
)
def test_nan_is_refused_and_none_passes(check: Any) -> None:
    check(_Config(None))
    for value in (math.nan, (0.5, math.nan)):
        with pytest.raises(ranges.RangeError, match=r"^field: got .*nan"):
            check(_Config(value))


@pytest.mark.parametrize(("field", "other"), [(0, 0), (-1, 2), (math.nan, 1)])
def test_weights_of_a_sum_are_not_negative_and_not_all_zero(field: float, other: float) -> None:
    ranges.weights(_Config(0, 1), "field", "other")
    with pytest.raises(
        ranges.RangeError, match=rf"^field, other: got {field}, {other}, expected 0 or more, not all 0$"
    ):
        ranges.weights(_Config(field, other), "field", "other")
