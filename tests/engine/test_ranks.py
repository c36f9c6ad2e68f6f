"""Real processes: two gloo ranks against one, signals, kill -9."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from common.run_files import damage, list_checkpoints
from engine.distributed import World
from tests.helpers.toy_run import finish, losses, metrics, run_toy, spawn, weights
from tests.helpers.warm import Child

STAGES = (0, 1, 2, 3)


def job(run_dir: Path, stage: int, micro_batch_size: int, **more: Any) -> dict[str, Any]:
    engine = {"zero_stage": stage, "clip_norm": 0.5} | more.pop("engine", {})
    return {
        "run_dir": str(run_dir),
        "settings": {"engine": engine, "checkpoint": more.pop("checkpoint", {})},
        "source": {"micro_batch_size": micro_batch_size} | more.pop("source", {}),
    } | more


def test_two_ranks_equal_one_process(world: World, tmp_path: Path) -> None:
    """SyncBN, clipping, every ZeRO stage: same global batch, same losses and final weights (fp32, 1e-5)."""
    jobs = [job(tmp_path / f"two{stage}", stage, 2) for stage in STAGES]
    jobs.append(job(tmp_path / "loose", 0, 2, engine={"sync_bn": False}))
    finish(spawn(jobs, world_size=2))
    run_toy(job(tmp_path / "one", 0, 4))
    one = weights(tmp_path / "one")
    for stage in STAGES:
        assert losses(tmp_path / f"two{stage}") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
        two = weights(tmp_path / f"two{stage}")
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5, msg=f"stage {stage}: {name}")
        names = [p.name for p in list_checkpoints(tmp_path / f"two{stage}")[0].iterdir()]
        assert {"rank_0000.pt", "rank_0001.pt"} <= set(names)
    # Statistics of each rank alone give something else: the test can fail.
    assert losses(tmp_path / "loose") != pytest.approx(losses(tmp_path / "one"), rel=1e-3)


@pytest.mark.slow
def test_trouble_on_one_rank_is_skipped_by_both(tmp_path: Path) -> None:
    """The other rank's loss is fine, yet its running statistics and weights must not move either."""
    jobs = [
        job(tmp_path / f"{kind}{stage}", stage, 2, source={"trouble": {5: kind}, "bad_rank": 1})
        for stage in STAGES
        for kind in ("loss", "gradient")
    ]
    outputs = finish(spawn(jobs, world_size=2))
    for output in outputs:
        ends = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        assert [end["skipped"] for end in ends] == [1] * len(jobs)
    reference = losses_of_applied(tmp_path / "loss0")
    for stage in STAGES:
        for kind in ("loss", "gradient"):
            assert losses_of_applied(tmp_path / f"{kind}{stage}") == pytest.approx(reference, rel=1e-5)


def losses_of_applied(run_dir: Path) -> list[float]:
    return [line["train/loss"] for line in metrics(run_dir) if "train/loss" in line]


@pytest.mark.slow
def test_divergence_names_the_batch_of_the_bad_rank(tmp_path: Path) -> None:
    bad = job(tmp_path, 2, 2, source={"trouble": {2: "loss", 3: "loss"}, "bad_rank": 1})
    bad["settings"]["engine"]["max_nonfinite_in_a_row"] = 2
    for process in spawn([bad], world_size=2):
        output = process.communicate(timeout=120)[0]
        assert process.returncode != 0
        assert "rank 1: loss nan" in output


@pytest.mark.slow
def test_two_ranks_resume_bit_identically(tmp_path: Path) -> None:
    more: dict[str, Any] = {"checkpoint": {"every_steps": 3}, "objective": {"dropout": 0.3}}
    finish(spawn([job(tmp_path / f"whole{s}", s, 2, **more) for s in STAGES], world_size=2))
    for stage in STAGES:
        cut = tmp_path / f"cut{stage}"
        shutil.copytree(tmp_path / f"whole{stage}", cut)
        (list_checkpoints(cut)[0] / "files.json").unlink()  # killed while it wrote the newest one
    finish(spawn([job(tmp_path / f"cut{s}", s, 2, **more) for s in STAGES], world_size=2))
    for stage in STAGES:
        assert losses(tmp_path / f"cut{stage}") == losses(tmp_path / f"whole{stage}")
        cut, whole = weights(tmp_path / f"cut{stage}"), weights(tmp_path / f"whole{stage}")
        assert all(torch.equal(cut[name], whole[name]) for name in whole)


def wait_for_step(run_dir: Path, step: int, process: Child) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        path = run_dir / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= step:
            return
        if process.poll() is not None:
            pytest.fail(f"the process ended early: {process.communicate()[0]}")
        time.sleep(0.02)
    pytest.fail(f"step {step} was not reached in 60 s")


@pytest.mark.parametrize("stop", [signal.SIGTERM])
def test_a_stop_signal_leaves_a_checkpoint_and_resumes(world: World, tmp_path: Path, stop: signal.Signals) -> None:
    check_stop(tmp_path, stop)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGUSR1, signal.SIGINT])
def test_other_stop_signals(world: World, tmp_path: Path, stop: signal.Signals) -> None:
    check_stop(tmp_path, stop)


def check_stop(tmp_path: Path, stop: signal.Signals) -> None:
    run_toy(job(tmp_path / "whole", 0, 4))
    interrupted = job(tmp_path / "cut", 0, 4)
    (process,) = spawn([interrupted | {"step_sleep_s": 0.2}])
    wait_for_step(tmp_path / "cut", 2, process)
    process.send_signal(stop)
    end = json.loads(finish([process])[0].splitlines()[-1])
    assert end["status"] == "preempted"
    assert end["signal"] == stop.name
    assert 2 <= end["step"] < 8
    (saved,) = list_checkpoints(tmp_path / "cut")
    assert saved.name == f"step_{end['step']:08d}"
    assert damage(saved) is None
    assert run_toy(interrupted).status == "finished"
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_both(tmp_path: Path) -> None:
    processes = spawn([job(tmp_path, 2, 2, step_sleep_s=0.2)], world_size=2)
    wait_for_step(tmp_path, 2, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    ends = [json.loads(output.splitlines()[-1]) for output in finish(processes)]
    assert [end["status"] for end in ends] == ["preempted", "preempted"]
    assert ends[0]["step"] == ends[1]["step"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_kill_9_at_random_moments(world: World, tmp_path: Path, stage: int) -> None:
    more: dict[str, Any] = {"checkpoint": {"every_steps": 1, "keep": 2}, "objective": {"dropout": 0.3}}
    run_toy(job(tmp_path / "whole", stage, 4, **more))
    rng = random.Random(stage)
    for last in (2, 4):
        (process,) = spawn([job(tmp_path / "cut", stage, 4, step_sleep_s=0.1, **more)])
        wait_for_step(tmp_path / "cut", last, process)
        time.sleep(rng.uniform(0.0, 0.15))
        process.kill()
        process.communicate()
    finish(spawn([job(tmp_path / "cut", stage, 4, **more)]))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    cut, whole = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
