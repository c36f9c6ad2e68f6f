"""YAML + dotted overrides -> one frozen, typed dataclass. OmegaConf is used here and in three modules beside this one.

A mistake is a `ConfigError` that gives the dotted path, the value, what was expected and the nearest valid name.
Sections that can be one of several dataclasses (`method`, `method.backbone`) are chosen by their `name` key from an
explicit table.
"""

from __future__ import annotations

import dataclasses
import io
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf, TupleConfig, read_write
from omegaconf.errors import OmegaConfBaseException

from common.nearby import nearest
from common.ranges import RangeError
from common.small_files import DamagedFileError, read_text, shown
from common.trees import leaves
from configs.explain import explained
from configs.find import KINDS, find_config, kind_of
from configs.older import bring_up_to_date, section_at
from configs.text import keep_text
from models.image.published import HELP

T = TypeVar("T")
Choices = Mapping[str, Mapping[str, type]]
"""Section -> name -> the dataclass that the name stands for. A section inside another one ("method.backbone") comes
after it; where the outer one, as chosen, has no such section, the entry does not count."""


class ConfigError(ValueError):
    """A config file or an override that cannot be used; the message names the place and the remedy."""


class ArgumentError(ConfigError):
    """Arguments of a command that cannot be used, such as a folder that is not there: no config is at fault."""


def load(
    kind: type[T],
    path: str | Path | None,
    overrides: Sequence[str] = (),
    *,
    choices: Choices | None = None,
    defaults: Mapping[str, object] | None = None,
) -> T:
    """Merge defaults < YAML file < overrides into an instance of `kind`.

    Args:
        kind: a frozen dataclass, sections nested.
        path: YAML file that holds differences from the defaults, or None for defaults and overrides alone.
        overrides: `section.field=value`, the value in YAML syntax; `{}` takes back what weaker sources say of a field.
        choices: for sections with several possible dataclasses, name -> dataclass; the section's `name` key picks.
        defaults: weaker than the file, stronger than the dataclass (a default that depends on the file's name, say).

    Raises:
        ConfigError: unreadable file, unknown key, wrong type or a value out of range.
    """
    try:
        return _load(kind, path, overrides, choices, defaults)
    except OmegaConfBaseException as error:  # of a reference: values are looked at in many places
        raise _unresolved(error) from error


def _load(
    kind: type[T],
    path: str | Path | None,
    overrides: Sequence[str],
    choices: Choices | None,
    defaults: Mapping[str, object] | None,
) -> T:
    found = None if path is None else _find(path, kind)
    sources = [
        OmegaConf.create(dict(defaults or {})),
        _read_file(found, kind),
        *(_parse_override(o) for o in overrides),
    ]
    schema = OmegaConf.structured(kind)
    # In the table's order: a section inside another one depends on what the outer one was chosen to be.
    for section, table in (choices or {}).items():
        _choose(schema, section, table, sources)
    if found is not None:
        keep_text(sources[1], read_text(found) or "", schema)
    for source, override in zip(sources[2:], overrides, strict=True):
        name, _, value = override.partition("=")
        keep_text(source, value, schema, path=tuple(name.split(".")))
    for source in sources:
        bring_up_to_date(source, schema, (choices or {}).get("method", {}))
    for number, override in enumerate(overrides, start=2):
        _empty(sources[:number], sources[number], override.partition("=")[0])
    asked_for: set[str] = set()
    for source in sources:
        # Merging takes `???` for "as before": a file that asks for a value would get the dataclass's default.
        asked_for = {key for key in asked_for if not _gives(source, key)} | OmegaConf.missing_keys(source)
    # First with one another: a value that suits only a weaker source's choice may be replaced with that choice.
    given = OmegaConf.merge(*sources)
    assert isinstance(given, DictConfig)
    try:
        try:
            schema = OmegaConf.merge(schema, given)
        except OmegaConfBaseException as error:
            raise ConfigError(explained(error, schema, given, choices or {})) from error
        missing = sorted(OmegaConf.missing_keys(schema) | asked_for)
        if missing:
            others = f", nor for {', '.join(missing[1:])}" if missing[1:] else ""
            remedy = " ".join(f"{name}=..." for name in missing)
            hint = f". {HELP}" if any(name.endswith(".weights") for name in missing) else ""
            raise ConfigError(f"{missing[0]}: no value given and there is no default{others} (add `{remedy}`){hint}")
        instance: T = _instantiate(schema, "")
    except ConfigError as error:
        if found is None or not _is_about(error, sources[1]) or any(_is_about(error, s) for s in sources[2:]):
            raise
        raise ConfigError(f"{error} (in {found})") from error
    return instance


