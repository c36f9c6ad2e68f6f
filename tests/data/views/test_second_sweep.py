from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data.batch_spec import SecondCloud
from data.geometry import rigid, transform, yaw_rotation
from data.sample import Sample
from data.storage.manifest import SetInfo, load_manifest
from data.storage.reader import SampleError, SampleReader
from data.storage.shard_writer import join_manifest, write_shard
from data.views.second_sweep import PartnerFinder, SweepMatches, match_sweeps
from tests.helpers.samples import CAMERA_NAMES, make_sample

FRAMES, STEP_S = 12, 1.0
ORIGIN = np.array([4.5e5, 5.4e6, 200.0])


def seen_from(world: np.ndarray, T_world_ego: np.ndarray, frame: int, log: str = "log-000") -> Sample:
    """The points of a world within 30 m of the vehicle, as its LiDAR sees them."""
    sample = make_sample(np.random.default_rng(0), key=f"{log}_{frame:06d}", log=log, labels=False)
    T_lidar_world = np.linalg.inv(T_world_ego @ sample.T_ego_lidar)
    points = transform(T_lidar_world, world).astype(np.float32)
    near = np.linalg.norm(points, axis=1) < 30
    return dataclasses.replace(
        sample,
        timestamp_us=int(1e6 * STEP_S * frame),
        points_lidar=points[near],
        intensity=(np.flatnonzero(near) / len(world)).astype(np.float32),
        T_world_ego=T_world_ego,
    )


def driven(frame: int, step_m: float = 4.0) -> np.ndarray:
    """A bend far away from the world's origin, as in a set with coordinates of a national grid."""
    return rigid(yaw_rotation(0.05 * frame), np.array([4.5e5 + step_m * frame, 5.4e6 + 0.1 * frame**2, 200.0]))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SampleReader:
    """One drive of twelve sweeps, 4 m a second; one that stands still; one of a single sweep."""
    rng = np.random.default_rng(0)
    world = rng.uniform((-40, -40, -2), (90, 40, 4), (6000, 3)) + ORIGIN
    root = tmp_path_factory.mktemp("drives")
    logs = {
        "log-000": [seen_from(world, driven(frame), frame) for frame in range(FRAMES)],
        "log-001": [seen_from(world, driven(0), frame, "log-001") for frame in range(4)],
        "log-002": [seen_from(world, driven(0), 0, "log-002")],
    }
    tables = [write_shard(root / f"shard-{n:06d}.tar", samples) for n, samples in enumerate(logs.values())]
    info = SetInfo(set_name="toy", camera_names=CAMERA_NAMES, class_names=(), logs=tuple(logs), splits=("train",) * 3)
    join_manifest(str(root), info, tables)
    return SampleReader(load_manifest(str(root)))


def finder(reader: SampleReader, **options: float) -> PartnerFinder:
    config = SecondCloud(source="other", **options)  # type: ignore[arg-type]
    return PartnerFinder(reader, reader.manifest.indices(), config)


def gaps(reader: SampleReader, index: int, **options: float) -> list[int]:
    """How many sweeps later each found partner was recorded."""
    find, sample = finder(reader, **options), reader.read(index)
    partners = [find.find(index, sample, np.random.default_rng(seed)).sample for seed in range(40)]
    return [round((partner.timestamp_us - sample.timestamp_us) / (1e6 * STEP_S)) for partner in partners]


def test_matches_are_nearest_neighbours_in_the_world() -> None:
    rng = np.random.default_rng(1)
    world = rng.uniform((-20, -20, -2), (20, 20, 4), (700, 3)) + ORIGIN
    one, other = seen_from(world, driven(0), 0), seen_from(world[:500], driven(2), 2)
    # Not the very places again, so that some have no neighbour and some the neighbour of another.
    noise = rng.normal(0, 0.4, other.points_lidar.shape).astype(np.float32)
    other = dataclasses.replace(other, points_lidar=other.points_lidar + noise)
    found = match_sweeps(one, other, 0.9)

    in_world = [transform(s.T_world_ego @ s.T_ego_lidar, s.points_lidar) for s in (one, other)]
    distance = np.linalg.norm(in_world[0][:, None] - in_world[1][None], axis=2)
    expected = [(i, int(row.argmin())) for i, row in enumerate(distance) if row.min() <= 0.9]
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == expected
    assert 100 < len(expected) < len(one.points_lidar)
    assert len(set(found.second.tolist())) < len(expected)


