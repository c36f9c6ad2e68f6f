"""Where the sensors of two sets differ by more than networks are known to take, and which settings would help.

Each comparison has one threshold, stated in LIMITS. They are rules of thumb, no measured borders of what networks bear.
Two recordings with one scanner, KITTI's drives and a SemanticKITTI sequence, stay within all of them but the density by
range, which also tells streets apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from configs.runs import RunConfig
from data.views.voxelize import MEASURED
from launchers.fitting.sensors import Sensors

LIMITS = {
    "points": 1.5,
    "rings": 2.0,
    "lines": 1.4,
    "range": 1.4,
    "elevation": 5.0,
    "width": 45.0,
    "ground": 0.3,
    "intensity": 0.1,
    "voxels": 1.5,
    "fill": 1.3,
    "outside": 0.1,
    "rate": 1.5,
    "focal": 1.3,
}
"""Comparison -> the most that two sets may differ: a factor, degrees (elevation, width), metres (ground), the mean
distance that intensities would have to be moved (intensity), or a share of points (outside)."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One comparison.

    Attributes:
        name: what was compared.
        trained: in the run's set, in words.
        other: in the other set.
        differs: by how much, in words.
        limit: what may be, in words.
        beyond: whether it is more than that.
        advice: settings that would help, () where nothing is beyond.
    """

    name: str
    trained: str
    other: str
    differs: str
    limit: str
    beyond: bool
    advice: tuple[str, ...] = ()


def compared(trained: Sensors, other: Sensors, config: RunConfig) -> list[Difference]:
    """All comparisons, in the order in which they are read: the scanner, then what the network sees of it, cameras."""
    found = [
        _points(trained, other),
        _rings(trained, other),
        _lines(trained, other),
        _range(trained, other),
        _elevation(trained, other),
        _width(trained, other),
        _ground(trained, other, config),
        _intensity(trained, other, config),
        *_voxels(trained, other, config),
        _outside(trained, other, config),
        *_fields(other, config),
        _rate(trained, other),
    ]
    return [*found, *_cameras(trained, other, config)]


# ---- the scanner


def _points(trained: Sensors, other: Sensors) -> Difference:
    return _factor("points", "points a sweep", trained.points, other.points, "{:,.0f}", _thinning(trained, other))


def _thinning(trained: Sensors, other: Sensors) -> tuple[str, ...]:
    """What makes a network used to other densities."""
    ratio = other.points / trained.points
    if ratio < 1:
        return (
            f"pre-train with data.augment.points.keep_share=[{_down(ratio)},1]: it thins sweeps of "
            f"{trained.set_name} down to the density here",
        )
    return (
        f"train on {other.set_name} with data.augment.points.keep_share=[{_down(1 / ratio)},1]: it thins its sweeps "
        "down to those that the weights know",
    )


def _rings(trained: Sensors, other: Sensors) -> Difference:
    """Shares of points by distance, the ring that differs most among those with a fiftieth of the points."""
    one, two = (np.array(sensors.rings) / max(sum(sensors.rings), 1.0) for sensors in (trained, other))
    counts = np.maximum(one, two) >= 0.02
    factor = np.where(counts, np.maximum(one, 1e-4) / np.maximum(two, 1e-4), 1.0)
    ring = int(np.argmax(np.abs(np.log(factor))))
    where = ring_name(ring)
    most, limit = max(factor[ring], 1 / factor[ring]), LIMITS["rings"]
    return Difference(
        name="density by range",
        trained=f"{one[ring]:.1%} {where}",
        other=f"{two[ring]:.1%} {where}",
        differs=f"x {most:.2f}",
        limit=f"x {limit:g} in any ring",
        beyond=bool(most > limit),
        advice=(
            "data.augment.points.scale_range=[0.8,1.25] in training moves objects nearer and farther; "
            "data.voxel.range_max leaves out what only one of the sets reaches",
        ),
    )


def ring_name(ring: int) -> str:
    """The place of a ring, in words."""
    from launchers.fitting.sensors import RING_EDGES_M

    low = RING_EDGES_M[ring]
    return f"beyond {low:g} m" if ring + 1 == len(RING_EDGES_M) else f"at {low:g} to {RING_EDGES_M[ring + 1]:g} m"


def _lines(trained: Sensors, other: Sensors) -> Difference:
    return _factor("lines", "lines above each other", trained.lines, other.lines, "{:.0f}", _thinning(trained, other))


def _range(trained: Sensors, other: Sensors) -> Difference:
    nearer = min(trained.range_m, other.range_m)
    advice = f"data.voxel.range_min and data.voxel.range_max that end at {nearer:.0f} m keep to what both sets reach"
    return _factor("range", "range of 99 % of points", trained.range_m, other.range_m, "{:.0f} m", (advice,))


def _elevation(trained: Sensors, other: Sensors) -> Difference:
    ends = [(trained.lowest_deg, other.lowest_deg), (trained.highest_deg, other.highest_deg)]
    most, limit = max(abs(one - two) for one, two in ends), LIMITS["elevation"]
    return _told(
        "vertical field of view",
        lambda sensors: f"{sensors.lowest_deg:+.1f} to {sensors.highest_deg:+.1f} deg",
        (trained, other),
        differs=f"{most:.1f} deg",
        limit=f"{limit:g} deg",
        beyond=bool(most > limit),
        advice=("the z limits of data.voxel.range_min and data.voxel.range_max cut both to the same heights",),
    )


def _width(trained: Sensors, other: Sensors) -> Difference:
    most, limit = abs(trained.width_deg - other.width_deg), LIMITS["width"]
    return _told(
        "horizontal field of view",
        lambda sensors: f"{sensors.width_deg:.0f} deg",
        (trained, other),
        differs=f"{most:.0f} deg",
        limit=f"{limit:g} deg",
        beyond=bool(most > limit),
        advice=(
            "data.augment.points.max_rotation_rad: the whole circle only where the scanner sees it; "
            "data.cut_to_cameras=true keeps what cameras see",
        ),
    )


def _ground(trained: Sensors, other: Sensors, config: RunConfig) -> Difference:
    limit = LIMITS["ground"]
    lower = other.ground_m - trained.ground_m
    known = math.isfinite(lower)
    seen = config.data.voxel.features.startswith("xyz")
    advice = [f"data.augment.points.translate_m=[0,0,{abs(lower):.1f}] in training makes the height count for nothing"]
    if not seen:
        advice[0] += f" (data.voxel.features={config.data.voxel.features} feeds no height: only limits see it)"
    voxel = config.data.voxel
    if known and voxel.range_min is not None and voxel.range_max is not None:
        low, high = (
            tuple(round(v, 2) for v in (*edge[:2], edge[2] + lower)) for edge in (voxel.range_min, voxel.range_max)
        )
        advice.append(
            f"the same slice above the road: data.voxel.range_min={_listed(low)} data.voxel.range_max={_listed(high)}"
        )
    return _told(
        "height of the ground",
        lambda sensors: f"{sensors.ground_m:+.2f} m" if math.isfinite(sensors.ground_m) else "none found",
        (trained, other),
        differs=f"{abs(lower):.2f} m" if known else "not known",
        limit=f"{limit:g} m",
        beyond=bool(known and abs(lower) > limit),
        advice=tuple(advice),
    )


def _intensity(trained: Sensors, other: Sensors, config: RunConfig) -> Difference:
    """Earth mover's distance of the histograms."""
    one, two = np.cumsum(trained.intensities), np.cumsum(other.intensities)
    distance, limit = float(np.abs(one - two).mean()), LIMITS["intensity"]
    features = config.data.voxel.features
    advice = [
        "is the scale right? `tandem prepare` states it for published sets; of your own it is intensity_max in "
        "calibration.json (docs/custom_data.md)"
    ]
    if features == "occupancy":
        advice = ["none is needed: data.voxel.features=occupancy feeds no intensity"]
    else:
        advice.append("train with data.voxel.features=occupancy, which feeds no intensity")
    return _told(
        "intensity",
        lambda sensors: f"mean {_mean(sensors):.2f}, {sensors.intensities[0]:.0%} under 0.05",
        (trained, other),
        differs=f"{distance:.2f}",
        limit=f"{limit:g}",
        beyond=distance > limit and features != "occupancy",
        advice=tuple(advice),
    )


