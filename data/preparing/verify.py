"""Whether a prepared set is whole: every shard and every sample read, decoded and compared with what the set says.

`verify` only looks; `data.preparing.repair` drops what it finds. What training would skip is found here too, before it
costs a GPU's time, and so is what training would not notice: labels that are no class, superpixel ids with gaps, a
calibration that no camera has, frames of a log out of order.

Cost: each shard is read twice (checksum, samples) and every image decoded; shards are spread over processes.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from common.files import file_sha256, replace_file
from data.convert.intensity import DARK, FEW_POINTS, MOST_CLIPPED
from data.convert.sets import SETTINGS
from data.preparing.early import Tally
from data.preparing.pool import Progress, run_all
from data.sample import CameraView, Sample
from data.storage.encode import count_labelled, count_pairs
from data.storage.manifest import TABLE_NAME, Manifest, load_manifest
from data.storage.manifest_check import MAX_MANIFEST_BYTES, repeated
from data.storage.manifest_writer import set_columns_of
from data.storage.reader import SampleError, SampleReader, blamed_on
from data.storage.shard import ShardError
from data.storage.store import MANIFEST_NAME, is_url
from data.storage.untrusted import parse_json

REPORT_NAME = "verify.json"

REASONS = (
    "shard-changed",  # the tar has other bytes than the manifest says, though its samples may be whole
    "table-wrong",  # samples.npz states another log, time or count than the sample has
    "key-twice",  # an earlier sample has the same key
    "time-order",  # a sweep before the one that it follows in its log
    "calibration-odd",  # intrinsics that no such image has
    "zero-pairs",  # cameras, and no point in any of them
    "superpixel-gaps",  # ids that are not consecutive from 0
    "boxes-flat",  # a side of no length
    "intensity-scale",  # most are 1: of another scale than the set took them for when it was prepared
    "intensity-dark",  # as all others of its log next to 0: likewise
)
"""What `verify` finds beside `data.storage.damage.REASONS`."""

_PAIR_SLACK, _PAIR_SLACK_SHARE = 2, 1e-3
"""Points at the border of an image: they were counted before they became float32, perhaps on another processor."""


@dataclass(frozen=True, kw_only=True)
class SetProblem:
    """One thing that is wrong.

    Attributes:
        reason: one of `REASONS` or of `data.storage.damage.REASONS`.
        shard: file name of the tar.
        row: of the sample in samples.npz; -1 where the shard as a whole is meant.
        key: of the sample, "" for the shard.
        detail: what exactly is wrong, in words.
    """

    reason: str
    shard: str
    row: int
    key: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was looked at and what was found.

    Attributes:
        root: folder of the set.
        num_samples: in the manifest.
        num_shards: in the manifest.
        num_read: shards that were looked into.
        problems: shard by shard.
        seconds: it took.
    """

    root: str
    num_samples: int
    num_shards: int
    num_read: int
    problems: tuple[SetProblem, ...]
    seconds: float

    @property
    def broken_rows(self) -> list[int]:
        """Rows of samples with a problem, ascending."""
        return sorted({problem.row for problem in self.problems if problem.row >= 0})

    def by_reason(self) -> dict[str, list[SetProblem]]:
        """Problems, most frequent reason first."""
        by_reason: dict[str, list[SetProblem]] = {}
        for problem in self.problems:
            by_reason.setdefault(problem.reason, []).append(problem)
        return dict(sorted(by_reason.items(), key=lambda item: -len(item[1])))


def verify(root: str, *, workers: int = 1, fraction: float = 1.0, on_progress: Progress | None = None) -> VerifyReport:
    """Look at every sample of the set in a folder, in `workers` processes (1 works in this one).

    With a `fraction` below 1 only so many of the shards are looked into, evenly spread; the table always is as a whole.

    Raises:
        ShardError: the manifest or samples.npz cannot be read, so that there are no samples to speak of; a URL.
    """
    started = time.monotonic()
    if is_url(root):
        raise ShardError(f"{root} is a URL; verify the folder that it shows, before it is uploaded or where it lies")
    manifest = load_manifest(root)

    def show(tally: Tally) -> None:
        if on_progress is not None:
            on_progress(tally.num_frames, total, {})

    shards = _spread(len(manifest.shards), fraction)
    total = len(manifest) if fraction >= 1 else sum(len(manifest.rows_of_shard(shard)) for shard in shards)
    by_shard = run_all(functools.partial(verify_shard, manifest), shards, workers, show, f"verifying {root}")
    problems = [*_of_dark_logs(manifest, itertools.chain.from_iterable(by_shard))]
    problems += [*_keys_twice(manifest), *_out_of_order(manifest), *_columns(manifest)]
    return VerifyReport(
        root=root,
        num_samples=len(manifest),
        num_shards=len(manifest.shards),
        num_read=len(shards),
        problems=tuple(sorted(problems, key=lambda problem: (problem.shard, problem.row))),
        seconds=time.monotonic() - started,
    )


