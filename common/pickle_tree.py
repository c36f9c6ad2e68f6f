"""Pickles read as data: a tree of inert nodes, from which a reader picks out what it knows. Nothing in them is run.

A pickle is a program: unpickling one imports and calls whatever it names. Here its instructions are followed without
that. A name stays a `Name`, a call that unpickling would make becomes a `Node` with its arguments, and nothing that is
named is ever looked up, imported or called. Sizes are bounded by the number of instructions and the file's own bytes.

Source: the instructions are those of `pickletools`; PEP 3154 and PEP 574 for protocols 4 and 5.
"""

from __future__ import annotations

import io
import os
import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


class PickleError(Exception):
    """What is wrong with a pickle, for the message."""


@dataclass(frozen=True)
class Name:
    """Something that a pickle refers to, as "module.name"; never looked up."""

    name: str


@dataclass(eq=False)
class Node:
    """A call that unpickling would make, and what it would do to the result.

    Attributes:
        what: would be called.
        args: with these.
        state: set on the result.
        items: appended to it.
        entries: set on it, key and value.
    """

    what: Name | Node
    args: tuple[Any, ...]
    state: Any = None
    items: list[Any] = field(default_factory=list)
    entries: list[tuple[Any, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of what would be called in the end."""
        what: Name | Node = self
        while isinstance(what, Node):
            what = what.what
        return what.name


class BoundedReader(io.BufferedReader):
    """A file that gives no more than it has: asked for 2**60 bytes, an ordinary one first makes room for them."""

    def read(self, size: int | None = -1, /) -> bytes:
        """At most so many bytes."""
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(os.fstat(self.fileno()).st_size - self.tell(), 0))
        return super().read(size)


def shown(value: Any) -> str:
    """A value for a message; of nested ones the type alone, because lists of lists of lists can be endless."""
    if isinstance(value, (list, tuple)) and all(isinstance(part, _PLAIN) for part in value):
        return repr(value[:8])[:100]
    return repr(value)[:100] if isinstance(value, _PLAIN) else f"a {type(value).__name__}"


def _keep_nothing(identity: Any) -> Any:
    raise PickleError("refers to something outside of it")


def read_tree(
    stream: io.BytesIO | BoundedReader,
    *,
    admit: Callable[[str], None] = lambda name: None,
    keep: Callable[[Any], Any] = _keep_nothing,
    refused: frozenset[str] = frozenset(),
    most_instructions: int,
) -> Any:
    """The tree of the pickle that begins where a stream stands; the stream then stands behind it.

    Args:
        stream: what is read.
        admit: raises a `PickleError` for a name that the file has no business with.
        keep: the value of something that lies outside of the pickle, by its identity.
        refused: instructions that files of this kind do without.
        most_instructions: after which reading ends in an error.

    Raises:
        PickleError: it does what no pickle of plain objects does.
        ArithmeticError, AttributeError, LookupError, TypeError, ValueError: cut short, or no pickle.
    """
    machine = _Machine(admit=admit, keep=keep)
    for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        name = instruction.name
        if count > most_instructions:
            raise PickleError(f"more than {most_instructions} instructions")
        if name in refused:
            raise PickleError(f"has the instruction {name}")
        if name in _VALUES:
            machine.stack.append(argument)
        elif name in _CONSTANTS:
            machine.stack.append(_CONSTANTS[name]())
        elif name in _STEPS:
            _STEPS[name](machine, argument)
        elif name == "STOP":
            return machine.stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise PickleError(f"has the instruction {name}")
    raise PickleError("is cut short")  # genops raises before


@dataclass(eq=False)
class _Machine:
    """The stack machine of pickles, building nodes in place of objects.

    Attributes:
        admit: see `read_tree`.
        keep: the same.
        stack: values so far.
        marks: heights of the stack at which a group began.
        memo: values that are referred to again.
    """

    admit: Callable[[str], None]
    keep: Callable[[Any], Any]
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def group(self) -> list[Any]:
        """Take off what was put on since the last mark."""
        height = self.marks.pop()
        taken = self.stack[height:]
        del self.stack[height:]
        return taken

    def take(self, count: int) -> tuple[Any, ...]:
        """Take off the topmost values, in the order in which they were put on."""
        if len(self.stack) < count:
            raise PickleError("takes more values than there are")
        taken = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return taken

    def named(self, module: Any, name: Any) -> Name:
        """A name, if the reader admits it."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleError("names something by what is no text")
        full = f"{module}.{name}"
        self.admit(full)
        return Name(full)

    def call(self, what: Any, args: Any) -> None:
        """Put on what a call would give."""
        if not (isinstance(what, (Name, Node)) and isinstance(args, tuple)):
            raise PickleError("calls what is no name")
        self.stack.append(Node(what, args))


def _build(machine: _Machine, _: Any) -> None:
    (state,) = machine.take(1)
    if not isinstance(machine.stack[-1], Node):
        raise PickleError("gives a state to a plain value")
    machine.stack[-1].state = state


def _append(machine: _Machine, values: Sequence[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, Node):
        target.items.extend(values)
    elif isinstance(target, list):
        target.extend(values)
    else:
        raise PickleError("appends to what is no list")


def _set_items(machine: _Machine, values: Sequence[Any]) -> None:
    target = machine.stack[-1]
    pairs = list(zip(values[::2], values[1::2], strict=True))
    for key, _ in pairs:
        # A tuple of tuples as a key would be hashed for ever.
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, _KEYS) for part in parts):
            raise PickleError(f"has a key of type {type(key).__name__}")
    if isinstance(target, Node):
        target.entries.extend(pairs)
    elif isinstance(target, dict):
        target.update(pairs)
    else:
        raise PickleError("sets items of what is no dictionary")


def _memoize(machine: _Machine, index: Any) -> None:
    machine.memo[len(machine.memo) if index is None else index] = machine.stack[-1]


def _pop(machine: _Machine, _: Any) -> None:
    if machine.marks and machine.marks[-1] == len(machine.stack):
        machine.marks.pop()
    else:
        machine.take(1)


def _pop_mark(machine: _Machine, _: Any) -> None:
    machine.group()


def _mapping(machine: _Machine, _: Any) -> None:
    values = machine.group()
    machine.stack.append({})
    _set_items(machine, values)


def _object(machine: _Machine, _: Any) -> None:
    what, *args = machine.group()
    machine.call(what, tuple(args))


def _with_keywords(machine: _Machine, _: Any) -> None:
    what, args, keywords = machine.take(3)
    machine.call(what, (*args, keywords) if keywords else args)


_PLAIN = (str, int, float, bytes, bool, type(None))
_KEYS = (str, int, float, bytes, type(None), Name, Node)

_VALUES = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
"""Instructions that put their argument on the stack."""

_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,  # sets stay lists: what is in them need not be hashed
}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.group())),
    "TUPLE1": lambda machine, _: machine.stack.append(machine.take(1)),
    "TUPLE2": lambda machine, _: machine.stack.append(machine.take(2)),
    "TUPLE3": lambda machine, _: machine.stack.append(machine.take(3)),
    "LIST": lambda machine, _: machine.stack.append(machine.group()),
    "FROZENSET": lambda machine, _: machine.stack.append(machine.group()),
    "DICT": _mapping,
    "APPEND": lambda machine, _: _append(machine, machine.take(1)),
    "APPENDS": lambda machine, _: _append(machine, machine.group()),
    "ADDITEMS": lambda machine, _: _append(machine, machine.group()),
    "SETITEM": lambda machine, _: _set_items(machine, machine.take(2)),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.group()),
    "MEMOIZE": _memoize,
    "PUT": _memoize,
    "BINPUT": _memoize,
    "LONG_BINPUT": _memoize,
    "GET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "GLOBAL": lambda machine, text: machine.stack.append(machine.named(*str(text).split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.stack.append(machine.named(*machine.take(2))),
    "INST": lambda machine, text: machine.call(machine.named(*str(text).split(" ", 1)), tuple(machine.group())),
    "OBJ": _object,
    "REDUCE": lambda machine, _: machine.call(*machine.take(2)),
    "NEWOBJ": lambda machine, _: machine.call(*machine.take(2)),
    "NEWOBJ_EX": _with_keywords,
    "BUILD": _build,
    "BINPERSID": lambda machine, _: machine.stack.append(machine.keep(*machine.take(1))),
}
"""Not among them: PERSID, the registry of extensions, and buffers that lie elsewhere, which no file here needs."""
