"""Tables that pandas pickled (``.pkl.gz``), read without pandas and without unpickling.

The pickle is read as a tree (`common.pickle_tree`), from which the columns are picked out. Only names that pandas and
numpy write for a plain table are admitted. Sizes are bounded: of the decompressed file, of the number of instructions,
of each array by its own bytes.

Read so far: tables of numbers, booleans and text written by pandas 0.25, 1.0, 1.2, 1.5, 2.2 and 3.0.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from common.pickle_tree import Node, PickleError, read_tree, shown
from data.convert.raw_files import read_bytes
from data.storage.damage import DamagedError

MAX_TABLE_BYTES = 256 << 20
"""Of the decompressed file; a sweep of two scanners has some 10 MB."""

_MAX_INSTRUCTIONS = 4_000_000
"""A table needs a few for each text cell, and a hundred besides."""

_MAX_COLUMNS = 1000
_MAX_AXES = 4

_TABLES = frozenset({"pandas.core.frame.DataFrame", "pandas.DataFrame"})
_MANAGER = "pandas.core.internals.managers.BlockManager"
_BLOCK = "pandas._libs.internals._unpickle_block"
_PLACEMENT = "pandas._libs.internals.BlockPlacement"
_SLICE = "builtins.slice"
_INDEX = "pandas.core.indexes.base._new_Index"
_DTYPE = "numpy.dtype"
_FROM_BUFFER = frozenset({"numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"})
_RECONSTRUCT = frozenset({"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"})
_BACKED = "pandas._libs.arrays.__pyx_unpickle_NDArrayBacked"
_OTHER = frozenset(
    {
        *("numpy.ndarray", "pandas.core.indexes.base.Index", "pandas.core.indexes.numeric.Int64Index"),
        *("pandas.core.indexes.range.RangeIndex", "pandas.RangeIndex", "pandas.Index", "pandas.StringDtype"),
        *("pandas.core.arrays.string_.StringArray", "pandas.arrays.StringArray"),
        "pandas.core.arrays.string_.StringDtype",
    }
)
_ADMITTED = (
    _TABLES | {_MANAGER, _BLOCK, _PLACEMENT, _SLICE, _INDEX, _DTYPE, _BACKED} | _FROM_BUFFER | _RECONSTRUCT | _OTHER
)
_REFUSED = frozenset({"INST", "OBJ", "BINPERSID", "LONG4", "POP", "POP_MARK", "DUP"})
"""Instructions that no table needs."""
_NUMBER = re.compile(r"[fiu][1248]\Z|b1\Z")


def read_table(path: Path) -> dict[str, Shaped[np.ndarray, " rows"]]:
    """Columns of a pickled table by name, in the order of its rows; text columns hold Python objects.

    Raises:
        DamagedError: the file is missing, damaged, larger than any table of the set, or holds anything but a plain
            table; the message names what it refers to.
    """
    data = _gunzip(path)
    try:
        return _columns(
            read_tree(io.BytesIO(data), admit=_admit, refused=_REFUSED, most_instructions=_MAX_INSTRUCTIONS)
        )
    except PickleError as error:
        raise DamagedError("array-broken", f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise DamagedError("array-broken", f"{path} is no table that pandas pickled: {error!r:.200}") from error


def _gunzip(path: Path) -> bytes:
    """The file's content, of at most `MAX_TABLE_BYTES`."""
    packed = read_bytes(path)
    stream = zlib.decompressobj(wbits=31)  # with gzip's header and checksum
    try:
        data = stream.decompress(packed, MAX_TABLE_BYTES)
    except zlib.error as error:
        raise DamagedError("array-broken", f"{path}: {error}") from error
    if not stream.eof:
        cause = f"more than {MAX_TABLE_BYTES} bytes decompressed" if stream.unconsumed_tail else "cut short"
        raise DamagedError("array-broken", f"{path}: {cause}")
    return data


def _admit(name: str) -> None:
    if name not in _ADMITTED:
        raise PickleError(f"refers to {name!r:.100}, which no table needs: not read")


