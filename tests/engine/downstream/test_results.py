from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from engine.downstream.results import (
    Result,
    ResultsError,
    baseline_of,
    paired_difference,
    read_results,
    write_results,
)


def make(**changes: object) -> Result:
    values: dict[str, object] = {
        "protocol": "linear_probe",
        "dataset": "toy",
        "labels": "all",
        "init": "slidr",
        "pretrained": True,
        "teacher": "resnet18",
        "leak": "ssl-teacher",
        "seeds": (0, 1, 2),
        "metrics": {"miou": (40.0, 42.0, 44.0), "accuracy": (80.0, 81.0, 82.0)},
        "class_iou": {"road": 90.0, "bus": None},
        "lr": (0.01, 0.01, 0.01),
        "tuning": {"0.001": 30.0, "0.01": 41.0},
        "fingerprint": "f",
        "date": "2025-01-01T00:00:00+00:00",
    }
    metrics = {**values["metrics"], **{k: changes.pop(k) for k in ("miou", "accuracy") if k in changes}}  # type: ignore[dict-item]
    return Result(**{**values, "metrics": metrics, **changes})  # type: ignore[arg-type]


def test_round_trip_and_summary(tmp_path: Path) -> None:
    path = tmp_path / "run" / "results.json"
    write_results(path, [make()])
    assert read_results(path) == [make()]
    record = json.loads(path.read_text())["results"][0]
    assert (record["miou_mean"], record["miou_std"]) == (42.0, 2.0)
    assert make(seeds=(0,), miou=(40.0,), accuracy=(1.0,)).std is None


def test_permissions_are_what_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_results(tmp_path / "results.json", [make()])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "results.json").stat().st_mode) == 0o640


def test_newer_record_replaces_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, [make(), make(protocol="knn")])
    kept = write_results(path, [make(miou=(50.0, 50.0, 50.0))])
    assert [(r.protocol, r.mean) for r in kept] == [("linear_probe", 50.0), ("knn", 42.0)]
    assert read_results(path) == kept


def _write(path: str, name: str) -> None:
    write_results(path, [make(init=name)])


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    context = multiprocessing.get_context("fork")
    names = [f"init{i}" for i in range(8)]
    workers = [context.Process(target=_write, args=(str(path), name)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(r.init for r in read_results(path)) == names
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.json", "results.json.lock"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ('{"schema_version": 9, "results": []}', "schema_version is 9"),
        ("[]", "schema_version is None"),
        ('{"schema_version": 1, "results": [{"protocol": 3}]}', "result 0: protocol: expected a text, got 3"),
        ('{"schema_version": 1}', "no list of results"),
    ],
)
def test_damaged_file_is_refused_and_left_alone(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=message):
        write_results(path, [make()])
    assert path.read_text() == text


def test_paired_difference_is_free_of_the_spread_between_draws() -> None:
    random = make(init="random", pretrained=False, miou=(20.0, 30.0, 10.0))
    ours = make(miou=(24.0, 35.0, 16.0))
    gain = paired_difference(ours, random)
    assert gain is not None
    assert (gain.mean, gain.std, gain.num_pairs) == (5.0, 1.0, 3)
    fewer = paired_difference(ours, dataclasses.replace(random, seeds=(7, 0, 8)))
    assert fewer is not None
    assert (fewer.mean, fewer.std, fewer.num_pairs) == (-6.0, None, 1)
    assert paired_difference(ours, dataclasses.replace(random, seeds=(7, 8, 9))) is None
    with pytest.raises(ResultsError, match="measured differently"):
        paired_difference(ours, dataclasses.replace(random, fingerprint="g"))


def test_baseline_is_random_under_the_same_conditions() -> None:
    old = make(init="random", pretrained=False)
    new = dataclasses.replace(old, date="2025-02-01T00:00:00+00:00")
    other = dataclasses.replace(new, fingerprint="g", date="2025-03-01T00:00:00+00:00")
    assert baseline_of(make(), [make(), old, new, other]) is new
    assert baseline_of(make(), [make(), other]) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"miou": (1.0,)}, "3 seeds, 1 values of miou"),
        ({"miou": (1.0, 2.0, 120.0)}, "not in percent"),
        ({"leak": "some"}, "leak"),
    ],
)
def test_record_refuses_nonsense(changes: dict[str, object], message: str) -> None:
    with pytest.raises(Exception, match=message):
        make(**changes)


def test_files_of_the_first_schema_are_read(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, [make()])
    tree = json.loads(path.read_text())
    record = tree["results"][0]
    metrics = record.pop("metrics")
    del record["metric"]
    path.write_text(json.dumps({"schema_version": 1, "results": [{**record, **metrics}]}))
    assert read_results(path) == [make()]
    write_results(path, [make(protocol="knn")])
    assert json.loads(path.read_text())["schema_version"] == 2
    assert read_results(path) == [make(), make(protocol="knn")]
    path.write_text(json.dumps({"schema_version": 1, "results": [record]}))
    with pytest.raises(ResultsError, match="not iterable"):
        read_results(path)


def test_errors_are_compared_the_other_way_round(tmp_path: Path) -> None:
    ours, random = (
        make(init=name, metric="abs_rel", metrics={"abs_rel": values, "delta1": (90.0, None, 92.0)})
        for name, values in (("slidr", (0.1, 0.2, 0.3)), ("random", (0.2, 0.4, 0.3)))
    )
    assert ours.goodness > random.goodness
    assert ours.mean_of("delta1") == 91.0
    assert ours.mean_of("rmse") is None
    gain = paired_difference(ours, random)
    assert gain is not None
    assert gain.mean == pytest.approx(-0.1)
    assert ours.measure.text(gain.mean, gain.std, sign=True) == "-0.100 ± 0.100"
    write_results(tmp_path / "r.json", [ours])
    assert read_results(tmp_path / "r.json") == [ours]
    assert json.loads((tmp_path / "r.json").read_text())["results"][0]["abs_rel_mean"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "rmse"}, "metric = 'rmse' is not among miou, accuracy"),
        ({"metrics": {"beauty": (1.0,) * 3}, "metric": "beauty"}, "unknown metric 'beauty'"),
        ({"metrics": {"miou": (None, 1.0, 1.0)}}, "miou"),
        ({"metrics": {"abs_rel": (-0.1,) * 3}, "metric": "abs_rel"}, "a number of at least 0"),
    ],
)
def test_metrics_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        make(**changes)
