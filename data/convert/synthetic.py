"""The procedural street world as a data set: nothing to download, every label known."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from data.convert.base import Converter, Skipped
from data.sample import Sample
from data.street.classes import CLASS_NAMES
from data.street.config import StreetConfig


@dataclass(frozen=True, kw_only=True)
class SyntheticConverter(StreetConfig, Converter):
    """Generates the logs of a street world, whose settings are its own."""

    set_name: ClassVar[str] = "synthetic"
    class_names: ClassVar[tuple[str, ...]] = CLASS_NAMES
    box_categories: ClassVar[tuple[str, ...]] = CLASS_NAMES
    whole_logs: ClassVar[bool] = True

    def camera_names(self) -> tuple[str, ...]:
        """As the world's cameras."""
        return self.cameras.names

    def logs(self) -> tuple[str, ...]:
        """One for each drive through the world."""
        return tuple(self.log_name(index) for index in range(self.num_logs))

    def split_of(self, log: str) -> str:
        """By the world's own rule."""
        return self.split_of_index(_index(log))

    def num_frames(self, log: str) -> int:
        """The same in every log."""
        return self.frames_per_log

    def frames(self, log: str, start: int, stop: int) -> Iterator[Sample | Skipped]:
        """Frames before `start` are generated and thrown away."""
        from data.street.log import generate_log  # the renderer's libraries are needed in the workers only

        return itertools.islice(generate_log(self, _index(log)), start, stop)


def _index(log: str) -> int:
    return int(log.rpartition("-")[2])
