"""What a report is made of: all results and all runs below some folders, each once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.run_files import CHECKPOINTS_FOLDER, EVENTS_FOLDER, METRICS_FILE, RESULTS_FILE
from configs.load import ConfigError
from engine.downstream.results import Result, ResultsError, read_results
from launchers.evaluation.selection import Selection
from launchers.reporting.troubles import Trouble, selections, troubles
from launchers.runs.files import (
    BASELINES,
    CODE_FOLDER,
    HPARAMS_FOLDER,
    LABELLED_FOLDER,
    SUBMISSION_FOLDER,
    is_run,
    read_config,
)
from launchers.runs.settings import labels, setting_of_tree

_NOT_SEARCHED = frozenset(
    {CHECKPOINTS_FOLDER, EVENTS_FOLDER, SUBMISSION_FOLDER, CODE_FOLDER, LABELLED_FOLDER, HPARAMS_FOLDER}
)
"""Folders without results of their own."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a report is made of.

    Attributes:
        results: downstream results of all runs, random initialisation included.
        runs: folders by name.
        configs: resolved config of each run, as far as there is one.
        labels: setting of pre-training -> text that tells it from others.
        chosen: how the best checkpoint was chosen, by run.
        trouble: what is missing, and why.
    """

    results: list[Result]
    runs: dict[str, Path]
    configs: dict[str, dict[str, Any]]
    labels: dict[str, str]
    chosen: dict[str, Selection]
    trouble: list[Trouble]


def collect(folders: Sequence[Path]) -> Found:
    """Find everything.

    Raises:
        ConfigError: nothing to report, or a damaged file.
    """
    try:
        results, runs = gather(folders)
    except ResultsError as error:
        raise ConfigError(f"{error}; repair or remove the file") from error
    if not results and not runs:
        raise ConfigError(
            f"{', '.join(map(str, folders))}: found neither {RESULTS_FILE} nor {METRICS_FILE}; expected folders that "
            "`tandem pretrain` or `tandem evaluate` wrote"
        )
    configs = {name: read_config(folder) for name, folder in runs.items()}
    return Found(
        results=results,
        runs=runs,
        configs=configs,
        labels=labels({setting_of_tree(config): config for config in configs.values() if config}),
        chosen=selections(runs),
        trouble=troubles(runs),
    )


def gather(folders: Sequence[Path]) -> tuple[list[Result], dict[str, Path]]:
    """All results (each once) and all pre-training runs below some folders, with the baselines beside the runs.

    Of rows in a folder `baselines`, shared by all runs around it, those count that a result here is compared with.

    Returns:
        Results; run folders by the shortest name that tells them apart.

    Raises:
        ConfigError: a folder does not exist.
        ResultsError: a damaged results file.
    """
    results: dict[tuple[object, ...], Result] = {}
    shared: dict[tuple[object, ...], Result] = {}
    runs: dict[Path, None] = {}
    for folder in folders:
        if not folder.exists():
            raise ConfigError(f"{folder}: no such file or folder")
        for found in [folder] if folder.is_file() else _search(folder):
            if found.is_dir():
                runs[found.resolve()] = None
            else:
                _take(results if BASELINES not in found.parts[-3:-1] else shared, read_results(found))
    for folder in dict.fromkeys(run.parent / BASELINES for run in runs):
        for found in sorted(folder.glob(f"*/{RESULTS_FILE}")):
            _take(shared, read_results(found))
    compared = {(r.protocol, r.fingerprint) for r in results.values() if r.pretrained}
    needed = [r for r in shared.values() if not compared or (r.protocol, r.fingerprint) in compared]
    _take(results, needed)
    return list(results.values()), _names(list(runs))


def _take(results: dict[tuple[object, ...], Result], found: Sequence[Result]) -> None:
    """The same measurement may lie in several files; of repeated ones the newest counts."""
    for result in found:
        kept = results.get(result.identity)
        if kept is None or result.date >= kept.date:
            results[result.identity] = result


def _search(folder: Path) -> Iterator[Path]:
    """Runs and results files at or below a folder."""
    if is_run(folder):
        yield folder
    if (folder / RESULTS_FILE).is_file():
        yield folder / RESULTS_FILE
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.is_symlink() and child.name not in _NOT_SEARCHED:
            yield from _search(child)


def _names(runs: Sequence[Path]) -> dict[str, Path]:
    names = [run.name for run in runs]
    return {run.name if names.count(run.name) == 1 else f"{run.parent.name}/{run.name}": run for run in runs}
