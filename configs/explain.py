"""Says what is wrong with a config: place, value, what was expected, and the nearest valid name."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.nearby import nearest
from common.trees import leaves


def explained(
    error: OmegaConfBaseException, schema: DictConfig, source: DictConfig, choices: Mapping[str, Mapping[str, type]]
) -> str:
    """Turn OmegaConf's exception into path, value, expectation and nearest name."""
    # OmegaConf names neither the place nor the remedy: look for the first leaf that the schema does not take.
    for path, value in leaves(OmegaConf.to_container(source)):
        node, hint = schema, object
        for depth, key in enumerate(path):
            kind = OmegaConf.get_type(node)
            dotted = ".".join(path[: depth + 1])
            if kind is None or not dataclasses.is_dataclass(kind):
                entry = (typing.get_args(hint) or (hint,))[-1]  # of a mapping
                if _accepts(schema, path, value):
                    break
                return f"{'.'.join(path)}: got {value!r}, expected {_describe(entry)}"
            names = {field.name for field in dataclasses.fields(kind)}  # class variables are no settings
            hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if name in names}
            if key not in hints:
                known = ", ".join(sorted(hints)) or "nothing"
                section = ".".join(path[:depth])
                near = _same_name(key, schema, section) or nearest(key, hints) or _longer_name(key, schema, section)
                near = near or _elsewhere(key, choices.get(section, {})) or _like(key, schema)
                return f"{dotted}: unknown name{near} (got {value!r}; valid here: {known})"
            if depth + 1 == len(path) and not _accepts(schema, path, value):
                near = nearest(value, _words(hints[key])) if isinstance(value, str) else ""
                return f"{dotted}: got {value!r}, expected {_describe(hints[key])}{near}"
            child = _child(node, key, hints[key])
            hint = hints[key]
            if not isinstance(child, DictConfig):
                if depth + 1 < len(path):
                    return f"{dotted}: got a section, expected {_describe(hints[key])}"
                break
            node = child
    return str(error).splitlines()[0]


def _elsewhere(key: str, table: Mapping[str, type]) -> str:
    """Under which names of a table a setting would have an effect."""
    owners = [name for name, kind in table.items() if key in {field.name for field in dataclasses.fields(kind)}]
    return f", a setting of {', '.join(owners)} only" if owners else ""


def _same_name(key: str, schema: DictConfig, section: str) -> str:
    """Where in other sections there is a setting of this name."""
    names = (name.rpartition(".") for name in _names(schema))
    return _meant(f"{outer}{dot}{last}" for outer, dot, last in names if last == key and outer != section)


def _longer_name(key: str, schema: DictConfig, section: str) -> str:
    """Where in other sections there is a setting whose name ends in this one (`batch_size`)."""
    others = (name for name in _names(schema) if name.rpartition(".")[0] != section)
    return _meant(name for name in others if name.endswith(f"_{key}"))


def _meant(names: Iterable[str]) -> str:
    found = sorted(names, key=len)
    return f"; did you mean {' or '.join(found[:3])}?" if found else ""


def _like(key: str, schema: DictConfig) -> str:
    """Where in other sections there is a setting of nearly this name."""
    ends = {name.rpartition(".")[2]: name for name in _names(schema)}
    close = difflib.get_close_matches(key, ends, n=1, cutoff=0.75)
    return f"; did you mean {ends[close[0]]}?" if close else ""


def _words(hint: Any) -> list[str]:
    """The words that a setting of this type may be."""
    literals = [kind for kind in (hint, *typing.get_args(hint)) if typing.get_origin(kind) is typing.Literal]
    return [word for kind in literals for word in typing.get_args(kind) if isinstance(word, str)]


def _names(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings of a structured config."""
    hints = typing.get_type_hints(OmegaConf.get_type(node))
    for key in map(str, node):
        name = f"{prefix}{key}"
        yield name
        child = _child(node, key, hints[key])
        if isinstance(child, DictConfig) and dataclasses.is_dataclass(OmegaConf.get_type(child)):
            yield from _names(child, f"{name}.")


def _child(node: DictConfig, key: str, hint: Any) -> Any:
    """What a section holds; of a section without a default, or null by default, that which is declared."""
    child = None if OmegaConf.is_missing(node, key) else node.get(key)
    section = next(filter(dataclasses.is_dataclass, (hint, *typing.get_args(hint))), None)
    return OmegaConf.structured(section) if child is None and section is not None else child


def _accepts(schema: DictConfig, path: tuple[str, ...], value: Any) -> bool:
    for key in reversed(path):
        value = {key: value}
    try:
        OmegaConf.merge(schema, value)
    except OmegaConfBaseException:
        return False
    return True


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(a) for a in arguments)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"a list of {_describe(arguments[0])}"
        return f"a list of {len(arguments)}: " + ", ".join(_describe(a) for a in arguments)
    if arguments:
        return " or ".join("null" if a is type(None) else _describe(a) for a in arguments)
    if dataclasses.is_dataclass(hint):
        return "a section with " + ", ".join(f.name for f in dataclasses.fields(hint))
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, str(hint))
