from __future__ import annotations

import dataclasses
import html
import multiprocessing
import pickle
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from common.run_files import list_checkpoints, step_of
from configs.load import ConfigError, load
from configs.schema import EvaluateConfig, FollowConfig, PretrainConfig
from data.storage.manifest import load_manifest
from data.storage.shard import ShardError
from engine.checkpoint import CheckpointConfig
from engine.distributed import World
from engine.downstream.results import Result, read_results
from engine.errors import CheckpointError
from launchers.cli import main as tandem
from launchers.cluster.evaluation_jobs import EvaluationJob, ReportJob
from launchers.cluster.plan_followups import baseline_jobs, evaluation_jobs, safe_name, selection_job
from launchers.evaluation import selection
from launchers.evaluation.common import splits_of
from launchers.evaluation.measure import evaluate_runs
from launchers.evaluation.selection import Selection, read_selection, select_best
from launchers.reporting.collect import gather
from launchers.runs.files import read_error
from launchers.training.train import load_run
from tests.engine.downstream.test_results import make
from tests.helpers.pretrain_run import UNCACHED, pretrain_here
from tests.helpers.run_folder import QUICK, run_config, write_toy_run
from tests.helpers.samples import write_toy_set

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_toy_set(tmp_path_factory.mktemp("set"), num_logs=6, frames_per_log=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards: str) -> Path:
    run = tmp_path_factory.mktemp("runs") / "slidr-seed0"
    for step in (4, 8, 10):
        write_toy_run(run, shards, step=step)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "runs" / trained.name
    shutil.copytree(trained, copy)
    return copy


@pytest.fixture
def protocols(tmp_path: Path) -> str:
    path = tmp_path / "toy.yaml"
    path.write_text("")
    return str(path)


def following(run: Path, shards: str, protocols: str, *overrides: str, **changes: Any) -> PretrainConfig:
    follow = FollowConfig(configs=(protocols,), overrides=(*QUICK, *overrides), **changes)
    kept = CheckpointConfig(keep_every=follow.every)
    return dataclasses.replace(run_config(run, shards), evaluate=follow, checkpoint=kept)


def numbers(results: Sequence[Result]) -> dict[tuple[str, str], tuple[float, ...]]:
    return {(r.init, r.protocol): r.values for r in results}


# ---- what follows


def test_elements_are_frozen_protocols_together_and_fine_tuning_by_labels(shards: str, tmp_path: Path) -> None:
    other = tmp_path / "b" / "toy.yaml"
    other.parent.mkdir()
    other.write_text("protocols: [knn]\n")
    (tmp_path / "toy.yaml").write_text("")
    config = following(tmp_path / "r", shards, str(tmp_path / "toy.yaml"), fractions=(1, 3))
    names = [job.name for job in evaluation_jobs(tmp_path / "r", config)]
    assert names == ["toy-linear-probe-knn", "toy-finetune-1-frame", "toy-finetune-3-frames"]
    both = dataclasses.replace(config.evaluate, configs=(*config.evaluate.configs, str(other)), fractions=())
    names = [job.name for job in evaluation_jobs(tmp_path / "r", dataclasses.replace(config, evaluate=both))]
    assert names == ["toy-linear-probe-knn", "toy-finetune-1-frame", "toy-2-knn"]
    assert evaluation_jobs(tmp_path, run_config(tmp_path, shards)) == []
    assert safe_name("../a b;rm -rf/\n€.yaml") == "a-b-rm-rf-.yaml"


def test_a_job_keeps_the_settings_it_was_made_with(shards: str, tmp_path: Path, protocols: str) -> None:
    config = following(tmp_path / "r", shards, protocols)
    before = evaluation_jobs(tmp_path / "r", config)
    assert pickle.loads(pickle.dumps(before)) == before
    Path(protocols).write_text("validation_share: 0.4\n")
    after = evaluation_jobs(tmp_path / "r", config)
    assert ["validation_share: 0.2" in job.settings for job in before] == [True, True]
    assert before != after


def test_baselines_are_shared_by_what_they_depend_on(shards: str, tmp_path: Path, protocols: str) -> None:
    config = following(tmp_path / "a", shards, protocols)
    again = dataclasses.replace(
        config, run_dir=str(tmp_path / "b"), seed=7, optim=dataclasses.replace(config.optim, lr=9.0)
    )
    elsewhere = tmp_path / "copy"
    shutil.copytree(shards, elsewhere)
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, shards=str(elsewhere)))
    jobs = baseline_jobs([config, again, moved], tmp_path)
    assert [job.element for job in jobs] == ["toy-linear-probe-knn", "toy-finetune-1-frame"]
    assert len({job.name for job in jobs}) == 2
    voxels = dataclasses.replace(config.data.voxel, size=(0.4, 0.5, 0.5))
    coarser = dataclasses.replace(config, data=dataclasses.replace(config.data, voxel=voxels))
    longer = following(tmp_path / "a", shards, protocols, "linear_probe.steps=6", "finetune.steps=3")
    workers = following(tmp_path / "a", shards, protocols, "data.num_workers=1")
    assert len(baseline_jobs([config, coarser], tmp_path)) == 4
    assert len(baseline_jobs([config, longer], tmp_path)) == 4
    assert len(baseline_jobs([config, workers], tmp_path)) == 2


