"""Triangle soups with the attributes that shading and the LiDAR need, and the primitives that objects are made of.

A `Mesh` has no shared vertices: each triangle carries its corners, texture coordinates, texture layer, colour, class,
instance and reflectivity. Objects are built in their own frame (x forward, y left, z up, origin on the ground below the
centre) and then placed. Costs a few microseconds a primitive, so a world of 50 000 triangles is built in about 0.1 s.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Float32, Int, Int32, UInt8

from data.street.classes import Label
from data.street.layers import Layer

# Run-time type checks do not take the integer 0 for a float, and coordinates are full of zeros.
_Number = float | int
Color = tuple[_Number, _Number, _Number]
Point = tuple[_Number, _Number, _Number]
WHITE: Color = (1.0, 1.0, 1.0)
_UNIT_UV = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)


_Self = TypeVar("_Self", bound="Columns")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Base of records of arrays that have one row for each of many things."""

    def take(self: _Self, rows: Int[np.ndarray, " k"]) -> _Self:
        """The things of these rows."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})


def merge(parts: Sequence[_Self]) -> _Self:
    """The things of several records, in order."""
    names = [f.name for f in dataclasses.fields(parts[0])]
    return type(parts[0])(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True, kw_only=True)
class Mesh(Columns):
    """Triangles and their attributes, one row a triangle.

    Attributes:
        corners: metres.
        uvs: texture coordinates of the corners, in tiles.
        layers: texture layer.
        tints: linear RGB that the texture is multiplied with.
        labels: semantic class.
        instances: object id, 0 for none.
        reflectivity: LiDAR reflectivity at normal incidence, 0..1, before the texture's own.
    """

    corners: Float32[np.ndarray, "T 3 3"]
    uvs: Float32[np.ndarray, "T 3 2"]
    layers: Int32[np.ndarray, " T"]
    tints: Float32[np.ndarray, "T 3"]
    labels: UInt8[np.ndarray, " T"]
    instances: Int32[np.ndarray, " T"]
    reflectivity: Float32[np.ndarray, " T"]

    def __len__(self) -> int:
        return len(self.corners)

    def placed(
        self,
        position_m: Point,
        yaw: float = 0.0,
        *,
        scale: float = 1.0,
        tint: Color = WHITE,
        instance: int | None = None,
    ) -> Mesh:
        """A copy, scaled, turned by `yaw` about z, moved, and multiplied by a colour."""
        c, s = np.cos(yaw), np.sin(yaw)
        rotation = scale * np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        corners = (self.corners @ rotation + np.array(position_m)).astype(np.float32)
        instances = self.instances if instance is None else np.full(len(self), instance, np.int32)
        tints = self.tints if tint == WHITE else self.tints * np.asarray(tint, np.float32)
        return dataclasses.replace(self, corners=corners, instances=instances, tints=tints)

    def bounds(self) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
        """Lowest and highest coordinates."""
        points = self.corners.reshape(-1, 3)
        return points.min(axis=0), points.max(axis=0)


class MeshBuilder:
    """Collects primitives of one object into a `Mesh`."""

    def __init__(self, label: Label, *, reflectivity: float = 0.4) -> None:
        self.label = label
        self.reflectivity = reflectivity
        # Attributes are spread over the triangles once, in `build`: primitives are many and small.
        self._corners: list[Float[np.ndarray, "T 3 3"]] = []
        self._uvs: list[Float[np.ndarray, "T 3 2"]] = []
        self._parts: list[tuple[Layer, Label, Color | Float[np.ndarray, "T 3"]]] = []
        self._finished: list[Mesh] = []

    def triangles(
        self,
        corners: Float[np.ndarray, "T 3 3"],
        layer: Layer,
        *,
        tint: Color | Float[np.ndarray, "T 3"] = WHITE,
        uvs: Float[np.ndarray, "T 3 2"] | None = None,
        label: Label | None = None,
    ) -> None:
        """Add triangles; texture coordinates default to half a tile each."""
        if uvs is None:
            uvs = np.broadcast_to(_UNIT_UV[:3], (len(corners), 3, 2))
        self._corners.append(corners)
        self._uvs.append(uvs)
        self._parts.append((layer, self.label if label is None else label, tint))

    def quads(
        self,
        corners: Float[np.ndarray, "Q 4 3"],
        layer: Layer,
        *,
        tint: Color | Float[np.ndarray, "Q 3"] = WHITE,
        uvs: Float[np.ndarray, "Q 4 2"] | None = None,
        label: Label | None = None,
    ) -> None:
        """Add quadrilaterals, corners in order around; texture coordinates default to one tile a quad."""
        corners = np.asarray(corners)
        if uvs is None:
            uvs = np.broadcast_to(_UNIT_UV, (len(corners), 4, 2))
        if not isinstance(tint, tuple):
            tint = np.repeat(np.asarray(tint), 2, axis=0)
        order = [0, 1, 2, 0, 2, 3]
        tri = corners[:, order].reshape(-1, 3, 3)
        self.triangles(tri, layer, tint=tint, uvs=np.asarray(uvs)[:, order].reshape(-1, 3, 2), label=label)

    def box(
        self,
        low: Point,
        high: Point,
        layer: Layer = Layer.PLAIN,
        *,
        tint: Color = WHITE,
        tile_m: float | None = None,
        label: Label | None = None,
    ) -> None:
        """Add an axis-aligned box; the texture repeats every `tile_m` metres, or (None) once a face."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        p = np.array([[x, y, z] for z in (z0, z1) for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))])
        faces = p[[[0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7], [4, 5, 6, 7], [3, 2, 1, 0]]]
        uvs: Float[np.ndarray, "6 4 2"] = np.tile(_UNIT_UV, (6, 1, 1))
        if tile_m is not None:
            dx, dy, dz = x1 - x0, y1 - y0, z1 - z0
            spans = np.array([[dx, dz], [dy, dz], [dx, dz], [dy, dz], [dx, dy], [dx, dy]]) / tile_m
            uvs = uvs * spans[:, None]
        self.quads(faces, layer, tint=tint, uvs=uvs, label=label)

    def tube(
        self,
        start: Point,
        end: Point,
        radius: float | tuple[float, float],
        layer: Layer = Layer.PLAIN,
        *,
        sides: int = 6,
        tint: Color = WHITE,
        label: Label | None = None,
    ) -> None:
        """Add an open cylinder or cone between two points; radius at start and end, metres."""
        r0, r1 = (radius, radius) if isinstance(radius, float) else radius
        a, b = np.array(start), np.array(end)
        ring = _circle(sides, 0.0, 2 * np.pi) @ _across(b - a)
        low, high = a + r0 * ring, b + r1 * ring
        corners = np.empty((sides, 4, 3))
        corners[:, 0], corners[:, 1], corners[:, 2], corners[:, 3] = low[:-1], low[1:], high[1:], high[:-1]
        self.quads(corners, layer, tint=tint, uvs=_ring_uvs(sides), label=label)

    def disc(
        self,
        center: Point,
        normal: Point,
        radius: float,
        layer: Layer = Layer.PLAIN,
        *,
        sides: int = 12,
        tint: Color = WHITE,
        span: tuple[float, float] = (0.0, 2 * np.pi),
        label: Label | None = None,
    ) -> None:
        """Add a flat regular polygon (or a sector of it) with the texture tile laid over its circle, upright."""
        circle = _circle(sides, *span)
        rim = np.array(center) + radius * (circle @ _across(np.array(normal, np.float64)))
        corners, uvs = np.empty((sides, 3, 3)), np.full((sides, 3, 2), 0.5)
        corners[:, 0], corners[:, 1], corners[:, 2] = center, rim[:-1], rim[1:]
        uvs[:, 1] += 0.5 * circle[:-1]
        uvs[:, 2] += 0.5 * circle[1:]
        self.triangles(corners, layer, tint=tint, uvs=uvs, label=label)

    def ball(
        self, center: Point, radii: Point, layer: Layer = Layer.PLAIN, *, tint: Color = WHITE, sides: int = 8
    ) -> None:
        """Add an ellipsoid of `sides` meridians and four rings."""
        unit, uv = _sphere(sides)
        self.quads(np.array(center) + unit * np.array(radii), layer, tint=tint, uvs=uv)

    def add(self, mesh: Mesh) -> None:
        """Add a finished mesh as it is."""
        self._finished.append(mesh)

    def build(self) -> Mesh:
        """Everything added so far."""
        if not self._parts:
            return merge(self._finished)
        counts = [len(corners) for corners in self._corners]
        total = sum(counts)
        layers, labels, tints = zip(*self._parts, strict=True)
        plain = np.array([tint if isinstance(tint, tuple) else WHITE for tint in tints], np.float32)
        spread = np.repeat(plain, counts, axis=0)
        starts = np.cumsum([0, *counts])
        for i, tint in enumerate(tints):
            if not isinstance(tint, tuple):
                spread[starts[i] : starts[i + 1]] = tint
        mesh = Mesh(
            corners=np.concatenate(self._corners).astype(np.float32),
            uvs=np.concatenate(self._uvs).astype(np.float32),
            layers=np.repeat(np.array(layers, np.int32), counts),
            tints=spread,
            labels=np.repeat(np.array(labels, np.uint8), counts),
            instances=np.zeros(total, np.int32),
            reflectivity=np.full(total, self.reflectivity, np.float32),
        )
        return merge([mesh, *self._finished])


