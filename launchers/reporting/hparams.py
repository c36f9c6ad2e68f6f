"""TensorBoard's table of hyper-parameters: what runs differ in, beside what their evaluations gave.

Written again by each report into a folder of its own: a second event file in a run's own TensorBoard folder would make
TensorBoard stop following the first.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter

from common.files import remove_leftovers, temporary_name
from engine.downstream.results import Result, baseline_of, paired_difference
from launchers.runs.files import HPARAMS_FOLDER
from launchers.runs.settings import differences

_ALWAYS = ("method.name", "optim.lr", "schedule.steps", "seed")


@dataclass(frozen=True, kw_only=True)
class HparamRun:
    """One line of the table: a run, its resolved config, and its metrics by name."""

    name: str
    config: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)


def write_hparams(out: Path, runs: Sequence[HparamRun]) -> Path:
    """Write the table, replacing an earlier one.

    Returns:
        The folder to be read by TensorBoard.
    """
    parameters = hyper_parameters(runs)
    final = out / HPARAMS_FOLDER
    hidden = out / f".{HPARAMS_FOLDER}"
    remove_leftovers(hidden)
    draft = temporary_name(hidden)
    shutil.rmtree(draft, ignore_errors=True)  # of a killed report that had our number
    draft.mkdir()
    try:
        for run in runs:
            folder = draft / run.name  # "parent/run" becomes a folder in a folder
            with SummaryWriter(str(folder)) as writer:
                writer.add_hparams(dict(parameters[run.name]), dict(run.metrics), run_name=".")
        shutil.rmtree(final, ignore_errors=True)
        try:
            draft.rename(final)
        except OSError:
            if not final.is_dir():  # else another report of these runs, as good as this one, came first
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # still there only if it did not become the table
    return final


def hyper_parameters(runs: Sequence[HparamRun]) -> dict[str, dict[str, str | int | float | bool]]:
    """Columns of each run: method, length, rate, seed, and all that the runs differ in."""
    differ = differences({run.name: run.config for run in runs})
    columns = {}
    for run in runs:
        values = {name: _at(run.config, *name.split(".")) for name in _ALWAYS} | differ[run.name]
        columns[run.name] = {name: _plain(value) for name, value in values.items()}
    return columns


def metrics_of(results: Sequence[Result], everything: Sequence[Result]) -> dict[str, float]:
    """All metrics, and the main one's gain over its baseline in `everything`, where there is one (below 0 if lower)."""
    metrics = {}
    for result in sorted(results, key=lambda r: r.date):
        place = f"eval/{result.dataset}/{result.protocol}/{result.labels}".replace(" ", "_")
        baseline = baseline_of(result, everything)
        gain = None if baseline is None else paired_difference(result, baseline)
        for choice in result.chosen or ("last",):
            prefix = "" if choice == "last" else f"{choice}_"
            for name in result.metrics:
                if (mean := result.mean_of(name)) is not None:
                    metrics[f"{place}/{prefix}{name}"] = mean
            if gain is not None:
                metrics[f"{place}/{prefix}gain"] = gain.mean
    return metrics


def _at(config: Mapping[str, Any], *path: str) -> Any:
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _plain(value: Any) -> str | int | float | bool:
    if isinstance(value, bool | int | float | str):
        return value
    return "null" if value is None else str(value)
