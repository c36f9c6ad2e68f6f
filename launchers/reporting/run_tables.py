"""Tables of one run for `tandem inspect`: its config, first and last metrics, checkpoints."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.run_files import METRICS_FILE, damage, list_checkpoints
from common.trees import flat
from configs.load import ConfigError
from configs.runs import read_run
from engine.checkpoint import read_state
from launchers.drawing.page import TextTable
from launchers.drawing.set_tables import human_bytes
from launchers.reporting.report_page import CURVES
from launchers.reporting.run_facts import run_facts
from launchers.runs.attempts import read_attempts
from launchers.runs.files import read_config, read_metrics
from models.lidar.inputs import PointInput

_READINGS = {metric: reading for metric, _, reading in CURVES} | {
    "watch/uniformity": "0: all features are alike; about -4: spread evenly",
    "time/step_s": "seconds an update",
    "time/data_s": "seconds of these that waited for data",
    "perf/points_per_s": "of all processes together",
    "mem/rss_gib": "memory of the process, GiB; does not grow without end",
    "mem/cuda_gib": "most memory of the GPU so far, GiB",
    "train/skipped": "updates left out because they were not finite; a handful at most",
    "train/epoch": "passes over the set",
    "data/skipped": "samples that could not be used",
}
"""Metric -> how it reads; docs/monitoring.md says when to worry."""


def run_tables(run_dir: Path) -> list[TextTable]:
    """State and origin, checkpoints, first and last metrics, config of a run and what changed of it on the way."""
    notes: list[str] = []
    facts = TextTable(title="run", rows=(*run_facts(run_dir, notes).items(), *(("damaged", note) for note in notes)))
    tables = [facts, _checkpoints(run_dir), *_metrics(run_dir), *_changes(run_dir)]
    config = read_config(run_dir, strict=True)
    return [*tables, *_input(config), _config(config)] if config else tables


def _input(config: Mapping[str, Any]) -> list[TextTable]:
    """What the run's 3D networks are fed; none where its config is not one that this version reads."""
    with contextlib.suppress(ConfigError):
        run = read_run(None, defaults=config)
        fed = str(PointInput.of(run.data.voxel))
        rows = tuple((f"method.{name}", fed) for name in run.method.point_networks())
        return [TextTable(title="input of a voxel", rows=rows)] if rows else []
    return []


def _config(config: Mapping[str, Any]) -> TextTable:
    values = flat(config).items()
    rows = tuple((name, value if isinstance(value, str) else json.dumps(value)) for name, value in values)
    return TextTable(title="config", header=("field", "value"), rows=rows)


def _checkpoints(run_dir: Path) -> TextTable:
    rows = []
    for folder in list_checkpoints(run_dir):
        problem = damage(folder)
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        rows.append((folder.name, human_bytes(size), _progress(folder) if problem is None else f"damaged: {problem}"))
    if not rows:
        return TextTable(title="checkpoints", rows=(("none yet",),))
    return TextTable(
        title="checkpoints, newest first", header=("folder", "size", "state"), rows=tuple(rows), numeric=(1,)
    )


def _progress(folder: Path) -> str:
    state = read_state(folder)
    parts = [f"step {state['step']}"]
    if "num_steps" in state:
        parts[0] += f" of {state['num_steps']}"
    if state.get("skipped"):
        parts.append(f"{state['skipped']} updates skipped")
    return ", ".join(parts)


def _metrics(run_dir: Path) -> list[TextTable]:
    lines = read_metrics(run_dir)
    if not lines:
        return [TextTable(title="metrics", rows=((f"no whole line in {METRICS_FILE} yet",),))]
    first, last = lines[0], lines[-1]
    names = [name for name in last if name not in {"step", "time"}]
    rows = tuple((name, _number(first.get(name)), _number(last[name]), _READINGS.get(name, "")) for name in names)
    header = ("metric", f"step {first.get('step')}", f"step {last.get('step')}", "how it reads")
    return [TextTable(title="metrics, first and last line", header=header, rows=rows, numeric=(1, 2))]


def _changes(run_dir: Path) -> list[TextTable]:
    """With what else the run went on when it was continued; none where nothing changed."""
    rows = tuple(
        (str(attempt.resumed), name, json.dumps(before), json.dumps(now))
        for attempt in read_attempts(run_dir)
        for name, (before, now) in attempt.changes.items()
    )
    header = ("after update", "changed", "before", "from then on")
    return [TextTable(title="went on with", header=header, rows=rows, numeric=(0,))] if rows else []


def _number(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
