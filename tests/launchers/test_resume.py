"""`kill -9` at a random step of `tandem pretrain`, then the same command again: as if nothing had happened."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest
import torch

from engine.distributed import World
from tests.helpers.pretrain_run import UNCACHED, arguments, child, pretrain_here
from tests.helpers.toy_run import losses, metrics, weights

STEPS, EVERY = 12, 4
CACHED = ("data.augment.image.enabled=false",)


def kill_after(process: subprocess.Popen[str], run_dir: Path, step: int) -> None:
    """SIGKILL as soon as the step is in the log."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        log = run_dir / "metrics.jsonl"
        if log.exists() and log.read_text().count("\n") >= step:
            process.kill()
            process.communicate()
            return
        if process.poll() is not None:
            pytest.fail(f"the run ended before step {step}: {process.communicate()[0]}")
        time.sleep(0.01)
    process.kill()
    pytest.fail(f"step {step} was not reached: {process.communicate()[0]}")


def check_resume(toy_set: str, tmp_path: Path, *options: str, kills: tuple[int, ...]) -> None:
    common = (*options, f"schedule.steps={STEPS}", f"checkpoint.every_steps={EVERY}")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain_here(whole, toy_set, *common)
    command = ["pretrain", *arguments(cut, toy_set, *common)]
    for step in kills:
        kill_after(child("launchers.cli", *command), cut, step)
        assert len(metrics(cut)) < STEPS
    last = child("launchers.cli", *command)
    output = last.communicate(timeout=200)[0]
    assert last.returncode == 0, output
    assert f"finished at step {STEPS} of {STEPS}" in output
    assert [line["step"] for line in metrics(cut)] == list(range(1, STEPS + 1))
    assert losses(cut) == losses(whole)
    expected, got = weights(whole), weights(cut)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_killed_once(toy_set: str, world: World, one_thread: None, tmp_path: Path) -> None:
    """With the teacher in every step, image augmentation on, and a worker that is left behind."""
    check_resume(toy_set, tmp_path, *UNCACHED, "data.num_workers=1", kills=(random.randint(EVERY, STEPS - 2),))


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("options", [UNCACHED, CACHED], ids=["teacher", "cache"])
def test_killed_before_and_after_a_checkpoint(
    toy_set: str, world: World, one_thread: None, tmp_path: Path, num_workers: int, options: tuple[str, ...]
) -> None:
    kills = (random.randint(1, EVERY - 1), random.randint(EVERY, STEPS - 2))
    check_resume(toy_set, tmp_path, *options, f"data.num_workers={num_workers}", kills=kills)


@pytest.mark.slow
def test_another_number_of_workers_is_the_same_run(
    toy_set: str, world: World, one_thread: None, tmp_path: Path
) -> None:
    runs = {}
    for workers in (0, 1, 2):
        run_dir = tmp_path / str(workers)
        pretrain_here(run_dir, toy_set, *UNCACHED, f"data.num_workers={workers}", "schedule.steps=6")
        runs[workers] = losses(run_dir)
    assert runs[0] == runs[1] == runs[2]


def test_a_changed_model_or_stream_is_refused(toy_set: str, world: World, tmp_path: Path) -> None:
    """By the launcher as by the engine: exit code 1 or 2, the field named, the checkpoint left alone."""
    from launchers.cli import guarded
    from launchers.training.train import load_run, train

    pretrain_here(tmp_path, toy_set, *UNCACHED, "schedule.steps=2")
    before = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    for override, code in (("method.embedding_dim=32", 1), ("data.voxel.reduce=first", 1), ("seed=5", 2)):
        path, *rest = arguments(tmp_path, toy_set, *UNCACHED, "schedule.steps=4", override)
        assert guarded(lambda argv: int(train(load_run(argv[0], argv[1:])) is None), [path, *rest]) == code, override
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == before
