from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from common.file_lock import FileLock
from configs.load import load
from configs.schema import EvaluateConfig, FollowConfig
from data.loading.fractions import read_list
from data.storage.manifest import load_manifest
from engine.checkpoint import newest_intact
from engine.downstream.common import ProgressMeter, Samples
from engine.downstream.features import SweepParts, extract_bank, score
from engine.downstream.protocols import PROTOCOLS
from engine.downstream.results import read_results, write_results
from engine.downstream.runner import Initialisation, Job, Measured, Protocol, segmentation_measured
from launchers.cli import main as tandem
from launchers.drawing.predictions import read_predictions
from launchers.evaluation import measure, networks
from launchers.training.restore import load_run_config
from tests.helpers.image_networks import teacher_config, write_checkpoint
from tests.helpers.run_folder import QUICK, run_config, write_toy_run
from tests.helpers.samples import write_toy_set
from tests.helpers.small_disk import small_disk

CONFIGS = Path(__file__).parents[2] / "configs" / "downstream"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_toy_set(tmp_path_factory.mktemp("set"), num_logs=6, frames_per_log=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards: str) -> Path:
    run = tmp_path_factory.mktemp("runs") / "slidr-seed0"
    write_toy_run(run, shards)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    copy = tmp_path / trained.name
    shutil.copytree(trained, copy)
    return copy


def yaml_of(tmp_path: Path, text: str = "") -> str:
    path = tmp_path / "protocols.yaml"
    path.write_text(text)
    return str(path)


def test_a_full_disk_is_told_before_anything_is_measured(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "load_manifest", lambda *_: pytest.fail("the work has begun"))
    with small_disk(tmp_path / "disk") as disk:
        disk.fill()
        file = disk.path / "results.json"
        assert tandem(["evaluate", str(run), yaml_of(tmp_path), f"results={file}", *QUICK]) == 1
        assert f"file error: {file}: No space left on device; free disk space" in capsys.readouterr().err
        assert not file.exists()


def test_all_protocols_from_checkpoint_to_results(run: Path, shards: str, tmp_path: Path, capsys: object) -> None:
    config = yaml_of(tmp_path)
    assert tandem(["evaluate", str(run), config, *QUICK]) == 0
    out = capsys.readouterr().out  # type: ignore[attr-defined]
    assert "linear probe" in out
    assert "fine-tuning" in out
    assert "1 frame" in out
    results = read_results(run / "results.json")
    assert [(r.init, r.protocol) for r in results] == [
        (init, protocol) for init in ("slidr", "random") for protocol in ("linear_probe", "knn", "finetune")
    ]
    first = results[0]
    assert first.teacher == "efficientnet_lite0 (random)"
    assert first.leak == "none"
    assert first.pretraining == "12 of 50 steps, seed 0"
    assert first.checkpoint[0].startswith("slidr-seed0/step_00000012 ")
    assert results[0].fingerprint == results[3].fingerprint
    manifest = load_manifest(shards)
    drawn = [read_list(run / "labelled" / f"toy-1-frame_run{seed}.txt", manifest) for seed in (0, 1)]
    train = manifest.indices("train")
    assert all(len(d) == 1 and d[0] in train for d in drawn)

    # Each leaves a picture of what it predicts for the test sweep in the middle; the report shows them.
    pictures, more = read_predictions([run], 6)
    assert more == 0
    assert list(pictures) == [
        f"{protocol}-{init}"
        for protocol in ("finetune-1-frame", "knn-all", "linear_probe-all")
        for init in ("random", "slidr")
    ]
    assert all(image.std() > 5 for image in pictures.values())
    assert tandem(["report", str(run), "--out", str(tmp_path / "report.html"), "--pictures", "0"]) == 0
    assert (tmp_path / "report.html").read_text().count('alt="true and predicted: ') == 6

    # A second call measures nothing again: the file stays as it is, dates and seconds included.
    before = (run / "results.json").read_text()
    assert tandem(["evaluate", str(run), config, *QUICK]) == 0
    assert (run / "results.json").read_text() == before


@pytest.mark.parametrize(
    "name", ["slidr_probe", "slidr_finetune_1pct", "nclr_finetune", "scalr_probe", "lima_finetune_1pct"]
)
def test_recipes_of_the_literature_run(name: str, run: Path) -> None:
    short = ("data.train_split=train", "fraction.every=2", "finetune.epochs=1", "finetune.batch_size=2", "device=cpu")
    assert tandem(["evaluate", str(run), name, *short, "random=false"]) == 0
    (result,) = read_results(run / "results.json")
    assert result.protocol == ("sweep_probe" if name.endswith("probe") else "finetune")
    assert result.labels == ("all" if name.endswith("probe") else "1 in 2 logs")


