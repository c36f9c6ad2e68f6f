"""Files of other projects read into networks of ours: what a file holds, what of it has a place, and what is unknown.

Source of the layouts: each names its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import torch
from torch import nn

from models.layouts.base import AnyTensor, Layout, from_theirs
from models.layouts.known import LAYOUTS
from models.layouts.old_kernels import CURRENT, in_current_order, order_of
from models.lidar.backbones import BACKBONES
from models.lidar.base import Backbone, BackboneConfig
from models.weights import LoadReport, compare


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A file's tensors for one network.

    Attributes:
        state: by our names; tensors without a place, in parts of theirs that the network has, by their own.
        left_out: their names in parts that the network does not have, such as a detection head.
        order: of the axes of sparse kernels in the file, see `models.layouts.old_kernels`; they were turned.
    """

    state: Mapping[str, AnyTensor]
    left_out: tuple[str, ...] = ()
    order: str = CURRENT

    def __str__(self) -> str:
        """What was done to the file, for the log; "" if nothing."""
        parts = sorted({key.split(".")[0] for key in self.left_out})
        done = [f"left out: {', '.join(parts)}"] if parts else []
        done += [f"kernels turned from the order of {self.order}"] if self.order != CURRENT else []
        return "; ".join(done)


def unwrapped(layout: Layout, content: Mapping[str, object], source: str) -> Mapping[str, AnyTensor]:
    """A file's state dict by their keys.

    Raises:
        ValueError: the file is in another layout.
    """
    theirs = layout.unwrap(content)
    if not theirs:
        raise ValueError(
            f"{source} is not in the layout of {layout.title}; it has: {', '.join([*content][:5]) or 'nothing'}. "
            "`tandem weights check FILE` says which layout it has"
        )
    return theirs


def taken(layout: Layout, theirs: Mapping[str, AnyTensor], network: nn.Module) -> Taken:
    """What of a file's state dict a network takes.

    Args:
        layout: of the file.
        theirs: as `unwrapped` gives it.
        network: that is to be filled; its values are not read.

    Raises:
        ValueError: the layout has no counterpart of the network, or the file does not say how its kernels lie.
    """
    places = layout.places(network)
    ours = network.state_dict()
    expected = {place.key: tuple(place.out(ours[key].detach().to("meta")).shape) for key, place in places.items()}
    order = order_of(theirs, expected)
    turned = layout.settled(in_current_order(theirs, expected, order), network)
    # Of another shape: left as it is, for a report of names and shapes. Turning it might fail.
    fitting = {key: value for key, value in turned.items() if tuple(value.shape) == expected.get(key, value.shape)}
    found, strangers = from_theirs(layout, fitting, network)
    names = {place.key: key for key, place in places.items()}
    odd = {names[key]: value for key, value in turned.items() if key not in fitting}
    parts = {_part(key) for key in (*expected, *layout.added(network))}
    inside = {key: turned[key] for key in strangers if _part(key) in parts}
    left_out = tuple(key for key in strangers if _part(key) not in parts)
    return Taken(state={**found, **odd, **inside}, left_out=left_out, order=order)


def _part(key: str) -> str:
    return key.split(".")[0]


def stated(content: Mapping[str, object]) -> dict[str, str]:
    """What `tandem export` says in a file of its own; {} for files from elsewhere."""
    for value in content.values():
        if not isinstance(value, Mapping):
            continue
        for place in (value, *(inner for inner in value.values() if isinstance(inner, Mapping))):
            if "tandem_version" in place:
                return {str(key): str(text) for key, text in place.items()}
    return {}


def first_kernel(network: nn.Module) -> str | None:
    """Our name of the sparse kernel that sees a network's input; None where the first layer is another."""
    name, value = next(iter(network.state_dict().items()))
    return name if value.ndim == 3 else None


# ---- which network a file holds


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A network that a file fills.

    Attributes:
        layout: of the file, by name.
        family: of the network, `models.lidar.backbones.BACKBONES`.
        preset: of the family.
        in_channels: features of an input voxel.
        report: which tensors match.
        taken: what the network takes.
    """

    layout: str
    family: str
    preset: str
    in_channels: int
    report: LoadReport
    taken: Taken


def fits(content: Mapping[str, object]) -> list[Fit]:
    """The networks that a file's content fills wholly, in any of the layouts. By names and shapes alone."""
    found = []
    for name, layout in LAYOUTS.items():
        theirs = layout.unwrap(content)
        if not theirs:
            continue
        for family, config in BACKBONES.items():
            for preset in presets(config):
                tried = (_fit(name, theirs, family, preset, more) for more in _GRIDS.get(family, ({},)))
                fit = next((f for f in tried if f is not None and f.report.share == 1 and not f.report.unused), None)
                found += [fit] if fit is not None else []
    return found


def presets(config: type[BackboneConfig]) -> tuple[str, ...]:
    """Of a family of networks."""
    return get_args(get_type_hints(config)["preset"])


_CHANNELS = (4, 1, 3, 5)
"""Numbers of features of a voxel that occur."""


_GRIDS: dict[str, tuple[dict[str, Any], ...]] = {
    "voxelnet": tuple({"grid_min": (-64, -64, 0), "grid_max": (64, 64, cells)} for cells in (40, 24, 56)),
    "spvcnn": ({"coarse_cells": "corner"},),
}
"""Settings of families whose tensors depend on more than preset and input (the layers of z are folded into channels),
or without which other projects have no counterpart."""


def _fit(
    layout: str, theirs: Mapping[str, AnyTensor], family: str, preset: str, settings: Mapping[str, Any]
) -> Fit | None:
    """The number of input channels that fits best, where any can be compared."""
    found = None
    for in_channels in _CHANNELS:
        try:
            network = _empty(family, {**settings, "preset": preset, "in_channels": in_channels})
        except ValueError:  # no network of so few features
            continue
        try:
            took = taken(LAYOUTS[layout], theirs, network)
        except ValueError:  # no counterpart, of however many features
            return None
        report = compare(network, took.state, source=preset)
        fit = Fit(layout=layout, family=family, preset=preset, in_channels=in_channels, report=report, taken=took)
        if report.share == 1:
            return fit
        if len(report.mismatched) > 1 or report.missing:  # more than the first layer differs
            return None
        found = found or fit
    return found


def _empty(family: str, settings: Mapping[str, Any]) -> Backbone:
    with torch.device("meta"):
        return BACKBONES[family](**settings).build()
