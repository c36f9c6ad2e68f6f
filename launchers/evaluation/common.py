"""What the protocols of every tower are given, and which labelled samples they may use."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Int

from configs.load import ConfigError
from configs.runs import RunConfig, dump_run, trained
from configs.schema import EvaluateConfig
from data.loading.fractions import FractionConfig, select, write_list
from data.sample import IGNORE_LABEL, Batch
from data.storage.manifest import Manifest
from data.storage.reader import SampleError
from data.storage.shard import ShardError
from data.views.colour import ToneConfig
from engine.downstream.common import LabelDraws, Samples, SegmentationTask, Splits, Truth, hold_out, thin
from engine.downstream.runner import Tower
from launchers.runs.settings import points_identity, voxel_identity

logger = logging.getLogger("tandem.evaluate")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One call of `tandem evaluate`, as the readers of a tower see it.

    Attributes:
        manifest: of the labelled set.
        run: config of the pre-training run.
        config: protocols.
        folder: of the results file; lists of labelled samples and pictures go beside it.
        device: where networks run.
    """

    manifest: Manifest
    run: RunConfig
    config: EvaluateConfig
    folder: Path
    device: torch.device

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that image networks see."""
        return self.config.images.size or self.run.data.image_size

    def context(self, tower: Tower) -> dict[str, Any]:
        """See `measured_on`; with the images that an image network is given."""
        context = measured_on(self.manifest, yaml.safe_load(dump_run(self.run)), tower)
        if tower == "image_backbone":
            images = dataclasses.asdict(self.config.images)
            images = {key: value for key, value in images.items() if key not in _LATER or value != _LATER[key]}
            context |= {"image_size": list(self.image_size), "images": images}
        return context


_LATER: Mapping[str, object] = {"rotate_deg": 0.0, "tone": dataclasses.asdict(ToneConfig())}
"""Settings of images that records of earlier versions lack, at the value that leaves all as before."""

_LONG_PASS = 64
"""Samples from which on reading ahead in other processes is worth starting them."""


def workers_for(samples: Samples, config: EvaluateConfig) -> int:
    """Processes that read these samples ahead."""
    return config.data.num_workers if len(samples.indices) >= _LONG_PASS else 0


_TRIED = 8
"""Test samples from which one is taken for a picture."""


def drawn_sample(read: Callable[[Samples], Iterator[Batch]], splits: Splits, truth: Truth) -> Batch | None:
    """The sample in the middle of the test split, or the next usable one: the same for all initialisations.

    None where there is none, which is counted where it is measured: a picture must not end an evaluation.
    """
    middle = splits.test[len(splits.test) // 2 :][:_TRIED].tolist()
    try:
        return next(iter(read(Samples(middle, truth=truth))), None)
    except (ShardError, SampleError) as error:
        logger.warning("no picture of predictions: %s", error)
        return None


@contextmanager
def fitting(manifest: Manifest) -> Iterator[None]:
    """Settings that do not fit the set are a mistake in the config, and say which set."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{error} ({manifest.root})") from error


def task_of(manifest: Manifest, config: EvaluateConfig) -> SegmentationTask:
    """The set's classes.

    Raises:
        ShardError: it has none.
    """
    if not manifest.class_names:
        raise ShardError(
            f"{manifest.root} ({manifest.set_name}) has no point labels, so nothing can be evaluated on it; give a "
            "labelled set with data.shards=..."
        )
    return SegmentationTask(
        dataset=manifest.set_name,
        class_names=manifest.class_names,
        ignore_label=IGNORE_LABEL,
        absent_class=config.absent_class_of(manifest.set_name),
    )


def splits_of(manifest: Manifest, config: EvaluateConfig, tower: Tower) -> Splits:
    """Sweeps to learn from and sweeps to measure on.

    With `data.holdout` both come from the train split, in whole logs, and the test split is not looked at.

    Raises:
        ShardError: the set has no split of that name.
        ValueError: too few sweeps, or the same in both.
    """

    def sweeps(split: str, limit: int | None) -> Int[np.ndarray, " n"]:
        indices = manifest.indices(split)
        # A set may also have sweeps without classes of points (nuScenes between key frames, most frames of Waymo).
        return thin(manifest.labelled(indices) if tower == "backbone" else indices, limit)

    train = sweeps(config.data.train_split, config.data.limit_train)
    if config.data.holdout:
        train, held = hold_out(train, manifest.sample_log[train].astype(np.int64), config.validation_share)
        test = thin(held, config.data.limit_test)
    else:
        test = sweeps(config.data.test_split, config.data.limit_test)
    return Splits(train=train, train_logs=manifest.sample_log[train].astype(np.int64), test=test)


