"""Shard sets with one sample of every kind of damage; their checksums are right, so the content alone is at fault."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import cv2
import numpy as np

import data.storage.shard_writer
from data.sample import Sample
from data.storage.encode import CodecConfig, encode_sample
from data.storage.manifest import SetInfo, load_manifest
from data.storage.shard_writer import join_manifest, write_shard
from tests.helpers.samples import CAMERA_NAMES, CLASS_NAMES, toy_log

Members = dict[str, bytes]


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _points(members: Members) -> np.ndarray:
    return np.asarray(np.load(io.BytesIO(members["points.npy"])))


def _nan_points(members: Members) -> None:
    points = _points(members)
    points[5, 2] = np.nan
    members["points.npy"] = _npy(points)


def _absurd_point(members: Members) -> None:
    points = _points(members)
    points[5, 0] = 1e7
    members["points.npy"] = _npy(points)


def _flipped_bit(members: Members) -> None:
    """The highest bit of an intensity's exponent: 0.38 becomes 1.3e38."""
    points = _points(members)
    points[5, 3:].view("<u4")[:] ^= 1 << 30
    members["points.npy"] = _npy(points)


def _empty_sweep(members: Members) -> None:
    members["points.npy"] = _npy(np.zeros((0, 4), "<f4"))
    for name, kind in (("labels.npy", "u1"), ("instances.npy", "<u2")):
        members[name] = _npy(np.zeros(0, kind))


def _no_calibration(members: Members) -> None:
    meta = json.loads(members["meta.json"])
    del meta["cameras"][0]["K"]
    members["meta.json"] = json.dumps(meta).encode()


def _broken_jpeg(members: Members) -> None:
    members["front.jpg"] = members["front.jpg"][: len(members["front.jpg"]) // 2]


def _image_of_another_size(members: Members) -> None:
    members["left.jpg"] = cv2.imencode(".jpg", np.zeros((40, 96, 3), np.uint8))[1].tobytes()


def _zero_pairs(members: Members) -> None:
    """All points behind and to the right, where no camera looks."""
    points = _points(members)
    points[:, :2] = -np.abs(points[:, :2]) - 2
    members["points.npy"] = _npy(points)


DAMAGE: dict[str, Callable[[Members], None]] = {
    "image-broken": _broken_jpeg,
    "points-not-finite": _nan_points,
    "points-range": _absurd_point,
    "intensity-range": _flipped_bit,
    "empty-sweep": _empty_sweep,
    "calibration-missing": _no_calibration,
    "image-size": _image_of_another_size,
    "zero-pairs": _zero_pairs,
}
"""Reason -> what to do to the members; "tar-broken" is made by cutting a tar."""


def write_damaged_set(path: Path | str, *, logs: int = 6, frames: int = 4) -> tuple[str, dict[str, tuple[str, str]]]:
    """A set of one shard a log, all "train"; one damaged sample a log, and the last shard cut in its last sample.

    Returns:
        Its folder, and key and shard of the damaged sample by reason.
    """
    root = Path(path)
    root.mkdir(parents=True)
    damaged: dict[str, tuple[str, str]] = {}
    names = [f"log-{number:03d}" for number in range(logs)]
    for number, reason in enumerate(DAMAGE):
        frame = (number + number // logs) % (frames - 1)  # another one in each round of the logs
        damaged[reason] = (f"{names[number % logs]}_{frame:06d}", f"shard-{number % logs:06d}.tar")
    by_key = {key: DAMAGE[reason] for reason, (key, _) in damaged.items()}
    with _members_changed(by_key):
        tables = [write_shard(root / f"shard-{n:06d}.tar", toy_log(n, frames)) for n in range(logs)]
    info = SetInfo(
        set_name="damaged",
        camera_names=CAMERA_NAMES,
        class_names=CLASS_NAMES,
        logs=tuple(names),
        splits=("train",) * logs,
    )
    join_manifest(str(root), info, tables)
    manifest = load_manifest(str(root))
    last = len(manifest) - 1
    os.truncate(manifest.shard_path(logs - 1), int(manifest.sample_offset[last]) + 700)
    damaged["tar-broken"] = (manifest.key(last), f"shard-{logs - 1:06d}.tar")
    return str(root), damaged


@contextmanager
def _members_changed(by_key: dict[str, Callable[[Members], None]]) -> Iterator[None]:
    def encode(sample: Sample, config: CodecConfig) -> Members:
        members = encode_sample(sample, config)
        if sample.key in by_key:
            by_key[sample.key](members)
        return members

    with mock.patch.object(data.storage.shard_writer, "encode_sample", encode):
        yield
