"""What the names in a pickle of `torch.save` stand for: code of ours makes each value from its arguments.

See `models.pickled_weights`, which reads the file.
"""

from __future__ import annotations

import argparse
import collections
import io
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from common.pickle_tree import BoundedReader, Name, Node, PickleError, read_tree, shown
from models.pickled_numpy import BYTES, is_count, is_shape, numpy_array, parts, plain_bytes, text

MOST_INSTRUCTIONS = 4_000_000
"""Of a file's pickle. Weights and an optimizer need some ten for each tensor, a history one for each number."""

_MOST_TENSORS = 1_000_000


@dataclass(frozen=True)
class Ignored:
    """In the place of an object of a class that is not known here: what it was, and nothing else."""

    name: str


@dataclass(eq=False)
class Storage:
    """A row of numbers in the file, that tensors are views of.

    Attributes:
        key: by which the file calls it.
        dtype: of its numbers.
        count: how many there are, as the pickle says.
        values: the numbers, once read.
    """

    key: str
    dtype: torch.dtype
    count: int
    values: Shaped[Tensor, " n"] | None = None


@dataclass(frozen=True)
class _StorageView:
    """A part of a storage, as older files have it."""

    whole: Storage
    offset: int
    count: int


_STORAGE = re.compile(r"torch(?:\.\w+)?\.(\w+)Storage")
_STORAGE_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "Untyped": torch.uint8,
}


# ---- from the tree to values


