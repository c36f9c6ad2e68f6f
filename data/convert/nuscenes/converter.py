"""nuScenes v1.0 (trainval, mini, test): ``v1.0-*/*.json``, ``samples``, ``sweeps`` and, where there, label folders.

A log is a scene; a sample is a key frame (2 Hz), or with `sweeps` each turn of the LiDAR (20 Hz). The LiDAR frame of
nuScenes has x to the right and y forward; points, extrinsics and boxes are turned by 90 degrees to x forward, y left.
Every camera keeps its own time and its own ego pose. Intensity is stored as 0 to 255 and divided by 255. Principal
points are taken as they are: the development kit draws projections with pixel centres at whole numbers, as here.

Boxes keep their heading only; the tilt of a box against the LiDAR's z (a degree or two) is lost.

Source: Caesar et al., nuScenes (CVPR 2020); Fong et al., Panoptic nuScenes (RA-L 2022); the schema and conventions of
the development kit 1.2.0.
"""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped, UInt8

from common.printable import listed
from common.ranges import between, different, positive
from data.convert.base import NO_CAMERA, FrameConverter, check_cameras, unique_logs
from data.convert.intensity import scaled_intensity
from data.convert.nuscenes.index import LIDAR, NuscenesIndex, rotations
from data.convert.nuscenes.names import (
    BOX_CATEGORIES,
    CAMERAS,
    CATEGORIES,
    CLASS_OF,
    CLASSES,
    MINI,
    OFFICIAL,
    OTHER,
    SLIDR,
    split_of,
)
from data.convert.nuscenes.sweeps import earlier, gathered, of_surroundings
from data.convert.nuscenes.tables import read_table
from data.convert.raw_files import layout_error, read_bytes, read_jpeg, read_records, read_sweep
from data.geometry import rigid, transform
from data.sample import IGNORE_LABEL, Boxes, CameraView, Sample
from data.storage.damage import DamagedError
from data.storage.shard import ShardError
from data.storage.untrusted import ZIP_ERRORS, parse_npy

_VERSIONS = ("v1.0-trainval", "v1.0-mini", "v1.0-test")
_T_THEIRS_OURS = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
"""LiDAR frame with x forward to nuScenes' with y forward."""

_CLASS_OF_RAW = np.array([CLASS_OF.get(name, IGNORE_LABEL) for name in CATEGORIES], dtype=np.uint8)

_MOST_SWEEPS = 100
"""Five seconds, which no detector looks back."""

_OBJECTS_PER_CATEGORY = 1000
"""A panoptic label is category * 1000 + object."""


