"""Settings of training: which runs are repetitions of each other, and what tells the others apart.

Two runs are repetitions when their resolved configs differ in nothing but the seed and in what changes no number: where
the run lies, what it logs, when it writes checkpoints, what is evaluated afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import yaml

from common.trees import flat as flat_names
from configs.older import ADDED_LATER
from configs.runs import RunConfig, dump_run, trained
from data.loading.in_use import NEWEST_ORDER
from data.views.point_colour import PointColourConfig
from engine.downstream.results import fingerprint
from models.methods import METHODS
from models.methods.base import CHUNK_ROWS

_NO_SETTING = frozenset({"run_dir", "seed", "checkpoint", "monitor", "evaluate", "judge"})
# An expectation is checked; it shapes no number. Nor does the place where cut out objects lie, or who makes maps.
_NO_DATA_SETTING = frozenset({"cache", "expected_superpixels", "objects_folder", "maps_in_workers"})
_VOXEL_ADDED: Mapping[str, object] = {"intensity_offset": 0.0}
"""Settings that `data.voxel` got later, at the value that leaves all as before: no part of the setting then."""
_DATA_ADDED: Mapping[str, Mapping[str, object]] = {
    "fraction": {"kind": "all"},
    "sampling": {"counts": {}},
    "boxes": {"min_points": 0},
}
"""Sections that `data` got later, each with the setting that, at this value, makes it of no effect."""
_FLAGS_ADDED: Mapping[str, object] = {"class_balanced": False, "cut_to_cameras": False, "max_points": None, "order": 1}
"""As `_VOXEL_ADDED`, of `data`."""
_POINTS_ADDED: Mapping[str, object] = {
    "flip_axes": "xy",
    "tilt_rad": 0.0,
    "elastic_m": [],
    "colour": asdict(PointColourConfig()),
}
"""As `_VOXEL_ADDED`, of `data.augment.points` and `data.augment.second_points`."""
_SECTIONS_ADDED: Mapping[str, object] = {"init_towers": []}
"""As `_VOXEL_ADDED`, of a run's config itself."""
_NETWORK_ADDED: Mapping[str, object] = {"voxel_size_m": None}
"""As `_VOXEL_ADDED`, of each network in `method` or `model`."""
_ONECYCLE = frozenset({"rise_share", "start_lr_scale", "momentum_range"})
"""Settings that `schedule` got with onecycle, which alone uses them: no part of the setting of any other kind."""
_STEPS = frozenset({"drop_at", "drop_scale"})
"""Likewise of the kind "steps"."""
_MAX_LABEL = 72
"""Characters of a label; a longer list of differences is cut."""


def setting_of(config: RunConfig) -> str:
    """Identity of a run's setting, equal for repetitions with other seeds."""
    return setting_of_tree(yaml.safe_load(dump_run(config)))


def setting_of_tree(resolved: Mapping[str, Any]) -> str:
    """The same from a resolved config as it stands in a run's folder."""
    return fingerprint(dict(_parts(resolved)))


