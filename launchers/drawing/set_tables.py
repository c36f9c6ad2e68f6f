"""A prepared set and its samples in numbers, as tables."""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from common.printable import listed
from data.sample import IGNORE_LABEL, Boxes, Sample
from data.storage.manifest import Manifest
from data.storage.reader import SampleError, SampleReader
from launchers.drawing.page import TextTable
from launchers.drawing.scenes import Extent, extent_of

_LOOKED_AT = 50
"""Samples of a set that are read, at most: enough for shares of labels, and done in seconds."""


_EVERY = 16
"""Of the points that tell how far a set reaches."""


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What some samples, spread over a set, hold.

    Attributes:
        num_points: of each label value.
        num_read: samples that could be read.
        unusable: key, reason and detail of those that training would skip.
        extent: how far pictures of the set reach.
    """

    num_points: Int[np.ndarray, " 256"]
    num_read: int
    unusable: tuple[tuple[str, str, str], ...]
    extent: Extent


def look(manifest: Manifest, reader: SampleReader) -> Looked:
    """Read samples as training does, without decoding their images."""
    num_points, unusable = np.zeros(256, dtype=np.int64), []  # labels are bytes
    points = [np.zeros((0, 3))]
    indices = np.unique(np.linspace(0, len(manifest) - 1, min(len(manifest), _LOOKED_AT)).astype(np.int64))
    for index in indices.tolist():
        try:
            sample = reader.read(index, images="encoded")
        except SampleError as error:
            unusable.append((error.key, error.reason, error.detail))
            continue
        points.append(sample.points_lidar[::_EVERY].astype(np.float64))
        if sample.labels is not None:
            num_points += np.bincount(sample.labels, minlength=256)
    num_read, extent = len(indices) - len(unusable), extent_of(np.concatenate(points))
    return Looked(num_points=num_points, num_read=num_read, unusable=tuple(unusable), extent=extent)


def set_tables(manifest: Manifest, looked: Looked) -> list[TextTable]:
    """An overview of a set: contents, splits, classes, what was left out."""
    tables = [_contents(manifest), _splits(manifest)]
    if manifest.class_names:
        tables.append(_classes(manifest, looked))
    if manifest.skipped:
        rows = tuple((reason, str(len(keys)), ", ".join(keys[:3])) for reason, keys in manifest.skipped.items())
        tables.append(TextTable(title="left out when prepared", header=("reason", "samples", "e.g."), rows=rows))
    if manifest.notes:
        tables.append(TextTable(title="notes", rows=tuple((note,) for note in manifest.notes)))
    return tables


def _contents(manifest: Manifest) -> TextTable:
    num_bytes = sum(shard.num_bytes for shard in manifest.shards)
    samples = max(len(manifest), 1)
    return TextTable(
        title="contents",
        rows=(
            ("schema version", str(manifest.schema_version)),
            ("samples", f"{len(manifest):,}"),
            ("logs", f"{len(manifest.logs):,}"),
            ("shards", f"{len(manifest.shards):,}"),
            ("size", f"{human_bytes(num_bytes)}, {human_bytes(num_bytes / samples)} a sample"),
            ("cameras", ", ".join(manifest.camera_names) or "none"),
            ("categories of boxes", listed(manifest.box_categories, 8) or "none, or not recorded"),
            ("images", manifest.stored_images),
            ("points per sample", _spread_text(manifest.num_points)),
            ("pairs per sample", _spread_text(manifest.num_pairs)),
            ("samples without pairs", f"{(manifest.num_pairs == 0).sum():,}"),
            ("superpixels", str(manifest.superpixels) if manifest.superpixels else "none, or not recorded"),
            ("fingerprint", manifest.fingerprint()[:16]),
        ),
    )


def _splits(manifest: Manifest) -> TextTable:
    rows = []
    for split in dict.fromkeys(manifest.splits):
        logs = sum(name == split for name in manifest.splits)
        indices = manifest.indices(split)
        labelled = manifest.num_labelled[indices]
        known = f"{(labelled > 0).sum():,}" if (labelled >= 0).all() else "unknown"
        rows.append((split or "(none)", str(logs), f"{len(indices):,}", known))
    header = ("split", "logs", "samples", "labelled")
    return TextTable(title="splits", header=header, rows=tuple(rows), numeric=(1, 2, 3))


def _classes(manifest: Manifest, looked: Looked) -> TextTable:
    counts = looked.num_points
    total = max(int(counts.sum()), 1)
    named = {**dict(enumerate(manifest.class_names)), IGNORE_LABEL: "(unlabelled)"}
    unknown = [value for value in np.flatnonzero(counts).tolist() if value not in named]
    rows = [
        (str(value), named.get(value, "(unknown)"), f"{counts[value] / total:.2%}")
        for value in [*range(len(manifest.class_names)), *unknown, IGNORE_LABEL]
    ]
    title = f"classes by share of points, in {looked.num_read} of {len(manifest)} samples"
    if looked.unusable:
        title += f" ({len(looked.unusable)} more could not be read)"
    return TextTable(title=title, header=("id", "class", "points"), rows=tuple(rows), numeric=(0, 2))


def _spread_text(values: Int[np.ndarray, " n"]) -> str:
    if len(values) == 0:
        return "none"
    return f"{values.mean():,.0f} (from {values.min():,} to {values.max():,})"


def sample_table(sample: Sample, index: int) -> TextTable:
    """One sample in numbers."""
    points = sample.points_lidar
    range_m = np.linalg.norm(points, axis=1)
    when = datetime.datetime.fromtimestamp(sample.timestamp_us / 1e6, datetime.timezone.utc)
    rows = [
        ("log", sample.log),
        ("time", f"{sample.timestamp_us} us ({when:%Y-%m-%d %H:%M:%S} UTC)"),
        ("points", f"{len(points):,}, range {range_m.min():.1f} to {range_m.max():.1f} m"),
        ("height", f"{points[:, 2].min():.2f} to {points[:, 2].max():.2f} m in the LiDAR frame"),
        ("intensity", f"{sample.intensity.min():.3f} to {sample.intensity.max():.3f}"),
    ]
    if sample.times_s is not None:
        rows.append(("times", f"{sample.times_s.min():.3f} to {sample.times_s.max():.3f} s before the sweep"))
    if sample.elongations is not None:
        rows.append(("elongation", f"{sample.elongations.min():.3f} to {sample.elongations.max():.3f}"))
    if sample.colors is not None:
        rows.append(("colours", ", ".join(f"{value:.0f}" for value in sample.colors.mean(axis=0)) + " in the mean"))
    for camera in sample.cameras:
        late_ms = (camera.timestamp_us - sample.timestamp_us) / 1000
        count = "no" if camera.superpixels is None else str(int(camera.superpixels.max()) + 1)
        height, width = camera.image_size
        text = f"{width} x {height} px, f {camera.K[0, 0]:.1f} px, {count} superpixels, {late_ms:+.1f} ms to the sweep"
        if camera.ignored_px is not None:
            text += f", {len(camera.ignored_px)} ignored rectangles"
        rows.append((f"camera {camera.name}", text))
    if sample.boxes is not None:
        rows.append(("boxes", _boxes_text(sample.boxes)))
    return TextTable(title=f"sample {sample.key} (row {index})", rows=tuple(rows))


def _boxes_text(boxes: Boxes) -> str:
    """How many, and what this set knows of them beside where and what they are."""
    optional = [field.name for field in dataclasses.fields(Boxes) if field.default is None]
    known = [name for name in optional if getattr(boxes, name) is not None]
    return f"{len(boxes.classes)}{', with ' + ', '.join(known) if known else ''}"


def human_bytes(count: int | float) -> str:
    """Bytes with a unit that keeps the number short."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
