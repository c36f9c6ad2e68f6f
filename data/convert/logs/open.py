"""Opens recordings: which files belong to one, and what reads each, by its first bytes and never by its name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from common.printable import listed
from data.convert.logs import mcap_file, ros1_file, sqlite_file
from data.convert.logs.recording import FilesRecording, Opener
from data.convert.raw_files import layout_error
from data.storage.shard import ShardError

_OPENERS: dict[bytes, Opener] = {
    mcap_file.MAGIC: mcap_file.McapFile,
    ros1_file.MAGIC: ros1_file.Ros1File,
    sqlite_file.MAGIC: sqlite_file.SqliteFile,
}
"""First bytes of a file -> what reads it."""
_PACKED = {b"\x28\xb5\x2f\xfd": "unzstd", b"\x1f\x8b": "gunzip", b"BZh": "bunzip2"}
"""First bytes of a compressed file -> the command that unpacks it."""

_ENDINGS = (".bag", ".active", ".mcap", ".db3", ".zst", ".zstd")
"""Of files in a folder that are worth a look; a file that is named itself needs none."""
_NUMBER = re.compile(r"([0-9]+)")
_METADATA = "metadata.yaml"
_PART = re.compile(r"(.*?)_([0-9]+)")
"""Name of a part of a split bag: ROS appends _0, _1, and so on."""


def is_recording(path: Path) -> bool:
    """Whether a file begins as a recording, or a folder holds files that do."""
    try:
        if path.is_dir():
            return any(_begins(found) for found in _files_of(path))
        return path.is_file() and _begins(path)
    except OSError:
        return False


def _begins(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.read(max(map(len, _OPENERS)))
    return any(first.startswith(mark) for mark in _OPENERS)


def open_recording(source: str | Path | Sequence[Path]) -> FilesRecording:
    """A recording: a ROS 1 bag, a ROS 2 database, an MCAP file; a folder of such files, or several, are read as one.

    Nothing but the index is read; where a file has none, the heads of its records.

    Raises:
        ShardError: no such file or folder, or it holds no recording; names the file and what it begins with.
        ImportError: the extra [logs] is not installed.
    """
    if isinstance(source, (str, Path)):
        source = Path(source)
        paths = _files_of(source) if source.is_dir() else [source]
        if not paths:
            raise layout_error(source, "recordings", "*.bag, *.mcap or *.db3")
    else:
        paths = list(source)
    recording = FilesRecording([(path, _opener(path)) for path in paths])
    for folder in dict.fromkeys(path.parent for path in paths):
        missing = _missing(folder) if isinstance(source, Path) and source == folder else []
        if missing:
            recording.report(f"{folder / _METADATA} names {listed(missing)}, which is not there: its messages are lost")
    return recording


def find_recordings(source: str | Path) -> dict[str, tuple[Path, ...]]:
    """The recordings in a folder, by name, each with its files in order; a file or a bag's folder is one.

    A folder with a metadata.yaml is one recording, and so are files whose names differ in a number at the end only, as
    the parts of a split bag do (drive_0.bag, drive_1.bag). Folders inside are looked into, on one level.

    Raises:
        ShardError: there is none.
    """
    source = Path(source)
    if not source.is_dir():
        if not source.is_file():
            raise layout_error(source, "recordings", "a recording")
        return {source.stem: (source,)}
    if (source / _METADATA).is_file():
        return {source.name: tuple(_files_of(source))}
    found = _grouped(_files_of(source))
    for folder in sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith(".")):
        inside = _files_of(folder)
        if inside and (folder / _METADATA).is_file():
            found[folder.name] = tuple(inside)
        else:
            found |= {f"{folder.name}-{name}": paths for name, paths in _grouped(inside).items()}
    if not found:
        raise layout_error(source, "recordings", "*.bag, *.mcap, *.db3, or folders of them")
    return found


def _grouped(paths: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """Files by recording: parts in a row, from 0 on, are one."""
    parts: dict[tuple[str, str], dict[int, Path]] = {}
    for path in paths:
        name = _PART.fullmatch(path.stem)
        if name:
            parts.setdefault((name[1], path.suffix), {})[int(name[2])] = path
    split = {key: part for key, part in parts.items() if len(part) > 1 and sorted(part) == list(range(len(part)))}
    grouped = {name: tuple(part[number] for number in sorted(part)) for (name, _), part in split.items()}
    taken = {path for part in split.values() for path in part.values()}
    return grouped | {path.stem: (path,) for path in paths if path not in taken}


def _files_of(folder: Path) -> list[Path]:
    """Files of recordings that lie in a folder, the parts of a split one in the order of their numbers."""
    found = [path for path in folder.iterdir() if path.suffix in _ENDINGS and path.is_file()]
    return sorted(found, key=lambda path: [int(word) if word.isdigit() else word for word in _NUMBER.split(path.name)])


def _opener(path: Path) -> Opener:
    try:
        with path.open("rb") as file:
            first = file.read(max(map(len, _OPENERS)))
    except OSError as error:
        raise ShardError(f"{path} cannot be opened: {os.strerror(error.errno or 0)}") from error
    for mark, opener in _OPENERS.items():
        if first.startswith(mark):
            return opener
    for mark, command in _PACKED.items():
        if first.startswith(mark):
            raise ShardError(f"{path} is compressed as a whole; unpack it first: {command} {path}")
    found = "it is empty" if not first else f"it begins with {first!r}"
    raise ShardError(f"{path} is no ROS 1 bag, MCAP file or ROS 2 database: {found}")


def _missing(folder: Path) -> list[str]:
    """Files that a folder's metadata.yaml names and that are not there."""
    try:
        content = yaml.safe_load((folder / _METADATA).read_bytes())
        names = content["rosbag2_bagfile_information"]["relative_file_paths"]
        return [Path(name).name for name in names if not (folder / Path(name).name).exists()]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return []  # it says nothing that the files themselves do not say