def flat(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name -> value of all that makes the setting."""
    return {name: value for key, part in _parts(resolved) for name, value in flat_names(part, key).items()}


def _parts(resolved: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The sections that make the setting; a first stage counts where there is one, wherever it lies."""
    for key, part in _without(resolved, _SECTIONS_ADDED).items():
        if key == "first":
            if part is not None:
                yield key, {name: value for name, value in part.items() if name != "run_dir"}
        elif key == "data":
            yield key, _data_identity(part or {})
        elif key == "method":
            yield key, _as_hashed_of_old(part or {})
        elif key == "schedule":
            kind = (part or {}).get("kind")
            unused = (_ONECYCLE if kind != "onecycle" else frozenset()) | (_STEPS if kind != "steps" else frozenset())
            yield key, {name: value for name, value in (part or {}).items() if name not in unused}
        elif key not in _NO_SETTING:
            yield key, part


def _data_identity(data: Mapping[str, Any]) -> dict[str, Any]:
    """As `voxel_identity`, of a section `data`."""
    identity: dict[str, Any] = {}
    for name, value in data.items():
        neutral = _DATA_ADDED.get(name)
        unused = neutral is not None and all((value or {}).get(key) == same for key, same in neutral.items())
        if name not in _NO_DATA_SETTING and not unused:
            identity[name] = value
    if identity.get("voxel"):
        identity["voxel"] = voxel_identity(identity["voxel"])
    if identity.get("augment"):
        identity["augment"] = {
            name: points_identity(part) if isinstance(part, Mapping) and name != "image" else part
            for name, part in identity["augment"].items()
        }
    if "order" in identity:  # a run that has not begun leaves it open
        identity["order"] = identity["order"] or NEWEST_ORDER
    return _without(identity, _FLAGS_ADDED)


def voxel_identity(voxel: Mapping[str, Any]) -> dict[str, Any]:
    """A section `data.voxel` without what a later version added and what is not used: as it counts into identities."""
    return _without(voxel, _VOXEL_ADDED)


def points_identity(points: Mapping[str, Any]) -> dict[str, Any]:
    """As `voxel_identity`, of settings of how clouds are augmented."""
    return _without(points, _POINTS_ADDED)


def _without(section: Mapping[str, Any], added: Mapping[str, object]) -> dict[str, Any]:
    """A section without the settings that were added, where they leave all as before."""
    return {name: value for name, value in section.items() if name not in added or value != added[name]}


def fingerprint_of(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights of a run's checkpoints belong to: its method, or its detector, and its input."""
    name, section = trained(resolved)
    identity = _method_identity(section)
    if "chunk_rows" in identity:  # changes no number but by rounding
        identity["chunk_rows"] = None
    return {name: identity, "voxel": voxel_identity(resolved["data"]["voxel"])}


def _method_identity(method: Mapping[str, Any]) -> dict[str, Any]:
    """As `voxel_identity`, of a section `method`."""
    if method.get("chunk_rows") == CHUNK_ROWS:  # the default was None, with the same numbers to rounding
        method = {**method, "chunk_rows": None}
    identity = _without(method, ADDED_LATER.get(method.get("name", ""), {}))
    return {
        name: _without(part, _NETWORK_ADDED) if isinstance(part, Mapping) else part for name, part in identity.items()
    }


def _as_hashed_of_old(method: Mapping[str, Any]) -> Mapping[str, Any]:
    """A method's section without later settings that leave all as before, and with all that a teacher once had.

    Results hold hashes of them: repetitions from before and after each family got its own settings stay together.
    """
    method = _method_identity(method)
    kind = METHODS.get(method.get("name", ""))
    default = None if kind is None else kind().teachers().get("teacher")
    if default is None or "teacher" not in method:
        return method
    once = {"dilated": True, "levels": [4, 8, 16], "normalise_levels": True}
    once |= {name: value for name, value in json.loads(json.dumps(asdict(default))).items() if name in once}
    return {**method, "teacher": {**once, **(method["teacher"] or {})}}


def differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What tells settings apart: of each, the values of all names whose value is not the same in all.

    Settings are mapped to resolved configs, here and in `labels`.
    """
    if not configs:
        return {}
    flats = {setting: flat(resolved) for setting, resolved in configs.items()}
    names = sorted({name for values in flats.values() for name in values})
    absent = object()  # not None, which is a value
    first, *others = flats.values()
    differing = [n for n in names if any(first.get(n, absent) != other.get(n, absent) for other in others)]
    return {s: {n: values[n] for n in differing if n in values} for s, values in flats.items()}


def labels(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Short text for each setting, e.g. "lr=0.002, temperature=0.1"; "" where there is nothing to tell apart."""
    if not configs:
        return {}
    differ = differences(configs)
    everywhere = set.intersection(*(set(values) for values in differ.values()))
    made = {}
    for setting, values in differ.items():
        # What only some methods have says nothing beside the method's name, unless it is all there is.
        shown = {n: v for n, v in values.items() if n in everywhere} or values
        made[setting] = _text(shown)
    doubled = {text for text in made.values() if list(made.values()).count(text) > 1}
    return {setting: f"{text} #{setting[:4]}".strip() if text in doubled else text for setting, text in made.items()}


def _text(values: Mapping[str, Any]) -> str:
    tails = [name.rpartition(".")[2] for name in values]
    parts = []
    for (name, value), tail in zip(values.items(), tails, strict=True):
        short = tail if tails.count(tail) == 1 else name
        spelt = f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)
        parts.append(f"{short}={spelt.lower() if isinstance(value, bool) else spelt}")
    text = ", ".join(parts)
    return text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 3] + "..."
