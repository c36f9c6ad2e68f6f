"""Reading a file of weights from elsewhere as data: nothing that it contains is executed.

Files are read with `torch.load(weights_only=True)` or as safetensors, whatever their name ends in. Plain containers
that training scripts leave beside the tensors (numpy's numbers and arrays, command lines, mappings with defaults)
become stand-ins of ours; any other class is refused by its name, and is never imported.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from models.image.published import HELP


def read_checkpoint(path: str | Path) -> dict[str, object]:
    """Contents of a safetensors file or of what `torch.save` wrote.

    Raises:
        ValueError: there is no such file, it is damaged or something else than weights, or it holds objects of other
            classes (which are never built, because building them may execute code).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights: {path} is not a file. Give the path of a downloaded checkpoint; {HELP}")
    try:
        other = _what_else(path)
        content = None if other else _content(path)
    except PermissionError:
        raise
    except Exception as error:  # a damaged file fails in any way: archive, lengths, nesting, memory
        raise ValueError(f"weights: {path} {_refusal(path, error)}") from error
    if other:
        raise ValueError(f"weights: {path} {other}")
    if not isinstance(content, dict):
        raise ValueError(f"weights: {path} holds a {type(content).__name__}, expected a dictionary")
    return {str(key): value for key, value in content.items()}


def _content(path: Path) -> object:
    if _is_safetensors(path):
        return load_file(path)
    # A file object: torch.load goes by the name, too.
    with torch.serialization.safe_globals([*_STAND_INS]), path.open("rb") as file:
        return _settled(torch.load(file, map_location="cpu", weights_only=True))


# ---- files that are no weights

_LFS = b"version https://git-lfs.github.com/spec/"
_DOWNLOAD = "download it again from the file's own address"


def _what_else(path: Path) -> str:
    """What a file is that is no file of weights, and what to do; "" for one that may be."""
    with path.open("rb") as file:
        start = file.read(1024)
    text = start.lstrip().lower()
    if not start:
        return f"is empty; {_DOWNLOAD}"
    if start.startswith(_LFS):
        size = re.search(rb"size (\d+)", start)
        stands_for = f" for a file of {int(size[1]) / 2**20:.1f} MiB" if size else ""
        return f"is a Git LFS pointer{stands_for}, not the weights; fetch them with `git lfs pull` in that repository"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head", b"<script")):
        title = re.search(rb"<title[^>]*>([^<]{1,80})", start, re.IGNORECASE)
        called = f" ({' '.join(title[1].decode(errors='replace').split())!r})" if title else ""
        return (
            f"is a web page{called}, not weights: the address led to a page (a login, a quota, a viewer); {_DOWNLOAD}, "
            "in a browser if it asks for consent"
        )
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or start[257:262] == b"ustar":
        return "is a compressed archive; unpack it and give the file of weights in it"
    if not _is_safetensors(path) and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start[:200]):
        return f"is text, not weights: it begins with {start[:60].decode()!r}; {_DOWNLOAD}"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
        if "constants.pkl" in names:
            return (
                "is a TorchScript program, which holds code; save its tensors where it comes from: "
                "torch.save(torch.jit.load(file).state_dict(), out)"
            )
        if "data.pkl" not in names:
            return "is a ZIP archive that torch.save did not write; unpack it and give the file of weights in it"
    return ""


def _is_safetensors(path: Path) -> bool:
    """By the content: the length of a JSON header, then the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def _refusal(path: Path, error: Exception) -> str:
    """Why a file cannot be read, and how its owner makes one that can."""
    text = str(error)
    foreign = re.search(r"GLOBAL (\S+)", text)
    if foreign is not None:
        others = [name for name in _foreign_names(path) if name != foreign[1]]
        more = f" (and {', '.join(others[:3])}{', ...' if len(others) > 3 else ''})" if others else ""
        return (
            f"holds an object of {foreign[1]}{more}, which is refused because building it may execute code. Save the "
            "tensors alone where that class is installed and the file is trusted: "
            "torch.save({k: v for k, v in state_dict.items() if torch.is_tensor(v)}, out)"
        )
    if "Unsupported operand 149" in text:  # FRAME, the first operation of protocols 4 and 5
        return "is pickled in another protocol than torch.save's own (2); save it again: torch.save(content, out)"
    if isinstance(error, pickle.UnpicklingError):  # torch's text advises to switch its safety off
        found = re.search(r"WeightsUnpickler error: *(\S.*)", text)
        reason = found[1].strip() if found else "no pickle of tensors"
    else:
        reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"cannot be read as tensors and plain values ({reason}). It may be damaged or hold other objects"


def _foreign_names(path: Path) -> list[str]:
    try:
        with torch.serialization.safe_globals([*_STAND_INS]):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # an older layout, or damaged as well
        return []


# ---- stand-ins: hold what was pickled, import and execute nothing

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


class _NumpyDtype:
    def __init__(self, code: object = "", *_: object) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])

    def tensor(self, data: object, shape: tuple[int, ...]) -> torch.Tensor | None:
        """The numbers in some bytes; None for types that torch lacks (texts, dates, objects)."""
        dtype = _DTYPES.get(self.code.lstrip("<=|"))
        if dtype is None or self.order == ">" or not isinstance(data, bytes):
            return None
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array of shape {shape} with {len(data)} bytes")
        # An empty buffer is none for torch.
        return (
            torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)
        )


class _NumpyArray:
    value: torch.Tensor | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_column, data = state
        if isinstance(dtype, _NumpyDtype):
            read = dtype.tensor(data, tuple(reversed(shape)) if by_column else tuple(shape))
            self.value = (
                read.permute(*reversed(range(read.ndim))).contiguous() if by_column and read is not None else read
            )


def _numpy_array(*_: object) -> _NumpyArray:
    return _NumpyArray()


def _numpy_number(dtype: object, data: object = b"") -> float | int | bool | None:
    read = dtype.tensor(data, ()) if isinstance(dtype, _NumpyDtype) else None
    return None if read is None else read.item()


def _empty_bytes() -> bytes:
    """Pickle's protocol 2 calls `bytes` for empty ones alone; with a number it would take that much memory."""
    return b""


def _plain_mapping(*_: object) -> dict[object, object]:
    """Of a mapping with defaults, its entries."""
    return {}


class _Path:
    """A path in a recorded command line; kept by nobody."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_STAND_INS: tuple[type | tuple[Callable[..., Any], str], ...] = (
    argparse.Namespace,  # DINO keeps its command line in the checkpoint; a plain container
    (_plain_mapping, "collections.defaultdict"),
    *(
        (kind, f"{module}.{kind.__name__}")
        for kind in (dict, list, int, float)
        for module in ("builtins", "__builtin__")
    ),
    *((_empty_bytes, f"{module}.bytes") for module in ("builtins", "__builtin__")),
    *((_numpy_number, f"{module}.scalar") for module in _NUMPY),
    *((_numpy_array, f"{module}._reconstruct") for module in _NUMPY),
    (_NumpyArray, "numpy.ndarray"),
    (_NumpyDtype, "numpy.dtype"),
    *((_Path, f"pathlib.{kind}") for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
)


def _settled(value: object) -> object:
    """Arrays among the values become tensors."""
    if isinstance(value, _NumpyArray):
        return value.value
    if isinstance(value, dict):
        return {key: _settled(item) for key, item in value.items()}
    return value
