"""Measure pre-trained networks beside random ones with the protocols of a config, and write the results down."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from common.file_lock import FileLock
from common.files import check_room
from common.run_files import RESULTS_FILE
from configs.load import ConfigError
from configs.runs import RunConfig
from configs.schema import EvaluateConfig
from data.storage.manifest import load_manifest
from data.storage.shard import ShardError
from engine.downstream.common import UnsuitableError
from engine.downstream.confusion import LabelError
from engine.downstream.protocols import PROTOCOLS, of_tower
from engine.downstream.results import Result, ResultsError, read_results, write_results
from engine.downstream.runner import Initialisation, Job, Parts, Tower, measure
from launchers.evaluation.common import Evaluation, device_of, draws_of, fitting, splits_of, task_of, write_lists
from launchers.evaluation.images import image_parts
from launchers.evaluation.networks import (
    check_alike,
    check_tower,
    open_source,
    pretrained_initialisation,
    random_initialisation,
    run_folder_of,
)
from launchers.evaluation.registration_task import pose_parts
from launchers.evaluation.sweeps import sweep_parts
from launchers.evaluation.weight_file import WeightFile
from launchers.runs.terminal import drawn_late

logger = logging.getLogger("tandem.evaluate")

_POLL_S = 1.0
_ROOM_BYTES = 1 << 20
"""That must be free before anything is measured: records take some kilobytes, lists and pictures more."""

Progressing = Callable[[float, str], None]
"""Called with the share done (0 to 1) and the piece of work at hand."""


def evaluate_runs(
    checkpoints: Sequence[Path],
    config: EvaluateConfig,
    *,
    chosen: tuple[str, ...] = (),
    progress: Progressing | None = None,
) -> list[Result]:
    """Measure pre-trained networks and random initialisation under the same budget, and write the results down.

    Args:
        checkpoints: folders of runs or checkpoints, repetitions of one method.
        config: protocols.
        chosen: how the checkpoints were chosen, see `Result.chosen`.
        progress: see `Progressing`.

    Returns:
        The results that answer this call, measured now or before.

    Raises:
        OSError: the results cannot be written; nothing was measured.
        ConfigError: settings that do not fit the data or each other.
        ShardError: no such set or split, an unlabelled set, or damaged samples.
        CheckpointError: no usable weights, or checkpoints that are no repetitions of each other.
        DivergenceError: training diverged at every learning rate.
    """
    sources = [open_source(path) for path in checkpoints]
    check_alike(sources)

    def of_tower(tower: Tower) -> list[Initialisation]:
        random = [random_initialisation(sources[0].config, config, tower)] if config.random else []
        return [pretrained_initialisation(sources, tower, chosen), *random]

    return _measure(of_tower, sources[0].config, config, results_file(checkpoints[0], config), progress)


def evaluate_file(
    file: WeightFile, config: EvaluateConfig, path: Path, *, progress: Progressing | None = None
) -> list[Result]:
    """Measure the network of a file and random initialisation under the same budget into the results file `path`.

    Returns:
        The results that answer this call, measured now or before.

    Raises:
        ConfigError, ShardError, DivergenceError: as `evaluate_runs`.
    """

    def of_tower(tower: Tower) -> list[Initialisation]:
        return [file.initialisation(), *([random_initialisation(file.run, config, tower)] if config.random else [])]

    return _measure(of_tower, file.run, config, path, progress)


def evaluate_random(
    run_config: RunConfig, config: EvaluateConfig, path: Path, *, progress: Progressing | None = None
) -> list[Result]:
    """Measure random initialisation of a run's networks into the results file `path`; no checkpoint is needed.

    `run_config` gives the networks, their input and the set (unless `config` names another).

    Returns:
        One record a protocol, measured now or before.

    Raises:
        ConfigError, ShardError, DivergenceError: as `evaluate_runs`.
    """
    return _measure(
        lambda tower: [random_initialisation(run_config, config, tower)], run_config, config, path, progress
    )


def _measure(
    inits: Callable[[Tower], list[Initialisation]],
    run_config: RunConfig,
    config: EvaluateConfig,
    path: Path,
    progress: Progressing | None,
) -> list[Result]:
    towers = list(dict.fromkeys(p.tower for name, p in PROTOCOLS.items() if name in config.protocols))
    for tower in towers:
        check_tower(run_config, tower, config.protocols)
    check_room(path, _ROOM_BYTES)
    manifest = load_manifest(config.data.shards or run_config.data.shards, config.data.cache or run_config.data.cache)
    evaluation = Evaluation(
        manifest=manifest, run=run_config, config=config, folder=path.parent, device=device_of(config.device)
    )
    answers: list[Result] = []
    try:
        for number, tower in enumerate(towers):
            job, together = job_of(evaluation, tower), inits(tower)
            for place, init in enumerate(together):
                part = _part_of(progress, number * len(together) + place, len(towers) * len(together))
                with nullcontext() if init.pretrained else _random_rows(path):
                    known = read_results(path) if path.exists() else []
                    for result in measure([init], job, known=known, progress=part):
                        answers.append(result)
                        if result not in known:
                            write_results(path, [result])
    except LabelError as error:
        raise ShardError(f"{manifest.root}: {error}") from error
    except UnsuitableError as error:
        raise ConfigError(f"{error} ({manifest.root})") from error
    except ResultsError as error:
        raise ConfigError(f"{error}; repair or remove the file, or give another with results=...") from error
    return answers


@contextmanager
def _random_rows(path: Path) -> Iterator[None]:
    """One process at a time measures the random rows of a results file; the others wait, and find them there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".random.lock")) as lock:
        told = False
        while not lock.take():
            if not told:
                logger.warning("random initialisation for %s is being measured by %s; waiting", path, lock.holder)
                told = True
            time.sleep(_POLL_S)
        yield


