"""What a detector found, in the files that benchmarks take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64

from configs.load import ArgumentError
from data.geometry import rigid
from data.storage.manifest import Manifest
from data.views.truth import FrameTruth
from engine.detection.argoverse2 import CLASSES as ARGOVERSE2_CLASSES
from engine.detection.formats import argoverse2 as argoverse2_files
from engine.detection.formats import kitti as kitti_files
from engine.detection.formats import nuscenes as nuscenes_files
from engine.detection.formats import once as once_files
from engine.detection.formats import waymo as waymo_files
from engine.detection.frames import FoundObjects
from engine.detection.nuscenes_rules import CLASS_RANGE_M, NuscenesSettings
from launchers.evaluation.detections import JudgedFrame, benchmark_classes, found_objects, moved, select

_CAM2_FROM_CAM0_M = (0.059849, -0.000358, 0.002746)
"""What P2 adds to a place in the rectified frame of camera 0: those of other recording days differ by some 2 mm. Sets
hold the left colour camera's place only. Source: KITTI, calibration of 2011-09-26."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a detector was given, which nuScenes' files tell.

    Attributes:
        points: of the LiDAR.
        images: of the cameras.
        pretrained: weights from elsewhere to begin with: external data.
    """

    points: bool = True
    images: bool = False
    pretrained: bool = False


def write_submission(
    folder: Path,
    benchmark: str,
    frames: Sequence[JudgedFrame],
    manifest: Manifest,
    classes: Sequence[str],
    given: Given = Given(),
) -> Path:
    """Write found objects as a benchmark takes them.

    Args:
        folder: made if it is not there.
        benchmark: one of `FORMATS`.
        frames: of a split.
        manifest: of its set.
        classes: names of the detector's classes in the set.
        given: what the detector was given.

    Returns:
        The file or folder to hand in.

    Raises:
        ArgumentError: the benchmark has no such files here; or a frame lacks what they need.
    """
    if benchmark not in FORMATS:
        raise ArgumentError(f"--submission: no files of {benchmark} can be written here, only of {', '.join(FORMATS)}")
    names = benchmark_classes(classes, manifest, benchmark)
    found = [found_objects(frame.found, frame.truth, names, benchmark) for frame in frames]
    return FORMATS[benchmark](folder, found, [frame.truth for frame in frames], given)


def _known(found: Sequence[FoundObjects], names: Sequence[str]) -> tuple[list[FoundObjects], dict[str, str]]:
    """Objects of classes that a benchmark has, whose others are left out; how it spells those classes."""
    spelt = {name.lower(): name for name in names}
    known = [select(frame, np.array([name.lower() in spelt for name in frame.classes], np.bool_)) for frame in found]
    return known, {name: spelt[name.lower()] for frame in known for name in frame.classes}


def _kitti(folder: Path, found: Sequence[FoundObjects], truths: Sequence[FrameTruth], given: Given) -> Path:
    known, spelt = _known(found, kitti_files.TYPES)
    kitti_files.write_found(folder / "data", known, [kitti_camera(truth) for truth in truths], names=spelt)
    return folder / "data"


def kitti_camera(frame: FrameTruth) -> kitti_files.KittiCamera:
    """The camera of a frame, as KITTI's files need it.

    Raises:
        ArgumentError: there is none.
    """
    camera = frame.boxes_camera
    if camera is None:
        raise ArgumentError(f"frame {frame.key} has no camera; KITTI's files hold boxes in the image")
    T_cam_lidar: Float64[np.ndarray, "4 4"] = frame.T_cam_lidar(camera).astype(np.float64)
    return kitti_files.KittiCamera(
        K=camera.K.astype(np.float64),
        T_cam_lidar=T_cam_lidar,
        T_rect0_lidar=rigid(np.eye(3), -np.array(_CAM2_FROM_CAM0_M)) @ T_cam_lidar,
        image_size=camera.image_size,
    )


def _nuscenes(folder: Path, found: Sequence[FoundObjects], truths: Sequence[FrameTruth], given: Given) -> Path:
    """The objects of highest score of each sample, as many as are allowed; velocities that are not known are 0.

    Sweeps between the samples have no token and are left out.
    """
    tokens = [KEYS["nuscenes"](truth) for truth in truths]
    if truths and not any(tokens):
        raise ArgumentError(
            f"--submission: frame {truths[0].key} has no sample token, which nuScenes' files name frames by: the set "
            "was prepared by an earlier version, or is none of nuScenes; prepare it again (tandem prepare nuscenes)"
        )
    most = NuscenesSettings().max_boxes
    best = [
        dataclasses.replace(select(frame, _highest(frame.scores, most)), key=token)
        for frame, token in zip(_known(found, tuple(CLASS_RANGE_M))[0], tokens, strict=True)
        if token
    ]
    said = {"use_lidar": given.points, "use_camera": given.images, "use_external": given.pretrained}
    uses = {name: said.get(name, False) for name in nuscenes_files.USES}
    folder.mkdir(parents=True, exist_ok=True)
    nuscenes_files.write_results(folder / "results.json", [_with_speeds(frame) for frame in best], uses)
    return folder / "results.json"


def _highest(scores: Float64[np.ndarray, " D"], most: int) -> Bool[np.ndarray, " D"]:
    """Which objects are among the `most` of highest score; of equal ones the first."""
    kept = np.zeros(len(scores), dtype=np.bool_)
    kept[np.argsort(-scores, kind="stable")[:most]] = True
    return kept


def _with_speeds(frame: FoundObjects) -> FoundObjects:
    assert frame.velocities_mps is not None
    return dataclasses.replace(frame, velocities_mps=np.nan_to_num(frame.velocities_mps))


def _once(folder: Path, found: Sequence[FoundObjects], truths: Sequence[FrameTruth], given: Given) -> Path:
    known, spelt = _known(found, once_files.CLASSES)
    once_files.write_found(folder / "results.json", known, names=spelt)
    return folder / "results.json"


def _waymo(folder: Path, found: Sequence[FoundObjects], truths: Sequence[FrameTruth], given: Given) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    known, spelt = _known(found, waymo_files.TYPES)
    waymo_files.write_found(folder / "objects.bin", _at_the_vehicle(known, truths, "waymo"), names=spelt)
    return folder / "objects.bin"


def _argoverse2(folder: Path, found: Sequence[FoundObjects], truths: Sequence[FrameTruth], given: Given) -> Path:
    known, spelt = _known(found, ARGOVERSE2_CLASSES)
    argoverse2_files.write_found(
        folder / "detections.feather", _at_the_vehicle(known, truths, "argoverse2"), names=spelt
    )
    return folder / "detections.feather"


def _at_the_vehicle(found: Sequence[FoundObjects], truths: Sequence[FrameTruth], benchmark: str) -> list[FoundObjects]:
    """Objects with the benchmark's keys and boxes in the vehicle's frame."""
    return [
        dataclasses.replace(
            frame,
            key=KEYS[benchmark](truth) or frame.key,
            boxes=moved(frame.boxes, truth.T_ego_lidar.astype(np.float64)),
        )
        for frame, truth in zip(found, truths, strict=True)
    ]


def _nanoseconds(frame: FrameTruth) -> int:
    """The key of Argoverse 2's frames ends in them; the set's microseconds have lost them.

    Raises:
        ArgumentError: it does not.
    """
    last = frame.key.rpartition("_")[2]
    if not last.isdecimal():
        raise ArgumentError(f"frame {frame.key} is none of Argoverse 2, whose names end in a time in nanoseconds")
    return int(last)


KEYS: Mapping[str, Callable[[FrameTruth], str | None]] = {
    "kitti": lambda frame: frame.key,
    "nuscenes": lambda frame: frame.token,
    "once": lambda frame: frame.key.rpartition("_")[2],
    "waymo": lambda frame: waymo_files.frame_key(frame.log, frame.timestamp_us),
    "argoverse2": lambda frame: argoverse2_files.frame_key(frame.log, _nanoseconds(frame)),
}
"""Benchmark -> what its files call a frame; None where it does not know the frame."""


FORMATS: Mapping[str, Callable[[Path, Sequence[FoundObjects], Sequence[FrameTruth], Given], Path]] = {
    "kitti": _kitti,
    "nuscenes": _nuscenes,
    "once": _once,
    "waymo": _waymo,
    "argoverse2": _argoverse2,
}
"""Benchmark -> writer of its files: (folder, found objects, their frames, what the detector was given)."""
