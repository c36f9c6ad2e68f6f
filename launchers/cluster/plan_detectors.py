"""Detectors that follow a pre-training run: trainings of their own, from its last checkpoint and from random weights.

A training is one detector with one number of labels and one seed, which draws the labels, too. Those from random
weights lie beside the runs and are shared by all that ask for the same. Each is a run like any other, with everything
that belongs to one.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from configs.detection import RANDOM, TOWERS, FinetuneConfig
from configs.load import ConfigError
from configs.runs import RunConfig, dump_run, is_detectors, read_run
from configs.schema import FollowConfig
from engine.checkpoint import newest_records
from engine.downstream.results import fingerprint
from launchers.cluster.plan_followups import named_files, safe_name
from launchers.cluster.plan_submission import Point
from launchers.evaluation.common import describe_fraction
from launchers.finetuning.init import check_fits
from launchers.finetuning.sources import sha256_of
from launchers.runs.files import DETECTORS, RANDOM_DETECTORS

_KEY_LENGTH = 8


def with_detectors(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points, and behind them the trainings of the detectors that follow them, each once.

    Raises:
        ConfigError: a mistake in a detector's file, or a network that the run could not fill; or a detector that was
            trained from the run as it was before.
    """
    followers: dict[Path, Point] = {}
    for point in points:
        for follower in (*pretrained_points(point), *random_points(point)):
            followers.setdefault(follower.run_dir, follower)
    own = [point for point in points if point.run_dir not in followers]
    return (*own, *followers.values())


def pretrained_points(point: Point) -> list[Point]:
    """Trainings from a run's last checkpoint, in a folder of its own."""
    config = point.config
    made = []
    checked: list[tuple[object, object]] = []
    for name, detector in _detectors(config.evaluate, config.seed).items():
        folder = point.run_dir / DETECTORS / name
        started = dataclasses.replace(detector, init=str(point.run_dir), run_dir=str(folder))
        if (started.model, started.data.voxel) not in checked:
            checked.append((started.model, started.data.voxel))
            _check_network(config, started)
        _check_weights(started)
        made.append(Point(config=started, after=point.run_dir, follows=True))
    return made


def random_points(point: Point) -> list[Point]:
    """The same trainings from random weights, in a folder that all runs beside this one share."""
    made = []
    for name, detector in _detectors(point.config.evaluate, point.config.seed).items():
        fresh = dataclasses.replace(detector, init=RANDOM, init_towers=(), run_dir="")
        settings = yaml.safe_load(dump_run(fresh))
        del settings["init_towers"]  # not there in earlier versions, whose trainings keep their folders
        key = fingerprint(settings)[:_KEY_LENGTH]
        folder = point.run_dir.parent / RANDOM_DETECTORS / f"{name}-{key}"
        made.append(Point(config=dataclasses.replace(fresh, run_dir=str(folder)), follows=True))
    return made


@functools.cache  # a sweep has many runs and few detectors
def _detectors(follow: FollowConfig, run_seed: int) -> Mapping[str, FinetuneConfig]:
    """The trainings that a run's `evaluate` asks for, by name; what they start from and where they lie is not set."""
    made: dict[str, FinetuneConfig] = {}
    for stem, path in named_files([path for path in follow.configs if is_detectors(path)]).items():
        for count in follow.fractions or (None,):
            for seed in follow.seeds or (run_seed,):
                overrides = [*follow.detector_overrides, *_labels(count), f"seed={seed}", f"data.fraction.seed={seed}"]
                try:
                    detector = read_run(path, overrides, defaults={"run_dir": DETECTORS}, kind=FinetuneConfig)
                except ConfigError as error:
                    raise ConfigError(f"evaluate.configs: {path}: {error}") from error
                assert isinstance(detector, FinetuneConfig)
                if not detector.judge.benchmarks:
                    raise ConfigError(
                        f"evaluate.configs: {path}: judge.benchmarks: got [], expected one at least: nothing would "
                        'tell what was gained (evaluate.detector_overrides=["judge.benchmarks=[kitti]"])'
                    )
                made[safe_name(f"{stem}-{describe_fraction(detector.data.fraction)}-seed{seed}")] = detector
    return made


def _labels(count: int | None) -> list[str]:
    if count is None:
        return []
    return ["data.fraction.kind=all"] if count == 0 else ["data.fraction.kind=random", f"data.fraction.count={count}"]


def _check_network(config: RunConfig, detector: FinetuneConfig) -> None:
    """Refuse a detector with other networks than those that are pre-trained."""
    try:
        check_fits(config.method, config.data.voxel, detector)
    except ConfigError as error:
        raise ConfigError(
            f"evaluate.configs: the detector does not fit the run: {error}{_hint(config, detector)}"
        ) from error


def _hint(config: RunConfig, detector: FinetuneConfig) -> str:
    """The detector's networks as sections of the run's method, where both have such a network and they differ."""
    lines = []
    for name in TOWERS:
        ours, wanted = config.method.tower(name), detector.model.tower(name)
        if ours is not None and wanted is not None and ours != wanted:
            lines.append(f"\nthe detector's network, for `method.{name}`: {json.dumps(dataclasses.asdict(wanted))}")
    return "".join(lines)


def _check_weights(detector: FinetuneConfig) -> None:
    """Refuse to count a detector that was trained from another checkpoint as one of this run."""
    records = newest_records(Path(detector.run_dir))
    if records is None:
        return
    built_with = (records[0].get("fingerprint") or {}).get("init")
    there = sha256_of(detector.init)
    if there is not None and built_with != there:
        raise ConfigError(
            f"{detector.run_dir} was trained from another checkpoint than {detector.init} has now; remove that folder "
            "to train it again, or leave what follows out (--no-evaluate)"
        )
