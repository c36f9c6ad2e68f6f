from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from data.storage.manifest import Manifest, load_manifest
from data.storage.shard import ShardError
from data.storage.teacher_cache import TeacherCache, TeacherCacheWriter, teacher_cache_key
from tests.helpers.samples import write_toy_set

DIM = 5


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return load_manifest(write_toy_set(tmp_path / "set", num_logs=2, frames_per_log=4, num_points=20))


def content(index: int) -> tuple[np.ndarray, tuple[int, int]]:
    rng = np.random.default_rng(index)
    counts = (int(rng.integers(1, 9)), int(rng.integers(1, 9)))
    return rng.normal(size=(sum(counts), DIM)).astype(np.float32), counts


def writer(manifest: Manifest) -> TeacherCacheWriter:
    return TeacherCacheWriter(manifest.root, "key", DIM, manifest, part_bytes=2 * DIM * 15)


def fill(target: TeacherCacheWriter, indices: list[int]) -> None:
    for index in indices:
        features, counts = content(index)
        target.add(index, features, counts)


def assert_holds(cache: TeacherCache, indices: list[int]) -> None:
    for index in indices:
        features, counts = content(index)
        np.testing.assert_array_equal(cache.features(index), features.astype(np.float16))
        assert cache.offsets(index).tolist() == [0, counts[0], sum(counts)]


def test_written_features_come_back(manifest: Manifest) -> None:
    target = writer(manifest)
    fill(target, [5, 0, 7, 2])
    target.finish()
    cache = TeacherCache.open(manifest.root, "key")
    assert cache is not None
    assert_holds(cache, [0, 2, 5, 7])
    assert [index in cache for index in range(8)] == [True, False, True, False, False, True, False, True]
    assert cache.dim == DIM
    assert cache.manifest_fingerprint == manifest.fingerprint()
    with pytest.raises(KeyError, match="sample 1 is not"):
        cache.features(1)
    assert_holds(pickle.loads(pickle.dumps(cache)), [0, 2, 5, 7])


def test_an_unfinished_cache_is_not_one_and_its_parts_are_kept(manifest: Manifest) -> None:
    first = writer(manifest)
    fill(first, [0, 1, 2, 3, 4])
    assert TeacherCache.open(manifest.root, "key") is None
    (manifest_folder := Path(manifest.root) / "teacher_cache" / "key" / "part-00009.npy.1.tmp").write_bytes(b"half")
    second = writer(manifest)
    assert not manifest_folder.exists()
    missing = second.missing(np.arange(8)).tolist()
    # What was flushed is kept, what was still in memory is asked for again.
    assert 0 not in missing
    assert set(missing) >= {5, 6, 7}
    fill(second, missing)
    assert_holds(second.finish(), list(range(8)))
    # Finishing again with nothing to do changes nothing.
    assert writer(manifest).missing(np.arange(8)).tolist() == []


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
    assert_holds(again.finish(), list(range(8)))


@pytest.mark.parametrize("how", ["truncated", "gone", "no-index", "json"])
def test_other_damage_is_refused(manifest: Manifest, how: str) -> None:
    target = writer(manifest)
    fill(target, list(range(8)))
    target.finish()
    folder = Path(manifest.root) / "teacher_cache" / "key"
    part = folder / "part-00000.npy"
    if how == "truncated":
        os.truncate(part, 100)
    elif how == "gone":
        part.unlink()
    elif how == "no-index":
        (folder / "part-00000.index.npz").unlink()
    else:
        (folder / "cache.json").write_text("{}")
    with pytest.raises(ShardError, match="build the teacher cache again"):
        TeacherCache.open(manifest.root, "key", verify=False)


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
