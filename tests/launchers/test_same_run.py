"""Ranks that are about to do different things, or cannot begin, end named and at once."""

from __future__ import annotations

import dataclasses
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from configs.schema import PretrainConfig
from data.storage.shard import ShardError
from engine.distributed import Launch
from engine.errors import PeerFailedError, RunLockedError, StopRequested
from engine.meeting import Meeting, Refusal, Statement, judge
from launchers.runs import provenance
from launchers.runs.attempts import read_attempts
from launchers.training import same_run, supervision
from launchers.training.train import load_run
from tests.helpers.pretrain_run import UNCACHED, arguments
from tests.helpers.samples import write_toy_set
from tests.helpers.warm import Child, rank_variables

LAUNCH = Launch(launcher="torchrun", rank=0, world_size=2, local_rank=0, master_addr="127.0.0.1", master_port=1)


def config(run_dir: Path, shards: str, *overrides: str) -> PretrainConfig:
    path, *rest = arguments(run_dir, shards, *UNCACHED, *overrides)
    return load_run(path, rest)


def facts(run_dir: Path, shards: str, *overrides: str, launch: Launch = LAUNCH) -> dict[str, str]:
    return same_run.facts(config(run_dir, shards, *overrides), launch)


def refusal(first: dict[str, str], second: dict[str, str]) -> str:
    found = judge([Statement(rank=0, facts=first), Statement(rank=1, facts=second)])
    return "" if found is None else found.text


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("optim.lr=0.7", "optim.lr: 0.002 on rank 0"),
        ("method.temperature=0.5", "method.temperature: 0.07 on rank 0"),
        ("seed=4", "seed: 0 on rank 0"),
        ("schedule.steps=7", "schedule.steps: "),
        ("checkpoint.every_steps=3", "checkpoint.every_steps: 0 on rank 0"),
        ("monitor.log_every=2", "monitor.log_every: 1 on rank 0"),
        ("data.image_size=[32,64]", "data.image_size: [48, 96] on rank 0"),
        ("data.micro_batch_size=2", "data.micro_batch_size: "),
        ("data.augment.points.rotate=false", "data.augment.points.rotate: true on rank 0"),
        ("data.voxel.size=[0.4,0.4,0.4]", "data.voxel.size: "),
        ("data.split=val", 'data.split: "train" on rank 0'),
        ("engine.zero_stage=2", "engine.zero_stage: 0 on rank 0"),
        ("engine.clip_norm=0.1", "engine.clip_norm: "),
        ("engine.sync_bn=false", "engine.sync_bn: true on rank 0"),
        ("run_dir=elsewhere", "run_dir: "),
    ],
)
def test_a_setting_that_differs_is_named(override: str, shown: str, toy_set: str, tmp_path: Path) -> None:
    text = refusal(facts(tmp_path, toy_set), facts(tmp_path, toy_set, override))
    assert shown in text
    assert text.count(" on rank 0 ") == 1  # nothing else


