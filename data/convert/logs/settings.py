"""The YAML that says which topics of a recording are what: read, checked against a recording, and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from common.nearby import nearest
from common.printable import listed
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
_TABLES = ("cameras", "camera_infos")
_LISTS = ("lidars", "transforms")


def read_settings(path: str | Path) -> LogSettings:
    """Settings of a YAML file.

    Raises:
        ShardError: no such file, no YAML, an unknown or missing field, a field of another form; names file and field.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ShardError(
            f"{path} cannot be read ({error.strerror}); `tandem inspect RECORDING --settings` writes one"
        ) from error
    except yaml.YAMLError as error:
        raise ShardError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    known = [field.name for field in dataclasses.fields(LogSettings)]
    if not isinstance(content, dict):
        raise ShardError(f"{path} holds {content!r:.60}, expected fields: {', '.join(known)}")
    for name in content:
        if name not in known:
            raise ShardError(
                f"{path}: unknown field {name!r}, expected one of {', '.join(known)}{nearest(str(name), known)}"
            )
    read = {name: _field(path, name, value) for name, value in content.items()}
    if not read.get("lidars"):
        raise ShardError(f"{path}: lidars is missing or empty, expected the topic of one LiDAR at least")
    strange = sorted(set(read.get("camera_infos", {})) - set(read.get("cameras", {})))
    if strange:
        cameras = read.get("cameras", {})
        hint = nearest(strange[0], cameras)
        raise ShardError(
            f"{path}: camera_infos names {strange[0]!r}, which is no camera of cameras ({listed(list(cameras))}){hint}"
        )
    return LogSettings(**read)


def _field(path: Path, name: str, value: Any) -> Any:
    """A field's value in the form that the settings have."""
    if name in _LISTS:
        if value is None:
            return ()
        if isinstance(value, str):  # one is easily written without brackets
            return (value,)
        if isinstance(value, list) and all(isinstance(topic, str) for topic in value):
            return tuple(value)
        raise ShardError(f"{path}: {name} is {value!r:.80}, expected a list of topics: [/points]")
    if name in _TABLES:
        if value is None:
            return {}
        if isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair):
            return dict(value)
        raise ShardError(
            f"{path}: {name} is {value!r:.80}, expected a camera's name and its topic: {{front: /front/image}}"
        )
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ShardError(f"{path}: {name} is {value!r:.80}, expected a text")
    return value


def check_settings(settings: LogSettings, topics: Mapping[str, Topic], where: str | Path) -> None:
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
            found = f"{topic} has messages of {topics[topic].type}"
            raise ShardError(f"{where}: {field}: {found}, which is no {wanted[0]}; {_of_kind(wanted, fitting)}{hint}")


def named_topics(settings: LogSettings) -> list[tuple[str, str]]:
    """Field and topic of each topic that settings name."""
    named = [(field, topic) for field in _LISTS for topic in getattr(settings, field)]
    named += [(field, topic) for field in _TABLES for topic in getattr(settings, field).values()]
    return [*named, *([("odometry", settings.odometry)] if settings.odometry else [])]


def _of_kind(wanted: tuple[Kind, ...], fitting: list[str]) -> str:
    return f"topics of {wanted[0]}: {listed(fitting, 8) or 'none'}"


def settings_text(
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
