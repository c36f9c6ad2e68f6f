"""A segmenter's run is judged again, looked at and reported as a detector's; what cannot be judged is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.detection import FinetuneConfig
from configs.load import ArgumentError, ConfigError
from engine.distributed import World
from launchers.cli import main as tandem
from launchers.finetuning.kinds import to_be_judged
from launchers.finetuning.rejudge import rejudge
from launchers.finetuning.run_frames import trained_network, worst_frames
from launchers.reporting.detection_report import describe_detector
from launchers.reporting.detection_results import detection_results
from launchers.runs.files import read_config
from launchers.training.train import load_any_run
from tests.helpers.finetune_run import arguments, finetune_here
from tests.launchers.test_finetune import SEGMENTER

OPTIONS = (*SEGMENTER, "judge.benchmarks=[panoptic_nuscenes,semantic]", "schedule.steps=2", "data.limit=4")


@pytest.fixture(scope="module")
def run(street_set: str, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "panoptic"
    finetune_here(folder, street_set, *OPTIONS, "judge.every_epochs=0", "monitor.picture_every=2")
    return folder


def verdict(run: Path) -> dict[str, dict[str, float]]:
    line = json.loads((run / "detections.jsonl").read_text().splitlines()[-1])
    return {name: part["headline"] for name, part in line["benchmarks"].items()}


def test_it_is_judged_again_as_it_was(run: Path, tmp_path: Path) -> None:
    found = rejudge(run, ["judge.batch_size=1"], out=tmp_path)
    assert {name: pytest.approx(dict(scores.headline)) for name, scores in found.scores.items()} == verdict(run)
    assert tandem(["evaluate", "--detector", str(run), "judge.limit=1", "--out", str(tmp_path)]) == 0
    with pytest.raises(ArgumentError, match="panoptic_nuscenes has no class 'building'"):
        rejudge(run, [], out=tmp_path, submission=tmp_path / "files")


def test_frames_are_drawn_and_listed(run: Path, tmp_path: Path) -> None:
    assert {path.name for path in (run / "pictures").iterdir()} == {"segments_above.jpg", "segments_over_images.jpg"}
    network = trained_network(run)
    frame = network.frame(int(network.shown.indices[0]))
    table = network.table(frame)
    points = sum(int(row[2]) for row in table.rows)
    assert points == len(frame.sample.points_lidar), "every recorded point has a class"
    assert tandem(["inspect", str(run), "--frame", frame.key, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "inspect.html").exists()
    pictures, damage = worst_frames(run, network.network, network.config, network.step, 2)
    assert (len(pictures), damage) == (4, "")


def test_it_is_in_reports_and_tables(run: Path) -> None:
    described = describe_detector(run, read_config(run), trouble := [])
    assert (described is not None, trouble) == (True, [])
    assert described is not None
    assert set(described.headline) >= {"panoptic_nuscenes: PQ", "semantic: mIoU"}
    assert [table.title.split(",")[0] for table in described.tables] == [
        "nuScenes' panoptic quality",
        "mIoU of points",
    ]
    assert described.failures
    records = detection_results([run], damaged := {})
    assert damaged == {}
    values = {record.metric: record.values[0] for record in records}
    expected = verdict(run)
    assert values == {
        "segmentation_panoptic_nuscenes": pytest.approx(expected["panoptic_nuscenes"]["PQ"]),
        "segmentation_semantic": pytest.approx(expected["semantic"]["mIoU"]),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("judge.benchmarks=[kitti]",), "judge.benchmarks: got 'kitti', expected any of semantic"),
        (("data.cut_to_cameras=true",), "data.cut_to_cameras: got true"),
        (("model.name=semantic", "model.things=[]"), "judges objects, and the network tells none apart"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_the_training(
    options: tuple[str, ...], message: str, street_set: str, tmp_path: Path
) -> None:
    path, *rest = arguments(tmp_path / "run", street_set, *OPTIONS, *options)
    config = load_any_run(path, rest, kind=FinetuneConfig)
    assert isinstance(config, FinetuneConfig)
    with pytest.raises(ConfigError, match=message):
        to_be_judged(config)
