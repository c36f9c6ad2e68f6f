from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from configs.load import ConfigError, load
from configs.schema import EvaluateConfig, FollowConfig
from engine.checkpoint import CheckpointConfig
from engine.downstream.results import read_results
from launchers.cli import main as tandem
from launchers.cluster.plan_followups import baseline_jobs, evaluation_jobs
from launchers.drawing.predictions import read_predictions
from launchers.evaluation import networks
from launchers.evaluation.measure import evaluate_runs
from launchers.reporting.collect import ReportSources
from launchers.reporting.hparams import metrics_of
from launchers.reporting.report_page import page
from launchers.reporting.table import groups, markdown
from models.image.resnet import ResNet
from models.weights import load_image_weights
from tests.helpers.image_run import image_run_config, write_image_run
from tests.helpers.run_folder import run_config
from tests.helpers.samples import write_toy_set

QUICK = (
    "depth={steps: 2, batch_size: 1, lrs: [0.001, 0.01], width: 8}",
    "image_linear_probe={steps: 5, lrs: [0.01, 0.1], pixels_per_image: 50}",
    "image_finetune={steps: 2, batch_size: 1, lrs: [0.001], width: 8, seeds: [0, 1]}",
    "fraction={kind: random, count: 1}",
    "calibration_sweeps=1",
    "tune_sweeps=1",
    "device=cpu",
)
ALL = "protocols=[depth,depth_frozen,image_linear_probe,image_finetune]"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("set")
    return write_toy_set(root, num_logs=4, frames_per_log=1, num_points=50, image_labels=True)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, shards: str) -> Path:
    run = tmp_path_factory.mktemp("runs") / "moco-seed0"
    write_image_run(run, shards)
    config = run.parent / "protocols.yaml"
    config.write_text("")
    assert tandem(["evaluate", str(run), str(config), *QUICK, ALL]) == 0
    return run


def test_every_protocol_of_images_from_checkpoint_to_results(evaluated: Path, tmp_path: Path) -> None:
    results = read_results(evaluated / "results.json")
    assert [(r.init, r.protocol) for r in results] == [
        (init, protocol)
        for init in ("moco", "random")
        for protocol in ("depth", "depth_frozen", "image_linear_probe", "image_finetune")
    ]
    depth, probe, few = results[0], results[2], results[3]
    assert (depth.metric, depth.labels) == ("rmse_log", "1 frame")
    assert set(depth.metrics) == {
        *("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog"),
        *("delta1", "delta2", "delta3"),
    }
    assert (probe.metric, probe.labels, len(probe.class_iou)) == ("miou", "all", 4)
    assert (few.metric, few.seeds, len(few.class_iou)) == ("miou", (0, 1), 4)
    assert depth.class_iou == {}
    assert (depth.teacher, depth.leak, depth.checkpoint[0].split("/")[0]) == ("", "none", "moco-seed0")
    assert {p.name for p in (evaluated / "labelled").iterdir()} >= {
        "toy-1-frame-depth_run0.txt",
        "toy-1-frame-image_finetune_run1.txt",
    }
    # A second call measures nothing again.
    before = (evaluated / "results.json").read_text()
    assert tandem(["evaluate", str(evaluated), str(evaluated.parent / "protocols.yaml"), *QUICK, ALL]) == 0
    assert (evaluated / "results.json").read_text() == before


def test_tables_page_and_hparams_show_each_metric_in_its_direction(evaluated: Path) -> None:
    results = read_results(evaluated / "results.json")
    # Made-up numbers: ours is better by 0.1, which is less error.
    results = [
        dataclasses.replace(r, metrics={**r.metrics, "rmse_log": (0.2 if r.pretrained else 0.3,)})
        if r.protocol == "depth"
        else r
        for r in results
    ]
    group = next(g for g in groups(results) if g.title.startswith("toy: depth of images, labels"))
    assert group.header[:5] == ("initialisation", "RMSE log", "over random", "abs rel", "sq rel m")
    assert [row[0].split()[0] for row in group.rows] == ["random", "moco"]
    assert group.rows[1][1:3] == ("0.200", "-0.100 ?")
    text = markdown(results)
    assert "lower is better, so a difference below 0 is a gain" in text
    assert "| mIoU % |" in text
    html = page(ReportSources(results=results), [], "title", {})
    assert '<b class="level">-0.100</b>' in html  # one pair: no matter how large, it may be chance
    ours = metrics_of([r for r in results if r.pretrained], results)
    assert ours["eval/toy/depth/1_frame/rmse_log"] == pytest.approx(0.2)
    assert ours["eval/toy/depth/1_frame/gain"] == pytest.approx(-0.1)
    assert "eval/toy/depth/1_frame/delta1" in ours


def test_pictures_of_predictions_lie_beside_the_results_and_go_into_the_report(evaluated: Path, tmp_path: Path) -> None:
    pictures, _ = read_predictions([evaluated], 6)
    assert set(pictures) == {
        f"{protocol}-1-frame-{init}"
        for init in ("moco", "random")
        for protocol in ("depth", "depth_frozen", "image_finetune")
    }
    assert min(image.std() for image in pictures.values()) > 10
    out = tmp_path / "report.html"
    assert tandem(["report", str(evaluated), "--out", str(out), "--pictures", "0"]) == 0
    assert "depth_frozen-1-frame-moco" in out.read_text()