def required_settings(path: Path) -> list[str]:
    """Dotted names of what a config file asks for: settings whose value is `???`, OmegaConf's mark of one to be given.

    Raises:
        OSError, or one of `UNREADABLE`: it cannot be read.
    """
    tree = yaml.safe_load(read_text(path) or "")
    return [".".join(name) for name, value in leaves(tree) if value == "???"]


def _unresolved(error: OmegaConfBaseException) -> ConfigError:
    """A value with `${...}` in it that stands for nothing."""
    text, name = str(error).splitlines()[0], error.full_key or "config"
    if setting := re.search(r"Interpolation key '(.+)' not found", text):
        remedy = f"a variable of the shell is written ${{oc.env:{setting[1]}}}"
        return ConfigError(f"{name}: refers to ${{{setting[1]}}}, and there is no such setting; {remedy}")
    if variable := re.search(r"Environment variable '(.+)' not found", text):
        return ConfigError(f"{name}: the environment variable {variable[1]} is not set")
    return ConfigError(f"{name}: {text}")


def _is_about(error: ConfigError, source: DictConfig) -> bool:
    """Whether a source has the setting that a message begins with."""
    name = str(error).partition(":")[0]
    return re.fullmatch(r"[\w.-]+", name) is not None and _gives(source, name)


UNREADABLE = (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError)
"""What reading YAML raises: PyYAML lets errors of Python's constructors through (no such date, thousands of digits)."""


def read_value(text: str) -> Any:
    """What the right side of an override means where nothing is known of the setting."""
    (value,) = _plain(OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))).values()
    return value


def has_own_name(kind: type) -> bool:
    """Whether `name` is a setting of the dataclass itself: one that stands for several names of its table."""
    return any(field.name == "name" for field in dataclasses.fields(kind))


def default_kind(owner: type, key: str) -> type | None:
    """Of a dataclass's field: the class of its default value."""
    field = next(f for f in dataclasses.fields(owner) if f.name == key)
    if field.default_factory is not dataclasses.MISSING:
        return type(field.default_factory())
    return None if field.default is dataclasses.MISSING else type(field.default)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


_ABSENT = object()


def _gives(source: DictConfig, key: str) -> bool:
    """Whether a source has a value, null included, at a dotted path."""
    return OmegaConf.select(source, key, default=_ABSENT) is not _ABSENT


def _empty(weaker: Sequence[DictConfig], source: DictConfig, key: str) -> None:
    """Let `key={}` take back what weaker sources say of `key`; merged, an empty mapping would change nothing."""
    given = OmegaConf.select(source, key)
    if not isinstance(given, DictConfig) or len(given):
        return
    *outer, last = key.split(".")
    for other in weaker:
        section = section_at(other, outer)
        if section is not None and last in section:
            del section[last]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _find(path: str | Path, kind: type) -> Path:
    """The file that a path or a name means."""
    own = KINDS.get(kind.__name__)
    try:
        return find_config(path, None if own is None else own.folder)
    except OSError as error:
        raise ConfigError(str(error)) from None


def _read_file(path: Path | None, kind: type) -> DictConfig:
    """The content of a config file, which is of the kind that it is read as."""
    if path is None:
        return OmegaConf.create({})
    try:
        tree = OmegaConf.load(io.StringIO(read_text(path) or ""))
    except DamagedFileError as error:
        raise ConfigError(str(error)) from error
    except (*UNREADABLE, OSError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {_one_line(error)}") from error
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"{path}: expected a mapping of sections, got a list")
    given, own = set(map(str, tree)), KINDS.get(kind.__name__)
    other = kind_of(given)
    if own is None or other is None:
        return tree
    meant = KINDS[other]
    theirs, ours = (meant.marks - own.marks) & given, (own.marks - meant.marks) & given
    if theirs and not ours:
        names = ", ".join(sorted(meant.marks & given))
        raise ConfigError(
            f"{path}: is the config of {meant.title} (it has {names}), expected that of {own.title}; it goes to "
            f"{meant.use}"
        )
    return tree