def job_of(evaluation: Evaluation, tower: Tower) -> Job[Any]:
    """The chosen protocols of a tower with all that they need; lists of drawn samples are written.

    Raises:
        ConfigError: settings that do not fit the set.
        ShardError: the set has no such split, or no classes.
    """
    manifest, config = evaluation.manifest, evaluation.config
    protocols = of_tower(config.protocols, tower)
    drawn = {name: getattr(config, p.section) for name, p in protocols.items() if p.drawn}
    with fitting(manifest):
        classes = task_of(manifest, config) if any(p.truth == "labels" for p in protocols.values()) else None
        splits = splits_of(manifest, config, tower)
        draws = {
            name: draws_of(manifest, splits, config, tower, recipe.seeds, recipe.tune_seeds)
            for name, recipe in drawn.items()
        }
    for name, recipe in drawn.items():
        write_lists(evaluation.folder, manifest, draws[name], recipe.seeds, recipe.tune_seeds, protocol=name)
    parts: Parts[Any]
    if tower == "backbone":
        parts = sweep_parts(evaluation, splits, draws)
    else:
        parts = image_parts(evaluation, splits, draws) if tower == "image_backbone" else pose_parts(evaluation)
    return Job(
        protocols=protocols,
        parts=parts,
        splits=splits,
        dataset=manifest.set_name,
        classes=classes,
        config=config,
        draws=draws,
        context=evaluation.context(tower),
        device=evaluation.device,
    )


def _part_of(progress: Progressing | None, number: int, count: int) -> Progressing | None:
    """A listener to one of several equal parts of the work."""
    if progress is None or count == 1:
        return progress
    return lambda share, text: progress((number + share) / count, text)


def results_file(checkpoint: str | Path, config: EvaluateConfig) -> Path:
    """Where results of a run or checkpoint go."""
    return Path(config.results) if config.results is not None else run_folder_of(Path(checkpoint)) / RESULTS_FILE


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
    bar = Progress(*columns, console=console)
    task = bar.add_task("reading", total=1.0)
    with drawn_late(bar) as draw:

        def show(share: float, text: str) -> None:
            draw()
            bar.update(task, completed=share, description=text)

        yield show
        bar.update(task, completed=1.0, description="evaluated")
