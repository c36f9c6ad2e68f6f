"""Checkpoints on disk: written beside their final place and renamed, checked by sha256, oldest removed.

The files are those of `common.run_files`. Nothing here executes what a file contains.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.files import file_sha256, sync, usual_permissions
from common.ranges import at_least
from common.run_files import (
    CHECKPOINT_CONFIG,
    CHECKPOINTS_FOLDER,
    STATE_FIELDS,
    STATE_FILE,
    STATE_OPTIONAL,
    SUMS_FILE,
    WEIGHTS_FILE,
    checkpoint_folder,
    damage,
    list_checkpoints,
    step_of,
)
from common.small_files import DamagedFileError, read_json
from common.trees import flat
from engine.distributed import World, agree_any
from engine.errors import CheckpointError

T = TypeVar("T")

FORMAT = 1
logger = logging.getLogger("tandem.checkpoint")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and how many stay.

    Attributes:
        every_steps: updates between checkpoints; 0 = not by steps.
        every_min: minutes between checkpoints; 0 = not by time. The end of a run always writes one.
        keep: newest checkpoints that stay on disk.
        keep_every: updates between milestones: checkpoints that are written and stay whatever `keep` says; 0 = none.
        max_failures: checkpoints in a row that may fail to be written (disk full, storage away) before the run ends;
            each is a warning, and the next due one is a new try.
        retry_min: minutes for which the last checkpoint of a run, or that of a stop signal, is tried again.
        lock_wait_s: seconds to wait for a former job that still holds the run's folder.
    """

    every_steps: int = 1000
    every_min: float = 30.0
    keep: int = 2
    keep_every: int = 0
    max_failures: int = 3
    retry_min: float = 10.0
    lock_wait_s: float = 60.0

    def __post_init__(self) -> None:
        at_least(self, "0: off", every_steps=0, every_min=0, keep_every=0)
        at_least(self, keep=1, max_failures=0, retry_min=0, lock_wait_s=0)

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after `step` updates, by steps or as a milestone."""
        return any(every and step % every == 0 for every in (self.every_steps, self.keep_every))


# ---- writing


def save_checkpoint(
    run_dir: Path,
    step: int,
    *,
    weights: Mapping[str, Tensor],
    rank_state: Mapping[str, Any],
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    world: World,
    keep: int,
    keep_every: int = 0,
) -> Path:
    """Write one checkpoint; all ranks call it.

    Args:
        run_dir: folder of the run, shared by all ranks.
        step: updates done.
        weights: what goes into weights.safetensors (rank 0's counts).
        rank_state: this rank's tensors and plain values.
        state: JSON values, the same on all ranks.
        config: resolved configuration of the run.
        world: the run's processes.
        keep: newest checkpoints that stay.
        keep_every: checkpoints of multiples of this many updates stay too; 0 = none.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: a file could not be written, on any rank; earlier checkpoints are untouched.
    """
    final = checkpoint_folder(run_dir, step)
    root, temp = final.parent, final.with_name(f".tmp_{final.name}")
    error: OSError | None = None
    if world.is_main:
        try:
            _clean(root)
            root.mkdir(exist_ok=True)  # no more: a run folder that is gone may be a mount that is away
            temp.mkdir()
        except OSError as e:
            error = e
    _agree_written(error, temp, world)
    try:
        torch.save(dict(rank_state), temp / f"rank_{world.rank:04d}.pt")
        if world.is_main:
            with usual_permissions(temp / WEIGHTS_FILE):
                save_file(dict(weights), temp / WEIGHTS_FILE)
            _write_json(temp / STATE_FILE, {"format": FORMAT, "step": step, **state})
            _write_json(temp / CHECKPOINT_CONFIG, config)
    except (OSError, RuntimeError, SafetensorError) as e:  # torch and safetensors report a full disk in their own ways
        error = e if isinstance(e, OSError) else OSError(str(e))
    _agree_written(error, temp, world)
    if world.is_main:
        try:
            _publish(temp, final)
            _prune(root, keep, keep_every)
        except OSError as e:
            error = e
    _agree_written(error, temp, world)
    return final


def _agree_written(error: OSError | None, temp: Path, world: World) -> None:
    """Raise on all ranks when one of them failed, so that none waits for it for ever."""
    (failed,) = agree_any([error is not None], world)
    if failed:
        here = f": {error} ({_free_mib(temp)})" if error is not None else " on another rank (see its log)"
        if world.is_main:
            _clean(temp.parent)  # half a checkpoint takes the room that the next try needs
        raise CheckpointError(
            f"writing the checkpoint {temp} failed{here}; free disk space or fix the folder's permissions and "
            "start the run again: it continues from the checkpoint before"
        )


def _free_mib(path: Path) -> str:
    """Room on the storage of a folder, in words: torch's and safetensors' errors do not say that a disk is full."""
    for folder in (path, *path.parents):
        with suppress(OSError):
            return f"{shutil.disk_usage(folder).free // 2**20} MiB free"
    return "free space unknown"


def _clean(root: Path) -> None:
    """Remove what unfinished checkpoints have left, as far as the storage lets us."""
    for leftover in root.glob(".tmp_step_*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _publish(temp: Path, final: Path) -> None:
    files = {}
    for path in sorted(temp.iterdir()):
        sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    _write_json(temp / SUMS_FILE, files)
    sync(temp / SUMS_FILE)
    sync(temp)
    if final.exists():  # a damaged one of the same step that a resumed run passed again
        shutil.rmtree(final)
    temp.rename(final)
    sync(final.parent)


def _prune(root: Path, keep: int, keep_every: int) -> None:
    """Remove all but the newest `keep`, and the milestones."""
    for old in list_checkpoints(root.parent)[keep:]:
        if not keep_every or step_of(old) % keep_every:
            shutil.rmtree(old)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


# ---- reading


def newest_intact(run_dir: Path) -> Path | None:
    """The newest checkpoint whose files are whole; damaged ones are passed over with a warning.

    Raises:
        CheckpointError: there are checkpoints, and every one is damaged.
    """
    found = list_checkpoints(run_dir)
    problems = []
    for checkpoint in found:
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        problems.append(f"{checkpoint.name}: {problem}")
        logger.warning("checkpoint %s is damaged (%s); trying the one before it", checkpoint, problem)
    if found:
        raise CheckpointError(
            f"none of the {len(found)} checkpoints in {found[0].parent} is intact ({'; '.join(problems)}); "
            "restore one from a copy, or start again in an empty run folder"
        )
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json of a checkpoint.

    Raises:
        CheckpointError: missing, damaged, or written in another format.
    """
    try:
        state: dict[str, Any] | None = read_json(checkpoint / STATE_FILE, STATE_FIELDS, optional=STATE_OPTIONAL)
    except DamagedFileError as error:
        raise CheckpointError(f"{error}; name another checkpoint or the run's folder") from error
    if state is None:
        raise CheckpointError(f"{checkpoint / STATE_FILE} is missing; name another checkpoint or the run's folder")
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{checkpoint}: checkpoint format {state.get('format')}, this version reads {FORMAT}; "
            "continue with the version that wrote it (state.json: versions)"
        )
    return state


