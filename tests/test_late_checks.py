"""Tests run with every function's types checked, and shapes where they are written (tests/helpers/late_checks.py)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import beartype
import jaxtyping
import numpy as np
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from data.geometry import transform
from engine.schedule import ScheduleConfig

checked = jaxtyping.jaxtyped(typechecker=beartype.beartype)  # what jaxtyping's hook writes


@checked
def named(count: int, *, name: str = "a") -> str:
    return name * count if count else b"nothing"  # type: ignore[return-value]


@checked
def added(a: Float[Tensor, "N 3"], b: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    return a + b if len(a) != 1 else a[0]


@checked
def first_of(pairs: dict[str, tuple[Float[Tensor, "N 2"], int]] | None, like: Float[Tensor, " N"]) -> int:
    return 0 if pairs is None else pairs["a"][1]


@checked
def applied(function: Callable[[Float[Tensor, "N"]], int], x: Float[Tensor, "N"]) -> int:
    return function(x)


@checked
def counted(to: int) -> Iterator[int]:
    yield from range(to)


@checked
@dataclass(frozen=True)
class Point:
    x: float
    at: Float[Tensor, "2"]

    @checked
    def moved(self, by: float) -> Point:
        return Point(self.x + by, self.at)


WRONG: list[Callable[[], Any]] = [
    lambda: named("2"),  # type: ignore[arg-type]
    lambda: named(2, name=3),  # type: ignore[arg-type]
    lambda: named(0),
    lambda: added(torch.zeros(2, 3), torch.zeros(4, 3)),
    lambda: added(torch.zeros(1, 3), torch.zeros(1, 3)),
    lambda: first_of({"a": (torch.zeros(5, 2), 1)}, torch.zeros(4)),
    lambda: applied(len, torch.zeros(2, 2)),
    lambda: list(counted("3")),  # type: ignore[arg-type]
    lambda: Point("1", torch.zeros(2)),  # type: ignore[arg-type]
    lambda: Point(1.0, torch.zeros(3)),
    lambda: Point(1.0, torch.zeros(2)).moved("1"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(
    "wrong", WRONG, ids=lambda wrong: inspect.getsource(wrong).split("lambda: ")[1].split("  #")[0]
)
def test_what_does_not_fit_is_refused(wrong: Callable[[], Any]) -> None:
    for _ in range(2):  # the checker is made by the first call
        with pytest.raises(TypeCheckError):
            wrong()


def test_what_fits_passes() -> None:
    assert named(2) == "aa"
    assert torch.equal(added(torch.ones(2, 3), torch.ones(2, 3)), torch.full((2, 3), 2.0))
    assert first_of({"a": (torch.zeros(4, 2), 1)}, torch.zeros(4)) == 1
    assert applied(len, torch.zeros(2)) == 2
    assert list(counted(3)) == [0, 1, 2]
    assert Point(1.0, torch.zeros(2)).moved(2.0).x == 3.0
    assert inspect.signature(named).parameters["name"].default == "a"


def test_the_packages_are_imported_with_checks() -> None:
    with pytest.raises(TypeCheckError):
        transform(np.zeros((3, 4)), np.zeros((1, 3)))
    with pytest.raises(TypeCheckError):
        ScheduleConfig(steps="many")  # type: ignore[arg-type]
