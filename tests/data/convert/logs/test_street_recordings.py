"""The street world as recordings of four formats: what is prepared of them is what `prepare synthetic` makes."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest

from data.convert.base import Converter
from data.convert.logs.converter import McapConverter, RecordingConverter, RosbagConverter, forget_reader
from data.convert.synthetic import SyntheticConverter
from data.geometry import transform
from data.preparing.prepare import PrepareConfig, prepare
from data.sample import Sample
from data.storage.decode import DecodeSpec
from data.storage.manifest import Manifest
from data.storage.reader import SampleReader
from data.street.config import StreetCameraConfig, StreetLidarConfig
from data.street.log import LogRenderer
from data.street.motion import ego_pose, lidar_mount
from tests.helpers.recordings import WRITERS, Entry, entries_of, in_order, write_ros1, write_ros2

WORLD = SyntheticConverter(
    num_logs=1,
    frames_per_log=6,
    frame_rate_hz=10.0,
    val_share=0.0,
    view_range_m=50.0,
    lidar=StreetLidarConfig(beams=16, azimuths=180),
    cameras=StreetCameraConfig(
        names=("front", "left"),
        image_size=(48, 96),
        yaws_deg=(0.0, 60.0),
        mounts_m=((1.1, 0.0, 1.65), (0.9, 0.35, 1.62)),
        time_offsets_s=(0.004, -0.018),
    ),
)
CONFIG = PrepareConfig(superpixels=None)
SMALL_SHARDS = PrepareConfig(superpixels=None, samples_per_shard=2)
ROUNDING = 1e-12
"""Of poses: quaternions of float64 for rotation matrices, and where the world begins."""


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, list[Sample]]:
    """The set as `prepare synthetic` makes it."""
    return _prepared(WORLD, tmp_path_factory.mktemp("street") / "set")


def _prepared(converter: Converter, out: Path, workers: int = 1) -> tuple[Manifest, list[Sample]]:
    """A set with its samples, images both as stored and decoded."""
    out.mkdir(parents=True)
    manifest = prepare(converter, str(out), CONFIG, workers=workers).manifest
    reader = SampleReader(manifest)
    samples = []
    for index in range(len(manifest)):
        whole, stored = (reader.read_parts(index, DecodeSpec(images=images)) for images in (True, "encoded"))
        views = [
            dataclasses.replace(view, jpeg=other.jpeg)
            for view, other in zip(whole.cameras, stored.cameras, strict=True)
        ]
        samples.append(dataclasses.replace(whole, cameras=tuple(views)))
    reader.close()
    forget_reader()
    return manifest, samples


def _jpegs(samples: list[Sample]) -> dict[tuple[str, str], bytes]:
    return {(sample.key, view.name): view.jpeg for sample in samples for view in sample.cameras if view.jpeg}


def _converter(path: Path, **settings: object) -> RecordingConverter:
    kind = McapConverter if path.suffix == ".mcap" else RosbagConverter
    return kind(source=str(path), **{"intensity_max": 1.0, **settings})


def _step(first: Sample, then: Sample) -> np.ndarray:
    return np.linalg.inv(first.T_world_ego) @ then.T_world_ego


@pytest.mark.parametrize("kind", WRITERS)
def test_a_recording_gives_the_street_worlds_set(
    street: tuple[Manifest, list[Sample]], tmp_path: Path, kind: str
) -> None:
    manifest, expected = street
    entries = entries_of(expected, jpeg=_jpegs(expected))
    recorded, found = _prepared(_converter(WRITERS[kind](tmp_path, entries)), tmp_path / "set")
    assert recorded.camera_names == manifest.camera_names == ("front", "left")
    assert (recorded.logs, recorded.notes, dict(recorded.skipped)) == (("street",), (), {})
    np.testing.assert_array_equal(recorded.num_points, manifest.num_points)
    np.testing.assert_array_equal(recorded.num_pairs, manifest.num_pairs)
    assert manifest.num_pairs.min() > 100
    for sample, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(sample.points_lidar, other.points_lidar)
        np.testing.assert_array_equal(sample.intensity, other.intensity)
        assert sample.timestamp_us == other.timestamp_us
        np.testing.assert_allclose(sample.T_ego_lidar, other.T_ego_lidar, atol=ROUNDING)
        np.testing.assert_allclose(_step(found[0], sample), _step(expected[0], other), atol=ROUNDING)
        for view, like in zip(sample.cameras, other.cameras, strict=True):
            assert (view.name, view.timestamp_us, view.jpeg) == (like.name, like.timestamp_us, like.jpeg)
            np.testing.assert_array_equal(view.K, like.K)
            np.testing.assert_allclose(view.T_cam_ego, like.T_cam_ego, atol=ROUNDING)
            np.testing.assert_allclose(sample.T_cam_lidar(view), other.T_cam_lidar(like), atol=ROUNDING)
    assert np.linalg.norm(_step(found[0], found[-1])[:3, 3]) > 2  # the vehicle drives


def test_lossless_images_keep_every_pixel(street: tuple[Manifest, list[Sample]], tmp_path: Path) -> None:
    _, expected = street
    converter = _converter(write_ros2(tmp_path / "street", entries_of(expected)))
    for item, other in zip(converter.frames("street", 0, len(expected)), expected, strict=True):
        assert isinstance(item, Sample), item
        for view, like in zip(item.cameras, other.cameras, strict=True):
            assert view.jpeg is None
            np.testing.assert_array_equal(view.image, like.image)


@pytest.mark.slow
def test_several_workers_and_a_restart_make_the_same_set(
    street: tuple[Manifest, list[Sample]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of a recording are read for themselves, and what was there before is kept."""
    _, expected = street
    converter = _converter(write_ros1(tmp_path / "street.bag", entries_of(expected, jpeg=_jpegs(expected))))
    monkeypatch.setattr("tests.data.convert.logs.test_street_recordings.CONFIG", SMALL_SHARDS)
    whole, _ = _prepared(converter, tmp_path / "whole")
    parted, _ = _prepared(converter, tmp_path / "parted", workers=2)
    sums = [shard.sha256 for shard in whole.shards]
    assert len(sums) == 3
    assert [shard.sha256 for shard in parted.shards] == sums
    (tmp_path / "parted" / whole.shards[1].file).unlink()
    again = prepare(converter, str(tmp_path / "parted"), SMALL_SHARDS)
    assert (again.num_reused_shards, [shard.sha256 for shard in again.manifest.shards]) == (2, sums)
    forget_reader()


