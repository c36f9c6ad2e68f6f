"""Preparation: plan, restart, kill -9, refusals; whatever happens, the bytes are those of an undisturbed run."""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import pytest

from data.preparing.prepare import PrepareConfig, prepare
from data.preparing.shard_task import RECORDS, plan_tasks
from data.preparing.superpixels import SuperpixelConfig
from data.storage.encode import CodecConfig
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from data.storage.superpixel_record import SuperpixelRecord
from tests.helpers.samples import write_toy_set
from tests.helpers.small_disk import small_disk
from tests.helpers.toy_converter import ToyConverter

REPOSITORY = Path(__file__).parents[3]
CONFIG = PrepareConfig(samples_per_shard=3)


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed") / "set"
    prepare(ToyConverter(), str(root), CONFIG)
    return content(root)


def test_every_frame_is_there_once_and_as_the_converter_gave_it(tmp_path):
    converter = ToyConverter()
    progress = []
    summary = prepare(
        converter, str(tmp_path), CONFIG, on_progress=lambda done, total, _: progress.append((done, total))
    )
    manifest = load_manifest(str(tmp_path))
    assert len(manifest) == sum(converter.frames_by_log) == 24
    assert progress == [(done, 24) for done in range(25)]
    assert (summary.num_shards, summary.num_reused_shards) == (9, 0)
    assert manifest.notes == ("made up",)
    assert manifest.superpixels == SuperpixelRecord(
        method="slic like fast-slic",
        num_segments=150,
        compactness=10.0,
        smoothing=0.03,
        iterations=8,
        min_fragment_percent=25,
        max_pixels=360_000,
    )
    reader = SampleReader(manifest)
    for log in converter.logs():
        expected = list(converter.frames(log, 0, converter.num_frames(log)))
        got = [reader.read(int(index)) for index in manifest.indices(log=log)]
        assert [sample.key for sample in got] == [sample.key for sample in expected]
        for mine, theirs in zip(got, expected, strict=True):
            np.testing.assert_array_equal(mine.points_lidar, theirs.points_lidar)
            assert mine.cameras[0].superpixels is not None
            assert mine.cameras[0].superpixels.max() + 1 <= 150
    assert {manifest.key(int(index))[:7] for index in manifest.indices("val")} == {"log-002"}


@pytest.mark.parametrize("whole_logs", [False, True])
@pytest.mark.parametrize("limit", [None, 1, 9, 100])
@pytest.mark.parametrize("samples_per_shard", [1, 4, 7, 50])
def test_plan_covers_each_frame_once_without_mixing_splits(samples_per_shard, limit, whole_logs):
    converter = ToyConverter(frames_by_log=(5, 3, 4, 12, 0, 1), whole_logs=whole_logs)
    units = plan_tasks(converter, samples_per_shard, limit)
    assert [unit.number for unit in units] == list(range(len(units)))
    frames = [(s.log, frame) for unit in units for s in unit.stretches for frame in range(s.start, s.stop)]
    everything = [(log, frame) for log in converter.logs() for frame in range(converter.num_frames(log))]
    assert sorted(frames) == sorted(everything[:limit])
    for unit in units:
        assert len({converter.split_of(stretch.log) for stretch in unit.stretches}) == 1
        assert unit.num_frames <= samples_per_shard or (whole_logs and len(unit.stretches) == 1)
        if whole_logs:
            assert all(stretch.start == 0 for stretch in unit.stretches)


def test_a_second_call_redoes_nothing(tmp_path, undisturbed):
    prepare(ToyConverter(), str(tmp_path), CONFIG)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    # Crashing in the first frame shows that no frame is asked for again.
    summary = prepare(ToyConverter(crash_in="log-000_000000"), str(tmp_path), CONFIG)
    assert summary.num_reused_shards == summary.num_shards
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    assert content(tmp_path) == undisturbed


@pytest.mark.parametrize("crash_in", ["log-000_000000", "log-002_000003", "log-003_000011"])
def test_continues_after_a_crash_with_the_same_bytes(tmp_path, undisturbed, crash_in):
    with pytest.raises(RuntimeError, match="crash in"):
        prepare(ToyConverter(crash_in=crash_in), str(tmp_path), CONFIG)
    with pytest.raises(ShardError, match="no finished shard set"):
        load_manifest(str(tmp_path))
    assert not list(tmp_path.glob("*.tmp"))
    prepare(ToyConverter(), str(tmp_path), CONFIG)
    assert content(tmp_path) == undisturbed


