"""`tandem evaluate CHECKPOINT... CONFIG [section.field=value ...]`: what pre-training gained, beside no pre-training.

CHECKPOINT is a run's folder (its newest checkpoint) or a checkpoint's folder. Several are taken as repetitions of one
method (other seeds): the r-th seed of a protocol uses the r-th of them. Results are added to results.json; what is
there already is not measured again. The lists of labelled sweeps that fine-tuning drew lie beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Int
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import nn

from configs.load import ConfigError, dump, load
from configs.schema import PRETRAIN_CHOICES, EvaluateConfig, PretrainConfig
from data.augment import PointAugmentConfig
from data.fractions import FractionConfig, select, write_list
from data.loader import point_batches
from data.sample import IGNORE_LABEL, Batch
from data.shards import Manifest, SampleReader, ShardError, load_manifest
from data.voxelize import VoxelConfig
from engine.checkpoint import WEIGHTS, load_weights, read_state
from engine.downstream.evaluate import Initialisation, evaluate
from engine.downstream.metrics import LabelError
from engine.downstream.protocol import LabelDraws, SegmentationTask, Splits, hold_out, thin
from engine.downstream.results import FILE_NAME, LeakLevel, Result, ResultsError, read_results, write_results
from engine.errors import CheckpointError
from launchers.cli import guarded
from launchers.run_folder import CHECKPOINT_CONFIG, find_checkpoint_folder, load_run_config
from launchers.table import print_table

_LONG_PASS = 64
"""Sweeps from which on reading ahead in other processes is worth starting them."""


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = argparse.ArgumentParser(
        prog="tandem evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="folder of a run or of a checkpoint")
    p.add_argument("config", help="YAML file of the protocols, for example configs/downstream/street.yaml")
    p.add_argument("--show-config", action="store_true", help="print the resolved config and stop")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 when all results are written."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Overrides may stand anywhere; argparse cannot tell them from checkpoints.
    overrides = [a for a in arguments if re.match(r"[a-z_][a-z0-9_.]*=", a)]
    options = parser().parse_args([a for a in arguments if a not in overrides])
    config = load(EvaluateConfig, options.config, overrides)
    if options.show_config:
        print(dump(config), end="")
        return 0
    console = Console(highlight=False)
    with shown_progress(console) as progress:
        results = evaluate_runs([Path(c) for c in options.checkpoints], config, progress=progress)
    print_table(results, console)
    console.print(f"results: {results_file(options.checkpoints[0], config)}")
    return 0


@contextmanager
def shown_progress(console: Console) -> Iterator[Callable[[float, str], None]]:
    """A bar with a time estimate on a terminal; a line for each new piece of work in a log file."""
    if not console.is_terminal:
        last = [""]

        def line(share: float, text: str) -> None:
            if text != last[0]:
                console.print(f"{share:4.0%}  {text}")
                last[0] = text

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("reading", total=1.0)
        yield lambda share, text: bar.update(task, completed=share, description=text)
        bar.update(task, completed=1.0, description="evaluated")


def evaluate_runs(
    checkpoints: Sequence[Path], config: EvaluateConfig, *, progress: Callable[[float, str], None] | None = None
) -> list[Result]:
    """Measure pre-trained networks and random initialisation under the same budget, and write the results down.

    Args:
        checkpoints: folders of runs or checkpoints, repetitions of one method.
        config: protocols.
        progress: told the share done (0 to 1) and what is going on.

    Returns:
        The results that answer this call, measured now or before.

    Raises:
        ConfigError: settings that do not fit the data or each other.
        ShardError: no such set or split, an unlabelled set, or damaged samples.
        CheckpointError: no usable weights, or checkpoints that are no repetitions of each other.
        DivergenceError: training diverged at every learning rate.
    """
    sources = [open_source(path) for path in checkpoints]
    _check_alike(sources)
    run_config = sources[0].config
    manifest = load_manifest(config.data.shards or run_config.data.shards)
    path = results_file(checkpoints[0], config)
    task, splits, draws = _plan(manifest, config)
    _write_lists(path.parent, manifest, draws, config)
    wanted: list[Result] = []
    try:
        known = read_results(path) if path.exists() else []
        for result in evaluate(
            initialisations(sources, config),
            LabelledSweeps(manifest, run_config.data.voxel, config),
            splits,
            task,
            config,
            draws=draws,
            context=_context(manifest, run_config),
            device=_device(config.device),
            known=known,
            progress=progress,
        ):
            wanted.append(result)
            if result not in known:
                write_results(path, [result])
    except LabelError as error:
        raise ShardError(f"{manifest.root}: {error}") from error
    except ResultsError as error:
        raise ConfigError(f"{error}; mend or remove the file, or give another with results=...") from error
    return wanted


def _plan(manifest: Manifest, config: EvaluateConfig) -> tuple[SegmentationTask, Splits, LabelDraws]:
    try:
        task, splits = task_of(manifest), splits_of(manifest, config)
        return task, splits, draws_of(manifest, splits, config)
    except ValueError as error:
        raise ConfigError(f"{error} ({manifest.root})") from error


def results_file(checkpoint: str | Path, config: EvaluateConfig) -> Path:
    """Where results of a run or checkpoint go."""
    return Path(config.results) if config.results is not None else _run_folder(Path(checkpoint)) / FILE_NAME


# --- data ---


@dataclass(frozen=True)
class LabelledSweeps:
    """Reads labelled sweeps (the engine's `Sweeps`)."""

    manifest: Manifest
    voxel: VoxelConfig
    config: EvaluateConfig

    def __call__(
        self, indices: Sequence[int], *, batch_size: int, augment: bool = False, seed: int = 0, epoch: int = 0
    ) -> Iterator[Batch]:
        """Batches in the given order."""
        return point_batches(
            SampleReader(self.manifest),
            np.asarray(indices, dtype=np.int64),
            self.voxel,
            batch_size=batch_size,
            augment=self.config.augment if augment else PointAugmentConfig(enabled=False),
            seed=seed,
            epoch=epoch,
            num_workers=self.config.data.num_workers if len(indices) >= _LONG_PASS else 0,
        )


def task_of(manifest: Manifest) -> SegmentationTask:
    """The set's classes.

    Raises:
        ShardError: it has none.
    """
    if not manifest.class_names:
        raise ShardError(
            f"{manifest.root} ({manifest.set_name}) has no point labels, so nothing can be evaluated on it; give a "
            "labelled set with data.shards=..."
        )
    return SegmentationTask(dataset=manifest.set_name, class_names=manifest.class_names, ignore_label=IGNORE_LABEL)


def splits_of(manifest: Manifest, config: EvaluateConfig) -> Splits:
    """Sweeps to learn from and sweeps to measure on.

    Raises:
        ShardError: the set has no split of that name.
        ValueError: too few sweeps, or the same in both.
    """
    train = thin(manifest.indices(config.data.train_split), config.data.limit_train)
    test = thin(manifest.indices(config.data.test_split), config.data.limit_test)
    return Splits(train=train, train_logs=manifest.sample_log[train].astype(np.int64), test=test)


def draws_of(manifest: Manifest, splits: Splits, config: EvaluateConfig) -> LabelDraws:
    """Labelled sweeps of each fine-tuning run, before any network is seen.

    Random draws come from the part of the train split that no rate is tuned on; the fixed lists of the literature
    from all of it, so that they stay the lists of the literature.

    Raises:
        ValueError: the fraction keeps nothing.
    """
    fit = hold_out(splits, config.validation_share)[0]
    pool = fit if config.fraction.kind == "random" else splits.train

    def draw(indices: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " k"]:
        return select(manifest, indices, dataclasses.replace(config.fraction, seed=config.fraction.seed + seed))

    return LabelDraws(
        text=describe_fraction(config.fraction),
        runs=tuple(draw(pool, seed) for seed in config.finetune.seeds),
        tuning=tuple(draw(fit, seed) for seed in config.finetune.tune_seeds),
        settings={"fraction": dataclasses.asdict(config.fraction), "augment": dataclasses.asdict(config.augment)},
    )


def describe_fraction(fraction: FractionConfig) -> str:
    """For tables, e.g. "1 frame" or "1 in 100 logs"."""
    if fraction.kind == "random":
        return f"{fraction.count} frame" + ("s" if fraction.count > 1 else "")
    return "all" if fraction.kind == "all" else f"1 in {fraction.every} {fraction.kind.removeprefix('every_')}s"


def _write_lists(folder: Path, manifest: Manifest, draws: LabelDraws, config: EvaluateConfig) -> None:
    if "finetune" not in config.protocols:
        return
    name = re.sub(r"\W+", "-", f"{manifest.set_name} {draws.text}")
    for use, seeds, lists in (
        ("run", config.finetune.seeds, draws.runs),
        ("tuning", config.finetune.tune_seeds, draws.tuning),
    ):
        for seed, drawn in zip(seeds, lists, strict=True):
            note = f"Labelled sweeps of fine-tuning ({draws.text}), {use} seed {seed}."
            write_list(folder / "labelled" / f"{name}_{use}{seed}.txt", manifest, drawn, note)


# --- networks ---


@dataclass(frozen=True)
class Source:
    """A pre-trained network on disk.

    Attributes:
        checkpoint: its folder.
        config: of the run.
        method: its name.
        identity: run, step and beginning of the weights' sha256.
        steps: updates of pre-training.
    """

    checkpoint: Path
    config: PretrainConfig
    method: str
    identity: str
    steps: int


def open_source(path: Path) -> Source:
    """Find and check a checkpoint.

    Raises:
        CheckpointError: nothing there, damaged, or written by another version.
    """
    folder = find_checkpoint_folder(path)
    sha256 = json.loads((folder / "files.json").read_text())[WEIGHTS]["sha256"]
    return Source(
        checkpoint=folder,
        config=load_run_config(folder),
        method=str(json.loads((folder / CHECKPOINT_CONFIG).read_text())["method"]["name"]),
        identity=f"{_run_folder(folder).name}/{folder.name} {sha256[:12]}",
        steps=int(read_state(folder)["step"]),
    )


def _run_folder(path: Path) -> Path:
    """The run that a folder belongs to: <run>/checkpoints/step_... or the run itself."""
    resolved = path.resolve()
    return resolved.parent.parent if resolved.parent.name == "checkpoints" else resolved


def _check_alike(sources: Sequence[Source]) -> None:
    """Repetitions of one method differ in their seed and their folder, in nothing that shapes the network."""
    for other in sources[1:]:
        for what in ("method", "config.method", "config.data.voxel"):
            first, second = (_attribute(s, what) for s in (sources[0], other))
            if first != second:
                raise CheckpointError(
                    f"{other.checkpoint}: {what.removeprefix('config.')} differs from that of "
                    f"{sources[0].checkpoint}; checkpoints of one call are repetitions of one method. Evaluate them in "
                    "separate calls"
                )


def _attribute(value: object, dotted: str) -> object:
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def initialisations(sources: Sequence[Source], config: EvaluateConfig) -> list[Initialisation]:
    """The pre-trained networks and, if wanted, random ones of the same architecture."""
    first = sources[0]
    teacher, leak = describe_teacher(getattr(first.config.method, "teacher", None))
    seeds = ", ".join(str(s.config.seed) for s in sources)
    steps = "/".join(sorted({str(s.steps) for s in sources}))
    inits = [
        Initialisation(
            name=first.method,
            pretrained=True,
            networks=tuple(lambda s=s: pretrained_backbone(s) for s in sources),  # type: ignore[misc]
            checkpoint=tuple(s.identity for s in sources),
            teacher=teacher,
            leak=leak,
            pretraining=f"{steps} steps, seed{'s' if len(sources) > 1 else ''} {seeds}",
        )
    ]
    if config.random:
        count = max(len(config.seeds(p)) for p in config.protocols)
        networks = tuple(lambda n=n: random_backbone(first.config, n) for n in range(count))
        inits.append(Initialisation(name="random", pretrained=False, networks=networks))
    return inits


def random_backbone(config: PretrainConfig, seed: int) -> nn.Module:
    """The run's 3D network with fresh weights; the caller's random state is left alone.

    Raises:
        ConfigError: the method has no 3D network.
    """
    backbone = getattr(config.method, "backbone", None)
    if backbone is None:
        raise ConfigError(
            f"{type(config.method).__name__} has no section `backbone`: there is no 3D network to evaluate"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built: nn.Module = backbone.build()
    return built


def pretrained_backbone(source: Source) -> nn.Module:
    """The run's 3D network with its trained weights, all of them.

    Raises:
        CheckpointError: the weights do not fit the network.
    """
    backbone = random_backbone(source.config, 0)
    weights = load_weights(source.checkpoint, prefix="backbone.")
    try:
        backbone.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise CheckpointError(
            f"{source.checkpoint}: {len(lines)} kinds of mismatch between the weights and the run's network, first: "
            f"{lines[0] if lines else error}; was it trained with another version?"
        ) from error
    return backbone


def describe_teacher(teacher: object | None) -> tuple[str, LeakLevel]:
    """Name for tables, and how much human labelling the teacher brought along."""
    if teacher is None:
        return "", "none"
    name, weights = str(getattr(teacher, "name", "unnamed")), str(getattr(teacher, "weights", ""))
    kind = weights.partition(":")[0]
    levels: dict[str, LeakLevel] = {
        "random": "none",
        "imagenet": "supervised-teacher",
        "torchvision": "supervised-teacher",
        "moco_v1": "ssl-teacher",
        "moco_v2": "ssl-teacher",
        "moco_v3": "ssl-teacher",
        "dino": "ssl-teacher",
    }
    return f"{name} ({kind})", levels.get(kind, "unknown")


def _context(manifest: Manifest, config: PretrainConfig) -> dict[str, Any]:
    """What shapes the numbers beside the protocols' settings."""
    resolved = yaml.safe_load(dump(config, choices=PRETRAIN_CHOICES))
    backbone = resolved["method"].get("backbone")
    return {"data": manifest.fingerprint(), "voxel": resolved["data"]["voxel"], "backbone": backbone}


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: got 'cuda', but torch finds no GPU here; use device=cpu")
    return torch.device(name)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
