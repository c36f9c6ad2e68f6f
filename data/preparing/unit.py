"""The parallel unit of preparation: a few stretches of logs that become one shard, and the record that it is done.

A unit's shard is renamed into place first and its record second, so a record means that the shard is whole and on
disk. What a crash leaves in between is made again, with the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import file_sha256, replace_file
from data.convert.base import Converter, Skipped
from data.preparing.superpixels import SuperpixelConfig, segment
from data.sample import Sample
from data.storage.encode import CodecConfig, DamagedError
from data.storage.manifest_check import MAX_MANIFEST_BYTES, is_plain_name
from data.storage.shard import Shard
from data.storage.shard_writer import COUNTED_COLUMNS, ShardTable, ShardWriter
from data.storage.untrusted import parse_json

logger = logging.getLogger(__name__)

RECORDS = ".prepare"
"""Folder of records inside the prepared set."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Frames `start` to `stop` (exclusive) of a log."""

    log: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What one worker turns into one shard."""

    number: int
    stretches: tuple[Stretch, ...]

    @property
    def num_frames(self) -> int:
        """Source frames, counting those that will be skipped."""
        return sum(stretch.stop - stretch.start for stretch in self.stretches)

    @property
    def shard_name(self) -> str:
        """File name of the unit's tar."""
        return f"shard-{self.number:06d}.tar"


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """A finished unit.

    Attributes:
        table: its shard and rows, None where every frame was skipped.
        skipped: what was left out.
    """

    table: ShardTable | None
    skipped: tuple[Skipped, ...]


def plan_units(converter: Converter, samples_per_shard: int, limit: int | None) -> list[Unit]:
    """Cut a set into units of at most `samples_per_shard` frames, whole logs apart; a unit has one split.

    Long logs are cut (unless the converter says that this is costly), short ones of the same split join up.

    Args:
        converter: the set.
        samples_per_shard: frames a unit.
        limit: use only the first so many frames of the set, None for all.
    """
    units: list[Unit] = []
    left = limit
    open_stretches: dict[str, list[Stretch]] = {}

    def close(split: str) -> None:
        stretches = open_stretches.pop(split, [])
        if stretches:
            units.append(Unit(number=len(units), stretches=tuple(stretches)))

    for log in converter.logs():
        split = converter.split_of(log)
        num_frames = converter.num_frames(log) if left is None else min(converter.num_frames(log), left)
        left = None if left is None else left - num_frames
        step = max(num_frames, 1) if converter.whole_logs else samples_per_shard
        for start in range(0, num_frames, step):
            stretch = Stretch(log=log, start=start, stop=min(start + step, num_frames))
            pending = open_stretches.get(split, [])
            if sum(s.stop - s.start for s in pending) + stretch.stop - stretch.start > samples_per_shard:
                close(split)
            open_stretches.setdefault(split, []).append(stretch)
    for split in list(open_stretches):
        close(split)
    return units


@dataclass(frozen=True, kw_only=True)
class UnitJob:
    """Everything that a worker needs besides the unit."""

    root: str
    converter: Converter
    superpixels: SuperpixelConfig | None
    codec: CodecConfig


def run_unit(job: UnitJob, unit: Unit, on_frame: Callable[[], None]) -> UnitRecord:
    """Convert, cut into superpixels, write; returns what `load_record` would read.

    Args:
        job: settings.
        unit: which frames.
        on_frame: called after each source frame.
    """
    skipped: list[Skipped] = []
    with ShardWriter(Path(job.root) / unit.shard_name, job.codec) as writer:
        for item in _items(job.converter, unit):
            problem = item if isinstance(item, Skipped) else _write(writer, item, job.superpixels)
            if problem is not None:
                skipped.append(problem)
            on_frame()
        table = writer.finish_or_discard()
    record = UnitRecord(table=table, skipped=tuple(skipped))
    save_record(job.root, unit, record)
    return record


