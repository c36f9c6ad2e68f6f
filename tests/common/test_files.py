"""Files are replaced whole or not at all; checksums are those of the content."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from unittest import mock

import pytest

from common.files import file_sha256, replace_file, replacing, sha256_of


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


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1])
def test_checksum(tmp_path: Path, size: int) -> None:
    data = bytes(size)
    (tmp_path / "file").write_bytes(data)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()
    assert sha256_of([data[:1], data[1:]]).hexdigest() == hashlib.sha256(data).hexdigest()


def test_no_file_has_no_checksum(tmp_path: Path) -> None:
    assert file_sha256(tmp_path / "none") is None
