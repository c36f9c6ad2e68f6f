"""The road: its curve, its cross-section and the ground mesh.

Positions along the street are given as (s, t): metres along the curve, metres to the left of it. The cross-section is a
row of strips (lanes, marks, parking, sidewalk, terrain); a crossing cuts through it as two more rows of zones along s.
All ground kinds are nearly coplanar, with kerbs of a few centimetres, and their order beside the road varies between
worlds: which one a point lies on is hard to tell from geometry and easy to see.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data.street.classes import Label
from data.street.layers import Layer
from data.street.mesh import Mesh, MeshBuilder

GROUND_HALF_WIDTH_M = 70.0
_STEP_M = 2.5
_MARK_M = 0.15


@dataclass(frozen=True)
class StreetCurve:
    """A smooth curve in the world's ground plane, sampled densely."""

    s: Float[np.ndarray, " n"]
    xy: Float[np.ndarray, "n 2"]
    yaw: Float[np.ndarray, " n"]

    def yaw_at(self, s: Float[np.ndarray, "*k"]) -> Float[np.ndarray, "*k"]:
        """Heading of the curve."""
        return np.asarray(np.interp(s, self.s, self.yaw))

    def position(self, s: Float[np.ndarray, "*k"], t: Float[np.ndarray, "*k"]) -> Float[np.ndarray, "*k 2"]:
        """World x, y of street coordinates."""
        x, y = np.interp(s, self.s, self.xy[:, 0]), np.interp(s, self.s, self.xy[:, 1])
        yaw = self.yaw_at(s)
        return np.stack([x - t * np.sin(yaw), y + t * np.cos(yaw)], axis=-1)


def draw_curve(rng: np.random.Generator, start_m: float, end_m: float) -> StreetCurve:
    """A straight road, a bend or an S, of radius 95 m at least so that the ground does not fold over itself."""
    s = np.arange(start_m - 5, end_m + 5, 0.25)
    kind = rng.random()
    if kind < 0.35:
        curvature = np.zeros_like(s)
    else:
        peak = rng.uniform(1 / 250, 1 / 95) * rng.choice([-1, 1])
        period = rng.uniform(120, 220) if kind > 0.7 else 1e4  # an S, or one bend: curvature hardly changes over 1e4 m
        curvature = peak * np.cos(2 * np.pi * s / period + rng.uniform(-0.8, 0.8))
    yaw = np.cumsum(curvature) * 0.25 + rng.uniform(-np.pi, np.pi)
    xy = np.cumsum(0.25 * np.stack([np.cos(yaw), np.sin(yaw)], axis=-1), axis=0)
    # The origin of the world lies at s = 0, which keeps single-precision coordinates accurate.
    origin = np.array([np.interp(0.0, s, xy[:, 0]), np.interp(0.0, s, xy[:, 1])])
    return StreetCurve(s, xy - origin, yaw)


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One strip of the cross-section, t0 < t1, at height z."""

    label: Label
    layer: Layer
    t0: float
    t1: float
    z: float
    tile_m: tuple[float, float]

    @property
    def width(self) -> float:
        """Metres across."""
        return self.t1 - self.t0


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """A road across, centred at s, and the width of the sidewalks along it."""

    s: float
    half_width_m: float
    sidewalk_m: float
    zebra: bool

    def holds(self, s: float, margin_m: float = 0.0) -> bool:
        """Whether s lies on the crossing road or its sidewalks."""
        return bool(abs(s - self.s) < self.half_width_m + self.sidewalk_m + margin_m)


@dataclass(frozen=True, kw_only=True)
class Street:
    """StreetCurve, cross-section from right (negative t) to left, lanes and crossing of a world."""

    curve: StreetCurve
    strips: tuple[Strip, ...]
    half_road_m: float
    lanes: tuple[tuple[float, int], ...]
    """Centre t and direction (+1 or -1 along s) of each lane; the first is the ego's."""
    crossing: Crossing | None
    start_m: float
    end_m: float

    def bands(self, side: int) -> list[Strip]:
        """Parking, sidewalk and terrain of one side (+1 left, -1 right), from the road outwards."""
        edge = self.half_road_m - 1e-6
        bands = [x for x in self.strips if (x.t0 >= edge if side > 0 else -x.t1 >= edge)]
        return sorted(bands, key=lambda x: abs(x.t0 + x.t1))

    def height(self, t: float) -> float:
        """Ground height off the crossing."""
        return next((x.z for x in self.strips if x.t0 <= t <= x.t1), 0.0)

    def blocked(self, s: float, margin_m: float = 0.0) -> bool:
        """Whether the crossing is at s."""
        return self.crossing is not None and self.crossing.holds(s, margin_m)


