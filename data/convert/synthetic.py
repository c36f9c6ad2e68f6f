"""The procedural street world as a data set: nothing to download, every label known."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from data.convert.base import Skipped
from data.sample import Sample
from data.street.classes import CLASS_NAMES
from data.street.config import StreetConfig


@dataclass(frozen=True, kw_only=True)
class SyntheticConverter:
    """Generates the logs of a street world.

    Attributes:
        street: the world.
    """

    street: StreetConfig

    set_name: ClassVar[str] = "synthetic"
    class_names: ClassVar[tuple[str, ...]] = CLASS_NAMES
    whole_logs: ClassVar[bool] = True

    def camera_names(self) -> tuple[str, ...]:
        """As the world's cameras."""
        return self.street.cameras.names

    def settings(self) -> dict[str, Any]:
        """The world's settings."""
        return dataclasses.asdict(self.street)

    def logs(self) -> tuple[str, ...]:
        """One a world."""
        return tuple(self.street.log_name(index) for index in range(self.street.num_logs))

    def split_of(self, log: str) -> str:
        """By the world's own rule."""
        return self.street.split_of(_index(log))

    def num_frames(self, log: str) -> int:
        """The same in every log."""
        return self.street.frames_per_log

    def notes(self) -> tuple[str, ...]:
        """Nothing has to be assumed."""
        return ()

    def frames(self, log: str, start: int, stop: int) -> Iterator[Sample | Skipped]:
        """Frames before `start` are generated and thrown away."""
        from data.street.log import generate_log  # the renderer's libraries are needed in the workers only

        return itertools.islice(generate_log(self.street, _index(log)), start, stop)


def _index(log: str) -> int:
    return int(log.rpartition("-")[2])
