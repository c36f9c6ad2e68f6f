"""Files are replaced whole or not at all; checksums are those of the content."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from common.files import (
    check_room,
    file_sha256,
    private_folder,
    process_exists,
    replace_file,
    replacing,
    sha256_of,
    temporary_name,
)


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_whole_with_the_usual_permissions(tmp_path: Path, durable: bool) -> None:
    file = tmp_path / "record.json"
    for data in (b"old", b"new"):
        with mock.patch.object(os, "fsync", wraps=os.fsync) as synced:
            replace_file(file, data, durable=durable)
        assert synced.call_count == durable
        assert file.read_bytes() == data
    assert list(tmp_path.iterdir()) == [file]
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    replace_file(file, b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"ne")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"), replacing(file, durable=True) as temporary:
        fail(temporary)
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_bytes() == b"old"


def test_a_crash_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    replace_file(file, b"old")
    with mock.patch.object(os, "fsync", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        replace_file(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file], "Ctrl-C leaves nothing behind"


def private(temporary: Path) -> None:
    """As safetensors writes: for the owner alone."""
    save_file({"w": torch.zeros(1)}, temporary)
    temporary.chmod(0o600)  # older versions of it leave what the umask says


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_what_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        for old_mode in (None, 0o600, 0o666):
            file = tmp_path / f"weights{old_mode}.safetensors"
            if old_mode is not None:
                file.touch()
                file.chmod(old_mode)
            with replacing(file, durable=False) as temporary:
                private(temporary)
            assert stat.S_IMODE(file.stat().st_mode) == mode
    finally:
        os.umask(before)


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_writer_left_goes_at_the_next_write(tmp_path: Path) -> None:
    file, here, gone = tmp_path / "report[1].html", temporary_name(Path("x")).name.split(".", 1)[1], ended_process()
    here = here.removesuffix(f".{os.getpid()}.tmp")
    assert process_exists(os.getpid())
    assert not process_exists(gone)
    dead, old = tmp_path / f"{file.name}.{here}.{gone}.tmp", tmp_path / f"{file.name}.other.node.7.tmp"
    own = temporary_name(file)
    stays = [
        tmp_path / f"{file.name}.{here}.{os.getppid()}.tmp",  # being written
        tmp_path / f"{file.name}.other.node.8.tmp",  # perhaps being written
        tmp_path / f"{file.name}.{socket.gethostname()}-12345678.{gone}.tmp",  # in another container of that name
        tmp_path / f"report1.html.{here}.{gone}.tmp",  # of another file
        tmp_path / f"{file.name}.notes.tmp",
    ]
    for path in (dead, old, own, *stays):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 90000,) * 2)
    replace_file(file, b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([file, *stays])
    assert file.read_bytes() == b"whole"


def test_whether_there_is_room_is_told_before(tmp_path: Path) -> None:
    check_room(tmp_path / "new" / "results.json", 1 << 16)
    assert list((tmp_path / "new").iterdir()) == []
    full = OSError(28, "No space left on device")
    with mock.patch.object(os, "fsync", side_effect=full), pytest.raises(OSError, match="No space left") as raised:
        check_room(tmp_path / "results.json", 1)
    assert raised.value.filename == str(tmp_path / "results.json")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1])
def test_checksum(tmp_path: Path, size: int) -> None:
    data = bytes(size)
    (tmp_path / "file").write_bytes(data)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()
    assert sha256_of([data[:1], data[1:]]).hexdigest() == hashlib.sha256(data).hexdigest()


def test_no_file_has_no_checksum(tmp_path: Path) -> None:
    assert file_sha256(tmp_path / "none") is None


def test_a_private_folder_is_made_for_this_user_alone(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "cache")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert private_folder(folder) == folder


def test_a_folder_that_somebody_else_made_is_no_private_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(private_folder(tmp_path / "target"))
    with pytest.raises(PermissionError, match="is a link"):
        private_folder(tmp_path / "link")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o770)
    with pytest.raises(PermissionError, match="can be written by others"):
        private_folder(tmp_path / "open")
    with (
        mock.patch.object(os, "getuid", return_value=12345),
        pytest.raises(PermissionError, match="belongs to another user"),
    ):
        private_folder(tmp_path / "target")
