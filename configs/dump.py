"""A config as YAML, by plain recursion: OmegaConf, which reads it, takes a tenth of a second to write one."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from configs.load import Choices, ConfigError, default_kind, has_own_name
from configs.text import TextDumper


def dump(config: object, *, choices: Choices | None = None) -> str:
    """The config as YAML that `load` reads back to an equal object."""
    tree = _tree(config)
    for section, table in (choices or {}).items():
        _put_name(config, tree, section.split("."), table)
    return yaml.dump(tree, Dumper=TextDumper, sort_keys=False, allow_unicode=True)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _tree(config: Any) -> dict[Any, Any]:
    hints = _hints(config.__class__)
    return {field.name: _plain(getattr(config, field.name), hints[field.name]) for field in dataclasses.fields(config)}


def _plain(value: Any, hint: Any) -> Any:
    """Mappings, lists and values; a whole number in the place of a float becomes one, as reading it makes it."""
    if dataclasses.is_dataclass(value):
        return _tree(value)
    kinds = [hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    inner = typing.get_args(kinds[0]) or (Any,)
    if isinstance(value, Mapping):
        return {key: _plain(item, inner[-1]) for key, item in value.items()}
    if isinstance(value, list | tuple):
        of_item = inner if len(inner) == len(value) and ... not in inner else inner[:1] * len(value)
        return [_plain(item, kind) for item, kind in zip(value, of_item, strict=True)]
    return float(value) if kinds == [float] and isinstance(value, int) else value


def _put_name(config: object, tree: dict[Any, Any], path: Sequence[str], table: Mapping[str, type]) -> None:
    """Say in the tree which dataclass of the table a section is.

    Inside another section the name is left out where the section is of its default kind: files, and fingerprints of
    checkpoints, from before there was a choice stay as they are.
    """
    *outer, last = path
    for key in outer:
        config, tree = getattr(config, key, None), tree.get(key, {})
    value = getattr(config, last, None)
    if value is None or has_own_name(type(value)):
        return
    name = next((name for name, kind in table.items() if kind is type(value)), None)
    if name is None:
        raise ConfigError(
            f"{'.'.join(path)}: {type(value).__name__} has no name, expected one of {', '.join(sorted(table))}"
        )
    if not outer or type(value) is not default_kind(type(config), last):
        tree[last] = {"name": name, **tree[last]}
