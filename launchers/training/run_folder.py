"""What a pre-training run left in its folder: config, metrics, checkpoints, and its networks built again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from configs.load import ConfigError, load
from configs.schema import PRETRAIN_CHOICES, PretrainConfig
from data.loading.evaluation import load_batch
from data.storage.shards import SampleError, SampleReader, load_manifest
from data.storage.store import MANIFEST_NAME, is_url
from engine.checkpoint import WEIGHTS, damage, list_checkpoints, load_weights, newest_intact, read_state
from engine.errors import CheckpointError
from launchers.drawing.canvas import RgbImage
from launchers.drawing.contact_sheet import Table
from launchers.drawing.pictures import training_pictures
from launchers.drawing.set_summary import human_bytes
from launchers.training.stages import method_to_build
from models.methods.base import Objective

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
CHECKPOINT_CONFIG = "config.json"


def is_run(folder: Path) -> bool:
    """Whether a folder looks like a run's."""
    return (folder / CONFIG_FILE).is_file() or bool(list_checkpoints(folder))


def find_checkpoint_folder(path: Path) -> Path:
    """The checkpoint that a path means: itself, or the newest intact one of a run.

    Raises:
        CheckpointError: there is none, or the one named is damaged.
    """
    if (path / WEIGHTS).is_file():
        problem = damage(path)
        if problem is not None:
            raise CheckpointError(f"{path} is damaged: {problem}; name another checkpoint or the run's folder")
        return path
    found = newest_intact(path) if path.is_dir() else None
    if found is None:
        raise CheckpointError(f"{path}: expected a run's folder with checkpoints/, or one of the folders in there")
    return found


def load_run_config(checkpoint: Path) -> PretrainConfig:
    """The resolved config that a checkpoint was written with.

    Raises:
        CheckpointError: it is missing or does not fit this version; names the field.
    """
    path = checkpoint / CHECKPOINT_CONFIG
    try:
        return load(PretrainConfig, path, choices=PRETRAIN_CHOICES)
    except ConfigError as error:
        raise CheckpointError(
            f"{path} cannot be read by this version ({error}); use the version that wrote the run, see state.json"
        ) from error


def build_objective(checkpoint: Path, config: PretrainConfig) -> Objective:
    """The method with the checkpoint's weights, in evaluation mode on the CPU.

    Raises:
        CheckpointError: the weights are not those of the config's method.
    """
    objective = method_to_build(config).build()
    try:
        objective.load_state_dict(load_weights(checkpoint / WEIGHTS), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint / WEIGHTS} does not fit the method in its config: {error}") from error
    return objective.eval()


# ------------------------------------------------------------------------------------------------------------ tables


def run_tables(run_dir: Path) -> list[Table]:
    """Config, first and last metrics, checkpoints and skipped samples of a run."""
    tables = [_checkpoints(run_dir), *_metrics(run_dir)]
    config = _raw_config(run_dir)
    if config is not None:
        tables.append(_config(config))
    return tables


def _raw_config(run_dir: Path) -> dict[str, Any] | None:
    """As written, also where this version could not load it; the run's file first, else the newest checkpoint's."""
    candidates = [run_dir / CONFIG_FILE, *(c / CHECKPOINT_CONFIG for c in list_checkpoints(run_dir))]
    for path in candidates:
        if path.is_file():
            try:
                content = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path}: not readable as YAML: {error}") from error
            if not isinstance(content, dict):
                raise ConfigError(f"{path}: expected a mapping of sections, got {type(content).__name__}")
            return content
    return None


def _config(config: Mapping[str, Any]) -> Table:
    rows = tuple((name, _short(value)) for name, value in _leaves(config, ""))
    return Table(title="config", header=("field", "value"), rows=rows)


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _checkpoints(run_dir: Path) -> Table:
    rows = []
    for folder in list_checkpoints(run_dir):
        problem = damage(folder)
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        rows.append((folder.name, human_bytes(size), _progress(folder) if problem is None else f"damaged: {problem}"))
    if not rows:
        return Table(title="checkpoints", rows=(("none yet",),))
    return Table(title="checkpoints, newest first", header=("folder", "size", "state"), rows=tuple(rows), numeric=(1,))


def _progress(folder: Path) -> str:
    state = read_state(folder)
    parts = [f"step {state['step']}"]
    if "num_steps" in state:
        parts[0] += f" of {state['num_steps']}"
    if state.get("skipped"):
        parts.append(f"{state['skipped']} updates skipped")
    return ", ".join(parts)


def _metrics(run_dir: Path) -> list[Table]:
    path = run_dir / METRICS_FILE
    if not path.is_file():
        return [Table(title="metrics", rows=((f"no {METRICS_FILE} yet",),))]
    lines = _metric_lines(path)
    if not lines:
        return [Table(title="metrics", rows=((f"{METRICS_FILE} has no whole line yet",),))]
    first, last = lines[0], lines[-1]
    names = [name for name in last if name not in {"step", "time"}]
    rows = tuple((name, _number(first.get(name)), _number(last[name])) for name in names)
    header = ("metric", f"step {first.get('step')}", f"step {last.get('step')}")
    return [Table(title="metrics, first and last line", header=header, rows=rows, numeric=(1, 2))]


def _metric_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines: the last one of a run that is being written, or that was killed, may be cut short.

    Raises:
        CheckpointError: a line before the last is no JSON object.
    """
    texts = [text for text in path.read_text(encoding="utf-8").split("\n") if text.strip()]
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(dict(json.loads(text)))
        except (ValueError, TypeError) as error:
            if number == len(texts):
                break
            raise CheckpointError(f"{path}, line {number}: expected a JSON object, got {text[:40]!r}") from error
    return lines


def _number(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------------------------------------------- pictures


def run_pictures(run_dir: Path, num: int) -> tuple[dict[str, RgbImage], str]:
    """`training_pictures` of some samples of the run's set, with the newest weights.

    Args:
        run_dir: the run.
        num: samples, evenly spread over the validation split (or over the set, if it has none).

    Returns:
        The pictures by name, and why there are none or fewer ("" if nothing is amiss).

    Raises:
        CheckpointError: damaged, or of another version.
    """
    checkpoint = newest_intact(run_dir)
    if checkpoint is None:
        return {}, "no checkpoint yet"
    config = load_run_config(checkpoint)
    if not is_url(config.data.shards) and not (Path(config.data.shards) / MANIFEST_NAME).is_file():
        return {}, f"the run's shards are not at {config.data.shards} (seen from the present folder)"
    manifest = load_manifest(config.data.shards)
    order = manifest.indices("val" if "val" in manifest.splits else config.data.split)
    objective = build_objective(checkpoint, config)
    step = int(read_state(checkpoint)["step"])
    reader, spec, pictures, damaged = SampleReader(manifest), config.method.batch_spec(), {}, []
    for index in order[:: max(1, len(order) // max(num, 1))][:num]:
        try:
            batch = load_batch(reader, [int(index)], config.data, spec)
            moved = load_batch(reader, [int(index)], config.data, spec, augmented=True)
        except SampleError as error:
            damaged.append(str(error))
            continue
        for name, image in training_pictures(objective, batch, step, augmented=moved).items():
            pictures[f"{batch.keys[0]}.{name}"] = image
    return pictures, "; ".join(damaged)