def _items(converter: Converter, unit: Unit) -> Iterator[Sample | Skipped]:
    for stretch in unit.stretches:
        yield from converter.frames(stretch.log, stretch.start, stretch.stop)


def _write(writer: ShardWriter, sample: Sample, superpixels: SuperpixelConfig | None) -> Skipped | None:
    """Append the sample, or say why not."""
    try:
        writer.write(sample if superpixels is None else add_superpixels(sample, superpixels))
    except DamagedError as error:
        return Skipped.of(error, sample.key)
    return None


def add_superpixels(sample: Sample, config: SuperpixelConfig) -> Sample:
    """The sample with each camera's image cut into superpixels.

    Raises:
        ValueError: a camera has no image.
    """
    cameras = []
    for camera in sample.cameras:
        if camera.image is None:
            raise ValueError(f"{sample.key}: camera {camera.name!r} has no image to cut into superpixels")
        cameras.append(dataclasses.replace(camera, superpixels=segment(camera.image, config)))
    return dataclasses.replace(sample, cameras=tuple(cameras))


# ---- records
def _record_path(root: str, unit: Unit) -> Path:
    return Path(root) / RECORDS / f"unit-{unit.number:06d}.json"


def save_record(root: str, unit: Unit, record: UnitRecord) -> None:
    """Say that a unit is finished; its shard must be on disk."""
    content = {"unit": dataclasses.asdict(unit), **dataclasses.asdict(record)}
    replace_file(_record_path(root, unit), json.dumps(content).encode())


def load_record(root: str, unit: Unit, *, verify: bool) -> UnitRecord | None:
    """The record of a finished unit; None where it is not finished or its shard is no longer what was recorded.

    Args:
        root: folder of the set.
        unit: which.
        verify: compare the shard's checksum, which reads it whole; otherwise only its size.
    """
    path = _record_path(root, unit)
    if not path.is_file():
        return None
    try:
        content = parse_json(path.read_bytes(), MAX_MANIFEST_BYTES)
        if content["unit"] != json.loads(json.dumps(dataclasses.asdict(unit))):
            return None
        record = _parse_record(content)
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%r): its shard is made again", path, error)
        return None
    if record.table is None:
        return record
    shard = record.table.shard
    tar = Path(root) / shard.file
    if not tar.is_file() or os.path.getsize(tar) != shard.num_bytes:
        return None
    if verify and file_sha256(tar) != shard.sha256:
        return None
    return record


def _parse_record(content: dict[str, Any]) -> UnitRecord:
    """The record, every part of the type that joining relies on; raises ValueError, KeyError or TypeError."""
    skipped = tuple(Skipped(**entry) for entry in content["skipped"])
    stored = content["table"]
    texts = [text for skip in skipped for text in (skip.reason, skip.key, skip.detail)]
    if stored is None:
        _require(all(isinstance(text, str) for text in texts), "skipped")
        return UnitRecord(table=None, skipped=skipped)
    shard = Shard(**stored["shard"])
    _require(is_plain_name(shard.file) and isinstance(shard.sha256, str), "shard")
    _require(all(type(number) is int for number in (shard.num_samples, shard.num_bytes)), "shard")
    keys, logs = tuple(stored["keys"]), tuple(stored["logs"])
    _require(all(isinstance(text, str) for text in (*texts, *keys, *logs)), "a text")
    columns = {name: tuple(stored["columns"][name]) for name in COUNTED_COLUMNS}
    _require(all(len(values) == len(keys) for values in (logs, *columns.values())), "the length of a column")
    whole = (type(value) is int and abs(value) < 1 << 63 for values in columns.values() for value in values)
    _require(len(keys) > 0 and all(whole), "a number")
    return UnitRecord(table=ShardTable(shard=shard, keys=keys, logs=logs, columns=columns), skipped=skipped)


def _require(right: bool, what: str) -> None:
    if not right:
        raise ValueError(f"{what} is wrong")
