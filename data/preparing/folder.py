"""The folder of a set in the making: who may work in it, with which settings it was begun, what a crash left.

Locks are the kernel's: they go with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from common.files import replace_file
from common.trees import flat
from data.preparing.shard_task import RECORDS, ShardTask
from data.storage.shard import ShardError
from data.storage.store import MANIFEST_NAME
from data.storage.untrusted import parse_json

_SETTINGS = "settings.json"
_MAX_SETTINGS_BYTES = 16 << 20


@contextlib.contextmanager
def locked(root: str, *, shared: bool = False) -> Iterator[None]:
    """Work in a set's folder, made if absent: one process at a time, or (`shared`) many that make a share each.

    Raises:
        ShardError: it is in use, or holds a set that was not prepared there.
    """
    folder = Path(root) / RECORDS
    if (Path(root) / MANIFEST_NAME).exists() and not folder.is_dir():
        raise ShardError(f"{root} holds a shard set that was not prepared here; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:  # NFS gives shared locks only to who may read
        with _settings_locked(folder) if shared else contextlib.nullcontext():  # shares that begin at once take turns
            if shared and _taken(file, fcntl.LOCK_EX) and not any(folder.glob("unit-*.json")):
                forget_if_empty(root)  # nobody is at work, and nobody was
            if not _taken(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
                raise ShardError(
                    f"another process is preparing {root}; wait for it, or stop it and run this again to continue"
                )
        yield


def _taken(file: IO[str], kind: int) -> bool:
    """Whether a lock of this kind could be had at once; takes the place of one that is held."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _settings_locked(folder: Path) -> Iterator[None]:
    with (folder / f"{_SETTINGS}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def tasks_locked(root: str, tasks: Sequence[ShardTask]) -> Iterator[None]:
    """Keep neighbouring shards for this process alone, also against shares that were cut otherwise.

    Raises:
        ShardError: another process makes some of them.
    """
    if not tasks:
        yield
        return
    with (Path(root) / RECORDS / "units.lock").open("a") as file:
        try:
            # Each shard is one byte of the file.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, len(tasks), tasks[0].number)
        except (BlockingIOError, PermissionError):
            raise ShardError(
                f"another process is making shards {tasks[0].number} to {tasks[-1].number} of {root}, or some of them; "
                "is the same share running twice?"
            ) from None
        yield


def forget_if_empty(root: str) -> None:
    """Forget how a folder was begun in which no shard was written: it may be begun with other settings, or again.

    The folder must be kept for this process alone (`locked`).
    """
    if not any(Path(root).glob("shard-*.tar")) and not (Path(root) / MANIFEST_NAME).exists():
        for record in ((Path(root) / RECORDS / _SETTINGS), *(Path(root) / RECORDS).glob("unit-*.json")):
            record.unlink(missing_ok=True)


def same_settings(root: str, settings: Mapping[str, Any]) -> None:
    """Store the settings (all that the set's bytes depend on, plain JSON) in a new folder; compare in one begun before.

    Raises:
        ShardError: it was begun with others; names the first that differs.
    """
    path = Path(root) / RECORDS / _SETTINGS
    with _settings_locked(path.parent):  # several shares may begin at once
        if not path.is_file():
            replace_file(path, (json.dumps(settings, indent=1) + "\n").encode())
            return
    # An empty section counts as none: a version that adds one continues a set that was begun before it.
    trees = (flat(_stored(path)), flat(settings))
    before, now = ({name: value for name, value in tree.items() if value != {}} for tree in trees)
    name = next((name for name in {**before, **now} if before.get(name) != now.get(name)), None)
    if name is not None:
        hint = " (the source's logs or frames have changed since)" if name == "source_frames" else ""
        raise ShardError(
            f"{root} was begun with {name} = {before.get(name)!r}, now it is {now.get(name)!r}{hint}; continue with "
            "the settings that it was begun with, or choose a new folder"
        )


def _stored(path: Path) -> dict[str, Any]:
    try:
        settings = parse_json(path.read_bytes(), _MAX_SETTINGS_BYTES)
        if isinstance(settings, dict):
            return settings
        raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise ShardError(f"{path} is damaged ({error}); prepare the set into a new folder") from error


@contextlib.contextmanager
def storage_errors_named(root: str) -> Iterator[None]:
    """A full disk, a quota, a folder that may not be written: one message and no traceback.

    Raises:
        ShardError: instead of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise ShardError(
            f"preparing {root} stopped: {error}; nothing half-written is taken for whole. When the cause is removed, "
            "run the same command again: it continues; or prepare into another folder"
        ) from error


def sweep(root: str, tasks: Sequence[ShardTask] | None = None) -> None:
    """Remove what a crash left half written, of these tasks only or (None) of all."""
    patterns = ["*.tmp"] if tasks is None else [f"*-{task.number:06d}.*.tmp" for task in tasks]
    for folder in (Path(root), Path(root) / RECORDS):
        for pattern in patterns:
            for leftover in folder.glob(pattern):
                leftover.unlink()
