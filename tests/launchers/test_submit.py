"""What is queued, with what, and what is not queued again; what is frozen; what the dry check refuses.

SLURM itself is a fake here; tests/slurm/test_submitit.py has the real one.
"""

from __future__ import annotations

import json
import os
import pickle
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from common.file_lock import FileLock
from configs.dump import dump
from configs.load import ConfigError
from configs.schema import PRETRAIN_CHOICES, FollowConfig, PretrainConfig, ResourcesConfig, SlurmConfig
from engine.checkpoint import CheckpointConfig
from engine.errors import CheckpointError, RunLockedError
from engine.run_lock import RunLock
from launchers import cancel, requeue
from launchers.cli import main as tandem
from launchers.cluster import freeze, submission
from launchers.cluster.freeze import PACKAGES, REPOSITORY, _all_files, freeze_code, freeze_run
from launchers.cluster.plan_submission import Point, SubmissionPlan, SubmitRequest, with_first_stages
from launchers.cluster.queues import AT_ONCE, After, LocalQueue, Queue, own_variables_only
from launchers.cluster.slurm_queue import sbatch_parameters
from launchers.cluster.submission import submit
from launchers.cluster.work import FollowJob, PretrainJob, Work
from launchers.runs import attempts, slurm
from launchers.runs.job_record import Jobs, read_jobs, write_jobs
from launchers.runs.slurm import JobInfo, SlurmError
from launchers.training.train import load_run
from tests.helpers.pretrain_run import CONFIGS, SMALL, STREET, UNCACHED, arguments
from tests.helpers.run_folder import run_config, write_toy_run

DOWNSTREAM = CONFIGS.parent / "downstream" / "street.yaml"
ELEMENTS = {"street-linear-probe-knn", "street-finetune-1-frame"}


@dataclass
class FakeQueue(Queue):
    """Remembers what was queued; ids are 1_0, 1_1, 2_0, ..."""

    cluster: str | None = "fake"
    arrays: list[tuple[str, list[str], After]] = field(default_factory=list)
    works: dict[str, Work] = field(default_factory=dict)

    def submit(self, works: Sequence[Work], *, name: str, after: After = AT_ONCE) -> list[str]:
        ids = [f"{len(self.arrays) + 1}_{number}" for number in range(len(works))]
        self.works |= dict(zip(ids, works, strict=True))
        self.arrays.append((name, ids, after))
        return ids

    def named(self, name: str) -> tuple[list[str], After]:
        (found,) = [(ids, after) for known, ids, after in self.arrays if known == name]
        return found