def test_a_set_from_before_superpixels_were_recorded_gets_its_record(tmp_path, undisturbed):
    prepare(ToyConverter(), str(tmp_path), CONFIG)
    path = tmp_path / "manifest.json"
    old = json.loads(path.read_text())
    del old["superpixels"]
    path.write_text(json.dumps(old))
    assert prepare(ToyConverter(), str(tmp_path), CONFIG).num_reused_shards == 9
    assert content(tmp_path) == undisturbed
    plain = prepare(ToyConverter(), str(tmp_path / "plain"), dataclasses.replace(CONFIG, superpixels=None))
    assert plain.manifest.superpixels is None


def test_a_lost_or_cut_shard_is_made_again(tmp_path, undisturbed):
    prepare(ToyConverter(), str(tmp_path), CONFIG)
    (tmp_path / "shard-000001.tar").unlink()
    os.truncate(tmp_path / "shard-000003.tar", 2048)
    (tmp_path / "shard-000005.tar.77.tmp").write_bytes(b"left by a killed process")
    assert load_manifest(str(tmp_path)).damaged_shards() == ["shard-000001.tar", "shard-000003.tar"]
    summary = prepare(ToyConverter(), str(tmp_path), CONFIG)
    assert summary.num_shards - summary.num_reused_shards == 2
    assert content(tmp_path) == undisturbed


