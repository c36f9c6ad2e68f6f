"""`kill -9` at a random step of `tandem pretrain`, then the same command again: as if nothing had happened."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path

import pytest
import torch
import yaml

from common.files import file_sha256
from common.run_files import SUMS_FILE, list_checkpoints
from engine.distributed import World
from engine.errors import CheckpointError
from launchers.runs.attempts import is_finished, read_attempts
from tests.helpers.pretrain_run import CONFIGS, UNCACHED, arguments, pretrain_here
from tests.helpers.toy_run import losses, metrics, stop_at, weights
from tests.helpers.warm import Child

STEPS, EVERY = 12, 4
CACHED = ("data.augment.image.enabled=false",)


def kill_after(process: Child, run_dir: Path, step: int) -> None:
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


def check_resume(
    toy_set: str, tmp_path: Path, *options: str, kills: tuple[int, ...], ends_in_a_child: bool = False
) -> None:
    common = (*options, f"schedule.steps={STEPS}", f"checkpoint.every_steps={EVERY}")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain_here(whole, toy_set, *common)
    command = ["pretrain", *arguments(cut, toy_set, *common)]
    for step in kills:
        kill_after(Child("launchers.cli", *command), cut, step)
        assert len(metrics(cut)) < STEPS
    if ends_in_a_child:
        last = Child("launchers.cli", *command)
        output = last.communicate(timeout=200)[0]
        assert last.returncode == 0, output
        assert f"finished at step {STEPS} of {STEPS}" in output
    else:
        pretrain_here(cut, toy_set, *common)
    assert [line["step"] for line in metrics(cut)] == list(range(1, STEPS + 1))
    assert losses(cut) == losses(whole)
    expected, got = weights(whole), weights(cut)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_killed_once(toy_set: str, world: World, one_thread: None, tmp_path: Path) -> None:
    """With the teacher in every step, image augmentation on, and a worker that is left behind."""
    kills = (random.randint(EVERY, STEPS - 2),)
    check_resume(toy_set, tmp_path, *UNCACHED, "data.num_workers=1", kills=kills, ends_in_a_child=True)


def test_a_run_of_before_goes_on_with_its_order_of_samples(
    toy_set: str, world: World, one_thread: None, tmp_path: Path
) -> None:
    """A folder as earlier versions left it names no order: it is the first one, bit for bit."""
    common = (*CACHED, "schedule.steps=4", "checkpoint.every_steps=2", "checkpoint.keep=9")
    pretrain_here(tmp_path / "whole", toy_set, *common, "data.order=1")
    cut = stop_at(tmp_path / "whole", tmp_path / "cut", 2)
    (checkpoint,) = list_checkpoints(cut)
    for name, section in (("config.json", "data"), ("state.json", "source")):
        content = json.loads((checkpoint / name).read_text())
        assert content[section].pop("order") == 1
        (checkpoint / name).write_text(json.dumps(content))
    sums = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in checkpoint.iterdir()}
    (checkpoint / SUMS_FILE).write_text(json.dumps({k: v for k, v in sums.items() if k != SUMS_FILE}))
    with pytest.raises(CheckpointError, match=r"data\.order: 1 in the run, 2 now"):
        pretrain_here(cut, toy_set, *common, "data.order=2")
    pretrain_here(cut, toy_set, *common)
    assert losses(cut) == losses(tmp_path / "whole")
    assert yaml.safe_load((cut / "config.yaml").read_text())["data"]["order"] == 1


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


def test_what_a_run_is_survives_whatever_is_tried(
    toy_set: str,
    world: World,
    one_thread: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another run is refused before anything is built, a finished one is left alone, what may change is recorded."""
    run_dir = tmp_path / "run"
    first = pretrain_here(run_dir, toy_set, *UNCACHED, "schedule.steps=2")
    ours = ("config.yaml", "environment.json", "metrics.jsonl")
    files = {name: (run_dir / name).read_bytes() for name in ours}

    def nothing_is_built(*_: object, **__: object) -> None:
        pytest.fail("built from a config that is not the run's, or for nothing")

    with monkeypatch.context() as patched:
        patched.setattr("launchers.training.train.build_loader", nothing_is_built)
        patched.setattr("launchers.training.train.method_to_build", nothing_is_built)
        for override, name in (
            ("method.temperature=0.5", "method.temperature: 0.07 in the run, 0.5 now"),
            ("data.image_size=[64,96]", "data.image_size: [48, 96] in the run, [64, 96] now"),
            ("seed=5", "seed: 0 in the run, 5 now"),
        ):
            with pytest.raises(CheckpointError, match=re.escape(name)):
                pretrain_here(run_dir, toy_set, *UNCACHED, "schedule.steps=4", override)
        with pytest.raises(CheckpointError, match=r"other settings:\n  method.name: 'slidr' in the run, 'ppkt' now"):
            pretrain_here(run_dir, toy_set, "schedule.steps=4", config=CONFIGS / "ppkt_street.yaml")
        capsys.readouterr()
        again = pretrain_here(run_dir, toy_set, *UNCACHED, "schedule.steps=2", "optim.lr=0.125")
        assert again.loss == first.loss == losses(run_dir)[-1]
        out = " ".join(capsys.readouterr().out.split())
        assert f"nothing to do: finished before, at step 2 of 2, loss {first.loss:.4f}" in out
        assert "nothing of this has an effect: optim.lr" in caplog.text
        state = list_checkpoints(run_dir)[0] / "state.json"
        older = {name: value for name, value in json.loads(state.read_text()).items() if name != "loss"}
        (list_checkpoints(run_dir)[0] / "files.json").write_text("{}")  # nothing is checked
        state.write_text(json.dumps(older | {"versions": {**older["versions"], "torch": "2.0.0"}}))
        assert pretrain_here(run_dir, toy_set, *UNCACHED, "schedule.steps=2").loss == first.loss
    assert {name: (run_dir / name).read_bytes() for name in ours} == files
    assert is_finished(run_dir), "a start that was refused does not make it an unfinished one"
    assert "seed: 5" in (run_dir / "attempts" / "0004" / "config.yaml").read_text()

    pretrain_here(run_dir, toy_set, *UNCACHED, "schedule.steps=3", "optim.lr=0.125")
    assert "lr: 0.125" in (run_dir / "config.yaml").read_text()
    trained = read_attempts(run_dir)[-1]
    assert trained.resumed == 2
    assert trained.changes["schedule.steps"] == (2, 3)
    assert trained.changes["optim.lr"][1] == 0.125
    assert trained.changes["software.torch"] == ("2.0.0", torch.__version__)
    assert "other software than its checkpoint was written with: torch: 2.0.0 -> " in caplog.text
    assert read_attempts(run_dir)[0].resumed == 0
