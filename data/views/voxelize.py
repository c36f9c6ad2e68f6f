"""Points to voxels: which cell each point falls into, and the network's input for each cell.

Vectorised numpy, about 2 ms for 20,000 points: cells are packed into one integer each and sorted once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from data.batch_spec import VoxelConfig
from data.sample import Sample
from data.storage.damage import DamagedError
from data.storage.shard import ShardError

MEASURED = {
    "xyz_intensity_time": "times_s",
    "xyz_intensity_elongation": "elongations",
    "rgb": "colors",
    "xyz_rgb": "colors",
}
"""Features of a voxel -> field of `Sample` that is their last channel, or channels."""

_HAVE = {
    "times_s": "sets have times that were prepared with several sweeps in a cloud (docs/datasets.md)",
    "elongations": "Waymo measures elongation, and sets prepared with this version or a later one have it",
    "colors": "sets of RGB-D frames and of rooms have colours that were prepared with 0.3.0 or a later version",
}

MAX_VOXELS = 1 << 22
"""Of one cloud. `res16unet34c` keeps 23 kB of activations a voxel for its backward pass (float32, counted with torch's
hooks on saved tensors): 96 GB at this number. A dense sweep at 5 cm has less than a twentieth of it."""


class Voxels(NamedTuple):
    """A cloud in a grid.

    Attributes:
        coords: int32 cells (may be negative), sorted, unique.
        features: float32 input of each voxel.
        of_point: int64 index into `coords` of each point.
    """

    coords: Int[np.ndarray, "M 3"]
    features: Float[np.ndarray, "M F"]
    of_point: Int[np.ndarray, " N"]


def voxelize(
    points: Float[np.ndarray, "N 3"],
    intensity: Float[np.ndarray, " N"],
    config: VoxelConfig,
    measured: Shaped[np.ndarray, "N ..."] | None = None,
) -> Voxels:
    """Cells that hold points, their features, and the cell of each point.

    Azimuth runs from -180 to 180 degrees about z; the cells on the two sides of the cut behind the sensor are not
    neighbours (as in SLidR). Points are in metres; `measured` is what `measured_of` gives; bytes are colours.

    Raises:
        DamagedError: more voxels than any accelerator's memory holds the activations of.
        ValueError: a point is not finite, or the cloud spans more cells than an int32 coordinate can hold; or
            `config.features` needs `measured`.
    """
    if len(points) == 0:
        empty = np.zeros((0, config.num_features), dtype=np.float32)
        return Voxels(np.zeros((0, 3), dtype=np.int32), empty, np.zeros(0, dtype=np.int64))
    cells = _cells(points, config)
    order, starts, point_voxel = _group(*_packed(cells))
    # A stable order makes the first of each group the point with the lowest index.
    first = order[starts]
    if len(first) > MAX_VOXELS:
        detail = f"{len(first)} voxels, expected at most {MAX_VOXELS}; size is {config.size}: enlarge the cells"
        raise DamagedError("too-large", detail)
    features = _point_features(points, intensity, measured, config)
    if config.reduce == "first":
        voxel_features = features[first]
    else:
        sums = np.add.reduceat(features[order].astype(np.float64), starts, axis=0)
        voxel_features = (sums / np.diff(starts, append=len(points))[:, None]).astype(np.float32)
    return Voxels(cells[first].astype(np.int32), voxel_features, point_voxel)


def measured_of(sample: Sample, config: VoxelConfig) -> Shaped[np.ndarray, "N ..."] | None:
    """What `config.features` feeds beside position and intensity, point by point as it is stored; None for nothing.

    Raises:
        ShardError: the set has nothing of the kind; says how it would.
    """
    name = MEASURED.get(config.features)
    if name is None:
        return None
    values: Shaped[np.ndarray, "N ..."] | None = getattr(sample, name)
    if values is None:
        raise ShardError(
            f"sample {sample.key} has no {name}, which data.voxel.features={config.features} feeds: {_HAVE[name]}. Set "
            "data.voxel.features=xyz_intensity, or prepare the set anew"
        )
    return values


def inside_range(points: Float[np.ndarray, "N 3"], config: VoxelConfig) -> Bool[np.ndarray, " N"]:
    """Which points lie within the grid's limits (all of them where it has none)."""
    if config.range_min is None or config.range_max is None:
        return np.ones(len(points), dtype=bool)
    axes = _axes(points, config.kind)
    inside = (axes >= np.array(config.range_min)) & (axes < np.array(config.range_max))
    return np.asarray(inside.all(axis=1))