_ORDERS: tuple[tuple[tuple[Label, ...], float], ...] = (
    ((Label.PARKING, Label.SIDEWALK), 0.28),
    ((Label.SIDEWALK, Label.PARKING), 0.12),
    ((Label.PARKING, Label.TERRAIN, Label.SIDEWALK), 0.14),
    ((Label.TERRAIN, Label.SIDEWALK), 0.14),
    ((Label.SIDEWALK, Label.TERRAIN, Label.PARKING), 0.1),
    ((Label.TERRAIN, Label.PARKING, Label.SIDEWALK), 0.1),
    ((Label.SIDEWALK,), 0.12),
)
_WIDTHS_M = {Label.PARKING: (2.3, 5.2), Label.SIDEWALK: (1.8, 4.2), Label.TERRAIN: (1.2, 4.0)}


def _side_strips(rng: np.random.Generator, side: int, start_t: float, order: tuple[Label, ...]) -> list[Strip]:
    kerb = rng.uniform(0.0, 0.09)
    t = start_t
    strips: list[Strip] = []
    parking = Layer.PARKING_LEFT if side > 0 else Layer.PARKING_RIGHT
    layers = {Label.PARKING: parking, Label.SIDEWALK: Layer.SIDEWALK, Label.TERRAIN: Layer.TERRAIN}
    slab_m = rng.uniform(1.8, 2.6)
    for label in (*order, Label.TERRAIN):
        last = len(strips) == len(order)
        width = GROUND_HALF_WIDTH_M - t if last else rng.uniform(*_WIDTHS_M[label])
        # Parking mostly lies at road level next to the road, the others behind the kerb.
        low = label is Label.PARKING and not strips
        z = rng.uniform(0.0, 0.02) if low else kerb + rng.uniform(-0.02, 0.03)
        stall_m = 2.6 if width > 4.2 else 5.8
        tile = {Label.PARKING: (stall_m, width), Label.SIDEWALK: (slab_m, slab_m), Label.TERRAIN: (4.5, 4.5)}[label]
        t0, t1 = (t, t + width) if side > 0 else (-t - width, -t)
        strips.append(Strip(label=label, layer=layers[label], t0=t0, t1=t1, z=max(z, 0.0), tile_m=tile))
        t += width
    return strips


def _road_strips(rng: np.random.Generator, lane_m: float, lanes: int, half_m: float) -> list[Strip]:
    """Asphalt with marks at the edges and between the lanes, of which each direction has the same number."""
    marks = [(-half_m + 0.25, Layer.LINE_SOLID), (half_m - 0.25 - _MARK_M, Layer.LINE_SOLID)]
    for i in range(1, 2 * lanes):
        centre = i == lanes
        layer = Layer.LINE_SOLID if centre and rng.random() < 0.35 else Layer.LINE_DASHED
        marks.append((-lanes * lane_m + i * lane_m - _MARK_M / 2, layer))
    if rng.random() < 0.25:
        marks = marks[2:]
    asphalt = (6.0, 6.0)
    t, strips = -half_m, []
    for mark_t, layer in sorted(marks):
        strips.append(Strip(label=Label.ROAD, layer=Layer.ASPHALT, t0=t, t1=mark_t, z=0.0, tile_m=asphalt))
        end = mark_t + _MARK_M
        strips.append(Strip(label=Label.ROAD, layer=layer, t0=mark_t, t1=end, z=0.0, tile_m=(7.5, 1.0)))
        t = end
    strips.append(Strip(label=Label.ROAD, layer=Layer.ASPHALT, t0=t, t1=half_m, z=0.0, tile_m=asphalt))
    return strips