def test_poses_between_those_that_are_recorded(street: tuple[Manifest, list[Sample]], tmp_path: Path) -> None:
    """Odometry at 20 Hz, at times of its own: interpolation is within a millimetre and a hundredth of a degree."""
    _, expected = street
    renderer = LogRenderer(WORLD, 0)
    start_ns = expected[0].timestamp_us * 1000
    entries = [entry for entry in entries_of(expected) if entry.topic != "/odometry"]
    for time_ns in range(start_ns - 93_000_000, start_ns + 700_000_000, 50_000_000):
        T = ego_pose(renderer.world.street, renderer.world.drive, (time_ns - start_ns) / 1e9)
        entries.append(Entry.of("/odometry", "odometry", time_ns, "odom", ("odom", "base_link", T)))
    found = list(_converter(write_ros2(tmp_path / "street", in_order(entries))).frames("street", 0, len(expected)))
    for item, other in zip(found, expected, strict=True):
        assert isinstance(item, Sample), item
        for view, like in zip(item.cameras, other.cameras, strict=True):
            wrong = item.T_cam_lidar(view) @ np.linalg.inv(other.T_cam_lidar(like))
            assert np.linalg.norm(wrong[:3, 3]) < 1e-3
            assert np.abs(wrong[:3, :3] - np.eye(3)).max() < np.deg2rad(0.01)


@pytest.mark.parametrize("where", ["middle", "start"])
def test_deskew_undoes_the_motion_during_a_turn(tmp_path: Path, where: str) -> None:
    """Raw sweeps of the street world with their firing times become its compensated ones, whatever the stamp means."""
    turns = {how: _world_turning(how) for how in ("raw", "compensated")}
    raw, compensated = ([renderer.sweep(frame) for frame in (0, 1, 2)] for renderer in turns.values())
    renderer = turns["raw"]
    # A driver that stamps the start of a turn says the same times as larger ones.
    stamp_offset_s = -0.05 if where == "start" else 0.0
    entries = [Entry.of("/tf_static", "transforms", T0_NS, "", [("base_link", "lidar", lidar_mount(WORLD.lidar))])]
    for frame, sweep in enumerate(raw):
        time_s = frame / WORLD.frame_rate_hz
        after_s = _firing_times(sweep.points_lidar) - stamp_offset_s
        columns = {name: sweep.points_lidar[:, number] for number, name in enumerate("xyz")}
        columns |= {"intensity": sweep.intensity, "time": after_s}
        stamp_ns = T0_NS + round((time_s + stamp_offset_s) * 1e9)
        entries.append(Entry.of("/lidar/points", "cloud", stamp_ns, "lidar", columns))
    for time_ns in range(T0_NS - 200_000_000, T0_NS + 500_000_000, 5_000_000):
        T = ego_pose(renderer.world.street, renderer.world.drive, (time_ns - T0_NS) / 1e9)
        entries.append(Entry.of("/odometry", "odometry", time_ns, "odom", ("odom", "base_link", T)))
    path = write_ros1(tmp_path / "street.bag", in_order(entries))
    worst = {}
    for deskew in (False, True):
        items = list(_converter(path, deskew=deskew).frames("street", 0, 3))
        assert all(isinstance(item, Sample) for item in items), items
        wrong = []
        for frame, (item, sweep) in enumerate(zip(items, compensated, strict=True)):
            T_lidar_world = [
                np.linalg.inv(ego_pose(renderer.world.street, renderer.world.drive, t) @ lidar_mount(WORLD.lidar))
                for t in (frame / WORLD.frame_rate_hz, frame / WORLD.frame_rate_hz + stamp_offset_s)
            ]
            expected = transform(T_lidar_world[1] @ np.linalg.inv(T_lidar_world[0]), sweep.points_lidar)
            wrong.append(np.linalg.norm(item.points_lidar - expected, axis=1).max())
        worst[deskew] = max(wrong)
    assert worst[True] < 2e-4  # times are float32, odometry has 200 Hz
    assert worst[False] > 0.2


T0_NS = 7_200_000_000_000


@functools.cache
def _world_turning(how: str) -> LogRenderer:
    lidar = dataclasses.replace(WORLD.lidar, sweep_motion=how)
    return LogRenderer(dataclasses.replace(WORLD, lidar=lidar), 0)


def _firing_times(points: np.ndarray) -> np.ndarray:
    """Seconds from the middle of the turn, by the direction that the beam had, as the world's scanner turns."""
    azimuths = WORLD.lidar.azimuths
    number = np.round((np.pi - np.arctan2(points[:, 1], points[:, 0])) / (2 * np.pi) * azimuths - 0.5)
    return ((number + 0.5) / azimuths - 0.5) * WORLD.lidar.sweep_duration_s
