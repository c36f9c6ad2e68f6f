"""The YAML file that says which topics of recordings are what."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from common.nearby import nearest
from common.small_files import DamagedFileError, read_text
from data.convert.logs.base import LogSettings
from data.storage.shard import ShardError

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