def test_verify_finds_a_changed_byte(tmp_path, undisturbed):
    prepare(ToyConverter(), str(tmp_path), CONFIG)
    path = tmp_path / "shard-000002.tar"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    quick = prepare(ToyConverter(), str(tmp_path), CONFIG)
    assert quick.num_reused_shards == quick.num_shards
    whole = prepare(ToyConverter(), str(tmp_path), CONFIG, verify=True)
    assert whole.num_shards - whole.num_reused_shards == 1
    assert content(tmp_path) == undisturbed


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"samples_per_shard": 4}, "samples_per_shard = 3, now it is 4"),
        ({"superpixels": None}, "superpixels"),
        ({"superpixels": SuperpixelConfig(num_segments=20)}, "superpixels.num_segments = 150, now it is 20"),
        ({"codec": CodecConfig(jpeg_quality=50)}, "codec.jpeg_quality = 95, now it is 50"),
        ({"limit": 5}, "limit = None, now it is 5"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(tmp_path, change, field):
    prepare(ToyConverter(frames_by_log=(2,)), str(tmp_path), CONFIG)
    before = content(tmp_path)
    with pytest.raises(ShardError, match=field):
        prepare(ToyConverter(frames_by_log=(2,)), str(tmp_path), dataclasses.replace(CONFIG, **change))
    with pytest.raises(ShardError, match=r"set\.frames_by_log"):
        prepare(ToyConverter(frames_by_log=(3,)), str(tmp_path), CONFIG)
    assert content(tmp_path) == before


def test_a_folder_begun_before_integers_became_the_default_is_finished_with_opencvs(tmp_path):
    earlier = SuperpixelConfig(like=None, smoothing=0.05, iterations=5)
    config = dataclasses.replace(CONFIG, superpixels=earlier)
    prepare(ToyConverter(frames_by_log=(2,)), str(tmp_path), config)
    settings = tmp_path / RECORDS / "settings.json"
    stored = json.loads(settings.read_text())
    assert stored["superpixels"].pop("like") is None  # folders of 0.2 do not have the setting
    settings.write_text(json.dumps(stored))
    before = content(tmp_path)
    with pytest.raises(ShardError, match=r"superpixels\.smoothing = 0\.05, now it is 0\.03"):
        prepare(ToyConverter(frames_by_log=(2,)), str(tmp_path), CONFIG)
    assert prepare(ToyConverter(frames_by_log=(2,)), str(tmp_path), config).num_reused_shards == 1
    assert content(tmp_path) == before
    assert load_manifest(str(tmp_path)).superpixels.method == "slic"


def test_a_folder_with_another_set_is_refused(tmp_path):
    root = write_toy_set(tmp_path, 1, 1)
    with pytest.raises(ShardError, match="was not prepared here"):
        prepare(ToyConverter(), root, CONFIG)


def test_a_second_process_is_refused_while_the_first_works(tmp_path):
    (tmp_path / RECORDS).mkdir()
    with (tmp_path / RECORDS / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ShardError, match="another process is preparing"):
            prepare(ToyConverter(), str(tmp_path), CONFIG)
    prepare(ToyConverter(frames_by_log=(1,)), str(tmp_path), CONFIG)


def test_damaged_frames_are_counted_by_reason(tmp_path):
    converter = ToyConverter(damaged=("log-000_000001", "log-003_000000"), skipped=("log-003_000001", "log-003_000002"))
    with pytest.raises(ShardError, match=r"4 of 24 frames cannot be used, allowed are 1\.0%.*--max-skip-share"):
        prepare(converter, str(tmp_path), CONFIG)
    # Only the share differs, so nothing is converted again.
    lenient = dataclasses.replace(CONFIG, max_skip_share=0.2)
    summary = prepare(dataclasses.replace(converter, crash_in="log-000_000000"), str(tmp_path), lenient)
    assert summary.num_reused_shards == summary.num_shards
    assert summary.manifest.skipped == {
        "points-not-finite": ("log-000_000001", "log-003_000000"),
        "member-missing": ("log-003_000001", "log-003_000002"),
    }
    manifest = load_manifest(str(tmp_path))
    assert len(manifest) == 20
    assert manifest.skipped == summary.manifest.skipped


def test_one_damaged_frame_never_stops_a_set_but_all_do(tmp_path):
    one = ToyConverter(frames_by_log=(3,), damaged=("log-000_000001",))
    assert len(prepare(one, str(tmp_path / "one"), CONFIG).manifest) == 2
    # A unit of which nothing is left writes no tar.
    first = ToyConverter(frames_by_log=(1, 2), damaged=("log-000_000000",), whole_logs=True)
    manifest = prepare(first, str(tmp_path / "first"), PrepareConfig(samples_per_shard=1)).manifest
    assert [shard.file for shard in manifest.shards] == ["shard-000001.tar"]
    assert manifest.logs == ("log-001",)
    nothing = ToyConverter(frames_by_log=(1,), damaged=("log-000_000000",))
    with pytest.raises(ShardError, match="1 of 1 frames cannot be used"):
        prepare(nothing, str(tmp_path / "nothing"), CONFIG)
    with pytest.raises(ShardError, match="holds no frames"):
        prepare(ToyConverter(frames_by_log=()), str(tmp_path / "empty"), CONFIG)


@pytest.mark.parametrize(
    ("field", "value"), [("samples_per_shard", 0), ("limit", 0), ("max_skip_share", 1.5), ("max_skip_share", -0.1)]
)
def test_refused_settings_name_the_field(field, value):
    with pytest.raises(ValueError, match=f"{field}: got {value}"):
        PrepareConfig(**{field: value})


# ---- processes
def start(root: Path, workers: int = 2, delay_s: float = 0.05) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.helpers.toy_converter", str(root), str(workers), str(delay_s)]
    return subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"})


def num_records(root: Path) -> int:
    return len(list((root / RECORDS).glob("unit-*.json")))


def kill_with_records(root: Path, wanted: int, extra_s: float) -> bool:
    """Start, kill -9 the parent alone once `wanted` units are done and `extra_s` later; were there units left?"""
    process = start(root)
    deadline = time.monotonic() + 90
    while num_records(root) < wanted and process.poll() is None:
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.01)
    time.sleep(extra_s)
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive, "workers outlive their parent"
    return num_records(root) < 9


def test_kill_9_then_again_gives_the_same_bytes(tmp_path, undisturbed):
    assert kill_with_records(tmp_path, 2, 0.03), "killed too late for the test to mean anything"
    with pytest.raises(ShardError, match="no finished shard set"):
        load_manifest(str(tmp_path))
    before = num_records(tmp_path)
    summary = prepare(ToyConverter(), str(tmp_path), CONFIG)
    assert summary.num_reused_shards == before >= 2
    assert content(tmp_path) == undisturbed


