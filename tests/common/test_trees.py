"""Leaves of nested dictionaries."""

from __future__ import annotations

import pytest

from common.trees import flat, leaves


def test_every_value_has_its_path() -> None:
    tree = {"a": {"b": 1, "c": {"d": [2, {"e": 3}]}}, "f": None, 4: {}}
    assert dict(leaves(tree)) == {("a", "b"): 1, ("a", "c", "d"): [2, {"e": 3}], ("f",): None, ("4",): {}}
    assert flat(tree, "x") == {"x.a.b": 1, "x.a.c.d": [2, {"e": 3}], "x.f": None, "x.4": {}}


@pytest.mark.parametrize("value", [3, {}, None, [1]])
def test_a_value_alone_is_its_own_leaf(value: object) -> None:
    assert flat(value) == {"": value}
    assert flat(value, "lr") == {"lr": value}
