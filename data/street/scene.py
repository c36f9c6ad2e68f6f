"""Ray casting: the static world and the moving objects at one instant, as two Embree scenes.

The static scene is built once a log. Moving objects are few triangles; theirs is built again for each instant, which is
cheaper than refitting one large scene. Costs about 0.3 µs a ray and scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore import EmbreeDevice
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Bool, Float, Float32, Int

from data.street.atlas import tiles_per_metre
from data.street.classes import Label
from data.street.layout import StreetWorld
from data.street.mesh import Columns, Mesh, merge

_PEOPLE = (Label.PEDESTRIAN, Label.CYCLIST)
# Beyond these, people and vehicles are a few pixels high, not worth their share of a scene's building time.
_PEOPLE_REACH_M = 60.0
_VEHICLE_REACH_M = 110.0
# What is this far outside a camera's view may still cast its shadow or reach into it.
_MARGIN_M = 10.0


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """Where a sensor is and which way it looks; decides which moving objects are put into its scene.

    Attributes:
        xy: world position.
        yaw: viewing direction.
        half_angle: half the horizontal opening angle, below pi / 2; None sees all round.
    """

    xy: Float[np.ndarray, " 2"]
    yaw: float = 0.0
    half_angle: float | None = None

    def concerns(self, xy: Float[np.ndarray, "n 2"], small: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Which objects can be seen, or their shadows."""
        offset = xy - self.xy
        near = np.linalg.norm(offset, axis=1) < np.where(small, _PEOPLE_REACH_M, _VEHICLE_REACH_M)
        if self.half_angle is None:
            return np.asarray(near)
        ahead = offset @ [np.cos(self.yaw), np.sin(self.yaw)]
        aside = np.abs(offset @ [-np.sin(self.yaw), np.cos(self.yaw)])
        inside = aside * np.cos(self.half_angle) - ahead * np.sin(self.half_angle) < _MARGIN_M
        return np.asarray(near & inside & (ahead > -_MARGIN_M))


@dataclass(frozen=True, kw_only=True)
class Hits(Columns):
    """First surface met by each ray.

    Attributes:
        distance: in lengths of the ray's direction; infinite where nothing was met.
        row: triangle, index into `StreetStage.surfaces`; -1 where nothing was met.
        uv: texture coordinates, tiles.
        normal: unit vector towards the ray's origin.
        cosine: of the angle of incidence, 0..1.
    """

    distance: Float32[np.ndarray, " n"]
    row: Int[np.ndarray, " n"]
    uv: Float32[np.ndarray, "n 2"]
    normal: Float32[np.ndarray, "n 3"]
    cosine: Float32[np.ndarray, " n"]


class StreetStage:
    """A world ready for ray casting.

    Attributes:
        surfaces: attributes of static, then moving triangles; corners of the moving ones are in their objects' frames.
        tiles_per_metre: texture scale of each triangle.
    """

    def __init__(self, world: StreetWorld) -> None:
        self.world = world
        self.surfaces: Mesh = merge([world.static, world.moving])
        self.tiles_per_metre = tiles_per_metre(self.surfaces.corners, self.surfaces.uvs).astype(np.float32)
        self._device = EmbreeDevice()
        self._static = EmbreeScene(self._device)
        TriangleMesh(self._static, world.static.corners)

    def at(self, time_s: float, viewer: Viewer) -> Moment:
        """The world at a time, seconds since the log's first sample, with the moving objects that concern a viewer."""
        world = self.world
        thing = world.moving.instances - 1  # row in `things` of each moving triangle
        positions, yaws = world.things.poses(time_s)
        near = viewer.concerns(positions[:, :2], np.isin(world.things.labels, _PEOPLE))
        rows = np.flatnonzero((near & world.things.present(time_s))[thing])
        thing = thing[rows]
        c, s = np.cos(yaws)[thing, None], np.sin(yaws)[thing, None]
        local = world.moving.corners[rows]
        corners = np.empty(local.shape, np.float32)
        x, y = local[..., 0], local[..., 1]
        corners[..., 0] = c * x - s * y + positions[thing, None, 0]
        corners[..., 1] = s * x + c * y + positions[thing, None, 1]
        corners[..., 2] = local[..., 2] + positions[thing, None, 2]
        moving = None
        if len(rows):
            moving = EmbreeScene(self._device)
            TriangleMesh(moving, corners)
        return Moment(self, self._static, moving, rows + len(world.static))


class Moment:
    """The world at one instant."""

    def __init__(
        self, stage: StreetStage, static: EmbreeScene, moving: EmbreeScene | None, moving_rows: Int[np.ndarray, " k"]
    ) -> None:
        self.stage = stage
        self._static = static
        self._moving = moving
        self._moving_rows = moving_rows

    def cast(self, origins: Float32[np.ndarray, "n 3"], directions: Float32[np.ndarray, "n 3"]) -> Hits:
        """First hits of rays in the world frame."""
        first = self._static.run(origins, directions, output=True)
        row = first["primID"].astype(np.int64)
        distance, bary_u, bary_v, normal = first["tfar"], first["u"], first["v"], first["Ng"]
        if self._moving is not None:
            other = self._moving.run(origins, directions, output=True)
            nearer = (other["primID"] >= 0) & ((other["tfar"] < distance) | (row < 0))
            row[nearer] = self._moving_rows[other["primID"][nearer]]
            distance[nearer], bary_u[nearer], bary_v[nearer] = (other[k][nearer] for k in ("tfar", "u", "v"))
            normal[nearer] = other["Ng"][nearer]
        distance[row < 0] = np.inf
        corners = self.stage.surfaces.uvs[row]
        weights = np.stack([1 - bary_u - bary_v, bary_u, bary_v], axis=1)
        uv = np.einsum("nk,nkd->nd", weights, corners)
        length = np.maximum(np.sqrt(np.einsum("nd,nd->n", normal, normal)), 1e-12)
        along = np.einsum("nd,nd->n", normal, directions)
        normal = normal * (np.where(along > 0, -1, 1) / length).astype(np.float32)[:, None]
        cosine = np.abs(along) / (length * np.sqrt(np.einsum("nd,nd->n", directions, directions)))
        return Hits(distance=distance, row=row, uv=uv, normal=normal, cosine=cosine)

    def occluded(
        self, origins: Float32[np.ndarray, "n 3"], directions: Float32[np.ndarray, "n 3"]
    ) -> Bool[np.ndarray, " n"]:
        """Whether anything lies ahead of each ray."""
        blocked = self._static.run(origins, directions, query="OCCLUDED") >= 0
        if self._moving is not None:
            free = np.flatnonzero(~blocked)
            blocked[free] = self._moving.run(origins[free], directions[free], query="OCCLUDED") >= 0
        return np.asarray(blocked)


def rays(
    T_world_sensor: Float[np.ndarray, "4 4"], directions: Float32[np.ndarray, "n 3"]
) -> tuple[Float32[np.ndarray, "n 3"], Float32[np.ndarray, "n 3"]]:
    """Origins and directions in the world frame of rays that leave a sensor's origin."""
    world = directions @ T_world_sensor[:3, :3].T.astype(np.float32)
    origins = np.broadcast_to(T_world_sensor[:3, 3].astype(np.float32), world.shape)
    return np.ascontiguousarray(origins), np.ascontiguousarray(world)
