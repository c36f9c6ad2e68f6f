"""`tandem reproduce`: the commands of a table, how far each is, what is missing, and the order in which jobs wait."""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
from pathlib import Path
from typing import Any, ClassVar

import pytest

from common.small_files import DamagedFileError
from configs.load import ConfigError
from configs.paper_tables import CellConfig, asked
from configs.schema import SlurmConfig
from engine.downstream.results import Result, write_results
from launchers.cli import main as tandem
from launchers.cluster.freeze import present_code
from launchers.cluster.queues import AT_ONCE, After, Queue
from launchers.cluster.work import FollowJob, PretrainJob, Work
from launchers.reproducing import queueing
from launchers.reproducing.queueing import CommandWork, queued_jobs, run_steps, sized
from launchers.reproducing.state import State, figure, state_of
from launchers.reproducing.steps import Places, Step, steps_of
from launchers.runs.attempts import begin
from launchers.runs.job_record import read_jobs
from launchers.runs.slurm import JobInfo

TINY = """
title: Tiny
paper: none
steps:
  set: {verb: prepare, config: street, data: synthetic, overrides: [set.num_logs=10, set.frames_per_log=1]}
  run:
    verb: pretrain
    config: slidr_street
    shards: set
    overrides: [schedule.steps=2, schedule.warmup_steps=0, data.micro_batch_size=1, monitor.picture_every=0]
  knn: {verb: evaluate, config: street, shards: set, start: run, overrides: ["protocols=[knn]", "knn.seeds=[0]"]}
tables:
  one:
    title: kNN, mIoU
    rows:
      random: {cells: {kNN: {step: knn, random: true}}}
      SLidR: {cells: {kNN: {published: 12.5, step: knn}}}
"""


part_of = functools.cache(asked)
"""Files are read once: some have tens of steps."""


def steps(
    name: str = "slidr", table: str | None = "2", rows: tuple[str, ...] = ("SLidR",), **places: Any
) -> list[Step]:
    return steps_of(part_of(name, table, rows), Places(**places))


@pytest.fixture(autouse=True)
def _no_folders_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TANDEM_RAW", raising=False)
    monkeypatch.delenv("TANDEM_WEIGHTS", raising=False)


# ---- commands


def test_commands_are_printed_in_order_with_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["reproduce", "slidr", "--table", "2", "--row", "SLidR", "--dry-run", "--root", str(tmp_path)]
    assert tandem(line) == 0
    out = capsys.readouterr().out
    commands = [shlex.split(text)[:3] for text in out.replace("\\\n", "").splitlines() if text.startswith("tandem ")]
    run = str(tmp_path / "slidr" / "slidr")
    assert commands == [
        ["tandem", "prepare", "nuscenes_slidr"],
        ["tandem", "prepare", "semantickitti_nclr"],
        ["tandem", "pretrain", "slidr_nuscenes"],
        *[["tandem", "evaluate", run]] * 3,
    ]
    assert "# 6 steps, 0 of them done" in out
    assert "missing: the raw data of nuscenes: not named; give --data nuscenes=FOLDER" in out
    assert "missing: moco_v2_800ep_pretrain.pth.tar: not named; give --weights FOLDER" in out
    assert "38.8 | –" in out
    assert not list(tmp_path.iterdir())


def test_nothing_is_started_while_something_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nuscenes").mkdir()
    line = ["reproduce", "slidr", "--table", "2", "--row", "SLidR", "--debug", "--root", str(tmp_path / "out")]
    assert tandem([*line, "--data", f"nuscenes={tmp_path / 'nuscenes'}"]) == 2
    err = capsys.readouterr().err
    assert "nothing was started, since these are missing:" in err
    assert "semantickitti: not named" in err
    assert "docs/teacher_weights.md" in err
    assert "nuscenes:" not in err
    assert not (tmp_path / "out").exists()


def test_places_are_taken_from_options_before_the_environment(tmp_path: Path) -> None:
    for name in ("nuscenes", "semantickitti"):
        (tmp_path / name).mkdir()
    (tmp_path / "moco_v2_800ep_pretrain.pth.tar").touch()
    given = {"data": {"nuscenes": "/elsewhere"}, "raw": str(tmp_path), "weights": str(tmp_path)}
    made = {step.name: step for step in steps(**given)}
    assert made["semantickitti_sweeps"].subject[1] == str(tmp_path / "semantickitti")
    assert made["nuscenes_slidr"].missing[0].startswith("the raw data of nuscenes: no folder /elsewhere")
    assert made["slidr"].missing == ()
    assert f"method.teacher.weights=moco_v2:{tmp_path}/moco_v2_800ep_pretrain.pth.tar" in made["slidr"].settings
    own = {step.name: step for step in steps(shards={"nuscenes_slidr": str(tmp_path)})}
    assert own["nuscenes_slidr"].missing == ()
    assert f"data.shards={tmp_path}" in own["slidr"].settings
    for option in ("data", "shards"):
        with pytest.raises(ConfigError, match=f"--{option}: got 'nuscene', expected one of"):
            steps(**{option: {"nuscene": "x"}})