class FakeSlurm:
    """States of jobs, set by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.states: dict[str, str] = {}
        self.cancelled: list[str] = []
        self.signals: list[tuple[str, str]] = []
        self.queues: list[FakeQueue] = []
        self.logs = tmp_path / "logs"
        monkeypatch.setattr(slurm, "available", lambda: True)
        monkeypatch.setattr(slurm, "partitions", lambda: ("main", "gpu"))
        monkeypatch.setattr(slurm, "accounts", lambda: None)
        monkeypatch.setattr(slurm, "queue", self.queue)
        monkeypatch.setattr(slurm, "cancel", lambda ids: self.cancelled.extend(ids))
        monkeypatch.setattr(slurm, "send_signal", lambda job, name: self.signals.append((job, name)))
        monkeypatch.setattr(submission, "new_queue", self.new)

    def queue(self, ids: Iterable[str]) -> dict[str, JobInfo]:
        return {
            job: JobInfo(id=job, state=self.states[job], reason="None", nodes="", time_left="")
            for job in ids
            if job in self.states
        }

    def new(self, order: SubmitRequest, code: object) -> FakeQueue:
        self.queues.append(FakeQueue(logs=self.logs))
        return self.queues[-1]

    @property
    def last(self) -> FakeQueue:
        return self.queues[-1]

    def all_are(self, state: str) -> None:
        self.states |= dict.fromkeys(self.last.works, state)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(monkeypatch, tmp_path)


def point(run_dir: Path, toy_set: str, **changes: Any) -> Point:
    follow = FollowConfig(configs=(str(DOWNSTREAM),))
    return Point(config=replace(run_config(run_dir, toy_set), **({"evaluate": follow} | changes)))


def order(root: Path, *points: Point, **changes: Any) -> SubmitRequest:
    fields: dict[str, Any] = {"cluster": SlurmConfig(), "where": "slurm", "check": False} | changes
    return SubmitRequest(points=points, root=root, **fields)


def finish(one: Point) -> None:
    """As if the run had been trained."""
    write_toy_run(one.run_dir, one.config.data.shards, records=one.config)
    attempts.begin(one.run_dir, 1).end("finished", step=12)


# ---- what is queued


def test_a_second_stage_waits_for_its_first_one(fake: FakeSlurm, tmp_path: Path, toy_set: str) -> None:
    overrides = [f"run_dir={tmp_path / 'run'}", f"data.shards={toy_set}"]
    asked = Point(config=load_run(str(CONFIGS / "pixel_to_point_street.yaml"), overrides))
    first, second = with_first_stages([asked])
    submit(order(tmp_path / "run", first, second, evaluate=False))
    (_, (one,), at_once), (_, (two,), after) = fake.last.arrays
    assert (at_once, after) == (AT_ONCE, After(succeeded=(one,)))
    jobs = [read_jobs(p.run_dir) for p in (first, second)]
    assert [job.pretrain if job is not None else None for job in jobs] == [one, two]
    # The first one is running, the second was cancelled: it waits for the job that is there.
    fake.states |= {one: "RUNNING", two: "CANCELLED"}
    submit(order(tmp_path / "run", first, second, evaluate=False))
    assert [after for _, _, after in fake.last.arrays] == [After(succeeded=(one,))]
    # The first one is done: nothing to wait for.
    fake.states = {}
    finish(first)
    submit(order(tmp_path / "run", first, second, evaluate=False))
    assert [(len(ids), after) for _, ids, after in fake.last.arrays] == [(1, AT_ONCE)]
    # ... and asked for with other settings it is not taken for the one that is there.
    other = Point(config=load_run(str(CONFIGS / "pixel_to_point_street.yaml"), [*overrides, "seed=5"]))
    with pytest.raises(ConfigError, match=r"(?s)finished first stage with other settings:.*seed: 0 in the run, 5 now"):
        submit(order(tmp_path / "run", *with_first_stages([other]), evaluate=False))


def test_evaluations_wait_for_their_own_run_and_the_report_for_all(
    fake: FakeSlurm, tmp_path: Path, toy_set: str
) -> None:
    root = tmp_path / "sweep"
    runs = [point(root / name, toy_set) for name in ("a", "b")]
    submit(order(root, *runs))
    queue = fake.last
    assert [name for name, _, _ in queue.arrays] == [
        "sweep",
        "a-evaluate",
        "b-evaluate",
        "sweep-random",
        "sweep-report",
    ]
    assert queue.named("sweep") == (["1_0", "1_1"], After())
    assert queue.named("a-evaluate") == (["2_0", "2_1"], After(succeeded=("1_0",)))
    assert queue.named("b-evaluate") == (["3_0", "3_1"], After(succeeded=("1_1",)))
    assert queue.named("sweep-random") == (["4_0", "4_1"], After())  # the same rows serve both runs
    assert queue.named("sweep-report") == (["5_0"], After(ended=("2", "3", "4", "1")))
    jobs = read_jobs(root / "b")
    assert jobs is not None
    assert (jobs.pretrain, jobs.report, jobs.cluster) == ("1_1", "5_0", "fake")
    assert set(jobs.evaluate) == ELEMENTS
    assert set(jobs.evaluate.values()) == {"3_0", "3_1"}
    assert jobs.baselines == read_jobs(root / "a").baselines  # type: ignore[union-attr]
    assert set(jobs.baselines.values()) == {"4_0", "4_1"}


def test_jobs_can_travel(fake: FakeSlurm, tmp_path: Path, toy_set: str) -> None:
    submit(order(tmp_path, point(tmp_path / "a", toy_set)))
    for work in fake.last.works.values():
        assert pickle.loads(pickle.dumps(work)) == work
        assert len(pickle.dumps(work)) < 10_000


def test_submitted_again_while_queued_nothing_happens(fake: FakeSlurm, tmp_path: Path, toy_set: str) -> None:
    run = point(tmp_path / "a", toy_set)
    submit(order(tmp_path, run))
    fake.all_are("PENDING")
    submit(order(tmp_path, run))
    assert fake.last.arrays == []
    assert fake.cancelled == []


def test_two_submissions_at_once_queue_nothing_twice(
    fake: FakeSlurm, tmp_path: Path, toy_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plan = point(tmp_path / "a", toy_set), submission.plan_submission

    def overtaken(request: SubmitRequest) -> SubmissionPlan:
        made = plan(request)
        write_jobs(tmp_path / "a", Jobs(pretrain="7"))
        return made

    with monkeypatch.context() as patched:
        patched.setattr(submission, "plan_submission", overtaken)
        with pytest.raises(RunLockedError, match="have been queued by another submission meanwhile"):
            submit(order(tmp_path, run))
    with FileLock(tmp_path / "a" / "jobs.lock") as lock:
        assert lock.take()
        with pytest.raises(RunLockedError, match=rf"being queued by process {os.getpid()} on"):
            submit(order(tmp_path, run))
    assert fake.queues == []


def test_what_is_finished_is_not_run_again(
    fake: FakeSlurm, tmp_path: Path, toy_set: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done, failed = point(tmp_path / "done", toy_set), point(tmp_path / "failed", toy_set)
    submit(order(tmp_path, done, failed))
    finish(done)
    fake.all_are("FAILED")
    submit(order(tmp_path, done, failed))
    assert "done: finished before" in capsys.readouterr().out
    queue = fake.last
    assert [Path(w.run_dir).name for w in queue.works.values() if isinstance(w, PretrainJob)] == ["failed"]
    assert queue.named("done-evaluate")[1] == After()  # nothing to wait for
    assert queue.named("failed-evaluate")[1] == After(succeeded=("1_0",))
    assert read_jobs(tmp_path / "done").evaluate != {}  # type: ignore[union-attr]


def test_elements_with_results_are_left_alone(
    fake: FakeSlurm, tmp_path: Path, toy_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launchers.cluster.evaluation_jobs import BaselineJob, EvaluationJob

    run = point(tmp_path / "a", toy_set)
    finish(run)
    monkeypatch.setattr(EvaluationJob, "done", lambda self: "finetune" in self.name)
    monkeypatch.setattr(BaselineJob, "done", lambda self: True)
    submit(order(tmp_path, run))
    assert [name for name, _, _ in fake.last.arrays] == ["a-evaluate", f"{tmp_path.name}-report"]
    assert list(read_jobs(tmp_path / "a").evaluate) == ["street-linear-probe-knn"]  # type: ignore[union-attr]
    # Results of an earlier checkpoint do not count once the run goes on.
    longer = replace(run, config=replace(run.config, schedule=replace(run.config.schedule, epochs=99)))
    submit(order(tmp_path, longer))
    assert len(fake.last.named("a-evaluate")[0]) == 2


def test_choosing_a_checkpoint_comes_between(fake: FakeSlurm, tmp_path: Path, toy_set: str) -> None:
    follow = FollowConfig(configs=(str(DOWNSTREAM),), every=10)
    run = point(tmp_path / "a", toy_set, evaluate=follow, checkpoint=CheckpointConfig(keep_every=10))
    submit(order(tmp_path, run))
    (chosen,), after = fake.last.named("a-select")
    assert after == After(succeeded=("1_0",))
    assert fake.last.named("a-evaluate")[1] == After(succeeded=(chosen,))
    assert read_jobs(run.run_dir).select == chosen  # type: ignore[union-attr]


def test_baselines_of_a_neighbour_are_waited_for(fake: FakeSlurm, tmp_path: Path, toy_set: str) -> None:
    submit(order(tmp_path / "a", point(tmp_path / "a", toy_set)))
    ids, _ = fake.last.named("a-random")
    fake.all_are("PENDING")
    submit(order(tmp_path / "b", point(tmp_path / "b", toy_set)))
    assert "b-random" not in [name for name, _, _ in fake.last.arrays]
    assert read_jobs(tmp_path / "b").baselines == read_jobs(tmp_path / "a").baselines  # type: ignore[union-attr]
    assert ids[0].split("_")[0] in fake.last.named("b-report")[1].ended


def test_no_evaluations_no_report(fake: FakeSlurm, tmp_path: Path, toy_set: str) -> None:
    submit(order(tmp_path, point(tmp_path / "a", toy_set, evaluate=FollowConfig())))
    submit(order(tmp_path, point(tmp_path / "b", toy_set), evaluate=False))
    assert [len(queue.arrays) for queue in fake.queues] == [1, 1]


def test_only_what_follows(fake: FakeSlurm, tmp_path: Path, toy_set: str) -> None:
    run = point(tmp_path / "a", toy_set)
    finish(run)
    assert tandem(["submit", "--follow", str(run.run_dir), f"evaluate.configs=[{DOWNSTREAM}]"]) == 0
    assert [name for name, _, _ in fake.last.arrays] == ["a-evaluate", "a-random", "a-report"]
    assert fake.last.named("a-evaluate")[1] == After()
    assert tandem(["submit", "--follow", str(run.run_dir), "--after", "77", "evaluate.fractions=[1,2]"]) == 0
    ids, after = fake.last.named("a-evaluate")
    assert (len(ids), after) == (3, After(succeeded=("77",)))


def test_dry_run_queues_and_writes_nothing(
    fake: FakeSlurm, tmp_path: Path, toy_set: str, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(order(tmp_path / "s", point(tmp_path / "s" / "a", toy_set)), dry_run=True)
    out = capsys.readouterr().out
    assert "would train 1 of 1 runs" in out
    assert "then 2 evaluations" in out
    assert fake.queues == []
    assert list((tmp_path / "s" / "a").iterdir()) == []


# ---- what is asked of sbatch


def test_what_sbatch_is_told(tmp_path: Path) -> None:
    cluster = SlurmConfig(
        partition="gpu",
        account="lab",
        nodes=2,
        gpus_per_node=4,
        cpus_per_task=8,
        mem_gb=1.5,
        time_min=100,
        signal_s=60,
        array_parallelism=3,
        setup=("module load cuda",),
        sbatch={"constraint": "a100", "exclusive": "true"},
        evaluate=ResourcesConfig(time_min=1),
    )
    train = PretrainJob(run_dir="/r/it's a run", config="c", folder="/")
    told = sbatch_parameters(cluster, [train], name="x y", after=After(), code=Path("/code"))
    assert (told["nodes"], told["ntasks_per_node"], told["gpus_per_node"], told["mem"]) == (2, 4, 4, "1536M")
    assert (told["time"], told["signal_delay_s"], told["array_parallelism"]) == (100, 60, 3)
    assert (told["job_name"], told["partition"], told["account"]) == ("tandem-x-y", "gpu", "lab")
    assert told["additional_parameters"] == {
        "requeue": True,
        "kill-on-invalid-dep": "yes",
        "constraint": "a100",
        "exclusive": True,
    }
    assert told["setup"][0] == "module load cuda"
    assert not {"dependency", "qos"} & set(told)
    follow = FollowJob(work=train, folder="/")
    told = sbatch_parameters(cluster, [follow] * 9, name="", after=After(succeeded=("1_0",), ended=("2",)), code=Path())
    assert (told["nodes"], told["ntasks_per_node"], told["array_parallelism"]) == (1, 1, 9)
    assert told["signal_delay_s"] == 30  # half of a short limit, not more than all of it
    assert (told["partition"], told["dependency"]) == ("gpu", "afterok:1_0,afterany:2")
    assert told["setup"] == ["module load cuda"]
    assert "gpus_per_node" not in told


@pytest.mark.parametrize(
    "name", ["plain", "it's", 'say "x"', "a b", "$(touch hacked)", "`id`", "ü☃", "a;b", "new\nline"]
)
def test_the_batch_script_hands_on_run_and_code(tmp_path: Path, name: str) -> None:
    """The lines are run by a real shell; a stand-in for `launchers.cluster.after_step` notes what it got."""
    package = tmp_path / "code" / "launchers" / "cluster"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "after_step.py").write_text("import json, sys; json.dump(sys.argv[1:], open('got', 'w'))")
    works = [PretrainJob(run_dir=f"/runs/{run}", config="", folder="") for run in ("other", name)]
    lines = sbatch_parameters(SlurmConfig(), works, name=name, after=After(), code=tmp_path / "code")["setup"]
    script = "\n".join([*lines, "python3 -c 'raise SystemExit(75)'"])
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 75
    assert json.loads((tmp_path / "code" / "got").read_text()) == ["75", f"/runs/{name}"]
    assert not (tmp_path / "hacked").exists()


def test_variables_of_a_surrounding_job_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is submitted from inside a job must not take that job's size or rank for its own."""
    outside = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "RANK": "3", "SUBMITIT_EXECUTOR": "slurm"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "lab", "PATH_OF_MINE": "x"}
    for name, value in {**outside, **kept, "SBATCH_PARTITION": "old"}.items():
        monkeypatch.setenv(name, value)
    with own_variables_only(hide={"SBATCH_PARTITION"}):
        assert not (set(outside) | {"SBATCH_PARTITION"}) & set(os.environ)
        assert kept.items() <= os.environ.items()
    assert outside.items() <= os.environ.items()
    assert os.environ["SBATCH_PARTITION"] == "old"


