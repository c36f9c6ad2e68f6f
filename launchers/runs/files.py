"""A run's folder: the name of everything in it, what makes a folder a run's, and the readers that verbs share. Light.

<run>/
config.yaml, environment.json   what it was trained with last, written when an attempt begins to train
attempts.jsonl                  what became of each attempt (`launchers.runs.attempts`)
attempts/<number>/              config.yaml and environment.json that each was started with, also where it was refused
metrics.jsonl, tensorboard/, checkpoints/, run.lock     written by the engine (`common.run_files`)
jobs.json                       SLURM jobs that work for it (`launchers.runs.job_record`)
requeues.jsonl                  why its batch script queued it again, or did not
submission/                     what it was queued with: config.yaml, overrides.txt, commit.json, ...
selection/                      which of its checkpoints is the best
evaluation/<element>/           config.yaml and results.json, or error.txt, of the jobs that follow it
results.json, labelled/, predictions/, registration/    of `tandem evaluate` on it
<folder of runs>/
baselines/<key>/                random-initialisation rows that runs share, like an element
code/<hash>/, logs/             of what was queued there
report.html, report.md, hparams/
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from common.run_files import (
    CHECKPOINT_CONFIG,
    CHECKPOINTS_FOLDER,
    EVENTS_FOLDER,
    METRICS_FILE,
    STATE_FILE,
    json_lines,
    list_checkpoints,
)
from engine.errors import CheckpointError

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
ATTEMPTS_FILE = "attempts.jsonl"
ATTEMPTS_FOLDER = "attempts"
JOBS_FILE = "jobs.json"
REQUEUES_FILE = "requeues.jsonl"

SUBMISSION_FOLDER = "submission"
OVERRIDES_FILE = "overrides.txt"
COMMIT_FILE = "commit.json"
DIFF_FILE = "diff.patch"
CLUSTER_FILE = "cluster.yaml"

EVALUATIONS = "evaluation"
BASELINES = "baselines"
SELECTION = "selection"
ERROR_FILE = "error.txt"
"""In the folder of an element, baseline, selection or report: why it failed, first line for tables, then where."""
LABELLED_FOLDER = "labelled"
PREDICTIONS_FOLDER = "predictions"
REGISTRATION_FOLDER = "registration"

CODE_FOLDER = "code"
LOGS_FOLDER = "logs"
HPARAMS_FOLDER = "hparams"
REPORT_PAGE = "report.html"

_MARKS = (METRICS_FILE, ATTEMPTS_FILE, JOBS_FILE, SUBMISSION_FOLDER, CHECKPOINTS_FOLDER)
"""Each of these makes a folder a run's; config.yaml does, too, unless it is that of an evaluation or of one start."""
_NO_RUNS = frozenset({BASELINES, CODE_FOLDER, EVALUATIONS, SELECTION, EVENTS_FOLDER, ATTEMPTS_FOLDER})
"""Folders beside or in runs that hold none."""
_MAX_DEPTH = 4
_MOST_ENTRIES = 500
_TAIL_BYTES = 32_768
"""Read of the end of a log or of metrics.jsonl; a line of metrics is under 1 kB."""


# ---- which runs


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, begun or only queued."""
    if any((folder / mark).exists() for mark in _MARKS):
        return True
    of_another = {folder.parent.name, folder.parent.parent.name} & {EVALUATIONS, BASELINES, SELECTION, ATTEMPTS_FOLDER}
    return not of_another and (folder / CONFIG_FILE).is_file()


def holds_runs(folder: Path) -> bool:
    """Whether a folder is a run's, or has one right inside; cheap, for suggestions."""
    inside = itertools.islice(folder.iterdir(), _MOST_ENTRIES)
    return is_run(folder) or any(is_run(path) for path in inside if path.is_dir())


def find_runs(root: Path) -> Iterator[Path]:
    """Runs at or below a folder, by name; nothing is looked for inside a run."""
    for folder, below, _ in os.walk(root):
        here = Path(folder)
        if is_run(here):
            below.clear()  # os.walk then does not enter the run
            yield here
        else:
            deep = len(here.relative_to(root).parts) >= _MAX_DEPTH
            below[:] = [] if deep else sorted(n for n in below if n not in _NO_RUNS and not n.startswith("."))


# ---- readers


def read_config(folder: Path, *, strict: bool = False) -> dict[str, Any]:
    """The resolved config as it was written, also where this version could not load it; {} if there is none.

    The run's own, before its start the submission's, else the newest checkpoint's, else what it was last tried with. A
    damaged file counts as none.

    Raises:
        ConfigError: a damaged file, if `strict`.
    """
    from configs.load import ConfigError  # here, since jobs and batch scripts read attempts without a config

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is 10 times as fast
    first = (folder / CONFIG_FILE, folder / SUBMISSION_FOLDER / CONFIG_FILE)
    tried = sorted((folder / ATTEMPTS_FOLDER).glob(f"*/{CONFIG_FILE}"))[-1:]
    for path in itertools.chain(first, (c / CHECKPOINT_CONFIG for c in list_checkpoints(folder)), tried):
        try:
            tree = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
        except OSError:
            continue
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            if strict:
                raise ConfigError(f"{path}: not readable as YAML: {error}") from error
            continue
        if isinstance(tree, dict):
            return tree
        if strict:
            raise ConfigError(f"{path}: expected a mapping of sections, got {type(tree).__name__}")
    return {}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl but a last one that is being written or was cut short; [] if there are none.

    Raises:
        CheckpointError: a line before the last is no JSON object with a step.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    texts = [text for text in path.read_text(encoding="utf-8").split("\n") if text.strip()]
    lines = []
    for number, text in enumerate(texts, start=1):
        line = next(json_lines([text]), {})
        if isinstance(line.get("step"), int):
            lines.append(line)
        elif number < len(texts):
            raise CheckpointError(f"{path}, line {number}: expected a JSON object with a step, got {text[:60]!r}")
    return lines


def newest_metrics(folder: Path, most: int) -> list[dict[str, Any]]:
    """The last whole lines of a run's metrics.jsonl, read from its end only; [] if there are none."""
    # One more, since the first may be cut by our window and the last by the writer.
    return list(json_lines(tail(folder / METRICS_FILE).splitlines()[-most - 1 :]))[-most:]


def newest_state(folder: Path) -> tuple[dict[str, Any], float]:
    """state.json of a run's newest checkpoint and when it was written; ({}, 0.0) without one.

    Its other files are not looked at: hashing gigabytes is not for a status line.
    """
    path = next((c / STATE_FILE for c in list_checkpoints(folder) if (c / STATE_FILE).is_file()), None)
    if path is None:
        return {}, 0.0
    try:
        return next(json_lines([path.read_text(encoding="utf-8")]), {}), mtime(path)
    except (OSError, UnicodeDecodeError):  # pruned while we looked, or damaged
        return {}, time.time()


def read_error(folder: Path) -> str | None:
    """Why the job of an element's folder failed, one line; None if it did not."""
    try:
        lines = (folder / ERROR_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    return next((line.strip() for line in lines if line.strip()), "no reason recorded")


def tail(path: Path) -> str:
    """The end of a file, some 32 kB, as text; "" if there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def mtime(path: Path) -> float:
    """When a file was last written; now, if it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # pruned while we looked
        return time.time()
