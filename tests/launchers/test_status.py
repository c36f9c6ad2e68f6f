"""`tandem status`: what it says of runs in every state, from files made here and from SLURM's answers made up here."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from configs.load import ConfigError
from launchers.cli import main as tandem
from launchers.runs import slurm
from launchers.runs.attempts import Attempt
from launchers.runs.job_record import Jobs, write_jobs
from launchers.runs.run_status import RunStatus, state_of
from launchers.runs.slurm import JobInfo, SlurmError
from launchers.status import duration, gather, show

REPOSITORY = Path(__file__).resolve().parents[2]
Slurm = Callable[..., None]


def write_run(
    folder: Path,
    *,
    step: int = 40,
    config: dict[str, Any] | None = None,
    events: Sequence[dict[str, Any]] = (),
    checkpoint: int | None = None,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config or {"schedule": {"steps": 100, "epochs": 50}}))
    lines = [
        {
            "step": s,
            "time": 0.0,
            "train/loss": 5.0 - 0.01 * s,
            "train/epoch": s / 7,
            "watch/contrastive_accuracy": 0.125,
            "perf/samples_per_s": 9.5,
            "perf/data_wait_share": 0.02,
            "time/step_s": 0.5,
        }
        for s in range(10, step + 1, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4')
    (folder / "attempts.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if checkpoint is not None:
        made = folder / "checkpoints" / f"step_{checkpoint:08d}"
        made.mkdir(parents=True)
        (made / "state.json").write_text(json.dumps({"format": 1, "step": checkpoint, "num_steps": 100}))
        os.utime(made / "state.json", (time.time() - 300, time.time() - 300))
    return folder


def begin(job: str | None = None, host: str = "elsewhere", pid: int = 1) -> dict[str, Any]:
    return {"event": "begin", "time": 0.0, "job": job, "host": host, "pid": pid, "world_size": 2, "nodes": host}


def end(status: str, reason: str | None = None) -> dict[str, Any]:
    return {"event": "end", "time": 1.0, "status": status, "step": 40, "signal": None, "reason": reason}


def job(id: str, state: str, reason: str = "None", nodes: str = "n1") -> JobInfo:
    return JobInfo(id=id, state=state, reason=reason, nodes=nodes, time_left="1:00")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Make SLURM answer with given jobs."""

    def answers(*jobs: JobInfo) -> None:
        monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
        monkeypatch.setattr(slurm, "queue", lambda ids: {j.id: j for j in jobs if j.id in ids})

    return answers


def one(folder: Path) -> RunStatus:
    (status,), _ = gather([folder])
    return status


def shown(root: Path, width: int) -> str:
    found, remark = gather([root])
    screen = io.StringIO()
    show(found, remark, Console(file=screen, width=width, highlight=False))
    return screen.getvalue()


# ---- state
def attempt(status: Any, job: str | None = "7") -> Attempt:
    return Attempt(job=job, host="h", pid=1, world_size=2, nodes="h", began=0.0, status=status)


STATES = [
    (None, None, None, None, "not started"),
    (None, None, None, 40, "unknown"),
    (None, None, None, 100, "finished"),
    (None, job("7", "PENDING"), None, None, "queued"),
    (None, job("7", "RUNNING"), None, None, "starting"),
    (None, job("7", "CANCELLED"), None, None, "cancelled"),
    (None, job("7", "FAILED"), None, None, "failed"),
    (attempt("running"), job("7", "RUNNING"), None, 40, "running"),
    (attempt("running"), job("7", "COMPLETING"), None, 40, "completing"),
    (attempt("running"), job("7", "NODE_FAIL"), None, 40, "node failed"),
    (attempt("running"), job("7", "FAILED"), None, 40, "died"),
    (attempt("running"), job("7", "COMPLETED"), None, 40, "died"),
    (attempt("running"), job("7", "PENDING"), None, 40, "requeued"),
    (attempt("running"), None, None, 40, "running"),
    (attempt("running"), None, True, 40, "running"),
    (attempt("running"), None, False, 40, "died"),
    (attempt("preempted"), None, None, 40, "preempted"),
    (attempt("preempted"), job("7", "PENDING"), None, 40, "requeued"),
    (attempt("preempted"), job("7", "RUNNING"), None, 40, "starting"),
    (attempt("failed"), job("7", "FAILED"), None, 40, "failed"),
    (attempt("failed"), job("8", "CANCELLED"), None, 40, "cancelled"),
    (attempt("finished"), job("7", "COMPLETED"), None, 100, "finished"),
    (attempt("finished"), job("7", "RUNNING"), None, 100, "finished"),
]


@pytest.mark.parametrize(("last", "info", "alive", "step", "expected"), STATES)
def test_state(last: Attempt | None, info: JobInfo | None, alive: bool | None, step: int | None, expected: str) -> None:
    assert state_of(last, info, alive=alive, step=step, num_steps=100) == expected


