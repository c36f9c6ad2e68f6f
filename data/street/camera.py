"""Pinhole cameras: one ray a pixel, textured and lit by sun and sky, with cast shadows, reflections and haze."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from data.sample import IGNORE_LABEL
from data.street.atlas import Atlas
from data.street.config import StreetCameraConfig
from data.street.layers import Layer
from data.street.lighting import Light
from data.street.motion import intrinsics
from data.street.scene import Hits, Moment, rays
from data.street.tiles import TILE

# Share of mirrored sky at normal incidence.
_MIRROR = {Layer.GLASS: 0.22, Layer.BUS_SIDE: 0.05, Layer.PAINT: 0.05}


@functools.lru_cache(maxsize=8)
def pixel_directions(config: StreetCameraConfig) -> Float32[np.ndarray, "pixels 3"]:
    """Direction of each pixel's centre in the camera frame, with z = 1 so that ray lengths are depths."""
    height, width = config.image_size
    v, u = np.mgrid[0:height, 0:width]
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3)
    return np.asarray((pixels @ np.linalg.inv(intrinsics(config)).T).astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """What a camera takes, with its ground truth.

    Attributes:
        image: RGB.
        depth_m: along the optical axis, 0 where there is only sky.
        labels: class of the surface under each pixel's centre, `IGNORE_LABEL` for the sky: LiDAR points never see it,
            and images and points have the same classes.
    """

    image: UInt8[np.ndarray, "H W 3"]
    depth_m: Float32[np.ndarray, "H W"]
    labels: UInt8[np.ndarray, "H W"]


def render(
    moment: Moment,
    atlas: Atlas,
    light: Light,
    config: StreetCameraConfig,
    T_world_cam: Float[np.ndarray, "4 4"],
    rng: np.random.Generator,
) -> Rendering:
    """One ray a pixel: image, depth and classes."""
    origins, directions = rays(T_world_cam, pixel_directions(config))
    hits = moment.cast(origins, directions)
    length = np.sqrt(np.einsum("nd,nd->n", directions, directions))
    color = light.sky_color(directions / length[:, None])
    solid = np.flatnonzero(hits.row >= 0)
    seen = hits.take(solid)
    focal = float(intrinsics(config)[0, 0])
    color[solid] = _shade(moment, atlas, light, seen, origins[solid], directions[solid], length[solid], focal)
    image = _develop(color, light, config, rng)
    depth = np.where(np.isfinite(hits.distance), hits.distance, 0).astype(np.float32)
    labels = np.full(len(depth), IGNORE_LABEL, np.uint8)
    labels[solid] = moment.stage.surfaces.labels[seen.row]
    return Rendering(image=image, depth_m=depth.reshape(config.image_size), labels=labels.reshape(config.image_size))


def _shade(
    moment: Moment,
    atlas: Atlas,
    light: Light,
    hits: Hits,
    origins: Float32[np.ndarray, "n 3"],
    directions: Float32[np.ndarray, "n 3"],
    length: Float32[np.ndarray, " n"],
    focal: float,
) -> Float32[np.ndarray, "n 3"]:
    """Linear colour of surface points: texture x tint x (sun + sky), mirrored sky, haze."""
    surfaces = moment.stage.surfaces
    range_m = hits.distance * length
    # A pixel's footprint grows with range and slant; the square root splits the slant's stretch between both axes.
    footprint = range_m / focal / np.sqrt(np.maximum(hits.cosine, 0.03))
    texels = footprint * moment.stage.tiles_per_metre[hits.row] * TILE
    layers = surfaces.layers[hits.row]
    texture = atlas.lookup(layers, hits.uv, texels)[:, :3].astype(np.float32) / 255
    albedo = texture * texture * surfaces.tints[hits.row]
    leafy = layers == Layer.LEAVES
    facing = hits.normal @ light.sun
    # Leaves let light through, so both faces are lit.
    sunlit = np.where(leafy, 0.25 + 0.6 * np.abs(facing), np.maximum(facing, 0))
    lit = np.flatnonzero(sunlit > 0.01)
    points = origins + directions * hits.distance[:, None]
    starts = points[lit] + hits.normal[lit] * 0.02
    shadowed = moment.occluded(starts, np.ascontiguousarray(np.broadcast_to(light.sun, starts.shape)))
    sunlit[lit[shadowed]] = np.where(leafy[lit[shadowed]], 0.12, 0.0)
    sky_share = np.where(leafy, 0.8, 0.62 + 0.38 * hits.normal[:, 2])
    color = albedo * (sunlit[:, None] * light.sun_color + sky_share[:, None] * light.ambient)
    _add_mirror(color, light, layers, hits, directions / length[:, None])
    fade = 1 - np.exp(-((range_m / light.haze_m) ** 2))
    return np.asarray((color + (light.haze - color) * fade[:, None]).astype(np.float32))


def _add_mirror(
    color: Float[np.ndarray, "n 3"],
    light: Light,
    layers: np.ndarray[tuple[int], np.dtype[np.int32]],
    hits: Hits,
    directions: Float32[np.ndarray, "n 3"],
) -> None:
    """Add the sky's reflection to glass and paint, stronger at grazing angles, and the sun's glint."""
    strength = np.zeros(len(Layer), np.float32)
    strength[list(_MIRROR)] = list(_MIRROR.values())
    shiny = np.flatnonzero(strength[layers] > 0)
    if not len(shiny):
        return
    d, n = directions[shiny], hits.normal[shiny]
    mirrored = d - 2 * np.einsum("nd,nd->n", d, n)[:, None] * n
    share = strength[layers[shiny]] + 0.4 * (1 - hits.cosine[shiny]) ** 4
    # Low mirrored rays would meet ground and houses rather than sky.
    share = share * np.clip(0.35 + 2.0 * mirrored[:, 2], 0.1, 1.0)
    glint = 1.5 * np.clip(mirrored @ light.sun, 0, 1) ** 60
    color[shiny] += share[:, None] * (light.sky_color(mirrored) + glint[:, None] * light.sun_color)


def _develop(
    color: Float32[np.ndarray, "pixels 3"], light: Light, config: StreetCameraConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Exposure, gamma 2, a lens blur of half a pixel, sensor noise."""
    exposed = color * light.response
    # A soft shoulder instead of clipping keeps the hue of bright surfaces.
    image = np.sqrt(exposed / (1 + 0.18 * exposed)) * 255
    blurred = cv2.GaussianBlur(image.reshape(*config.image_size, 3), (3, 3), 0.45)
    noisy = blurred + config.noise * rng.standard_normal(blurred.shape, np.float32)
    return np.asarray(np.clip(noisy + 0.5, 0, 255).astype(np.uint8))
