"""What a report is made of: all results and all runs below some folders, each once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.nearby import nearby
from common.run_files import CHECKPOINTS_FOLDER, EVENTS_FOLDER, METRICS_FILE, RESULTS_FILE
from configs.load import ArgumentError, ConfigError
from engine.downstream.results import Result, ResultsError, read_results
from launchers.evaluation.selection import Selection, read_selection
from launchers.reporting.detection_results import detection_results
from launchers.reporting.troubles import Trouble, troubles
from launchers.runs import files
from launchers.runs.files import (
    BASELINES,
    DETECTORS,
    RANDOM_DETECTORS,
    detectors_in,
    folders_below,
    holds_runs,
    is_run,
    read_config,
)
from launchers.runs.settings import labels, setting_of_tree

_NOT_SEARCHED = {
    *(CHECKPOINTS_FOLDER, EVENTS_FOLDER, files.SUBMISSION_FOLDER, files.ATTEMPTS_FOLDER),
    *(files.CODE_FOLDER, files.LABELLED_FOLDER, files.HPARAMS_FOLDER),
}
"""Folders without results of their own."""


@dataclass(frozen=True, kw_only=True)
class ReportSources:
    """What a report is made of.

    Attributes:
        results: downstream results of all runs, random initialisation included.
        runs: folders by name.
        configs: resolved config of each run, as far as there is one.
        labels: setting of pre-training -> text that tells it from others.
        chosen: how the best checkpoint was chosen, by run, where it was.
        trouble: what is missing, and why.
        evaluated: folders that hold results; pictures of predictions lie beside them.
    """

    results: Sequence[Result]
    runs: Mapping[str, Path] = field(default_factory=dict)
    configs: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    chosen: Mapping[str, Selection] = field(default_factory=dict)
    trouble: Sequence[Trouble] = ()
    evaluated: Sequence[Path] = ()


def collect(folders: Sequence[Path]) -> ReportSources:
    """Find everything.

    Raises:
        ConfigError: nothing to report, or a damaged file.
    """
    damaged: dict[Path, str] = {}
    results, runs = gather(folders, damaged)
    if not results and not runs:
        if damaged:
            raise ConfigError("; ".join(damaged.values()))
        raise ArgumentError(
            f"{', '.join(map(str, folders))}: found neither {RESULTS_FILE} nor {METRICS_FILE}; expected folders that "
            f"`tandem pretrain` or `tandem evaluate` wrote{nearby(folders[0], is_run)}"
        )
    configs = {name: read_config(folder) for name, folder in runs.items()}
    return ReportSources(
        results=results,
        runs=runs,
        configs=configs,
        labels=told_apart(results, {setting_of_tree(c): c for c in configs.values() if c and not c.get("model")}),
        chosen=_chosen(runs, damaged),
        trouble=troubles(runs, damaged),
        evaluated=evaluated(folders, runs),
    )


def told_apart(results: Sequence[Result], configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What tells settings apart whose rows have one name in one table; other names say enough by themselves."""
    rows: dict[tuple[str, ...], set[str]] = {}
    for result in results:
        if result.setting in configs:
            rows.setdefault((result.dataset, result.protocol, result.labels, result.init), set()).add(result.setting)
    together: list[set[str]] = []
    for row in rows.values():
        touched = [group for group in together if group & row]
        together = [group for group in together if not group & row] + [row.union(*touched)]
    found: dict[str, str] = {}
    for group in together:
        found |= labels({setting: configs[setting] for setting in configs if setting in group})
    return found


def evaluated(folders: Sequence[Path], runs: Mapping[str, Path]) -> list[Path]:
    """Folders of results below some folders, and of the baselines beside the runs, each once."""
    files = [path for folder in folders for path in ([folder] if folder.is_file() else _search(folder))]
    files += [path for run in runs.values() for path in (run.parent / BASELINES).glob(f"*/{RESULTS_FILE}")]
    return list(dict.fromkeys(path.resolve().parent for path in files if path.is_file()))


