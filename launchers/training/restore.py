"""What a checkpoint holds, made again: the config that it was written with, and its method with the trained weights."""

from __future__ import annotations

from pathlib import Path

from common.nearby import nearby
from common.run_files import CHECKPOINT_CONFIG, WEIGHTS_FILE, damage, list_checkpoints
from configs.load import ConfigError
from configs.runs import RunConfig, read_run
from engine.checkpoint import load_weights, newest_intact
from engine.errors import CheckpointError
from launchers.training.stages import method_without_files
from models.methods.base import Objective


def find_checkpoint_folder(path: Path) -> Path:
    """The checkpoint that a path means: itself, or the newest intact one of a run.

    Raises:
        CheckpointError: there is none, or the one named is damaged.
    """
    if (path / WEIGHTS_FILE).is_file():
        problem = damage(path)
        if problem is not None:
            raise CheckpointError(f"{path} is damaged: {problem}; name another checkpoint or the run's folder")
        return path
    if not path.exists():
        expected = "expected a run's folder, or one of those in its checkpoints/"
        raise CheckpointError(f"{path} does not exist; {expected}{nearby(path, _is_source)}")
    found = newest_intact(path) if path.is_dir() else None
    if found is None:
        expected = "expected a run's folder with checkpoints/, or one of the folders in there"
        raise CheckpointError(f"{path}: {expected}{nearby(path, _is_source)}")
    return found


def _is_source(folder: Path) -> bool:
    return bool(list_checkpoints(folder))


def load_run_config(checkpoint: Path) -> RunConfig:
    """The resolved config that a checkpoint was written with.

    Raises:
        CheckpointError: it is missing or does not fit this version; names the field.
    """
    path = checkpoint / CHECKPOINT_CONFIG
    try:
        return read_run(path)
    except ConfigError as error:
        raise CheckpointError(
            f"{path} cannot be read by this version ({error}); use the version that wrote the run, see state.json"
        ) from error


def build_objective(checkpoint: Path, config: RunConfig) -> Objective:
    """The method with the checkpoint's weights, in evaluation mode on the CPU.

    Raises:
        CheckpointError: the weights are not those of the config's method.
    """
    objective = method_without_files(config).build()
    try:
        objective.load_state_dict(load_weights(checkpoint / WEIGHTS_FILE), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint / WEIGHTS_FILE} does not fit the method in its config: {error}") from error
    return objective.eval()
