"""What config files of older versions mean today: runs of before have them in their folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

ADDED_LATER: Mapping[str, Mapping[str, object]] = {
    "simipu": {"chunk_rows": None},
    "contrastive_units": {"similarity": "teacher"},
    "distill": {"only_seen": False},
}
"""Method -> settings that it got later, at the value that leaves all as before, whatever their default is now."""
_DATA_ADDED_LATER: Mapping[str, object] = {"order": 1}
"""As `ADDED_LATER`, of `data`."""
_RESOLVED_DATA = frozenset({"num_workers", "prefetch", "start_method", "micro_batch_size", "shards_per_group"})
"""Settings that every resolved `data` has, of any version, and no file that was written by hand has all of."""
_RETIRED: Mapping[str, object] = {"data.superpixels": True}
"""Settings of older versions, with the one value that still means what happens today; files of old runs hold them."""
_ONCE_OF_ALL_TEACHERS = ("dilated", "levels", "normalise_levels")
"""Settings that the files of old runs hold for every teacher, though each had an effect on some families only."""


def bring_up_to_date(source: DictConfig, schema: DictConfig, methods: Mapping[str, type]) -> None:
    """Make of a source, in place, what it means today.

    Args:
        source: a file, or an override.
        schema: structured config with the chosen dataclasses.
        methods: name -> config of every method.
    """
    _drop_retired(source)
    _drop_teachers_of_old(source, schema)
    _fill_added(source, schema, methods)


def section_at(source: DictConfig, path: Sequence[str]) -> DictConfig | None:
    """The section at a path; None where there is none, a null or something else."""
    try:
        node = OmegaConf.select(source, ".".join(path)) if path else source
    except OmegaConfBaseException:  # an interpolation that leads nowhere
        return None
    return node if isinstance(node, DictConfig) else None


def _drop_retired(source: DictConfig) -> None:
    for dotted, value in _RETIRED.items():
        *outer, last = dotted.split(".")
        section = section_at(source, outer)
        if section is not None and section.get(last) == value:
            del section[last]


def _drop_teachers_of_old(source: DictConfig, schema: DictConfig) -> None:
    """Take what has no effect out of a resolved `method.teacher` of an old run.

    Such a section holds all those settings. One with only some of them was written by hand: its author gets the error.
    """
    teacher = section_at(source, ("method", "teacher"))
    if teacher is None or not all(name in teacher for name in _ONCE_OF_ALL_TEACHERS):
        return
    chosen = section_at(schema, ("method", "teacher"))
    for name in _ONCE_OF_ALL_TEACHERS:
        if chosen is not None and name not in chosen:
            del teacher[name]


def _fill_added(source: DictConfig, schema: DictConfig, methods: Mapping[str, type]) -> None:
    """Give a resolved `method` or `data` of an old run the settings that did not exist then.

    Such a section holds all other settings of the method; one with only some of them was written by hand, for today.
    """
    data = section_at(source, ("data",))
    if data is not None and set(data) >= _RESOLVED_DATA:
        data.update({setting: value for setting, value in _DATA_ADDED_LATER.items() if setting not in data})
    method, chosen = section_at(source, ("method",)), section_at(schema, ("method",))
    if method is None or chosen is None:
        return
    name = next((name for name, kind in methods.items() if kind is OmegaConf.get_type(chosen)), "")
    added = ADDED_LATER.get(name, {})
    if set(chosen) - set(added) <= set(method):
        method.update({setting: value for setting, value in added.items() if setting not in method})