@dataclass(eq=False)
class Reading:
    """One file on its way from a tree to values.

    Attributes:
        size: of the file, bytes.
        load: gives the numbers of a storage that has none yet.
        storages: by key.
        names: that the file refers to, in its order.
        modules: classes of networks that were taken apart.
        made: node and value by the node's identity, so that what is shared stays shared.
        open: identities of the nodes that are being made.
    """

    size: int
    load: Callable[[Storage], Shaped[Tensor, " n"]] | None = None
    storages: dict[str, Storage] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    made: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)

    def tree(self, stream: io.BytesIO | BoundedReader) -> Any:
        """The next pickle of a stream."""
        return read_tree(
            stream,
            admit=lambda name: self.names.setdefault(name, None),
            keep=self.kept,
            most_instructions=MOST_INSTRUCTIONS,
        )

    def kept(self, identity: Any) -> Any:
        """What a pickle says of something outside of it: a storage, or a class with its source code."""
        kind, *rest = identity
        if text(kind) == "module":
            return rest[0]
        if text(kind) != "storage":
            raise PickleError(f"refers to {shown(kind)}, expected a storage")
        named, key, _, count, *view = rest
        found = _STORAGE.fullmatch(named.name)
        dtype = None if found is None else _STORAGE_DTYPES.get(found[1])
        if dtype is None or not is_count(count):
            raise PickleError(f"has a storage of type {shown(named.name)} and {shown(count)} numbers")
        storage = self.storages.setdefault(text(key), Storage(text(key), dtype, count))
        if storage.dtype != dtype:
            raise PickleError(f"storage {storage.key} has two types")
        if view and view[0] is not None:
            _, offset, part = view[0]
            return _StorageView(storage, offset, part)
        return storage

    def value(self, node: Any) -> Any:
        """A node as a value.

        Raises:
            PickleError: it contains itself, or contradicts the file.
        """
        if not isinstance(node, (dict, list, tuple, Node, Name)):
            return node
        if isinstance(node, Name):
            return Ignored(node.name)
        if id(node) in self.made:
            return self.made[id(node)][1]
        if id(node) in self.open:
            raise PickleError("a value contains itself: endless recursion")
        self.open.add(id(node))
        made = self._make(node)
        self.open.remove(id(node))
        self.made[id(node)] = (node, made)
        return made

    def _make(self, node: Any) -> Any:
        if isinstance(node, dict):
            return self.entries(node.items())
        if isinstance(node, (list, tuple)):
            return type(node)(map(self.value, node))
        make = _KNOWN.get(node.name) if isinstance(node.what, Name) else None
        if make is not None:
            return make(self, node)
        if _is_module(node):
            return self.module(node)
        if node.entries:  # a mapping of a class of theirs
            return self.mapping(node)
        if node.items:
            return [self.value(item) for item in node.items]
        return Ignored(_class_of(node))

    def mapping(self, node: Node) -> dict[Any, Any]:
        """The entries of a node that stands for a mapping."""
        first = node.args[0] if node.args else None
        if isinstance(first, list):  # Python 2 gave an ordered one its entries so
            first = {key: item for key, item in first if isinstance(key, (str, int))}
        return self.entries((*(first.items() if isinstance(first, dict) else ()), *node.entries))

    def entries(self, pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
        """Entries as values, without those whose key is no plain value."""
        made = {}
        for key, item in pairs:
            if isinstance(key, (Name, Node)):
                self.names.setdefault("entries whose key is an object", None)
            else:
                made[key] = self.value(item)
        return made

    def module(self, node: Node) -> dict[str, Any]:
        """The tensors of a whole network that was pickled, by the names of its state dict."""
        self.modules.append(_class_of(node))
        state = node.state
        transient = set(map(str, parts(state.get("_non_persistent_buffers_set"))))
        tensors = {}
        for part in ("_parameters", "_buffers"):
            for name, item in self.value(state[part]).items():
                if isinstance(item, Tensor) and name not in transient:
                    tensors[str(name)] = item
        for name, item in self.value(state["_modules"]).items():
            if isinstance(item, dict):
                if len(tensors) + len(item) > _MOST_TENSORS:  # modules within modules may be shared
                    raise PickleError(f"has a network of more than {_MOST_TENSORS} tensors")
                tensors |= {f"{name}.{key}": value for key, value in item.items()}
        return tensors

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> Tensor:
        """A view of a storage."""
        size, stride = (tuple(parts(side)) for side in (size, stride))
        whole, start, count = (
            (storage.whole, storage.offset, storage.count)
            if isinstance(storage, _StorageView)
            else (storage, 0, getattr(storage, "count", 0))
        )
        if not isinstance(whole, Storage) or not (
            is_shape(size) and is_shape(stride) and is_shape((offset, start, count))
        ):
            raise PickleError(f"has a tensor of shape {shown(size)}, steps {shown(stride)}, offset {shown(offset)}")
        if whole.values is None:
            if self.load is None:
                raise PickleError(f"has no numbers of storage {whole.key}")
            whole.values = self.load(whole)
        values = whole.values[start : start + count]
        if dtype is not None:
            values = values.view(dtype)
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= len(values):
            raise PickleError(f"has a tensor of shape {shown(size)} in a storage of {len(values)} numbers")
        if math.prod(size) * values.element_size() > self.size:  # steps of 0 make much of little
            raise PickleError(f"has a tensor of shape {shown(size)}, larger than the file")
        return torch.as_strided(values, size, stride, offset)


def _class_of(node: Node) -> str:
    """Of the object that a node stands for."""
    if node.name in _MAKERS and node.args and isinstance(node.args[0], Name):
        return node.args[0].name
    return node.name


def _is_module(node: Node) -> bool:
    return isinstance(node.state, dict) and {"_parameters", "_buffers", "_modules"} <= {*node.state}


# ---- what is known


def _rebuild_tensor(reading: Reading, node: Node) -> Tensor:
    storage, offset, size, stride, *_ = node.args
    return reading.tensor(storage, offset, size, stride)


def _rebuild_tensor_v3(reading: Reading, node: Node) -> Tensor:
    storage, offset, size, stride, _, _, named, *_ = node.args
    dtype = _DTYPES.get(named.name) if isinstance(named, Name) else None
    if dtype is None:
        raise PickleError(f"has a tensor of type {shown(getattr(named, 'name', named))}")
    return reading.tensor(storage, offset, size, stride, dtype)


def _rebuild_from_type(reading: Reading, node: Node) -> Any:
    what, _, args, *_ = node.args
    return reading.value(Node(what, args))


def _ordered(reading: Reading, node: Node) -> collections.OrderedDict[Any, Any]:
    made = collections.OrderedDict(reading.mapping(node))
    # A state dict tells the versions of its modules by an attribute.
    if isinstance(node.state, dict) and "_metadata" in node.state:
        made._metadata = reading.value(node.state["_metadata"])  # type: ignore[attr-defined]
    return made


def _namespace(reading: Reading, node: Node) -> argparse.Namespace:
    """A recorded command line."""
    made = argparse.Namespace()
    if isinstance(node.state, dict):
        vars(made).update({str(key): reading.value(item) for key, item in node.state.items()})
    return made


def _plain_list(reading: Reading, node: Node) -> list[Any]:
    return [reading.value(item) for item in parts(node)]


def _nothing(reading: Reading, node: Node) -> Ignored:
    return Ignored(node.name)


def _numpy_array(reading: Reading, node: Node) -> Tensor | None:
    _, shape, dtype, by_column, data = node.state
    return numpy_array(dtype, data, shape, by_column=bool(by_column))


def _numpy_buffer(reading: Reading, node: Node) -> Tensor | None:
    data, dtype, shape, order, *_ = node.args
    return numpy_array(dtype, data, shape, by_column=order == "F")


def _numpy_number(reading: Reading, node: Node) -> float | int | bool | None:
    dtype, *data = node.args
    read = numpy_array(dtype, data[0], ()) if data else None
    return None if read is None else read.item()


def _names(modules: Iterable[str], *names: str) -> list[str]:
    return [f"{module}.{name}" for module in modules for name in names]


_BUILTINS = ("builtins", "__builtin__")
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_MAKERS = frozenset(_names(("copyreg", "copy_reg"), "_reconstructor", "__newobj__"))
"""Functions of Python that make an object of the class in their first argument."""

_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}

