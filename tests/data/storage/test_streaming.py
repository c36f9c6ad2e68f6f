"""Sets behind a URL: the stream is that of a local copy, whatever the server does."""

from __future__ import annotations

import itertools
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from data.batch_spec import BatchSpec
from data.loading.loader import DataConfig, build_loader
from data.storage.manifest import load_manifest
from data.storage.mixture import SetConfig
from data.storage.reader import SampleError, SampleReader
from data.storage.remote import download, requests
from data.storage.remote.shard_cache import CacheConfig
from data.storage.shard import ShardError
from tests.helpers.object_server import Server, serving
from tests.helpers.samples import write_toy_set

NUM_SHARDS = 6
NUM = 6
"""Batches of a stream, an epoch."""
WANTS = BatchSpec(superpixels=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_toy_set(
        tmp_path_factory.mktemp("set") / "shards", num_logs=NUM_SHARDS, frames_per_log=3, num_points=100
    )


@pytest.fixture(scope="module")
def local(root: str) -> list[tuple]:
    """The stream of the folder."""
    return stream(root, CacheConfig(), num=10)


@pytest.fixture
def server(root: str) -> Iterator[Server]:
    with serving(root) as state:
        yield state


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same waits, shorter."""
    monkeypatch.setattr(requests, "_FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(requests, "_MAX_DELAY_S", 0.1)
    monkeypatch.setattr(download, "_OPENING_WAIT_S", 20.0)


def cache(tmp_path: Path, **settings: object) -> CacheConfig:
    settings = {"stall_s": 10.0, **settings}
    return CacheConfig(folder=str(tmp_path / "cache"), **settings)  # type: ignore[arg-type]


def reader(server: Server, config: CacheConfig, retry_min: float = 0.2) -> SampleReader:
    return SampleReader(load_manifest(server.url, config), retry_min=retry_min)


def files(tmp_path: Path, suffix: str) -> list[Path]:
    return sorted((tmp_path / "cache").glob(f"*.{suffix}"))


def stream(shards: str, config: CacheConfig, *, start: int = 0, num: int = NUM, **settings: object) -> list[tuple]:
    """Keys, points and images of batches."""
    settings = {"num_workers": 0, "micro_batch_size": 3, "shards_per_group": 2, "retry_min": 0.2, **settings}
    data = DataConfig(shards=shards, split=None, image_size=(40, 72), cache=config, max_skip_share=0.0, **settings)  # type: ignore[arg-type]
    source = build_loader(data, spec=WANTS, seed=3, rank=0, world_size=1)
    made = []
    for batch in itertools.islice(source.batches(start), num):
        assert batch.images is not None
        made.append((batch.keys, batch.points.numpy().tobytes(), batch.images.numpy().tobytes()))
    assert source.counters == {}
    return made


@contextmanager
def watched(folder: Path, found: list[int]) -> Iterator[None]:
    """Bytes of all files of a folder, looked at over and over."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.003):
            sizes = []
            for file in folder.glob("*"):
                with suppress(FileNotFoundError):
                    sizes.append(file.stat().st_size)
            found.append(sum(sizes))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# ---- exactness
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_stream_is_that_of_a_folder_at_every_place_and_number_of_workers(
    local: list[tuple], server: Server, tmp_path: Path, num_workers: int
) -> None:
    assert stream(server.url, cache(tmp_path)) == local[:NUM]
    assert stream(server.url, cache(tmp_path), start=4, num=2, num_workers=num_workers, prefetch=1) == local[4:6]
    assert len(files(tmp_path, "tar")) == NUM_SHARDS
    tars = [name for name, _ in server.requests if name.endswith(".tar")]
    assert sorted(tars) == sorted(set(tars)), "each shard came once, also with workers and for the second stream"


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
def test_the_stream_survives_a_server_that_goes_wrong(
    root: str, local: list[tuple], tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_PIECE_BYTES", 8192)
    with serving(root, share=0.2, seed=seed, stall_s=1.0) as server:
        assert stream(server.url, cache(tmp_path, stall_s=0.5), retry_min=1.0) == local[:NUM]
        assert sum(fault != "ok" for _, fault in server.requests) > 5


def test_a_mixture_of_a_folder_and_an_address(root: str, server: Server, tmp_path: Path) -> None:
    other = write_toy_set(tmp_path / "other", num_logs=2, frames_per_log=2)
    mixed = stream(other, cache(tmp_path), more=(SetConfig(shards=server.url, split=None),))
    assert mixed == stream(other, cache(tmp_path), more=(SetConfig(shards=root, split=None),))
    assert len(files(tmp_path, "tar")) == NUM_SHARDS


# ---- single faults
@pytest.mark.parametrize(
    "fault", ["stall", "cut", "500", "503", "404", "403", "flip", "short", "long-length", "trickle", "reset"]
)
def test_one_fault_of_each_kind_passes(root: str, server: Server, tmp_path: Path, fault: str) -> None:
    name = "shard-000001.tar"
    for wrong in ("manifest.json", "samples.npz", name):
        server.plan[wrong] = [fault]
    remote_reader = reader(server, cache(tmp_path, stall_s=0.5))
    remote_reader.expect([1])
    local = SampleReader(load_manifest(root))
    for index in range(3, 6):
        assert np.array_equal(remote_reader.read(index).points_lidar, local.read(index).points_lidar)
    assert server.count(name) >= 2
    assert len(files(tmp_path, "tar")) == 1
    assert not files(tmp_path, "part")


def test_a_download_goes_on_where_it_was_cut(
    root: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_PIECE_BYTES", 4096)
    server.plan["shard-000000.tar"] = ["ok", "ok", "cut", "short", "500"]
    remote_reader = reader(server, cache(tmp_path))
    remote_reader.expect([0])
    size = (Path(root) / "shard-000000.tar").stat().st_size
    before = server.sent
    remote_reader.read(0)
    assert server.sent - before < size + 2 * 4096


def test_a_server_without_ranges(
    root: str, local: list[tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_PIECE_BYTES", 4096)
    with serving(root, ranges=False) as server:
        assert stream(server.url, cache(tmp_path), num=3) == local[:3]
        assert reader(server, cache(tmp_path / "none")).read(4).key == "log-001_000001"


# ---- damage in the set
def damaged_copy(root: str, tmp_path: Path, name: str) -> str:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in Path(root).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    data = bytearray((folder / name).read_bytes())
    data[700] ^= 255
    (folder / name).write_bytes(bytes(data))
    return str(folder)


@pytest.mark.parametrize("announced", [True, False])
def test_damage_in_the_set_costs_the_same_samples_as_in_a_folder(root: str, tmp_path: Path, announced: bool) -> None:
    copy = damaged_copy(root, tmp_path, "shard-000002.tar")
    local, outcomes = SampleReader(load_manifest(copy)), []
    with serving(copy) as server:
        other = reader(server, cache(tmp_path))
        if announced:
            other.expect([2])
        for source in (local, other):
            outcomes.append([])
            for index in range(6, 9):
                try:
                    outcomes[-1].append(source.read(index).key)
                except SampleError as error:
                    outcomes[-1].append(error.reason)
        assert server.count("shard-000002.tar") == (2 if announced else 6)
    assert outcomes[0] == outcomes[1]
    assert sum("log" not in outcome for outcome in outcomes[0]) == 1


@pytest.mark.parametrize(("status", "words"), [("404", "no such file"), ("403", "access is refused")])
def test_a_shard_that_is_not_to_be_had_is_damage(server: Server, tmp_path: Path, status: str, words: str) -> None:
    server.always["shard-000000.tar"] = status
    remote_reader = reader(server, cache(tmp_path))
    remote_reader.expect([0, 1])
    for index in range(3):
        with pytest.raises(SampleError, match=words) as caught:
            remote_reader.read(index)
        assert caught.value.reason == "shard-missing"
    assert remote_reader.read(3).key == "log-001_000000"


def test_a_shard_that_is_never_the_same_is_damage(server: Server, tmp_path: Path) -> None:
    server.always["shard-000000.tar"] = "flip"
    remote_reader = reader(server, cache(tmp_path))
    remote_reader.expect([0])
    time.sleep(0.5)  # the thread's tries are not the reader's
    with pytest.raises(SampleError, match="4 times with wrong bytes"):
        remote_reader.read(0)
    assert not files(tmp_path, "tar")


# ---- storage away
@pytest.mark.parametrize("status", ["503", "404", "403", "stall"])
def test_storage_that_is_away_is_waited_for(root: str, server: Server, tmp_path: Path, status: str) -> None:
    remote_reader = reader(server, cache(tmp_path, stall_s=0.5))
    remote_reader.expect([0])
    server.share, server.kinds = 1.0, [status]
    server.plan["shard-000000.tar"] = ["cut"] * 2
    timer = threading.Timer(0.7, lambda: setattr(server, "share", 0.0))
    timer.start()
    assert remote_reader.read(0).key == "log-000_000000"
    timer.join()


@pytest.mark.parametrize("announced", [True, False])
def test_storage_that_does_not_come_back_is_one_clear_error(server: Server, tmp_path: Path, announced: bool) -> None:
    remote_reader = reader(server, cache(tmp_path), retry_min=0.01)
    server.share, server.kinds = 1.0, ["503"]
    if announced:
        remote_reader.expect([0])
    with pytest.raises(ShardError, match=r"503.* did not come back in 0.01 min; .*data.retry_min"):
        remote_reader.read(0)


# ---- messages
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:9/x", "Cannot connect .* fix the address"),
        ("gs://bucket/x", r"pip install 'tandem-pretrain\[gs\]'"),
        ("foo://bucket/x", "no such protocol; expected a folder, s3://"),
        ("file:///no/such/folder", "holds no finished shard set"),
    ],
)
def test_what_cannot_be_opened_is_named(url: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_OPENING_WAIT_S", 0.3)
    with pytest.raises(ShardError, match=words):
        load_manifest(url)


@pytest.mark.parametrize(("status", "words"), [("404", "manifest.json is missing"), ("401", "access is refused")])
def test_a_manifest_that_is_not_to_be_had(server: Server, status: str, words: str) -> None:
    server.always["manifest.json"] = status
    began = time.monotonic()
    with pytest.raises(ShardError, match=words):
        load_manifest(server.url)
    assert time.monotonic() - began < 1.5, "no wait for what will not come"


def test_files_are_addresses_too(root: str, local: list[tuple], tmp_path: Path) -> None:
    assert stream(f"file://{root}", cache(tmp_path), num=3) == local[:3]


# ---- the cache
def test_a_cache_without_room_for_a_group_is_refused_with_the_number(server: Server, tmp_path: Path) -> None:
    sizes = sorted((shard.num_bytes for shard in load_manifest(server.url).shards), reverse=True)
    small = cache(tmp_path, max_gib=sum(sizes[:3]) * 0.9 / 2**30)
    with pytest.raises(ValueError, match=r"data.cache.max_gib is .*, expected at least 0.001: 2 shards"):
        stream(server.url, small)


def test_a_small_cache_is_enough_and_never_exceeded(local: list[tuple], server: Server, tmp_path: Path) -> None:
    sizes = sorted((shard.num_bytes for shard in load_manifest(server.url).shards), reverse=True)
    bound, found = sum(sizes[:3]) + 1, list[int]()
    server.latency_s = 0.005
    with watched(tmp_path / "cache", found):
        assert stream(server.url, cache(tmp_path, max_gib=bound / 2**30), num=10) == local
    assert max(found) <= bound
    assert max(found) > bound / 2


def test_few_samples_do_not_bring_whole_shards(server: Server, tmp_path: Path) -> None:
    assert reader(server, cache(tmp_path)).read(5).key == "log-001_000002"
    assert not (tmp_path / "cache").exists()


def test_a_copy_that_went_bad_is_fetched_again(server: Server, tmp_path: Path) -> None:
    remote_reader = reader(server, cache(tmp_path))
    remote_reader.expect([0])
    points = remote_reader.read(0).points_lidar
    (copy,) = files(tmp_path, "tar")
    data = copy.read_bytes()
    for bad in (bytes(len(data)), data[:1000]):  # zeroed; cut
        copy.write_bytes(bad)
        assert np.array_equal(pickle.loads(pickle.dumps(remote_reader)).read(0).points_lidar, points)
        assert copy.read_bytes() == data
