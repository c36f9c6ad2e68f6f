"""Tables that pandas pickled (``.pkl.gz``), read without pandas and without unpickling.

A pickle is a program: unpickling one runs whatever it names. Here the program is read as data. Its instructions build
a tree of inert nodes ("a call of f with these arguments, given this state"), nothing named is ever imported or called,
and from that tree the columns are picked out. Only names that pandas and numpy write for a plain table are admitted.
Sizes are bounded: of the decompressed file, of the number of instructions, of each array by its own bytes.

Read so far: tables of numbers, booleans and text written by pandas 0.25, 1.0, 1.2, 1.5, 2.2 and 3.0.

Source: the instructions are those of `pickletools`; PEP 3154 and PEP 574 for protocols 4 and 5.
"""

from __future__ import annotations

import pickletools
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

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
_NUMBER = re.compile(r"[fiu][1248]\Z|b1\Z")


class _PickleError(Exception):
    """What is wrong with the pickle, for the message."""


@dataclass(frozen=True)
class _Name:
    """Something that the pickle refers to, never looked up."""

    name: str


@dataclass(eq=False)
class _Node:
    """A call that unpickling would make."""

    name: str
    args: tuple[Any, ...]
    state: Any = None


def read_table(path: Path) -> dict[str, Shaped[np.ndarray, " rows"]]:
    """Columns of a pickled table by name, in the order of its rows; text columns hold Python objects.

    Raises:
        DamagedError: the file is missing, damaged, larger than any table of the set, or holds anything but a plain
            table; the message names what it refers to.
    """
    data = _gunzip(path)
    try:
        return _columns(_Machine().run(data))
    except _PickleError as error:
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


# ---- the pickle as a tree
@dataclass(eq=False)
class _Machine:
    """The stack machine of pickles, building nodes in place of objects.

    Attributes:
        stack: values so far.
        marks: heights of the stack at which a group began.
        memo: values that are referred to again.
    """

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self, data: bytes) -> Any:
        """The tree's root."""
        for count, (instruction, argument, _) in enumerate(pickletools.genops(data)):
            name = instruction.name
            if count > _MAX_INSTRUCTIONS:
                raise _PickleError(f"more than {_MAX_INSTRUCTIONS} instructions")
            if name in _VALUES:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name in _STEPS:
                _STEPS[name](self, argument)
            elif name == "STOP":
                return self.stack.pop()
            elif name not in ("PROTO", "FRAME"):
                raise _PickleError(f"has the instruction {name}, which no table needs")
        raise _PickleError("cut short")  # genops raises before

    def group(self) -> list[Any]:
        """Take off what was put on since the last mark."""
        height = self.marks.pop()
        taken = self.stack[height:]
        del self.stack[height:]
        return taken

    def take(self, count: int) -> tuple[Any, ...]:
        """Take off the topmost values, in the order in which they were put on."""
        if len(self.stack) < count:
            raise _PickleError("takes more values than there are")
        taken = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return taken


def _name(module: Any, name: Any) -> _Name:
    full = f"{module}.{name}"
    if full not in _ADMITTED:
        raise _PickleError(f"refers to {full!r:.100}, which no table needs: not read")
    return _Name(full)


def _call(machine: _Machine, _: Any) -> None:
    function, args = machine.take(2)
    if not (isinstance(function, _Name) and isinstance(args, tuple)):
        raise _PickleError("calls what is no name")
    machine.stack.append(_Node(function.name, args))


def _build(machine: _Machine, _: Any) -> None:
    (state,) = machine.take(1)
    if not isinstance(machine.stack[-1], _Node):
        raise _PickleError("gives a state to a plain value")
    machine.stack[-1].state = state


def _append(machine: _Machine, values: Sequence[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, list):
        raise _PickleError("appends to what is no list")
    target.extend(values)


def _set_items(machine: _Machine, values: Sequence[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict):
        raise _PickleError("sets items of what is no dictionary")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, (str, int)):  # a nested tuple as key would be hashed for ever
            raise _PickleError(f"has a key of type {type(key).__name__}")
        target[key] = value


def _memoize(machine: _Machine, index: Any) -> None:
    machine.memo[len(machine.memo) if index is None else index] = machine.stack[-1]


_VALUES = frozenset(
    {
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
"""Instructions that put their argument on the stack. LONG4 is not among them: no table needs such numbers."""

_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.group())),
    "TUPLE1": lambda machine, _: machine.stack.append(machine.take(1)),
    "TUPLE2": lambda machine, _: machine.stack.append(machine.take(2)),
    "TUPLE3": lambda machine, _: machine.stack.append(machine.take(3)),
    "APPEND": lambda machine, _: _append(machine, machine.take(1)),
    "APPENDS": lambda machine, _: _append(machine, machine.group()),
    "SETITEM": lambda machine, _: _set_items(machine, machine.take(2)),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.group()),
    "MEMOIZE": _memoize,
    "BINPUT": _memoize,
    "LONG_BINPUT": _memoize,
    "BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "GLOBAL": lambda machine, text: machine.stack.append(_name(*str(text).split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.stack.append(_name(*machine.take(2))),
    "REDUCE": _call,
    "NEWOBJ": _call,
    "BUILD": _build,
}


