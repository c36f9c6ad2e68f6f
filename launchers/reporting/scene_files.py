"""Files for 3D viewers, of a prepared set or of what a run has learnt (`tandem inspect --rerun, --foxglove`)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from common.printable import say
from data.loading.evaluation import load_batch
from data.storage.manifest import Manifest, load_manifest
from data.storage.reader import SampleReader
from engine.checkpoint import newest_intact
from engine.errors import CheckpointError
from launchers.drawing.page import TextTable
from launchers.drawing.scene_description import Cloud, MoreClouds, Scene, log_rows, scene_of
from launchers.drawing.scene_foxglove import write_foxglove
from launchers.drawing.scene_rerun import write_rerun
from launchers.drawing.scenes import PrincipalColours, principal_colours
from launchers.drawing.training_pictures import point_features
from launchers.training.restore import build_objective, load_run_config

_WRITERS: Mapping[str, tuple[Callable[[Scene, Path], int], str]] = {
    "rerun": (write_rerun, "rerun {}"),
    "foxglove": (write_foxglove, "open it in Foxglove, as a local file"),
}
"""Option -> its writer, and how to look at what it wrote."""


def asks_for_scene(options: argparse.Namespace) -> bool:
    """Whether the command line asks for such a file."""
    return any(getattr(options, name) for name in _WRITERS)


def write_scenes(options: argparse.Namespace, make: Callable[[], Scene]) -> int:
    """Write what is asked for; 1 where samples were left out.

    Args:
        options: of the command line.
        make: the scene, anew for each writer, since frames are made once.

    Raises:
        ArgumentError: a library is not installed.
    """
    damaged: dict[tuple[str, str, str], None] = {}
    for name, (write, look) in _WRITERS.items():
        if getattr(options, name):
            path, scene = Path(getattr(options, name)), make()
            path.parent.mkdir(parents=True, exist_ok=True)
            frames = write(scene, path)
            damaged |= dict.fromkeys(scene.damaged)
            size = f"{path.stat().st_size / 2**20:.1f} MiB"
            say(f"{path}: {frames} samples of {scene.title}, {size}; {look.format(path)}")
    if damaged:
        header = ("key", "reason", "detail")
        say("\n" + TextTable(title="samples that training would skip", header=header, rows=tuple(damaged)).text())
    return 1 if damaged else 0


def set_scene(manifest: Manifest, options: argparse.Namespace, samples: Sequence[int]) -> Scene:
    """Of the samples that are asked for, else of a log."""
    rows = list(samples) or log_rows(manifest, options.log, options.num).tolist()
    return scene_of(manifest, SampleReader(manifest), rows, manifest.set_name)


def run_scene(run: Path, options: argparse.Namespace) -> Scene:
    """Of a log of the run's set, the validation split's first where there is one, with its newest weights' features.

    Raises:
        CheckpointError: the run has no checkpoint.
        ShardError: its set is not there.
    """
    checkpoint = newest_intact(run)
    if checkpoint is None:
        raise CheckpointError(
            f"{run} has no checkpoint yet, so there are no features to show; its set can be shown alone"
        )
    config = load_run_config(checkpoint)
    manifest = load_manifest(config.data.shards)
    log = options.log
    if log is None:
        split = "val" if "val" in manifest.splits else config.data.split
        log = str(manifest.logs[int(manifest.sample_log[manifest.indices(split)[0]])])
    objective, reader = build_objective(checkpoint, config), SampleReader(manifest)
    spec, fitted = config.method.batch_spec(), None

    def features(row: int) -> Sequence[Cloud]:
        nonlocal fitted
        batch = load_batch(reader, [row], config.data, spec)
        found = point_features(objective, batch)
        if found is None or len(found) == 0:
            return ()
        if fitted is None:  # one map for all samples, so that colours mean the same along time
            fitted = principal_colours(found)
        return (_feature_cloud(batch.points.numpy(), found, fitted),)

    more: MoreClouds = features
    rows = log_rows(manifest, log, options.num).tolist()
    return scene_of(manifest, reader, rows, f"run {run.resolve().name}", more)


def _feature_cloud(points: np.ndarray, features: np.ndarray, fitted: PrincipalColours) -> Cloud:
    return Cloud(name="features", points=points.astype(np.float32), colours=fitted.colours(features))
