from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.retry import StorageAwayError
from data.storage.remote.shard_cache import CacheConfig, ShardCache, release
from data.storage.shard import Shard

SIZE = 1000


@dataclass(frozen=True, kw_only=True)
class Stored(Shard):
    data: bytes

    def fill(self, part: int) -> bool:
        os.pwrite(part, self.data, 0)
        return True


def stored(data: bytes) -> Stored:
    sha256 = hashlib.sha256(data).hexdigest()
    return Stored(file="shard.tar", num_samples=1, num_bytes=len(data), sha256=sha256, data=data)


SHARDS = [stored(bytes([number]) * SIZE) for number in range(6)]


def make(folder: Path, shards: float, wait_s: float = 5.0) -> ShardCache:
    return ShardCache(CacheConfig(folder=str(folder), max_gib=shards * SIZE / 2**30 + 1e-9), wait_s=wait_s)


def held(folder: Path) -> set[int]:
    return {number for number, shard in enumerate(SHARDS) if (folder / f"{shard.sha256}.tar").exists()}


def fetch(cache: ShardCache, number: int) -> None:
    release(cache.fetch(SHARDS[number], SHARDS[number].fill))


def age(folder: Path, number: int, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder / f"{SHARDS[number].sha256}.tar", (then, then))


def test_what_was_read_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = make(tmp_path, 3)
    for number in range(3):
        fetch(cache, number)
        age(tmp_path, number, 100 - number)
    file = cache.open(SHARDS[0])  # reading it makes it the youngest
    assert file is not None
    release(file)
    fetch(cache, 3)
    assert held(tmp_path) == {0, 2, 3}


def test_what_is_being_read_stays(tmp_path: Path) -> None:
    cache = make(tmp_path, 2)
    reading = cache.fetch(SHARDS[0], SHARDS[0].fill)
    fetch(cache, 1)
    age(tmp_path, 0, 100)
    fetch(cache, 2)
    assert held(tmp_path) == {0, 2}
    assert os.pread(reading, 3, 0) == bytes(3)
    release(reading)
    fetch(cache, 3)
    assert held(tmp_path) == {2, 3} or held(tmp_path) == {0, 3}


def test_without_room_it_is_an_error_after_a_while(tmp_path: Path) -> None:
    cache = make(tmp_path, 1, wait_s=0.2)
    reading = cache.fetch(SHARDS[0], SHARDS[0].fill)
    with pytest.raises(StorageAwayError, match=r"data.cache.max_gib"):
        cache.fetch(SHARDS[1], SHARDS[1].fill)
    release(reading)
    fetch(cache, 1)
    assert held(tmp_path) == {1}


def test_fetching_ahead_removes_nothing_that_is_needed_sooner(tmp_path: Path) -> None:
    cache = make(tmp_path, 2)
    fetch(cache, 0)
    fetch(cache, 1)
    keep = {SHARDS[0].sha256, SHARDS[1].sha256}
    assert not cache.fetch_ahead(SHARDS[2], SHARDS[2].fill, keep)
    assert held(tmp_path) == {0, 1}
    assert cache.fetch_ahead(SHARDS[2], SHARDS[2].fill, keep - {SHARDS[0].sha256})
    assert held(tmp_path) == {1, 2}


def test_one_of_many_callers_fills_and_what_is_on_the_way_counts(tmp_path: Path) -> None:
    cache, filled, sizes = make(tmp_path, 2), [], []

    def slowly(part: int) -> bool:
        filled.append(1)
        for start in range(0, SIZE, 100):
            os.pwrite(part, SHARDS[0].data[start : start + 100], start)
            sizes.append(cache.fetch_ahead(SHARDS[1], SHARDS[1].fill, ()))
            time.sleep(0.01)
        return True

    threads = [threading.Thread(target=lambda: release(cache.fetch(SHARDS[0], slowly))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert filled == [1]
    assert all(sizes), "there was room for a second one"
    assert not make(tmp_path, 1).fetch_ahead(SHARDS[2], SHARDS[2].fill, {s.sha256 for s in SHARDS[:2]})


def test_parts_of_the_dead_are_continued_removed_for_room_or_swept(tmp_path: Path) -> None:
    cache = make(tmp_path, 2)
    parts = [tmp_path / f"{SHARDS[n].sha256}.{SIZE}.part" for n in range(2)]
    for part in parts:
        part.write_bytes(b"\0" * 300)
    seen = []

    def fill(part: int) -> bool:
        seen.append(os.fstat(part).st_size)
        return SHARDS[0].fill(part)

    release(cache.fetch(SHARDS[0], fill))
    assert seen == [300]
    assert parts[1].exists()
    fetch(cache, 2)
    assert not parts[1].exists(), "it counts with all its bytes, and nobody is at it"
    os.utime(tmp_path / f"{SHARDS[0].sha256}.tar")
    parts[1].write_bytes(b"\0")
    os.utime(parts[1], (0, 0))
    large = make(tmp_path, 6)
    fetch(large, 3)
    assert not parts[1].exists()


def test_a_part_that_another_process_stopped_filling_is_told(tmp_path: Path) -> None:
    cache = make(tmp_path, 2, wait_s=0.2)
    part = os.open(tmp_path / f"{SHARDS[0].sha256}.{SIZE}.part", os.O_RDWR | os.O_CREAT)
    fcntl.flock(part, fcntl.LOCK_EX)
    with pytest.raises(StorageAwayError, match="has stood still"):
        fetch(cache, 0)
    os.close(part)
    fetch(cache, 0)


def test_what_cannot_be_filled_leaves_the_place_free(tmp_path: Path) -> None:
    cache = make(tmp_path, 1)

    def broken(part: int) -> bool:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        cache.fetch(SHARDS[0], broken)
    fetch(cache, 1)
    fetch(cache, 0)
    assert held(tmp_path) == {0}


def test_a_checksum_that_is_no_checksum_becomes_no_path(tmp_path: Path) -> None:
    wrong = dataclasses.replace(stored(b"x"), sha256="../../escaped")
    with pytest.raises(OSError, match=r"gives '\.\./\.\./escaped' as its SHA-256"):
        make(tmp_path / "cache", 1).fetch(wrong, wrong.fill)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_gib": 0.0}, "max_gib: got 0"),
        ({"stall_s": -1.0}, "stall_s: got -1"),
        ({"downloads": 0}, "downloads: got 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CacheConfig(**settings)  # type: ignore[arg-type]
