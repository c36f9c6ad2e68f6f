"""What the sensors of a set are like, measured on some of its samples: what a network trained on it has got used to.

Deterministic: samples at even distances, points as they are stored, images undecoded.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from common.small_files import DamagedFileError, read_text
from data.batch_spec import GroundConfig, VoxelConfig
from data.sample import Sample
from data.storage.manifest import Manifest
from data.storage.reader import Reader, SampleError
from data.storage.shard import ShardError
from data.views.ground import ground_mask
from data.views.voxelize import inside_range, voxelize

RING_EDGES_M = (0.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 70.0, 100.0)
"""Horizontal distances between which points are counted."""
INTENSITY_BINS = 20
NUM_SWEEPS = 16
"""Enough for medians: a set's sensors do not change from sweep to sweep."""

_OWN_VEHICLE_M = 3.0
"""Points nearer than this are largely the vehicle's own, at angles that no road gives."""
_GROUND_WITHIN_M = 15.0
_FARTHEST = 0.99
"""Share of points that lie within what counts as the range: single returns come from far beyond."""
_COLUMN_DEG = 0.5
_LINE_GAP_DEG = 0.08
"""Two points of one column that are farther apart than this in elevation are of different lines: most neighbours in a
line are within 0.01 degrees in columns of KITTI and nuScenes, whose lines are 0.35 and 1.3 degrees apart."""
_FULL_COLUMN = 0.95
"""The quantile over columns that counts: most columns miss the lines that meet the sky."""


@dataclass(frozen=True, kw_only=True)
class CameraFacts:
    """One camera.

    Attributes:
        image_size: height, width as stored, pixels.
        focal_px: horizontal focal length of the stored image.
        rate_hz: images a second; None where logs have one sample.
    """

    name: str
    image_size: tuple[int, int]
    focal_px: float
    rate_hz: float | None

    @property
    def width_deg(self) -> float:
        """Horizontal field of view, degrees."""
        return 2 * math.degrees(math.atan(self.image_size[1] / 2 / self.focal_px))


@dataclass(frozen=True, kw_only=True)
class Sensors:
    """What was measured. Numbers of a sweep are medians over sweeps.

    Attributes:
        set_name: of the set.
        num_sweeps: that were read.
        rate_hz: samples a second within logs; None where logs have one sample.
        points: of a sweep.
        range_m: horizontal distance within which 99 % of the points lie.
        rings: points of a sweep between RING_EDGES_M.
        lines: lines of points above each other (beams of a spinning scanner) in a full column of half a degree.
        lowest_deg: elevation above which 99.9 % of the points lie.
        highest_deg: likewise below which.
        width_deg: how much of the circle has points.
        ground_m: height of the ground near the sensor, in the LiDAR frame; NaN where none is found.
        intensities: share of the points in INTENSITY_BINS equal bins from 0 to 1.
        voxels: of a sweep, of the run's size, within its limits.
        points_per_voxel: points within the limits over voxels.
        outside: share of the points that lie beyond the run's limits.
        cameras: in the set's order.
        fields: what the set states of points beside position and intensity.
    """

    set_name: str
    num_sweeps: int
    rate_hz: float | None
    points: float
    range_m: float
    rings: tuple[float, ...]
    lines: float
    lowest_deg: float
    highest_deg: float
    width_deg: float
    ground_m: float
    intensities: tuple[float, ...]
    voxels: float
    points_per_voxel: float
    outside: float
    cameras: tuple[CameraFacts, ...]
    fields: tuple[str, ...]


def measured(
    manifest: Manifest, reader: Reader, rows: Int[np.ndarray, " n"], voxel: VoxelConfig, most: int = NUM_SWEEPS
) -> Sensors:
    """Read up to `most` of the samples, evenly spread, and measure them on the run's grid.

    Raises:
        ShardError: none of them can be read, or none has points.
    """
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64))]
    swept: list[dict[str, Any]] = []
    last: Sample | None = None
    damage = ""
    for row in chosen.tolist():
        try:
            sample = reader.read(row, images="encoded", superpixels=False, labels=False)
        except SampleError as error:
            damage = f": {error}"
            continue
        if len(sample.points_lidar):
            swept.append(_of_sweep(sample, voxel))
            last = sample
    if last is None:
        raise ShardError(f"{manifest.root}: none of {len(chosen)} samples has points that can be read{damage}")
    middle = {name: np.median(np.array([one[name] for one in swept]), axis=0) for name in swept[0]}
    rate = _rate_hz(manifest)
    cameras = tuple(
        CameraFacts(name=c.name, image_size=c.image_size, focal_px=abs(float(c.K[0, 0])), rate_hz=rate)
        for c in last.cameras
    )
    fields = tuple(name for name in last.point_fields() if name not in ("points_lidar", "intensity"))
    numbers: dict[str, Any] = {
        name: tuple(value.tolist()) if value.ndim else float(value) for name, value in middle.items()
    }
    return Sensors(
        set_name=manifest.set_name, num_sweeps=len(swept), rate_hz=rate, cameras=cameras, fields=fields, **numbers
    )