@pytest.mark.parametrize(
    ("outside", "gpus_per_node", "seen"),
    [("2,3", 2, "2,3"), ("2,3", 0, "2,3"), ("", 0, ""), (None, 2, "0,1"), (None, 0, "None")],
)
def test_local_jobs_see_the_gpus_that_were_chosen_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outside: str | None, gpus_per_node: int, seen: str
) -> None:
    printed: list[str] = []

    class Executor:
        """Starts the job's Python with the variable that submitit sets (findings/submitit_local_gpus.sh)."""

        def __init__(self, folder: Path, python: str) -> None:
            self.python, self.gpus = python, ""

        def update_parameters(self, *, gpus_per_node: int, **others: Any) -> None:
            self.gpus = ",".join(map(str, range(gpus_per_node)))

        def submit(self, work: Work) -> None:
            command = [*shlex.split(self.python), "-c", "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))"]
            env = {**os.environ, "CUDA_VISIBLE_DEVICES": self.gpus}
            printed.append(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)

    monkeypatch.setattr("submitit.LocalExecutor", Executor)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if outside is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", outside)
    job = PretrainJob(run_dir=str(tmp_path), config="", folder="")
    queue = LocalQueue(config=SlurmConfig(name="here", gpus_per_node=gpus_per_node), logs=tmp_path, code=tmp_path)
    queue._start(job)
    assert printed == [f"{seen}\n"]