def read_rank_state(checkpoint: Path, rank: int, *, mapped: bool = False) -> dict[str, Any]:
    """Random states and optimizer shard of one rank; `mapped` leaves tensors in the file until they are used."""
    path = checkpoint / f"rank_{rank:04d}.pt"
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    return loaded


def newest_records(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """state.json and config.json of the newest checkpoint that has both, unchecked; None where there is none."""
    for checkpoint in list_checkpoints(run_dir):
        with suppress(DamagedFileError):  # `find_checkpoint` warns of it
            state = read_json(checkpoint / STATE_FILE, STATE_FIELDS, optional=STATE_OPTIONAL)
            config = read_json(checkpoint / CHECKPOINT_CONFIG, {})
            if state is not None and config is not None:
                return state, config
    return None


def peek(run_dir: Path, world: World) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """state.json and config.json of the newest checkpoint, unchecked; None where there is none to read.

    For what has to be known before the run is built; `find_checkpoint` says later which one is whole. All ranks call
    it, rank 0 reads.
    """
    return told_by_main(lambda: newest_records(run_dir), world)


def load_weights(path: Path, *, prefix: str = "") -> dict[str, Tensor]:
    """Weights of a checkpoint, for evaluation and export.

    Args:
        path: a .safetensors file, a checkpoint's folder, or a run's folder (its newest intact checkpoint).
        prefix: keep names that begin with it, and take it off ("backbone." gives the 3D network).

    Raises:
        CheckpointError: no weights there, damaged, or no name begins with the prefix.
    """
    file = path
    if path.is_dir():
        folder = path if (path / WEIGHTS_FILE).is_file() else newest_intact(path)
        if folder is None:
            raise CheckpointError(
                f"{path}: expected a .safetensors file, a checkpoint folder or a run folder with checkpoints/; "
                "found none of them"
            )
        problem = damage(folder) if folder == path and (path / SUMS_FILE).exists() else None
        if problem is not None:
            raise CheckpointError(f"{path} is damaged: {problem}; name another checkpoint or the run folder")
        file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; expected a .safetensors file, a checkpoint or a run folder")
    tensors: dict[str, Tensor] = load_file(file)
    chosen = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    if not chosen:
        heads = sorted({name.split(".")[0] for name in tensors})
        raise CheckpointError(f"{file}: no weight begins with {prefix!r}; the file holds {', '.join(heads)}")
    return chosen


_WITHOUT_EFFECT = frozenset(f"method.teacher.{name}" for name in ("dilated", "levels", "normalise_levels"))
"""Checkpoints of versions that had one section for all teachers hold these for each; where one is absent now, it had no
effect then."""


def check_same(saved: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Refuse to continue a run whose model or method was changed, by the fingerprints of the checkpoint and this run.

    Raises:
        CheckpointError: names each differing field with both values.
    """
    # Through JSON, so that tuples and lists of equal content are equal.
    before, after = (flat(json.loads(json.dumps(x))) for x in (saved, now))
    before = {name: value for name, value in before.items() if name in after or name not in _WITHOUT_EFFECT}
    # A setting that one of two versions does not have, or does not state, is null in the other where it is not used.
    before, after = (
        {name: value for name, value in one.items() if name in other or value is not None}
        for one, other in ((before, after), (after, before))
    )
    lines = [
        f"  {name}: {before.get(name, 'absent')!r} in the checkpoint, {after.get(name, 'absent')!r} now"
        for name in sorted(before.keys() | after.keys())
        if before.get(name, "absent") != after.get(name, "absent")
    ]
    if lines:
        text = "\n".join(lines)
        raise CheckpointError(
            f"{where} belongs to another model or method:\n{text}\nundo the change, or start in another run folder"
        )


def find_checkpoint(run_dir: Path, world: World) -> Path | None:
    """The checkpoint that all ranks continue from: rank 0 looks and tells the others.

    Raises:
        CheckpointError: on all ranks, see `newest_intact`.
    """
    found = told_by_main(lambda: newest_intact(run_dir), world)
    return run_dir / CHECKPOINTS_FOLDER / found.name if found is not None else None


def told_by_main(read: Callable[[], T], world: World) -> T:
    """What rank 0 reads, on all ranks, which all call it.

    Raises:
        CheckpointError: on all ranks, where it is raised on rank 0.
    """
    answer: list[Any] = [None, None]
    if world.is_main:
        try:
            answer[0] = read()
        except CheckpointError as error:
            answer[1] = str(error)
    if world.world_size > 1:
        dist.broadcast_object_list(answer, src=0, device=world.device)
    value, problem = answer
    if problem is not None:
        raise CheckpointError(problem)
    told: T = value
    return told
