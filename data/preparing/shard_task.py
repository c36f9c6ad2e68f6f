"""One task of preparing: the frames that become one shard, and the record that it is done.

A shard is renamed into place first and its record second, so a record means that the shard is whole and on disk. What
a crash leaves in between is made again, with the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import file_sha256, replace_file
from data.calibration.heading import Heading
from data.convert.base import Converter, Skipped, read_or_skip, unforeseen
from data.preparing.early import SampleLooks, Tally
from data.preparing.smaller import with_smaller_images
from data.preparing.superpixels import SuperpixelConfig, segment
from data.sample import Sample
from data.storage.damage import DamagedError
from data.storage.encode import CodecConfig, SetBounds
from data.storage.manifest_check import MAX_MANIFEST_BYTES, is_plain_name
from data.storage.shard import Shard
from data.storage.shard_writer import COUNTED_COLUMNS, ShardTable, ShardWriter
from data.storage.untrusted import parse_json

logger = logging.getLogger(__name__)

RECORDS = ".prepare"
"""Folder of records inside the prepared set."""


@dataclass(frozen=True, kw_only=True)
class FrameRange:
    """Frames `start` to `stop` (exclusive) of a log."""

    log: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """What one worker turns into one shard.

    Records store the fields by these names, and the settings of a folder their hash: renaming one would make every
    begun folder start again.
    """

    number: int
    stretches: tuple[FrameRange, ...]

    @property
    def num_frames(self) -> int:
        """Source frames, counting those that will be skipped."""
        return sum(stretch.stop - stretch.start for stretch in self.stretches)

    @property
    def shard_name(self) -> str:
        """File name of the tar."""
        return f"shard-{self.number:06d}.tar"


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A finished task.

    Attributes:
        table: its shard and rows, None where every frame was skipped.
        skipped: what was left out.
        headings: how the vehicle drove, `data.calibration.heading.Heading.record` by log.
        brightest: their largest intensity, by log.
        notes: what looks odd about its samples, by log.
    """

    table: ShardTable | None
    skipped: tuple[Skipped, ...]
    headings: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    brightest: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @staticmethod
    def of(table: ShardTable | None, skipped: Sequence[Skipped], looks: SampleLooks) -> ShardRecord:
        """Of what a task made, left out and saw."""
        headings = {log: heading.record for log, heading in looks.headings.items() if heading.steps}
        about: dict[str, Any] = {"headings": headings, "brightest": looks.brightest, "notes": looks.notes}
        return ShardRecord(table=table, skipped=tuple(skipped), **about)


