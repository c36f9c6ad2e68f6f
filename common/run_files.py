"""Files of a run that the engine writes and others read: their names, and which checkpoints are there. No torch.

    <run>/metrics.jsonl, tensorboard/, run.lock
    <run>/checkpoints/step_00000120/
        weights.safetensors   parameters (fp32) and buffers of the objective; all that evaluation and export need
        rank_0000.pt          that rank's random states and shard of the optimizer; loaded with weights_only
        state.json            step, loader state, fingerprint of the model, skip counts, versions
        config.json           resolved configuration
        files.json            size and sha256 of the files above, written last

A folder without a valid files.json does not count as a checkpoint, nor does one of any other name: a copy that somebody
put beside them (step_00000120.bak) is theirs, and is neither read nor removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.files import file_sha256
from common.small_files import Kind, read_text

METRICS_FILE = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"
LOCK_FILE = "run.lock"
RESULTS_FILE = "results.json"
"""Of downstream protocols."""
CHECKPOINTS_FOLDER = "checkpoints"

WEIGHTS_FILE = "weights.safetensors"
STATE_FILE = "state.json"
CHECKPOINT_CONFIG = "config.json"
SUMS_FILE = "files.json"

STATE_FIELDS: Mapping[str, Kind] = {"step": "count"}
STATE_OPTIONAL: Mapping[str, Kind] = {"num_steps": "count", "skipped": "count", "versions": "mapping"}
"""What of state.json is used without its checkpoint being loaded, and may be missing."""

_NAME = re.compile(r"step_([0-9]+)")


# ---- checkpoints


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run_dir / CHECKPOINTS_FOLDER / _folder_name(step)


def _folder_name(step: int) -> str:
    return f"step_{step:08d}"


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Folders of a run's checkpoints, newest first, unchecked."""
    found = [path for path in (run_dir / CHECKPOINTS_FOLDER).glob("step_*") if _is_ours(path)]
    return sorted(found, key=step_of, reverse=True)


def _is_ours(path: Path) -> bool:
    """Whether a folder has a name that `checkpoint_folder` gives: exactly, with its leading zeros."""
    match = _NAME.fullmatch(path.name)
    return match is not None and path.name == _folder_name(int(match[1])) and path.is_dir()


def step_of(checkpoint: Path) -> int:
    """Updates that a checkpoint had seen, from the name of its folder."""
    return int(checkpoint.name.removeprefix("step_"))


def newest_step(run_dir: Path) -> int | None:
    """Updates that a run's newest checkpoint had seen, by its name; None without one."""
    return next(map(step_of, list_checkpoints(run_dir)), None)


def damage(checkpoint: Path, names: Collection[str] | None = None) -> str | None:
    """What is wrong with a checkpoint's files; None if nothing.

    Args:
        checkpoint: its folder.
        names: check these files only; None for all that it was written with.
    """
    try:
        text = read_text(checkpoint / SUMS_FILE)
        if text is None:  # it is written last: absent in half a checkpoint
            return f"{SUMS_FILE} is missing"
        recorded = json.loads(text)
        for name in recorded if names is None else names:
            path, expected = checkpoint / name, recorded[name]
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, expected {expected['bytes']}"
            if file_sha256(path) != expected["sha256"]:
                return f"{name} does not match its sha256"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        return f"{SUMS_FILE} cannot be used ({type(e).__name__}: {e})"
    return None


# ---- JSON lines


def json_lines(texts: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects among lines of text; a line that a crash or a full disk cut short is passed over."""
    for text in texts:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            yield line