def draws_of(
    manifest: Manifest,
    splits: Splits,
    config: EvaluateConfig,
    tower: Tower,
    seeds: Sequence[int],
    tune_seeds: Sequence[int],
) -> LabelDraws:
    """Labelled samples of each training run of a protocol, before any network is seen.

    Raises:
        ValueError: the fraction keeps nothing.
    """
    # Random draws come from the part of the train split that no rate is tuned on; the fixed lists of the literature
    # from all of it, so that they stay the lists of the literature.
    fit = hold_out(splits.train, splits.train_logs, config.validation_share)[0]
    pool = fit if config.fraction.kind == "random" else splits.train

    def draw(indices: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " k"]:
        return select(manifest, indices, dataclasses.replace(config.fraction, seed=config.fraction.seed + seed))

    settings: dict[str, Any] = {"fraction": dataclasses.asdict(config.fraction)}
    if tower == "backbone":  # these augmentations shape sweeps, not images
        settings["augment"] = points_identity(json.loads(json.dumps(dataclasses.asdict(config.augment))))
    return LabelDraws(
        text=describe_fraction(config.fraction),
        runs=tuple(draw(pool, seed) for seed in seeds),
        tuning=tuple(draw(fit, seed) for seed in tune_seeds),
        settings=settings,
    )


def describe_fraction(fraction: FractionConfig) -> str:
    """For tables, e.g. "1 frame" or "1 in 100 logs"."""
    if fraction.kind == "random":
        return f"{fraction.count} frame" + ("s" if fraction.count > 1 else "")
    if fraction.kind == "list":
        return f"list {Path(fraction.file).stem}"
    return "all" if fraction.kind == "all" else f"1 in {fraction.every} {fraction.kind.removeprefix('every_')}s"


def write_lists(
    folder: Path,
    manifest: Manifest,
    draws: LabelDraws,
    seeds: Sequence[int],
    tune_seeds: Sequence[int],
    *,
    protocol: str,
) -> None:
    """Write the drawn samples down, one list a run, in `labelled/` of the results' folder."""
    # The lists of fine-tuning have no protocol in their names: they are older than all other protocols that draw.
    what, suffix = ("fine-tuning", "") if protocol == "finetune" else (protocol, f" {protocol}")
    name = re.sub(r"\W+", "-", f"{manifest.set_name} {draws.text}{suffix}")
    for use, numbers, lists in (("run", seeds, draws.runs), ("tuning", tune_seeds, draws.tuning)):
        for seed, drawn in zip(numbers, lists, strict=True):
            note = f"Labelled samples of {what} ({draws.text}), {use} seed {seed}."
            write_list(folder / "labelled" / f"{name}_{use}{seed}.txt", manifest, drawn, note)


def measured_on(manifest: Manifest, resolved: Mapping[str, Any], tower: Tower) -> dict[str, Any]:
    """What shapes the numbers beside the protocols' settings and the weights: the data and the network.

    `resolved` is the run's config as nested plain values.
    """
    if tower == "objective":
        # Not the method's own options: runs that differ in them are compared with each other.
        towers = [measured_on(manifest, resolved, part) for part in ("backbone", "image_backbone")]
        return towers[0] | towers[1]
    network = trained(resolved)[1].get(tower)
    if tower == "backbone":
        return {"data": manifest.fingerprint(), "voxel": voxel_identity(resolved["data"]["voxel"]), "backbone": network}
    # What the network was filled from before pre-training does not shape random ones.
    plain = {k: v for k, v in (network or {}).items() if k not in {"weights", "min_match"}}
    return {"data": manifest.fingerprint(), "image_size": resolved["data"]["image_size"], tower: plain}


def device_of(name: str) -> torch.device:
    """The device that a config's `device` means.

    Raises:
        ConfigError: a GPU where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: got 'cuda', but torch finds no GPU here; use device=cpu")
    return torch.device(name)