# ---- without SLURM
def test_numbers_come_from_the_newest_whole_line(tmp_path: Path) -> None:
    status = one(write_run(tmp_path / "run", events=[begin()], checkpoint=30))
    assert (status.state, status.step, status.num_steps, status.checkpoint_step) == ("running", 40, 100, 30)
    assert (status.loss, status.accuracy, status.samples_per_s) == (pytest.approx(4.6), 0.125, 9.5)
    assert status.data_wait_share == 0.02
    assert status.eta_s == pytest.approx(60 * 0.5)
    assert status.checkpoint_age_s == pytest.approx(300, abs=60)


def test_length_of_a_run_that_counts_epochs(tmp_path: Path) -> None:
    """50 epochs of 7 updates, known from the lines alone, before the first checkpoint."""
    config = {"schedule": {"steps": None, "epochs": 50}}
    assert one(write_run(tmp_path / "run", config=config)).num_steps == 350


def test_a_process_that_is_gone_has_died_and_one_that_is_here_runs(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    run = write_run(tmp_path / "run", events=[begin(host=socket.gethostname(), pid=child.pid)])
    try:
        assert one(run).state == "running"
    finally:
        child.kill()
        child.wait()
    status = one(run)
    assert status.state == "died"
    assert f"process {child.pid} on {socket.gethostname()}" in status.why[0]


def test_a_running_run_that_is_silent_is_remarked_on(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", events=[begin()])
    assert one(run).why == ()
    os.utime(run / "metrics.jsonl", (time.time() - 1500, time.time() - 1500))
    assert one(run).why == ("has logged nothing for 25 min",)


def test_the_reason_and_the_end_of_the_error_log(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", events=[begin("12_0"), end("failed", "DivergenceError: loss not finite")])
    logs = tmp_path / "logs"
    logs.mkdir()
    write_jobs(run, Jobs(pretrain="12_0", logs=str(logs)))
    (logs / "12_0_0_log.out").write_text("fine\n")
    (logs / "12_0_0_log.err").write_text("".join(f"line {n}\n" for n in range(5000)) + "\nlast words\n")
    (logs / "12_01_0_log.err").write_text("of another\n")
    (logs / "112_0_0_log.err").write_text("of another\n")
    status = one(run)
    assert status.state == "failed"
    assert status.why[0] == "DivergenceError: loss not finite"
    assert status.why[1:] == (
        f"end of {logs}/12_0_0_log.err:",
        *("  line 4997", "  line 4998", "  line 4999", "  last words"),
    )


def test_evaluations_are_counted_and_failed_ones_explained(tmp_path: Path, cluster: Slurm) -> None:
    run = write_run(tmp_path / "run", step=100, events=[begin(), end("finished")])
    ids = {"knn": "9_0", "probe": "9_1", "finetune-1": "9_2", "finetune-10": "9_3", "depth": "9_4", "again": "9_5"}
    write_jobs(run, Jobs(evaluate=ids))
    for name, file in (
        ("knn", "results.json"),
        ("probe", "error.txt"),
        ("finetune-1", "error.txt"),
        ("again", "results.json"),
    ):
        (run / "evaluation" / name).mkdir(parents=True)
        (run / "evaluation" / name / file).write_text("\nShardError: no labels\nmore\n")
    never = job("9_4", "PENDING", "DependencyNeverSatisfied")
    cluster(
        job("9_1", "FAILED"), job("9_2", "RUNNING"), job("9_3", "CANCELLED", "Dependency"), never, job("9_5", "RUNNING")
    )
    status = one(run)
    assert (status.state, status.evaluations_done, status.evaluations) == ("finished", 1, 6)
    # finetune-1 is being tried again: what its last attempt said is old news, as are the results of "again"
    assert status.why == (
        "evaluation depth: never starts, since what it waited for failed",
        "evaluation finetune-10: cancelled (Dependency)",
        "evaluation probe: ShardError: no labels",
    )


# ---- with SLURM
def test_slurm_is_asked_once_for_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def queue(ids: Sequence[str]) -> dict[str, JobInfo]:
        asked.append(list(ids))
        return {"5_0": job("5_0", "RUNNING", nodes="n[1-2]"), "5_1": job("5_1", "PENDING", "Resources", "")}

    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(slurm, "queue", queue)
    for number in (0, 1):
        run = write_run(tmp_path / f"s{number}", events=[begin(f"5_{number}")] if number == 0 else [])
        write_jobs(run, Jobs(pretrain=f"5_{number}", report="6"))
    found, remark = gather([tmp_path])
    assert [(s.state, s.job, s.where) for s in found] == [("running", "5_0", "n[1-2]"), ("queued", "5_1", "Resources")]
    assert remark == ""
    assert len(asked) == 1
    assert set(asked[0]) == {"5_0", "5_1", "6"}


def test_a_job_started_by_hand_after_the_submission_counts(tmp_path: Path, cluster: Slurm) -> None:
    run = write_run(tmp_path / "run", events=[begin("30")])
    write_jobs(run, Jobs(pretrain="20"))
    cluster(job("30", "RUNNING"))
    assert (one(run).state, one(run).job) == ("running", "30")


def test_a_controller_that_is_down_is_a_remark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def queue(_: Sequence[str]) -> dict[str, JobInfo]:
        raise SlurmError("`squeue` failed with code 1: Unable to contact slurm controller")

    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(slurm, "queue", queue)
    write_run(tmp_path / "run", events=[begin("3"), end("preempted")])
    text = shown(tmp_path, 120)
    assert "preempted" in text
    assert "stopped by a signal" in text
    assert "the same command again continues it" in text
    assert "Unable to contact slurm controller" in text


def test_damaged_files_of_one_run_do_not_hide_the_others(tmp_path: Path) -> None:
    whole, broken = (write_run(tmp_path / name, events=[begin(), end("finished")]) for name in ("a", "b"))
    for name in ("jobs.json", "config.yaml", "attempts.jsonl", "metrics.jsonl"):
        (broken / name).write_bytes(b'{"\xff: [')
    found, _ = gather([tmp_path])
    assert [status.run for status in found] == [str(whole), str(broken)]
    assert (found[1].state, found[1].loss, found[1].num_steps) == ("not started", None, None)
    assert found[1].why[0].startswith(f"{broken}/jobs.json")


def test_watching_ends_with_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("launchers.status.time.sleep", sleep)
    write_run(tmp_path / "run", events=[begin(), end("finished")])
    assert tandem(["status", str(tmp_path), "--watch", "30"]) == 0
    assert naps == [30.0, 30.0]
    assert capsys.readouterr().out.count("finished") == 2


# ---- table
def test_narrow_terminals_drop_columns_and_keep_one_line_a_run(tmp_path: Path) -> None:
    for number in range(3):
        write_run(tmp_path / "sweep" / f"lr=0.{number}_seed={number}", events=[begin()], checkpoint=30)
    wide, narrow = shown(tmp_path, 160), shown(tmp_path, 80)
    for text, width in ((wide, 160), (narrow, 80)):
        assert len(text.splitlines()) == 4
        assert max(map(len, text.splitlines())) <= width
        for word in ("lr=0.1_seed=1", "running", "40/100", "4.600", "30s"):
            assert word in text
    assert "30, 5m ago" in wide
    assert "ago" not in narrow


def test_hostile_names_reach_the_terminal_as_text(tmp_path: Path) -> None:
    write_run(tmp_path / "[bold]x\x1b[31m", events=[begin(), end("failed", "a \x1b]0;title\x07 b [red]c")])
    text = shown(tmp_path, 160)
    assert "\x1b" not in text
    assert "[bold]x?[31m" in text
    assert "a ?]0;title? b [red]c" in text


def test_runs_are_found_below_a_root_and_not_inside_runs(tmp_path: Path) -> None:
    for name in ("b/one", "a/two", "a/code/9f2c", "a/baselines/k", "a/two/evaluation/probe", "x/x/x/x/x/deep"):
        write_run(tmp_path / name)
    found, _ = gather([tmp_path, tmp_path / "a"])
    assert [os.path.relpath(s.run, tmp_path) for s in found] == ["a/two", "b/one"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no runs in"):
        gather([tmp_path / "empty"])


def test_json_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", events=[begin(), end("preempted")])
    assert tandem(["status", str(tmp_path), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["run"] == str(run)
    assert (record["state"], record["step"], record["attempts"], record["eta_s"]) == ("preempted", 40, 1, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0s"), (99.0, "99s"), (120.0, "2m"), (3599.0, "1h00m"), (11100.0, "3h05m"), (187200.0, "2d04h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_hundred_runs_take_under_a_second_and_no_torch(tmp_path: Path) -> None:
    config = yaml.safe_load((REPOSITORY / "configs" / "pretrain" / "slidr_street.yaml").read_text())
    for number in range(100):
        write_run(tmp_path / f"run-{number:03d}", step=2000, config=config, events=[begin()], checkpoint=1000)
    code = f"""
import sys, time
from launchers.cli import main
began = time.perf_counter()
assert main(["status", {str(tmp_path)!r}]) == 0
print(time.perf_counter() - began, sorted(m for m in ("torch", "numpy", "omegaconf._utils") if m in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    *table, last = done.stdout.splitlines()
    assert len(table) == 101
    seconds, _, modules = last.partition(" ")
    assert "torch" not in modules
    assert float(seconds) < 3.0  # measured: 0.4 s on an idle machine