def draw_street(rng: np.random.Generator, start_m: float, end_m: float) -> Street:
    """Draw a world's road from `start_m` to `end_m`."""
    curve = draw_curve(rng, start_m, end_m)
    lane_m = rng.uniform(3.0, 3.7)
    each = 2 if rng.random() < 0.3 else 1
    half = each * lane_m + rng.uniform(0.3, 1.0)
    weights = np.array([weight for _, weight in _ORDERS])
    picks = rng.choice(len(_ORDERS), size=2, p=weights / weights.sum())
    orders = [_ORDERS[pick][0] for pick in picks]
    # Every world has parking on one side at least.
    if not any(Label.PARKING in order for order in orders):
        orders[int(rng.integers(2))] = _ORDERS[int(rng.integers(4)) if rng.random() < 0.2 else 0][0]
    if not any(Label.PARKING in order for order in orders):
        orders[0] = _ORDERS[0][0]
    strips = _side_strips(rng, -1, half, orders[0])[::-1]
    strips += _road_strips(rng, lane_m, each, half) + _side_strips(rng, 1, half, orders[1])
    # Traffic keeps right: lanes with negative t run along s. The first is the ego's.
    right = [((-i - 0.5) * lane_m, 1) for i in range(each)]
    lanes = [*right[::-1], *((-t, -1) for t, _ in right)]
    crossing = None
    if rng.random() < 0.6:
        s, half_width, sidewalk = rng.uniform(12, 60), rng.uniform(3.2, 5.0), rng.uniform(1.5, 3.0)
        crossing = Crossing(s=s, half_width_m=half_width, sidewalk_m=sidewalk, zebra=bool(rng.random() < 0.7))
    return Street(
        curve=curve,
        strips=tuple(strips),
        half_road_m=half,
        lanes=tuple(lanes),
        crossing=crossing,
        start_m=start_m,
        end_m=end_m,
    )


def _zones(street: Street) -> list[tuple[str, float, float]]:
    """Stretches of s, from and to, with one rule each for the cross-section."""
    c = street.crossing
    if c is None:
        return [("street", street.start_m, street.end_m)]
    walk, road, zebra = c.half_width_m + c.sidewalk_m, c.half_width_m, 3.5 if c.zebra else 0.0
    edges = [
        (street.start_m, "street"),
        (c.s - walk - zebra, "zebra"),
        (c.s - walk, "walk"),
        (c.s - road, "crossing"),
        (c.s + road, "walk"),
        (c.s + walk, "street"),
        (street.end_m, ""),
    ]
    return [(kind, s0, s1) for (s0, kind), (s1, _) in itertools.pairwise(edges) if s1 > s0]


def _in_zone(strip: Strip, kind: str, street: Street) -> Strip:
    """The strip as the zone changes it."""
    on_road = max(abs(strip.t0), abs(strip.t1)) <= street.half_road_m + 1e-6
    fields = {"t0": strip.t0, "t1": strip.t1}
    if kind == "crossing" or (kind == "walk" and on_road):
        return Strip(label=Label.ROAD, layer=Layer.ASPHALT, z=0.0, tile_m=(6.0, 6.0), **fields)
    if kind == "zebra" and on_road:
        return Strip(label=Label.ROAD, layer=Layer.ZEBRA, z=0.0, tile_m=(4.0, 1.1), **fields)
    if kind == "walk":
        side = 1 if strip.t0 > 0 else -1
        walk = next(x for x in street.bands(side) if x.label is Label.SIDEWALK)
        return Strip(label=Label.SIDEWALK, layer=Layer.SIDEWALK, z=walk.z, tile_m=walk.tile_m, **fields)
    return strip