@dataclass(frozen=True, kw_only=True)
class NuscenesConverter(FrameConverter):
    """Settings and reader of nuScenes.

    Attributes:
        source: folder that holds the tables' folder, `samples` and `sweeps`.
        version: folder of the tables; None for the one that is there.
        cameras: in the order of the samples; () for all six, ("none",) for sweeps only.
        num_sweeps: turns of the LiDAR in each sample's cloud, the sample's own and the ones before it in the scene,
            moved into its LiDAR frame by the ego poses, with `Sample.times_s`; detectors take 10. Above 1, points of
            the vehicle itself are left out, and earlier points have no labels.
        sweeps: each turn of the LiDAR is a sample, with each camera's image nearest in time; labels and boxes are those
            of key frames only.
        split_scheme: "official": train, val, test, and mini_train, mini_val for v1.0-mini. "slidr": of the 700 training
            scenes 600 are "train" and 100 "minival", and v1.0-mini is split as the whole set.
        labels: "auto": lidarseg and panoptic labels where they are there. "required": an error where they are not.
            "off": none.
        max_camera_gap_s: with `sweeps`, a sweep is skipped if a camera has no image nearer in time.
    """

    source: str
    version: str | None = None
    cameras: tuple[str, ...] = ()
    num_sweeps: int = 1
    sweeps: bool = False
    split_scheme: Literal["official", "slidr"] = "official"
    labels: Literal["auto", "required", "off"] = "auto"
    max_camera_gap_s: float = 0.1

    set_name: ClassVar[str] = "nuscenes"
    _later: ClassVar[tuple[str, ...]] = ("num_sweeps",)
    class_names: ClassVar[tuple[str, ...]] = tuple(CLASSES)
    box_categories: ClassVar[tuple[str, ...]] = BOX_CATEGORIES

    def __post_init__(self) -> None:
        check_cameras(self, *CAMERAS)
        different(self, "cameras")
        positive(self, "max_camera_gap_s")
        between(self, num_sweeps=(1, _MOST_SWEEPS))

    # ---- what there is
    @cached_property
    def _tables(self) -> Path:
        root = Path(self.source)
        versions = [name for name in _VERSIONS if (root / name).is_dir()] if self.version is None else [self.version]
        if len(versions) > 1:
            raise ShardError(f"{self.source} holds {' and '.join(versions)}; choose one with version={versions[0]}")
        if not versions or not (root / versions[0]).is_dir():
            raise layout_error(root, "nuScenes", self.version or " or ".join(_VERSIONS))
        folders = [("samples", LIDAR), *(("samples", name) for name in self.camera_names())]
        in_between = [("sweeps", channel) for _, channel in folders if channel in self._whole_channels]
        for kind, channel in folders + in_between:
            if not (root / kind / channel).is_dir():
                raise layout_error(root, "nuScenes", f"{kind}/{channel}", root / kind)
        return root / versions[0]

    @cached_property
    def _label_folders(self) -> tuple[Path | None, Path | None]:
        """Of lidarseg and panoptic."""
        folders = [Path(self.source) / name / self._tables.name for name in ("lidarseg", "panoptic")]
        if self.labels == "required" and not any(folder.is_dir() for folder in folders):
            expected = " or ".join(f"{folder.parent.name}/{folder.name}" for folder in folders)
            raise layout_error(self.source, "nuScenes", f"{expected} (labels=required)")
        lidarseg, panoptic = (folder if self.labels != "off" and folder.is_dir() else None for folder in folders)
        if lidarseg or panoptic:
            _check_categories(self._tables)
        return lidarseg, panoptic

    @cached_property
    def _logs(self) -> dict[str, str]:
        """Token of each scene by name, in the order of the table, which papers count label fractions in."""
        rows = read_table(self._tables, "scene", "name", "token")
        if not rows:
            raise layout_error(self.source, "nuScenes", "scenes in scene.json", self._tables)
        return unique_logs((name, self._tables / "scene.json", token) for name, token in rows)

    @cached_property
    def _index(self) -> NuscenesIndex:
        channels = (LIDAR, *self.camera_names())
        return NuscenesIndex(self._tables, channels, tuple(self._logs.values()), whole=self._whole_channels)

    @property
    def _whole_channels(self) -> tuple[str, ...]:
        """Channels of which also what is between key frames is read."""
        if self.sweeps:
            return (LIDAR, *self.camera_names())
        return (LIDAR,) if self.num_sweeps > 1 else ()

    def camera_names(self) -> tuple[str, ...]:
        """The cameras that are read."""
        return () if self.cameras == NO_CAMERA else self.cameras or CAMERAS

    def split_of(self, log: str) -> str:
        """Split of a scene in the chosen scheme; "other" if it is in no official list."""
        if self.split_scheme == "slidr":
            return split_of(log, SLIDR)
        return split_of(log, MINI if self._tables.name == "v1.0-mini" else OFFICIAL)

    def notes(self) -> tuple[str, ...]:
        """What the source lacks."""
        lidarseg, panoptic = self._label_folders
        notes = [f"{self._tables.name}, {'all sweeps' if self.sweeps else 'key frames'}"]
        if self.num_sweeps > 1:
            notes.append(f"clouds of {self.num_sweeps} sweeps (fewer where a scene begins), earlier points unlabelled")
        if lidarseg is None and panoptic is None and self.labels != "off":
            notes.append("no lidarseg or panoptic folder: points have no labels")
        if self._index.num_without_sweep:
            notes.append(f"{self._index.num_without_sweep} key frames have no sweep in sample_data.json")
        if self._index.num_annotations == 0:
            notes.append("no annotations: samples have no boxes")
        others = [log for log in self.logs() if self.split_of(log) == OTHER]
        if others:
            notes.append(f"in no official split, so {OTHER!r}: {listed(others)}")
        return tuple(notes)

    # ---- frames
    def _frames(self, log: str) -> list[tuple[str, np.void]]:
        rows = self._index.frames(self.logs().index(log), 0)
        return [(f"{log}_{row['time_us']}", row) for row in rows if self.sweeps or row["key"]]

    def _reader(self, log: str) -> Callable[[np.void], Sample]:
        scene = self.logs().index(log)
        cameras = [_CameraRows(self._index.frames(scene, number + 1)) for number in range(len(self.camera_names()))]
        return functools.partial(self._read, log, self._index.frames(scene, 0), cameras)

    def _read(self, log: str, sweeps: Shaped[np.ndarray, " n"], cameras: list[_CameraRows], row: np.void) -> Sample:
        records = self._records(row)
        labels, instances = self._read_labels(row, len(records)) if row["key"] else (None, None)
        T_lidar_world = np.linalg.inv(self._lidar_pose(row))
        boxes = None
        if row["key"] and self._index.num_annotations:
            boxes = _boxes(self._index.annotations(int(row["sample"])), T_lidar_world)
        if self.num_sweeps > 1:
            kept = of_surroundings(records)
            records = records[kept]
            labels, instances = (None if part is None else part[kept] for part in (labels, instances))
        cloud = gathered(
            records,
            earlier(sweeps, row, self.num_sweeps - 1),
            self._records,
            lambda then: T_lidar_world @ self._lidar_pose(then),
            int(row["time_us"]),
        )
        num_earlier = len(cloud.points) - len(records)
        views = [
            self._view(name, camera.at(row, self.max_camera_gap_s))
            for name, camera in zip(self.camera_names(), cameras, strict=True)
        ]
        return Sample(
            key=f"{log}_{row['time_us']}",
            log=log,
            timestamp_us=int(row["time_us"]),
            points_lidar=cloud.points,
            intensity=scaled_intensity(cloud.intensity, 255.0, str(self._file(row))),
            T_ego_lidar=self._index.T_ego_sensor[row["sensor"]] @ _T_THEIRS_OURS,
            T_world_ego=_pose(row),
            cameras=tuple(views),
            labels=None if labels is None else np.pad(labels, (0, num_earlier), constant_values=IGNORE_LABEL),
            instances=None if instances is None else np.pad(instances, (0, num_earlier)),
            boxes=boxes,
            times_s=cloud.times_s if self.num_sweeps > 1 else None,
            token=bytes(self._index.sample_tokens[row["sample"]]).decode("ascii") if row["key"] else None,
        )

    def _records(self, row: np.void) -> Float32[np.ndarray, "N 5"]:
        return read_sweep(self._file(row), 5)

    def _lidar_pose(self, row: np.void) -> Float[np.ndarray, "4 4"]:
        """Our LiDAR frame at a sweep's time to the world."""
        return np.asarray(_pose(row) @ self._index.T_ego_sensor[row["sensor"]] @ _T_THEIRS_OURS)

    def _file(self, row: np.void) -> Path:
        name = Path(bytes(row["file"]).decode("ascii"))
        if name.is_absolute() or ".." in name.parts:
            raise DamagedError("member-missing", f"{name}, which sample_data.json names, leads out of the source")
        return Path(self.source) / name

    def _view(self, name: str, row: np.void) -> CameraView:
        jpeg, image = read_jpeg(self._file(row))
        size, stated = (image.shape[0], image.shape[1]), tuple(row["size"].tolist())
        if size != stated:
            raise DamagedError("image-size", f"{self._file(row)} is {size}, sample_data.json says {stated}")
        K = self._index.K[row["sensor"]]
        if not np.isfinite(K).all():
            raise DamagedError("calibration-missing", f"{name} has no camera_intrinsic in calibrated_sensor.json")
        return CameraView(
            name=name,
            image_size=size,
            K=K,
            T_cam_ego=np.linalg.inv(self._index.T_ego_sensor[row["sensor"]]),
            T_world_ego=_pose(row),
            timestamp_us=int(row["time_us"]),
            image=image,
            jpeg=jpeg,
        )

    def _read_labels(
        self, row: np.void, num_points: int
    ) -> tuple[UInt8[np.ndarray, " N"] | None, Int[np.ndarray, " N"] | None]:
        """Classes from lidarseg (from panoptic without it), objects from panoptic."""
        lidarseg, panoptic = self._label_folders
        token = bytes(row["token"]).decode("ascii")
        raw = instances = None
        if panoptic is not None:
            both = read_panoptic(panoptic / f"{token}_panoptic.npz", num_points)
            raw = both // _OBJECTS_PER_CATEGORY
            instances = np.where(both % _OBJECTS_PER_CATEGORY > 0, both, 0).astype(np.int32)
        if lidarseg is not None:
            path = lidarseg / f"{token}_lidarseg.bin"
            raw = read_records(path, "u1", 1)[:, 0]
            if len(raw) != num_points:
                raise DamagedError("array-broken", f"{path} has {len(raw)} labels for {num_points} points")
        if raw is None:
            return None, None
        if raw.size and int(raw.max()) >= len(CATEGORIES):
            raise DamagedError("array-broken", f"{token}: label {raw.max()}, expected 0 to {len(CATEGORIES) - 1}")
        return _CLASS_OF_RAW[raw], instances


