"""What drivers and files call the fields of a point and what they mean by them: places, intensity, time, laser.

No standard fixes the names. A name says what a field is; the unit of a time follows from its type and size, and what
fits none is refused, with what was found: half of a sweep at a wrong time would be seen by nobody. docs/recordings.md
has the drivers' table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Shaped

from common.printable import listed
from data.convert.logs.base import Cloud
from data.geometry import transform
from data.storage.damage import DamagedError

Columns: TypeAlias = Mapping[str, Shaped[np.ndarray, " N"]]
"""Field -> its value of each point."""

INTENSITIES = ("reflectivity", "intensity")
"""The first that is there: Ouster's `intensity` is the raw signal without bound, its `reflectivity` is calibrated."""
TIMES = ("t", "time", "timestamp", "time_stamp", "offset_time")
RINGS = ("ring", "line", "channel")
USED = frozenset(("x", "y", "z", *INTENSITIES, *TIMES, *RINGS))
"""Fields that are read; points may have any others."""

_NANOSECONDS = ("t", "time_stamp", "offset_time")
"""Whole numbers of these names are nanoseconds after the stamp in every driver that has them, however few they are."""

_NS = 1_000_000_000
_LONGEST_S = 10
"""Points further from their cloud's stamp than this are on another clock."""
_MICRO_LEAST = 2e6
"""Whole numbers above this are nanoseconds: as microseconds they would be a sweep of 2 s."""
_ABSOLUTE = {"nanoseconds": 1, "microseconds": 1000, "seconds": _NS}
"""Unit of times on the stamp's own clock -> nanoseconds; so far apart that only one can be near the stamp."""
_LEAST_STAMP_NS = 100 * _NS
"""A clock that has run for less does not tell its own times from times after the stamp."""
_DRIVERS = (
    ("Livox", {"line"}),
    ("Ouster", {"t", "reflectivity"}),
    ("Autoware", {"time_stamp", "channel"}),
    ("Velodyne", {"time", "ring"}),
    ("Hesai or RoboSense", {"timestamp", "ring"}),
)
"""Driver -> the fields that it is known by; only for words."""


@dataclass(frozen=True, kw_only=True)
class PointLayout:
    """How the fields of a cloud were read.

    Attributes:
        driver: that writes such fields; "" for none of those known.
        intensity: field; "" where there is none.
        time: field; "" where there is none, or none that says anything.
        unit: of the time, in words.
        ring: field; "" where there is none.
    """

    driver: str
    intensity: str
    time: str
    unit: str
    ring: str

    def __str__(self) -> str:
        time = f"time from `{self.time}`: {self.unit}" if self.time else f"no time of points{self.unit}"
        intensity = f"intensity from `{self.intensity}`" if self.intensity else "no intensity"
        ring = f"laser from `{self.ring}`" if self.ring else "no number of lasers"
        return f"{f'as of {self.driver}: ' if self.driver else ''}{intensity}, {time}, {ring}"


def cloud_of(
    where: str,
    columns: Columns,
    *,
    stamp_ns: int,
    frame: str,
    times: bool = True,
    T_frame_points: Float[np.ndarray, "4 4"] | None = None,
) -> tuple[Cloud, PointLayout]:
    """A cloud of the fields of its points, and how they were read.

    Points are left out that are no measurement: a place, intensity or time that is not finite, or the sensor's own
    place (0, 0, 0), which stands for no return.

    Args:
        where: for messages.
        columns: fields of one number a point; others than `USED` are not looked at.
        stamp_ns: of the cloud.
        frame: of the cloud.
        times: whether times of points are read; without, `Cloud.time_ns` is None, whatever the fields say.
        T_frame_points: where the points' own frame is in `frame`; None: they are in it.

    Raises:
        DamagedError: a field is missing or of a type that it cannot have, or times fit no unit.
    """
    points = places_of(where, columns)
    measured: Bool[np.ndarray, " N"] = np.isfinite(points).all(axis=1) & (points != 0).any(axis=1)
    intensity_name, intensity = first_of(columns, INTENSITIES)
    if intensity is not None:
        measured &= np.isfinite(intensity)
    time_name, raw_times = first_of(columns, TIMES) if times else ("", None)
    if raw_times is not None:
        measured &= np.isfinite(raw_times)
    ring_name, ring = first_of(columns, RINGS)
    unit, time_ns = "", None
    if raw_times is not None:
        unit, time_ns = after_stamp(f"{where}: {time_name}", time_name, raw_times[measured], stamp_ns)
    points = points[measured]
    if T_frame_points is not None:
        points = transform(T_frame_points, points).astype(np.float32)
    cloud = Cloud(
        stamp_ns=stamp_ns,
        frame=frame,
        points=points,
        intensity=None if intensity is None else intensity[measured].astype(np.float32),
        time_ns=time_ns,
        ring=None if ring is None else _numbers(f"{where}: {ring_name}", ring[measured]),
        left_out=int(measured.size - measured.sum()),
    )
    driver = next((name for name, fields in _DRIVERS if fields <= set(columns)), "")
    layout = PointLayout(
        driver=driver,
        intensity=intensity_name,
        time=time_name if time_ns is not None else "",
        unit=unit,
        ring=ring_name,
    )
    return cloud, layout


