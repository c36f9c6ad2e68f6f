"""Runs of two stages: the first trains a network that the second one is built with (`PretrainConfig.first`).

The second stage names the network as a weight file `tandem:first`; the config keeps that name, so that repetitions in
other folders have equal configs. The folder takes its place when the method is built.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from common.run_files import SUMS_FILE, WEIGHTS_FILE, list_checkpoints
from configs.load import ConfigError, load
from configs.runs import RunConfig
from configs.schema import FIRST_STAGE, PRETRAIN_CHOICES, PretrainConfig
from data.storage.store import is_url
from engine.checkpoint import newest_records
from engine.errors import CheckpointError
from launchers.runs.attempts import is_finished
from launchers.runs.changes import changes, check_samples, listed, saved_config
from models.methods.base import MethodConfig
from models.weights import own_weights_file

T = TypeVar("T")

logger = logging.getLogger("tandem.pretrain")


def first_stage(config: RunConfig) -> PretrainConfig | None:
    """Config of the run that must be finished before this one; None where there is none.

    It has this run's seed and shards unless `first.overrides` says otherwise.

    Raises:
        ConfigError: a mistake in its settings, or a first stage that has a first stage.
    """
    if config.first is None:
        return None
    inherited = [f"seed={config.seed}", f"data.shards={json.dumps(config.data.shards)}"]
    if is_url(config.data.shards):
        cache = dataclasses.asdict(config.data.cache)
        inherited += [f"data.cache.{name}={json.dumps(value)}" for name, value in cache.items()]
    place = f"run_dir={json.dumps(str(first_folder(config)))}"
    overrides = [*inherited, *config.first.overrides, place]
    try:
        first = load(PretrainConfig, config.first.config, overrides, choices=PRETRAIN_CHOICES)
    except ConfigError as error:
        raise ConfigError(f"first: {error}") from error
    if first.first is not None:
        raise ConfigError(f"first.config: {config.first.config} has a first stage itself; expected a run of one stage")
    return first


def first_folder(config: RunConfig) -> Path:
    """Folder of the first stage's run; only of runs that have one."""
    assert config.first is not None
    return Path(config.first.run_dir or f"{config.run_dir.rstrip('/')}-first")


def stages(config: RunConfig) -> list[RunConfig]:
    """What is to be trained, in order: the first stage, unless it is finished or needed no more, and the run itself.

    Raises:
        ConfigError: see `first_stage` and `is_trained`.
    """
    first = first_stage(config)
    return [config] if first is None or is_trained(first) or has_begun(config) else [first, config]


def has_begun(config: RunConfig) -> bool:
    """Whether a run has a checkpoint: that holds all its weights, so its first stage is needed no more."""
    return bool(list_checkpoints(Path(config.run_dir)))


def is_trained(first: RunConfig) -> bool:
    """Whether a first stage is finished, as it is asked for: with these settings, on these samples.

    Raises:
        ConfigError: it is finished with others, also with such as may change while a run goes on: names them.
        CheckpointError, ShardError: what its folder says cannot be read, or the set cannot.
    """
    folder = Path(first.run_dir)
    records = newest_records(folder) if is_finished(folder) else None
    if records is None:
        return False
    state, resolved = records
    before = saved_config(resolved, folder)
    if found := changes(before, first):
        raise ConfigError(
            f"first: {folder} holds a finished first stage with other settings:{listed(found)}\nundo the change, name "
            "another folder in first.run_dir, or remove that one to train the stage again"
        )
    try:
        check_samples(before, first, state, folder, made_again=True)
    except CheckpointError as error:
        raise ConfigError(f"first: {error}") from error
    return True


def first_weights(config: RunConfig) -> str | None:
    """SHA-256 of the weights that the first stage ended with, those that the run is built with; None without any."""
    if config.first is None or not list_checkpoints(folder := first_folder(config)):
        return None
    try:
        sums = json.loads((own_weights_file(folder).parent / SUMS_FILE).read_text())
    except ValueError as error:
        logger.warning("%s", error)
        return None
    return str(sums[WEIGHTS_FILE]["sha256"])


def check_first_stage(config: RunConfig, state: Mapping[str, Any], there: str | None) -> str | None:
    """Refuse to go on with a run whose first stage has other weights than it was built with.

    Args:
        config: of the run.
        state: state.json of its checkpoint.
        there: `first_weights` now; None: gone, and the run goes on with those in its checkpoint.

    Returns:
        The weights that it was built with; None for runs of one stage, and of versions before 0.3, which do not say.

    Raises:
        CheckpointError: names both.
    """
    built_with: str | None = (state.get("fingerprint") or {}).get("first")
    if None not in (built_with, there) and there != built_with:
        raise CheckpointError(
            f"{config.run_dir} was built with another network of its first stage than there is now: that stage was "
            f"trained again (sha256 of its weights {str(built_with)[:12]} then, {str(there)[:12]} now). Put the "
            "first stage back, or start this one in another run folder"
        )
    return built_with


def method_to_build(config: RunConfig) -> MethodConfig:
    """The method with the first stage's folder in place of its name."""
    return _replaced(config.method, _is_first, lambda: f"tandem:{first_folder(config)}")


def method_without_weights(config: RunConfig) -> MethodConfig:
    """The method with random weights in place of the first stage's: to try it, or to fill it from a checkpoint."""
    return _replaced(config.method, _is_first, lambda: "random")


def method_without_files(config: RunConfig) -> MethodConfig:
    """The method with random weights in place of all that lie in files: sizes are the same, files may be elsewhere."""
    return _replaced(config.method, lambda text: ":" in text, lambda: "random")


def _is_first(weights: str) -> bool:
    return weights == FIRST_STAGE


def _replaced(section: T, is_meant: Callable[[str], bool], value: Callable[[], str]) -> T:
    """A section in which names of weights that are meant have given way to a value, in nested sections too."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        old = getattr(section, field.name)
        if field.name == "weights" and is_meant(old):
            changes[field.name] = value()
        elif dataclasses.is_dataclass(old):
            new = _replaced(old, is_meant, value)
            if new is not old:
                changes[field.name] = new
    return dataclasses.replace(section, **changes) if changes else section  # type: ignore[type-var]