def _mean(sensors: Sensors) -> float:
    centres = (np.arange(len(sensors.intensities)) + 0.5) / len(sensors.intensities)
    return float((centres * np.array(sensors.intensities)).sum())


# ---- what the network sees


def _voxels(trained: Sensors, other: Sensors, config: RunConfig) -> Iterator[Difference]:
    size = config.data.voxel.size
    yield _factor("voxels", f"voxels a sweep at {_listed(size)}", trained.voxels, other.voxels, "{:,.0f}", ())
    factor = trained.points_per_voxel / other.points_per_voxel
    # Returns lie on surfaces: cells of twice the length have about four times the points.
    suited = tuple(float(f"{edge * min(max(math.sqrt(factor), 0.5), 2.0):.2g}") for edge in size)
    advice = (
        f"for weights that are trained anew on {other.set_name}: data.voxel.size={_listed(suited)} fills voxels as here"
    )
    yield _factor("fill", "points in a voxel", trained.points_per_voxel, other.points_per_voxel, "{:.2f}", (advice,))


def _outside(trained: Sensors, other: Sensors, config: RunConfig) -> Difference:
    more, limit = other.outside - trained.outside, LIMITS["outside"]
    return _told(
        "points beyond data.voxel's limits",
        lambda sensors: f"{sensors.outside:.1%}",
        (trained, other),
        differs=f"{more:+.1%}",
        limit=f"{limit:+.0%}",
        beyond=more > limit,
        advice=("data.voxel.range_min and data.voxel.range_max: move or widen them, as far as the network allows",),
    )


