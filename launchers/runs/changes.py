"""What may change when a run goes on: its checkpoint's resolved config against the one that it is started with.

Every checkpoint has the resolved config beside it, so runs of older versions are compared too: a setting that did not
exist then counts as its default, or as what was done then (`configs.older.ADDED_LATER`). Paths of sets are compared by
what they hold (`check_samples`), as the loader does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from common.trees import flat
from configs.load import ConfigError
from configs.runs import RunConfig, dump_run, read_run
from data.loading.in_use import NEWEST_ORDER
from data.loading.loader import samples_fingerprint
from data.storage.shard import ShardError
from engine.deepspeed_config import Precision
from engine.errors import CheckpointError

Kind = Literal["free", "recorded", "refused"]
RunT = TypeVar("RunT", bound=RunConfig)

KINDS: Mapping[str, Kind] = {
    # Where things lie. Sets are compared by their samples; a first stage by its own settings and its weights.
    "run_dir": "free",
    "data.shards": "free",
    "data.more.*.shards": "free",
    "data.cache": "free",
    "first": "free",
    # Compared by its weights.
    "init": "free",
    # How batches reach the network, what is logged and kept, what is measured afterwards: no number of the run.
    "data.num_workers": "free",
    "data.prefetch": "free",
    "data.start_method": "free",
    "data.maps_in_workers": "free",
    "monitor": "free",
    "checkpoint": "free",
    "evaluate": "free",
    "judge": "free",
    # What ends a run, or stops it before it begins, and shapes no update.
    "data.expected_superpixels": "free",
    "data.more.*.expected_superpixels": "free",
    "data.max_skip_share": "free",
    "data.retry_min": "free",
    "engine.dry_batch": "free",
    "engine.max_nonfinite_in_a_row": "free",
    "engine.timeout_min": "free",
    "engine.heartbeat_s": "free",
    "engine.stall_min": "free",
    # The same updates to rounding.
    "engine.device": "recorded",
    "method.chunk_rows": "recorded",
    "*.backbone.backend": "recorded",
    "engine.zero_stage": "recorded",
    "engine.zero3_persistent_numel": "recorded",
    # How an update's samples are shared out. Their number is another matter: the engine refuses another one.
    "engine.accumulation_steps": "recorded",
    "data.micro_batch_size": "recorded",
    # Numbers of the schedule and of the optimizer, which whoever watches a run adjusts, and which hold from there on.
    # Not clipping, and not which parameters decay or at what share of the rate: that is how the run is built.
    "schedule": "recorded",
    **{
        f"optim.{section}{name}": "recorded"
        for section in ("", "towers.*.")
        for name in ("lr", "momentum", "dampening", "betas", "eps", "weight_decay")
    },
    "optim.reference_batch_size": "recorded",
}
"""Dotted name of a setting or section, "*" for any one name -> what a change of it means when a run goes on.