@pytest.mark.slow
def test_kill_9_again_and_again(tmp_path, undisturbed):
    rng = np.random.default_rng(0)
    for _ in range(4):
        kill_with_records(tmp_path, min(num_records(tmp_path) + 1, 9), float(rng.uniform(0, 0.2)))
    assert start(tmp_path).wait(90) == 0
    assert content(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_dead_worker_is_an_error_that_says_how_to_go_on(tmp_path, undisturbed):
    """A worker is killed as the kernel does when memory ends; the parent must neither hang nor lose what is done."""
    command = [
        sys.executable,
        "-c",
        "import sys; from tests.helpers.toy_converter import *\n"
        "from data.storage.shard import ShardError\n"
        "if __name__ == '__main__':\n"
        "    try: slow_prepare(sys.argv[1], 2, 0.1)\n"
        "    except ShardError as error: sys.exit(str(error))",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 90
    while num_records(tmp_path) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = [c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
    workers[0].kill()
    _, message = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"worker process died" in message
    assert b"run the same command again" in message
    prepare(ToyConverter(), str(tmp_path), CONFIG)
    assert content(tmp_path) == undisturbed


class Dead(BaseException):
    """What a killed process does not catch."""


def die_at(call: int) -> "contextlib.AbstractContextManager[object]":
    """Ends the process's work at one of the moments at which something becomes durable."""
    real, calls = os.fsync, itertools.count()

    def fsync(descriptor: int) -> None:
        if next(calls) == call:
            raise Dead
        real(descriptor)

    return mock.patch.object(os, "fsync", fsync)


# Settings, then a shard and a record a unit, then samples.npz and the manifest.
NUM_SYNCS = 1 + 2 * 9 + 2


@pytest.mark.parametrize(
    "call", [pytest.param(n, marks=[] if n in (0, 6, 20) else pytest.mark.slow) for n in range(NUM_SYNCS)]
)
def test_dead_at_any_durable_moment_then_again_gives_the_same_bytes(tmp_path, undisturbed, call):
    with die_at(call), pytest.raises(Dead):
        prepare(ToyConverter(), str(tmp_path), CONFIG)
    with pytest.raises(ShardError):
        load_manifest(str(tmp_path))
    prepare(ToyConverter(), str(tmp_path), CONFIG)
    assert content(tmp_path) == undisturbed
    with die_at(NUM_SYNCS):
        prepare(ToyConverter(), str(tmp_path / "another"), CONFIG)


def test_a_full_disk_has_a_clear_error_and_nothing_half_written_counts(tmp_path, undisturbed):
    with small_disk(tmp_path / "disk") as disk:
        root = disk.path / "set"

        def fill(done: int, total: int, skipped: object) -> None:
            if done == 7:
                disk.fill()

        with pytest.raises(ShardError, match=r"No space left on device.*run the same command again"):
            prepare(ToyConverter(), str(root), CONFIG, on_progress=fill)
        with pytest.raises(ShardError):
            load_manifest(str(root))
        disk.free()
        summary = prepare(ToyConverter(), str(root), CONFIG)
        assert summary.num_reused_shards >= 2
        assert content(root) == undisturbed


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"unit": 1}'])
def test_damaged_records_are_made_again_and_damaged_settings_are_named(tmp_path, undisturbed, damage):
    prepare(ToyConverter(), str(tmp_path), CONFIG)
    (tmp_path / RECORDS / "unit-000003.json").write_bytes(damage)
    summary = prepare(ToyConverter(), str(tmp_path), CONFIG)
    assert summary.num_shards - summary.num_reused_shards == 1
    assert content(tmp_path) == undisturbed
    (tmp_path / RECORDS / "settings.json").write_bytes(damage)
    with pytest.raises(ShardError, match=r"settings\.json is damaged|was begun with"):
        prepare(ToyConverter(), str(tmp_path), CONFIG)


def test_a_record_with_a_number_beyond_any_float_is_made_again(tmp_path, undisturbed):
    prepare(ToyConverter(), str(tmp_path), CONFIG)
    path = tmp_path / RECORDS / "unit-000003.json"
    record = json.loads(path.read_text())
    record["brightest"] = dict.fromkeys(record["brightest"], -(10**400))
    path.write_text(json.dumps(record))
    summary = prepare(ToyConverter(), str(tmp_path), CONFIG)
    assert summary.num_shards - summary.num_reused_shards == 1
    assert content(tmp_path) == undisturbed


def test_records_of_another_plan_are_not_used(tmp_path):
    prepare(ToyConverter(), str(tmp_path), CONFIG)
    path = tmp_path / RECORDS / "unit-000000.json"
    record = json.loads(path.read_text())
    record["unit"]["stretches"][0]["stop"] -= 1
    path.write_text(json.dumps(record))
    summary = prepare(ToyConverter(), str(tmp_path), CONFIG)
    assert summary.num_shards - summary.num_reused_shards == 1