def test_fewer_gpus_keep_the_batch() -> None:
    part = part_of("slidr", "4", ("SLidR",))
    published, fewer = (
        {step.name: step for step in steps_of(part, Places(), gpus)}["slidr-4gpus"] for gpus in (None, 2)
    )
    assert published.words[:5] == ["torchrun", "--nproc-per-node", "4", "-m", "launchers.pretrain"]
    assert not any("accumulation" in setting for setting in published.settings)
    assert fewer.words[2] == "2"
    assert "engine.accumulation_steps=2" in fewer.settings
    own = steps_of(part_of("nclr", "panoptic-nuscenes", ()), Places(), 2)
    panoptic = next(step for step in own if step.name == "panoptic-nuscenes-random")
    assert "engine.accumulation_steps=8" in panoptic.settings, "the config has 4 parts of its own"
    with pytest.raises(ConfigError, match="--gpus: got 3, expected a divisor of 4"):
        steps_of(part, Places(), 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["slidr", "--gpus", "0"], "--gpus: got 0, expected at least 1"),
        (["slidr", "--data", "nuscenes"], "--data: got 'nuscenes', expected NAME=FOLDER"),
        (["slidr", "--table", "9"], "--table: got '9'"),
        (["slidr", "optim.lr=1"], "optim.lr=1: the steps of a table have the settings of its file"),
        (["--table", "2"], "--table: expected the name of a paper before it, one of contrastive_units,"),
        (["street", "--dry-run", "cluster.node=2"], "node: unknown name"),
        (["slidr", "--data", "nuscens=x"], "expected one of kitti_object, nuscenes, semantickitti; did you mean"),
        (["slidrr"], "no such config file; did you mean 'slidr'?"),
        (["slidr", "--table", "4", "--debug"], "runs on 4 GPUs as published, and here it has 1: --gpus 1 keeps"),
    ],
)
def test_mistakes_are_named(line: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem(["reproduce", *line, "--root", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


# ---- how far it is


def test_state_comes_from_the_folders(tmp_path: Path) -> None:
    prepare, _, run, probe, *_ = steps(root=tmp_path)
    assert [state_of(step).kind for step in (prepare, run, probe)] == ["to do"] * 3
    (prepare.folder / ".prepare").mkdir(parents=True)
    assert state_of(prepare).kind == "begun"
    (prepare.folder / "manifest.json").touch()
    assert state_of(prepare).kind == "done"

    attempt = begin(run.folder, 1)
    assert state_of(run).kind == "begun"
    attempt.end("preempted", step=7)
    assert state_of(run).kind == "begun"
    attempt = begin(run.folder, 1)
    attempt.end("finished", step=9)
    assert state_of(run).kind == "done"

    job = JobInfo(id="7", state="PENDING", reason="None", nodes="", time_left="")
    assert str(state_of(probe, job)) == "queued, pending"
    assert state_of(probe, dataclasses.replace(job, state="FAILED")).kind == "to do"
    assert state_of(prepare, job).kind == "done"


def record(protocol: str = "sweep_probe", *, pretrained: bool = True, miou: float = 40.5) -> Result:
    metrics = {"miou": (miou,), "accuracy": (80.0,)}
    name = "slidr" if pretrained else "random"
    return Result(
        protocol=protocol,
        dataset="nuscenes",
        labels="all",
        init=name,
        pretrained=pretrained,
        seeds=(0,),
        metrics=metrics,
    )


def test_an_evaluation_is_done_when_its_protocols_are_recorded_for_its_weights(tmp_path: Path) -> None:
    _, _, _, probe, *_ = steps(root=tmp_path)
    file = probe.folder / "results.json"
    write_results(file, [record(pretrained=False)])
    assert state_of(probe).kind == "to do"
    write_results(file, [record("knn")])
    assert str(state_of(probe)) == "begun, sweep_probe left"
    write_results(file, [record()])
    assert state_of(probe).kind == "done"
    assert figure(CellConfig(measure="sweep_probe"), probe) == 40.5
    assert figure(CellConfig(measure="sweep_probe:accuracy"), probe) == 80.0
    assert figure(CellConfig(measure="sweep_probe", random=True), probe) == 40.5
    with pytest.raises(ConfigError, match="has miou, accuracy"):
        figure(CellConfig(measure="sweep_probe:rmse"), probe)
    file.write_text("{")
    with pytest.raises(ConfigError, match="repair or remove the file"):
        state_of(probe)


@pytest.mark.parametrize(("unit", "expected"), [("%", 0.5), ("", 50.0)])
def test_a_detectors_figure_is_that_of_its_last_verdict(unit: str, expected: float, tmp_path: Path) -> None:
    run = next(step for step in steps(table="4", root=tmp_path) if step.name == "slidr-det-5")
    begin(run.folder, 1).end("finished", step=9)
    assert figure(CellConfig(), run) is None
    verdicts = [
        {"benchmarks": {"kitti": {"headline": {"AP": value, "other": 0.1}, "unit": unit}}} for value in (0.2, 0.5)
    ]
    (run.folder / "detections.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in verdicts))
    assert figure(CellConfig(measure="kitti:AP"), run) == figure(CellConfig(), run) == expected
    with pytest.raises(ConfigError, match="has AP, other"):
        figure(CellConfig(measure="kitti:mAP"), run)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"benchmarks": [1]}, "benchmarks: expected a mapping, got a list of 1"),
        ({"benchmarks": {"kitti": 1}}, "expected a mapping of headline, unit, got 1"),
        ({"benchmarks": {"kitti": {"headline": 5, "unit": "%"}}}, "headline: expected a mapping, got 5"),
        ({"benchmarks": {"kitti": {"headline": {"AP": "x"}, "unit": "%"}}}, "AP: expected a number, got"),
        ({"benchmarks": {"kitti": {"headline": {}, "unit": "%"}}}, "has $"),
    ],
)
def test_damaged_verdicts_are_named(line: dict[str, Any], message: str, tmp_path: Path) -> None:
    run = next(step for step in steps(table="4", root=tmp_path) if step.name == "slidr-det-5")
    begin(run.folder, 1).end("finished", step=9)
    (run.folder / "detections.jsonl").write_text(json.dumps(line))
    with pytest.raises(ConfigError, match=message):
        figure(CellConfig(measure="kitti"), run)


