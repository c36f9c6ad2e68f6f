"""Disk full and storage away, for real: on a file system of a few megabytes that is filled, unmounted, mounted."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.run_files import list_checkpoints
from engine import checkpoint_retry as keeper_module
from engine.checkpoint import CheckpointConfig, newest_intact
from engine.checkpoint_retry import CheckpointRetry
from engine.distributed import World
from engine.errors import CheckpointError
from engine.log_files import EventFile, MetricsFile
from engine.pretrain import pretrain
from tests.helpers.small_disk import SmallDisk, small_disk
from tests.helpers.toy_objective import ToyBatch, ToyObjective, ToySource
from tests.helpers.toy_run import losses, metrics, settings

STEPS = 12


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as mounted:
        yield mounted


class EventfulSource(ToySource):
    """Something happens before a batch is handed out."""

    def __init__(self, happens: dict[int, Callable[[], object]]) -> None:
        super().__init__()
        self.happens = happens

    def batches(self, start: int) -> Iterator[ToyBatch]:
        for number, batch in enumerate(super().batches(start), start):
            self.happens.get(number, lambda: None)()
            yield batch


def train(run_dir: Path, happens: dict[int, Callable[[], object]] | None = None, **checkpoint: Any) -> str:
    source = EventfulSource(happens or {})
    config = settings(schedule={"steps": STEPS}, checkpoint={"every_steps": 2} | checkpoint)
    return pretrain(
        ToyObjective(), source, config, run_dir, micro_batch_size=4, fingerprint={}, resolved_config={}
    ).status


@pytest.fixture
def undisturbed(world: World, tmp_path: Path) -> list[float]:
    train(tmp_path / "undisturbed")
    return losses(tmp_path / "undisturbed")


# ---- whole runs


def test_a_run_survives_a_full_disk(
    world: World, disk: SmallDisk, undisturbed: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = disk.path / "run"
    assert train(run_dir, {3: disk.fill, 7: disk.free}) == "finished"
    assert losses(run_dir) == undisturbed  # not one line lost, not one number other
    assert [line["step"] for line in metrics(run_dir)] == list(range(1, STEPS + 1))
    assert [p.name for p in list_checkpoints(run_dir)] == [f"step_{n:08d}" for n in (12, 10, 8)]
    assert newest_intact(run_dir) == list_checkpoints(run_dir)[0]
    assert not list((run_dir / "checkpoints").glob(".tmp*"))
    texts = [r.getMessage() for r in caplog.records]
    assert [t.split("failures in a row: ")[1][0] for t in texts if "failures in a row" in t] == ["1", "2"]
    assert all("0 MiB free" in t for t in texts if "failures in a row" in t)


def test_a_disk_that_stays_full_ends_the_run_and_what_was_kept_continues(
    world: World, disk: SmallDisk, undisturbed: list[float]
) -> None:
    run_dir = disk.path / "run"
    with pytest.raises(CheckpointError, match=r"No space left|rank|writing the checkpoint"):
        train(run_dir, {3: disk.fill}, max_failures=1)
    assert [p.name for p in list_checkpoints(run_dir)] == ["step_00000002"]
    disk.free()
    assert train(run_dir) == "finished"
    assert losses(run_dir) == undisturbed


def test_the_last_checkpoint_waits_for_room(
    world: World, disk: SmallDisk, undisturbed: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "_FIRST_DELAY_S", 0.1)
    timer = threading.Timer(2.0, disk.free)

    def fill() -> None:
        disk.fill()
        timer.start()

    run_dir = disk.path / "run"
    assert train(run_dir, {STEPS - 1: fill}, every_steps=0) == "finished"
    timer.join()
    assert [p.name for p in list_checkpoints(run_dir)] == [f"step_{STEPS:08d}"]
    assert losses(run_dir) == undisturbed


def test_a_run_survives_its_file_system_going_away(world: World, tmp_path: Path, undisturbed: list[float]) -> None:
    """Unmounted for some steps: nothing may be written into the empty folder below the mount."""
    real, mount = tmp_path / "real", tmp_path / "mount"
    real.mkdir()
    with small_disk(mount):  # skips where nothing can be mounted

        def bind() -> None:
            subprocess.run(["mount", "--bind", str(real), str(mount)], check=True)

        def leave() -> None:
            subprocess.run(["umount", "-l", str(mount)], check=True)

        bind()
        try:
            run_dir = mount / "run"
            assert train(run_dir, {3: leave, 7: bind}) == "finished"
            assert losses(run_dir) == undisturbed
            assert [p.name for p in list_checkpoints(run_dir)] == [f"step_{n:08d}" for n in (12, 10, 8)]
        finally:
            leave()
        assert list(mount.iterdir()) == []


# ---- parts


def test_a_metrics_file_drops_what_will_run_again_and_keeps_what_waits(
    disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    path = disk.path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    file = MetricsFile(path, 2)
    disk.fill()
    for step in range(3, 500):
        file.append({"step": step, "text": "x" * 100})
    disk.free()
    file.append({"step": 500})
    file.close()
    assert [line["step"] for line in metrics(disk.path)] == list(range(1, 501))
    texts = [r.getMessage() for r in caplog.records]
    assert sum("metrics.jsonl: cannot be written" in t for t in texts) == 1
    assert sum("written again, nothing is lost" in t for t in texts) == 1


def test_lines_that_never_found_room_are_counted(disk: SmallDisk, caplog: pytest.LogCaptureFixture) -> None:
    file = MetricsFile(disk.path / "metrics.jsonl", 0)
    disk.fill()
    for step in range(100):
        file.append({"step": step, "text": "x" * 100})
    file.close()
    assert any(r.levelno == logging.ERROR and "lines could not be written" in r.message for r in caplog.records)


# The thread of TensorBoard's writer dies of a full disk, and its file cannot flush at the end: that is the point.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tensorboard_gets_its_events_when_there_is_room_again(
    disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    folder = disk.path / "tensorboard"
    file = EventFile(folder, 0)

    def event(step: int) -> Callable[[Any], None]:
        return lambda writer: writer.add_scalar("loss", float(step), step)

    for step in range(1, 4):
        file.add(step, event(step))
    disk.fill()
    for step in range(4, 300):
        file.add(step, event(step))
    disk.free()
    time.sleep(1.1)  # TensorBoard names its files by the second
    file.add(300, event(300))
    file.close()
    assert sum("cannot be written" in r.message for r in caplog.records) == 1
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    scalars = accumulator.Scalars("loss")
    assert [s.step for s in scalars] == list(range(1, 301))
    assert [s.value for s in scalars] == [float(step) for step in range(1, 301)]


def test_tensorboard_of_a_run_whose_nodes_have_clocks_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in the order of their names, which begin with the time: a clock set back must hide nothing."""

    def attempt(resumed: int, last: int) -> None:
        file = EventFile(tmp_path, resumed)
        for step in range(resumed + 1, last + 1):
            file.add(step, lambda writer, step=step: writer.add_scalar("loss", float(step), step))
        file.close()

    now = time.time()
    for clock, resumed, last in ((now + 3600, 0, 5), (now + 7200, 3, 8), (now, 6, 9), (now, 8, 10)):
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        attempt(resumed, last)
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert [(s.step, s.value) for s in accumulator.Scalars("loss")] == [(step, float(step)) for step in range(1, 11)]


def test_keeper_counts_and_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(keeper_module.time, "sleep", waits.append)

    def fails() -> Path:
        raise CheckpointError("no room")

    keeper = CheckpointRetry(CheckpointConfig(max_failures=2, retry_min=1.0))
    assert keeper.write(fails, must=False) is None
    assert keeper.write(fails, must=False) is None
    assert keeper.write(lambda: Path("there"), must=False) == Path("there")
    assert keeper.failures == 0
    assert keeper.write(fails, must=False) is None
    assert keeper.write(fails, must=False) is None
    with pytest.raises(CheckpointError):
        keeper.write(fails, must=False)
    assert waits == []
    with pytest.raises(CheckpointError):
        keeper.write(fails, must=True)
    assert sum(waits) == 60.0
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 29.0]
