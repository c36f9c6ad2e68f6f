"""Shards from a program's own samples: the same set with any number of workers, resumed, or read frame by frame."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data.preparing.prepare import PrepareConfig, prepare
from data.preparing.samples import FrameSource, SourceConverter, prepare_samples
from data.preparing.superpixels import SuperpixelConfig
from data.sample import Sample
from data.storage.damage import DamagedError
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from tests.helpers.samples import CAMERA_NAMES, CLASS_NAMES, make_sample

CONFIG = PrepareConfig(samples_per_shard=3, superpixels=SuperpixelConfig(num_segments=12))
LOGS = {"drive-a": 4, "drive-b": 3, "drive-c": 2}


def one(log: str, frame: int) -> Sample:
    rng = np.random.default_rng([list(LOGS).index(log), frame])
    sample = make_sample(rng, key=f"{log}_{frame:03d}", log=log, frame=frame)
    cameras = tuple(dataclasses.replace(camera, superpixels=None) for camera in sample.cameras)
    return dataclasses.replace(sample, cameras=cameras)


def stream() -> Iterator[Sample]:
    for log, count in LOGS.items():
        yield from (one(log, frame) for frame in range(count))


@dataclass(frozen=True)
class Source:
    broken: int = -1

    def logs(self) -> Mapping[str, int]:
        return LOGS

    def frame(self, log: str, index: int) -> Sample:
        if index == self.broken:
            raise DamagedError("member-missing", "the recorder lost it")
        return one(log, index)


def digests(root: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.iterdir()) if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    summary = prepare_samples(stream(), str(root), class_names=CLASS_NAMES, val_logs=("drive-b",), config=CONFIG)
    assert (summary.num_shards, summary.num_reused_shards) == (3, 0)
    return root


def test_samples_are_written_in_order_and_by_split(whole):
    manifest = load_manifest(str(whole))
    assert manifest.set_name == "custom"
    assert (manifest.camera_names, manifest.class_names) == (CAMERA_NAMES, CLASS_NAMES)
    assert [(shard.file, shard.num_samples) for shard in manifest.shards] == [
        ("shard-000000.tar", 3),  # a a a
        ("shard-000001.tar", 3),  # a c c
        ("shard-000002.tar", 3),  # b b b: val
    ]
    assert dict(zip(manifest.logs, manifest.splits, strict=True)) == {
        "drive-a": "train",
        "drive-b": "val",
        "drive-c": "train",
    }
    keys = [manifest.key(int(index)) for index in manifest.indices()]
    assert keys == [f"{log}_{frame:03d}" for log, count in LOGS.items() for frame in range(count)]
    read = SampleReader(manifest).read(int(manifest.indices(log="drive-c")[1]))
    want = one("drive-c", 1)
    np.testing.assert_array_equal(read.points_lidar, want.points_lidar.astype(np.float32))
    assert all(camera.superpixels is not None and camera.superpixels.max() > 3 for camera in read.cameras)


def test_an_interrupted_iterator_is_resumed_with_the_same_bytes(tmp_path, whole):
    def cut_short() -> Iterator[Sample]:
        for number, sample in enumerate(stream()):
            if number == 6:
                raise KeyboardInterrupt
            yield sample

    settings = {"class_names": CLASS_NAMES, "val_logs": ("drive-b",), "config": CONFIG}
    with pytest.raises(KeyboardInterrupt):
        prepare_samples(cut_short(), str(tmp_path), **settings)
    assert [path.name for path in sorted(tmp_path.glob("shard*"))] == ["shard-000000.tar"]
    with pytest.raises(ShardError, match=r"begun with set\.val_logs"):
        prepare_samples(stream(), str(tmp_path), class_names=CLASS_NAMES, config=CONFIG)
    with pytest.raises(ShardError, match=r"begun from other samples: drive-b_000 is not in shard-000000\.tar"):
        prepare_samples(list(stream())[4:], str(tmp_path), **settings)
    assert prepare_samples(stream(), str(tmp_path), **settings).num_reused_shards == 1
    assert digests(tmp_path) == digests(whole)


@pytest.mark.slow
def test_workers_write_the_same_bytes(tmp_path, whole):
    settings = {"class_names": CLASS_NAMES, "val_logs": ("drive-b",), "config": CONFIG}
    prepare_samples(stream(), str(tmp_path), workers=2, **settings)
    assert digests(tmp_path) == digests(whole)


def test_damaged_samples_are_counted(tmp_path):
    samples = [dataclasses.replace(s, intensity=s.intensity * np.nan) if n == 1 else s for n, s in enumerate(stream())]
    manifest = prepare_samples(samples, str(tmp_path), config=CONFIG).manifest
    assert manifest.skipped == {"points-not-finite": ("drive-a_001",)}
    assert len(manifest) == sum(LOGS.values()) - 1


def test_samples_of_other_cameras_are_refused(tmp_path):
    first, second, *_ = stream()
    odd = dataclasses.replace(second, cameras=second.cameras[::-1])
    with pytest.raises(
        ShardError, match=r"drive-a_001 has the cameras \('left', 'front'\), expected \('front', 'left'\)"
    ):
        prepare_samples([first, odd], str(tmp_path), config=CONFIG)
    assert not list(tmp_path.glob("shard*"))
    with pytest.raises(ValueError, match="workers is 0"):
        prepare_samples([first], str(tmp_path), workers=0)


def test_a_limit_ends_the_iterator(tmp_path):
    config = dataclasses.replace(CONFIG, limit=2)
    assert len(prepare_samples(stream(), str(tmp_path), config=config).manifest) == 2


def test_a_source_of_frames_is_a_set_like_any_other(tmp_path, whole):
    assert isinstance(Source(), FrameSource)
    converter = SourceConverter(frames_of=Source(), cameras=CAMERA_NAMES, classes=CLASS_NAMES, val_logs=("drive-b",))
    summary = prepare(converter, str(tmp_path), CONFIG)
    theirs, ours = (load_manifest(str(root)) for root in (whole, tmp_path))
    assert {ours.key(i): int(ours.sample_crc32[i]) for i in range(len(ours))} == {
        theirs.key(i): int(theirs.sample_crc32[i]) for i in range(len(theirs))
    }
    assert summary.manifest.splits == theirs.splits
    with pytest.raises(ShardError, match=r"begun with set\.source\.broken = -1, now it is 3"):
        prepare(dataclasses.replace(converter, frames_of=Source(broken=3)), str(tmp_path), CONFIG)


def test_frames_that_a_source_cannot_give_are_counted(tmp_path):
    converter = SourceConverter(frames_of=Source(broken=3), cameras=CAMERA_NAMES)
    manifest = prepare(converter, str(tmp_path), CONFIG).manifest
    assert manifest.skipped == {"member-missing": ("drive-a_3",)}
    wrong = SourceConverter(frames_of=Source(), cameras=("front",))
    with pytest.raises(ShardError, match=r"has the cameras \('front', 'left'\), expected \('front',\)"):
        next(wrong.frames("drive-a", 0, 1))
