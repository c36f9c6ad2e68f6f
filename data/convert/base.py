"""What a data set must offer to become shards."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from data.sample import Sample
from data.storage.encode import DamagedError


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A source frame that cannot become a sample; `reason` is one of `data.storage.encode.REASONS`."""

    reason: str
    key: str
    detail: str

    @staticmethod
    def of(error: DamagedError, key: str) -> Skipped:
        """The frame of that key, for that reason."""
        return Skipped(reason=error.reason, key=key, detail=error.detail)


def only_frame(log: str, start: int, stop: int, read: Callable[[str], Sample]) -> Iterator[Sample | Skipped]:
    """`Converter.frames` of a set whose logs are single frames; a damaged one is named and left out.

    Args:
        log: the frame.
        start: first frame asked for.
        stop: the one after the last.
        read: makes the sample.
    """
    if not start <= 0 < stop:
        return
    try:
        yield read(log)
    except DamagedError as error:
        yield Skipped.of(error, log)


@dataclass(frozen=True, kw_only=True)
class Converter(ABC):
    """One data set's on-disk layout as samples. Picklable: each worker process gets a copy.

    A converter is a frozen dataclass whose fields are the set's own settings. It must give the same samples each time
    that it is asked.
    """

    set_name: ClassVar[str]
    """Name in `data.convert.sets.SETTINGS`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes of `Sample.labels` and `Boxes.classes`, () if unlabelled."""
        return ()

    @property
    def whole_logs(self) -> bool:
        """True where a frame costs as much as all before it in its log, so that logs are not cut between workers."""
        return False

    def settings(self) -> dict[str, Any]:
        """The fields as plain values: a prepared folder can tell by them that it is continued with others."""
        return dataclasses.asdict(self)

    @abstractmethod
    def camera_names(self) -> tuple[str, ...]:
        """Cameras in the order of `Sample.cameras`.

        Raises:
            ShardError: as `logs`.
        """

    @abstractmethod
    def logs(self) -> tuple[str, ...]:
        """Names of all drives, in a fixed order.

        Raises:
            ShardError: the source has another layout than the set's official one.
        """

    @abstractmethod
    def split_of(self, log: str) -> str:
        """Split of a drive, e.g. "train" or "val"."""

    @abstractmethod
    def num_frames(self, log: str) -> int:
        """Source frames of a drive, counting those that will be skipped."""

    @abstractmethod
    def frames(self, log: str, start: int, stop: int) -> Iterator[Sample | Skipped]:
        """Frames `start` to `stop` (exclusive) of a drive in order of time, one item each, made lazily."""

    def notes(self) -> tuple[str, ...]:
        """What had to be assumed about this source, for the summary and the manifest."""
        return ()
