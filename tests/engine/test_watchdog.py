"""Real processes that are killed, stopped or hang: the others leave in time and name them, and a restart goes on."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.survival_run import Ranks
from tests.helpers.toy_run import losses, metrics

HEARTBEAT_S = 4.0
STEPS, EVERY = 30, 5
SETTINGS = {
    "schedule": {"steps": STEPS},
    "engine": {"heartbeat_s": HEARTBEAT_S, "stall_min": 0.1, "timeout_min": 2.0},
    "checkpoint": {"every_steps": EVERY},
}

pytestmark = pytest.mark.slow


def job(run_dir: Path, **more: Any) -> dict[str, Any]:
    return {"run_dir": str(run_dir), "settings": SETTINGS, "step_sleep_s": 0.1} | more


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    with Ranks(job(run_dir, step_sleep_s=0.0)) as ranks:
        assert [code for code, _ in ranks.end()] == [0, 0]
    return losses(run_dir)


def check_goes_on(run_dir: Path, undisturbed: list[float]) -> None:
    """The same command again: nothing lost beyond the last checkpoint, every loss equal bit for bit."""
    done = len(losses(run_dir))
    checkpoints = sorted(int(p.name.removeprefix("step_")) for p in (run_dir / "checkpoints").glob("step_*"))
    assert done - checkpoints[-1] <= EVERY
    with Ranks(job(run_dir, step_sleep_s=0.0)) as ranks:
        for code, output in ranks.end():
            assert code == 0, output
    assert losses(run_dir) == undisturbed


@pytest.mark.parametrize(("rank", "how"), [(1, "SIGKILL"), (0, "SIGKILL"), (1, "SIGSTOP"), (0, "SIGSTOP")])
def test_a_rank_dies_or_stops(tmp_path: Path, undisturbed: list[float], rank: int, how: str) -> None:
    with Ranks(job(tmp_path)) as ranks:
        ranks.wait_for_step(EVERY + 2)
        struck = ranks.processes[rank]
        ranks.send(rank, signal.Signals[how])
        began = time.monotonic()
        ((code, output),) = ranks.end(1 - rank)
        took = time.monotonic() - began
    print(f"{how} of rank {rank}: the other left after {took:.1f} s")
    assert code == 70, output
    assert "PeerLostError" in output
    assert f"rank {rank} (process {struck.pid} on " in output
    assert "phase '" in output
    assert took < HEARTBEAT_S + 15
    check_goes_on(tmp_path, undisturbed)


def test_all_die(tmp_path: Path, undisturbed: list[float]) -> None:
    with Ranks(job(tmp_path)) as ranks:
        ranks.wait_for_step(EVERY + 2)
        for rank in (0, 1):
            ranks.send(rank, signal.SIGKILL)
    check_goes_on(tmp_path, undisturbed)


def test_a_job_that_is_suspended_goes_on(tmp_path: Path, undisturbed: list[float]) -> None:
    """Longer than the heartbeat, as by `scontrol suspend`: nobody takes the others for dead afterwards."""
    with Ranks(job(tmp_path, step_sleep_s=0.05)) as ranks:
        ranks.wait_for_step(EVERY)
        for rank in (0, 1):
            ranks.send(rank, signal.SIGSTOP)
        time.sleep(HEARTBEAT_S + 2)
        for rank in (0, 1):
            ranks.send(rank, signal.SIGCONT)
        for code, output in ranks.end():
            assert code == 0, output
    assert losses(tmp_path) == undisturbed


@pytest.mark.parametrize("shift_s", [3600, -3600])
def test_clocks_an_hour_apart(tmp_path: Path, undisturbed: list[float], shift_s: int) -> None:
    """Of the two ranks, then between two attempts: rank 0 begins with a wrong clock and continues with a right one."""
    with Ranks(job(tmp_path, clock=[0, shift_s])) as ranks:
        ranks.wait_for_step(EVERY + 2)
        for rank in (0, 1):
            ranks.send(rank, signal.SIGKILL)
    check_goes_on(tmp_path, undisturbed)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert abs(lines[0]["time"] - lines[-1]["time"]) > 3000  # the clocks were indeed apart


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_reading_hangs(tmp_path: Path, rank: int) -> None:
    with Ranks(job(tmp_path, hang=[rank, 3], step_sleep_s=0.0)) as ranks:
        results = ranks.end()
        pid = ranks.processes[rank].pid
    for code, output in results:
        assert code == 70, output
        assert f"rank {rank} (process {pid} on " in output
        assert "stands still at step 3, phase 'data'" in output


def test_a_rank_that_fails_takes_the_others_along_with_its_reason(tmp_path: Path) -> None:
    with Ranks(job(tmp_path, fail=[1, 3], step_sleep_s=0.0)) as ranks:
        (code_0, output_0), (code_1, output_1) = ranks.end()
    assert (code_0, code_1) == (1, 1), output_0 + output_1
    assert "PeerFailedError" in output_0
    assert "rank 1 (process " in output_0
    assert "too many damaged samples, says the test" in output_0
    assert "ShardError" in output_1
