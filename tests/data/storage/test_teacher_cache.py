from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.storage import teacher_cache
from data.storage.manifest import Manifest, load_manifest
from data.storage.shard import ShardError
from data.storage.teacher_cache import (
    CacheBusyError,
    CacheDamagedError,
    TeacherCache,
    TeacherCacheWriter,
    teacher_cache_key,
)
from tests.helpers.samples import write_toy_set

DIM = 5


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return load_manifest(write_toy_set(tmp_path / "set", num_logs=2, frames_per_log=4, num_points=20))


def content(index: int) -> tuple[np.ndarray, tuple[int, int]]:
    rng = np.random.default_rng(index)
    counts = (int(rng.integers(1, 9)), int(rng.integers(1, 9)))
    return rng.normal(size=(sum(counts), DIM)).astype(np.float32), counts


def writer(manifest: Manifest, rows_per_part: int = 15) -> TeacherCacheWriter:
    return TeacherCacheWriter(manifest.root, "key", DIM, manifest, part_bytes=2 * DIM * rows_per_part)


def folder_of(manifest: Manifest) -> Path:
    return Path(manifest.root) / "teacher_cache" / "key"


def fill(target: TeacherCacheWriter, indices: list[int]) -> None:
    for index in indices:
        features, counts = content(index)
        target.add(index, features, counts)


def assert_holds(cache: TeacherCache, manifest: Manifest, indices: list[int]) -> None:
    for index in indices:
        features, counts = content(index)
        np.testing.assert_array_equal(cache.features(index, manifest.key(index)), features.astype(np.float16))
        assert cache.offsets(index).tolist() == [0, counts[0], sum(counts)]


def test_written_features_come_back(manifest: Manifest) -> None:
    target = writer(manifest)
    fill(target, [5, 0, 7, 2])
    target.finish()
    cache = TeacherCache.open(manifest.root, "key")
    assert cache is not None
    assert_holds(cache, manifest, [0, 2, 5, 7])
    assert [index in cache for index in range(8)] == [True, False, True, False, False, True, False, True]
    assert cache.dim == DIM
    assert cache.manifest_fingerprint == manifest.fingerprint()
    with pytest.raises(KeyError, match="sample 1 is not"):
        cache.features(1, manifest.key(1))
    assert_holds(pickle.loads(pickle.dumps(cache)), manifest, [0, 2, 5, 7])


def test_an_unfinished_cache_is_not_one_and_its_parts_are_kept(manifest: Manifest) -> None:
    first = writer(manifest)
    fill(first, [0, 1, 2, 3, 4])
    assert TeacherCache.open(manifest.root, "key") is None
    first.__exit__(None, None, None)  # as when its process ends: what is not flushed is lost
    (manifest_folder := Path(manifest.root) / "teacher_cache" / "key" / "part-00009.npy.1.tmp").write_bytes(b"half")
    second = writer(manifest)
    assert not manifest_folder.exists()
    missing = second.missing(np.arange(8)).tolist()
    # What was flushed is kept, what was still in memory is asked for again.
    assert 0 not in missing
    assert set(missing) >= {5, 6, 7}
    fill(second, missing)
    assert_holds(second.finish(), manifest, list(range(8)))
    # Finishing again with nothing to do changes nothing.
    with writer(manifest) as third:
        assert third.missing(np.arange(8)).tolist() == []


def test_a_damaged_part_is_found_and_rebuilt(manifest: Manifest) -> None:
    target = writer(manifest)
    fill(target, list(range(8)))
    target.finish()
    part = sorted((Path(manifest.root) / "teacher_cache" / "key").glob("part-*.npy"))[-1]
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    with pytest.raises(ShardError, match=r"checksum.*delete .* build the teacher cache again"):
        TeacherCache.open(manifest.root, "key")
    again = writer(manifest)
    missing = again.missing(np.arange(8)).tolist()
    assert missing
    fill(again, missing)
    assert_holds(again.finish(), manifest, list(range(8)))


