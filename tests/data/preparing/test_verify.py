"""Verification finds each kind of damage under its name; a repaired set is clean, smaller, and stays so."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from data.preparing import repair as repair_module
from data.preparing import verify as verify_module
from data.preparing.prepare import PrepareConfig, prepare
from data.preparing.repair import SUFFIX, repair, undo_half
from data.preparing.shard_task import RECORDS
from data.preparing.verify import REASONS, VerifyReport, examples, save_report, verify
from data.sample import Sample
from data.storage.damage import REASONS as CODEC_REASONS
from data.storage.manifest import SAMPLE_COLUMNS, Manifest, SetInfo, load_manifest
from data.storage.manifest_writer import write_manifest
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from data.storage.shard_writer import join_manifest, write_shard
from data.storage.superpixel_record import SuperpixelRecord
from tests.helpers.damaged_set import write_damaged_set
from tests.helpers.samples import CAMERA_NAMES, CLASS_NAMES, toy_log, write_toy_set
from tests.helpers.toy_converter import ToyConverter

CONFIG = PrepareConfig(samples_per_shard=3)


def found(verdict: VerifyReport) -> set[tuple[str, str]]:
    return {(problem.reason, problem.key) for problem in verdict.problems}


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.fixture
def prepared(tmp_path: Path) -> Manifest:
    prepare(ToyConverter(), str(tmp_path / "set"), CONFIG)
    return load_manifest(str(tmp_path / "set"))


# ---- finding
def test_whole_sets_are_whole(tmp_path: Path, prepared: Manifest) -> None:
    progress: list[tuple[int, int]] = []
    verdict = verify(prepared.root, on_progress=lambda done, total, _: progress.append((done, total)))
    assert (verdict.problems, verdict.num_samples, verdict.num_shards) == ((), 24, 9)
    assert progress == [(done, 24) for done in range(25)]
    assert verify(write_toy_set(tmp_path / "toy")).problems == ()


def test_damage_of_samples_has_the_readers_names(tmp_path: Path) -> None:
    root, where = write_damaged_set(tmp_path / "set")
    verdict = verify(root)
    expected = {(reason, key) for reason, (key, _) in where.items()}
    shard = where["tar-broken"][1]
    assert found(verdict) - expected <= {("table-wrong", where["zero-pairs"][0]), ("shard-changed", "")}
    assert expected <= found(verdict)
    assert [p.shard for p in verdict.problems if p.reason == "shard-changed"] == [shard]
    report = json.loads(Path(save_report(verdict)).read_text())
    assert report["num_broken_samples"] == len(where)
    assert report["counts"]["image-broken"] == 1
    assert {problem["key"] for problem in report["problems"]} == {key for _, key in found(verdict)}


@pytest.mark.slow
def test_processes_find_the_same(tmp_path: Path) -> None:
    root, _ = write_damaged_set(tmp_path / "set")
    assert verify(root, workers=2).problems == verify(root).problems


def change_camera(sample: Sample, **changes: object) -> Sample:
    return dataclasses.replace(
        sample,
        cameras=(dataclasses.replace(sample.cameras[0], **changes), *sample.cameras[1:]),  # type: ignore[arg-type]
    )


def set_at(values: np.ndarray, index: object, value: float) -> np.ndarray:
    values = values.copy()
    values[index] = value
    return values


ODD: dict[str, tuple[str, Callable[[Sample], Sample]]] = {
    "box without height": (
        "boxes-flat",
        lambda s: dataclasses.replace(
            s, boxes=dataclasses.replace(s.boxes, sizes_m=set_at(s.boxes.sizes_m, (0, 2), 0.0))
        ),
    ),
    "superpixel ids with a gap": (
        "superpixel-gaps",
        lambda s: change_camera(s, superpixels=np.where(s.cameras[0].superpixels == 2, 3, s.cameras[0].superpixels)),
    ),
    "focal length of another camera": (
        "calibration-odd",
        lambda s: change_camera(s, K=s.cameras[0].K @ np.diag([0.01, 0.01, 1])),
    ),
    "intensities of bytes, clipped": (
        "intensity-scale",
        lambda s: dataclasses.replace(s, intensity=np.minimum(s.intensity * 255, 1)),
    ),
    "earlier than the one before": ("time-order", lambda s: dataclasses.replace(s, timestamp_us=5)),
}


@pytest.mark.parametrize("case", ODD)
def test_what_reading_does_not_refuse_is_found(tmp_path: Path, case: str) -> None:
    reason, change = ODD[case]
    samples = list(toy_log(0, 4))
    samples[2] = change(samples[2])
    table = write_shard(tmp_path / "shard-000000.tar", samples)
    info = SetInfo(
        set_name="odd", camera_names=CAMERA_NAMES, class_names=CLASS_NAMES, logs=("log-000",), splits=("train",)
    )
    join_manifest(str(tmp_path), info, [table])
    assert found(verify(str(tmp_path))) == {(reason, samples[2].key)}


@pytest.mark.parametrize(
    ("set_name", "dark", "found_in"),
    [
        ("odd", (2,), ()),
        ("odd", (0, 1, 2, 3), (0, 1, 2, 3)),
        ("kitti-raw", (0, 1, 2, 3), (0, 1, 2, 3)),
        ("7scenes", (0, 1, 2, 3), ()),
    ],
)
def test_dark_sweeps_are_found_where_their_whole_log_is_dark(tmp_path, set_name, dark, found_in) -> None:
    samples, other = toy_log(0, 4), toy_log(1, 2)
    for number in dark:
        samples[number] = dataclasses.replace(samples[number], intensity=samples[number].intensity / 255)
    table = write_shard(tmp_path / "shard-000000.tar", [*samples, *other])
    info = SetInfo(
        set_name=set_name,
        camera_names=CAMERA_NAMES,
        class_names=CLASS_NAMES,
        logs=("log-000", "log-001"),
        splits=("train", "train"),
    )
    join_manifest(str(tmp_path), info, [table])
    assert found(verify(str(tmp_path))) == {("intensity-dark", samples[number].key) for number in found_in}


def test_more_superpixels_than_the_manifest_states(tmp_path: Path) -> None:
    manifest = load_manifest(write_toy_set(tmp_path, num_logs=1))
    write_manifest(dataclasses.replace(manifest, superpixels=SuperpixelRecord(num_segments=1)))
    assert {reason for reason, _ in found(verify(manifest.root))} == {"superpixel-ids"}


@pytest.mark.parametrize("column", ["num_points", "num_pairs", "sample_timestamp_us", "sample_log"])
def test_a_table_that_says_something_else(tmp_path: Path, column: str) -> None:
    manifest = load_manifest(write_toy_set(tmp_path, num_logs=2))
    values = getattr(manifest, column).copy()
    values[3] = 1 - values[3] if column == "sample_log" else values[3] + 50
    write_manifest(dataclasses.replace(manifest, **{column: values}))
    verdict = verify(manifest.root)
    assert ("table-wrong", manifest.key(3)) in found(verdict)
    assert {key for _, key in found(verdict)} == {manifest.key(3)}


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    manifest = load_manifest(write_toy_set(tmp_path, num_logs=1))
    columns = {name: getattr(manifest, name) for name in ("keys", *SAMPLE_COLUMNS)}
    columns["keys"] = manifest.keys[[0, 0, 2, 3]]
    buffer = io.BytesIO()
    np.savez(buffer, **columns)
    stated = json.loads((tmp_path / "manifest.json").read_text())
    stated["table_sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    (tmp_path / "samples.npz").write_bytes(buffer.getvalue())
    (tmp_path / "manifest.json").write_text(json.dumps(stated))
    assert ("key-twice", 1) in {(problem.reason, problem.row) for problem in verify(str(tmp_path)).problems}


def test_a_changed_byte_between_samples_changes_the_shard_alone(prepared: Manifest) -> None:
    path = Path(prepared.shard_path(0))
    flip(path, path.stat().st_size - 1)  # in the zeros at the end
    assert found(verify(prepared.root)) == {("shard-changed", "")}


def test_fewest_samples_are_blamed_for_disorder() -> None:
    blame = verify_module._not_in_order
    assert blame(np.array([1, 2, 9, 3, 4])) == [2]
    assert blame(np.array([1, 2, 2, 3])) == []
    assert blame(np.array([3, 1, 2])) == [0]
    rng = np.random.default_rng(0)
    times = np.arange(50)
    times[[10, 30]] = rng.integers(60, 90, 2)
    assert blame(times) in ([10, 30], [10, 30][::-1])


def test_every_reason_is_tested() -> None:
    tested = {reason for reason, _ in ODD.values()} | {"shard-changed", "table-wrong", "key-twice", "zero-pairs"}
    assert tested | {"intensity-dark"} == set(REASONS)
    assert not set(REASONS) & set(CODEC_REASONS)


def test_examples_are_of_different_shards(prepared: Manifest) -> None:
    problems = [verify_module._problem(prepared, row, "checksum", "") for row in (0, 1, 2, 3, 20)]
    assert len({problem.shard for problem in examples(problems, 3)}) == 3
    assert len(examples(problems, 9)) == 5


# ---- repairing
def damage(manifest: Manifest) -> set[str]:
    """A byte in one shard, the end of another, a third one gone; the keys that are lost."""
    flip(Path(manifest.shard_path(1)), int(manifest.sample_offset[4]) + 900)
    last = int(np.flatnonzero(manifest.sample_shard == 4)[-1])
    os.truncate(manifest.shard_path(4), int(manifest.sample_offset[last]) + 600)
    Path(manifest.shard_path(6)).unlink()
    gone = np.flatnonzero(manifest.sample_shard == 6).tolist()
    return {manifest.key(row) for row in (4, last, *gone)}


def test_a_repaired_set_is_clean_and_smaller(prepared: Manifest) -> None:
    root = Path(prepared.root)
    before = content(root)
    lost = damage(prepared)
    repaired = repair(verify(prepared.root))
    assert {key for keys in repaired.dropped.values() for key in keys} == lost
    assert repaired.dropped_shards == ("shard-000006.tar",)
    assert repaired.changed_shards == ("shard-000001.tar", "shard-000004.tar")
    assert verify(prepared.root).problems == ()
    after = load_manifest(prepared.root)
    assert {after.key(row) for row in range(len(after))} == {prepared.key(row) for row in range(24)} - lost
    assert after.fingerprint() != prepared.fingerprint()
    assert after.damaged_shards() == []
    assert {key for keys in after.skipped.values() for key in keys} == lost
    reader = SampleReader(after)
    assert [reader.read(row).key for row in range(len(after))] == [after.key(row) for row in range(len(after))]
    for name in repaired.kept:
        assert (root / name).read_bytes() == before[name.removesuffix(SUFFIX)]
    assert {"manifest.json" + SUFFIX, "samples.npz" + SUFFIX} <= set(repaired.kept)


def test_preparing_again_does_not_bring_them_back(prepared: Manifest) -> None:
    lost = damage(prepared)
    repair(verify(prepared.root))
    repaired = load_manifest(prepared.root)
    lenient = dataclasses.replace(CONFIG, max_skip_share=0.5)
    summary = prepare(ToyConverter(crash_in="log-000_000000"), prepared.root, lenient, verify=True)
    assert summary.num_reused_shards == summary.num_shards
    assert summary.manifest.fingerprint() == repaired.fingerprint()
    assert len(summary.manifest) == 24 - len(lost)
    # From the source: without their records, the units are made whole again.
    for name in ("unit-000001.json", "unit-000004.json", "unit-000006.json"):
        (Path(prepared.root) / RECORDS / name).unlink()
    assert prepare(ToyConverter(), prepared.root, CONFIG).manifest.fingerprint() == prepared.fingerprint()


def test_a_sample_of_an_intact_tar_changes_the_fingerprint(tmp_path: Path) -> None:
    samples = list(toy_log(0, 4))
    samples[2] = change_camera(samples[2], K=samples[2].cameras[0].K @ np.diag([0.01, 0.01, 1]))
    table = write_shard(tmp_path / "shard-000000.tar", samples)
    info = SetInfo(
        set_name="odd", camera_names=CAMERA_NAMES, class_names=CLASS_NAMES, logs=("log-000",), splits=("train",)
    )
    before = join_manifest(str(tmp_path), info, [table])
    repaired = repair(verify(str(tmp_path)))
    after = load_manifest(str(tmp_path))
    assert after.shards == before.shards
    assert after.fingerprint() != before.fingerprint()
    assert (repaired.dropped, repaired.changed_shards) == ({"calibration-odd": (samples[2].key,)}, ())
    # A second repair keeps the first one's files.
    flip(tmp_path / "shard-000000.tar", 700)
    repair(verify(str(tmp_path)))
    assert (tmp_path / f"manifest.json{SUFFIX}-2").is_file()
    assert json.loads((tmp_path / f"manifest.json{SUFFIX}").read_text())["num_samples"] == 4
    assert verify(str(tmp_path)).problems == ()


def test_a_repair_that_was_killed_between_its_files_is_undone(prepared: Manifest) -> None:
    damage(prepared)
    verdict = verify(prepared.root)
    real = repair_module.write_manifest

    def table_only(manifest: Manifest, **_: object) -> None:
        old = (Path(prepared.root) / "manifest.json").read_bytes()
        real(manifest)
        (Path(prepared.root) / "manifest.json").write_bytes(old)
        raise KeyboardInterrupt

    with mock.patch.object(repair_module, "write_manifest", table_only), pytest.raises(KeyboardInterrupt):
        repair(verdict)
    with pytest.raises(ShardError, match=r"samples\.npz is missing or not the one"):
        load_manifest(prepared.root)
    assert undo_half(prepared.root)
    assert not undo_half(prepared.root)
    repair(verify(prepared.root))
    assert verify(prepared.root).problems == ()


@pytest.mark.parametrize("call", [pytest.param(n, marks=[] if n in (2, 4) else pytest.mark.slow) for n in range(20)])
def test_a_repair_that_dies_at_any_moment_can_be_done_again(prepared: Manifest, call: int) -> None:
    lost = damage(prepared)
    real, calls = os.fsync, itertools.count()

    def fsync(descriptor: int) -> None:
        if next(calls) == call:
            raise KeyboardInterrupt
        real(descriptor)

    with mock.patch.object(os, "fsync", fsync), contextlib.suppress(KeyboardInterrupt):
        repair(verify(prepared.root))
    undo_half(prepared.root)
    verdict = verify(prepared.root)
    if verdict.problems:
        repair(verdict)
    after = load_manifest(prepared.root)
    assert {after.key(row) for row in range(len(after))} == {prepared.key(row) for row in range(24)} - lost
    assert verify(prepared.root).problems == ()
    lenient = dataclasses.replace(CONFIG, max_skip_share=0.5)
    assert prepare(ToyConverter(), prepared.root, lenient).manifest.fingerprint() == after.fingerprint()


def test_repair_is_refused_where_it_would_harm(prepared: Manifest) -> None:
    root = Path(prepared.root)
    damage(prepared)
    verdict = verify(prepared.root)
    before = content(root)
    with (root / RECORDS / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ShardError, match="another process is preparing"):
            repair(verdict)
    with pytest.raises(ShardError, match="has changed since it was verified"):
        repair(dataclasses.replace(verdict, num_samples=3))
    everything = tuple(verify_module._problem(prepared, row, "checksum", "") for row in range(24))
    with pytest.raises(ShardError, match="nothing would be left"):
        repair(dataclasses.replace(verdict, problems=everything))
    assert content(root) == before
