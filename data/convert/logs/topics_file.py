"""The YAML file that says which topics of recordings are what."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from common.nearby import nearest
from common.printable import listed
from common.small_files import DamagedFileError, read_text
from data.convert.logs.base import Kind, LogSettings, Topic
from data.storage.shard import ShardError

_KINDS: dict[str, tuple[Kind, ...]] = {
    "lidars": ("lidar",),
    "cameras": ("camera",),
    "camera_infos": ("camera_info",),
    "transforms": ("transforms",),
    "odometry": ("odometry",),
}
"""Field -> what its topics must be."""
_LISTS = ("lidars", "transforms")
_TABLES = ("cameras", "camera_infos")


def read_topics(path: Path) -> LogSettings:
    """The settings of a file.

    Raises:
        ShardError: it is not there, no YAML, or has an entry that is unknown or of another form; names the entry.
    """
    try:
        text = read_text(path)
        content = yaml.safe_load(text or "")
    except (DamagedFileError, yaml.YAMLError) as error:
        raise ShardError(f"{path} cannot be read: {error}") from error
    if text is None:
        raise ShardError(f"{path}: no such file; tandem inspect RECORDING writes one")
    if not isinstance(content, dict):
        raise ShardError(f"{path} holds {content!r:.80}, expected names and topics, such as lidars: [/points]")
    names = [field.name for field in dataclasses.fields(LogSettings)]
    values: dict[str, Any] = {}
    for name, value in content.items():
        if name not in names:
            raise ShardError(f"{path}: unknown entry {name!r}{nearest(str(name), names)}; known: {', '.join(names)}")
        values[name] = _checked(f"{path}: {name}", name, value)
    if not values.get("lidars"):
        raise ShardError(f"{path}: lidars names no topic, expected one or more: lidars: [/points]")
    for camera in values.get("camera_infos", {}):
        if camera not in values.get("cameras", {}):
            hint = nearest(camera, values.get("cameras", {}))
            raise ShardError(f"{path}: camera_infos names the camera {camera!r}, which cameras does not{hint}")
    return LogSettings(**values)


def _checked(where: str, name: str, value: Any) -> Any:
    """An entry as `LogSettings` has it; an empty one is as if it were not there."""
    if name in _LISTS:
        entries = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise ShardError(f"{where} is {value!r:.80}, expected a list of topics")
        return tuple(entries)
    if name in _TABLES:
        table = {} if value is None else value
        if not isinstance(table, dict) or not all(isinstance(part, str) for pair in table.items() for part in pair):
            raise ShardError(f"{where} is {value!r:.80}, expected names of cameras, each with its topic")
        return table
    if value is not None and not isinstance(value, str):
        raise ShardError(f"{where} is {value!r:.80}, expected a name")
    return value or ""


def check_topics(settings: LogSettings, topics: Mapping[str, Topic], where: str | Path) -> None:
    """Whether a recording has the topics that settings name, and they are what they should be.

    Args:
        settings: of a file.
        topics: of the recording.
        where: the file, or what else to blame in messages.

    Raises:
        ShardError: names the field, the topic, and the nearest one that would do.
    """
    for field, topic in named_topics(settings):
        wanted = _KINDS[field]
        fitting = sorted(one.name for one in topics.values() if one.kind in wanted)
        if topic not in topics:
            hint = nearest(topic, fitting) or nearest(topic, topics)
            raise ShardError(
                f"{where}: {field}: the recording has no topic {topic!r}; {_of_kind(wanted, fitting)}{hint}"
            )
        if topics[topic].kind not in wanted:
            hint = nearest(topic, fitting)
            found = f"{topic!r} has messages of {topics[topic].type}"
            raise ShardError(f"{where}: {field}: {found}, which is no {wanted[0]}; {_of_kind(wanted, fitting)}{hint}")


def named_topics(settings: LogSettings) -> list[tuple[str, str]]:
    """Field and topic of each topic that settings name."""
    named = [(field, topic) for field in _LISTS for topic in getattr(settings, field)]
    named += [(field, topic) for field in _TABLES for topic in getattr(settings, field).values()]
    return [*named, *([("odometry", settings.odometry)] if settings.odometry else [])]


def _of_kind(wanted: tuple[Kind, ...], fitting: list[str]) -> str:
    return f"topics of {wanted[0]}: {listed(fitting, 8) or 'none'}"


def topics_text(
    settings: LogSettings, head: Iterable[str] = (), notes: Mapping[str, Iterable[str]] | None = None
) -> str:
    """The YAML of settings, with comments.

    Args:
        settings: to write.
        head: lines at the top.
        notes: field -> lines above it.
    """
    lines = [f"# {line}".rstrip() for line in head]
    for field in dataclasses.fields(LogSettings):
        value = getattr(settings, field.name)
        lines += ["", *(f"# {line}".rstrip() for line in (notes or {}).get(field.name, ()))]
        if isinstance(value, Mapping):
            lines.append(f"{field.name}:" if value else f"{field.name}: {{}}")
            lines += [f"  {_quoted(name)}: {_quoted(topic)}" for name, topic in value.items()]
        elif isinstance(value, tuple):
            lines.append(f"{field.name}:" if value else f"{field.name}: []")
            lines += [f"  - {_quoted(topic)}" for topic in value]
        else:
            lines.append(f"{field.name}: {_quoted(value)}")
    return "\n".join(lines).lstrip("\n") + "\n"


def _quoted(text: str) -> str:
    """A text as YAML has it on one line, quoted where it has to be."""
    return str(yaml.safe_dump(text, allow_unicode=True, width=10**6)).removesuffix("...\n").strip()