def test_a_passing_error_of_the_storage_removes_no_part(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(first := writer(manifest), list(range(8)))
    first.finish()
    there = sorted(folder_of(manifest).glob("part-*"))
    load, errors = np.load, [OSError(errno.EIO, "Input/output error")]

    def away_once(*given: object, **more: object) -> object:
        if errors:
            raise errors.pop()
        return load(*given, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(np, "load", away_once)
    with pytest.raises(ShardError, match="Input/output error"):
        writer(manifest)
    assert sorted(folder_of(manifest).glob("part-*")) == there
    with writer(manifest) as again:
        assert again.missing(np.arange(8)).tolist() == []


@pytest.mark.parametrize("how", ["truncated", "gone", "no-index", "json", "index-of-another"])
def test_other_damage_is_refused(manifest: Manifest, how: str) -> None:
    target = writer(manifest)
    fill(target, list(range(8)))
    target.finish()
    folder = folder_of(manifest)
    part = min(folder.glob("part-*.npy"))
    if how == "truncated":
        os.truncate(part, 100)
    elif how == "gone":
        part.unlink()
    elif how == "no-index":
        part.with_name(part.stem + ".index.npz").unlink()
    elif how == "json":
        (folder / "cache.json").write_text("{}")
    else:  # what two builds of the first version at once left: the index tells of other rows
        indices = sorted(folder.glob("*.index.npz"))
        indices[0].write_bytes(indices[1].read_bytes())
    with pytest.raises(ShardError, match="build the teacher cache again"):
        TeacherCache.open(manifest.root, "key", verify=False)


@pytest.mark.parametrize(("failures", "error"), [(1, errno.EIO), (9, errno.EIO), (9, errno.EACCES)])
def test_an_error_of_the_storage_is_no_damage(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, failures: int, error: int
) -> None:
    target = writer(manifest)
    fill(target, [5, 0])
    target.finish()
    left, read = itertools.count(), teacher_cache.file_sha256

    def failing(path: Path) -> str | None:
        if next(left) < failures:
            raise OSError(error, os.strerror(error), str(path))
        return read(path)

    monkeypatch.setattr(teacher_cache, "file_sha256", failing)
    monkeypatch.setattr("common.retry._HICCUPS_S", (0.0,))
    if failures == 1:
        assert TeacherCache.open(manifest.root, "key") is not None
        return
    with pytest.raises(ShardError, match=r"cannot be read: .*left as it is") as caught:
        TeacherCache.open(manifest.root, "key")
    assert not isinstance(caught.value, CacheDamagedError)


def test_refused_input(manifest: Manifest) -> None:
    target = writer(manifest)
    features, counts = content(0)
    with pytest.raises(ValueError, match=r"expected \("):
        target.add(0, features[1:], counts)
    with pytest.raises(ValueError, match="2 cameras"):
        target.add(0, features, (len(features),))
    with pytest.raises(ValueError, match="not finite in float16"):
        target.add(0, features * 1e6, counts)
    target.add(0, features, counts)
    with pytest.raises(ValueError, match="already"):
        target.add(0, features, counts)
    with pytest.raises(ValueError, match="key is"):
        TeacherCacheWriter(manifest.root, "../up", DIM, manifest)


def test_the_key_depends_on_everything_that_changes_features(manifest: Manifest, tmp_path: Path) -> None:
    other = load_manifest(write_toy_set(tmp_path / "other", num_logs=2, frames_per_log=3, num_points=20))
    keys = {
        teacher_cache_key("a", manifest, (48, 96)),
        teacher_cache_key("b", manifest, (48, 96)),
        teacher_cache_key("a", other, (48, 96)),
        teacher_cache_key("a", manifest, (24, 96)),
    }
    assert len(keys) == 4


HOLD = """
import sys
from data.storage.manifest import load_manifest
from tests.data.storage.test_teacher_cache import fill, writer
manifest = load_manifest(sys.argv[1])
held = writer(manifest, rows_per_part=7)
fill(held, [0, 1, 2, 3])
held.flush()
held.note("4 of 8 samples")
print("held", flush=True)
sys.stdin.readline()
fill(held, [4, 5, 6])
held.finish()
"""


def hold(manifest: Manifest) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, manifest.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("killed", [False, True])
def test_two_builders_at_once(manifest: Manifest, killed: bool) -> None:
    """Another process has flushed some samples; this one has other flush boundaries and comes in between."""
    other = hold(manifest)
    told = rf"is being built by process {other.pid} on .*: 4 of 8 samples"
    with pytest.raises(CacheBusyError, match=told):
        writer(manifest)
    if killed:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    else:
        with pytest.raises(CacheBusyError, match=told):
            writer(manifest)
        other.communicate("go on\n")
    earlier = TeacherCache.open(manifest.root, "key")
    assert (earlier is None) == killed
    with writer(manifest) as mine:
        missing = mine.missing(np.arange(8)).tolist()
        assert missing == ([4, 5, 6, 7] if killed else [7]), "what the other one finished is taken over"
        fill(mine, missing)
        mine.finish()
    cache = TeacherCache.open(manifest.root, "key")
    assert cache is not None
    assert_holds(cache, manifest, list(range(8)))
    if earlier is not None:
        assert_holds(earlier, manifest, list(range(7)))


def test_builders_that_see_no_lock_spoil_nothing(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has no locks, two build at once, with other flush boundaries: all features are right."""
    monkeypatch.setattr("common.file_lock._try", lambda fd, path: True)
    a = writer(manifest, rows_per_part=1000)
    fill(a, [0, 1, 2, 3])
    a.flush()
    b = writer(manifest, rows_per_part=1)
    for number in range(4):
        fill(a, [4 + number])
        fill(b, [7 - number])
        if number == 1:
            a.flush()
    caches = [a.finish(), b.finish()]
    opened = TeacherCache.open(manifest.root, "key")
    assert opened is not None
    for cache in (*caches, opened):
        assert_holds(cache, manifest, list(range(8)))


def test_a_part_whose_index_was_swapped_is_built_again(manifest: Manifest) -> None:
    target = writer(manifest)
    fill(target, list(range(8)))
    target.finish()
    indices = sorted(folder_of(manifest).glob("*.index.npz"))
    first = indices[0].read_bytes()
    indices[0].write_bytes(indices[1].read_bytes())
    indices[1].write_bytes(first)
    with writer(manifest) as again:
        missing = again.missing(np.arange(8)).tolist()
        assert missing
        fill(again, missing)
        assert_holds(again.finish(), manifest, list(range(8)))


def test_features_are_those_of_the_key(manifest: Manifest) -> None:
    target = writer(manifest)
    fill(target, list(range(8)))
    cache = target.finish()
    with pytest.raises(ShardError, match=rf"row 2 of the set is sample {manifest.key(3)}, .*another one"):
        cache.features(2, manifest.key(3))


def test_a_cache_of_the_first_version_is_read_and_continued(manifest: Manifest) -> None:
    """Its parts have numbers for names, and no keys."""
    folder = folder_of(manifest)
    folder.mkdir(parents=True)
    parts = []
    for number, samples in enumerate(([5, 0, 7], [1, 2])):
        rows = np.concatenate([content(index)[0] for index in samples]).astype(np.float16)
        file = folder / f"part-{number:05d}.npy"
        np.save(file, rows)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        counts = np.array([content(index)[1] for index in samples], dtype=np.int32)
        np.savez(folder / f"part-{number:05d}.index.npz", sample=samples, num_segments=counts, sha256=sha256)
        parts.append({"file": file.name, "num_bytes": file.stat().st_size, "sha256": sha256})
    fields = {"version": 1, "dim": DIM, "num_samples": 8, "num_cameras": 2}
    fields |= {"manifest_fingerprint": manifest.fingerprint(), "parts": parts}
    (folder / "cache.json").write_text(json.dumps(fields))
    cache = TeacherCache.open(manifest.root, "key")
    assert cache is not None
    assert_holds(cache, manifest, [0, 1, 2, 5, 7])
    with writer(manifest) as more:
        missing = more.missing(np.arange(8)).tolist()
        assert missing == [3, 4, 6]
        fill(more, missing)
        assert_holds(more.finish(), manifest, list(range(8)))


def test_a_folder_that_cannot_be_written_is_named(manifest: Manifest) -> None:
    Path(manifest.root, "teacher_cache").write_bytes(b"no folder")
    with pytest.raises(ShardError, match="cannot be written"):
        writer(manifest)
