"""Settings that are text keep the text that was given.

YAML reads `12:00:00` as 43200, `0123` as 83, `2026_11_29` as 20261129 and `off` as false. Where a setting is declared
as text, alone, in a list or in a mapping, what stands in the file or behind the `=` is put back. Quotes change
nothing; `null` stays null where the setting may be null.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is 10 times as fast
_MERGE = "tag:yaml.org,2002:merge"
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


class TextDumper(yaml.SafeDumper):
    """Writes texts with line breaks and other invisible characters in double quotes, where they are escaped."""


TextDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    ),
)


def keep_text(tree: DictConfig, text: str, schema: DictConfig, *, path: tuple[str, ...] = ()) -> None:
    """Put texts back into `tree`, which is what OmegaConf made of `text`.

    Args:
        tree: changed in place.
        text: YAML of the section at `path`, or of the value there.
        schema: structured config with the chosen dataclasses; says which settings are text.
        path: where in the tree the text stands; the top, or the left side of an override.
    """
    node = yaml.compose(text, Loader=_LOADER)
    for key in reversed(path):
        node = yaml.MappingNode("tag:yaml.org,2002:map", [(yaml.ScalarNode("tag:yaml.org,2002:str", key), node)])
    if node is not None:
        _walk(tree, node, OmegaConf.get_type(schema), schema)


def _walk(tree: Any, node: yaml.Node, hint: Any, schema: Any) -> None:
    """Go down a section, mapping or list, and the YAML that it was made of."""
    if isinstance(node, yaml.MappingNode) and isinstance(tree, DictConfig):
        kind, hints, entry = _section(hint, schema), {}, _entry(hint)
        if kind is not None:
            hints = typing.get_type_hints(kind)
        elif all(isinstance(key.value, str) for key, _ in node.value):
            _name_keys(tree, node)
        for key, child in _items(node):
            if key in tree:
                inner = schema.get(key) if isinstance(schema, DictConfig) and key in schema else None
                _settle(tree, key, child, hints.get(key, entry), inner)
    elif isinstance(node, yaml.SequenceNode) and isinstance(tree, ListConfig):
        arguments = (Any,) if hint is Any else typing.get_args(_without_null(hint))
        each = arguments[:1] * len(node.value) if len(arguments) < 2 or arguments[1] is Ellipsis else arguments
        for index, (child, inner) in enumerate(zip(node.value, each, strict=False)):
            _settle(tree, index, child, inner, None)


def _settle(owner: Any, key: Any, node: yaml.Node | None, hint: Any, schema: Any) -> None:
    if isinstance(node, yaml.ScalarNode):
        if not node.style and (_is_text(hint, node.value) or (hint is Any and _would_be_lost(owner[key], node))):
            owner[key] = node.value
    elif node is not None:
        _walk(owner[key], node, hint, schema)


def _is_text(hint: Any, given: str) -> bool:
    """Whether a setting of this type takes the text as it is."""
    kinds = set(_alternatives(hint))
    if given in _NULLS and (type(None) in kinds or given != "~"):
        return False
    kinds = {
        kind for kind in kinds if kind in (str, int, float, bool, Any) or typing.get_origin(kind) is typing.Literal
    }
    literals = [value for kind in kinds if typing.get_origin(kind) is typing.Literal for value in typing.get_args(kind)]
    return bool(kinds) and not kinds & {int, float, bool, Any} and all(isinstance(value, str) for value in literals)


def _would_be_lost(value: Any, node: yaml.ScalarNode) -> bool:
    """Whether a value of any type, for a setting that is not known here, could not be written down as it was given."""
    return value is not None and not isinstance(value, str) and yaml.safe_dump(value).split("\n")[0] != node.value


def _alternatives(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for one in typing.get_args(hint):
            yield from _alternatives(one)
    else:
        yield hint


def _without_null(hint: Any) -> Any:
    return next((kind for kind in _alternatives(hint) if kind is not type(None)), None)


def _section(hint: Any, schema: Any) -> type | None:
    """The dataclass of a section: as chosen in the schema, else as declared; None for a mapping."""
    chosen = OmegaConf.get_type(schema) if isinstance(schema, DictConfig) else None
    found = [
        kind for kind in (chosen, *_alternatives(hint)) if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    ]
    return found[0] if found else None


def _entry(hint: Any) -> Any:
    """The type of a mapping's values."""
    arguments = typing.get_args(_without_null(hint))
    return Any if hint is Any else arguments[1] if len(arguments) == 2 else None


def _name_keys(tree: DictConfig, node: yaml.MappingNode) -> None:
    """Names in a mapping are text, too: `runs: {0027: ...}`."""
    names = [key.value for key, _ in node.value]
    if len(names) == len(tree) and any(not isinstance(key, str) for key in tree):
        for key, name in zip(list(tree), names, strict=True):
            tree[name] = tree.pop(key)


def _items(node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node]]:
    """Names and values; what `<<` takes in comes first, since what stands beside it is stronger."""
    for key, child in node.value:
        if key.tag == _MERGE:
            for merged in child.value if isinstance(child, yaml.SequenceNode) else [child]:
                yield from _items(merged)
    for key, child in node.value:
        if key.tag != _MERGE:
            yield key.value, child
