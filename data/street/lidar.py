"""The spinning LiDAR: firing pattern, returns, noise, drop-out, intensity."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from data.geometry import transform
from data.street.atlas import Atlas
from data.street.classes import Label
from data.street.config import StreetLidarConfig
from data.street.layout import StreetWorld
from data.street.mesh import merge
from data.street.motion import ego_pose, lidar_mount
from data.street.scene import Hits, StreetStage, Viewer, rays

# With motion during the sweep, actors are re-posed this often a turn; the ego's pose is exact for every firing.
_SECTORS = 12


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One turn's returns, in firing order.

    Attributes:
        points_lidar: metres.
        intensity: 0..1.
        labels: semantic class.
        instances: object id, 0 for none.
    """

    points_lidar: Float32[np.ndarray, "N 3"]
    intensity: Float32[np.ndarray, " N"]
    labels: UInt8[np.ndarray, " N"]
    instances: Int[np.ndarray, " N"]


@functools.lru_cache(maxsize=8)
def firing_directions(config: StreetLidarConfig) -> Float32[np.ndarray, "azimuths beams 3"]:
    """Unit directions in the LiDAR frame, clockwise from straight back, as most sensors turn."""
    azimuth = np.pi - 2 * np.pi * (np.arange(config.azimuths) + 0.5) / config.azimuths
    elevation = np.deg2rad(np.linspace(config.elevation_max_deg, config.elevation_min_deg, config.beams))
    a, e = np.meshgrid(azimuth, elevation, indexing="ij")
    return np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], axis=-1).astype(np.float32)


def scan(stage: StreetStage, atlas: Atlas, config: StreetLidarConfig, time_s: float, rng: np.random.Generator) -> Sweep:
    """Take the sweep stamped `time_s`."""
    directions = firing_directions(config)
    if config.sweep_motion == "none":
        pose = _pose(stage.world, config, time_s)
        hits = stage.at(time_s, Viewer(xy=pose[:2, 3])).cast(*rays(pose, directions.reshape(-1, 3)))
    else:
        hits = _cast_moving(stage, config, time_s, directions)
    range_m = hits.distance + rng.normal(0, config.range_noise_m, hits.distance.shape).astype(np.float32)
    intensity = _intensity(stage, atlas, config, hits, rng)
    returned = np.flatnonzero(_returned(config, range_m, intensity, rng))
    points = directions.reshape(-1, 3)[returned] * range_m[returned, None]
    if config.sweep_motion == "compensated":
        points = _compensate(stage.world, config, time_s, points, returned // config.beams)
    rows = hits.row[returned]
    return Sweep(
        points_lidar=points.astype(np.float32),
        intensity=intensity[returned],
        labels=stage.surfaces.labels[rows],
        instances=stage.surfaces.instances[rows],
    )


def _pose(world: StreetWorld, config: StreetLidarConfig, time_s: float) -> Float[np.ndarray, "4 4"]:
    return np.asarray(ego_pose(world.street, world.drive, time_s) @ lidar_mount(config))


def _firing_time(config: StreetLidarConfig, azimuth: float) -> float:
    """Seconds from the sweep's stamp to a firing."""
    return ((azimuth + 0.5) / config.azimuths - 0.5) * config.sweep_duration_s


def _cast_moving(
    stage: StreetStage, config: StreetLidarConfig, time_s: float, directions: Float32[np.ndarray, "azimuths beams 3"]
) -> Hits:
    """Cast each firing from where the sensor is at that time."""
    parts = []
    for sector in np.array_split(np.arange(config.azimuths), min(_SECTORS, config.azimuths)):
        poses = [_pose(stage.world, config, time_s + _firing_time(config, float(k))) for k in sector]
        moment = stage.at(time_s + _firing_time(config, float(sector.mean())), Viewer(xy=poses[0][:2, 3]))
        cast = [rays(pose, directions[k]) for pose, k in zip(poses, sector, strict=True)]
        origins, world = (np.concatenate([pair[i] for pair in cast]) for i in (0, 1))
        parts.append(moment.cast(origins, world))
    return merge(parts)


def _compensate(
    world: StreetWorld,
    config: StreetLidarConfig,
    time_s: float,
    points: Float32[np.ndarray, "N 3"],
    azimuths: Int[np.ndarray, " N"],
) -> Float[np.ndarray, "N 3"]:
    """Move points from the sensor's frame at their firing to its frame at the stamp."""
    T_lidar_world = np.linalg.inv(_pose(world, config, time_s))
    moved = np.empty(points.shape, np.float64)
    for azimuth in np.unique(azimuths):
        fired = azimuths == azimuth
        T_stamp_firing = T_lidar_world @ _pose(world, config, time_s + _firing_time(config, float(azimuth)))
        moved[fired] = transform(T_stamp_firing, points[fired])
    return moved


def _intensity(
    stage: StreetStage, atlas: Atlas, config: StreetLidarConfig, hits: Hits, rng: np.random.Generator
) -> Float32[np.ndarray, " rays"]:
    """Reflectivity of surface and texture, weaker at grazing incidence; range is taken as calibrated away."""
    row = hits.row
    texture = atlas.lookup(stage.surfaces.layers[row], hits.uv)[:, 3].astype(np.float32) / 128  # 128 is stored for 1
    strength = stage.surfaces.reflectivity[row] * texture * (0.45 + 0.55 * hits.cosine)
    # Foliage scatters more.
    leafy = stage.surfaces.labels[row] == Label.VEGETATION
    noise = rng.normal(0, 1, row.shape) * np.where(leafy, 2.0, 1.0) * config.intensity_noise
    return np.asarray(np.clip(strength + noise, 0, 1).astype(np.float32))


def _returned(
    config: StreetLidarConfig,
    range_m: Float32[np.ndarray, " rays"],
    intensity: Float32[np.ndarray, " rays"],
    rng: np.random.Generator,
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which firings come back: in range, not dropped; far and weak ones are lost more often."""
    inside = (range_m > config.min_range_m) & (range_m < config.max_range_m)
    far = np.clip(np.where(inside, range_m, 0) / config.max_range_m, 0, 1) ** 2
    lost = config.dropout * (1 + 4 * far * (1.2 - intensity))
    return np.asarray(inside & (rng.random(range_m.shape) >= lost))