def test_pretrained_weights_arrive_and_random_ones_forget_what_the_network_was_filled_with(
    evaluated: Path, shards: str, tmp_path: Path
) -> None:
    source = networks.open_source(evaluated)
    loaded = networks.pretrained_network(source, "image_backbone").state_dict()
    for name, value in write_image_run(tmp_path / "again", shards).image_backbone.state_dict().items():
        torch.testing.assert_close(loaded[name], value)
    config = image_run_config(tmp_path, shards)
    filled = dataclasses.replace(config.method.image_backbone, weights="torchvision:/nowhere.pth")
    config = dataclasses.replace(config, method=dataclasses.replace(config.method, image_backbone=filled))
    networks.random_network(config, "image_backbone", 0)
    assert networks.describe_origin(config.method) == ("resnet10_tiny (torchvision)", "supervised-teacher")


def test_protocols_that_need_another_network_are_refused_by_name(
    evaluated: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tandem(["evaluate", str(evaluated), str(evaluated.parent / "protocols.yaml"), *QUICK]) == 2
    told = capsys.readouterr().err
    assert "linear_probe, knn, finetune measure the method's 3D network, but MocoConfig has no section" in told
    assert "expected any of depth, depth_frozen, image_linear_probe, image_finetune" in told
    (tmp_path / "config.yaml").write_text((evaluated / "config.yaml").read_text())
    with pytest.raises(ConfigError, match="depth measure the method's image network, but SlidrConfig has no section"):
        networks.check_tower(run_config(tmp_path, shards), "image_backbone", ["depth", "knn"])


def test_a_set_without_the_truth_is_refused(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_toy_set(tmp_path / "bare", num_logs=4, frames_per_log=1, num_points=50, depth=False)
    more = (str(evaluated.parent / "protocols.yaml"), *QUICK, f"data.shards={bare}", f"results={tmp_path / 'r.json'}")
    assert tandem(["evaluate", str(evaluated), *more, "protocols=[depth]"]) == 1
    assert "has no depth (camera front)" in capsys.readouterr().err
    assert tandem(["evaluate", str(evaluated), *more, "protocols=[image_linear_probe]"]) == 1
    assert "has no classes of pixels" in capsys.readouterr().err
    # The sweep's own depth is there in every set.
    config = load(EvaluateConfig, None, [*QUICK, "protocols=[depth_frozen]", f"data.shards={bare}", "random=false"])
    config = dataclasses.replace(
        config, images=dataclasses.replace(config.images, depth="lidar"), results=str(tmp_path / "r.json")
    )
    assert [r.protocol for r in evaluate_runs([evaluated], config)] == ["depth_frozen"]


def test_what_follows_a_run_is_an_element_for_each_protocol_and_number_of_labels(
    shards: str, tmp_path: Path, evaluated: Path
) -> None:
    (tmp_path / "street.yaml").write_text(
        "protocols: [linear_probe, image_linear_probe, knn, depth]\nfraction: {kind: all}\n"
    )
    config = image_run_config(tmp_path / "r", shards)
    follow = FollowConfig(configs=(str(tmp_path / "street.yaml"),))
    config = dataclasses.replace(config, evaluate=follow)
    names = [job.name for job in evaluation_jobs(tmp_path / "r", config)]
    assert names == ["street-linear-probe-knn", "street-image-linear-probe", "street-depth-all"]
    (tmp_path / "street.yaml").write_text("protocols: [depth]\nfraction: {kind: all}\n")
    keys = {job.key for job in baseline_jobs([config], tmp_path)}
    other = dataclasses.replace(config, seed=3, method=dataclasses.replace(config.method, temperature=0.5))
    assert {job.key for job in baseline_jobs([other], tmp_path)} == keys
    with pytest.raises(ConfigError, match=r"select_by: got linear_probe, which measures a 3D network.*one of depth"):
        dataclasses.replace(
            config, evaluate=dataclasses.replace(follow, every=4), checkpoint=CheckpointConfig(keep_every=4)
        )


def test_export_of_the_resnet_with_torchvisions_names(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "resnet.pth"
    assert tandem(["export", str(evaluated), str(out), "--format", "torchvision"]) == 0
    assert "differ by at most 0" in capsys.readouterr().out
    expected = networks.pretrained_network(networks.open_source(evaluated), "image_backbone").network.state_dict()
    got = torch.load(out, weights_only=True)
    assert {"conv1.weight", "layer4.0.bn2.running_var"} <= set(got)
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    assert load_image_weights(ResNet("resnet10_tiny"), "torchvision", str(out)).share == 1.0
    assert tandem(["export", str(evaluated), str(tmp_path / "x.safetensors")]) == 1
    assert "has no 3D network; use --format torchvision" in capsys.readouterr().err
    shutil.rmtree(tmp_path)