def places_of(where: str, columns: Columns) -> Float32[np.ndarray, "N 3"]:
    """x, y, z of all points, also of those that are no measurement.

    Raises:
        DamagedError: one is missing, or a whole number.
    """
    missing = [axis for axis in "xyz" if axis not in columns]
    if missing:
        raise DamagedError("array-broken", f"{where} has no field {missing[0]}; it has {listed(list(columns), 12)}")
    for axis in "xyz":
        if columns[axis].dtype.kind != "f":
            detail = f"{where}: {axis} is {columns[axis].dtype}, whose unit nobody says"
            raise DamagedError("array-broken", f"{detail}; expected metres as float32 or float64")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.stack([columns[axis].astype(np.float32) for axis in "xyz"], axis=1)


def first_of(columns: Columns, names: tuple[str, ...]) -> tuple[str, Shaped[np.ndarray, " N"] | None]:
    """The first field that is there, and its values."""
    return next(((name, columns[name]) for name in names if name in columns), ("", None))


def _numbers(where: str, values: Shaped[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Numbers of lasers; some converters store them as floats."""
    if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
        raise DamagedError("array-broken", f"{where} holds {values.dtype} that are no whole numbers")
    return values.astype(np.int64)


def after_stamp(
    where: str, name: str, values: Shaped[np.ndarray, " N"], stamp_ns: int
) -> tuple[str, Int[np.ndarray, " N"] | None]:
    """Times of points: their unit in words, and nanoseconds after the stamp.

    None where all points say the same, which says nothing.

    Args:
        where: for messages.
        name: of the field.
        values: of each point, finite.
        stamp_ns: of the cloud.

    Raises:
        DamagedError: they fit no unit.
    """
    if values.size == 0:
        return "", np.empty(0, np.int64)
    if values.size > 1 and values.min() == values.max():
        return f" (`{name}` is {values[0]} everywhere)", None
    most = float(np.abs(values.astype(np.float64)).max())
    for unit, scale_ns in _ABSOLUTE.items():
        if stamp_ns > _LEAST_STAMP_NS and abs(most * scale_ns - stamp_ns) <= _LONGEST_S * _NS:
            return f"{unit} of the stamp's clock", _since_stamp(values, scale_ns, stamp_ns)
    floating = values.dtype.kind == "f"
    if floating and most < _LONGEST_S:
        return "seconds after the stamp", np.rint(values.astype(np.float64) * _NS).astype(np.int64)
    if not floating and most < _LONGEST_S * _NS and (name in _NANOSECONDS or most > _MICRO_LEAST):
        return "nanoseconds after the stamp", values.astype(np.int64)
    raise DamagedError(
        "array-broken", f"{where} holds {values.dtype} up to {most:.10g}, the stamp is {stamp_ns} ns; {_EXPECTED}"
    )


def _since_stamp(values: Shaped[np.ndarray, " N"], scale_ns: int, stamp_ns: int) -> Int[np.ndarray, " N"]:
    if values.dtype.kind != "f":
        return values.astype(np.int64) * scale_ns - stamp_ns
    whole = np.floor(values)  # apart from the rest, which would lose its digits
    rest = np.rint((values - whole) * scale_ns).astype(np.int64)
    return np.asarray(whole.astype(np.int64) * scale_ns - stamp_ns + rest)


_EXPECTED = (
    f"expected seconds (below {_LONGEST_S}) or nanoseconds (whole numbers) after the stamp, or a time that is within "
    f"{_LONGEST_S} s of it in seconds, micro- or nanoseconds; with a clock of its own, or in another unit, the points "
    "can only be read without their times"
)
