"""A value that no sensor gives is refused under one name where a sample is written, read and verified."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import data.storage.encode
import data.storage.shard_writer
from data.preparing.prepare import PrepareConfig
from data.preparing.samples import prepare_samples
from data.preparing.verify import verify
from data.sample import Boxes, CameraView, Sample
from data.storage.damage import DamagedError
from data.storage.encode import CodecConfig, SetBounds, check_fits_set, check_sample, encode_sample
from data.storage.manifest import SetInfo, load_manifest
from data.storage.manifest_writer import write_manifest
from data.storage.reader import SampleError, SampleReader
from data.storage.shard_writer import join_manifest, write_shard
from data.storage.superpixel_record import SuperpixelRecord
from tests.helpers.samples import CAMERA_NAMES, CLASS_NAMES, toy_log, write_toy_set

CATEGORIES = ("Car", "Van")
BOUNDS = SetBounds(camera_names=CAMERA_NAMES, num_classes=len(CLASS_NAMES), num_categories=2)


def put(values: np.ndarray, at: object, value: float) -> np.ndarray:
    changed = values.copy()
    changed[at] = value
    return changed


def camera(sample: Sample, **changes: object) -> Sample:
    first = dataclasses.replace(sample.cameras[0], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(sample, cameras=(first, *sample.cameras[1:]))


def boxes(sample: Sample, **changes: np.ndarray) -> Sample:
    assert sample.boxes is not None
    return dataclasses.replace(sample, boxes=dataclasses.replace(sample.boxes, **changes))


def write(sample: Sample) -> None:
    check_fits_set(sample, BOUNDS)
    encode_sample(sample, CodecConfig())


def first(sample: Sample) -> CameraView:
    return sample.cameras[0]


def boxes_of(sample: Sample) -> Boxes:
    assert sample.boxes is not None
    return sample.boxes


def times(sample: Sample, value: float) -> np.ndarray:
    return put(np.zeros(len(sample.points_lidar), np.float32), 3, value)


WRONG: dict[str, tuple[str, Callable[[Sample], Sample]]] = {
    "a point at 1e7 m": (
        "points-range",
        lambda s: dataclasses.replace(s, points_lidar=put(s.points_lidar, (3, 0), 1e7)),
    ),
    "a point at -2001 m": (
        "points-range",
        lambda s: dataclasses.replace(s, points_lidar=put(s.points_lidar, (3, 2), -2001)),
    ),
    "an infinite coordinate": (
        "points-not-finite",
        lambda s: dataclasses.replace(s, points_lidar=put(s.points_lidar, (3, 2), np.inf)),
    ),
    "an intensity that is no number": (
        "points-not-finite",
        lambda s: dataclasses.replace(s, intensity=put(s.intensity, 3, np.nan)),
    ),
    "one flipped exponent bit of an intensity": (
        "intensity-range",
        lambda s: dataclasses.replace(s, intensity=put(s.intensity, 3, 1.3e38)),
    ),
    "intensity 0 to 255": ("intensity-range", lambda s: dataclasses.replace(s, intensity=s.intensity * 255)),
    "negative intensity": ("intensity-range", lambda s: dataclasses.replace(s, intensity=put(s.intensity, 0, -1))),
    "time beyond 64 bits": ("meta-broken", lambda s: dataclasses.replace(s, timestamp_us=1 << 63)),
    "camera's time beyond 64 bits": ("meta-broken", lambda s: camera(s, timestamp_us=-(1 << 70))),
    "pose that is no number": (
        "calibration-singular",
        lambda s: dataclasses.replace(s, T_world_ego=put(s.T_world_ego, (0, 3), np.nan)),
    ),
    "pose that shears": (
        "calibration-singular",
        lambda s: dataclasses.replace(s, T_world_ego=put(s.T_world_ego, (0, 1), 0.3)),
    ),
    "pose beyond any planet": (
        "calibration-singular",
        lambda s: dataclasses.replace(s, T_world_ego=put(s.T_world_ego, (0, 3), 1e9)),
    ),
    "LiDAR in millimetres": (
        "calibration-singular",
        lambda s: dataclasses.replace(s, T_ego_lidar=put(s.T_ego_lidar, (2, 3), 1800)),
    ),
    "camera's pose that is no number": (
        "calibration-singular",
        lambda s: camera(s, T_world_ego=put(first(s).T_world_ego, (1, 1), np.nan)),
    ),
    "negative focal length": ("calibration-singular", lambda s: camera(s, K=put(first(s).K, (0, 0), -48))),
    "focal length of zero": ("calibration-singular", lambda s: camera(s, K=put(first(s).K, (1, 1), 0))),
    "intrinsics transposed": ("calibration-singular", lambda s: camera(s, K=first(s).K.T)),
    "image of another size": ("image-size", lambda s: camera(s, image_size=(24, 48))),
    "negative depth": ("depth-range", lambda s: camera(s, depth_m=put(first(s).depth_m, (0, 0), -1))),
    "depth that is no number": ("depth-range", lambda s: camera(s, depth_m=put(first(s).depth_m, (0, 0), np.nan))),
    "box beyond the LiDAR": ("boxes-broken", lambda s: boxes(s, centers_m=put(boxes_of(s).centers_m, (0, 0), 1e6))),
    "box of negative size": ("boxes-broken", lambda s: boxes(s, sizes_m=put(boxes_of(s).sizes_m, (0, 2), -1))),
    "box that turns to nowhere": ("boxes-broken", lambda s: boxes(s, yaws=put(boxes_of(s).yaws, 0, np.inf))),
    "label of no class": ("labels-range", lambda s: dataclasses.replace(s, labels=put(s.labels, 3, 200))),
    "box of no class": ("labels-range", lambda s: boxes(s, classes=put(boxes_of(s).classes, 0, len(CLASS_NAMES)))),
    "box of class -1": ("labels-range", lambda s: boxes(s, classes=put(boxes_of(s).classes, 0, -1))),
    "pixel of no class": ("labels-range", lambda s: camera(s, labels=np.full((48, 96), 9, np.uint8))),
    "rectangle from right to left": ("boxes-broken", lambda s: camera(s, ignored_px=np.array([[9.0, 0, 5, 9]]))),
    "rectangle to nowhere": ("boxes-broken", lambda s: camera(s, ignored_px=np.array([[0, 0, np.nan, 9]]))),
    "2D boxes of no camera": (
        "boxes-broken",
        lambda s: dataclasses.replace(s, boxes=dataclasses.replace(boxes_of(s), camera="rear")),
    ),
    "token with a path": ("meta-broken", lambda s: dataclasses.replace(s, token="../x")),
    "negative category": ("boxes-broken", lambda s: boxes(s, categories=np.array([0, -3]))),
    "box of no category": ("labels-range", lambda s: boxes(s, categories=np.array([0, 2]))),
    "truncated by more than all": ("boxes-broken", lambda s: boxes(s, truncations=np.array([0.1, 1.1]))),
    "truncated infinitely": ("boxes-broken", lambda s: boxes(s, truncations=np.array([0.1, np.inf]))),
    "fewer radar points than none": ("boxes-broken", lambda s: boxes(s, num_radar_points=np.array([0, -4]))),
    "occlusion of no level": ("boxes-broken", lambda s: boxes(s, occlusions=np.array([0, -9]))),
    "image box upside down": (
        "boxes-broken",
        lambda s: boxes(s, image_boxes_px=np.array([[0.0, 9, 5, 2], [0, 0, 1, 1]])),
    ),
    "image box with a hole": (
        "boxes-broken",
        lambda s: boxes(s, image_boxes_px=np.array([[0.0, 0, 5, np.nan], [0, 0, 1, 1]])),
    ),
    "observation angle in degrees": ("boxes-broken", lambda s: boxes(s, alphas=np.array([90.0, 0]))),
    "time in milliseconds": ("points-range", lambda s: dataclasses.replace(s, times_s=times(s, 450))),
    "time that is no number": ("points-not-finite", lambda s: dataclasses.replace(s, times_s=times(s, np.nan))),
    "negative elongation": ("points-range", lambda s: dataclasses.replace(s, elongations=times(s, -1))),
    "infinite elongation": ("points-not-finite", lambda s: dataclasses.replace(s, elongations=times(s, np.inf))),
    "cameras swapped": ("cameras-unknown", lambda s: dataclasses.replace(s, cameras=s.cameras[::-1])),
    "camera of another set": ("cameras-unknown", lambda s: camera(s, name="rear")),
}
NEVER_STORED = {"negative depth", "depth that is no number", "time beyond 64 bits", "pose that is no number"}
"""What the stored types cannot hold."""
NEVER_STORED |= {"camera's pose that is no number", "rectangle to nowhere"}


@pytest.mark.parametrize("case", WRONG)
def test_refused_before_writing_and_after_reading(tmp_path: Path, case: str) -> None:
    reason, change = WRONG[case]
    samples = toy_log(0, 2, num_points=60, image_labels=True)
    samples[1] = change(samples[1])
    if reason != "cameras-unknown":  # of a program's samples, that is a mistake of the program
        config = PrepareConfig(superpixels=None)
        summary = prepare_samples(
            samples, str(tmp_path / "prepared"), class_names=CLASS_NAMES, box_categories=CATEGORIES, config=config
        )
        assert summary.manifest.skipped == {reason: (samples[1].key,)}
    with pytest.raises(DamagedError) as refused:
        write(samples[1])
    assert refused.value.reason == reason
    if case in NEVER_STORED:
        return
    # Written by one who did not look: a version before, another program, or what changed on disk.
    unchecked = mock.patch.object(data.storage.encode, "check_sample")
    with unchecked, mock.patch.object(data.storage.shard_writer, "count_pairs", return_value=0):
        table = write_shard(tmp_path / "shard-000000.tar", samples)
    info = SetInfo(
        set_name="toy",
        camera_names=CAMERA_NAMES,
        class_names=CLASS_NAMES,
        box_categories=CATEGORIES,
        logs=("log-000",),
        splits=("train",),
    )
    manifest = join_manifest(str(tmp_path), info, [table])
    with pytest.raises(SampleError) as error:
        SampleReader(manifest).read(1, depth=True, image_labels=True)
    assert (error.value.reason, error.value.key) == (reason, samples[1].key)
    assert (reason, samples[1].key) in {(problem.reason, problem.key) for problem in verify(str(tmp_path)).problems}


def test_the_bounds_themselves_are_allowed() -> None:
    sample = toy_log(0, 1)[0]
    points, intensity = put(sample.points_lidar, (0, 0), 2000), put(put(sample.intensity, 0, 1), 1, 0)
    check_sample(dataclasses.replace(sample, points_lidar=points, intensity=intensity))
    # Geocentric poses, a camera that is missing, points without a class.
    far = put(sample.T_world_ego, (0, 3), 6.4e6)
    check_sample(dataclasses.replace(sample, T_world_ego=far))
    check_fits_set(dataclasses.replace(sample, cameras=sample.cameras[1:]), BOUNDS)


def test_more_superpixels_than_the_manifest_states(tmp_path: Path) -> None:
    manifest = load_manifest(write_toy_set(tmp_path, num_logs=1))
    stated = dataclasses.replace(manifest, superpixels=SuperpixelRecord(num_segments=1))
    write_manifest(stated)
    with pytest.raises(SampleError, match="superpixel-ids"):
        SampleReader(stated).read(0)
    assert {problem.reason for problem in verify(manifest.root).problems} == {"superpixel-ids"}