def save_report(report: VerifyReport) -> str:
    """Write `verify.json` into the set's folder; returns its path.

    Raises:
        ShardError: the folder cannot be written.
    """
    path = Path(report.root) / REPORT_NAME
    content: dict[str, Any] = {
        "num_samples": report.num_samples,
        "num_shards": report.num_shards,
        "num_shards_read": report.num_read,
        "num_broken_samples": len(report.broken_rows),
        "seconds": round(report.seconds, 1),
        "counts": {reason: len(problems) for reason, problems in report.by_reason().items()},
        "problems": [dataclasses.asdict(problem) for problem in report.problems],
    }
    try:
        replace_file(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise ShardError(f"{path} cannot be written: {error}") from error
    return str(path)


def _spread(num: int, fraction: float) -> list[int]:
    """So many numbers of `num`, evenly spread."""
    return [int(shard) for shard in np.unique(np.linspace(0, max(num - 1, 0), round(fraction * num)).astype(int))]


# ---- the table
def _columns(manifest: Manifest) -> Iterator[SetProblem]:
    """What opening a set with a mapped table leaves out: its checksum, and whether the index is that of the samples."""
    if manifest.index is None:
        return
    path = Path(manifest.root)
    stated = parse_json((path / MANIFEST_NAME).read_bytes(), MAX_MANIFEST_BYTES)["table_sha256"]
    wrong = [] if file_sha256(path / TABLE_NAME) == stated else ["its SHA-256 is not the manifest's"]
    columns, _ = set_columns_of(manifest)
    in_time = columns.get("in_time")
    for name in ("shard_first", "shard_split", "log_split", "log_start"):
        if not np.array_equal(columns[name], getattr(manifest.index, name)):
            wrong.append(f"{name} is not that of the samples")
    if (in_time is None) != (manifest.index.in_time is None) or (
        in_time is not None and not np.array_equal(in_time, np.asarray(manifest.index.in_time))
    ):
        wrong.append("in_time is not the samples' order by log and time")
    for detail in wrong:
        yield SetProblem(reason="table-wrong", shard=TABLE_NAME, row=-1, key="", detail=detail)


def _keys_twice(manifest: Manifest) -> Iterator[SetProblem]:
    for row in repeated(manifest.keys).tolist():
        yield _problem(manifest, row, "key-twice", "an earlier sample has the same key")


def _of_dark_logs(manifest: Manifest, problems: Iterable[SetProblem]) -> Iterator[SetProblem]:
    """The problems without those of single dark sweeps in logs that have others."""
    problems = list(problems)
    rows = np.array([problem.row for problem in problems if problem.reason == "intensity-dark"], dtype=np.int64)
    dark, all_ = (
        np.bincount(of, minlength=len(manifest.logs)) for of in (manifest.sample_log[rows], manifest.sample_log)
    )
    whole = dark == all_
    for problem in problems:
        if problem.reason != "intensity-dark" or whole[manifest.sample_log[problem.row]]:
            yield problem


def _out_of_order(manifest: Manifest) -> Iterator[SetProblem]:
    """Samples without which each log's times would never fall: as few as there can be."""
    by_log = np.argsort(manifest.sample_log, kind="stable")
    falls = np.diff(manifest.sample_timestamp_us[by_log]) < 0
    within = np.diff(manifest.sample_log[by_log]) == 0
    for log in np.unique(manifest.sample_log[by_log[1:][falls & within]]):
        rows = np.flatnonzero(manifest.sample_log == log)
        times = manifest.sample_timestamp_us[rows]
        for place in _not_in_order(times):
            yield _problem(manifest, int(rows[place]), "time-order", f"{times[place]} us, out of its log's order")


def _not_in_order(times: Shaped[np.ndarray, " n"]) -> list[int]:
    """Places outside of a longest non-decreasing subsequence.

    tails[k] is the smallest time that ends such a sequence of length k + 1; before[i] precedes place i in the best one
    that ends there.
    """
    tails: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    for place, value in enumerate(times.tolist()):
        length = bisect.bisect_right(tails, value)
        before.append(ends[length - 1] if length else -1)
        tails[length : length + 1], ends[length : length + 1] = [value], [place]
    in_order, place = set(), ends[-1]
    while place >= 0:
        in_order.add(place)
        place = before[place]
    return sorted(set(range(len(times))) - in_order)


# ---- shards and samples
def verify_shard(manifest: Manifest, shard: int, tally: Tally) -> list[SetProblem]:
    """Everything about one tar (an index into `Manifest.shards`) and its samples; tells of each sample."""
    stated = manifest.shards[shard]
    problems = []
    try:
        changed = file_sha256(Path(manifest.root) / stated.file) != stated.sha256
        detail = "its SHA-256 is not the manifest's"
    except OSError as error:
        changed, detail = True, str(error)
    if changed:
        problems.append(SetProblem(reason="shard-changed", shard=stated.file, row=-1, key="", detail=detail))
    reader = SampleReader(manifest, retry_min=0.0)  # what cannot be read now is reported, not waited for
    for row in manifest.rows_of_shard(shard).tolist():
        try:
            sample = reader.read(row, depth=True, image_labels=True)
            with blamed_on(sample.key, stated.file):
                faults = list(sample_problems(manifest, row, sample))
        except SampleError as error:
            faults = [(error.reason, error.detail)]
        problems += [_problem(manifest, row, *fault) for fault in faults]
        tally.frame()
    reader.close()
    return problems


def _problem(manifest: Manifest, row: int, reason: str, detail: str) -> SetProblem:
    shard = manifest.shards[int(manifest.sample_shard[row])].file
    return SetProblem(reason=reason, shard=shard, row=row, key=manifest.key(row), detail=detail)


def sample_problems(manifest: Manifest, row: int, sample: Sample) -> Iterator[tuple[str, str]]:
    """Reason and detail of each thing that reading a sample does not refuse."""
    num_pairs, stated_pairs = count_pairs(sample), int(manifest.num_pairs[row])
    facts: tuple[tuple[str, Any, Any], ...] = (
        ("log", sample.log, manifest.logs[int(manifest.sample_log[row])]),
        ("timestamp_us", sample.timestamp_us, int(manifest.sample_timestamp_us[row])),
        ("num_points", len(sample.points_lidar), int(manifest.num_points[row])),
    )
    if manifest.num_labelled[row] >= 0:
        facts += (("num_labelled", count_labelled(sample), int(manifest.num_labelled[row])),)
    for name, is_so, stated in facts:
        if is_so != stated:
            yield "table-wrong", f"{name} is {is_so!r}, stated {stated!r}"
    if abs(num_pairs - stated_pairs) > _PAIR_SLACK + _PAIR_SLACK_SHARE * stated_pairs:
        yield "table-wrong", f"num_pairs is {num_pairs}, stated {stated_pairs}"
    if sample.cameras and num_pairs == 0:
        yield "zero-pairs", f"none of {len(sample.points_lidar)} points is in any of {len(sample.cameras)} cameras"
    converter = SETTINGS.get(manifest.set_name)
    if len(sample.intensity) >= FEW_POINTS and (converter is None or converter.measures_intensity):
        bright, largest = float((sample.intensity >= 1).mean()), float(sample.intensity.max())
        if bright > MOST_CLIPPED:
            yield "intensity-scale", f"{bright:.0%} of the intensities are 1"
        elif 0 < largest <= DARK:
            yield "intensity-dark", f"the largest intensity is {largest:g}, and no other of its log above {DARK:g}"
    if sample.boxes is not None and (sample.boxes.sizes_m == 0).any():
        yield "boxes-flat", "a box has a side of 0 m"
    for camera in sample.cameras:
        yield from _camera_problems(camera)


def _camera_problems(camera: CameraView) -> Iterator[tuple[str, str]]:
    height, width = camera.image_size
    K = camera.K
    focal_fits = 0.05 < K[0, 0] / width < 50 and 0.05 < K[1, 1] / height < 50
    centre_fits = -width < K[0, 2] < 2 * width and -height < K[1, 2] < 2 * height
    if not (focal_fits and centre_fits and abs(K[1, 0]) < 1e-6):
        yield "calibration-odd", f"{camera.name}: intrinsics {K.tolist()} of an image {height}x{width}"
    if camera.superpixels is not None:
        counts = np.bincount(camera.superpixels.ravel())
        if (counts == 0).any():
            yield "superpixel-gaps", f"{camera.name}: {int((counts == 0).sum())} of {len(counts)} ids have no pixel"


def examples(problems: Sequence[SetProblem], count: int) -> list[SetProblem]:
    """A few, of different shards where there are several."""
    by_shard = {problem.shard: problem for problem in reversed(problems)}
    firsts = list(reversed(by_shard.values()))[:count]
    return firsts + [problem for problem in problems if problem not in firsts][: count - len(firsts)]
