"""A run's folder: the name of everything in it, what makes a folder a run's, and the readers that verbs share. Light.

<run>/
config.yaml, environment.json   what it was trained with last, written when an attempt begins to train
attempts.jsonl                  what became of each attempt (`launchers.runs.attempts`)
attempts/<number>/              config.yaml and environment.json that each was started with, also where it was refused
metrics.jsonl, tensorboard/, checkpoints/, run.lock     written by the engine (`common.run_files`)
jobs.json                       SLURM jobs that work for it (`launchers.runs.job_record`)
requeues.jsonl                  why its batch script queued it again, or did not
submission/                     what it was queued with: config.yaml, overrides.txt, commit.json, ...
init.json, detections.jsonl     of a detector's run: what it started from; how it was judged on the way
verdict.json, pictures/         the newest judgement with curves and frames; the newest pictures of one frame
selection/                      which of its checkpoints is the best
evaluation/<element>/           config.yaml and results.json, or error.txt, of the jobs that follow it
detectors/<name>/               runs that follow it: detectors that start from it
sensors.json                    what the sensors of its set are like (`tandem fit`)
results.json, labelled/, predictions/, registration/    of `tandem evaluate` on it
<folder of runs>/
baselines/<key>/                random-initialisation rows that runs share, like an element
random_detectors/<name>-<key>/  runs: detectors from random initialisation that runs share
code/<hash>/, logs/             of what was queued there
report.html, report.md, hparams/
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from common.run_files import (
    CHECKPOINT_CONFIG,
    CHECKPOINTS_FOLDER,
    EVENTS_FOLDER,
    METRICS_FILE,
    STATE_FIELDS,
    STATE_FILE,
    STATE_OPTIONAL,
    json_lines,
    list_checkpoints,
)
from common.small_files import DamagedFileError, Kind, checked, is_kind, read_json, read_text, shown
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

DETECTIONS_FILE, VERDICT_FILE = "detections.jsonl", "verdict.json"
EVALUATIONS = "evaluation"
BASELINES = "baselines"
DETECTORS = "detectors"
RANDOM_DETECTORS = "random_detectors"
INIT_FILE = "init.json"
"""In the folder of a detector's run: what it started from."""
SELECTION = "selection"
SENSORS_FILE = "sensors.json"
ERROR_FILE = "error.txt"
"""In the folder of an element, baseline, selection or report: why it failed, first line for tables, then where."""
LABELLED_FOLDER = "labelled"
PREDICTIONS_FOLDER = "predictions"
PICTURES_FOLDER = "pictures"
REGISTRATION_FOLDER = "registration"

CODE_FOLDER = "code"
LOGS_FOLDER = "logs"
HPARAMS_FOLDER = "hparams"
REPORT_PAGE = "report.html"

_MARKS = (METRICS_FILE, ATTEMPTS_FILE, JOBS_FILE, SUBMISSION_FOLDER, CHECKPOINTS_FOLDER)
"""Each of these makes a folder a run's; config.yaml does, too, unless it is that of an evaluation or of one start."""
_NO_RUNS = frozenset({BASELINES, CODE_FOLDER, EVALUATIONS, SELECTION, EVENTS_FOLDER, ATTEMPTS_FOLDER})
"""Folders beside or in runs that hold none."""
_SECTIONS = ("data", "method", "model", "judge", "engine", "optim", "schedule", "checkpoint", "monitor", "first")
"""Of a run's config, with settings in them."""
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""In C it is 10 times as fast."""
_MAX_DEPTH = 4
_MOST_ENTRIES = 500
_TAIL_BYTES = 32_768
"""Read of the end of a log or of metrics.jsonl; a line of metrics is under 1 kB."""


# ---- which runs


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, begun or only queued; or one that this user may not look into."""
    try:
        if any((folder / mark).exists() for mark in _MARKS):
            return True
    except OSError:
        return folder.name not in _NO_RUNS and os.path.isdir(folder)
    of_another = {folder.parent.name, folder.parent.parent.name} & {EVALUATIONS, BASELINES, SELECTION, ATTEMPTS_FOLDER}
    return not of_another and (folder / CONFIG_FILE).is_file()


def holds_runs(folder: Path) -> bool:
    """Whether a folder is a run's, or has one right inside; cheap, for suggestions."""
    inside = itertools.islice(folder.iterdir(), _MOST_ENTRIES)
    return is_run(folder) or any(is_run(path) for path in inside if path.is_dir())


