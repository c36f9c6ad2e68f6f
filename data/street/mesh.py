"""Triangle soups with the attributes that shading and the LiDAR need, and the primitives that objects are made of.

A `Mesh` has no shared vertices: each triangle carries its corners, texture coordinates, texture layer, colour, class,
instance and reflectivity. Objects are built in their own frame (x forward, y left, z up, origin on the ground below the
centre) and then placed. Costs a few microseconds a primitive, so a world of 50 000 triangles is built in about 0.1 s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Int32, UInt8

from data.street.classes import Label
from data.street.layers import Layer

Color = tuple[float, float, float]
Point = tuple[float, float, float]
WHITE: Color = (1.0, 1.0, 1.0)
_UNIT_UV = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)


@dataclass(frozen=True, kw_only=True)
class Mesh:
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

    def take(self, rows: Int[np.ndarray, " k"]) -> Mesh:
        """The triangles of the given rows."""
        return Mesh(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(Mesh)})

    def bounds(self) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
        """Lowest and highest coordinates."""
        points = self.corners.reshape(-1, 3)
        return points.min(axis=0), points.max(axis=0)


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """All triangles of several meshes, in order."""
    names = [f.name for f in dataclasses.fields(Mesh)]
    return Mesh(**{name: np.concatenate([getattr(mesh, name) for mesh in meshes]) for name in names})


class MeshBuilder:
    """Collects primitives of one object into a `Mesh`."""

    def __init__(self, label: Label, *, reflectivity: float = 0.4) -> None:
        self.label = label
        self.reflectivity = reflectivity
        self._parts: list[Mesh] = []

    def triangles(
        self,
        corners: Float[np.ndarray, "T 3 3"],
        layer: Layer,
        *,
        tint: Color | Float[np.ndarray, "T 3"] = WHITE,
        uvs: Float[np.ndarray, "T 3 2"] | None = None,
        label: Label | None = None,
    ) -> None:
        """Add triangles."""
        n = len(corners)
        if uvs is None:
            uvs = np.broadcast_to(_UNIT_UV[:3], (n, 3, 2))
        self._parts.append(
            Mesh(
                corners=np.asarray(corners, np.float32),
                uvs=np.asarray(uvs, np.float32),
                layers=np.full(n, layer, np.int32),
                tints=np.ascontiguousarray(np.broadcast_to(np.asarray(tint, np.float32), (n, 3))),
                labels=np.full(n, self.label if label is None else label, np.uint8),
                instances=np.zeros(n, np.int32),
                reflectivity=np.full(n, self.reflectivity, np.float32),
            )
        )

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
        """Add an axis-aligned box; with `tile_m` the texture repeats every so many metres, else once a face."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        p = np.array(
            [[x0, y0, z0], [x1, y0, z0], [x1, y1, z0], [x0, y1, z0], [x0, y0, z1], [x1, y0, z1], [x1, y1, z1], [x0, y1, z1]]
        )
        faces = p[[[0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7], [4, 5, 6, 7], [3, 2, 1, 0]]]
        uvs = np.broadcast_to(_UNIT_UV, (6, 4, 2))
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
        first, second = _across(b - a)
        angle = np.linspace(0, 2 * np.pi, sides + 1)
        ring = np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * second
        low, high = a + r0 * ring, b + r1 * ring
        uv = angle / (2 * np.pi)
        uvs = np.stack([np.stack([uv[:-1], 0 * uv[1:]], -1), np.stack([uv[1:], 0 * uv[1:]], -1)], 1)
        uvs = np.concatenate([uvs, uvs[:, ::-1] + [0, 1]], axis=1)
        self.quads(np.stack([low[:-1], low[1:], high[1:], high[:-1]], axis=1), layer, tint=tint, uvs=uvs, label=label)

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
        first, second = _across(np.array(normal))
        angle = np.linspace(*span, sides + 1)
        circle = np.stack([np.cos(angle), np.sin(angle)], -1)
        rim = np.array(center) + radius * (circle @ np.stack([first, second]))
        uv = 0.5 + 0.5 * circle * [1, -1]
        hub = np.broadcast_to(np.array(center), (sides, 3))
        uvs = np.stack([np.full((sides, 2), 0.5), uv[:-1], uv[1:]], axis=1)
        self.triangles(np.stack([hub, rim[:-1], rim[1:]], axis=1), layer, tint=tint, uvs=uvs, label=label)

    def ball(
        self, center: Point, radii: Point, layer: Layer = Layer.PLAIN, *, tint: Color = WHITE, sides: int = 8
    ) -> None:
        """Add an ellipsoid of `sides` meridians and half as many rings."""
        rings = max(3, sides // 2)
        polar, around = np.meshgrid(np.linspace(0, np.pi, rings + 1), np.linspace(0, 2 * np.pi, sides + 1), indexing="ij")
        unit = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], -1)
        p = np.array(center) + unit * np.array(radii)
        uv = np.stack([around / (2 * np.pi) * 2, polar / np.pi], -1)
        self.quads(_grid_quads(p), layer, tint=tint, uvs=_grid_quads(uv))

    def add(self, mesh: Mesh) -> None:
        """Add a finished mesh as it is."""
        self._parts.append(mesh)

    def build(self) -> Mesh:
        """Everything added so far."""
        return merge(self._parts)


def _grid_quads(grid: Float[np.ndarray, "R C D"]) -> Float[np.ndarray, "Q 4 D"]:
    corners = np.stack([grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]], axis=2)
    return corners.reshape(-1, 4, grid.shape[-1])


def _across(direction: Float[np.ndarray, " 3"]) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """Two unit vectors across a direction; the second one points up where it can."""
    d = direction / np.linalg.norm(direction)
    up = np.array([0.0, 0.0, 1.0]) if abs(d[2]) < 0.9 else np.array([1.0, 0.0, 0.0])
    first = np.cross(up, d)
    first /= np.linalg.norm(first)
    return first, np.cross(d, first)
