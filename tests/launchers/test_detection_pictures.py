"""Detections beside the truth: boxes where they are, colours as the benchmark judges; reports and inspection."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.boxes.image import NEAR_M
from configs.detection import FinetuneConfig
from data.sample import Batch, CameraView
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from data.views.truth import FrameTruth
from engine.distributed import World
from engine.scores import FrameErrors, Scores
from launchers.cli import main as tandem
from launchers.drawing import detections
from launchers.drawing.canvas import BACKGROUND
from launchers.drawing.curves import RunCurve, chart
from launchers.drawing.detections import MISSED, RIGHT, TRUE, WRONG, MarkedFrame, detection_views, edges_in_image
from launchers.drawing.page import explanation
from launchers.evaluation.detections import Found, JudgedFrame, detect
from launchers.finetuning.box_frames import lowest_counted, marked_frame, objects_table
from launchers.finetuning.frame_pictures import shown_set
from launchers.finetuning.judging import judge_frames
from launchers.finetuning.verdict import BenchmarkVerdict, read_verdict
from launchers.reporting.detection_report import describe_detector
from launchers.training.train import load_any_run
from models.detection.base import Detections, Detector
from models.methods.base import LossTerms
from tests.helpers.colour_vision import least_distances
from tests.helpers.finetune_run import arguments, finetune_here
from tests.helpers.run_folder import write_toy_run
from tests.helpers.toy_detector import known

K = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
AHEAD = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
"""LiDAR frame to that of a camera that looks along x."""


def frame(**changes: object) -> MarkedFrame:
    camera = CameraView(
        name="front",
        image_size=(80, 100),
        K=K,
        T_cam_ego=np.eye(4),
        T_world_ego=np.eye(4),
        timestamp_us=0,
        image=np.zeros((80, 100, 3), np.uint8),
    )
    made = MarkedFrame(
        key="log-0",
        points=np.array([[1.0, 2, 0]]),
        truth=np.array([[10.0, 6, 0, 4, 2, 2, 0], [10, -6, 0, 4, 2, 2, 0]]),
        truth_names=("car", "car"),
        missed=np.array([False, True]),
        found=np.array([[10.0, 6, 0, 4, 2, 2, 0], [-10, 0, 0, 4, 2, 2, 0]]),
        found_names=("car", "car"),
        scores=np.array([0.9, 0.8]),
        right=np.array([True, False]),
        wrong=np.array([False, True]),
        cameras=(camera,),
        T_cam_lidar=(AHEAD,),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_colours_are_apart_for_all_eyes() -> None:
    colours = np.array([RIGHT, WRONG, MISSED, TRUE, detections.NOT_COUNTED, BACKGROUND])
    assert min(least_distances(colours).values()) > 25


def test_edges_of_a_box_in_front_of_the_camera() -> None:
    lines = edges_in_image(np.array([10.0, 0, 0, 2, 2, 2, 0]), K, AHEAD)
    assert lines.shape == (12, 2, 2)
    corners = {tuple(np.round(point, 3)) for point in lines.reshape(-1, 2)}
    near, far = 100 / 9, 100 / 11
    assert corners == {
        (round(50 + a * depth, 3), round(40 + b * depth, 3)) for depth in (near, far) for a in (-1, 1) for b in (-1, 1)
    }


def test_edges_are_cut_at_the_camera() -> None:
    around = edges_in_image(np.array([0.0, 0, 0, 4, 2, 2, 0]), K, AHEAD)
    assert len(around) == 8, "the four of the face behind are gone"
    assert np.isfinite(around).all()
    assert np.abs(around - [50, 40]).max() == pytest.approx(100 / NEAR_M)
    assert len(edges_in_image(np.array([-10.0, 0, 0, 4, 2, 2, 0]), K, AHEAD)) == 0


def test_boxes_from_above_lie_where_they_are() -> None:
    view = detections.boxes_from_above(frame())
    half, scale = (view.shape[0] - 1) / 2, view.shape[0] / (2 * 15.0)  # 10 m and a margin are below the nearest range

    def seen(x: float, y: float, colour: tuple[int, int, int]) -> bool:
        v, u = round(half - x * scale), round(half - y * scale)
        apart = np.abs(view[v - 2 : v + 3, u - 2 : u + 3].astype(int) - colour)
        return bool((apart.max(axis=2) < 60).any())  # lines are smooth

    assert seen(12, 6, RIGHT) or seen(12, 6, TRUE), "front of the car ahead on the left"
    assert seen(10, -7, MISSED)
    assert seen(-10, 1, WRONG)
    assert seen(11, -6, MISSED), "the line points to the front"
    assert not seen(9, -6, MISSED)


def test_views_and_their_legend() -> None:
    views = detection_views(frame(), "title")
    assert list(views) == ["detections_above", "detections_over_images"]
    assert all(explanation(f"log-0.{name}") for name in views)
    assert (views["detections_over_images"] == MISSED).all(axis=2).any()
    assert [name for name, _ in frame().legend()] == ["right: 1", "wrong: 1", "missed: 1", "other labelled boxes: 1"]


def test_a_frame_without_anything_is_drawn() -> None:
    nothing = np.zeros((0, 7))
    none = np.zeros(0, dtype=bool)
    bare = frame(
        points=np.zeros((0, 3)), truth=nothing, truth_names=(), missed=none, found=nothing, found_names=(),
        scores=np.zeros(0), right=none, wrong=none, cameras=(), T_cam_lidar=(),
    )  # fmt: skip
    assert list(detection_views(bare, "title")) == ["detections_above"]
    assert objects_table(bare).rows == ()


def test_objects_are_listed_by_what_is_said_of_them() -> None:
    rows = objects_table(frame()).rows
    assert [row[:4] for row in rows] == [
        ("missed", "car", "", "11.7"),
        ("wrong", "car", "0.80", "10.0"),
        ("right", "car", "0.90", "11.7"),
        ("labelled", "car", "", "11.7"),
    ]


def test_lowest_scores_that_count() -> None:
    empty = np.zeros(0, np.int64)
    errors = [
        FrameErrors(key="a", missed=empty, false=np.array([1]), right=np.array([0])),
        FrameErrors(key="b", missed=empty, false=empty, right=np.array([0])),
    ]
    scores = Scores(benchmark="", headline={}, unit="", rows=(), frames=tuple(errors))
    found = {
        "a": ([0.9, 0.4, 0.1], [0, 1, 1]),
        "b": ([0.7], [0]),
    }
    frames = [
        JudgedFrame(
            truth=FrameTruth(
                index=0,
                key=key,
                log="log",
                timestamp_us=0,
                boxes=None,
                cameras=(),
                T_ego_lidar=np.eye(4),
                T_world_ego=np.eye(4),
            ),
            found=Found(
                boxes=np.zeros((len(values), 7)),
                velocities_mps=np.zeros((len(values), 2)),
                classes=np.array(classes),
                scores=np.array(values),
            ),
        )
        for key, (values, classes) in found.items()
    ]
    assert lowest_counted(scores, frames, ("car", "bus", "cyclist")) == {"car": 0.7, "bus": 0.4}


class Oracle(Detector):
    """Finds most of what is there, a little off, some of it twice, and some things that are not."""

    def __init__(self, config: FinetuneConfig) -> None:
        super().__init__()
        self.backbone, self.weight, self.config = nn.Identity(), nn.Parameter(torch.zeros(1)), config
        manifest = load_manifest(config.data.shards)
        names = manifest.class_names
        reader = SampleReader(manifest)
        self.truth = {}
        for index in manifest.indices("val").tolist():
            sample = reader.read(index, images=False)
            boxes = sample.boxes
            assert boxes is not None
            wanted = np.isin(boxes.classes, [names.index(name) for name in config.model.classes])
            rows = np.column_stack([boxes.centers_m, boxes.sizes_m, boxes.yaws])[wanted]
            classes = [config.model.classes.index(names[label]) for label in boxes.classes[wanted]]
            self.truth[sample.key] = (rows, np.array(classes, np.int64))

    def forward(self, batch: Batch) -> LossTerms:
        raise NotImplementedError

    def detect(self, batch: Batch) -> Detections:
        parts = [self._found(key, number) for number, key in enumerate(batch.keys)]
        boxes, classes, scores, sample = (
            torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)
        )
        velocities = torch.zeros(len(boxes), 2)
        return Detections(boxes=boxes.float(), velocities_mps=velocities, classes=classes, scores=scores, sample=sample)

    def _found(self, key: str, number: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(sum(key.encode()))
        rows, classes = self.truth[key]
        twice = np.concatenate([np.arange(len(rows)), np.arange(0, len(rows), 3)])
        boxes = rows[twice] + rng.normal(size=(len(twice), 7)) * [0.1, 0.1, 0.05, 0, 0, 0, 0.02]
        boxes[::4, :2] += 6.0
        scores = rng.permutation(np.linspace(0.1, 0.9, len(twice)))
        order = np.argsort(-scores)
        return boxes[order], classes[twice][order], scores[order], np.full(len(order), number)


def config_of(shards: str, folder: Path, *overrides: str) -> FinetuneConfig:
    with known():
        path, *rest = arguments(folder / "run", shards, *overrides)
        config = load_any_run(path, rest, kind=FinetuneConfig)
    assert isinstance(config, FinetuneConfig)
    return config


def test_a_frame_is_marked_as_it_was_judged_among_all(street_set: str, tmp_path: Path) -> None:
    config = config_of(street_set, tmp_path, "judge.benchmarks=[nuscenes]")
    oracle, shown = Oracle(config).eval(), shown_set(config)
    with torch.no_grad():
        frames = detect(
            oracle, SampleReader(shown.manifest), shown.indices, shown.data, batch_size=4, device=torch.device("cpu")
        )
        assert frames is not None
        scores = judge_frames(frames, shown, config)["nuscenes"]
        least = lowest_counted(scores, frames, config.model.classes)
        assert sum(len(errors.right) for errors in scores.frames) > 5
        verdict = BenchmarkVerdict(curves=(), frames=scores.frames, counted_from=least)
        for judged, errors in zip(frames, scores.frames, strict=True):
            alone = marked_frame(oracle, shown, judged.truth.index, config, judged=verdict)
            assert int(alone.missed.sum()) == len(errors.missed)
            for mark, rows in ((alone.right, errors.right), (alone.wrong, errors.false)):
                assert sorted(alone.scores[mark].tolist()) == sorted(judged.found.scores[rows].tolist())
            assert (alone.scores[~alone.right & ~alone.wrong] >= min(least.values())).all()
        beyond = dataclasses.replace(scores.frames[0], right=np.array([10_000]))
        stale = BenchmarkVerdict(curves=(), frames=(beyond,), counted_from=least)
        index = frames[0].truth.index
        assert marked_frame(oracle, shown, index, config, judged=stale).right.any(), "judged alone"


def test_without_a_benchmark_nothing_is_judged(street_set: str, tmp_path: Path) -> None:
    config = config_of(street_set, tmp_path, "judge.benchmarks=[]", "data.split=val")
    shown = shown_set(config)
    with torch.no_grad():
        drawn = marked_frame(Oracle(config).eval(), shown, int(shown.indices[0]), config)
    assert len(drawn.found) > 5
    assert not drawn.right.any() and not drawn.wrong.any() and not drawn.missed.any()  # noqa: PT018


# ---- a run


@pytest.fixture(scope="module")
def run(street_set: str, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector") / "scratch"
    finetune_here(
        folder,
        street_set,
        "schedule.steps=5",
        "judge.benchmarks=[nuscenes]",
        "judge.every_epochs=1",
        "monitor.picture_every=5",
    )
    return folder


def test_a_run_leaves_its_newest_pictures_and_verdict(run: Path) -> None:
    assert {path.name for path in (run / "pictures").iterdir()} == {
        "detections_above.jpg",
        "detections_over_images.jpg",
    }
    verdict = read_verdict(run)
    assert verdict is not None
    assert (verdict.step, verdict.split, list(verdict.benchmarks)) == (5, "val", ["nuscenes"])
    assert len(verdict.benchmarks["nuscenes"].frames) == 3


def test_report_of_detectors(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with known():
        assert tandem(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    page, text = ((tmp_path / f"report.{suffix}").read_text() for suffix in ("html", "md"))
    assert "scratch, from random" in page
    assert "nuscenes: NDS" in page
    assert "frames have errors; those with most" in page
    assert "scratch: street-000003-0000" in page, "pictures of the worst frame"
    assert "No downstream results yet: run" not in page
    assert re.search(r"^\| scratch \| random \| 1", text, flags=re.MULTILINE)


def test_figures_of_the_last_judgement(tmp_path: Path) -> None:
    rows = [
        ["Car", "easy", "AP", 50.0, "%", 7],
        ["Car", "hard", "AP", None, "%", 0],
        ["mean", "easy", "AP", 50.0, "%", 7],
    ]
    line = {"step": 4, "epoch": 2.0, "split": "val", "frames": 3}
    part = {"benchmark": "KITTI", "headline": {"AP": 50.0}, "rows": rows, "notes": ["few"]}
    (tmp_path / "detections.jsonl").write_text(json.dumps({**line, "benchmarks": {"kitti": part}}) + "\n")
    report = describe_detector(tmp_path, {"model": {"name": "toy"}, "init": "random"}, trouble := [])
    assert trouble == []
    assert report is not None
    (table,) = report.tables
    assert table.header == ("class", "metric", "easy", "hard")
    assert table.rows == (("Car", "AP", "50.00 (7)", "– (0)"), ("mean", "AP", "50.00", "–"))
    assert report.headline == {"kitti: AP": ([2.0], [50.0])}
    assert report.notes == ["kitti: few"]
    assert describe_detector(tmp_path, {"method": {"name": "slidr"}}, trouble) is None
    (tmp_path / "verdict.json").write_text('{"step": 4, "split": "val", "benchmarks": {"kitti": 3}}')
    describe_detector(tmp_path, {"model": {"name": "toy"}}, trouble)
    assert "verdict.json" in trouble[0]


def test_a_chart_by_recall_has_its_own_ends() -> None:
    drawn = chart(
        "car", [RunCurve("a", [0.0, 0.5], [1.0, math.nan])], {"a": 0}, axis="recall", x_end=1.0, y_ends=(0.0, 1.0)
    )
    assert drawn is not None
    assert drawn.x_ticks[-1][1] in {"1", "1.0", "1.00"}
    assert drawn.lines[0].marks[0][2] == "a: 1 at recall 0.00"


def test_inspect_a_frame(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with known():
        assert tandem(["inspect", str(run), "--frame", "street-000003-00001", "--out", str(tmp_path)]) == 0
        assert "objects of street-000003-00001" in capsys.readouterr().out
        assert len(list(tmp_path.glob("street-000003-00001.detections_*.png"))) == 2
        with pytest.raises(SystemExit):
            tandem(["inspect", str(run), "--frame", "street-000003-00091"])
        assert "did you mean street-000003-0000" in capsys.readouterr().err


def test_inspect_refuses_a_frame_of_what_is_no_detector(
    street_set: str, toy_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tandem(["inspect", street_set, "--frame", "0"])
    assert "--sample" in capsys.readouterr().err
    write_toy_run(tmp_path / "plain", toy_set)
    assert tandem(["inspect", str(tmp_path / "plain"), "--frame", "0"]) != 0
    assert "tandem finetune" in capsys.readouterr().err
