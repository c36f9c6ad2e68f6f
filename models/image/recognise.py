"""Which image networks a weight file fills: all that Tandem knows are tried, by names and shapes alone."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.image.efficientnet import EfficientNetLite0, lite0_state
from models.image.resnet import NETWORK_PREFIX, ResNet
from models.image.teachers import TEACHERS
from models.image.vit import VisionTransformer, make_room_for_positions
from models.weights import (
    IMAGE_FORMATS,
    MIN_MATCH,
    OWN_FORMAT,
    OWN_IMAGE_PREFIX,
    VIT_FORMATS,
    KeyRule,
    LoadReport,
    compare,
)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A network that a file fills.

    Attributes:
        network: its name, as `method.teacher.name` takes it.
        file_format: what stands before the path in a `weights` setting.
        report: which tensors match.
        state: the file's tensors by the network's names.
    """

    network: str
    file_format: str
    report: LoadReport
    state: Mapping[str, Tensor]

    @property
    def merit(self) -> tuple[float, int]:
        """What decides which fit is better: first the share that matches, then how little is left over."""
        return self.report.share, -len(self.report.unused)

    def broken(self) -> list[str]:
        """Matching tensors with a value that is not finite."""
        return [key for key in self.report.matched if not bool(self.state[key].isfinite().all())]


def fits(content: Mapping[str, object], *, prefer: str = "", min_match: float = MIN_MATCH) -> list[Fit]:
    """The networks that a file's content fills, best first; one format for each network.

    Networks are compared by names and shapes only, so even the largest costs no memory. A network counts if at least
    `min_match` of its tensors match and no tensor has another shape; of two formats that fill it alike
    `prefer` or else the first is named.
    """
    found = []
    for name, family in TEACHERS.items():
        network = empty_network(name)
        formats = sorted(family.SOURCES, key=lambda key: key != prefer)
        best = max((_fit(name, network, key, content) for key in formats), key=lambda fit: fit.merit)
        if best.report.share >= min_match and not best.report.mismatched:
            found.append(best)
    return sorted(found, key=lambda fit: fit.merit, reverse=True)


@functools.cache
def empty_network(name: str) -> nn.Module:
    """A teacher's network with its default settings: names and shapes without memory behind them."""
    with torch.device("meta"):
        return TEACHERS[name](name=name).network()


def _fit(name: str, network: nn.Module, file_format: str, content: Mapping[str, object]) -> Fit:
    """As the network's own `fill` selects the tensors of a file."""
    if isinstance(network, EfficientNetLite0):
        state, dropped = lite0_state(network, content)
    elif file_format == OWN_FORMAT:
        prefix = OWN_IMAGE_PREFIX + NETWORK_PREFIX if isinstance(network, ResNet) else OWN_IMAGE_PREFIX
        state, dropped = KeyRule(prefix=re.escape(prefix), drop=_NOTHING).select(content)
    else:
        formats = VIT_FORMATS if isinstance(network, VisionTransformer) else IMAGE_FORMATS
        state, dropped = formats[file_format].select(content)
    if isinstance(network, VisionTransformer):
        make_room_for_positions(network, state)
    report = compare(network, state, source=file_format, dropped=dropped)
    return Fit(network=name, file_format=file_format, report=report, state=state)


_NOTHING = r"(?!)"
"""Matches no key."""
