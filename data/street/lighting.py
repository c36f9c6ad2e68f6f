"""Sun, sky, haze and the camera's colour response, drawn once a world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt8

from data.street.tiles import hsv, lookup, noise

_SKY_ROWS, _SKY_COLUMNS = 128, 512


@dataclass(frozen=True, kw_only=True)
class Light:
    """Illumination of a world, linear RGB.

    Attributes:
        sun: unit vector towards the sun.
        sun_color: irradiance on a surface that faces the sun.
        ambient: light from the sky on a surface that faces up.
        haze: colour that far things fade to.
        haze_m: distance at which 63 % has faded.
        sky: panorama; rows from 25 degrees below the horizon to 90 above it, columns azimuth.
        response: exposure and white balance, multiplied at the end.
    """

    sun: Float32[np.ndarray, " 3"]
    sun_color: Float32[np.ndarray, " 3"]
    ambient: Float32[np.ndarray, " 3"]
    haze: Float32[np.ndarray, " 3"]
    haze_m: float
    sky: UInt8[np.ndarray, "128 512 3"]
    response: Float32[np.ndarray, " 3"]

    def sky_color(self, directions: Float32[np.ndarray, "n 3"]) -> Float32[np.ndarray, "n 3"]:
        """Linear sky colour seen along unit directions."""
        x, y, z = directions.T
        # The row is a cheap stand-in for the elevation angle: equal to it near the horizon, monotonic everywhere.
        row = (np.clip(z, -0.4, 1.0) + 0.4) / 1.4 * (_SKY_ROWS - 1)
        column = (np.arctan2(y, x) / (2 * np.pi) % 1.0) * (_SKY_COLUMNS - 1)
        scaled = lookup(self.sky, column, row).astype(np.float32) / 255
        return np.asarray(scaled * scaled)


def draw_light(rng: np.random.Generator) -> Light:
    """Clear, hazy or overcast; the sun at 22 to 65 degrees, from any side."""
    overcast = float(rng.choice([0.0, rng.uniform(0.2, 0.6), rng.uniform(0.75, 0.95)], p=[0.5, 0.3, 0.2]))
    elevation, azimuth = np.deg2rad(rng.uniform(22, 65)), rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    warm = 1 - np.sin(elevation)
    sun_color = np.array([1.0, 0.95 - 0.1 * warm, 0.87 - 0.3 * warm]) * 1.35 * (1 - overcast)
    blue, grey = np.array([0.36, 0.43, 0.55]), np.array([0.62, 0.64, 0.67])
    ambient = blue * (1 - overcast) + grey * overcast
    horizon = np.array(hsv(0.58, 0.14 * (1 - overcast), rng.uniform(0.8, 0.92)))
    zenith = np.array(hsv(rng.uniform(0.57, 0.62), rng.uniform(0.45, 0.65), rng.uniform(0.6, 0.8)))
    zenith = zenith * (1 - overcast) + np.array([0.66, 0.68, 0.72]) * overcast
    balance = np.array([rng.uniform(0.94, 1.07), 1.0, rng.uniform(0.94, 1.07)])
    return Light(
        sun=sun.astype(np.float32),
        sun_color=sun_color.astype(np.float32),
        ambient=ambient.astype(np.float32),
        haze=horizon.astype(np.float32) ** 2,
        haze_m=rng.uniform(130, 400),
        sky=_sky(rng, horizon, zenith, overcast),
        response=(balance * rng.uniform(0.85, 1.15) * (1 + 0.25 * overcast)).astype(np.float32),
    )


def _sky(
    rng: np.random.Generator, horizon: Float[np.ndarray, " 3"], zenith: Float[np.ndarray, " 3"], overcast: float
) -> UInt8[np.ndarray, "128 512 3"]:
    height = np.clip((np.arange(_SKY_ROWS) / (_SKY_ROWS - 1) * 1.4 - 0.4) / 0.9, 0, 1) ** 0.55
    sky = horizon + (zenith - horizon) * height[:, None, None]
    square = 0.6 * noise(rng, 4) + 0.4 * noise(rng, 8) + 0.25 * noise(rng, 16) + 0.15 * noise(rng, 32)
    clouds = np.concatenate([square, square[:, ::-1]], axis=1)[:_SKY_ROWS]
    cover = np.clip((clouds - rng.uniform(0.0, 0.9) + overcast) * 0.8, 0, 1) * np.clip(height * 3, 0, 1)[:, None]
    white = np.array([0.93, 0.94, 0.96]) * (1 - 0.15 * overcast)
    sky = sky * (1 - cover[..., None]) + white * cover[..., None]
    return np.asarray(np.clip(sky * 255, 0, 255).astype(np.uint8))
