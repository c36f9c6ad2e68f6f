"""Reshards the optimizer's state: from one number of processes and ZeRO stage to another.

A state moves from one layout (`engine.zero_layout`) to another by copying the stretches that both know. Padding is
never read, and is zero in the new buffers. Rank files are mapped into memory, not read whole: a process touches what
it needs. The numbers are copied, not computed with, so nothing is lost by any chain of layouts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from common.run_files import WEIGHTS_FILE
from engine.checkpoint import read_rank_state
from engine.errors import CheckpointError
from engine.zero import SHARD_KEYS
from engine.zero_layout import Buffer, Layout, Piece

logger = logging.getLogger("tandem.elastic")

OptimizerState = dict[str, Any]
"""What torch's `Optimizer.state_dict()` gives, with a buffer in the place of a parameter."""

SCALARS = ("step",)
"""Entries of torch's AdamW and SGD that count for a whole buffer; all others have one number an element."""


# ---- what may change


def check_continuable(state: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Refuse settings with which the run would not continue as it was; say what the others change.

    Args:
        state: state.json of the checkpoint.
        now: world_size, zero_stage, precision, optimizer, accumulation_steps and micro_batch_size of this run.
        where: the checkpoint, for the message.

    Raises:
        CheckpointError: names the differing settings.
    """
    saved = state["engine"]
    differ = [f"{k}={now[k]}, the checkpoint has {saved[k]}" for k in ("precision", "optimizer") if now[k] != saved[k]]
    if global_batch(saved) != global_batch(now):
        differ.append(
            f"{now['micro_batch_size']} samples x {now['world_size']} processes x {now['accumulation_steps']} "
            f"micro-batches = {global_batch(now)} samples per update, the checkpoint has {global_batch(saved)}"
        )
    if differ:
        raise CheckpointError(
            f"{where} cannot be continued: {'; '.join(differ)}; start with the checkpoint's settings, "
            f"or begin a new run from its {WEIGHTS_FILE}"
        )
    steps = [int(settings["accumulation_steps"]) for settings in (saved, now)]
    if steps[0] != steps[1]:
        logger.warning(
            "an update of %d samples is now made of %d micro-batches instead of %d: negatives and BatchNorm statistics "
            "come from %d samples instead of %d, so the losses are not those of the run before",
            global_batch(now),
            steps[1],
            steps[0],
            global_batch(now) // steps[1],
            global_batch(saved) // steps[0],
        )


def global_batch(settings: Mapping[str, Any]) -> int:
    """Samples an update, from settings with micro_batch_size, world_size and accumulation_steps."""
    return int(settings["micro_batch_size"]) * int(settings["world_size"]) * int(settings["accumulation_steps"])


def saved_layout(state: Mapping[str, Any], now: Layout, where: Path) -> Layout:
    """Layout of a checkpoint.

    Args:
        state: its state.json. Early ones name no parameters; those of `now` are taken then.
        now: layout of this run.
        where: the checkpoint, for the message.

    Raises:
        CheckpointError: the optimizer has other parameters now, or in another order.
    """
    record, expected = state.get("parameters", now.record()), now.record()
    if record != expected:
        before, after = ([p for group in groups for p in group] for groups in (record, expected))
        pairs = zip_longest(before, after, fillvalue="none")
        first = next((f"{b} in the checkpoint, {a} now" for b, a in pairs if a != b), "their groups")
        raise CheckpointError(
            f"{where}: the optimizer had {len(before)} parameters in {len(record)} groups and now has {len(after)} in "
            f"{len(expected)} (first difference: {first}); undo the change of the model or of optim, or start in "
            "another run folder"
        )
    engine = state["engine"]
    return Layout(
        groups=now.groups,
        stage=int(engine["zero_stage"]),
        world_size=int(engine["world_size"]),
        sub_group_numel=now.sub_group_numel,
    )


# ---- resharding


def recut_shard(saved: Path, before: Layout, now: Layout, part: int) -> tuple[OptimizerState, list[Tensor]]:
    """Optimizer state and fp32 weights (not at stage 0) of one process, from a checkpoint of another layout.

    Raises:
        CheckpointError: see `recut_optimizer`.
    """
    key = SHARD_KEYS[before.stage][0]
    optimizer = recut_optimizer(before, now, part, lambda old: read_rank_state(saved, old, mapped=True)["shard"][key])
    if now.stage == 0:
        return optimizer, []
    with safe_open(saved / WEIGHTS_FILE, framework="pt") as file:
        return optimizer, cut_weights(now, part, file.get_tensor)


class _Move(NamedTuple):
    """Elements of a parameter that lie in one buffer before and in one buffer afterwards."""

    name: str
    source: int
    source_offset: int
    target: int
    target_offset: int
    numel: int


def _moves(sources: Sequence[Buffer], pieces: Mapping[str, Sequence[tuple[int, Piece]]]) -> list[_Move]:
    """Every overlap of the sources' pieces with the targets', which are given by parameter with their buffer."""
    moves = []
    for number, buffer in enumerate(sources):
        for piece in buffer.pieces:
            for target, other in pieces.get(piece.param.name, ()):
                start = max(piece.start, other.start)
                stop = min(piece.start + piece.numel, other.start + other.numel)
                if start < stop:
                    offsets = (piece.offset + start - piece.start, other.offset + start - other.start)
                    moves.append(_Move(piece.param.name, number, offsets[0], target, offsets[1], stop - start))
    return moves


def recut_optimizer(saved: Layout, now: Layout, part: int, read: Callable[[int], OptimizerState]) -> OptimizerState:
    """State of one process in a new layout.

    Args:
        saved: layout of the states that `read` gives.
        now: the new layout, of the same parameters.
        part: rank in the new layout; 0 at stage 0.
        read: state of a rank in the saved layout; only those that are needed are asked for, and rank 0.

    Raises:
        CheckpointError: a state does not have its layout's buffers, or buffers that become one differ in their step.
    """
    targets, first = now.buffers(part), read(0)
    state = _blank(first, saved, targets)
    pieces: dict[str, list[tuple[int, Piece]]] = {}
    for number, buffer in enumerate(targets):
        for piece in buffer.pieces:
            pieces.setdefault(piece.param.name, []).append((number, piece))
    for old in range(saved.parts):
        sources = saved.buffers(old)
        moves = _moves(sources, pieces)
        if moves:
            given = (first if old == 0 else read(old))["state"]  # a rank without overlap is never read
            for move in moves:
                _copy(move, sources[move.source].numel, given.get(move.source, {}), state[move.target])
    if now.stage == 0:
        for number, param in enumerate(p for group in now.groups for p in group):
            state[number] = {k: v if k in SCALARS else v.view(param.shape) for k, v in state[number].items()}
    groups = [
        {k: v for k, v in group.items() if k != "params"}
        | {"params": [number for number, buffer in enumerate(targets) if buffer.group == index]}
        for index, group in enumerate(first["param_groups"])
    ]
    return {"state": {number: entries for number, entries in state.items() if entries}, "param_groups": groups}


def _blank(first: OptimizerState, saved: Layout, targets: Sequence[Buffer]) -> dict[int, dict[str, Any]]:
    """Zeros for every entry that the group's buffers have; no entries before the first update."""
    kinds: dict[int, Mapping[str, Any]] = {}
    for number, buffer in enumerate(saved.buffers(0)):
        kinds.setdefault(buffer.group, first["state"].get(number, {}))
    return {
        number: {
            key: value.clone() if key in SCALARS else torch.zeros(buffer.numel, dtype=value.dtype)
            for key, value in kinds[buffer.group].items()
        }
        for number, buffer in enumerate(targets)
    }


def _copy(move: _Move, numel: int, source: Mapping[str, Any], target: dict[str, Any]) -> None:
    if source.keys() != target.keys():
        raise CheckpointError(
            f"the optimizer's state of {move.name} has the entries {sorted(source)}, other parameters of its group "
            f"{sorted(target)}; that cannot be laid out for another number of processes or another ZeRO stage: "
            "continue with the checkpoint's"
        )
    for key, value in source.items():
        if key in SCALARS:
            if float(value) != float(target[key]):
                raise CheckpointError(
                    f"the optimizer's {key} of {move.name} is {float(value):g}, of other parameters of its group "
                    f"{float(target[key]):g}; continue with the checkpoint's number of processes and ZeRO stage"
                )
            continue
        if value.numel() != numel:
            raise CheckpointError(
                f"the optimizer's {key} around {move.name} has {value.numel()} elements, expected {numel}; the "
                "checkpoint was written by another version of DeepSpeed (state.json: versions)"
            )
        stretch = value.reshape(-1).narrow(0, move.source_offset, move.numel)
        target[key].narrow(0, move.target_offset, move.numel).copy_(stretch)


def cut_weights(now: Layout, part: int, read: Callable[[str], Tensor]) -> list[Float[Tensor, " n"]]:
    """Flat fp32 weights of one process, a tensor a buffer; `read` gives a whole parameter by name."""
    cut = []
    for buffer in now.buffers(part):
        flat = torch.zeros(buffer.numel)
        for piece in buffer.pieces:
            whole = read(piece.param.name).reshape(-1)
            flat.narrow(0, piece.offset, piece.numel).copy_(whole.narrow(0, piece.start, piece.numel))
        cut.append(flat)
    return cut
