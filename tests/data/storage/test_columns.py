"""Sets with shards, logs and an index as columns of a mapped table: the same set as one with lists in its manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

from data.loading.in_use import fingerprint, order_of
from data.preparing.repair import repair, undo_half, upgrade
from data.preparing.verify import verify
from data.storage.columns import MIN_SAMPLES, Names
from data.storage.manifest import Manifest, load_manifest
from data.storage.manifest_check import is_key, repeated
from data.storage.manifest_writer import write_manifest
from data.storage.mixture import SetConfig, open_sets
from data.storage.reader import SampleReader
from data.storage.remote.shard_cache import CacheConfig
from data.storage.shard import ShardError
from launchers.verify import main as verify_main
from tests.data.loading.test_loader import assert_same, loader, take
from tests.helpers.object_server import serving
from tests.helpers.samples import write_toy_set


@pytest.fixture
def lists(tmp_path: Path) -> Manifest:
    return load_manifest(write_toy_set(tmp_path / "lists", num_logs=5, frames_per_log=3, num_points=150))


@pytest.fixture
def columns(tmp_path: Path) -> Manifest:
    root = write_toy_set(tmp_path / "columns", num_logs=5, frames_per_log=3, num_points=150)
    write_manifest(load_manifest(root), columnar=True)
    return load_manifest(root)


def test_it_is_the_same_set(lists: Manifest, columns: Manifest) -> None:
    assert json.loads((Path(columns.root) / "manifest.json").read_text())["schema_version"] == 4
    assert columns.index is not None
    assert lists.index is None
    assert columns.fingerprint() == lists.fingerprint(), "caches beside the shards go by it"
    assert (columns.schema_version, len(columns)) == (lists.schema_version, 15)
    assert list(columns.shards) == list(lists.shards)
    assert columns.shards[1:3] == list(lists.shards[1:3])
    assert (list(columns.logs), columns.splits) == (list(lists.logs), lists.splits)
    assert columns.bounds == lists.bounds
    splits = (None, "train", "val", "train+val")
    for split in splits:
        assert columns.indices(split).tolist() == lists.indices(split).tolist()
        assert columns.indices(split, limit=4).tolist() == lists.indices(split, limit=4).tolist()
        assert columns.count(split) == lists.count(split)
        for limit in (None, 4):
            found, expected = columns.blocks(split, limit), lists.blocks(split, limit)
            assert found.stretches == expected.stretches
            for name in ("first", "count", "shard"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert columns.indices(log="log-003").tolist() == lists.indices(log="log-003").tolist()
    assert columns.indices("val", "log-000").tolist() == lists.indices("val", "log-000").tolist() == []
    assert [columns.rows_of_shard(s).tolist() for s in range(5)] == [lists.rows_of_shard(s).tolist() for s in range(5)]
    for wrong in ({"split": "night"}, {"log": "log-9"}):
        with pytest.raises(ShardError, match="is not in the set"):
            columns.indices(**wrong)  # type: ignore[arg-type]


def test_samples_stored_in_another_order_and_shards_of_several_splits(lists: Manifest) -> None:
    """Times run backwards in a log, logs are not in the order of their shards, and splits share shards."""
    times = lists.sample_timestamp_us.copy()
    times[:3] = times[:3][::-1]
    logs = lists.sample_log.copy()
    logs[[3, 7]] = logs[[7, 3]]
    odd = dataclasses.replace(
        lists, sample_timestamp_us=times, sample_log=logs, splits=("val", "train", "a", "train", "a")
    )
    write_manifest(odd, columnar=True)
    read = load_manifest(lists.root)
    assert read.index is not None
    assert read.index.in_time is not None
    for split in (None, "train", "val", "a+val"):
        assert read.indices(split).tolist() == odd.indices(split).tolist()
        found, expected = read.blocks(split), odd.blocks(split)
        assert (found.rows is None) == (expected.rows is None)
        for name in ("first", "count", "shard"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert {problem.reason for problem in verify(lists.root, fraction=0.0).problems} <= {"time-order"}


def test_orders_and_states_do_not_depend_on_the_form(lists: Manifest, columns: Manifest) -> None:
    for config in ({}, {"split": None}, {"limit": 5}, {"weight": 0.5}):
        one, other = (open_sets([SetConfig(shards=m.root, **config)]) for m in (lists, columns))  # type: ignore[arg-type]
        assert [part.tolist() for part in one.values("num_pairs")] == [p.tolist() for p in other.values("num_pairs")]
        for version in (1, 2):
            assert fingerprint(one, version) == fingerprint(other, version)
            orders = [order_of(opened, version, seed=3, shards_per_group=2) for opened in (one, other)]
            assert [orders[0].at(p) for p in range(40)] == [orders[1].at(p) for p in range(40)]
    assert_same(take(loader(columns.root, num_workers=2), 0, 4), take(loader(lists.root), 0, 4))
    more = (SetConfig(shards=lists.root, weight=2.0),)
    mixed = [loader(m.root, more=more, micro_batch_size=2) for m in (lists, columns)]
    assert mixed[0].state(3) == mixed[1].state(3)


def test_another_process_maps_the_table_and_copies_nothing(columns: Manifest) -> None:
    parcel = pickle.dumps(columns)
    assert len(parcel) < 10_000
    again = pickle.loads(parcel)
    assert isinstance(again.sample_offset, np.memmap)
    assert again.indices("train").tolist() == columns.indices("train").tolist()
    assert list(again.shards) == list(columns.shards)
    part = pickle.loads(pickle.dumps(Names(columns.keys[4:])))
    assert list(part) == [columns.key(row) for row in range(4, 15)]
    os.utime(Path(columns.root) / "samples.npz", (1, 1))
    with pytest.raises(OSError, match="was replaced while it was in use"):
        pickle.loads(parcel)


def test_numpy_reads_the_table(columns: Manifest) -> None:
    with np.load(Path(columns.root) / "samples.npz", allow_pickle=False) as table:
        assert table["keys"].tolist() == columns.keys.tolist()
        assert table["shard_first"].tolist() == [0, 3, 6, 9, 12, 15]


def test_a_large_set_is_written_with_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MIN_SAMPLES == 500_000
    monkeypatch.setattr("data.storage.manifest_writer.MIN_SAMPLES", 11)
    assert load_manifest(write_toy_set(tmp_path)).index is not None


def test_a_set_behind_a_url_is_fetched_once_and_mapped(columns: Manifest, tmp_path: Path) -> None:
    with serving(Path(columns.root)) as server:
        cache = CacheConfig(folder=str(tmp_path / "cache"))
        for _ in range(2):
            read = load_manifest(server.url, cache)
            assert str(read.keys.filename).startswith(str(tmp_path / "cache"))  # type: ignore[attr-defined]
        assert read.fingerprint() == columns.fingerprint()
        sample = SampleReader(read).read(4, images=False)
        assert sample.key == columns.key(4)
        (Path(columns.root) / "samples.npz").write_bytes(b"x" * (Path(columns.root) / "samples.npz").stat().st_size)
        with pytest.raises(ShardError, match="another checksum"):
            load_manifest(server.url, CacheConfig(folder=str(tmp_path / "empty")))


def _rewritten(root: str, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """The table with another content, and a manifest that fits it."""
    table = Path(root) / "samples.npz"
    with np.load(table) as stored:
        columns = {name: stored[name] for name in stored.files}
    change(columns)
    np.savez(table, **columns)  # type: ignore[arg-type]
    path = Path(root) / "manifest.json"
    content = json.loads(path.read_text())
    content |= {"table_sha256": hashlib.sha256(table.read_bytes()).hexdigest(), "table_bytes": table.stat().st_size}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("shard_first", [0, 3, 2, 9, 12, 15]),
        ("shard_first", [0, 3, 6, 9, 12, 14]),
        ("log_start", [0, 15]),
        ("shard_split", [0, 0, 0, 0, 2]),
        ("log_split", [0, -1, 0, 0, 0]),
        ("sample_shard", [5] * 15),
        ("sample_shard", [1] * 3 + [0] * 12),
        ("sample_log", [-1] * 15),
        ("sample_size", [1] * 14),
        ("shard_num_bytes", [-1] * 5),
        ("shard_file", [b"a"]),
    ],
    ids=str,
)
def test_tables_that_no_writer_makes_are_refused(columns: Manifest, column: str, values: list[int]) -> None:
    def change(table: dict[str, np.ndarray]) -> None:
        table[column] = np.array(values, dtype=table[column].dtype)

    _rewritten(columns.root, change)
    with pytest.raises(ShardError, match="is damaged"):
        load_manifest(columns.root)


def test_names_and_keys_are_checked_when_they_are_used(columns: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(table: dict[str, np.ndarray]) -> None:
        table["shard_file"] = np.array([b"../outside.tar", *table["shard_file"][1:]])
        table["keys"] = np.array([b"../../key", *table["keys"][1:]])

    _rewritten(columns.root, change)
    # The tests' type checker looks at one shard by chance, of each sequence that a call gets.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    read = load_manifest(columns.root)
    with pytest.raises(ShardError, match="is no name inside the set's folder"):
        SampleReader(read).shard_of(0)
    with pytest.raises(ShardError, match="of sample 0 is no key"):
        read.key(0)


def test_a_table_that_is_cut_or_changed_is_refused(columns: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(columns.root) / "samples.npz"
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"samples\.npz is missing or not the one"):
        load_manifest(columns.root)
    monkeypatch.setattr("data.storage.manifest.COMPARED_BYTES", 0)  # as of a large one: `--verify` finds it
    load_manifest(columns.root)
    (problem,) = [p for p in verify(columns.root, fraction=0.0).problems if p.shard == "samples.npz"]
    assert (problem.reason, problem.detail) == ("table-wrong", "its SHA-256 is not the manifest's")
    path.write_bytes(data[:-1])
    with pytest.raises(ShardError, match=r"samples\.npz is missing or not the one"):
        load_manifest(columns.root)
    path.unlink()
    with pytest.raises(ShardError, match=r"samples\.npz is missing or not the one"):
        load_manifest(columns.root)


def test_an_index_that_is_not_of_the_samples_is_found_and_made_again(columns: Manifest) -> None:
    def change(table: dict[str, np.ndarray]) -> None:
        table["log_split"] = 1 - table["log_split"]

    _rewritten(columns.root, change)
    details = [problem.detail for problem in verify(columns.root, fraction=0.0).problems]
    assert details == ["shard_split is not that of the samples"]


def test_an_old_set_is_upgraded_and_goes_on_as_it_was(lists: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    state = loader(lists.root, order=1).state(5)
    assert verify_main(["--verify", lists.root, "--upgrade", "--fraction", "0", "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert "manifest.json.before-repair" in shown
    assert "looked into 0 of the shards" in shown
    loader(lists.root, order=1).check_state(state)
    assert upgrade(lists.root) == ()
    read = load_manifest(lists.root)
    assert read.index is not None
    assert read.fingerprint() == lists.fingerprint()


def test_an_upgrade_that_was_killed_is_undone(lists: Manifest) -> None:
    old = (Path(lists.root) / "manifest.json").read_bytes()
    upgrade(lists.root)
    (Path(lists.root) / "manifest.json").write_bytes(old)
    with pytest.raises(ShardError, match="not the one"):
        load_manifest(lists.root)
    assert undo_half(lists.root)
    assert load_manifest(lists.root).fingerprint() == lists.fingerprint()


def test_broken_samples_are_dropped(columns: Manifest) -> None:
    path = Path(columns.shard_path(1))
    data = bytearray(path.read_bytes())
    data[int(columns.sample_offset[4]) + 900] ^= 255
    path.write_bytes(data)
    report = verify(columns.root)
    assert report.broken_rows == [4]
    repair(report)
    after = load_manifest(columns.root)
    assert len(after) == 14
    assert verify(columns.root).problems == ()


def test_a_share_of_the_shards_is_looked_into(lists: Manifest) -> None:
    report = verify(lists.root, fraction=0.4)
    assert (report.num_read, report.num_shards) == (2, 5)


@pytest.mark.parametrize("width", [1, 8, 13])
def test_repeated_keys(width: int) -> None:
    rng = np.random.default_rng(width)
    keys = np.array([bytes(rng.integers(97, 123, width).astype(np.uint8)) for _ in range(400)])
    keys[[10, 50, 399]] = keys[[300, 300, 0]]
    seen: set[bytes] = set()
    again = [row for row, key in enumerate(keys.tolist()) if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
    assert repeated(keys).tolist() == again


def test_keys() -> None:
    assert is_key("log-000_000001")
    assert not any(map(is_key, ("", "a/b", "a.b", "ä", "a\0", "a b")))
