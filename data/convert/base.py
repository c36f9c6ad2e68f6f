"""What a data set must offer to become shards."""

from __future__ import annotations

import dataclasses
import functools
import logging
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from common.ranges import some_of
from data.sample import Sample
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

logger = logging.getLogger(__name__)

Read = TypeVar("Read")
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A source frame that cannot become a sample; `reason` is one of `data.storage.damage.REASONS`, `log` the drive."""

    reason: str
    key: str
    detail: str
    log: str = ""

    @staticmethod
    def of(error: DamagedError, key: str, log: str = "") -> Skipped:
        """What takes the place of a frame whose reading raised this."""
        return Skipped(reason=error.reason, key=key, detail=error.detail, log=log)


def read_or_skip(read: Callable[[], Read], key: str, log: str = "") -> Read | Skipped:
    """What reading gives; where it fails, what takes the frame's place, so that one frame never ends a preparation.

    Raises:
        ShardError: the source as a whole cannot be used.
    """
    try:
        return read()
    except DamagedError as error:
        return Skipped.of(error, key, log)
    except ShardError:
        raise
    except Exception as error:  # whatever a file that nobody foresaw makes a library do
        return unforeseen(error, key, log)


_TRACED: set[str] = set()
"""Places whose traceback this process has logged."""


def unforeseen(error: Exception, key: str, log: str = "") -> Skipped:
    """What takes the place of a frame that raised any exception; the first of a place is logged with its traceback."""
    place = "".join(traceback.format_tb(error.__traceback__))
    if place not in _TRACED:
        _TRACED.add(place)
        logger.warning("frame %s of %s raised an exception", key, log or "the source", exc_info=error)
    return Skipped.of(DamagedError.of(error), key, log)


NO_CAMERA = ("none",)
"""Setting `cameras` of every set of recordings that asks for sweeps only."""


def check_cameras(converter: Any, *known: str) -> None:
    """The setting `cameras` names some of these, or ("none",) alone.

    Raises:
        RangeError: it does not.
    """
    if converter.cameras != NO_CAMERA:
        some_of(converter, "or none alone", cameras=known)


def unique_logs(logs: Iterable[tuple[str, Path, Value]]) -> dict[str, Value]:
    """Name, folder and what is kept of each log, by name: in two places, one of the two would be lost without a word.

    Raises:
        ShardError: two logs have one name.
    """
    folders: dict[str, Path] = {}
    kept: dict[str, Value] = {}
    for name, folder, value in logs:
        if name in folders:
            raise ShardError(f"log {name} is there twice, as {folders[name]} and as {folder}; keep one of them")
        folders[name], kept[name] = folder, value
    return kept


@dataclass(frozen=True, kw_only=True)
class Converter(ABC):
    """One data set's on-disk layout as samples. Picklable: each worker process gets a copy.

    A converter is a frozen dataclass whose fields are the set's own settings. It must give the same samples each time
    that it is asked.
    """

    set_name: ClassVar[str]
    """Name in `data.convert.sets.SETTINGS`."""

    measures_intensity: ClassVar[bool] = True
    """False where it is the luminance of pixels, which may all be dark or white."""

    _later: ClassVar[tuple[str, ...]] = ()
    """Settings that earlier versions did not have: folders that were begun by those do not name their defaults."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes of `Sample.labels` and `Boxes.classes`, () if unlabelled."""
        return ()

    @property
    def box_categories(self) -> tuple[str, ...]:
        """Kinds of objects of `Boxes.categories`, () where the set has none."""
        return ()

    @property
    def whole_logs(self) -> bool:
        """True where a frame costs as much as all before it in its log, so that logs are not cut between workers."""
        return False

    @property
    def drives_forward(self) -> bool:
        """Whether poses by which a vehicle drives backwards or sideways are refused; else they are a note."""
        return False

    def settings(self) -> dict[str, Any]:
        """The fields as plain values: a prepared folder can tell by them that it is continued with others."""
        defaults = {field.name: field.default for field in dataclasses.fields(self) if field.name in self._later}
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}

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


@dataclass(frozen=True, kw_only=True)
class FrameConverter(Converter):
    """A data set whose frames are read one by one."""

    @property
    @abstractmethod
    def _logs(self) -> Mapping[str, Any]:
        """The source's logs in a fixed order, each with what the set keeps of it (its folder, its split)."""

    def _frames(self, log: str) -> Sequence[tuple[str, Any]]:
        """Key of each frame in order of time, and what the log's reader finds it by; here the log is one frame."""
        return [(log, log)]

    @abstractmethod
    def _reader(self, log: str) -> Callable[[Any], Sample]:
        """Load what a log's frames share, such as calibration and poses, and return what reads one of them.

        Raises:
            DamagedError: that cannot be read, and so none of the log's frames.
        """

    @property
    def _camera_names(self) -> tuple[str, ...]:
        """The cameras that are read; none unless a set says otherwise."""
        return ()

    def camera_names(self) -> tuple[str, ...]:
        """The cameras that are read, in the order of `Sample.cameras`; () for sweeps only."""
        return self._camera_names

    def logs(self) -> tuple[str, ...]:
        """Names of all drives, in a fixed order."""
        return tuple(self._logs)

    def num_frames(self, log: str) -> int:
        """Source frames of a drive, counting those that will be skipped."""
        return len(self._frames(log))

    def frames(self, log: str, start: int, stop: int) -> Iterator[Sample | Skipped]:
        """Frames in order of time; a damaged one is named and left out."""
        frames = self._frames(log)[start:stop]
        if not frames:
            return
        read = read_or_skip(lambda: self._reader(log), frames[0][0], log)
        if isinstance(read, Skipped):  # in files of the whole log: each of its frames is named
            yield from (dataclasses.replace(read, key=key) for key, _ in frames)
            return
        for key, frame in frames:
            yield read_or_skip(functools.partial(read, frame), key, log)