# ---- the tree as a table
def _columns(root: Any) -> dict[str, Shaped[np.ndarray, " rows"]]:
    if not (isinstance(root, _Node) and root.name in _TABLES):
        raise _PickleError(f"holds {getattr(root, 'name', type(root).__name__)}, expected a pandas.DataFrame")
    manager = root.state["_mgr"] if "_mgr" in root.state else root.state["_data"]  # since pandas 1.1, before
    if manager.args:  # since pandas 1.3
        (blocks, axes) = manager.args
        parts = [_expect(block, _BLOCK).args[:2] for block in blocks]
    else:
        stored = manager.state[3]["0.14.1"]
        axes, parts = stored["axes"], [(block["values"], block["mgr_locs"]) for block in stored["blocks"]]
    names = _array(_expect(axes[0], _INDEX).args[1]["data"])
    if max(names.size, len(parts)) > _MAX_COLUMNS:
        raise _PickleError(f"has {names.size} columns in {len(parts)} blocks, at most {_MAX_COLUMNS} are read")
    table: dict[str, Shaped[np.ndarray, " rows"]] = {}
    for values, placement in parts:
        rows = _array(values)
        for row, position in zip(np.atleast_2d(rows), _positions(placement, len(names)), strict=True):
            table[str(names[position])] = row
    if len(table) != len(names) or len({column.shape for column in table.values()}) > 1:
        raise _PickleError(f"columns {', '.join(map(str, names))!r:.200} are incomplete or differ in length")
    return table


def _expect(node: Any, name: str) -> _Node:
    if not (isinstance(node, _Node) and node.name == name):
        raise _PickleError(f"holds {getattr(node, 'name', type(node).__name__)}, expected {name}")
    return node


def _positions(placement: Any, count: int) -> Sequence[int]:
    """Which columns a block's rows are."""
    if isinstance(placement, _Node) and placement.name == _PLACEMENT:
        return _positions(placement.args[0], count)
    if isinstance(placement, _Node) and placement.name == _SLICE:
        return range(*slice(*placement.args).indices(count))
    positions = _array(placement)
    if positions.size > count:
        raise _PickleError(f"puts {positions.size} columns into {count}")
    return [int(position) for position in positions]


def _array(node: Any) -> Shaped[np.ndarray, "..."]:
    """A numpy array from its shape, type and bytes, each checked against the others."""
    if not isinstance(node, _Node):
        raise _PickleError(f"holds {type(node).__name__} in place of an array")
    if node.name == _BACKED:
        held = node.state if isinstance(node.state, tuple) else node.args[2]
        return _array(next(part for part in held if isinstance(part, _Node) and part.name in _RECONSTRUCT))
    if node.name in _FROM_BUFFER:
        data, kind, shape, order = node.args
        fortran = order == "F"
    elif node.name in _RECONSTRUCT:
        _, shape, kind, fortran, data = node.state
    else:
        raise _PickleError(f"holds {node.name} in place of an array")
    if len(shape) > _MAX_AXES:
        raise _PickleError(f"has an array of {len(shape)} axes")
    size = 1
    for side in shape:
        if not isinstance(side, int) or side < 0:
            raise _PickleError(f"has an array of shape {shape!r:.100}")
        size *= side
    code = _expect(kind, _DTYPE).args[0]
    flat = _objects(data) if code in ("O", "O8") else _numbers(data, str(code), kind.state[1])
    if flat.size != size:
        raise _PickleError(f"has an array of shape {shape!r:.100} with {flat.size} values")
    return np.asarray(flat.reshape(shape, order="F" if fortran else "C"))


def _numbers(data: Any, code: str, byte_order: Any) -> Shaped[np.ndarray, " n"]:
    if not (_NUMBER.match(code) and byte_order in ("<", ">", "|", "=") and isinstance(data, (bytes, bytearray))):
        raise _PickleError(f"has an array of type {byte_order}{code!r:.20}")
    return np.frombuffer(data, byte_order + code)


def _objects(data: Any) -> Shaped[np.ndarray, " n"]:
    """Cells of text, numbers, booleans or nothing."""
    if not (isinstance(data, list) and all(isinstance(cell, (str, int, float, type(None))) for cell in data)):
        raise _PickleError("has cells that are neither text nor numbers")
    flat = np.empty(len(data), dtype=object)
    flat[:] = data
    return flat