class _CameraRows:
    """A camera's frames of one scene."""

    def __init__(self, rows: Shaped[np.ndarray, " n"]) -> None:
        self._rows = rows
        self._key_of = {int(rows["sample"][at]): int(at) for at in np.flatnonzero(rows["key"])}

    def at(self, sweep: np.void, max_gap_s: float) -> np.void:
        """The image of a sweep's key frame, or the one nearest in time.

        Raises:
            DamagedError: there is none.
        """
        at = self._key_of.get(int(sweep["sample"])) if sweep["key"] else None
        if not sweep["key"] and len(self._rows):
            gaps_us = np.abs(self._rows["time_us"] - sweep["time_us"])
            nearest = int(gaps_us.argmin())
            at = nearest if gaps_us[nearest] <= max_gap_s * 1e6 else None
        if at is None:
            raise DamagedError("member-missing", f"a camera has no image at {sweep['time_us']}")
        row: np.void = self._rows[at]
        return row


def _pose(row: np.void) -> Float[np.ndarray, "4 4"]:
    if not (np.isfinite(row["rotation"]).all() and row["rotation"].any()):
        raise DamagedError("calibration-missing", f"ego_pose.json has no pose for {bytes(row['file']).decode()}")
    return rigid(rotations(row["rotation"][None])[0], row["translation"])