# ---- the tree as a table
def _columns(root: Any) -> dict[str, Shaped[np.ndarray, " rows"]]:
    if not (isinstance(root, Node) and root.name in _TABLES):
        raise PickleError(f"holds {getattr(root, 'name', type(root).__name__)}, expected a pandas.DataFrame")
    manager = root.state["_mgr"] if "_mgr" in root.state else root.state["_data"]  # since pandas 1.1, before
    if manager.args:  # since pandas 1.3
        (blocks, axes) = manager.args
        parts = [_expect(block, _BLOCK).args[:2] for block in blocks]
    else:
        stored = manager.state[3]["0.14.1"]
        axes, parts = stored["axes"], [(block["values"], block["mgr_locs"]) for block in stored["blocks"]]
    names = _array(_expect(axes[0], _INDEX).args[1]["data"])
    if max(names.size, len(parts)) > _MAX_COLUMNS:
        raise PickleError(f"has {names.size} columns in {len(parts)} blocks, at most {_MAX_COLUMNS} are read")
    table: dict[str, Shaped[np.ndarray, " rows"]] = {}
    for values, placement in parts:
        rows = _array(values)
        for row, position in zip(np.atleast_2d(rows), _positions(placement, len(names)), strict=True):
            table[str(names[position])] = row
    if len(table) != len(names) or len({column.shape for column in table.values()}) > 1:
        raise PickleError(f"columns {', '.join(map(str, names))!r:.200} are incomplete or differ in length")
    return table


def _expect(node: Any, name: str) -> Node:
    if not (isinstance(node, Node) and node.name == name):
        raise PickleError(f"holds {getattr(node, 'name', type(node).__name__)}, expected {name}")
    return node


def _positions(placement: Any, count: int) -> Sequence[int]:
    """Which columns a block's rows are."""
    if isinstance(placement, Node) and placement.name == _PLACEMENT:
        return _positions(placement.args[0], count)
    if isinstance(placement, Node) and placement.name == _SLICE:
        return range(*slice(*placement.args).indices(count))
    positions = _array(placement)
    if positions.size > count:
        raise PickleError(f"puts {positions.size} columns into {count}")
    return [int(position) for position in positions]


def _array(node: Any) -> Shaped[np.ndarray, "..."]:
    """A numpy array from its shape, type and bytes, each checked against the others."""
    if not isinstance(node, Node):
        raise PickleError(f"holds {type(node).__name__} in place of an array")
    if node.name == _BACKED:
        held = node.state if isinstance(node.state, tuple) else node.args[2]
        return _array(next(part for part in held if isinstance(part, Node) and part.name in _RECONSTRUCT))
    if node.name in _FROM_BUFFER:
        data, kind, shape, order = node.args
        fortran = order == "F"
    elif node.name in _RECONSTRUCT:
        _, shape, kind, fortran, data = node.state
    else:
        raise PickleError(f"holds {node.name} in place of an array")
    if len(shape) > _MAX_AXES:
        raise PickleError(f"has an array of {len(shape)} axes")
    size = 1
    for side in shape:
        if not isinstance(side, int) or side < 0:
            raise PickleError(f"has an array of shape {shown(shape)}")
        size *= side
    code = _expect(kind, _DTYPE).args[0]
    if not isinstance(code, str):
        raise PickleError(f"has an array of type {shown(code)}")
    flat = _objects(data) if code in ("O", "O8") else _numbers(data, code, kind.state[1])
    if flat.size != size:
        raise PickleError(f"has an array of shape {shown(shape)} with {flat.size} values")
    return np.asarray(flat.reshape(shape, order="F" if fortran else "C"))


def _numbers(data: Any, code: str, byte_order: Any) -> Shaped[np.ndarray, " n"]:
    if not (_NUMBER.match(code) and byte_order in ("<", ">", "|", "=") and isinstance(data, (bytes, bytearray))):
        raise PickleError(f"has an array of type {byte_order}{code!r:.20}")
    return np.frombuffer(data, byte_order + code)


def _objects(data: Any) -> Shaped[np.ndarray, " n"]:
    """Cells of text, numbers, booleans or nothing."""
    if not (isinstance(data, list) and all(isinstance(cell, (str, int, float, type(None))) for cell in data)):
        raise PickleError("has cells that are neither text nor numbers")
    flat = np.empty(len(data), dtype=object)
    flat[:] = data
    return flat