def _chosen(runs: Mapping[str, Path], damaged: dict[Path, str]) -> dict[str, Selection]:
    found = {}
    for name, folder in runs.items():
        try:
            made = read_selection(folder)
        except ConfigError as error:
            damaged[folder / files.SELECTION] = str(error)
            continue
        if made is not None:
            found[name] = made
    return found


def gather(folders: Sequence[Path], damaged: dict[Path, str] | None = None) -> tuple[list[Result], dict[str, Path]]:
    """All results (each once) and all runs below some folders, with the baselines and random detectors beside the runs.

    Of rows in a folder `baselines`, shared by all runs around it, those count that a result here is compared with.

    Args:
        folders: of runs, or that hold runs; or files of results.
        damaged: files of results that cannot be read are noted here, with what is wrong.

    Returns:
        Results; run folders by the shortest name that tells them apart.

    Raises:
        ConfigError: a folder does not exist.
    """
    noted = {} if damaged is None else damaged
    results: dict[tuple[object, ...], Result] = {}
    shared: dict[tuple[object, ...], Result] = {}
    runs: dict[Path, None] = {}
    for folder in folders:
        if not folder.exists():
            raise ArgumentError(f"{folder}: no such file or folder{nearby(folder, holds_runs)}")
        for path in [folder] if folder.is_file() else _search(folder):
            if path.is_dir():
                runs[path.resolve()] = None
            else:
                # A baseline is baselines/<key>/results.json.
                _take(results if BASELINES not in path.parts[-3:-1] else shared, _read(path, noted))
    for folder in dict.fromkeys(run.parent / BASELINES for run in runs):
        for path in sorted(folder.glob(f"*/{RESULTS_FILE}")):
            _take(shared, _read(path, noted))
    detected = detection_results(runs, noted)
    # Empty where only baselines were asked for: then all of them count.
    compared = {(r.protocol, r.fingerprint) for r in (*results.values(), *detected) if r.pretrained}
    for run in _random_detectors(runs):
        if any((r.protocol, r.fingerprint) in compared for r in detection_results([run], noted)):
            runs[run] = None
    _take(results, detection_results(runs, noted))
    _take(results, [r for r in shared.values() if not compared or (r.protocol, r.fingerprint) in compared])
    return list(results.values()), _named(list(runs))


def _random_detectors(runs: Iterable[Path]) -> list[Path]:
    """Trainings from random weights beside some runs that are not among them."""
    followed = (run.parent.parent if run.parent.name == DETECTORS else run for run in runs)
    parents = dict.fromkeys(run.parent for run in followed)
    return [run for parent in parents for run in detectors_in(parent / RANDOM_DETECTORS) if run not in set(runs)]


def _named(runs: Sequence[Path]) -> dict[str, Path]:
    """Runs by the shortest name that tells them apart; detectors by that of the run that they follow, too."""
    names = [run.name for run in runs]

    def name(run: Path) -> str:
        if run.parent.name == DETECTORS:
            return f"{run.parent.parent.name}/{run.name}"
        return run.name if names.count(run.name) == 1 else f"{run.parent.name}/{run.name}"

    return {name(run): run for run in runs}


def _read(path: Path, damaged: dict[Path, str]) -> list[Result]:
    try:
        return read_results(path)
    except ResultsError as error:
        damaged[path] = f"{error}; repair or remove the file"
        return []


def _take(results: dict[tuple[object, ...], Result], more: Sequence[Result]) -> None:
    """Add results; the same measurement may lie in several files, and the newest counts."""
    for result in more:
        known = results.get(result.identity)
        if known is None or result.date >= known.date:
            results[result.identity] = result


def _search(folder: Path) -> Iterator[Path]:
    """Runs and results files at or below a folder, each once."""
    for below in folders_below(folder, lambda one, depth: True, skip=_NOT_SEARCHED):
        if is_run(below):
            yield below
        if os.path.exists(below / RESULTS_FILE):  # no error where we may not look; the run's row says so
            yield below / RESULTS_FILE