def _axes(points: Float[np.ndarray, "N 3"], kind: str) -> Float[np.ndarray, "N 3"]:
    """Coordinates along the grid's axes: metres, or (metres, degrees in [-180, 180), metres)."""
    xyz = points.astype(np.float64)
    if kind == "cartesian":
        return xyz
    rho = np.sqrt(xyz[:, 0] ** 2 + xyz[:, 1] ** 2)
    phi = np.degrees(np.arctan2(xyz[:, 1], xyz[:, 0]))
    phi[phi >= 180.0] -= 360.0
    return np.stack((rho, phi, xyz[:, 2]), axis=1)


def _cells(points: Float[np.ndarray, "N 3"], config: VoxelConfig) -> Int[np.ndarray, "N 3"]:
    size = np.array(config.size)
    scaled = np.floor(_axes(points, config.kind) / size)
    if config.range_min is not None and config.range_max is not None:
        low = np.floor(np.array(config.range_min) / size)
        high = np.ceil(np.array(config.range_max) / size) - 1
        scaled = np.clip(scaled, low, high)
    largest = max(abs(scaled.max()), abs(scaled.min()))
    # Also catches NaN, for which every comparison is false. 2^20 cells an axis keep the packed key below 2^63.
    if not largest < 2**20:
        raise ValueError(
            f"largest cell index is {largest}, expected finite points and at most {2**20} cells an axis; "
            f"size is {config.size}: drop non-finite points or enlarge the cells"
        )
    return np.asarray(scaled.astype(np.int64))


def _packed(cells: Int[np.ndarray, "N 3"]) -> tuple[Int[np.ndarray, " N"], int]:
    """One integer a cell, in the cells' lexicographic order, and a bound above all of them."""
    x, y, z = cells.T
    # As Python's integers, axis by axis: numpy's reductions over rows of three cost several times as much.
    low = [int(axis.min()) for axis in (x, y, z)]
    spans = [int(axis.max()) - least + 1 for axis, least in zip((x, y, z), low, strict=True)]
    keys = ((x - low[0]) * spans[1] + (y - low[1])) * spans[2] + (z - low[2])
    return keys, spans[0] * spans[1] * spans[2]


def _group(
    keys: Int[np.ndarray, " N"], bound: int
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " M"], Int[np.ndarray, " N"]]:
    """Stable order by key, where each group of equal keys starts in it, and the group of each entry."""
    bits = len(keys).bit_length()
    if bound < 1 << (63 - bits):
        # Sorting values is several times as fast as a stable argsort; the index in the low bits makes it stable.
        order = np.sort((keys << bits) | np.arange(len(keys))) & ((1 << bits) - 1)
    else:
        order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    is_start = np.empty(len(keys), dtype=bool)
    is_start[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=is_start[1:])
    group = np.empty(len(keys), dtype=np.int64)
    group[order] = np.cumsum(is_start) - 1
    return order, np.flatnonzero(is_start), group


def _point_features(
    points: Float[np.ndarray, "N 3"],
    intensity: Float[np.ndarray, " N"],
    measured: Shaped[np.ndarray, "N ..."] | None,
    config: VoxelConfig,
) -> Float[np.ndarray, "N F"]:
    if config.features == "occupancy":
        return np.ones((len(points), 1), dtype=np.float32)
    columns = [points] if config.features.startswith("xyz") else []
    if "intensity" in config.features:
        columns.append((intensity + config.intensity_offset)[:, None])
    if config.features in MEASURED:
        if measured is None:
            raise ValueError(f"features={config.features!r} needs {MEASURED[config.features]} of each point, got None")
        is_colour = measured.dtype == np.uint8
        columns.append(
            (measured / np.float32(255) - np.float32(0.5) if is_colour else measured).reshape(len(points), -1)
        )
    return np.concatenate(columns, axis=1).astype(np.float32)
