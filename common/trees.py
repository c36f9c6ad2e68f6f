"""Nested dictionaries as leaves: what a config or a record holds, one value a name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and value of everything that is no mapping; an empty mapping counts as a value.

    Args:
        tree: nested mappings, or one value.
        path: put before each path.
    """
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from leaves(value, (*path, str(key)))
    else:
        yield path, tree


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Dotted name -> value, see `leaves`.

    Args:
        tree: nested mappings.
        name: of the tree itself, put before each name; "" for none.
    """
    return {".".join(path): value for path, value in leaves(tree, (name,) if name else ())}