def test_a_further_protocol_is_one_entry_of_the_table(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def measure_majority(
        job: Job[SweepParts], init: Initialisation, names: Sequence[str], meter: ProgressMeter
    ) -> dict[str, Measured]:
        """Predicts the most frequent class of the train split everywhere."""
        calls.append(init.name)
        (name,) = names
        backbone, task, sizes = job.prepared(init, 0), job.task(), {"voxels_per_sweep": None, "seed": 0}
        train, test = (job.parts.read(Samples(i.tolist(), truth="labels")) for i in (job.splits.train, job.splits.test))
        most = int(extract_bank(backbone, train, task, **sizes).class_counts(task.num_classes).argmax())
        found = score(backbone, test, {name: lambda features: torch.full((len(features),), most)}, task)
        meter.advance(1, name)
        return {name: segmentation_measured(task, [found[name]] * len(job.section(name).seeds), [], scale=100)}

    majority = Protocol(
        title="most frequent class",
        remark="Nothing can be worse.",
        tower="backbone",
        metric="accuracy",
        truth="labels",
        section="knn",
        measure=measure_majority,
        work=lambda job, init, names: 1,
    )
    arguments = ["evaluate", str(run), yaml_of(tmp_path), *QUICK, "protocols=[majority,knn]"]
    assert tandem(arguments) == 2
    assert "expected some of linear_probe, knn" in capsys.readouterr().err
    monkeypatch.setitem(PROTOCOLS, "majority", majority)
    assert tandem(arguments) == 0
    out = capsys.readouterr().out
    assert "toy: most frequent class, labels: all" in out
    assert "Nothing can be worse." in out
    results = [r for r in read_results(run / "results.json") if r.protocol == "majority"]
    assert calls == [r.init for r in results] == ["slidr", "random"]
    assert all(r.metric == "accuracy" and 25 < r.mean <= 100 for r in results)
    assert results[0].values == results[1].values
    assert tandem(arguments) == 0  # known by now
    assert len(calls) == 2
    assert FollowConfig(select_by="majority").select_by == "majority"


def test_random_rows_are_shared_through_one_results_file(run: Path, tmp_path: Path) -> None:
    config, target = yaml_of(tmp_path), tmp_path / "all" / "results.json"
    other = tmp_path / "slidr-seed1"
    shutil.copytree(run, other)
    arguments = (config, *QUICK, "protocols=[knn]", f"results={target}")
    assert tandem(["evaluate", str(run), *arguments]) == 0
    dates = {r.init: r for r in read_results(target)}
    assert tandem(["evaluate", str(other), *arguments]) == 0
    results = read_results(target)
    assert [r.init for r in results] == ["slidr", "random", "slidr"]
    assert results[1] == dates["random"]


@pytest.mark.slow
def test_random_rows_are_measured_once_by_parallel_evaluations(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process measures them into the same file: this one waits, and takes what it then finds there."""
    results = tmp_path / "shared.json"
    config = load(EvaluateConfig, CONFIGS / "street.yaml", [*QUICK, "protocols=[knn]", f"results={results}"])
    elsewhere = tmp_path / "elsewhere.json"
    (theirs,) = measure.evaluate_random(load_run_config(newest_intact(run)), config, elsewhere)
    other = FileLock(results.with_name("shared.json.random.lock"))
    assert other.take()

    def while_it_waits(seconds: float) -> None:
        write_results(results, [theirs])
        other.release()

    monkeypatch.setattr(measure.time, "sleep", while_it_waits)
    answers = measure.evaluate_runs([run], config)
    assert "random initialisation" in caplog.text
    assert [r for r in answers if not r.pretrained] == [theirs]


def test_several_checkpoints_are_repetitions(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "slidr-seed1"
    shutil.copytree(run, other)
    config = load(EvaluateConfig, None, [*QUICK, "protocols=[knn]", "knn.seeds=[0,1]", "random=false"])
    results = measure.evaluate_runs([run, other], config)
    assert len(results) == 1
    assert [c.split("/")[0] for c in results[0].checkpoint] == ["slidr-seed0", "slidr-seed1"]
    assert results[0].pretraining == "12 of 50 steps, seeds 0, 0"


def test_pretrained_weights_arrive_and_random_ones_differ_by_seed_only(run: Path, shards: str) -> None:
    source = networks.open_source(run)
    loaded = networks.pretrained_network(source, "backbone").state_dict()
    objective = write_toy_run(run.parent / "again", shards)
    for name, value in objective.backbone.state_dict().items():
        torch.testing.assert_close(loaded[name], value)
    before = torch.get_rng_state()
    config = run_config(run, shards)
    one, same, other = (networks.random_network(config, "backbone", seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    name = next(n for n, v in one.items() if v.ndim > 1)
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.test_split=test"], "split 'test' is not in the set"),
        (["data.test_split=train"], "in both train and test"),
        (["fraction={kind: every_log, every: 99}"], "every 99th log"),
        (["device=cuda"], "device: got 'cuda'"),
        (["linear_probe.lrs=[0]"], "linear_probe.lrs"),
        (["data.shards=/nowhere"], "holds no finished shard set"),
    ],
)
def test_mistakes_are_answered_without_traceback(
    run: Path, tmp_path: Path, capsys: object, overrides: list[str], message: str
) -> None:
    if overrides == ["device=cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    quick = [q for q in QUICK if q.split("=")[0] != overrides[0].split("=")[0]]
    assert tandem(["evaluate", str(run), yaml_of(tmp_path), *quick, *overrides]) in (1, 2)
    assert message in capsys.readouterr().err  # type: ignore[attr-defined]


def test_unlabelled_set_is_refused(run: Path, tmp_path: Path, capsys: object) -> None:
    raw = write_toy_set(tmp_path / "raw", num_logs=4, frames_per_log=1, labels=False)
    assert tandem(["evaluate", str(run), yaml_of(tmp_path), *QUICK, f"data.shards={raw}"]) == 1
    assert "has no point labels" in capsys.readouterr().err  # type: ignore[attr-defined]


@pytest.mark.slow
def test_sweeps_without_classes_are_passed_over(run: Path, shards: str, tmp_path: Path) -> None:
    partly = write_toy_set(tmp_path / "partly", num_logs=6, frames_per_log=3, bare_frames=2)
    config = yaml_of(tmp_path)
    scores = []
    for shard_set, results in ((shards, "whole.json"), (partly, "partly.json")):
        target = tmp_path / results
        assert tandem(["evaluate", str(run), config, *QUICK, f"data.shards={shard_set}", f"results={target}"]) == 0
        # The labelled frames are the same samples; what augments them in fine-tuning goes by their number in the set.
        scores.append([(r.init, r.protocol, r.values) for r in read_results(target) if r.protocol != "finetune"])
    assert len(scores[0]) == 4
    assert scores[0] == scores[1]


def test_labels_beyond_the_class_names_are_refused(run: Path, shards: str, tmp_path: Path, capsys: object) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(shards, wrong)
    content = json.loads((wrong / "manifest.json").read_text())
    (wrong / "manifest.json").write_text(json.dumps(content | {"class_names": content["class_names"][:2]}))
    assert tandem(["evaluate", str(run), yaml_of(tmp_path), *QUICK, f"data.shards={wrong}"]) == 1
    assert "labels-range" in capsys.readouterr().err  # type: ignore[attr-defined]


def test_folder_without_checkpoint_and_damaged_results_are_refused(run: Path, tmp_path: Path, capsys: object) -> None:
    config = yaml_of(tmp_path)
    assert tandem(["evaluate", str(tmp_path), config]) == 1
    assert "expected a run's folder" in capsys.readouterr().err  # type: ignore[attr-defined]
    (run / "results.json").write_text("{")
    assert tandem(["evaluate", str(run), config, *QUICK]) == 2
    assert "not readable as JSON" in capsys.readouterr().err  # type: ignore[attr-defined]
    assert (run / "results.json").read_text() == "{"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_load(path: Path) -> None:
    assert load(EvaluateConfig, path).protocols


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("efficientnet_lite0", "imagenet", ("efficientnet_lite0 (imagenet)", "supervised-teacher")),
        ("resnet50", "moco_v2:/w.pth", ("resnet50 (moco_v2)", "ssl-teacher")),
        ("resnet18", "random", ("resnet18 (random)", "none")),
    ],
)
def test_label_leak_follows_from_the_teachers_weights(name: str, weights: str, expected: tuple[str, str]) -> None:

    assert networks.describe_teacher(teacher_config(name=name, weights=weights)) == expected  # type: ignore[arg-type]
    assert networks.describe_teacher(None) == ("", "none")


def test_label_leak_passes_through_our_own_runs(tmp_path: Path) -> None:
    """A pixel network that began with ImageNet's labels brings them to the points; one that began with nothing none."""
    from models.image.unet import ResNetUnetConfig
    from models.methods.pixel_to_point import PixelToPointConfig

    network = ResNetUnetConfig(preset="resnet10_tiny").build()
    for started_from, leak in (
        ("random", "ssl-teacher"),
        ("torchvision:/w.pth", "supervised-teacher"),
        ("dino:/w.pth", "ssl-teacher"),
    ):
        folder = write_checkpoint(tmp_path / started_from.partition(":")[0], 3, network)
        method = {"name": "pixel_contrast", "image_backbone": {"weights": started_from}}
        (folder / "config.json").write_text(json.dumps({"method": method}))
        pixels = ResNetUnetConfig(preset="resnet10_tiny", weights=f"tandem:{folder}")
        expected = ("resnet10_tiny (tandem)", leak)
        assert networks.describe_origin(PixelToPointConfig(pixel_network=pixels)) == expected
    assert networks.leak_of_weights(f"tandem:{tmp_path / 'nothing'}") == "unknown"