def _of_sweep(sample: Sample, voxel: VoxelConfig) -> dict[str, Any]:
    points = sample.points_lidar.astype(np.float64)
    rho = np.hypot(points[:, 0], points[:, 1])
    inside = inside_range(points, voxel)
    # The grid alone is asked for: features of further channels need not be there.
    grid = dataclasses.replace(voxel, features="occupancy")
    voxels = len(voxelize(points[inside], sample.intensity[inside], grid).coords)
    intensities = np.histogram(np.clip(sample.intensity, 0, 1), bins=INTENSITY_BINS, range=(0, 1))[0]
    return {
        "points": float(len(points)),
        "range_m": float(np.quantile(rho, _FARTHEST)),
        "rings": np.histogram(rho, bins=(*RING_EDGES_M, np.inf))[0].astype(np.float64),
        **_angles(points, rho),
        "ground_m": _ground(points, rho),
        "intensities": intensities / len(points),
        "voxels": float(voxels),
        "points_per_voxel": inside.sum() / max(voxels, 1),
        "outside": 1.0 - float(inside.mean()),
    }


def _angles(points: Float[np.ndarray, "N 3"], rho: Float[np.ndarray, " N"]) -> dict[str, float]:
    """Field of view, and lines above each other."""
    far = rho > min(_OWN_VEHICLE_M, float(np.median(rho)))
    far = far if far.any() else np.ones(len(rho), dtype=bool)
    elevation = np.degrees(np.arctan2(points[far, 2], rho[far]))
    azimuth = np.degrees(np.arctan2(points[far, 1], points[far, 0])) + 180.0
    lowest, highest = np.quantile(elevation, (0.001, 0.999))
    column = np.floor(azimuth / _COLUMN_DEG).astype(np.int64)
    order = np.lexsort((elevation, column))
    begins = np.diff(elevation[order], prepend=-np.inf) > _LINE_GAP_DEG
    begins |= np.diff(column[order], prepend=-1) != 0
    lines = np.bincount(column[order][begins])
    width = len(np.unique(np.floor(azimuth))) * 1.0
    return {
        "lines": float(np.quantile(lines[lines > 0], _FULL_COLUMN)),
        "lowest_deg": float(lowest),
        "highest_deg": float(highest),
        "width_deg": min(width, 360.0),
    }


def _ground(points: Float[np.ndarray, "N 3"], rho: Float[np.ndarray, " N"]) -> float:
    ground = ground_mask(points, GroundConfig(), np.random.default_rng(0)) & (rho < _GROUND_WITHIN_M)
    return float(np.median(points[ground, 2])) if ground.any() else math.nan


def _rate_hz(manifest: Manifest) -> float | None:
    """By the median distance in time of samples of one log."""
    order = np.lexsort((manifest.sample_timestamp_us, manifest.sample_log))
    same = np.diff(manifest.sample_log[order]) == 0
    apart = np.diff(manifest.sample_timestamp_us[order])[same]
    middle = float(np.median(apart)) if len(apart) else 0.0
    return 1e6 / middle if middle > 0 else None


# ---- files


def to_json(sensors: Sensors, voxel: VoxelConfig) -> str:
    """As text, with the grid that voxels were counted in."""
    return json.dumps({"sensors": dataclasses.asdict(sensors), "voxel": dataclasses.asdict(voxel)}, indent=1) + "\n"


def from_json(file: Path) -> Sensors:
    """What `to_json` wrote.

    Raises:
        ShardError: it is something else; names the file.
    """
    try:
        tree = dict(json.loads(read_text(file) or "{}")["sensors"])
        cameras = tuple(
            CameraFacts(**{**camera, "image_size": tuple(camera["image_size"])}) for camera in tree.pop("cameras")
        )
        lists: Sequence[str] = ("rings", "intensities", "fields")
        return Sensors(**{**tree, **{name: tuple(tree[name]) for name in lists}}, cameras=cameras)
    except (DamagedFileError, KeyError, TypeError, ValueError) as error:
        raise ShardError(
            f"{file} is not what `tandem fit` keeps of a run's set ({error}); remove it and measure again"
        ) from error