def _fields(other: Sensors, config: RunConfig) -> Iterator[Difference]:
    """What the run's features need beside position and intensity."""
    needed = MEASURED.get(config.data.voxel.features)
    if needed is not None:
        there = needed in other.fields
        yield Difference(
            name=f"{needed} of points",
            trained="fed",
            other="recorded" if there else "not recorded",
            differs="" if there else "missing",
            limit="needed",
            beyond=not there,
            advice=(
                f"the weights cannot be used on this set as they are: train with data.voxel.features=xyz_intensity, or "
                f"prepare {other.set_name} with {needed}",
            ),
        )


def _rate(trained: Sensors, other: Sensors) -> Difference:
    one, two = trained.rate_hz, other.rate_hz
    if one is None or two is None:
        return _told(
            "samples a second",
            lambda sensors: "single samples" if sensors.rate_hz is None else f"{sensors.rate_hz:.1f} Hz",
            (trained, other),
            differs="not known",
            limit=f"x {LIMITS['rate']:g}",
            beyond=False,
        )
    advice = "only methods that compare sweeps of different times see it; prepare with another distance between frames"
    return _factor("rate", "samples a second", one, two, "{:.1f} Hz", (advice,))


# ---- cameras


def _cameras(trained: Sensors, other: Sensors, config: RunConfig) -> Iterator[Difference]:
    yield _told(
        "cameras",
        _names,
        (trained, other),
        differs=f"{len(other.cameras) - len(trained.cameras):+d}",
        beyond=bool(trained.cameras) and not other.cameras,
        advice=("without images only methods of points alone can train on this set (docs/methods.md)",),
    )
    if not trained.cameras or not other.cameras:
        return
    one, two = trained.cameras[0], other.cameras[0]
    size = config.data.image_size
    # Of the images as the network gets them, which are brought to one size.
    before, here = (camera.focal_px * size[1] / camera.image_size[1] for camera in (one, two))
    width = two.image_size[1] * before / two.focal_px
    height = two.image_size[0] * width / two.image_size[1]
    suited = tuple(max(32, 32 * round(side / 32)) for side in (height, width))
    advice = (
        f"data.image_size={_listed(suited)} shows objects of {other.set_name} as large as those of {trained.set_name}, "
        "in its own proportions"
    )
    yield _factor("focal", f"focal length at data.image_size={_listed(size)}", before, here, "{:.0f} px", (advice,))
    yield _told("first camera", _camera, (trained, other), differs=f"{two.width_deg - one.width_deg:+.0f} deg")


def _camera(sensors: Sensors) -> str:
    camera = sensors.cameras[0]
    height, width = camera.image_size
    rate = "" if camera.rate_hz is None else f", {camera.rate_hz:.1f} Hz"
    return f"{width} x {height} px, f {camera.focal_px:.0f} px, {camera.width_deg:.0f} deg wide{rate}"


def _names(sensors: Sensors) -> str:
    return f"{len(sensors.cameras)}: {', '.join(c.name for c in sensors.cameras)}" if sensors.cameras else "none"


# ---- words


def _told(
    name: str,
    column: Callable[[Sensors], str],
    sensors: tuple[Sensors, Sensors],
    *,
    differs: str,
    limit: str = "",
    beyond: bool = False,
    advice: tuple[str, ...] = (),
) -> Difference:
    """A comparison of the run's sensors and the other ones, each told by `column`."""
    trained, other = map(column, sensors)
    return Difference(
        name=name, trained=trained, other=other, differs=differs, limit=limit, beyond=beyond, advice=advice
    )


def _factor(limit_name: str, name: str, one: float, two: float, form: str, advice: tuple[str, ...]) -> Difference:
    factor, limit = two / one if one else math.inf, LIMITS[limit_name]
    return Difference(
        name=name,
        trained=form.format(one),
        other=form.format(two),
        differs=f"x {factor:.2f}",
        limit=f"x {limit:g}",
        beyond=not 1 / limit <= factor <= limit,
        advice=advice,
    )


def _down(value: float) -> float:
    """Rounded down to twentieths, at least one."""
    return max(math.floor(value * 20) / 20, 0.05)


def _listed(values: Sequence[int | float]) -> str:
    """As a setting is written on the command line."""
    return "[" + ",".join(f"{value:g}" for value in values) + "]"