The longest that fits decides. "recorded": a warning, and a record in the run. What is not named is refused, a setting
of tomorrow included: another seed, precision, image size, augmentation, voxel, method or network is another run.
"""

_SHOWN = 8
"""Differing settings that a message lists."""


@dataclass(frozen=True)
class Change:
    """A setting that differs.

    Attributes:
        name: dotted.
        before: in the run's checkpoint.
        now: in the config that it is started with.
    """

    name: str
    before: object
    now: object
    kind: Kind

    def __str__(self) -> str:
        """E.g. "optim.lr: 0.1 -> 0.2"."""
        return f"{self.name}: {self.before} -> {self.now}"


def kind_of(name: str) -> Kind:
    """What a change of a setting means, by its dotted name."""
    parts = name.split(".")
    if name.startswith("optim.towers.") and len(parts) > 4:  # a tower's name may have dots itself
        parts[2:-1] = [".".join(parts[2:-1])]
    for length in range(len(parts), 0, -1):
        for pattern, kind in KINDS.items():
            wanted = pattern.split(".")
            if len(wanted) == length and all(map(fnmatchcase, parts, wanted)):
                return kind
    return "refused"


def saved_config(resolved: Mapping[str, Any], where: Path) -> RunConfig:
    """The config that a checkpoint was written with, as this version reads it.

    Args:
        resolved: content of the checkpoint's config.json.
        where: the checkpoint or run, for the message.

    Raises:
        CheckpointError: it does not fit this version; names the field.
    """
    try:
        return read_run(None, defaults=resolved)
    except ConfigError as error:
        raise CheckpointError(
            f"{where}: the config of its checkpoint cannot be read by this version ({error}); continue with the "
            "version that wrote it, see state.json"
        ) from error


def begun_with(now: RunT, before: RunConfig | None, precision: Precision = "auto") -> RunT:
    """The config with what it may leave open: the order of samples, and the precision.

    Each is its own, else that of the run it continues, else the newest order, and `precision`. Old runs go on with the
    order that they began with; which it is, is in the config of their checkpoint.
    """
    order = now.data.order or (before and before.data.order) or NEWEST_ORDER
    if now.engine.precision != "auto":
        precision = now.engine.precision
    elif before is not None:
        precision = before.engine.precision
    engine = replace(now.engine, precision=precision)
    return replace(now, data=replace(now.data, order=order), engine=engine)


def changes(before: RunConfig, now: RunConfig) -> list[Change]:
    """The settings that differ, names of methods and networks first, without those that are free to.

    Where `now` leaves the order of samples or the precision open, it is that of `before`.
    """
    was, is_now = flat_config(begun_with(before, None)), flat_config(begun_with(now, before))
    absent = object()
    differing = [n for n in was.keys() | is_now.keys() if was.get(n, absent) != is_now.get(n, absent)]
    found = [Change(name, was.get(name, "absent"), is_now.get(name, "absent"), kind_of(name)) for name in differing]
    order = sorted(found, key=lambda c: (not c.name.endswith(".name"), c.name.count("."), c.name))
    return [change for change in order if change.kind != "free"]


def flat_config(config: RunConfig) -> dict[str, Any]:
    """Dotted name -> value of all settings, those of entries in lists included (`data.more.0.weight`)."""
    return flat(_numbered(yaml.safe_load(dump_run(config))))


def _numbered(tree: Any) -> Any:
    """Lists of sections as sections by number."""
    if isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        tree = {str(number): item for number, item in enumerate(tree)}
    return {key: _numbered(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def check_samples(
    before: RunConfig, now: RunConfig, state: Mapping[str, Any], where: Path, *, made_again: bool = False
) -> None:
    """Refuse sets that lie elsewhere than they did and hold other samples.

    Args:
        before: config of the checkpoint.
        now: config that the run is started with.
        state: state.json of the checkpoint.
        where: the run, for the message.
        made_again: look at sets in the same place as well. Of a run that goes on the loader does; one whose weights
            are taken over reads no data. What has been removed since, or was never recorded, cannot be compared.

    Raises:
        CheckpointError: other samples.
        ShardError: no prepared set there.
    """
    now = begun_with(now, before)
    places = [[one.shards for one in config.data.sets] for config in (before, now)]
    same_place, trained_on = places[0] == places[1], (state.get("source") or {}).get("samples")
    if same_place and not (made_again and trained_on):
        return
    try:
        there = samples_fingerprint(now.data)
    except ShardError:
        if same_place:
            return
        raise
    if trained_on != there:
        now_there = "which now holds" if same_place else f"and {', '.join(places[1])} holds"
        raise CheckpointError(
            f"{where}: data.shards: the run was trained on {', '.join(places[0])}, {now_there} other samples; name the "
            "same set, or start in another run folder"
        )


def listed(found: Iterable[Change]) -> str:
    """Differing settings, a line each, for a message."""
    lines: Sequence[str] = [f"\n  {c.name}: {c.before!r} in the run, {c.now!r} now" for c in found]
    more = f"\n  and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "".join(lines[:_SHOWN]) + more