def test_every_needs_milestones(shards: str, tmp_path: Path, protocols: str) -> None:
    config = following(tmp_path / "r", shards, protocols)
    for every, keep_every in ((4, 0), (6, 4)):
        with pytest.raises(ConfigError, match=f"evaluate.every: got {every}, expected a multiple"):
            dataclasses.replace(
                config,
                evaluate=dataclasses.replace(config.evaluate, every=every),
                checkpoint=CheckpointConfig(keep_every=keep_every),
            )
    with pytest.raises(ValueError, match="configs is empty"):
        FollowConfig(every=4)
    assert selection_job(tmp_path / "r", config) is None


@pytest.mark.parametrize("name", ["slidr_street", "slidr_kitti"])
def test_shipped_runs_are_followed_by_what_loads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    given = ["data.shards=a", "method.teacher.weights=random"] if name == "slidr_kitti" else []
    config = load_run(f"configs/pretrain/{name}.yaml", [*given, "evaluate.fractions=[1,10]"])
    jobs = evaluation_jobs(Path(config.run_dir), config)
    assert len(jobs) == 3
    assert jobs[2].name.endswith("finetune-10-frames")


# ---- measuring


@pytest.mark.slow
def test_elements_give_the_numbers_of_one_call(run: Path, shards: str, tmp_path: Path, protocols: str) -> None:
    config = following(run, shards, protocols)
    whole = load(EvaluateConfig, protocols, [*QUICK, f"results={tmp_path / 'whole' / 'results.json'}"])
    expected = numbers(evaluate_runs([run], whole))
    jobs, baselines = evaluation_jobs(run, config), baseline_jobs([config], run.parent)
    assert not any(job.done() for job in (*jobs, *baselines))
    for job in (*jobs, *baselines):
        job()
    assert all(job.done() for job in (*jobs, *baselines))
    results, _ = gather([run])
    assert numbers(results) == expected
    assert len(results) == 6
    assert {r.pretrain_seeds for r in results if r.pretrained} == {(0,)}

    files = sorted(run.parent.rglob("results.json"))
    before = [path.read_text() for path in files]
    for job in (*jobs, *baselines):
        job()
    assert [path.read_text() for path in files] == before

    # A run that went on has no results for its new end.
    write_toy_run(run, shards, step=20)
    assert not any(job.done() for job in jobs)
    ReportJob(root=str(run), run_dirs=(str(run),))()
    text = (run / "report.md").read_text()
    assert "slidr" in text
    assert "| random |" in text
    assert (run / "report.html").is_file()