def find_runs(root: Path) -> Iterator[Path]:
    """Runs at or below a folder, by name; a folder that may not be read counts.

    Nothing is looked for inside a run but the detectors that follow it.
    """
    for folder in folders_below(root, lambda folder, depth: depth < _MAX_DEPTH and not is_run(folder)):
        if is_run(folder):
            yield folder
            yield from detectors_in(folder / DETECTORS)


def detectors_in(folder: Path) -> list[Path]:
    """Runs right inside a folder of detectors, by name; none where there is no such folder."""
    return [path for path in sorted(_inside(folder, ())) if is_run(path)]


def folders_below(
    root: Path, enter: Callable[[Path, int], bool], *, skip: Collection[str] = _NO_RUNS
) -> Iterator[Path]:
    """A folder and those in it, by name, each once however many links lead to it; links that lead in a circle end.

    Args:
        root: where to begin.
        enter: whether to look for more inside a folder that is so many below the root.
        skip: names of folders that are left out.
    """
    seen: set[str] = set()
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop()
        place = os.path.realpath(folder)
        if place in seen:
            continue
        seen.add(place)
        yield folder
        if enter(folder, depth):
            # Links last: a run that is also linked to keeps its own name. Sorted backwards, since the last is next.
            inside = sorted(_inside(folder, skip), key=lambda path: (path.is_symlink(), path.name), reverse=True)
            waiting += [(path, depth + 1) for path in inside]


def _inside(folder: Path, skip: Collection[str]) -> list[Path]:
    try:
        names = os.listdir(folder)
    except OSError:  # gone meanwhile, or not ours to read
        return []
    # os.path: a link that leads to itself is no folder, and no error.
    paths = [folder / name for name in names if name not in skip and not name.startswith(".")]
    return [path for path in paths if os.path.isdir(path)]


# ---- readers


def read_config(folder: Path, *, strict: bool = False, trouble: list[str] | None = None) -> dict[str, Any]:
    """The resolved config as it was written, also where this version could not load it; {} if there is none.

    The run's own, before its start the submission's, else the newest checkpoint's, else what it was last tried with. A
    damaged file counts as none.

    Args:
        folder: of the run.
        strict: a damaged file is an error.
        trouble: what is wrong with damaged files is added here.

    Raises:
        ConfigError: a damaged file, if `strict`.
    """
    from configs.load import ConfigError  # here, since jobs and batch scripts read attempts without a config

    def refused(problem: Exception) -> None:
        if strict:
            raise ConfigError(str(problem)) from problem
        if trouble is not None:
            trouble.append(str(problem))

    places = [folder / CONFIG_FILE, folder / SUBMISSION_FOLDER / CONFIG_FILE]
    try:
        places += [checkpoint / CHECKPOINT_CONFIG for checkpoint in list_checkpoints(folder)]
        places += sorted((folder / ATTEMPTS_FOLDER).glob(f"*/{CONFIG_FILE}"))[-1:]
    except OSError as error:
        refused(DamagedFileError(f"{error.filename}: cannot be read: {error.strerror}"))
    for path in places:
        try:
            tree = read_yaml(path)
        except DamagedFileError as error:
            refused(error)
            continue
        if tree is not None:
            return tree
    return {}


def read_yaml(path: Path) -> dict[str, Any] | None:
    """A resolved config: a mapping of plain values whose sections are mappings; None where there is no file.

    Raises:
        DamagedFileError: it is something else.
    """
    text = read_text(path)
    if text is None:
        return None
    try:
        # A few lines with aliases stand for more values than a machine can hold.
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_YAML)):
            raise ValueError("has an alias (*name), which no resolved config has")
        tree = yaml.load(text, Loader=_YAML)
        checked(tree, {}, dict.fromkeys(_SECTIONS, "mapping"))
        if method := tree.get("method") or tree.get("model"):
            checked(method, {}, {"name": "text", "teacher": "mapping", "backbone": "mapping"})
        checked(tree.get("schedule") or {}, {}, {"steps": "count", "epochs": "count"})
        _check_plain(tree)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError, AttributeError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        what = "not readable as YAML: " if isinstance(error, yaml.YAMLError) else ""
        raise DamagedFileError(f"{path}: {what}{reason}") from error
    return dict(tree)


def _check_plain(tree: Any, name: str = "") -> None:
    """Refuse what JSON has no word for: dates, bytes, sets, keys that are no texts.

    Raises:
        ValueError: names the field.
    """
    if isinstance(tree, dict):
        for key, value in tree.items():
            if not isinstance(key, str):
                raise ValueError(f"{name or 'the file'}: expected texts as names, got {shown(key)}")
            _check_plain(value, f"{name}.{key}" if name else key)
    elif isinstance(tree, list):
        for value in tree:
            _check_plain(value, name)
    elif tree is not None and not isinstance(tree, str | bool) and not is_kind(tree, "number"):
        raise ValueError(f"{name}: expected a number, a text or a list, got {shown(tree)}")


