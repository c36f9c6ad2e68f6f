"""C and C++ sources of the package, compiled on first use with the machine's own compiler and called by ctypes.

For the few loops that numpy cannot run fast. A source lies beside the module that calls it, exports functions with C
linkage, and has a counterpart in Python that gives the same results where nothing can be compiled: `-O3 -march=native`
without contraction (`-ffp-contract=off`) and without `-ffast-math` keeps the order of floating-point operations that is
written there.

The result is kept in `$XDG_CACHE_HOME/tandem/native` (`~/.cache/tandem/native`) under a name made of the source and the
headers beside it, the flags, the compiler's version and what the processor can do: another node type of a cluster, or a
newer compiler, builds its own. One process builds, others that want the same wait for it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.ctypeslib import ndpointer

from common.file_lock import FileLock
from common.files import private_folder, replacing

_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-shared")
_COMPILERS = {".c": ("CC", ("cc", "gcc", "clang")), ".cpp": ("CXX", ("c++", "g++", "clang++"))}
"""End of a source's name -> the variable that names its compiler, and those that are looked for without it."""
_INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
_BUILD_TIMEOUT_S = 300.0
_POLL_S = 0.05
_SHOWN = 600
"""Characters of a compiler's output in a message, of its beginning: the first error is the one that counts."""

logger = logging.getLogger("tandem.native")


class BuildError(Exception):
    """A source cannot be compiled or loaded here; the message says why, and what to do."""


@functools.cache
def library(source: Path, instead: str, *, flags: Sequence[str] = ()) -> ctypes.CDLL | None:
    """A source's library, built if it has to be; None where that is not possible, which is said once a process.

    Args:
        source: C (.c) or C++ (.cpp).
        instead: what runs in its place, for the warning ("numpy, ten times slower").
        flags: further ones for the compiler, hashable (a tuple).
    """
    try:
        return load(source, flags=flags)
    except BuildError as error:
        logger.warning("%s is not used: %s. Instead: %s", source.name, error, instead)
        return None


def load(source: Path, *, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """Build and load a source.

    Args:
        source: C (.c) or C++ (.cpp).
        flags: further ones for the compiler.

    Raises:
        BuildError: there is no compiler, it fails, or the library cannot be kept or loaded.
    """
    path = built(source, flags=flags)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(
            f"the compiled {path} cannot be loaded ({error}); remove it, or set XDG_CACHE_HOME to a folder from which "
            "programs may be run"
        ) from error


def built(source: Path, *, flags: Sequence[str] = ()) -> Path:
    """File of a source's library, compiled unless an earlier call did; arguments and errors as of `load`."""
    variable, names = _COMPILERS[source.suffix]
    command = _compiler(variable, names)
    flags = (*_FLAGS, *flags)
    identity = [*_texts(source), *command, *flags, _version_of(command), _processor()]
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:20]
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        path = private_folder(base / "tandem" / "native", moved_by="XDG_CACHE_HOME") / f"{source.stem}-{digest}.so"
        if not path.exists():
            _build_once(path, [*command, *flags, str(source)])
    except (OSError, RuntimeError) as error:  # the latter: a user without a home
        raise BuildError(f"its library cannot be kept ({error}); XDG_CACHE_HOME names another place") from error
    return path


def compiler_version(suffix: str) -> str:
    """The compiler of sources with this suffix, and the first line that it says of its version.

    Raises:
        BuildError: there is none, or it does not say its version.
    """
    command = _compiler(*_COMPILERS[suffix])
    return f"{' '.join(command)}: {next(iter(_version_of(command).splitlines()), '').strip()}"


def _texts(source: Path) -> list[str]:
    """The source and the headers that it includes from beside it, and those that they include."""
    texts: dict[Path, str] = {}
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path not in texts:
            texts[path] = path.read_text()
            waiting += [path.parent / name for name in _INCLUDE.findall(texts[path])]
    return list(texts.values())


def _compiler(variable: str, names: Sequence[str]) -> list[str]:
    """The command that the variable names, with its own arguments, or the first compiler found."""
    given = shlex.split(os.environ.get(variable, ""))
    candidates = [given] if given else [[name] for name in names]
    for command in candidates:
        if shutil.which(command[0]):
            return command
    looked_for = ", ".join(command[0] for command in candidates)
    raise BuildError(
        f"no compiler found ({looked_for}): apt install g++, on a cluster module load gcc, or {variable}=/path/to/one"
    )


def _version_of(command: Sequence[str]) -> str:
    return _run([*command, "--version"], "does not say its version").stdout


def _run(command: Sequence[str], wrong: str) -> subprocess.CompletedProcess[str]:
    """Run a compiler.

    Raises:
        BuildError: it cannot be started, takes too long or reports an error.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_BUILD_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the compiler {command[0]} {wrong} ({error})") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[:_SHOWN]
        raise BuildError(f"the compiler {command[0]} {wrong} (exit code {done.returncode}): {said}")
    return done


@functools.cache
def _processor() -> str:
    """What `-march=native` depends on: instructions that a machine of another kind may not have."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        return f"{platform.machine()} {platform.processor()}"
    kept = ("model name", "flags", "Features", "CPU part")
    return "\n".join([platform.machine(), *sorted({line for line in lines if line.startswith(kept)})])


def _build_once(path: Path, command: Sequence[str]) -> None:
    """Compile to a path unless another process is about to: then wait for it."""
    lock = FileLock(path.with_suffix(".lock"))
    given_up = time.monotonic() + _BUILD_TIMEOUT_S
    with lock:
        # A holder that hangs keeps nobody: two builds at once are a waste and no error, as files are replaced whole.
        while not lock.take() and time.monotonic() < given_up:
            time.sleep(_POLL_S)
        if not path.exists():
            with replacing(path, durable=True) as temporary:
                _run([*command, "-o", str(temporary)], "fails")


def array_type(kind: type[np.generic]) -> Any:
    """Type of an argument that is an array without gaps."""
    return ndpointer(kind, flags="C_CONTIGUOUS")