def test_ids_of_jobs_are_texts(tmp_path: Path) -> None:
    (tmp_path / "queued.json").write_text('{"slidr": "17", "knn": 5}')
    with pytest.raises(DamagedFileError, match="knn: expected the id of a job as text, got 5"):
        queued_jobs(tmp_path)


# ---- queueing


class Recording(Queue):
    """Keeps what it is given."""

    given: ClassVar[list[tuple[Work, After]]] = []

    def submit(self, works: Any, *, name: str, after: After = AT_ONCE) -> list[str]:
        (work,) = works
        self.given.append((work, after))
        return [str(len(self.given))]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Work, After]]:
    monkeypatch.setattr(Recording, "given", [])
    monkeypatch.setattr(queueing, "_check_slurm", lambda cluster: None)
    monkeypatch.setattr(queueing, "freeze_code", lambda root: present_code())
    monkeypatch.setattr(queueing, "_queue", lambda *_: Recording(logs=tmp_path / "logs", cluster="ours"))
    return Recording.given


def test_each_job_waits_for_those_that_it_needs(tmp_path: Path, recorded: list[tuple[Work, After]]) -> None:
    made = [dataclasses.replace(step, missing=()) for step in steps(root=tmp_path)]
    states = {step.name: State("to do") for step in made}
    states["semantickitti_sweeps"] = State("done")
    folder = tmp_path / "slidr"
    assert run_steps(made, states, folder, SlurmConfig(), "slurm")
    assert [after.succeeded for _, after in recorded] == [(), ("1",), ("1", "2"), ("1", "2"), ("2",)]
    (prepare, _), (train, _), *evaluations = recorded
    assert isinstance(prepare, FollowJob)
    assert prepare.work == CommandWork(name="nuscenes_slidr", arguments=tuple(made[0].arguments))
    assert isinstance(train, PretrainJob)
    assert "micro_batch_size: 4" in Path(train.config).read_text()
    assert all(isinstance(work, FollowJob) for work, _ in evaluations)
    assert queued_jobs(folder) == {
        "nuscenes_slidr": "1",
        "slidr": "2",
        "slidr-probe": "3",
        "slidr-1pct": "4",
        "slidr-kitti": "5",
    }
    jobs = read_jobs(folder / "slidr")
    assert jobs is not None
    assert (jobs.pretrain, jobs.cluster) == ("2", "ours")

    # Called again while they wait: what is queued is not queued again, and what failed waits for it.
    states = {name: State("queued") for name in states} | {"slidr-probe": State("to do")}
    assert run_steps(made, states, folder, SlurmConfig(), "slurm")
    assert len(recorded) == 6
    assert recorded[-1][1].succeeded == ("1", "2")


def test_a_cluster_gives_a_run_as_many_machines_as_it_needs() -> None:
    cluster = SlurmConfig(gpus_per_node=4, nodes=1)
    for processes, nodes, each in ((8, 2, 4), (4, 1, 4), (2, 1, 2), (1, 1, 1)):
        own = sized(cluster, processes)
        assert (own.nodes, own.gpus_per_node, own.tasks) == (nodes, each, each)
    assert sized(SlurmConfig(), 1).gpus_per_node == 0
    with pytest.raises(ConfigError, match="gpus_per_node: got 4, expected a divisor of 6"):
        sized(cluster, 6)


# ---- all of it


@pytest.mark.slow
def test_a_table_is_made_from_nothing_and_then_nothing_is_left(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = tmp_path / "tiny.yaml"
    paper.write_text(TINY)
    monkeypatch.chdir(tmp_path)
    line = ["reproduce", str(paper), "--root", "out"]
    assert tandem([*line, "--debug"]) == 0
    assert "12.5 | " in capfd.readouterr().out
    assert tandem([*line, "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert "# 3 steps, 3 of them done" in out
    assert "12.5 | –" not in out
    assert tandem([*line, "--local"]) == 0
    assert "nothing left to do" in capfd.readouterr().out