_GIT: Mapping[str, Kind] = {"commit": "text", "dirty": "flag"}


def read_environment(folder: Path) -> dict[str, Any] | None:
    """What a run recorded of its machine and software (`launchers.runs.provenance`); None where it recorded nothing.

    Raises:
        DamagedFileError: the file is something else.
    """
    path = folder / ENVIRONMENT_FILE
    tree = read_json(path, {}, optional={"command": "list", "gpus": "list", "packages": "mapping", "git": "mapping"})
    try:
        return tree if tree is None else {**tree, "git": tree.get("git") and checked(tree["git"], {}, _GIT)}
    except ValueError as error:
        raise DamagedFileError(f"{path}: git: {error}") from error


def read_metrics(folder: Path, trouble: list[str] | None = None) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl but a last one that is being written or was cut short; [] if there are none.

    Args:
        folder: of the run.
        trouble: where a damaged file is noted; its whole lines are given then.

    Raises:
        CheckpointError: a line before the last is no JSON object of numbers with a step, if it is not to be noted.
    """
    path = folder / METRICS_FILE
    lines: list[dict[str, Any]] = []
    damaged: list[str] = []
    try:
        texts = [text for text in (read_text(path) or "").split("\n") if text.strip()]
    except DamagedFileError as error:
        texts, damaged = [], [str(error)]
    for number, text in enumerate(texts, start=1):
        line = next(json_lines([text]), {})
        if _is_metrics(line):
            lines.append(line)
        elif number < len(texts):
            damaged.append(f"{path}, line {number}: expected a JSON object of numbers with a step, got {text[:60]!r}")
    if damaged and trouble is None:
        raise CheckpointError(damaged[0])
    if damaged and trouble is not None:
        more = f" (and {len(damaged) - 1} more lines)" if len(damaged) > 1 else ""
        trouble.append(damaged[0] + more)
    return lines


def _is_metrics(line: Mapping[str, Any]) -> bool:
    return is_kind(line.get("step"), "count") and all(v is None or is_kind(v, "number") for v in line.values())


def newest_metrics(folder: Path, most: int, trouble: list[str]) -> list[dict[str, Any]]:
    """The last whole lines of a run's metrics.jsonl, read from its end only; [] if there are none.

    What is wrong with them is added to `trouble`.
    """
    path = folder / METRICS_FILE
    try:
        # One more, since the first may be cut by our window and the last by the writer.
        texts = tail(path).splitlines()[-most - 1 :]
    except OSError as error:
        trouble.append(f"{path}: cannot be read: {error.strerror}")
        return []
    lines = [next(json_lines([text]), {}) for text in texts]
    between = [text for text, line in zip(texts[1:-1], lines[1:-1], strict=True) if not _is_metrics(line)]
    if between:
        trouble.append(f"{path}: expected JSON objects of numbers with a step, got {between[-1][:60]!r}")
    return [line for line in lines if _is_metrics(line)][-most:]


def newest_state(folder: Path, trouble: list[str]) -> tuple[dict[str, Any], float]:
    """state.json of a run's newest checkpoint and when it was written; ({}, 0.0) without one.

    Its other files are not looked at: hashing gigabytes is not for a status line. What is wrong is added to `trouble`.
    """
    for checkpoint in list_checkpoints(folder):
        path = checkpoint / STATE_FILE
        try:
            state = read_json(path, STATE_FIELDS, optional=STATE_OPTIONAL)
        except DamagedFileError as error:
            trouble.append(str(error))
            return {}, mtime(path)
        if state is not None:
            return state, mtime(path)
    return {}, 0.0


def read_error(folder: Path) -> str | None:
    """Why the job of an element's folder failed, one line; None if it did not."""
    try:
        text = read_text(folder / ERROR_FILE, errors="replace")
    except DamagedFileError as error:
        return str(error)
    if text is None:
        return None
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason recorded")


def tail(path: Path) -> str:
    """The end of a file, some 32 kB, as text; "" if there is no such file.

    Raises:
        OSError: it may not be read, or is a folder.
    """
    try:
        # Not waiting: what stands here may be a pipe that nobody writes to.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def mtime(path: Path) -> float:
    """When a file was last written; now, if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:  # pruned while we looked
        return time.time()
