"""YAML + dotted overrides -> one frozen, typed dataclass. With `configs.text`, the only user of OmegaConf.

A mistake is a `ConfigError` that gives the dotted path, the value, what was expected and the nearest valid name.
Sections that can be one of several dataclasses (`method`, `method.backbone`) are chosen by their `name` key from an
explicit table.
"""

from __future__ import annotations

import dataclasses
import difflib
import io
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf, TupleConfig, read_write
from omegaconf.errors import OmegaConfBaseException

from common.nearby import nearest
from common.ranges import RangeError
from common.small_files import DamagedFileError, read_text, shown
from common.trees import leaves
from configs.find import KINDS, find_config, kind_of
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
        _drop_retired(source)
        _drop_teachers_of_old(source, schema)
        _fill_added(source, schema, (choices or {}).get("method", {}))
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
            raise _explain(error, schema, given, choices or {}) from error
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


_RETIRED: Mapping[str, object] = {"data.superpixels": True}
"""Settings of older versions, with the one value that still means what happens today; files of old runs hold them."""


def _drop_retired(source: DictConfig) -> None:
    for dotted, value in _RETIRED.items():
        *outer, last = dotted.split(".")
        section = _section(source, outer)
        if section is not None and section.get(last) == value:
            del section[last]


ONCE_OF_ALL_TEACHERS = ("dilated", "levels", "normalise_levels")
"""Settings that the files of old runs hold for every teacher, though each had an effect on some families only."""


def _drop_teachers_of_old(source: DictConfig, schema: DictConfig) -> None:
    """Take what has no effect out of a resolved `method.teacher` of an old run.

    Such a section holds all those settings. One with only some of them was written by hand: its author gets the error.
    """
    teacher = _section(source, ("method", "teacher"))
    if teacher is None or not all(name in teacher for name in ONCE_OF_ALL_TEACHERS):
        return
    chosen = _section(schema, ("method", "teacher"))
    for name in ONCE_OF_ALL_TEACHERS:
        if chosen is not None and name not in chosen:
            del teacher[name]


UNREADABLE = (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError)
"""What reading YAML raises: PyYAML lets errors of Python's constructors through (no such date, thousands of digits)."""

ADDED_LATER: Mapping[str, Mapping[str, object]] = {
    "simipu": {"chunk_rows": None},
    "contrastive_units": {"similarity": "teacher"},
    "distill": {"only_seen": False},
}
"""Method -> settings that it got later, at the value that leaves all as before, whatever their default is now."""


_DATA_ADDED_LATER: Mapping[str, object] = {"order": 1}
"""As `ADDED_LATER`, of `data`."""
_RESOLVED_DATA = frozenset({"num_workers", "prefetch", "start_method", "micro_batch_size", "shards_per_group"})
"""Settings that every resolved `data` has, of any version, and no file that was written by hand has all of."""


def _fill_added(source: DictConfig, schema: DictConfig, methods: Mapping[str, type]) -> None:
    """Give a resolved `method` or `data` of an old run the settings that did not exist then.

    Such a section holds all other settings of the method; one with only some of them was written by hand, for today.
    """
    data = _section(source, ("data",))
    if data is not None and set(data) >= _RESOLVED_DATA:
        data.update({setting: value for setting, value in _DATA_ADDED_LATER.items() if setting not in data})
    method, chosen = _section(source, ("method",)), _section(schema, ("method",))
    if method is None or chosen is None:
        return
    name = next((name for name, kind in methods.items() if kind is OmegaConf.get_type(chosen)), "")
    added = ADDED_LATER.get(name, {})
    if set(chosen) - set(added) <= set(method):
        method.update({setting: value for setting, value in added.items() if setting not in method})


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
        section = _section(other, outer)
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
    owner = _section(schema, outer)
    if owner is None or last not in {*owner}:  # `in owner` is false for a section without a default
        return  # a name given nonetheless is refused with the section as unknown
    given = [node for source in sources if (node := _section(source, [*outer, last])) is not None]
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


def _section(source: DictConfig, path: Sequence[str]) -> DictConfig | None:
    """The section at a path; None where there is none, a null or something else."""
    try:
        node = OmegaConf.select(source, ".".join(path)) if path else source
    except OmegaConfBaseException:  # an interpolation that leads nowhere
        return None
    return node if isinstance(node, DictConfig) else None


def _allowed(owner: DictConfig, key: str) -> type:
    """The class that a field is declared with."""
    kind = OmegaConf.get_type(owner)
    hint = typing.get_type_hints(kind).get(key) if kind is not None else None
    return hint if isinstance(hint, type) else object


def _elsewhere(key: str, table: Mapping[str, type]) -> str:
    """Under which names of a table a setting would have an effect."""
    owners = [name for name, kind in table.items() if key in {field.name for field in dataclasses.fields(kind)}]
    return f", a setting of {', '.join(owners)} only" if owners else ""


def _whole_name(key: str, schema: DictConfig, section: str) -> str:
    """Where in other sections there is a setting of this name, or of one that ends in it (`batch_size`)."""
    known = [name for name in _names(schema) if name.rpartition(".")[0] != section]
    same = [name for name in known if name.rpartition(".")[2] == key]
    found = sorted(same or [name for name in known if name.endswith(f"_{key}")], key=len)
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


def _explain(error: OmegaConfBaseException, schema: DictConfig, source: DictConfig, choices: Choices) -> ConfigError:
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
                return ConfigError(f"{'.'.join(path)}: got {value!r}, expected {_describe(entry)}")
            names = {field.name for field in dataclasses.fields(kind)}  # class variables are no settings
            hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if name in names}
            if key not in hints:
                known = ", ".join(sorted(hints)) or "nothing"
                near = _whole_name(key, schema, ".".join(path[:depth])) or nearest(key, hints)
                near = near or _elsewhere(key, choices.get(".".join(path[:depth]), {})) or _like(key, schema)
                return ConfigError(f"{dotted}: unknown name{near} (got {value!r}; valid here: {known})")
            if depth + 1 == len(path) and not _accepts(schema, path, value):
                near = nearest(value, _words(hints[key])) if isinstance(value, str) else ""
                return ConfigError(f"{dotted}: got {value!r}, expected {_describe(hints[key])}{near}")
            child = _child(node, key, hints[key])
            hint = hints[key]
            if not isinstance(child, DictConfig):
                if depth + 1 < len(path):
                    return ConfigError(f"{dotted}: got a section, expected {_describe(hints[key])}")
                break
            node = child
    return ConfigError(str(error).splitlines()[0])


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
