"""All texture tiles of a world in one mip-mapped image, so that a camera's pixels are looked up in one call."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8

from data.street.tiles import TILE, lookup

_LEVELS = 7
_ROW = TILE + 2
# A tile's levels lie side by side, each with a border of one wrapped texel for the bilinear lookup.
_SIDES = np.array([TILE >> level for level in range(_LEVELS)], np.float32)
_LEFT = np.concatenate([[0], np.cumsum(_SIDES[:-1] + 2)]).astype(np.float32)


@dataclass(frozen=True)
class Atlas:
    """Mip-mapped tiles; rows are layers, columns are levels."""

    image: UInt8[np.ndarray, "rows columns 4"]

    def lookup(
        self,
        layers: Int32[np.ndarray, " n"],
        uvs: Float32[np.ndarray, "n 2"],
        texels: Float32[np.ndarray, " n"] | None = None,
    ) -> UInt8[np.ndarray, "n 4"]:
        """Bilinear lookup of colour and reflectivity at coordinates in tiles, which wrap around.

        The footprint of each query in finest texels chooses its level; None is the finest.
        """
        if len(layers) == 0:
            return np.empty((0, 4), np.uint8)
        if texels is None:
            level = np.zeros(len(layers), np.intp)
        else:
            level = np.clip(np.log2(np.maximum(texels, 1e-6)) + 0.3, 0, _LEVELS - 1).astype(np.intp)
        side = _SIDES[level]
        x = (uvs[:, 0] - np.floor(uvs[:, 0])) * side + (_LEFT[level] + 0.5)
        y = (uvs[:, 1] - np.floor(uvs[:, 1])) * side + (layers * np.float32(_ROW) + 0.5)
        return lookup(self.image, x, y)


def build_atlas(tiles: UInt8[np.ndarray, "layers 256 256 4"]) -> Atlas:
    """Lay out tiles and their mip levels."""
    columns = int(_LEFT[-1] + _SIDES[-1] + 2)
    image = np.zeros((len(tiles) * _ROW, columns, 4), np.uint8)
    for layer, tile in enumerate(tiles):
        level_tile = tile
        for level in range(_LEVELS):
            side = TILE >> level
            x, y = int(_LEFT[level]), layer * _ROW
            image[y : y + side + 2, x : x + side + 2] = np.pad(level_tile, ((1, 1), (1, 1), (0, 0)), mode="wrap")
            level_tile = cv2.resize(level_tile, (side // 2, side // 2), interpolation=cv2.INTER_AREA)
    return Atlas(image)


def tiles_per_metre(
    corners: Float32[np.ndarray, "T 3 3"], uvs: Float32[np.ndarray, "T 3 2"]
) -> Float[np.ndarray, " T"]:
    """Texture scale of each triangle: square root of the ratio of its areas in texture and space."""
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.linalg.norm(np.cross(a, b), axis=1)
    p, q = uvs[:, 1] - uvs[:, 0], uvs[:, 2] - uvs[:, 0]
    area_uv = np.abs(p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0])
    return np.asarray(np.sqrt(area_uv / np.maximum(area, 1e-9)))