def test_the_radius_belongs_to_it() -> None:
    one = dataclasses.replace(
        seen_from(np.zeros((1, 3)), np.eye(4), 0), points_lidar=np.array([[1, 2, 3]], np.float32), T_ego_lidar=np.eye(4)
    )
    other = dataclasses.replace(one, points_lidar=np.array([[1, 2, 3.5]], np.float32))
    assert len(match_sweeps(one, other, 0.5).first) == 1
    assert len(match_sweeps(one, other, 0.499).first) == 0


def test_matches_follow_the_points_that_are_kept() -> None:
    matches = SweepMatches(first=np.array([0, 2, 3, 5]), second=np.array([7, 1, 1, 0]))
    left = matches.keep(np.array([2, 3, 4, 5]), np.array([1, 5, 7]))
    assert (left.first.tolist(), left.second.tolist()) == ([0, 1], [0, 0])
    gone = matches.keep(np.zeros(0, np.int64), np.array([1, 5, 7]))
    assert (len(gone.first), len(gone.second)) == (0, 0)


def test_partners_lie_within_the_gap_and_overlap_enough(reader: SampleReader) -> None:
    overlap = {  # of sweep 5 with the one so many sweeps later
        later: len(match_sweeps(reader.read(5), reader.read(5 + later), 0.2).first) / len(reader.read(5).points_lidar)
        for later in range(-5, 7)
    }
    assert overlap[1] > overlap[3] > overlap[6]
    free = gaps(reader, 5, max_gap_s=100.0, min_overlap=0.0)
    assert set(free) == set(range(-5, 7)) - {0}
    assert set(gaps(reader, 5, max_gap_s=2.0, min_overlap=0.0)) == {-2, -1, 1, 2}
    least = (overlap[3] + overlap[4]) / 2
    near = gaps(reader, 5, max_gap_s=100.0, min_overlap=least)
    assert {-3, 3} & set(near)
    assert all(overlap[later] >= least for later in near)


def test_a_vehicle_that_stands_is_its_own_neighbour(reader: SampleReader) -> None:
    start = reader.manifest.indices(log="log-001")[0]
    assert set(gaps(reader, int(start), max_gap_s=10.0, min_overlap=1.0)) == {1, 2, 3}


def test_only_samples_in_use_are_partners(reader: SampleReader) -> None:
    chosen = reader.manifest.indices(log="log-000")[:3]
    find = PartnerFinder(reader, chosen, SecondCloud(source="other", min_overlap=0.0))
    keys = {find.find(0, reader.read(0), np.random.default_rng(seed)).sample.key for seed in range(20)}
    assert keys == {reader.manifest.key(1), reader.manifest.key(2)}


def test_partners_repeat_with_their_random_numbers(reader: SampleReader) -> None:
    find, sample = finder(reader, min_overlap=0.0), reader.read(4)
    keys = [[find.find(4, sample, np.random.default_rng(s)).sample.key for s in range(8)] for _ in range(2)]
    assert keys[0] == keys[1]
    assert len(set(keys[0])) > 2


def test_without_a_partner_it_says_what_was_tried(reader: SampleReader) -> None:
    alone = int(reader.manifest.indices(log="log-002")[0])
    with pytest.raises(SampleError, match=r"log-002_000000 in s\.tar: no-partner \(no sweep within 10 s"):
        finder(reader).find(alone, reader.read(alone), np.random.default_rng(0), shard="s.tar")
    with pytest.raises(SampleError, match=r"99% overlap; the best tried has [1-9][0-9]%"):
        finder(reader, min_overlap=0.99).find(5, reader.read(5), np.random.default_rng(0))


def test_a_damaged_sweep_is_passed_over(reader: SampleReader, monkeypatch: pytest.MonkeyPatch) -> None:
    read = reader.read

    def broken(index: int, **options: bool) -> Sample:
        if index == 2:
            raise SampleError("checksum", "key", "shard")
        return read(index, **options)

    find, sample = finder(reader, max_gap_s=2.0, min_overlap=0.0), read(3)
    monkeypatch.setattr(reader, "read", broken)
    keys = {find.find(3, sample, np.random.default_rng(seed)).sample.key[-2:] for seed in range(40)}
    assert keys == {"01", "04", "05"}


def test_empty_sweeps_have_no_partner(reader: SampleReader) -> None:
    nothing = {"points_lidar": np.zeros((0, 3), np.float32), "intensity": np.zeros(0, np.float32)}
    empty = dataclasses.replace(reader.read(5), **nothing)
    with pytest.raises(SampleError, match="no-partner"):
        finder(reader, min_overlap=0.0).find(5, empty, np.random.default_rng(0))