def test_slurm_settings_out_of_range() -> None:
    for wrong, message in (
        ({"nodes": 0}, "nodes: got 0, expected at least 1"),
        ({"signal_s": 600, "time_min": 10}, r"signal_s: got 600, expected below 600 \(time_min, in seconds\)"),
        ({"evaluate": ResourcesConfig(tasks_per_node=2)}, "an evaluation runs in one process"),
        ({"array_parallelism": 0}, "array_parallelism: got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            SlurmConfig(**wrong)


# ---- freezing


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small repository with the packages' names."""
    root = tmp_path / "checkout"
    for package in freeze.PACKAGES:
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").write_text(f"# {package}\n")
    (root / ".gitignore").write_text("*.log\n")
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for arguments_ in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *arguments_], cwd=root, check=True)
    return root


def test_frozen_code_holds_edits_and_new_files(checkout: Path, tmp_path: Path) -> None:
    clean = freeze_code(tmp_path / "root", repository=checkout)
    assert (clean.diff, clean.untracked) == ("", ())
    assert clean.commit is not None
    assert freeze_code(tmp_path / "root", repository=checkout) == clean
    (checkout / "engine" / "__init__.py").write_text("edited = True\n")
    (checkout / "engine" / "new.py").write_bytes(b"new = '\xff'\n")
    (checkout / "engine" / "noise.log").write_text("noise")
    (checkout / "data" / "__init__.py").unlink()
    edited = freeze_code(tmp_path / "root", repository=checkout)
    assert edited.folder != clean.folder
    assert edited.untracked == ("engine/new.py",)
    assert "+edited = True" in edited.diff
    assert (edited.folder / "engine" / "__init__.py").read_text() == "edited = True\n"
    assert (edited.folder / "engine" / "new.py").read_bytes() == b"new = '\xff'\n"
    assert not (edited.folder / "engine" / "noise.log").exists()
    assert not (edited.folder / "data" / "__init__.py").exists()
    assert (clean.folder / "engine" / "__init__.py").read_text() == "# engine\n"
    assert sorted(p.name for p in (tmp_path / "root" / "code").iterdir()) == sorted(
        [clean.folder.name, edited.folder.name]
    )


