"""One cache for several processes, some of which are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from data.storage.manifest import load_manifest
from data.storage.remote.shard_cache import CacheConfig
from tests.data.storage.test_streaming import watched
from tests.helpers.object_server import serving
from tests.helpers.samples import write_toy_set
from tests.helpers.stream_process import read_stream, sample_lines

NUM_SHARDS, FRAMES, NUM = 6, 2, 24
"""Two epochs."""
READERS = 3

pytestmark = pytest.mark.slow


def start(
    url: str, cache: CacheConfig, part: tuple[int, int]
) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=read_stream, args=(url, cache, part, NUM, theirs))
    process.start()
    theirs.close()
    return process, ours


def lines(connection: Connection) -> list[str]:
    found = []
    while connection.poll(120):
        line = connection.recv()
        if line is None:
            return found
        found.append(line)
    raise AssertionError(f"silent after {len(found)} lines")


def downloads(process: int) -> bool:
    """Whether a process has the part of a shard open."""
    with suppress(FileNotFoundError):
        return any(os.readlink(file).endswith(".part") for file in Path(f"/proc/{process}/fd").iterdir())
    return False


@pytest.fixture
def root(tmp_path: Path) -> str:
    return write_toy_set(tmp_path / "set", num_logs=NUM_SHARDS, frames_per_log=FRAMES, num_points=2000)


def test_processes_share_a_small_cache(root: str, tmp_path: Path) -> None:
    expected = {part: list(sample_lines(root, CacheConfig(), (part, READERS), NUM)) for part in range(READERS)}
    largest = max(shard.num_bytes for shard in load_manifest(root).shards)
    bound, found = 4 * largest, list[int]()
    cache = CacheConfig(folder=str(tmp_path / "cache"), max_gib=bound / 2**30, stall_s=3.0)
    with serving(root, share=0.03, seed=1, latency_s=0.002, stall_s=4.0) as server, watched(tmp_path / "cache", found):
        started = [start(server.url, cache, (part, READERS)) for part in range(READERS)]
        assert {part: lines(connection) for part, (_, connection) in enumerate(started)} == expected
        for process, _ in started:
            process.join(60)
            assert process.exitcode == 0
    assert max(found) <= bound
    assert max(found) > bound / 2


def test_processes_download_a_shard_once(root: str, tmp_path: Path) -> None:
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    with serving(root, latency_s=0.01) as server:
        started = [start(server.url, cache, (0, 1)) for _ in range(READERS)]
        expected = list(sample_lines(root, CacheConfig(), (0, 1), NUM))
        assert [lines(connection) for _, connection in started] == [expected] * READERS
        stored = sum(shard.num_bytes for shard in load_manifest(root).shards)
        small = sum((Path(root) / name).stat().st_size for name in ("manifest.json", "samples.npz"))
        assert server.sent <= stored + READERS * 3 * small


def test_killed_processes_leave_nothing_that_hinders(root: str, tmp_path: Path) -> None:
    """Killed in the middle of downloads; what had come is used, and nothing is waited for that nobody does."""
    expected = list(sample_lines(root, CacheConfig(), (0, 1), NUM))
    cache = CacheConfig(folder=str(tmp_path / "cache"), downloads=2)
    largest = max(shard.num_bytes for shard in load_manifest(root).shards)
    with serving(root, bytes_per_s=largest / 20) as server:
        for number in range(2):
            victim, _ = start(server.url, cache, (number, 2))
            assert victim.pid is not None
            deadline = time.monotonic() + 120
            while not downloads(victim.pid):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            if number == 1:
                survivor, heard = start(server.url, cache, (0, 1))
            os.kill(victim.pid, signal.SIGKILL)
            victim.join(60)
        server.bytes_per_s = None
        assert lines(heard) == expected
        survivor.join(60)
        assert survivor.exitcode == 0
        late, heard = start(server.url, cache, (0, 1))
        before = server.sent
        assert lines(heard) == expected
        assert server.sent - before < largest, "all was there"
        late.join(60)
    assert len(list((tmp_path / "cache").glob("*.tar"))) == NUM_SHARDS
    assert not list((tmp_path / "cache").glob("*.part"))