def _parse_override(text: str) -> DictConfig:
    key, equals, _ = text.partition("=")
    if not equals or not key or key.startswith("-"):
        hint = f"; a path belongs to a setting, for example data.shards={text}" if Path(text).exists() else ""
        raise ConfigError(f"override {text!r}: expected section.field=value, without spaces{hint}")
    try:
        return OmegaConf.from_dotlist([text])
    except UNREADABLE as error:
        raise ConfigError(f"override {shown(text)}: the value is not valid YAML ({_one_line(error)})") from error


def _choose(schema: DictConfig, section: str, table: Mapping[str, type], sources: Sequence[DictConfig]) -> None:
    """Put the dataclass that `<section>.name` asks for into the schema.

    The key is taken out of the sources, unless the dataclass has a `name` of its own. Such a family takes over what the
    section's default sets and the family has, too: `teacher.name` chooses a network, the method the rest.
    """
    *outer, last = section.split(".")
    owner = section_at(schema, outer)
    if owner is None or last not in {*owner}:  # `in owner` is false for a section without a default
        return  # a name given nonetheless is refused with the section as unknown
    given = [node for source in sources if (node := section_at(source, [*outer, last])) is not None]
    name = next((str(node["name"]) for node in reversed(given) if "name" in node), None)  # the strongest source's
    if name is None and not OmegaConf.is_missing(owner, last):
        return
    if name is None:
        raise ConfigError(f"{section}.name: no value given, expected one of {', '.join(sorted(table))}")
    if name not in table:
        raise ConfigError(
            f"{section}.name: got {name!r}, expected one of {', '.join(sorted(table))}{nearest(name, table)}"
        )
    allowed = _allowed(owner, last)  # a method may declare a narrower class than the table holds
    if not issubclass(table[name], allowed):
        fitting = sorted(known for known, kind in table.items() if issubclass(kind, allowed))
        raise ConfigError(
            f"{section}.name: got {name!r}, expected one of {', '.join(fitting)}: nothing else fits "
            f"{'.'.join(outer)} as it was chosen"
        )
    chosen = OmegaConf.structured(table[name])
    if has_own_name(table[name]):
        shared = (set(chosen) & set(owner[last])) - {"name"}
        with read_write(chosen):  # OmegaConf makes frozen dataclasses read-only
            chosen.update({key: owner[last][key] for key in shared})
    else:
        for node in given:
            node.pop("name", None)
    with read_write(owner):
        owner[last] = chosen


def _allowed(owner: DictConfig, key: str) -> type:
    """The class that a field is declared with."""
    kind = OmegaConf.get_type(owner)
    hint = typing.get_type_hints(kind).get(key) if kind is not None else None
    return hint if isinstance(hint, type) else object


def _entries(items: Sequence[Mapping[str, object]], kind: type[Any], path: str) -> tuple[Any, ...]:
    """The entries of a list of sections, which OmegaConf leaves as plain mappings."""
    found: list[Any] = []
    for number, item in enumerate(items):
        try:
            found.append(load(kind, None, defaults=item))
        except ConfigError as error:
            raise ConfigError(f"{path}[{number}]: {error}") from error
    return tuple(found)


def _instantiate(node: Any, path: str) -> Any:
    """Build the dataclasses from the leaves up, so that a range check's message gets its dotted path."""
    if isinstance(node, (ListConfig, TupleConfig)):
        return tuple(_instantiate(item, f"{path}[{i}]") for i, item in enumerate(node))
    if not isinstance(node, DictConfig):
        return node
    dot = f"{path}." if path else ""
    values = {key: _instantiate(node[key], f"{dot}{key}") for key in map(str, node)}
    kind = OmegaConf.get_type(node)
    assert kind is not None
    if kind is dict:
        return values
    for key, hint in typing.get_type_hints(kind).items():
        if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(typing.get_args(hint)[0]):
            values[key] = _entries(values[key], typing.get_args(hint)[0], f"{dot}{key}")
    try:
        return kind(**values)
    except ConfigError:
        raise
    except RangeError as error:
        raise ConfigError(f"{dot}{error}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path or 'config'}: {error}") from error