def test_code_outside_a_checkout_is_frozen_too(checkout: Path, tmp_path: Path) -> None:
    (checkout / ".git").rename(tmp_path / "gone")
    state = freeze_code(tmp_path / "root", repository=checkout)
    assert state.commit is None
    assert (state.folder / "models" / "__init__.py").read_text() == "# models\n"


def test_a_runs_folder_says_what_was_asked_for(checkout: Path, tmp_path: Path) -> None:
    code = freeze_code(tmp_path / "root", repository=checkout)
    config = freeze_run(tmp_path / "run", config_text="a: 1\n", overrides=["seed=1"], cluster_text="b: 2\n", code=code)
    folder = tmp_path / "run" / "submission"
    assert config == folder / "config.yaml"
    assert config.read_text() == "a: 1\n"
    assert (folder / "overrides.txt").read_text() == "seed=1\n"
    assert (folder / "cluster.yaml").read_text() == "b: 2\n"
    commit = json.loads((folder / "commit.json").read_text())
    assert (commit["commit"], commit["dirty"], commit["code"]) == (code.commit, False, str(code.folder))


def test_a_folder_that_cannot_be_written_is_named(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="the code cannot be copied there"):
        freeze_code(tmp_path / "file", repository=checkout)


# ---- refusals


def test_missing_shards(fake: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem(["submit", *arguments(tmp_path / "run", str(tmp_path / "nothing"))]) == 1
    assert f"{tmp_path}/nothing" in capsys.readouterr().err
    assert fake.queues == []


def test_a_batch_that_fails(fake: FakeSlurm, tmp_path: Path, toy_set: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "method.teacher.weights=moco_v2:/no/such/file"
    words = arguments(tmp_path / "run", toy_set, wrong, "method.teacher.name=resnet18", "method.teacher.cache=false")
    assert tandem(["submit", *words]) in (1, 2)
    assert "/no/such/file" in capsys.readouterr().err
    assert fake.queues == []


def test_a_good_batch_passes_at_toy_width(
    fake: FakeSlurm, tmp_path: Path, toy_set: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(tmp_path / "run", toy_set, *UNCACHED, "method.backbone.preset=res16unet34c")
    assert tandem(["submit", *words, "evaluate.configs=[]"]) == 0
    assert "one batch at toy width" in capsys.readouterr().out
    assert len(fake.queues) == 1


def test_unknown_partition_and_account(
    fake: FakeSlurm, tmp_path: Path, toy_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = point(tmp_path / "a", toy_set)
    with pytest.raises(ConfigError, match="'no' is no partition here; expected one of main, gpu"):
        submit(order(tmp_path, run, cluster=SlurmConfig(partition="no")))
    with pytest.raises(ConfigError, match="partition: 'no' is no partition"):
        submit(order(tmp_path, run, cluster=SlurmConfig(evaluate=ResourcesConfig(partition="no"))))
    monkeypatch.setattr(slurm, "accounts", lambda: ("lab",))
    with pytest.raises(ConfigError, match="'mine' is none of your accounts; expected one of lab"):
        submit(order(tmp_path, run, cluster=SlurmConfig(account="mine")))
    assert fake.queues == []


def test_no_slurm_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy_set: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm, "available", lambda: False)
    assert tandem(["submit", *arguments(tmp_path / "run", toy_set)]) == 1
    assert "run on this one with --local" in capsys.readouterr().err


def test_a_folder_that_is_a_file(fake: FakeSlurm, tmp_path: Path, toy_set: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/a cannot be written: .*; choose another"):
        submit(order(tmp_path, point(tmp_path / "file" / "a", toy_set)))


@pytest.mark.parametrize("name", ["100%j", "it's", 'a"b', "back\\slash", "new\nline"])
def test_folders_that_slurm_would_misread(fake: FakeSlurm, tmp_path: Path, toy_set: str, name: str) -> None:
    with pytest.raises(ConfigError, match="SLURM cannot write logs below a folder with"):
        submit(order(tmp_path / name, point(tmp_path / name / "a", toy_set)))


def test_a_run_of_a_sweep_in_a_folder_that_no_batch_script_can_name(
    fake: FakeSlurm, tmp_path: Path, toy_set: str
) -> None:
    with pytest.raises(ConfigError, match=r"batch scripts cannot work with a folder with '\\n' in its path"):
        submit(order(tmp_path, point(tmp_path / "new\nline", toy_set)))


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        (SlurmConfig(sbatch={"job-name": "a/b"}), "cluster.sbatch.job-name: got 'a/b', expected letters"),
        (
            SlurmConfig(sbatch={"comment": "two\nlines"}),
            r"cluster.sbatch.comment: got 'two\\nlines', expected one line",
        ),
        (SlurmConfig(account="lab\n#SBATCH -N 9"), "cluster.account: got .* expected one line"),
    ],
)
def test_options_that_would_spoil_the_batch_script(
    fake: FakeSlurm, tmp_path: Path, toy_set: str, cluster: SlurmConfig, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        submit(order(tmp_path, point(tmp_path / "a", toy_set), cluster=cluster))
    assert fake.queues == []


def test_a_run_that_is_being_trained(fake: FakeSlurm, tmp_path: Path, toy_set: str) -> None:
    run = point(tmp_path / "a", toy_set)
    with RunLock(run.run_dir, wait_s=0.0), pytest.raises(ConfigError, match="is being trained by process"):
        submit(order(tmp_path, run))


def test_two_runs_in_one_folder(fake: FakeSlurm, tmp_path: Path, toy_set: str) -> None:
    run = point(tmp_path / "a", toy_set)
    with pytest.raises(ConfigError, match="is requested 2 times"):
        submit(order(tmp_path, run, run))


def test_a_finished_run_with_other_settings_is_not_overwritten(fake: FakeSlurm, tmp_path: Path, toy_set: str) -> None:
    run = point(tmp_path / "a", toy_set)
    finish(run)
    other = replace(run, config=replace(run.config, optim=replace(run.config.optim, lr=0.125)))
    with pytest.raises(ConfigError, match=r"a finished run with other settings:\s+optim.lr: \S+ in the run, 0.125"):
        submit(order(tmp_path, other))
    longer = replace(run.config.schedule, epochs=99)
    other = replace(run, config=replace(run.config, schedule=longer, seed=5))
    with pytest.raises(ConfigError, match=r"with other settings:\s+seed: 0 in the run, 5 now\nundo"):
        submit(order(tmp_path, other))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no config given"),
        (["--after", "3"], "--after goes with --follow"),
        (["--follow", "/no/run"], "/no/run: no config.yaml in it"),
        ([str(STREET), "--cluster", "configs/cluster/exampel.yaml"], "no such config file"),
        ([str(STREET), "cluster.nodez=2"], "nodez: unknown name; did you mean 'nodes'"),
    ],
)
def test_mistakes_on_the_command_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem(["submit", *words]) == 2
    assert message in capsys.readouterr().err


# ---- jobs.json, slurm.py


def test_jobs_file(tmp_path: Path) -> None:
    assert read_jobs(tmp_path) is None
    jobs = Jobs(pretrain="1_0", evaluate={"a": "2_0"}, baselines={"k": "3"}, report="4", logs="/l", cluster="c")
    write_jobs(tmp_path, jobs)
    assert read_jobs(tmp_path) == jobs
    assert list(jobs.ids()) == ["1_0", "2_0", "3", "4"]
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.json"]
    for text in ("{", "[]", '{"unknown": 1}'):
        (tmp_path / "jobs.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"jobs\.json: (expected|not readable)"):
            read_jobs(tmp_path)


def test_squeue_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def squeue(*command: str, timeout_s: float = 0) -> str:
        asked.append(command)
        return "7_0|RUNNING|n[1-2]|1:02|None\n7_1|PENDING||2:00|JobHeldUser|x\n9|COMPLETED|n1|INVALID|None\n"

    monkeypatch.setattr(slurm, "run_command", squeue)
    found = slurm.queue(["7_0", "9", "7_0"])
    assert asked[0][-1] == "7,9"
    assert set(found) == {"7_0", "9"}
    assert found["7_0"] == JobInfo(id="7_0", state="RUNNING", reason="None", nodes="n[1-2]", time_left="1:02")
    assert (found["7_0"].active, found["9"].active) == (True, False)
    assert slurm.queue(["7"])["7_1"].reason == "JobHeldUser|x"
    assert slurm.queue([]) == {}
    with pytest.raises(SlurmError, match="'7; rm' is no job id"):
        slurm.queue(["7; rm"])


def test_jobs_that_slurm_has_forgotten_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def squeue(*command: str, timeout_s: float = 0) -> str:
        raise SlurmError("slurm_load_jobs error: Invalid job id specified")

    monkeypatch.setattr(slurm, "run_command", squeue)
    assert slurm.queue(["7"]) == {}


def test_commands_that_fail_say_so(tmp_path: Path) -> None:
    with pytest.raises(SlurmError, match="no-such-command: no such command"):
        slurm.run_command("no-such-command")
    with pytest.raises(SlurmError, match=r"failed with code 3: why not"):
        slurm.run_command("bash", "-c", "echo why not >&2; exit 3")
    with pytest.raises(SlurmError, match="gave no answer in 0 s"):
        slurm.run_command("sleep", "5", timeout_s=0.1)


@pytest.mark.parametrize(
    ("env", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "12"}, "12"),
        ({"SLURM_JOB_ID": "13", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "1"}, "12_1"),
    ],
)
def test_own_job(env: dict[str, str], job: str | None) -> None:
    assert slurm.own_job(env) == job