def _grid_quads(grid: Float[np.ndarray, "R C D"]) -> Float[np.ndarray, "Q 4 D"]:
    corners = np.stack([grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]], axis=2)
    return corners.reshape(-1, 4, grid.shape[-1])


@functools.lru_cache(maxsize=64)
def _circle(sides: int, start: float, end: float) -> Float[np.ndarray, "corners 2"]:
    angle = np.linspace(start, end, sides + 1)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


@functools.lru_cache(maxsize=16)
def _ring_uvs(sides: int) -> Float[np.ndarray, "sides 4 2"]:
    u = np.arange(sides + 1) / sides
    return np.array([[[u0, 0], [u1, 0], [u1, 1], [u0, 1]] for u0, u1 in itertools.pairwise(u)])


@functools.lru_cache(maxsize=16)
def _sphere(sides: int) -> tuple[Float[np.ndarray, "Q 4 3"], Float[np.ndarray, "Q 4 2"]]:
    """Quads of a unit sphere, and their texture coordinates."""
    around, polar = np.linspace(0, 2 * np.pi, sides + 1), np.linspace(0, np.pi, 5)
    p, a = np.meshgrid(polar, around, indexing="ij")
    unit = np.stack([np.sin(p) * np.cos(a), np.sin(p) * np.sin(a), np.cos(p)], axis=-1)
    return _grid_quads(unit), _grid_quads(np.stack([a / np.pi, p / np.pi], axis=-1))


def _across(direction: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "2 3"]:
    """Two unit vectors across a direction: to the right seen from its tip, and up where the direction is level."""
    x, y, z = (direction / np.sqrt(direction @ direction)).tolist()
    # up x direction, up being z, or x for a direction that is nearly upright.
    first = np.array([-y, x, 0.0]) if abs(z) < 0.9 else np.array([0.0, -z, y])
    first /= np.sqrt(first @ first)
    a, b, c = first.tolist()
    return np.array([[a, b, c], [y * c - z * b, z * a - x * c, x * b - y * a]])
