"""The folder of a set in the making: who may work in it, with which settings it was begun, what a crash left.

Locks are the kernel's: they go with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import replace_file
from common.trees import flat
from data.preparing.unit import RECORDS, Unit
from data.storage.shard import ShardError
from data.storage.store import MANIFEST_NAME
from data.storage.untrusted import parse_json

_SETTINGS = "settings.json"
_MAX_SETTINGS_BYTES = 16 << 20


@contextlib.contextmanager
def locked(root: str, *, shared: bool = False) -> Iterator[None]:
    """Work in a folder, made if absent: one process at a time, or many shares.

    Args:
        root: folder of the set.
        shared: for a share.

    Raises:
        ShardError: it is in use, or holds a set that was not prepared there.
    """
    folder = Path(root) / RECORDS
    if (Path(root) / MANIFEST_NAME).exists() and not folder.is_dir():
        raise ShardError(f"{root} holds a shard set that was not prepared here; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:  # NFS gives shared locks only to who may read
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardError(
                f"another process is preparing {root}; wait for it, or stop it and run this again to continue"
            ) from None
        yield


@contextlib.contextmanager
def units_locked(root: str, units: Sequence[Unit]) -> Iterator[None]:
    """Keep neighbouring units for this process alone, also against shares that were cut otherwise.

    Args:
        root: folder of the set.
        units: to be made; each is one byte of the lock file.

    Raises:
        ShardError: another process makes some of them.
    """
    if not units:
        yield
        return
    with (Path(root) / RECORDS / "units.lock").open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, len(units), units[0].number)
        except (BlockingIOError, PermissionError):
            raise ShardError(
                f"another process is making shards {units[0].number} to {units[-1].number} of {root}, or some of them; "
                "is the same share running twice?"
            ) from None
        yield


def same_settings(root: str, settings: Mapping[str, Any]) -> None:
    """Store the settings in a new folder; in one that was begun, check that they are the same.

    Args:
        root: folder of the set.
        settings: all that its bytes depend on, as plain JSON.

    Raises:
        ShardError: it was begun with others; names the first that differs.
    """
    path = Path(root) / RECORDS / _SETTINGS
    with path.with_name(f"{_SETTINGS}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several shares may begin at once
        if not path.is_file():
            replace_file(path, (json.dumps(settings, indent=1) + "\n").encode())
            return
    # An empty section counts as none: a version that adds one continues a set that was begun before it.
    trees = (flat(_stored(path)), flat(settings))
    before, now = ({name: value for name, value in tree.items() if value != {}} for tree in trees)
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        name = differing[0]
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

    Args:
        root: folder of the set.

    Raises:
        ShardError: instead of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise ShardError(
            f"preparing {root} stopped: {error}; nothing half-written is taken for whole. When the cause is removed, "
            "run the same command again: it continues"
        ) from error


def sweep(root: str, units: Sequence[Unit] | None = None) -> None:
    """Remove what a crash left half written.

    Args:
        root: folder of the set.
        units: only theirs; None for all.
    """
    patterns = ["*.tmp"] if units is None else [f"*-{unit.number:06d}.*.tmp" for unit in units]
    for folder in (Path(root), Path(root) / RECORDS):
        for pattern in patterns:
            for leftover in folder.glob(pattern):
                leftover.unlink()