# ---- cancel, requeue


def test_cancel_leaves_what_other_runs_share(fake: FakeSlurm, tmp_path: Path, toy_set: str) -> None:
    submit(order(tmp_path, point(tmp_path / "a", toy_set), point(tmp_path / "b", toy_set)))
    fake.all_are("RUNNING")
    fake.states["1_0"] = "COMPLETED"
    assert tandem(["cancel", str(tmp_path / "a")]) == 0
    assert fake.cancelled == ["2_0", "2_1"]
    fake.cancelled.clear()
    assert cancel.main([str(tmp_path)]) == 0
    assert fake.cancelled == ["1_1", "2_0", "2_1", "3_0", "3_1", "4_0", "4_1", "5_0"]


def test_requeue(fake: FakeSlurm, tmp_path: Path, toy_set: str, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {name: point(tmp_path / name, toy_set) for name in ("done", "failed", "runs", "waits")}
    submit(order(tmp_path, *runs.values()))
    ids = {name: read_jobs(run.run_dir).pretrain or "" for name, run in runs.items()}  # type: ignore[union-attr]
    finish(runs["done"])
    attempts.begin(runs["failed"].run_dir, 1).end("failed", reason="x")
    fake.all_are("CANCELLED")
    fake.states |= {ids["runs"]: "RUNNING", ids["waits"]: "PENDING", ids["done"]: "COMPLETED", ids["failed"]: "FAILED"}
    (fake.logs / "x").mkdir(parents=True)
    assert requeue.main([str(tmp_path), "--no-check"]) == 0
    assert fake.signals == [(ids["runs"], "USR2")]
    again = [Path(w.run_dir).name for w in fake.last.works.values() if isinstance(w, PretrainJob)]
    assert again == ["failed"]
    out = capsys.readouterr().out
    assert "done: finished" in out
    assert f"waits: {ids['waits']} is pending already" in out


def test_runs_that_were_not_submitted_cannot_be_requeued(fake: FakeSlurm, tmp_path: Path, toy_set: str) -> None:
    write_toy_run(tmp_path / "a", toy_set)
    with pytest.raises(ConfigError, match="was not queued by tandem submit or sweep"):
        requeue.main([str(tmp_path / "a")])
    with pytest.raises(ConfigError, match="no runs in it"):
        cancel.main([str(tmp_path / "a" / "checkpoints")])


# ---- without SLURM


@pytest.mark.slow
def test_local_run_from_frozen_code_to_the_report(tmp_path: Path, toy_set: str) -> None:
    """Two processes that meet by themselves, an evaluation, the report; again: nothing to do."""
    root = tmp_path / "a run"
    words = ["submit", str(STREET), f"run_dir={root}", "--local", "cluster.tasks_per_node=2", *_quick(toy_set)]
    first = _tandem(words)
    assert first.returncode == 0, first.stdout
    (attempt,) = attempts.read_attempts(root)
    assert (attempt.status, attempt.world_size) == ("finished", 2)
    assert {path.name for path in (root / "evaluation").iterdir()} == {"street-knn"}
    environment = json.loads((root / "environment.json").read_text())
    assert environment["git"]["code"].startswith(str(root / "code"))
    assert (root / "report.md").is_file()
    second = _tandem(words)
    assert "a run: finished before" in second.stdout
    assert "nothing left to do" in second.stdout
    assert len(attempts.read_attempts(root)) == 1


@pytest.mark.slow
def test_local_run_that_fails_is_not_evaluated(tmp_path: Path, toy_set: str) -> None:
    words = ["submit", str(STREET), f"run_dir={tmp_path / 'run'}", "--local", "--no-check", *_quick(toy_set)]
    done = _tandem([*words, "engine.precision=fp16"])
    assert done.returncode == 1
    assert "run: failed or stopped; see" in done.stdout
    assert "run-evaluate: left out, what it depends on has failed" in done.stdout
    (attempt,) = attempts.read_attempts(tmp_path / "run")
    assert attempt.status == "failed"
    assert "fp16 needs a GPU" in (attempt.reason or "")
    assert not (tmp_path / "run" / "evaluation").exists()


@pytest.mark.slow
def test_debug_runs_in_one_process(tmp_path: Path, toy_set: str) -> None:
    done = _tandem(["submit", str(STREET), f"run_dir={tmp_path / 'run'}", "--debug", *_quick(toy_set)])
    assert done.returncode == 0, done.stdout
    assert read_jobs(tmp_path / "run") == Jobs(logs=str(tmp_path / "run" / "logs"))
    assert (tmp_path / "run" / "submission" / "config.yaml").is_file()
    assert (tmp_path / "run" / "report.md").is_file()
    assert not (tmp_path / "run" / "code").exists()


QUICK = ("protocols=[knn]", "knn.bank_size=100", "calibration_sweeps=2", "voxels_per_sweep=50", "tune_sweeps=1")


def _quick(toy_set: str) -> list[str]:
    follow = [f"evaluate.configs=[{DOWNSTREAM}]", f"evaluate.overrides={json.dumps(QUICK)}"]
    return [f"data.shards={toy_set}", *SMALL, *UNCACHED, "schedule.steps=2", *follow]


def _tandem(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    import sys

    return subprocess.run(
        [sys.executable, "-m", "launchers.cli", *words],
        cwd=CONFIGS.parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=280,
        check=False,
    )


def test_a_config_that_was_frozen_loads_again(tmp_path: Path, toy_set: str) -> None:
    from configs.load import load

    run = point(tmp_path / "a", toy_set)
    path = tmp_path / "config.yaml"
    path.write_text(dump(run.config, choices=PRETRAIN_CHOICES))
    assert load(PretrainConfig, path, choices=PRETRAIN_CHOICES) == run.config


def test_code_that_is_no_checkout_is_frozen_whole() -> None:
    """Sources of kernels and their headers too: a job compiles what its machine has not yet."""
    done = subprocess.run(
        ["git", "ls-files", "-z", *PACKAGES], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    tracked = set(filter(None, done.stdout.split("\0")))
    assert tracked <= set(_all_files(REPOSITORY))
    assert {Path(name).suffix for name in tracked} >= {".py", ".c", ".cpp", ".h", ".yaml", ".j2"}
