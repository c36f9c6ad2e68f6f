"""Reading a file of weights from elsewhere as data: nothing that it contains is executed.

Files are read as safetensors or as what `torch.save` wrote (`models.pickled_weights`), whatever their name ends in.
Plain containers that training scripts leave beside the tensors (numpy's numbers and arrays, command lines, mappings
with defaults) are read; objects of any other class are left out, and which these were is said.
"""

from __future__ import annotations

import functools
import logging
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from common.printable import listed, printable_line
from models.image.published import HELP
from models.pickled_values import Ignored
from models.pickled_weights import read_pickled_weights

logger = logging.getLogger("tandem.weights")


@dataclass(frozen=True, kw_only=True)
class WeightContent:
    """What lies in a file of weights.

    Attributes:
        content: tensors and plain values by name.
        ignored: names of foreign classes and functions that the file refers to; none of them was built or called.
        modules: those of them that were networks, whose tensors are in the content.
    """

    content: dict[str, object]
    ignored: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def not_used(self) -> str:
        """The names, for a person; "" where there are none."""
        if not self.ignored:
            return ""
        apart = f"; of the networks {listed(self.modules, 5)} the tensors alone are taken" if self.modules else ""
        names = [printable_line(name)[:100] for name in self.ignored]
        return f"read as data, and nothing built or called of {listed(names, 8)}{apart}"


def read_checkpoint(path: str | Path) -> dict[str, object]:
    """Contents of a safetensors file or of what `torch.save` wrote. What was left out of it is logged once.

    Raises:
        ValueError: see `read_weight_content`.
    """
    read = read_weight_content(path)
    if read.ignored:
        _tell(str(path), read.not_used())
    return read.content


@functools.cache
def _tell(path: str, text: str) -> None:
    logger.warning("weights: %s: %s", path, text)


def read_weight_content(path: str | Path) -> WeightContent:
    """The same, with the list of what was left out.

    Raises:
        ValueError: there is no such file, it is damaged or something else than weights.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights: {path} is not a file. Give the path of a downloaded checkpoint; {HELP}")
    try:
        other = _what_else(path)
        read = None if other else _content(path)
    except PermissionError:
        raise
    except Exception as error:  # a damaged file fails in any way: archive, lengths, nesting, memory
        raise ValueError(
            f"weights: {path} cannot be read as tensors and plain values ({_reason(error)}). It may be damaged"
        ) from error
    if read is None:
        raise ValueError(f"weights: {path} {other}")
    content, ignored, modules = read
    if not isinstance(content, dict):
        what = f"an object of {content.name}" if isinstance(content, Ignored) else f"a {type(content).__name__}"
        raise ValueError(f"weights: {path} holds {what}, expected a dictionary")
    return WeightContent(content={str(key): value for key, value in content.items()}, ignored=ignored, modules=modules)


def _content(path: Path) -> tuple[object, tuple[str, ...], tuple[str, ...]]:
    if _is_safetensors(path):
        return load_file(path), (), ()
    read = read_pickled_weights(path)
    return read.content, read.ignored, read.modules


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


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
