"""How far a paper's steps are on this machine, and which figures came out: from the files that verbs write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.run_files import RESULTS_FILE, json_lines
from common.small_files import DamagedFileError, checked, read_text
from configs.load import ConfigError, load
from configs.paper_tables import CellConfig
from configs.schema import EvaluateConfig
from data.preparing.shard_task import RECORDS
from data.storage.store import MANIFEST_NAME, is_url
from engine.downstream.results import Result, ResultsError, read_results
from launchers.reproducing.steps import Step
from launchers.runs.attempts import is_finished
from launchers.runs.files import DETECTIONS_FILE, is_run
from launchers.runs.run_status import read_files, run_status
from launchers.runs.slurm import JobInfo

Kind = Literal["done", "queued", "begun", "to do"]


@dataclass(frozen=True)
class State:
    """How far a step is; `text` says more, for people."""

    kind: Kind
    text: str = ""

    def __str__(self) -> str:
        return f"{self.kind}, {self.text}" if self.text else self.kind


def state_of(step: Step, job: JobInfo | None = None) -> State:
    """How far a step is.

    Args:
        step: the step.
        job: its job, where it was queued and SLURM knows it.

    Raises:
        ConfigError: results that cannot be read.
    """
    verb = step.config.verb
    made = _prepared(step) if verb == "prepare" else _evaluated(step) if verb == "evaluate" else _trained(step)
    if made.kind != "done" and job is not None and job.active:
        return State("queued", f"{job.state.lower()}{f', {made.text}' if made.text else ''}")
    return made


def _prepared(step: Step) -> State:
    if is_url(str(step.folder)):
        return State("done", "a set behind a URL")
    if (step.folder / MANIFEST_NAME).is_file():
        return State("done")
    return State("begun") if (step.folder / RECORDS).is_dir() else State("to do")


def _trained(step: Step) -> State:
    if is_finished(step.folder):
        return State("done")
    if not is_run(step.folder):
        return State("to do")
    status = run_status(read_files(step.folder), {})
    reached = "" if status.step is None else f" at update {status.step} of {status.num_steps or '?'}"
    return State("begun", f"{status.state}{reached}")


def _evaluated(step: Step) -> State:
    there = {result.protocol for result in _records(step) if result.pretrained != step.config.random}
    if not there:
        return State("to do")
    left = [name for name in _protocols(step) if name not in there]
    return State("begun", f"{', '.join(left)} left") if left else State("done")


def _protocols(step: Step) -> tuple[str, ...]:
    return load(EvaluateConfig, step.config.config, step.settings).protocols


def _records(step: Step) -> list[Result]:
    path = step.folder / RESULTS_FILE
    if not path.exists():
        return []
    try:
        return read_results(path)
    except ResultsError as error:
        raise ConfigError(f"{error}; repair or remove the file") from error


# ---- figures


def figure(cell: CellConfig, step: Step) -> float | None:
    """What came out for a cell, percent where that is the unit; None where nothing did yet.

    Raises:
        ConfigError: results that cannot be read, or do not have what the cell asks for.
    """
    return _score(cell, step.folder) if step.trains else _measured(cell, step)


def _measured(cell: CellConfig, step: Step) -> float | None:
    protocol, _, metric = cell.measure.partition(":")
    pretrained = not (cell.random or step.config.random)
    found = [r for r in _records(step) if r.pretrained == pretrained and protocol in ("", r.protocol)]
    if not found:
        return None
    newest = max(found, key=lambda result: result.date)
    if not metric:
        return newest.mean
    if metric not in newest.metrics:
        raise ConfigError(f"{cell.measure}: {step.folder / RESULTS_FILE} has {', '.join(newest.metrics)}")
    return newest.mean_of(metric)


def _score(cell: CellConfig, run_dir: Path) -> float | None:
    """A headline figure of the last verdict of a finished training.

    Raises:
        ConfigError: verdicts that cannot be read, or do not have what the cell asks for.
    """
    if not is_finished(run_dir):
        return None
    path = run_dir / DETECTIONS_FILE
    benchmark, _, title = cell.measure.partition(":")
    try:
        lines = list(json_lines((read_text(path) or "").splitlines()))
        verdicts = checked(lines[-1], {"benchmarks": "mapping"}, {})["benchmarks"] if lines else {}
        verdict = verdicts.get(benchmark or next(iter(verdicts), ""))
        if verdict is None:
            return None
        headline = checked(verdict, {"headline": "mapping", "unit": "text"}, {})["headline"]
        checked(headline, {}, dict.fromkeys(headline, "number"))
    except (DamagedFileError, ValueError) as error:
        where = error if isinstance(error, DamagedFileError) else f"{path}: {error}"
        raise ConfigError(f"{where}; move it away, and the step's command judges the run again") from error
    name = title or next(iter(headline), "")
    if name not in headline:
        raise ConfigError(f"{cell.measure}: {path} has {', '.join(headline)}")
    value: float | None = headline[name]
    return value if value is None or verdict["unit"] == "%" else 100 * value


def shown(value: float | None) -> str:
    """A figure in a table, with one digit behind the point at least."""
    if value is None:
        return ""
    text = f"{value:.4g}"
    return text if "." in text or "e" in text else f"{value:.1f}"


def left(steps: Sequence[Step], states: Mapping[str, State]) -> list[Step]:
    """Steps that are neither done nor queued."""
    return [step for step in steps if states[step.name].kind in ("begun", "to do")]