_KNOWN: dict[str, Callable[[Reading, Node], Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": lambda reading, node: reading.value(node.args[0]),
    "torch._utils._rebuild_parameter_with_state": lambda reading, node: reading.value(node.args[0]),
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": lambda reading, node: tuple(_plain_list(reading, node)),
    "torch.device": _nothing,
    "collections.OrderedDict": _ordered,
    "argparse.Namespace": _namespace,
    "_codecs.encode": lambda reading, node: plain_bytes(node),
    **dict.fromkeys(_names(("collections",), "defaultdict", "Counter"), lambda reading, node: reading.mapping(node)),
    **dict.fromkeys(_names(_BUILTINS, "dict"), lambda reading, node: reading.mapping(node)),
    **dict.fromkeys(_names(_BUILTINS, "list", "set", "frozenset"), _plain_list),
    **dict.fromkeys(BYTES, lambda reading, node: plain_bytes(node)),
    **dict.fromkeys(_names(_MULTIARRAY, "scalar"), _numpy_number),
    **dict.fromkeys(_names(_MULTIARRAY, "_reconstruct"), _numpy_array),
    **dict.fromkeys(_names(("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer"), _numpy_buffer),
    **dict.fromkeys(
        _names(("pathlib", "pathlib._local"), "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"), _nothing
    ),
}
"""Name -> what stands in for a call of it. All that is ever called for a name in a file."""

_KNOWN_NAMES = frozenset(
    {
        *_KNOWN,
        *_MAKERS,
        *_DTYPES,
        *("numpy.ndarray", "numpy.dtype", "torch.Tensor", "torch.nn.parameter.Parameter"),
        *_names(_BUILTINS, "int", "float", "bool", "str", "object"),
    }
)


def not_used(names: Iterable[str]) -> tuple[str, ...]:
    """Those names of which nothing was made."""
    return tuple(name for name in names if name not in _KNOWN_NAMES and not _STORAGE.fullmatch(name))
