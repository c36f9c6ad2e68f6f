"""Sources are compiled once, kept under what they were made of, and done without where that is not possible."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common import native

SOURCE = "int answer(void) { return 42; }\n"

pytestmark = pytest.mark.skipif(shutil.which("cc") is None or shutil.which("c++") is None, reason="no compiler")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native.library.cache_clear()
    return tmp_path / "cache" / "tandem" / "native"


def source(tmp_path: Path, text: str = SOURCE, name: str = "answer.c") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


def compiler(tmp_path: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in the compiler's place, which notes each of its builds."""
    file = tmp_path / "compiler"
    file.write_text(
        f'#!/bin/bash\ncase "$*" in *--version*) echo fake 1; exit;; esac\necho >> {tmp_path}/builds\n{body}\n'
    )
    file.chmod(0o755)
    monkeypatch.setenv("CC", str(file))
    return tmp_path / "builds"


def builds(noted: Path) -> int:
    return len(noted.read_text().splitlines())


def test_a_source_is_compiled_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = compiler(tmp_path, 'exec cc "$@"', monkeypatch)
    file = source(tmp_path)
    assert native.load(file).answer() == 42
    assert native.load(file).answer() == 42
    assert builds(noted) == 1
    assert sorted(path.suffix for path in cache.iterdir()) == [".lock", ".so"]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_cpp_has_its_own_compiler(tmp_path: Path) -> None:
    text = 'template <class T> T twice(T x) { return x + x; }\nextern "C" int answer() { return twice(21); }\n'
    assert native.load(source(tmp_path, text, "answer.cpp")).answer() == 42


@pytest.mark.parametrize("what", ["source", "flags", "compiler", "processor"])
def test_what_it_was_made_of_is_in_its_name(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, flags = source(tmp_path), ()
    first = native.built(file)
    if what == "source":
        file.write_text(SOURCE.replace("42", "43"))
    elif what == "flags":
        flags = ("-DANY",)
    elif what == "compiler":
        compiler(tmp_path, 'exec cc "$@"', monkeypatch)
    else:
        monkeypatch.setattr(native, "_processor", lambda: "another one")
    second = native.built(file, flags=flags)
    assert first != second
    assert first.exists()
    assert native.load(file, flags=flags).answer() == (43 if what == "source" else 42)


def test_headers_beside_a_source_are_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "inner.h").write_text("#define ANSWER 42\n")
    (tmp_path / "outer.h").write_text('#pragma once\n#include "inner.h"\n#include <stdint.h>\n')
    file = source(tmp_path, '#include "outer.h"\nint answer(void) { return ANSWER; }\n')
    assert native.load(file).answer() == 42
    first = native.built(file)
    (tmp_path / "inner.h").write_text("#define ANSWER 43\n")
    assert native.built(file) != first
    assert native.load(file).answer() == 43


def test_two_processes_build_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = compiler(tmp_path, 'sleep 0.3; exec cc "$@"', monkeypatch)
    script = "import sys, pathlib, common.native as n; print(n.load(pathlib.Path(sys.argv[1])).answer())"
    run = [sys.executable, "-c", script, str(source(tmp_path))]
    processes = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == ["42\n"] * 3
    assert builds(noted) == 1
    assert sorted(path.suffix for path in cache.iterdir()) == [".lock", ".so"]


def test_a_holder_that_hangs_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = source(tmp_path)
    path = native.built(file)
    path.unlink()
    monkeypatch.setattr(native, "_BUILD_TIMEOUT_S", 1.0)
    with native.FileLock(path.with_suffix(".lock")) as lock, ThreadPoolExecutor(1) as pool:
        assert lock.take()
        assert pool.submit(native.load, file).result(timeout=20).answer() == 42


@pytest.mark.parametrize(
    ("text", "body", "message"),
    [
        (SOURCE, "echo internal error >&2; exit 1", r"the compiler .*compiler fails \(exit code 1\): internal error"),
        ("int answer( {", 'exec cc "$@"', r"fails \(exit code 1\): .*answer\.c:1:"),
        (SOURCE, "exec sleep 30", r"the compiler .*compiler fails \(.*timed out"),
        (SOURCE, ': > "${@: -1}"', "cannot be loaded .* remove it, or set XDG_CACHE_HOME"),
    ],
    ids=["it fails", "an error in the source", "it hangs", "its file is no library"],
)
def test_a_broken_compiler_is_told(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, text: str, body: str, message: str
) -> None:
    compiler(tmp_path, body, monkeypatch)
    monkeypatch.setattr(native, "_BUILD_TIMEOUT_S", 1.0)
    with pytest.raises(native.BuildError, match=rf"(?s){message}"):
        native.load(source(tmp_path, text))
    assert not list(cache.glob("*.tmp"))


def test_without_a_compiler_it_is_said_once_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    file = source(tmp_path)
    with caplog.at_level(logging.WARNING, "tandem.native"):
        assert native.library(file, "numpy, slower") is None
        assert native.library(file, "numpy, slower") is None
    (record,) = caplog.records
    assert record.getMessage() == (
        "answer.c is not used: no compiler found (cc, gcc, clang): apt install g++, on a cluster module load gcc, or "
        "CC=/path/to/one. Instead: numpy, slower"
    )


def test_a_compiler_that_is_named_and_not_there_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-cc -m64")
    with pytest.raises(native.BuildError, match=r"no compiler found \(no-such-cc\)"):
        native.load(source(tmp_path))


def test_a_cache_in_a_place_that_others_may_write_is_refused(tmp_path: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(native.BuildError, match=r"can be written by others.*set XDG_CACHE_HOME"):
        native.load(source(tmp_path))


def test_a_user_without_a_home_is_told_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(path: str) -> str:
        return path

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", no_home)
    with pytest.raises(native.BuildError, match=r"home directory.* XDG_CACHE_HOME names another place"):
        native.load(source(tmp_path))


def test_a_cache_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(native.BuildError, match=r"cannot be kept .* XDG_CACHE_HOME names another place"):
        native.load(source(tmp_path))
