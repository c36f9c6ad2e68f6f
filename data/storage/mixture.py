"""Several prepared sets as one stream of samples, each as often as its weight says.

Networks that are pre-trained on several data sets carry over better than those that saw one (Puy et al., Three Pillars
Improving Vision Foundation Model Distillation for Lidar, CVPR 2024: ScaLR). Sets may differ in sensors, cameras and
classes: a batch holds samples of all of them, images are brought to one size, and pre-training reads no classes.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from common.ranges import at_least
from common.retry import RETRY_MIN
from data.order import Stretch
from data.sample import Sample
from data.shard_order import Blocks
from data.storage.decode import DecodeSpec
from data.storage.encode import SCHEMA_VERSION
from data.storage.manifest import SAMPLE_COLUMNS, Manifest, load_manifest
from data.storage.npz_file import let_go
from data.storage.reader import Reader, SampleReader
from data.storage.remote.shard_cache import CacheConfig
from data.storage.shard import ShardError
from data.storage.superpixel_record import SuperpixelRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SetConfig:
    """A prepared set and the samples of it that are used.

    Attributes:
        shards: folder or address of the set.
        split: of the set; None for all of it.
        limit: use only this many first samples (in log and time order); None for all.
        weight: how often each sample comes in an epoch, on average.
        expected_superpixels: what the set's superpixels must have been made with; settings left null may have any
            value. None: they are used however they were made.
    """

    shards: str
    split: str | None = "train"
    limit: int | None = None
    weight: float = 1.0
    expected_superpixels: SuperpixelRecord | None = None

    def __post_init__(self) -> None:
        Stretch(num=1, weight=self.weight)
        at_least(self, "null: all", limit=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """Samples of one set that are in use and come equally often.

    Attributes:
        manifest: of the set.
        split: of the set; None for all of it.
        limit: use only this many first samples, by log and time.
        rows: these and no others, by log and time; None: as `split` and `limit` say.
        row_start: rows of the joined manifest before those of the set.
        shard_start: likewise of its shards.
    """

    manifest: Manifest
    split: str | None = None
    limit: int | None = None
    rows: Int[np.ndarray, " k"] | None = None
    row_start: int = 0
    shard_start: int = 0

    def indices(self) -> Int[np.ndarray, " k"]:
        """Rows of the joined manifest, by log and time."""
        rows = self.rows if self.rows is not None else self.manifest.indices(self.split, limit=self.limit)
        return rows + self.row_start

    def __len__(self) -> int:
        """How many these are."""
        if self.rows is not None:
            return len(self.rows)
        num = self.manifest.count(self.split)
        return num if self.limit is None else min(num, self.limit)

    def blocks(self) -> Blocks:
        """The same by shards, for the order of samples."""
        if self.rows is None:
            found = self.manifest.blocks(self.split, self.limit)
        else:
            found = Blocks.of_rows(self.rows, self.manifest.sample_shard[self.rows])
        return found.moved(self.row_start, self.shard_start) if self.row_start else found

    def values(self, column: str) -> Iterator[Int[np.ndarray, " _"]]:
        """A column of the sample table, of these samples, in pieces and in no particular order."""
        values = getattr(self.manifest, column)
        blocks = self.manifest.blocks(self.split, self.limit) if self.rows is None else None
        if blocks is None or blocks.rows is not None:
            yield values[self.indices() - self.row_start]
            return
        ends = blocks.first + blocks.count
        starts = np.flatnonzero(np.concatenate([[True], blocks.first[1:] != ends[:-1]]))
        stops = np.append(starts[1:], len(ends)) - 1
        for start, stop in zip(blocks.first[starts].tolist(), ends[stops].tolist(), strict=True):
            yield values[start:stop]
        let_go(values)


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """Sets that are ready to be read.

    Attributes:
        reader: of all sets.
        sets: the samples in use, a part a stretch.
        stretches: how many each of `sets` are, and their weights.
        num_segments: superpixels an image, at most, in the set with the most; None where a set does not say.
    """

    reader: Reader
    sets: tuple[Chosen, ...]
    stretches: tuple[Stretch, ...]
    num_segments: int | None

    def __len__(self) -> int:
        """Samples in use."""
        return sum(stretch.num for stretch in self.stretches)

    @cached_property
    def indices(self) -> Int[np.ndarray, " n"]:
        """Samples in use, set after set: a list of them all, which `blocks` does without."""
        return np.concatenate([part.indices() for part in self.sets])

    @cached_property
    def blocks(self) -> Blocks:
        """Samples in use, by sets and shards."""
        return Blocks.joined([part.blocks() for part in self.sets])

    def of_rows(self, rows: Sequence[Int[np.ndarray, " _"]], weights: Sequence[float]) -> Opened:
        """Of a single set, only these rows: a stretch for each part, which comes as often as its weight says."""
        (manifest,) = {id(part.manifest): part.manifest for part in self.sets}.values()
        stretches = [Stretch(num=len(part), weight=weight) for part, weight in zip(rows, weights, strict=True)]
        chosen = tuple(Chosen(manifest=manifest, rows=part) for part in rows)
        return dataclasses.replace(self, sets=chosen, stretches=tuple(stretches))

    def values(self, column: str) -> Iterator[Int[np.ndarray, " _"]]:
        """A column of the sample table, of the samples in use, in pieces and in no particular order."""
        for part in self.sets:
            yield from part.values(column)


class MixedReader(Reader):
    """Reads the samples of several sets by their row in the joined manifest.

    Attributes:
        manifest: all sets' rows, one set after another; shards and logs are named `<number>.<set>/<name>`.
    """

    def __init__(self, readers: Sequence[SampleReader]) -> None:
        """Join the sets, in their order."""
        self._readers = tuple(readers)
        self._shard_starts = np.cumsum([0, *(len(reader.manifest.shards) for reader in readers)])
        self._starts = np.cumsum([0, *(len(reader.manifest) for reader in readers)])
        self.manifest = _Joined([reader.manifest for reader in readers])
        self.remote_shards = frozenset(
            int(start) + shard
            for start, reader in zip(self._shard_starts, readers, strict=False)
            for shard in reader.remote_shards
        )

    def expect(self, shards: Sequence[int]) -> None:
        """See `Reader.expect`."""
        set_of_shard = np.searchsorted(self._shard_starts, shards, side="right") - 1
        for number, (reader, start) in enumerate(zip(self._readers, self._shard_starts, strict=False)):
            # Also to sets of which nothing is needed: their shards are then not fetched whole for a single sample.
            reader.expect([s - int(start) for s, of in zip(shards, set_of_shard, strict=True) if of == number])

    def shard_of(self, index: int) -> str:
        """See `Reader.shard_of`."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        reader = self._readers[number]
        return f"{number}.{reader.manifest.set_name}/{reader.shard_of(index - int(self._starts[number]))}"

    def read_parts(self, index: int, parts: DecodeSpec) -> Sample:
        """See `Reader.read_parts`."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._readers[number].read_parts(index - int(self._starts[number]), parts)


def open_sets(
    sets: Sequence[SetConfig], cache: CacheConfig | None = None, *, retry_min: float = RETRY_MIN, warn: bool = False
) -> Opened:
    """Open the sets of a run, whose storage may be away for `retry_min` minutes; a single one is read as it is.

    With `warn`, the log says where superpixels are expected and a set does not record how its own were made.

    Raises:
        ShardError: no prepared set, no such split, no samples in it, or superpixels other than expected.
    """
    readers, chosen, stretches, rows, shards = [], [], [], 0, 0
    for config in sets:
        manifest = open_set(config, cache, warn=warn)
        of_set = Chosen(manifest=manifest, split=config.split, limit=config.limit, row_start=rows, shard_start=shards)
        if (num := len(of_set)) == 0:
            raise ShardError(f"{config.shards} has no samples in split {config.split!r}; choose another split")
        readers.append(SampleReader(manifest, retry_min=retry_min))
        chosen.append(of_set)
        stretches.append(Stretch(num=num, weight=config.weight))
        rows, shards = rows + len(manifest), shards + len(manifest.shards)
    reader = readers[0] if len(readers) == 1 else MixedReader(readers)
    segments = [r.manifest.superpixels.num_segments if r.manifest.superpixels else None for r in readers]
    known = [number for number in segments if number is not None]
    most = max(known) if len(known) == len(segments) else None  # no bound while a set does not say
    return Opened(reader=reader, sets=tuple(chosen), stretches=tuple(stretches), num_segments=most)


def open_set(config: SetConfig, cache: CacheConfig | None = None, *, warn: bool = False) -> Manifest:
    """The manifest of one of a run's sets, whose superpixels are what the run expects as far as the set records it.

    Raises:
        ShardError: as `open_sets`; names each setting that differs, both values and how to prepare the set.
    """
    manifest, expected = load_manifest(config.shards, cache), config.expected_superpixels
    if expected is None:
        return manifest
    if manifest.superpixels is None:
        if warn:
            logger.warning(
                "%s does not record how its superpixels were made; this run expects %s. A set that is prepared anew "
                "has the record",
                config.shards,
                expected,
            )
        return manifest
    differences = manifest.superpixels.differences(expected)
    if differences:
        asked = {name: value for name, value in dataclasses.asdict(expected).items() if value is not None}
        settings = " ".join(f"superpixels.{name}={value}" for name, value in asked.items() if name != "method")
        raise ShardError(
            f"{config.shards} has superpixels of {', '.join(differences)}; prepare a set with `tandem prepare ... "
            f"{settings}` into another folder (configs/prepare has the papers' sets), or set "
            "data.expected_superpixels=null to use this one"
        )
    return manifest


class _Joined(Manifest):
    """Several sets' rows, one set after another.

    A column, or the list of shards or logs, is put together when somebody asks for it: training does not, and so holds
    none of them twice.
    """

    def __init__(self, manifests: Sequence[Manifest]) -> None:
        splits = tuple(split for manifest in manifests for split in manifest.splits)
        known: dict[str, Any] = {
            "_manifests": tuple(manifests),
            "root": " + ".join(manifest.root for manifest in manifests),
            "set_name": "+".join(manifest.set_name for manifest in manifests),
            "camera_names": tuple(dict.fromkeys(name for m in manifests for name in m.camera_names)),
            "class_names": (),
            "box_categories": (),
            "splits": splits,
            "notes": tuple(note for manifest in manifests for note in manifest.notes),
            "skipped": {},
            "superpixels": None,
            "cache": CacheConfig(),
            "schema_version": SCHEMA_VERSION,
        }
        self.__dict__.update(known)  # the dataclass is frozen

    def __len__(self) -> int:
        """Number of samples."""
        return sum(map(len, self._manifests))

    def key(self, index: int) -> str:
        """See `Manifest.key`."""
        manifests: tuple[Manifest, ...] = self._manifests
        for manifest in manifests:
            if index < len(manifest):
                return manifest.key(index)
            index -= len(manifest)
        raise IndexError(index)

    def __getattr__(self, name: str) -> Any:
        """What has not been asked for yet."""
        manifests = self.__dict__.get("_manifests")
        if manifests is None or name not in ("keys", "shards", "logs", *SAMPLE_COLUMNS):
            raise AttributeError(name)
        self.__dict__[name] = value = _put_together(manifests, name)
        return value


def _put_together(manifests: Sequence[Manifest], name: str) -> Any:
    """A column of all sets, with their shards and logs numbered through; or the list of these by names of their own."""
    prefixes = [f"{number}.{manifest.set_name}/" for number, manifest in enumerate(manifests)]
    if name == "logs":
        return tuple(prefix + log for prefix, m in zip(prefixes, manifests, strict=True) for log in m.logs)
    if name == "shards":
        return tuple(
            dataclasses.replace(shard, file=prefix + shard.file)
            for prefix, manifest in zip(prefixes, manifests, strict=True)
            for shard in manifest.shards
        )
    column = np.concatenate([getattr(manifest, name) for manifest in manifests])
    if name in ("sample_shard", "sample_log"):
        of = {"sample_shard": "shards", "sample_log": "logs"}[name]
        shifts = np.cumsum([0, *(len(getattr(manifest, of)) for manifest in manifests[:-1])])
        column += np.repeat(shifts, [len(manifest) for manifest in manifests]).astype(column.dtype)
    return column