def test_another_set_is_named_and_the_same_one_elsewhere_is_not(toy_set: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(toy_set)
    assert facts(tmp_path, str(tmp_path / "link")) == facts(tmp_path, toy_set)
    (tmp_path / "other").mkdir()
    other = write_toy_set(tmp_path / "other", num_logs=3, frames_per_log=4)
    text = refusal(facts(tmp_path, toy_set), facts(tmp_path, other))
    assert "data.shards: set " in text
    assert "of 16 samples on rank 0" in text
    assert "of 12 samples on rank 1" in text
    first, same, another = (
        facts(tmp_path, toy_set, f"data.more=[{{shards: {shards}, weight: 2}}]")
        for shards in (toy_set, tmp_path / "link", other)
    )
    assert first == same
    assert "data.more[0].shards: set " in refusal(first, another)


def test_weights_of_other_content_are_named(toy_set: str, tmp_path: Path) -> None:
    file = tmp_path / "teacher.pth"
    teacher = f"method.teacher={{name: resnet18, weights: 'torchvision:{file}'}}"
    found = []
    for content in ("one", "other"):
        file.write_text(content)
        found.append(facts(tmp_path, toy_set, teacher))
    assert "content of method.teacher.weights: " in refusal(*found)
    assert refusal(found[0], found[0]) == ""


def test_a_start_that_is_refused_keeps_its_config(
    toy_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PeerFailedError("rank 1 cannot begin")

    monkeypatch.setattr(supervision, "meet", refuse)
    asked = config(tmp_path / "run", toy_set)
    with pytest.raises(PeerFailedError), supervision.supervised(asked):
        pass
    signal.alarm(0)
    assert load_run(str(tmp_path / "run" / "attempts" / "0001" / "config.yaml")) == asked


def test_how_a_machine_reads_is_its_own_affair(toy_set: str, tmp_path: Path) -> None:
    own = ("data.num_workers=2", "data.prefetch=5", "data.cache.folder=/scratch")
    assert facts(tmp_path, toy_set) == facts(tmp_path, toy_set, *own)


def another_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_run, "code_digest", lambda: "0123456789abcdef")


def another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = provenance.version
    monkeypatch.setattr(provenance, "version", lambda name: "1.0" if name == "torch" else plain(name))


def no_spconv(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = provenance._version
    monkeypatch.setattr(provenance, "_version", lambda name: None if name.startswith("spconv") else plain(name))


def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_run, "choose_device", lambda device, local_rank: torch.device("cuda"))


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (another_code, r"code: content \w{12} on rank 0 .*, content 0123456789ab on rank 1"),
        (another_torch, rf"torch: {torch.__version__.partition('+')[0]}.* on rank 0 .*, 1.0 on rank 1"),
        (no_spconv, "spconv: .* on rank 0 .*, not installed on rank 1"),
        (a_gpu, "kind of device: cpu on rank 0 .*, cuda on rank 1"),
    ],
)
def test_another_environment_is_named(
    change: Callable[[pytest.MonkeyPatch], None],
    shown: str,
    toy_set: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = facts(tmp_path, toy_set)
    change(monkeypatch)
    assert re.search(shown, refusal(first, facts(tmp_path, toy_set)))


def test_another_number_of_processes_is_named(toy_set: str, tmp_path: Path) -> None:
    three = dataclasses.replace(LAUNCH, world_size=3)
    text = refusal(facts(tmp_path, toy_set), facts(tmp_path, toy_set, launch=three))
    assert "number of processes: 2 on rank 0" in text


def test_every_setting_but_those_of_a_machine_is_compared(toy_set: str, tmp_path: Path) -> None:
    found = facts(tmp_path, toy_set)
    assert not [name for name in found if name.startswith(("data.cache", "data.num_workers", "data.prefetch"))]
    sections = {name.partition(".")[0] for name in found}
    assert {"seed", "run_dir", "data", "method", "engine", "optim", "schedule", "checkpoint", "monitor"} <= sections


# ---- two processes


def ends(*ranks: list[str], stranger: socket.socket | None = None) -> list[tuple[int, str]]:
    """Exit code and output of each rank; the seconds until the last one had ended are below 30."""
    variables = rank_variables(len(ranks), None if stranger is None else stranger.getsockname()[1])
    began = time.monotonic()
    processes = [Child("launchers.pretrain", *ranks[rank], env=own) for rank, own in enumerate(variables)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert time.monotonic() - began < 60  # 30 on a machine of their own
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


@pytest.mark.slow
def test_ranks_that_differ_both_end_before_they_train(toy_set: str, tmp_path: Path) -> None:
    first = arguments(tmp_path / "run", toy_set, *UNCACHED, "schedule.steps=5")
    second = arguments(tmp_path / "run", toy_set, *UNCACHED, "schedule.steps=6", "optim.lr=0.5")
    for code, output in ends(first, second):
        assert code == 2, output
        assert "optim.lr: 0.002 on rank 0 (process" in output
        assert "schedule.steps: 5 on rank 0 (process" in output
        assert "Traceback" not in output
    (attempt,) = read_attempts(tmp_path / "run")
    assert attempt.status == "failed"
    assert attempt.reason is not None
    assert "optim.lr" in attempt.reason
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_mistake_of_one_rank_ends_both(toy_set: str, tmp_path: Path) -> None:
    command = arguments(tmp_path / "run", toy_set, *UNCACHED)
    first, second = ends(command, [*command, "optim.learning_rate=1"])
    for code, output in (first, second):
        assert code == 2, output
        assert "optim.learning_rate" in output
    assert "rank 1 (process" in first[1]


def test_what_keeps_a_rank_from_beginning_is_told_and_kept(
    toy_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each kind: the rank itself raises its own error, the others one that quotes it."""
    told: list[Statement] = []

    def hold(meeting: Meeting, own: Statement, *, stop: object) -> Refusal | None:
        told.append(own)
        return judge([own, Statement(rank=1 - own.rank)])

    monkeypatch.setattr(Meeting, "hold", hold)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "n1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "1")
    gone = config(tmp_path, str(tmp_path / "gone"))
    with pytest.raises(ShardError, match="holds no finished shard set"):
        same_run.meet(gone, None, lambda: None)
    with pytest.raises(StopRequested, match="SIGTERM"):
        same_run.meet(config(tmp_path, toy_set), None, lambda: "SIGTERM")
    with pytest.raises(RunLockedError, match=r"^taken$"):
        same_run.meet(config(tmp_path, toy_set), RunLockedError("taken"), lambda: None)
    assert [statement.kind for statement in told] == ["failed", "stopped", "locked"]
    # A signal ends the wait for a lock: to be queued again, not failed.
    with pytest.raises(StopRequested, match="SIGTERM"):
        same_run.meet(config(tmp_path, toy_set), RunLockedError("taken"), lambda: "SIGTERM")
    told.pop()
    monkeypatch.setattr(Meeting, "hold", lambda meeting, own, *, stop: judge([own, *others]))
    for statement, kind in zip(told, (PeerFailedError, StopRequested, RunLockedError), strict=True):
        others = [dataclasses.replace(statement, rank=0)]
        with pytest.raises(kind, match=re.escape(statement.error)):
            same_run.meet(config(tmp_path, toy_set), None, lambda: None)


@pytest.mark.slow
def test_a_port_that_a_stranger_holds_ends_both(toy_set: str, tmp_path: Path) -> None:
    command = arguments(tmp_path / "run", toy_set, *UNCACHED, "engine.timeout_min=0.1")
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        for code, output in ends(command, command, stranger=stranger):
            assert code == 70, output
            assert f"{stranger.getsockname()[1]}" in output
            assert "held by process" in output