@pytest.mark.slow
def test_best_and_last_are_measured_where_they_differ(
    run: Path, shards: str, protocols: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = following(run, shards, protocols, "protocols=[knn]", every=4, select_by="knn")
    (job,), choose = evaluation_jobs(run, config), selection_job(run, config)
    assert choose is not None
    with pytest.raises(CheckpointError, match="has not been chosen"):
        job()
    assert "has not been chosen" in (read_error(job.folder) or "")
    choose()
    assert choose.done()
    made = read_selection(run)
    assert made is not None
    assert list(made.scores) == [4, 8, 10]
    assert made.step == 10  # same weights, same scores: the last one wins
    assert made.split == "1 sweep of 1 log held out from toy's train split"
    job()
    assert [r.chosen for r in read_results(job.folder / "results.json")] == [("best", "last")]
    assert read_error(job.folder) is None

    values = {4: 30.0, 8: 50.0, 10: 40.0}
    seen = []

    def measured(paths: Sequence[Path], protocols: EvaluateConfig, **_: object) -> list[Result]:
        seen.append(protocols)
        return [make(miou=(values[step_of(paths[0])],) * 3)]

    monkeypatch.setattr(selection, "evaluate_runs", measured)
    choose()
    assert all(p.data.holdout and p.protocols == ("knn",) and not p.random for p in seen)
    assert not job.done()
    job()
    results = read_results(job.folder / "results.json")
    assert sorted((r.pretraining, r.chosen) for r in results) == [
        ("10 of 50 steps, seed 0", ("last",)),
        ("8 of 50 steps, seed 0", ("best",)),
    ]
    assert job.done()
    ReportJob(root=str(run), run_dirs=(str(run),))()
    for text in ((run / "report.md").read_text(), html.unescape((run / "report.html").read_text())):
        assert "step 4 30.0, step 8 *50.0, step 10 40.0" in text
        assert "held out from toy's train split" in text
        assert "best step" in text
    write_toy_run(run, shards, step=20)
    assert not choose.done()
    with pytest.raises(CheckpointError, match="since the run went on"):
        job()


def test_scores_of_the_choice_are_no_results(run: Path, shards: str, protocols: str) -> None:
    config = following(run, shards, protocols, "protocols=[knn]", every=4, select_by="knn")
    choose = selection_job(run, config)
    assert choose is not None
    choose()
    assert gather([run])[0] == []


def test_holdout_measures_on_logs_of_the_train_split(run: Path, shards: str) -> None:
    manifest = load_manifest(shards)
    config = load(EvaluateConfig, None, ["data.holdout=true", "data.test_split=absent", *QUICK, "protocols=[knn]"])
    splits = splits_of(manifest, config, "backbone")
    assert sorted([*splits.train, *splits.test]) == sorted(manifest.indices("train"))
    assert not set(manifest.sample_log[splits.train]) & set(manifest.sample_log[splits.test])
    (held, _) = evaluate_runs([run], config)
    other = load(EvaluateConfig, None, [*QUICK, "protocols=[knn]", f"results={run / 'other.json'}"])
    assert held.fingerprint != evaluate_runs([run], other)[0].fingerprint


def test_random_rows_without_a_checkpoint(run: Path, protocols: str, capsys: pytest.CaptureFixture[str]) -> None:
    for checkpoint in list_checkpoints(run):
        shutil.rmtree(checkpoint)
    arguments = [protocols, *QUICK, "protocols=[knn]", "--random-only"]
    for target in (run, run / "config.yaml"):
        assert tandem(["evaluate", str(target), *arguments]) == 0
    assert [r.init for r in read_results(run / "results.json")] == ["random"]
    assert tandem(["evaluate", str(run), str(run), *arguments]) == 2
    assert "takes one run, got 2" in capsys.readouterr().err


@pytest.mark.slow
def test_two_jobs_at_once_damage_nothing(run: Path, shards: str, protocols: str) -> None:
    """As when two sweeps need the same baselines, or an element is queued twice by mistake."""
    config = following(run, shards, protocols, "protocols=[knn]")
    jobs = [*evaluation_jobs(run, config), *baseline_jobs([config], run.parent)]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for one in [pool.submit(job) for job in jobs for _ in range(2)]:
            one.result()
    assert all(job.done() for job in jobs)
    assert [r.init for r in gather([run])[0]] == ["slidr", "random"]
    left = {p.name for folder in (run / "evaluation", run.parent / "baselines") for p in folder.rglob("*.*")}
    pictures = {"knn-all-slidr.jpg", "knn-all-random.jpg"}
    assert left == pictures | {
        "config.yaml",
        "run.yaml",
        "results.json",
        "results.json.lock",
        "results.json.random.lock",
    }


# ---- what goes wrong


def test_failure_leaves_its_reason_and_success_takes_it_away(run: Path, shards: str, protocols: str) -> None:
    config = following(run, shards, protocols, "protocols=[knn]")
    (job,) = evaluation_jobs(run, config)
    away = run / "away"
    (run / "checkpoints").rename(away)
    with pytest.raises(CheckpointError):
        job()
    assert (read_error(job.folder) or "").startswith("CheckpointError: ")
    assert "Traceback" in (job.folder / "error.txt").read_text()
    away.rename(run / "checkpoints")
    job()
    assert read_error(job.folder) is None
    gone = dataclasses.replace(config, data=dataclasses.replace(config.data, shards=str(run / "nothing")))
    with pytest.raises(ShardError, match="holds no finished shard set"):
        baseline_jobs([gone], run.parent)


def test_downstream_file_that_is_not_there_is_named(run: Path, shards: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        evaluation_jobs(run, following(run, shards, str(tmp_path / "absent.yaml")))


def test_damaged_selection_is_named(run: Path) -> None:
    folder = run / "selection"
    folder.mkdir()
    (folder / "selection.json").write_text("{")
    with pytest.raises(ConfigError, match="not the outcome of a selection"):
        read_selection(run)


def test_nothing_to_choose_from_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none to choose"):
        select_best(tmp_path, [], every=4, by="knn", settings="")
    assert Selection(step=1, last="", by="knn", split="", scores={}, settings="").date == ""


def test_milestones_of_a_real_run_stay(toy_set: str, world: World, tmp_path: Path) -> None:
    kept = ("checkpoint.keep_every=2", "checkpoint.keep=1", "schedule.steps=5")
    pretrain_here(tmp_path / "run", toy_set, *UNCACHED, *kept)
    assert [step_of(c) for c in list_checkpoints(tmp_path / "run")] == [5, 4, 2]


def test_job_is_plain(run: Path) -> None:
    job = EvaluationJob(run_dir=str(run), name="x", settings="")
    assert not job.done()
    assert job.folder == run / "evaluation" / "x"