def _along(curve: StreetCurve, s: Float[np.ndarray, " n"], t: float, z: float) -> Float[np.ndarray, "n 3"]:
    xy = curve.position(s, np.full_like(s, t))
    return np.concatenate([xy, np.full((len(s), 1), z)], axis=1)


def _surface(builder: MeshBuilder, curve: StreetCurve, s: Float[np.ndarray, " n"], strip: Strip) -> None:
    # Wide strips are split across too, so that triangles stay compact.
    edges = np.linspace(strip.t0, strip.t1, 1 + int(np.ceil(strip.width / 15)))
    for t0, t1 in itertools.pairwise(edges):
        right, left = _along(curve, s, t0, strip.z), _along(curve, s, t1, strip.z)
        u = s / strip.tile_m[0]
        # Parking and marks start their tile at the strip's edge, the others run on in street coordinates.
        origin = strip.t0 if strip.label is Label.PARKING else 0.0
        v0, v1 = (t0 - origin) / strip.tile_m[1], (t1 - origin) / strip.tile_m[1]
        uvs = np.stack([np.stack([u, np.full_like(u, v0)], -1), np.stack([u, np.full_like(u, v1)], -1)])
        corners = np.stack([right[:-1], right[1:], left[1:], left[:-1]], axis=1)
        quads_uv = np.stack([uvs[0, :-1], uvs[0, 1:], uvs[1, 1:], uvs[1, :-1]], axis=1)
        builder.quads(corners, strip.layer, uvs=quads_uv, label=strip.label)


def _kerb_along(builder: MeshBuilder, curve: StreetCurve, s: Float[np.ndarray, " n"], low: Strip, high: Strip) -> None:
    bottom, top = _along(curve, s, low.t1, low.z), _along(curve, s, low.t1, high.z)
    corners = np.stack([bottom[:-1], bottom[1:], top[1:], top[:-1]], axis=1)
    upper = low if low.z > high.z else high
    builder.quads(corners, Layer.KERB, label=upper.label)


def _kerb_across(builder: MeshBuilder, curve: StreetCurve, s: float, before: Strip, after: Strip) -> None:
    ends = np.array([before.t0, before.t1])
    xy = curve.position(np.full(2, s), ends)
    low, high = np.column_stack([xy, np.full(2, before.z)]), np.column_stack([xy, np.full(2, after.z)])
    upper = before if before.z > after.z else after
    builder.quads(np.stack([low[0], low[1], high[1], high[0]])[None], Layer.KERB, label=upper.label)


def ground_mesh(street: Street, rng: np.random.Generator) -> Mesh:
    """Ground triangles of the street; reflectivities of all kinds come from one distribution.

    The overlap is on purpose: intensity must not give away what only the images show.
    """
    merged = MeshBuilder(Label.ROAD)
    reflectivity = {layer: float(rng.uniform(0.15, 0.45)) for layer in sorted({x.layer for x in street.strips})}
    marks = (Layer.LINE_DASHED, Layer.LINE_SOLID, Layer.ZEBRA)
    reflectivity |= dict.fromkeys(marks, reflectivity[Layer.ASPHALT])
    previous: list[Strip] | None = None
    for kind, s0, s1 in _zones(street):
        s = np.linspace(s0, s1, 1 + int(np.ceil((s1 - s0) / _STEP_M)))
        strips = [_in_zone(strip, kind, street) for strip in street.strips]
        for i, strip in enumerate(strips):
            builder = MeshBuilder(strip.label, reflectivity=reflectivity[strip.layer])
            _surface(builder, street.curve, s, strip)
            if i + 1 < len(strips) and abs(strips[i + 1].z - strip.z) > 1e-6:
                _kerb_along(builder, street.curve, s, strip, strips[i + 1])
            if previous is not None and abs(previous[i].z - strip.z) > 1e-6:
                _kerb_across(builder, street.curve, s0, previous[i], strip)
            merged.add(builder.build())
        previous = strips
    return merged.build()
