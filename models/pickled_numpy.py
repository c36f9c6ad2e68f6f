"""numpy's arrays and numbers, and small values, as nodes of a pickle that is read as data.

See `models.pickled_weights`, which reads the file.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from common.pickle_tree import Node, PickleError, shown

BYTES = frozenset(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("bytes", "bytearray"))

_DTYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
}

_MOST_AXES = 64


def plain_bytes(node: Any) -> bytes | None:
    """Bytes as the different protocols and Pythons write them."""
    if isinstance(node, Node) and node.name == "_codecs.encode" and isinstance(node.args[0], str):
        return node.args[0].encode("latin-1")
    if isinstance(node, Node) and node.name in BYTES:
        return plain_bytes(node.args[0]) if node.args else b""
    if isinstance(node, str):  # Python 2
        return node.encode("latin-1")
    return bytes(node) if isinstance(node, (bytes, bytearray)) else None


def numpy_array(dtype: Any, data: Any, shape: Any, *, by_column: bool = False) -> Tensor | None:
    """The numbers in some bytes; None for types that torch lacks (texts, dates, objects)."""
    if not (isinstance(dtype, Node) and dtype.name == "numpy.dtype"):
        return None
    kind = _DTYPES.get(text(dtype.args[0]).lstrip("<=|"))
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "="
    held, sides = plain_bytes(data), tuple(parts(shape))
    if kind is None or text(order) == ">" or held is None:
        return None
    if not is_shape(sides) or len(held) != math.prod(sides) * kind.itemsize:
        raise PickleError(f"has an array of shape {shown(sides)} with {len(held)} bytes")
    if not held:  # an empty buffer is none for torch
        return torch.empty(sides, dtype=kind)
    read = torch.frombuffer(bytearray(held), dtype=kind)
    if by_column:
        return read.reshape(sides[::-1]).permute(*reversed(range(len(sides)))).contiguous()
    return read.reshape(sides)


def parts(node: Any) -> list[Any]:
    """The values of a list, a tuple, a set or a `torch.Size`."""
    if isinstance(node, Node):
        node = node.items or (node.args[0] if node.args else [])
    return list(node) if isinstance(node, (list, tuple)) else []


def is_count(value: Any) -> bool:
    """Whether a value can be a number of things."""
    return type(value) is int and 0 <= value < 2**62


def is_shape(sides: tuple[Any, ...]) -> bool:
    """Whether values can be the sides of an array."""
    return len(sides) <= _MOST_AXES and all(map(is_count, sides))


def text(value: Any) -> str:
    """A text, which Python 2 wrote as bytes, or a number as text."""
    if isinstance(value, bytes):
        return value.decode("ascii")
    if not isinstance(value, (str, int)):
        raise PickleError(f"has {shown(value)} in the place of a text")
    return str(value)
