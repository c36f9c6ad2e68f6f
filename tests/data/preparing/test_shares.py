"""Shares of a set made by several processes and joined: the bytes are those of one process's set."""

from __future__ import annotations

import dataclasses
import fcntl
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.preparing.prepare import PrepareConfig, Share, join_shares, prepare, prepare_share
from data.preparing.shard_task import RECORDS, FrameRange, ShardTask
from data.storage.manifest import load_manifest
from data.storage.shard import ShardError
from launchers.prepare import main
from tests.helpers.toy_converter import ToyConverter

CONFIG = PrepareConfig(samples_per_shard=3)


def content(root: Path) -> dict[str, bytes]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.endswith("lock")]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain") / "set"
    prepare(ToyConverter(), str(root), CONFIG)
    return content(root)


@given(num_shards=st.integers(0, 40), count=st.integers(1, 50))
def test_shares_are_all_units_once_and_equal_but_for_one(num_shards, count):
    units = [ShardTask(number=n, stretches=(FrameRange(log="a", start=n, stop=n + 1),)) for n in range(num_shards)]
    shares = [Share(number=number, count=count).of(units) for number in range(count)]
    assert [unit for share in shares for unit in share] == units
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("count", [1, 2, 4, 11])
def test_joined_shares_are_a_plain_set(tmp_path, plain, count):
    for number in reversed(range(count)):
        summary = prepare_share(ToyConverter(), str(tmp_path), CONFIG, Share(number=number, count=count))
        assert (summary.num_reused_shards, summary.num_all_shards) == (0, 9)
        assert not (tmp_path / "manifest.json").exists()
    joined = join_shares(ToyConverter(crash_in="log-000_000000"), str(tmp_path), CONFIG, verify=True)
    assert content(tmp_path) == plain
    assert len(joined.manifest) == 24


def make_share(root: str, number: int, count: int) -> None:
    prepare_share(ToyConverter(delay_s=0.02), root, CONFIG, Share(number=number, count=count))


@pytest.mark.slow
def test_shares_work_side_by_side(tmp_path, plain):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=make_share, args=(str(tmp_path), number, 3)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
        process.close()
    join_shares(ToyConverter(), str(tmp_path), CONFIG)
    assert content(tmp_path) == plain


def test_a_share_continues_and_leaves_others_alone(tmp_path, plain):
    crashing = ToyConverter(crash_in="log-001_000001")
    with pytest.raises(RuntimeError, match="crash in"):
        prepare_share(crashing, str(tmp_path), CONFIG, Share(number=0, count=2))
    # Another share is writing at this moment; what a crash of this share left goes.
    theirs = tmp_path / "shard-000008.tar.123.tmp"
    ours = tmp_path / "shard-000001.tar.123.tmp"
    for file in (theirs, ours):
        file.write_bytes(b"half")
    again = prepare_share(ToyConverter(), str(tmp_path), CONFIG, Share(number=0, count=2))
    assert again.num_reused_shards == 3
    assert theirs.exists()
    assert not ours.exists()
    with pytest.raises(ShardError, match=r"5 of 9 shards are not made .*shard-000004.tar"):
        join_shares(ToyConverter(), str(tmp_path), CONFIG)
    # A plain call finishes what shares began.
    assert prepare(ToyConverter(), str(tmp_path), CONFIG).num_reused_shards == 4
    assert content(tmp_path) == plain


def hold_units(root: str, start: int, length: int, ready, done) -> None:
    with (Path(root) / RECORDS / "units.lock").open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, length, start)
        ready.set()
        done.wait(60)


def test_the_same_units_are_not_made_twice_at_once(tmp_path):
    (tmp_path / RECORDS).mkdir()
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold_units, args=(str(tmp_path), 3, 2, ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(ShardError, match=r"shards 4 to 8 .*twice"):
            prepare_share(ToyConverter(), str(tmp_path), CONFIG, Share(number=1, count=2))
        prepare_share(ToyConverter(), str(tmp_path), CONFIG, Share(number=0, count=3))
    finally:
        done.set()
        other.join(60)
        other.close()


@pytest.mark.parametrize("whole", [prepare, join_shares])
def test_shares_and_the_whole_exclude_each_other(tmp_path, whole):
    (tmp_path / RECORDS).mkdir()
    with (tmp_path / RECORDS / "lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as a share does
        with pytest.raises(ShardError, match="another process is preparing"):
            whole(ToyConverter(), str(tmp_path), CONFIG)
        prepare_share(ToyConverter(), str(tmp_path), CONFIG, Share(number=0, count=9))
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ShardError, match="another process is preparing"):
            prepare_share(ToyConverter(), str(tmp_path), CONFIG, Share(number=1, count=9))


def test_shares_of_different_settings_do_not_mix(tmp_path):
    prepare_share(ToyConverter(), str(tmp_path), CONFIG, Share(number=0, count=2))
    other = dataclasses.replace(CONFIG, samples_per_shard=4)
    with pytest.raises(ShardError, match="begun with samples_per_shard = 3, now it is 4"):
        prepare_share(ToyConverter(), str(tmp_path), other, Share(number=1, count=2))
    with pytest.raises(ShardError, match="no share of a set was made here"):
        join_shares(ToyConverter(), str(tmp_path / "elsewhere"), CONFIG)
    assert not (tmp_path / "elsewhere").exists()


def test_damaged_frames_are_weighed_when_joining(tmp_path):
    damaged = ToyConverter(damaged=("log-000_000001", "log-003_000000"))
    skipped = [prepare_share(damaged, str(tmp_path), CONFIG, Share(number=n, count=2)).num_skipped for n in range(2)]
    assert sum(skipped) == 2
    with pytest.raises(ShardError, match=r"2 of 24 frames cannot be used"):
        join_shares(damaged, str(tmp_path), CONFIG)
    lenient = dataclasses.replace(CONFIG, max_skip_share=0.1)
    assert len(join_shares(damaged, str(tmp_path), lenient).manifest) == 22


@pytest.mark.slow
def test_from_the_command_line(tmp_path, capsys):
    out = str(tmp_path / "set")
    command = ["synthetic", "-", out, "--workers", "1", "--samples-per-shard", "2", "--no-superpixels"]
    command += ["num_logs=3", "frames_per_log=2"]
    for number in range(2):
        assert main([*command, "--share", f"{number}/2"]) == 0
        assert f"share {number}/2: " in capsys.readouterr().out
    assert main([*command, "--join"]) == 0
    assert len(load_manifest(out)) == 6
    for wrong in ("2/2", "1", "-1/2", "a/b"):
        with pytest.raises(SystemExit):
            main([*command, f"--share={wrong}"])
        assert "expected i/n with i from 0 to n - 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--share", "0/2", "--join"])
