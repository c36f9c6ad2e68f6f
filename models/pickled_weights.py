"""What `torch.save` wrote, read as data: tensors and plain containers, nothing imported, nothing of the file called.

The pickle in a file is read as a tree (`common.pickle_tree`). Of the names in it those of a fixed list are known: the
functions that rebuild tensors, numpy's arrays and numbers, plain containers. For these, code of ours makes the value
from the arguments, checked against the file's own bytes. Everything else becomes an `Ignored` with its name.

Read: zip files (torch 1.6 and later), and the older ones, a row of pickles with the tensors' bytes behind them;
pickled by any protocol.

Source: `torch.serialization`, `torch._utils` and `numpy.core.multiarray` for what their pickles mean.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from common.pickle_tree import BoundedReader, PickleError
from models.pickled_numpy import text
from models.pickled_values import Reading, Storage, not_used

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""How the older files begin."""
_CHUNK = 1 << 24


@dataclass(frozen=True, kw_only=True)
class PickledWeights:
    """A file's content.

    Attributes:
        content: tensors, numbers, texts and containers of these; `Ignored` in the place of other objects.
        ignored: names of the classes and functions that the file refers to and that were not used, in its order.
        modules: those of them whose objects were networks: their tensors are in the content, by the names of a state
            dict.
    """

    content: object
    ignored: tuple[str, ...]
    modules: tuple[str, ...]


def read_pickled_weights(path: Path) -> PickledWeights:
    """Read a file of `torch.save`.

    Raises:
        PickleError: it is damaged, or its pickle does what none of plain objects does.
        Exception: whatever the damage of an archive or a pickle leads to.
    """
    reading = Reading(size=path.stat().st_size)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = _Members(archive, reading.size)
            tree = reading.tree(io.BytesIO(members.read("data.pkl")))
            reading.load = members.storage
            content = reading.value(tree)
    else:
        with BoundedReader(io.FileIO(path)) as file:
            tree = _read_row(file, reading)
        content = reading.value(tree)
    return PickledWeights(
        content=content, ignored=not_used(reading.names), modules=tuple(dict.fromkeys(reading.modules))
    )


# ---- where tensors have their bytes


class _Members:
    """An archive's members, none of them compressed, and together no larger than the archive."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        self._prefix = next(n for n in archive.namelist() if n.partition("/")[2] == "data.pkl").partition("/")[0] + "/"
        infos = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise PickleError("its members are compressed, which torch.save never does: unpack and save it again")
        if sum(info.file_size for info in infos) > size:
            raise PickleError("its members are larger than the file, so they overlap")
        if f"{self._prefix}byteorder" in archive.namelist() and self.read("byteorder") != b"little":
            raise PickleError("it was written on a machine with the other order of bytes")

    def read(self, name: str) -> bytes:
        """A member's bytes."""
        return self._archive.read(self._prefix + name)

    def storage(self, storage: Storage) -> Shaped[Tensor, " n"]:
        """A storage's numbers."""
        with self._archive.open(f"{self._prefix}data/{storage.key}") as member:
            return _numbers(iter(lambda: member.read(_CHUNK), b""), storage.dtype, storage.count)


def _read_row(file: BoundedReader, reading: Reading) -> Any:
    """The tree of an older file, whose storages are read as well."""
    magic, protocol, system = (reading.tree(file) for _ in range(3))
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise PickleError("it does not begin as torch.save's files do")
    if isinstance(system, Mapping) and system.get("little_endian") is False:
        raise PickleError("it was written on a machine with the other order of bytes")
    tree = reading.tree(file)
    for key in reading.tree(file):
        storage = reading.storages[text(key)]
        count = int.from_bytes(file.read(8), "little", signed=True)
        if count != storage.count:
            raise PickleError(f"storage {storage.key} has {count} numbers, expected {storage.count}")
        left = reading.size - file.tell()
        size = count * storage.dtype.itemsize
        if size > left:
            raise PickleError(f"it is cut short: {size - left} bytes of storage {storage.key} are missing")
        sizes = (min(_CHUNK, size - start) for start in range(0, size, _CHUNK))
        storage.values = _numbers((file.read(part) for part in sizes), storage.dtype, count)
    return tree


def _numbers(parts: Iterable[bytes], dtype: torch.dtype, count: int) -> Shaped[Tensor, " n"]:
    data = bytearray()
    for part in parts:
        data += part
    size = count * dtype.itemsize
    if len(data) < size:
        raise PickleError(f"a storage has {len(data)} bytes, expected {size}")
    # An empty buffer is none for torch.
    return torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
