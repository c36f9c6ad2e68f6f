"""Truth and findings in the terms of the benchmarks: who finds exactly what is there has the best figures there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from configs.detection import FinetuneConfig
from configs.load import ArgumentError, ConfigError
from configs.runs import read_run
from data.loading.detection_frames import frame_truth
from data.storage.reader import SampleReader
from engine.detection.formats.kitti import read_found
from engine.detection.formats.nuscenes import read_results
from engine.detection.formats.once import once_boxes
from engine.detection.formats.once import read_found as once_found
from engine.detection.nuscenes_rules import CLASS_RANGE_M
from launchers.evaluation.detections import (
    NOTHING,
    Found,
    JudgedFrame,
    benchmark_classes,
    found_objects,
    true_objects,
)
from launchers.evaluation.submission import Given, write_submission
from launchers.finetuning import rejudge as rejudge_module
from launchers.finetuning.boxes import given_to
from launchers.finetuning.judged_set import JudgedSet
from launchers.finetuning.judging import judge_frames, record_of
from launchers.finetuning.kinds import to_be_judged
from launchers.finetuning.rejudge import rejudge


def config(shards: str, *overrides: str) -> FinetuneConfig:
    made = read_run("second_street", ["run_dir=none", f"data.shards={shards}", *overrides])
    assert isinstance(made, FinetuneConfig)
    return made


def frames_of(judged: JudgedSet, classes: tuple[str, ...], turn: float = 0.0) -> list[JudgedFrame]:
    """Every labelled object of the classes is found, turned by an angle."""
    numbers = [judged.manifest.class_names.index(name) for name in classes]
    frames = []
    for index in judged.indices.tolist():
        truth = frame_truth(SampleReader(judged.manifest), index)
        boxes = truth.boxes
        assert boxes is not None
        kept = np.isin(boxes.classes, numbers)
        rows = np.column_stack([boxes.centers_m, boxes.sizes_m, boxes.yaws + turn])[kept].astype(np.float64)
        found = Found(
            boxes=rows,
            velocities_mps=boxes.velocities_mps[kept].astype(np.float64),
            classes=np.array([numbers.index(number) for number in boxes.classes[kept]], dtype=np.int64),
            scores=np.linspace(0.9, 0.5, int(kept.sum())),
        )
        frames.append(JudgedFrame(truth=truth, found=found))
    return frames


def test_all_found_is_perfect_and_nothing_found_is_nothing(street_set: str) -> None:
    settings = config(street_set, "judge.benchmarks=[nuscenes]")
    judged = JudgedSet.of(settings)
    perfect = judge_frames(frames_of(judged, settings.model.classes), judged, settings)["nuscenes"]
    assert perfect.headline["mAP"] == pytest.approx(1)
    for error in ("mATE", "mASE", "mAOE", "mAVE"):
        assert perfect.headline[error] == pytest.approx(0, abs=1e-6)
    assert perfect.benchmark == "nuScenes detection of car, truck, bus, pedestrian, bicycle"
    turned = judge_frames(frames_of(judged, settings.model.classes, turn=0.5), judged, settings)["nuscenes"]
    assert turned.headline["mAOE"] == pytest.approx(0.5, abs=1e-5)
    blind = [JudgedFrame(truth=frame.truth, found=NOTHING) for frame in frames_of(judged, settings.model.classes)]
    assert judge_frames(blind, judged, settings)["nuscenes"].headline["mAP"] == 0
    assert record_of({"nuscenes": perfect})["nuscenes"]["headline"]["mAP"] == pytest.approx(1)


def test_boxes_on_the_map_lie_as_far_from_the_vehicle(street_set: str) -> None:
    judged = JudgedSet.of(config(street_set))
    (frame, *_) = frames_of(judged, ("car", "pedestrian"))
    here, there = (true_objects(frame.truth, judged.manifest, name) for name in ("kitti", "nuscenes"))
    assert here is not None
    assert there is not None
    apart = [np.linalg.norm(one.boxes[:, :3] - one.origin_m, axis=1) for one in (here, there)]
    np.testing.assert_allclose(apart[0], apart[1], rtol=1e-5)
    np.testing.assert_allclose(here.boxes[:, 3:6], there.boxes[:, 3:6])
    assert "bicycle" not in here.categories
    assert "cyclist" not in there.categories
    found = found_objects(frame.found, frame.truth, ("car", "pedestrian"), "nuscenes")
    assert found.attributes is not None
    assert set(found.attributes) <= {"vehicle.moving", "vehicle.parked", "pedestrian.moving", "pedestrian.standing"}


def test_rooms_are_judged_by_the_detectors_classes_and_kinds_without_a_name_are_nobodys(street_set: str) -> None:
    """Categories of -1 are kinds that the set has no name for, not its last one."""
    settings = config(street_set, "judge.benchmarks=[indoor]")
    judged = JudgedSet.of(settings)
    frames = frames_of(judged, settings.model.classes)
    scores = judge_frames(frames, judged, settings)["indoor"]
    assert scores.headline == pytest.approx({"mAP@0.25": 100, "mAP@0.5": 100})
    assert {row.category for row in scores.rows} == {*settings.model.classes, "mean"}
    (frame, *_) = frames
    boxes = frame.truth.boxes
    assert boxes is not None
    categories = np.where(np.arange(len(boxes.classes)) % 2 == 0, -1, 1)
    odd = dataclasses.replace(frame.truth, boxes=dataclasses.replace(boxes, categories=categories))
    named = dataclasses.replace(judged.manifest, box_categories=("bed", "chair"))
    true = true_objects(odd, named, "indoor")
    assert true is not None
    assert true.categories[:2] == ("", "chair")


def test_what_is_written_for_a_benchmark_is_what_was_found(street_set: str, tmp_path: Path) -> None:
    settings = config(street_set)
    judged = JudgedSet.of(settings)
    frames = frames_of(judged, settings.model.classes)
    place = write_submission(tmp_path, "kitti", frames, judged.manifest, settings.model.classes)
    back = read_found(place, [frame.truth.key for frame in frames])
    for frame, read in zip(frames, back, strict=True):
        sizes = {tuple(np.round(row, 3)) for row in frame.found.boxes[:, 3:6]}
        assert {tuple(np.round(row, 3)) for row in read.boxes[:, 3:6]} <= sizes
    with pytest.raises(ArgumentError, match="--submission: no files of coco can be written here, only of kitti"):
        write_submission(tmp_path, "coco", frames, judged.manifest, settings.model.classes)


def test_kittis_metric_is_about_the_camera_that_looks_ahead(street_set: str) -> None:
    settings = config(street_set)
    judged = JudgedSet.of(settings)
    for frame in frames_of(judged, settings.model.classes):
        assert frame.truth.boxes_camera is not None
        assert frame.truth.boxes_camera.name == "front"
        true = true_objects(frame.truth, judged.manifest, "kitti")
        assert true is not None
        names = benchmark_classes(settings.model.classes, judged.manifest, "kitti")
        found = found_objects(frame.found, frame.truth, names, "kitti")
        rows = [true.categories.index(name) for name in dict.fromkeys(true.categories) if name in names]
        assert rows
        # The sweep is a little earlier than the image.
        seen = ~np.isnan(true.image_boxes_px).any(axis=1) & np.isin(true.categories, names)
        assert seen.any()
        of_found = np.flatnonzero(np.isin(true.categories, names))
        apart = true.image_boxes_px[seen] - found.image_boxes_px[np.isin(of_found, np.flatnonzero(seen))]
        assert np.median(np.abs(apart)) < 3


def test_nuscenes_results_are_named_by_sample_tokens(street_set: str, tmp_path: Path) -> None:
    """Only samples, as many objects as are allowed, classes that it has, velocities that are numbers."""
    settings = config(street_set)
    judged = JudgedSet.of(settings)
    classes = (*settings.model.classes, "tram")
    frames = frames_of(judged, settings.model.classes)
    with pytest.raises(ArgumentError, match=r"has no sample token, .*prepare it again"):
        write_submission(tmp_path, "nuscenes", frames, judged.manifest, classes)
    (first, second, *_) = (
        dataclasses.replace(frame, truth=dataclasses.replace(frame.truth, token=token))
        for frame, token in zip(frames, ("aa", None, "cc"), strict=True)
    )
    boxes = np.repeat(first.found.boxes[:1], 600, axis=0)
    many = Found(
        boxes=boxes,
        velocities_mps=np.full((600, 2), np.nan),
        classes=np.where(np.arange(600) == 599, 5, 0),
        scores=np.linspace(0.1, 0.9, 600),
    )
    third = dataclasses.replace(first, truth=dataclasses.replace(first.truth, token="cc"), found=many)
    place = write_submission(
        tmp_path, "nuscenes", [first, second, third], judged.manifest, classes, Given(pretrained=True)
    )
    assert place == tmp_path / "results.json"
    back, uses = read_results(place)
    assert uses == {
        "use_camera": False,
        "use_lidar": True,
        "use_radar": False,
        "use_map": False,
        "use_external": True,
    }
    assert [frame.key for frame in back] == ["aa", "cc"]
    true = true_objects(first.truth, judged.manifest, "nuscenes")
    assert true is not None
    kept = np.isin(true.categories, list(CLASS_RANGE_M))
    np.testing.assert_allclose(back[0].boxes[:, :6], true.boxes[kept, :6], atol=1e-6)
    assert set(back[0].classes) <= set(CLASS_RANGE_M)
    assert "bicycle" in back[0].classes  # the street world's cyclists
    assert len(back[1]) == 500
    assert back[1].scores.max() == pytest.approx(many.scores[598])  # the tram is left out
    assert not back[1].velocities_mps.any()


@pytest.mark.parametrize(
    ("name", "points", "images"),
    [("centerpoint", True, False), ("fcos3d", False, True), ("mvx_net", True, True)],
)
def test_a_submission_says_what_the_detector_was_given(
    name: str, points: bool, images: bool, street_set: str, tmp_path: Path
) -> None:
    made = read_run(f"{name}_street", ["run_dir=none", f"data.shards={street_set}"])
    assert isinstance(made, FinetuneConfig)
    assert given_to(made) == Given(points=points, images=images)
    started = dataclasses.replace(made, init="runs/moco")
    judged = JudgedSet.of(made)
    frame = frames_of(judged, made.model.classes)[0]
    known = dataclasses.replace(frame, truth=dataclasses.replace(frame.truth, token="aa"))
    place = write_submission(tmp_path, "nuscenes", [known], judged.manifest, made.model.classes, given_to(started))
    uses = read_results(place)[1]
    assert [used for used in uses if uses[used]] == [
        *["use_camera"] * images,
        *["use_lidar"] * points,
        "use_external",
    ]


def test_once_results_are_named_by_frame_ids(street_set: str, tmp_path: Path) -> None:
    settings = config(street_set)
    judged = JudgedSet.of(settings)
    frames = [
        dataclasses.replace(frame, truth=dataclasses.replace(frame.truth, key=f"000080_{number}"))
        for number, frame in enumerate(frames_of(judged, settings.model.classes))
    ]
    place = write_submission(tmp_path, "once", frames, judged.manifest, settings.model.classes)
    back = once_found(place, ["0", "1", "2"])
    for frame, read in zip(frames, back, strict=True):
        np.testing.assert_allclose(read.boxes[:, :3], once_boxes(frame.found.boxes)[:, :3], atol=1e-6)
        assert set(read.classes) <= {"Car", "Truck", "Bus", "Pedestrian", "Cyclist"}


def test_what_cannot_be_judged_is_named(street_set: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"judge.benchmarks: got 'coco', expected any of "):
        to_be_judged(config(street_set, "judge.benchmarks=[coco]"))
    with pytest.raises(ConfigError, match=r"override 'optim.lr=1': the network is trained already"):
        rejudge(tmp_path, ["optim.lr=1"])


@pytest.mark.parametrize(
    ("given", "submission", "read"),
    [
        ((), True, ("judge.limit=null",)),
        (("judge.limit=3",), True, ("judge.limit=3",)),
        ((), False, ()),
    ],
)
def test_a_submission_is_of_all_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], submission: bool, read: tuple[str, ...]
) -> None:
    """A run's `judge.limit` is for looking now and then while it trains."""

    def stop(path: Path, overrides: Sequence[str]) -> None:
        assert tuple(overrides) == read
        raise ConfigError("as far as this")

    monkeypatch.setattr(rejudge_module, "find_checkpoint_folder", lambda source: source)
    monkeypatch.setattr(rejudge_module, "read_run", stop)
    with pytest.raises(ConfigError, match="as far as this"):
        rejudge(tmp_path, given, submission=tmp_path / "out" if submission else None)


def test_kittis_metric_refuses_smaller_images(street_set: str) -> None:
    """It sorts objects by their height in pixels."""
    settings = config(street_set, "judge.benchmarks=[kitti]")
    judged = JudgedSet.of(settings)
    half = dataclasses.replace(judged, manifest=dataclasses.replace(judged.manifest, image_reduction=2))
    with pytest.raises(ConfigError, match=r"height in pixels.* 1/2 of the source's"):
        judge_frames([], half, settings)