def _boxes(rows: Shaped[np.ndarray, " n"], T_lidar_world: Float[np.ndarray, "4 4"]) -> Boxes:
    turn = T_lidar_world[:3, :3]
    headings = rotations(rows["rotation"])[:, :, 0] @ turn.T
    return Boxes(
        centers_m=transform(T_lidar_world, rows["center"]),
        sizes_m=rows["size"][:, [1, 0, 2]],  # stored as width, length, height
        yaws=np.arctan2(headings[:, 1], headings[:, 0]),
        velocities_mps=(rows["velocity"] @ turn.T)[:, :2],
        classes=rows["class"].astype(np.int32),
        track_ids=rows["instance"].astype(np.int32),
        num_points=rows["num_points"].astype(np.int32),
        num_radar_points=rows["num_radar_points"].astype(np.int32),
        categories=rows["category"].astype(np.int32),
        attributes=rows["attribute"].astype(np.int32),
    )


def read_panoptic(path: Path, num_points: int) -> Int[np.ndarray, " N"]:
    """Raw panoptic labels: category * 1000 + object, 0 objects where the category has none.

    Raises:
        DamagedError: missing, damaged, or of another length.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(read_bytes(path))) as archive, archive.open("data.npy") as member:
            data = member.read(num_points * 8 + 1024)  # an archive may claim to unpack to anything
        labels = parse_npy(data)
    except ZIP_ERRORS as error:
        raise DamagedError("array-broken", f"{path}: {error!r}") from error
    if labels.shape != (num_points,) or labels.dtype.kind not in "iu":
        raise DamagedError("array-broken", f"{path} is {labels.dtype} {labels.shape} for {num_points} points")
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < len(CATEGORIES) * _OBJECTS_PER_CATEGORY:
        raise DamagedError("array-broken", f"{path}: labels from {labels.min()} to {labels.max()}")
    return np.asarray(labels.astype(np.int32))


def _check_categories(tables: Path) -> None:
    """Label files count categories by the `index` that category.json has since nuScenes-lidarseg.

    Raises:
        ShardError: another numbering than the published one.
    """
    for name, index in read_table(tables, "category", "name", "index"):
        if not (isinstance(index, int) and 0 <= index < len(CATEGORIES) and CATEGORIES[index] == name):
            raise ShardError(
                f"{tables / 'category.json'} numbers {name!r} as {index!r}, not as nuScenes-lidarseg v1.0 does"
            )
