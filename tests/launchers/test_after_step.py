"""When a batch script queues its job again: by exit code, by what SLURM does to the job, by what happened before."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from common.run_files import newest_step
from launchers.cluster.after_step import (
    MAX_DEATHS,
    MAX_STOPS,
    Ended,
    Entry,
    OwnJob,
    after_step,
    cut_short,
    decide,
    look_up,
    main,
    read_entries,
)
from launchers.runs import attempts, slurm
from launchers.runs.attempts import read_attempts
from launchers.runs.files import REQUEUES_FILE

RUNNING = OwnJob(state="RUNNING", reason="None", restarts=0)
ENV = {"SLURM_JOB_ID": "12"}


def ended(code, *, cut=False, step=40):
    return Ended(code=code, cut_short=cut, step=step)


def earlier(*cases):
    return [Entry(time=0.0, job="12", code=code, step=step, requeue=True, why="") for code, step in cases]


@pytest.mark.parametrize(
    ("how", "requeue", "words"),
    [
        (ended(0), False, "finished"),
        (ended(75), True, "stopped to be continued at checkpoint 40"),
        (ended(75, step=None), True, "before its first checkpoint"),
        (ended(70), True, "died (code 70) at checkpoint 40"),
        (ended(137), True, "died (code 137)"),
        (ended(143), True, "died"),
        (ended(1, cut=True), True, "died (code 1)"),
        (ended(1), False, "failed with code 1"),
        (ended(2), False, "failed with code 2"),
        (ended(2, cut=True), False, "failed with code 2"),
    ],
)
def test_the_exit_code_decides(how, requeue, words):
    decision = decide(how, RUNNING, 0, [])
    assert decision.requeue is requeue
    assert words in decision.why


@pytest.mark.parametrize("code", [75, 70, 137])
@pytest.mark.parametrize(
    ("job", "requeue", "words"),
    [
        # As seen with SLURM 22.05 from a batch script whose job was cancelled, requeued, at the end of its time.
        (OwnJob(state="COMPLETING", reason="None", restarts=1), False, "cancelled or ended by SLURM"),
        (OwnJob(state="CANCELLED", reason="None", restarts=1), False, "cancelled"),
        (OwnJob(state="COMPLETING", reason="None", restarts=2), False, "queued the job again already"),
        (OwnJob(state="RUNNING", reason="None", restarts=2), False, "queued the job again already"),
        (OwnJob(state="COMPLETING", reason="TimeLimit", restarts=1), True, ""),
        (OwnJob(state="RUNNING", reason="None", restarts=1), True, ""),
    ],
)
def test_what_slurm_does_itself_is_left_to_it(code, job, requeue, words):
    decision = decide(ended(code), job, 1, [])
    assert decision.requeue is requeue
    assert words in decision.why


@pytest.mark.parametrize(
    ("code", "before", "requeue"),
    [
        (137, [(137, 40)] * (MAX_DEATHS - 2), True),
        (137, [(137, 40)] * (MAX_DEATHS - 1), False),
        (137, [(70, 40), (137, 40)], False),
        (137, [(137, 20)] * 50, True),  # a newer checkpoint since
        (137, [(137, 40), (137, 20), (137, 40)], True),
        (137, [(75, 40)] * 9, True),  # stops are no deaths
        (75, [(137, 40)] * 9, True),
        (75, [(75, 40)] * (MAX_STOPS - 2), True),
        (75, [(75, 40)] * (MAX_STOPS - 1), False),
        (75, [(75, 20)] * 50, True),
        (70, [(75, 40), (70, 40), (75, 40), (70, 40)], False),
    ],
)
def test_what_makes_no_progress_is_given_up(code, before, requeue):
    decision = decide(ended(code), RUNNING, 0, earlier(*before))
    assert decision.requeue is requeue
    assert ("given up" in decision.why) is not requeue


def test_the_newest_checkpoint_by_name(tmp_path):
    assert newest_step(tmp_path) is None
    for name in ("step_00000040", "step_00000200", "step_00000060.tmp", "step_x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_step(tmp_path) == 200


def test_a_beginning_without_an_end_is_a_death_of_its_own_job(tmp_path):
    assert not cut_short(read_attempts(tmp_path), "12")
    record = attempts.begin(tmp_path, 2, job="12")
    assert cut_short(read_attempts(tmp_path), "12")
    assert not cut_short(read_attempts(tmp_path), "13")
    record.end("failed", reason="loss is nan")
    assert not cut_short(read_attempts(tmp_path), "12")


@pytest.fixture
def asked(monkeypatch):
    """SLURM's commands as they are called; the job runs."""
    calls = []

    def run_command(*command, timeout_s=0.0):
        calls.append(command)
        return "JobId=12 JobName=a=b JobState=RUNNING Reason=None Requeue=1 Restarts=3 BatchFlag=1"

    monkeypatch.setattr(slurm, "run_command", run_command)
    return calls