def plan_tasks(converter: Converter, samples_per_shard: int, limit: int | None) -> list[ShardTask]:
    """Cut a set, or its first `limit` frames, into tasks of at most `samples_per_shard` frames, each of one split.

    Long logs are cut (unless the converter says that this is costly), short ones of the same split join up.
    """
    tasks: list[ShardTask] = []
    open_ranges: dict[str, list[FrameRange]] = {}  # of each split: what its next shard has so far

    def close(split: str) -> None:
        if split in open_ranges:
            tasks.append(ShardTask(number=len(tasks), stretches=tuple(open_ranges.pop(split))))

    for log in converter.logs():
        split, num_frames = converter.split_of(log), converter.num_frames(log)
        if limit is not None:
            num_frames = min(num_frames, limit)
            limit -= num_frames
        step = max(num_frames, 1) if converter.whole_logs else samples_per_shard
        for start in range(0, num_frames, step):
            frames = FrameRange(log=log, start=start, stop=min(start + step, num_frames))
            pending = sum(part.stop - part.start for part in open_ranges.get(split, ()))
            if pending + frames.stop - frames.start > samples_per_shard:
                close(split)
            open_ranges.setdefault(split, []).append(frames)
    for split in list(open_ranges):
        close(split)
    return tasks


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Everything that a worker needs besides the task."""

    root: str
    converter: Converter
    superpixels: SuperpixelConfig | None
    codec: CodecConfig
    image_reduction: int = 1
    allowed_skips: int = sys.maxsize
    begun: bool = False


def run_task(job: ShardJob, task: ShardTask, tally: Tally) -> ShardRecord:
    """Convert, cut into superpixels, write; returns what `load_record` would read. Counts each source frame.

    Raises:
        ShardError: the set cannot be made; see `data.preparing.early`.
    """
    skipped: list[Skipped] = []
    looks = SampleLooks(
        tally,
        begun=job.begun,
        drives_forward=job.converter.drives_forward,
        measures_intensity=job.converter.measures_intensity,
    )
    bounds = SetBounds(
        camera_names=job.converter.camera_names(),
        num_classes=len(job.converter.class_names) or None,
        num_categories=len(job.converter.box_categories),
    )
    with ShardWriter(Path(job.root) / task.shard_name, job.codec, bounds) as writer:
        for part in task.stretches:
            for item in job.converter.frames(part.log, part.start, part.stop):
                written = item
                if isinstance(item, Sample):
                    written = write_sample(writer, item, job.superpixels, job.image_reduction)
                if isinstance(written, Skipped):
                    skipped.append(dataclasses.replace(written, log=part.log))
                    tally.frame(skipped[-1])
                    tally.check(job.allowed_skips)
                else:
                    looks.add(written)
                    tally.frame()
        looks.judge()
        table = writer.finish_or_discard()
    record = ShardRecord.of(table, skipped, looks)
    save_record(job.root, task, record)
    return record


def write_sample(
    writer: ShardWriter, sample: Sample, superpixels: SuperpixelConfig | None, image_reduction: int
) -> Sample | Skipped:
    """Append a sample, its images finished; what takes its place where that fails."""
    made = read_or_skip(lambda: finished(sample, superpixels, image_reduction), sample.key)
    if isinstance(made, Sample):
        try:
            writer.write(made)
        except DamagedError as error:
            return Skipped.of(error, sample.key)
        except OSError:  # of the folder, not of the sample
            raise
        except Exception as error:
            return unforeseen(error, sample.key)
    return made


def finished(sample: Sample, superpixels: SuperpixelConfig | None, image_reduction: int) -> Sample:
    """The sample with images of the size that is stored, cut into superpixels where asked for.

    Raises:
        DamagedError: a JPEG cannot be decoded.
        ValueError: a camera has no image.
    """
    sample = with_smaller_images(sample, image_reduction)
    return sample if superpixels is None else add_superpixels(sample, superpixels)


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
def _record_path(root: str, task: ShardTask) -> Path:
    return Path(root) / RECORDS / f"unit-{task.number:06d}.json"


def save_record(root: str, task: ShardTask, record: ShardRecord) -> None:
    """Say that a task is finished; its shard must be on disk."""
    content = {"unit": dataclasses.asdict(task), **dataclasses.asdict(record)}
    replace_file(_record_path(root, task), json.dumps(content).encode())


def load_record(root: str, task: ShardTask, *, verify: bool, retry_skipped: bool = False) -> ShardRecord | None:
    """The record of a finished task; None where it is not finished or its shard is no longer what was recorded.

    Args:
        root: folder of the set.
        task: of the record.
        verify: compare the shard's checksum, which reads it whole; otherwise only its size is compared.
        retry_skipped: a task that skipped frames counts as not finished.
    """
    path = _record_path(root, task)
    if not path.is_file():
        return None
    try:
        content = parse_json(path.read_bytes(), MAX_MANIFEST_BYTES)
        if content["unit"] != json.loads(json.dumps(dataclasses.asdict(task))):  # tuples become lists
            return None
        record = _parse_record(content)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        logger.warning("%s is damaged (%r): its shard is made again", path, error)
        return None
    if retry_skipped and record.skipped:
        return None
    if record.table is None:
        return record
    shard = record.table.shard
    tar = Path(root) / shard.file
    whole = tar.is_file() and os.path.getsize(tar) == shard.num_bytes
    return record if whole and not (verify and file_sha256(tar) != shard.sha256) else None


def forget_skips(root: str, tasks: Iterable[ShardTask]) -> None:
    """Drop those tasks' records that count skipped frames: their shards are made again, of a repaired source whole."""
    for task in tasks:
        record = load_record(root, task, verify=False)
        if record is not None and record.skipped:
            _record_path(root, task).unlink()


def _parse_record(content: dict[str, Any]) -> ShardRecord:
    """The record, every part of the type that joining relies on.

    Raises:
        ValueError, KeyError, TypeError, OverflowError: it is none.
    """
    skipped = tuple(Skipped(**entry) for entry in content["skipped"])
    stored = content["table"]
    texts = [text for skip in skipped for text in (skip.reason, skip.key, skip.detail, skip.log)]
    names = ("notes", "headings", "brightest")  # which records of earlier versions do not have
    notes, headings, brightest = ({**(content.get(name) or {})} for name in names)
    headings = {log: tuple(float(number) for number in record) for log, record in headings.items()}
    brightest = {log: float(number) for log, number in brightest.items()}
    _require(all(Heading.is_record(record) for record in headings.values()), "headings")
    about = {"headings": headings, "brightest": brightest, "notes": notes}
    if stored is None:
        _require(all(isinstance(text, str) for text in (*texts, *notes.values())), "skipped")
        return ShardRecord(table=None, skipped=skipped, **about)
    shard = Shard(**stored["shard"])
    _require(is_plain_name(shard.file) and isinstance(shard.sha256, str), "shard")
    _require(all(type(number) is int for number in (shard.num_samples, shard.num_bytes)), "shard")
    keys, logs = tuple(stored["keys"]), tuple(stored["logs"])
    _require(all(isinstance(text, str) for text in (*texts, *notes.values(), *keys, *logs)), "a text")
    columns = {name: tuple(stored["columns"][name]) for name in COUNTED_COLUMNS}
    _require(all(len(values) == len(keys) for values in (logs, *columns.values())), "the length of a column")
    whole = (type(value) is int and abs(value) < 1 << 63 for values in columns.values() for value in values)
    _require(len(keys) > 0 and all(whole), "a number")
    table = ShardTable(shard=shard, keys=keys, logs=logs, columns=columns)
    return ShardRecord(table=table, skipped=skipped, **about)


def _require(right: bool, what: str) -> None:
    if not right:
        raise ValueError(f"{what} is wrong")
