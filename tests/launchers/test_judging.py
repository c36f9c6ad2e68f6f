"""When a detector's training stops to be judged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from configs.detection import FinetuneConfig
from configs.load import ConfigError
from data.batch_spec import BatchSpec
from data.loading.loader import DataConfig, build_loader
from data.sample import IGNORE_LABEL, Sample
from data.storage.manifest import SetInfo
from data.storage.shard import ShardError
from data.storage.shard_writer import join_manifest, write_shard
from data.street.classes import CLASS_NAMES
from engine.distributed import World
from launchers.finetuning.judging import Judging
from launchers.finetuning.kinds import check_labelled, to_be_judged
from launchers.runs.files import DETECTIONS_FILE
from launchers.training.train import load_any_run
from tests.helpers.pretrain_run import CONFIGS
from tests.helpers.street_logs import street_log

STEPS_PER_EPOCH = 2.5
LAST = 12

PERIODS = {
    "updates": ((0, 5), [5, 10, 12]),
    "epochs": ((2, 0), [5, 10, 12]),
    "an epoch of no whole number of updates": ((1, 0), [3, 5, 8, 10, 12]),
    "both": ((2, 4), [4, 5, 8, 10, 12]),
    "the end alone": ((0, 0), [12]),
}


def _judging(run_dir: Path, street_set: str, world: World, every: tuple[int, int]) -> Judging:
    path = str(CONFIGS.parent / "finetune" / "centerpoint_street.yaml")
    epochs, steps = every
    settings = [f"run_dir={run_dir}", f"data.shards={street_set}", f"judge.every_epochs={epochs}"]
    config = load_any_run(path, [*settings, f"judge.every_steps={steps}"], kind=FinetuneConfig)
    return Judging(config, world, steps_per_epoch=STEPS_PER_EPOCH)


def _due(judging: Judging, first: int = 1) -> list[int]:
    return [step for step in range(first, LAST + 1) if judging.due(step, last=step == LAST)]


@pytest.mark.parametrize("name", PERIODS)
def test_it_is_judged_after_so_many_updates_or_epochs_and_at_the_end(
    name: str, street_set: str, world: World, tmp_path: Path
) -> None:
    every, expected = PERIODS[name]
    judging = _judging(tmp_path, street_set, world, every)
    judging.begin(0)
    assert _due(judging) == expected


def test_what_was_judged_before_the_run_went_on_is_not_judged_again(
    street_set: str, world: World, tmp_path: Path
) -> None:
    (tmp_path / DETECTIONS_FILE).write_text("".join(json.dumps({"step": step}) + "\n" for step in (5, 10)))
    judging = _judging(tmp_path, street_set, world, (0, 5))
    judging.begin(8)  # from a checkpoint: what came after it is done again, and judged again
    assert _due(judging, 5) == [10, 12]
    judging = _judging(tmp_path, street_set, world, (0, 5))
    judging.begin(10)
    assert _due(judging, 5) == [12]


def _partly_labelled(root: Path, labelled: tuple[bool, ...]) -> str:
    """A set of one split "val"; nobody has labelled the frames that are False."""
    frames = street_log(("front",), frames=len(labelled))
    nothing = {"labels": None, "instances": None, "boxes": None}
    return _written(
        root,
        [
            known if kept else dataclasses.replace(known, **nothing)  # type: ignore[arg-type]
            for known, kept in zip(frames, labelled, strict=True)
        ],
    )


def _written(root: Path, samples: list[Sample]) -> str:
    root.mkdir()
    table = write_shard(root / "shard-000000.tar", samples)
    info = SetInfo(
        set_name="synthetic",
        camera_names=("front",),
        class_names=CLASS_NAMES,
        box_categories=CLASS_NAMES,
        logs=(samples[0].log,),
        splits=("val",),
        superpixels=None,
    )
    join_manifest(str(root), info, [table])
    return str(root)


@pytest.mark.parametrize("network", ["centerpoint", "panoptic"])
def test_a_split_that_nobody_has_labelled_is_refused_before_the_training(network: str, tmp_path: Path) -> None:
    """One labelled frame is enough, wherever it is: some sets label every tenth."""
    path = str(CONFIGS.parent / "finetune" / f"{network}_street.yaml")
    for name, labelled in {"none": (False, False), "last": (False, True)}.items():
        shards = _partly_labelled(tmp_path / name, labelled)
        config = load_any_run(path, [f"run_dir={tmp_path}", f"data.shards={shards}"], kind=FinetuneConfig)
        judged = to_be_judged(config)
        if name == "last":
            check_labelled(judged, config)
            continue
        with pytest.raises(
            ConfigError, match=r"judge\.split=val: none of its 2 frames .*choose another split.*judge\.sh"
        ):
            check_labelled(judged, config)


def test_points_that_are_all_unlabelled_are_nothing_to_learn_from(tmp_path: Path) -> None:
    """They would be trained on with a loss of 0; one labelled frame is enough."""
    spec = BatchSpec(images=False, point_classes=("road", "car"))
    known, other = street_log(("front",), frames=2)
    numbers = {"none": IGNORE_LABEL, "others": CLASS_NAMES.index("pole"), "one": CLASS_NAMES.index("car")}
    for name, last in numbers.items():
        frames = [
            dataclasses.replace(frame, labels=np.full(len(frame.points_lidar), number, np.uint8))
            for frame, number in ((known, IGNORE_LABEL), (other, last))
        ]
        config = DataConfig(shards=_written(tmp_path / name, frames), split="val", num_workers=0)
        if name == "one":
            assert len(build_loader(config, spec=spec, seed=0, rank=0, world_size=1).state(0)) > 0
            continue
        with pytest.raises(ShardError, match="no point of its 2 samples in use is labelled with any of road, car"):
            build_loader(config, spec=spec, seed=0, rank=0, world_size=1)