def test_requeued_once_and_noted(asked, tmp_path):
    (tmp_path / "checkpoints" / "step_00000040").mkdir(parents=True)
    env = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "4", "SLURM_JOB_ID": "16", "SLURM_RESTART_COUNT": "3"}
    assert after_step(75, tmp_path, env).requeue
    assert asked == [("scontrol", "--oneliner", "show", "job", "12_4"), ("scontrol", "requeue", "12_4")]
    (entry,) = read_entries(tmp_path, "12_4")
    assert (entry.code, entry.step, entry.requeue) == (75, 40, True)
    assert read_entries(tmp_path, "12") == []


def test_deaths_in_a_row_are_counted_over_calls(asked, tmp_path):
    tmp_path.joinpath(REQUEUES_FILE).write_text('{"cut short\n')
    env = {**ENV, "SLURM_RESTART_COUNT": "3"}
    decisions = [after_step(137, tmp_path, env).requeue for _ in range(MAX_DEATHS)]
    assert decisions == [True] * (MAX_DEATHS - 1) + [False]
    assert len([call for call in asked if call[1] == "requeue"]) == MAX_DEATHS - 1
    lines = tmp_path.joinpath(REQUEUES_FILE).read_text().splitlines()
    assert "given up" in json.loads(lines[-1])["why"]


def test_without_a_job_or_a_folder(asked, tmp_path):
    assert after_step(75, tmp_path, {}).why == "not in a SLURM job"
    assert not after_step(2, tmp_path / "none", {**ENV, "SLURM_RESTART_COUNT": "3"}).requeue
    assert not (tmp_path / "none").exists()


def test_look_up_reads_scontrol(asked):
    assert look_up("12") == OwnJob(state="RUNNING", reason="None", restarts=3)


def test_its_words_and_code(asked, tmp_path, monkeypatch, capsys):
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**ENV, "SLURM_RESTART_COUNT": "3"}.items():
        monkeypatch.setenv(name, value)
    assert main(["75", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("after the step: queued again: stopped to be continued")
    assert main(["1", str(tmp_path)]) == 1
    assert "not queued again: failed with code 1" in capsys.readouterr().out
    assert main(["0", str(tmp_path)]) == 0


def test_it_needs_no_torch():
    code = "import sys, launchers.cluster.after_step; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_progress_of_either_stage_counts(tmp_path, monkeypatch):
    """Ten time limits in the first stage, each with a newer checkpoint; then as many without one."""
    run_dir, first = tmp_path / "run", tmp_path / "run-first"
    run_dir.mkdir()
    monkeypatch.setattr(slurm, "requeue", lambda job: None)
    monkeypatch.setattr("launchers.cluster.after_step.look_up", lambda job: RUNNING)
    for number in range(1, MAX_STOPS + 3):
        (first / "checkpoints" / f"step_{10 * number:08d}").mkdir(parents=True)
        assert after_step(75, run_dir, ENV, first=[first]).requeue
    for number in range(MAX_DEATHS + 2):
        (run_dir / "checkpoints" / f"step_{number + 1:08d}").mkdir(parents=True)
        assert after_step(70, run_dir, ENV, first=[first]).requeue
    stops = [after_step(75, run_dir, ENV, first=[first]).requeue for _ in range(MAX_STOPS)]
    assert stops == [True] * (MAX_STOPS - 1) + [False]


def test_a_death_in_the_first_stage_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "requeue", lambda job: None)
    monkeypatch.setattr("launchers.cluster.after_step.look_up", lambda job: RUNNING)
    attempts.begin(tmp_path / "run-first", 1, job="12")  # and no end: it died
    assert after_step(1, tmp_path / "run", ENV, first=[tmp_path / "run-first"]).requeue
    assert not after_step(1, tmp_path / "run", ENV).requeue
