"""`pcd`: logs in the plain layout of docs/custom_data.md whose sweeps are files of points (docs/recordings.md).

::

    SRC/<log>/calibration.json, poses.csv, cameras/, labels/, boxes/     as of `custom`
    SRC/<log>/lidar/<timestamp_us>.pcd | .las | .laz                     fields by their names
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from common.printable import listed
from common.ranges import expect
from data.convert.custom.converter import LogFolders
from data.convert.custom.formats import READ_COLUMNS, Sweep, has_return
from data.convert.las_file import read_las
from data.convert.logs.motion import moved
from data.convert.logs.point_fields import INTENSITIES, TIMES, Columns, after_stamp, first_of, places_of
from data.convert.pcd_file import PcdCloud, read_pcd
from data.geometry import transform
from data.storage.damage import DamagedError

_VIEWPOINTS = ("", "sensor", "cloud")
_LONGEST_S = 2.0
"""A sweep's points are measured within it; else their time has another unit."""
NONE = "none"
"""Of the setting `intensity`."""


@dataclass(frozen=True, kw_only=True)
class PcdConverter(LogFolders):
    """Settings and reader of logs with .pcd, .las or .laz files.

    Attributes:
        intensity: field of the return's strength; "" for `reflectivity` or `intensity`, whichever is there; "none" for
            files without one.
        viewpoint: for files whose VIEWPOINT is not the origin. "sensor": their points are as seen from the sensor, and
            it is not needed; "cloud": they are in a frame of which it is the sensor's place, and are moved into the
            sensor's. "": such files are refused.
        keep_times: keep the time of each point before the sweep's.
        deskew: move each point by the vehicle's motion between its own time and the sweep's.
    """

    intensity: str = ""
    viewpoint: str = ""
    keep_times: bool = False
    deskew: bool = False

    set_name: ClassVar[str] = "pcd"
    sweep_endings: ClassVar[tuple[str, ...]] = (".pcd", ".las", ".laz")

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self, "viewpoint", self.viewpoint in _VIEWPOINTS, "sensor or cloud, or nothing")

    def read_sweep(self, path: Path, time_us: int, T_to_sweep: Callable[[int], Float[np.ndarray, "4 4"]]) -> Sweep:
        """The points of a file; see `LogFolders.read_sweep`."""
        cloud = read_pcd(path) if path.suffix == ".pcd" else PcdCloud(columns=read_las(path), T_cloud_sensor=None)
        rows = np.zeros((len(next(iter(cloud.columns.values()), ())), len(READ_COLUMNS)), dtype=np.float32)
        rows[:, :3] = self._seen(path, places_of(str(path), cloud.columns), cloud)
        names = ["x", "y", "z"]
        intensity = self._intensity(path, cloud.columns)
        if intensity is not None:
            names.append("intensity")
            rows[:, 3] = intensity
        if self.keep_times or self.deskew:
            after_ns, known = self._times(path, cloud.columns, time_us)
            rows[~known, 0] = np.nan  # no measurement, as custom's rows of numbers that are not finite
            if self.deskew:
                seen = has_return(rows)

                def T_at(at_ns: int) -> Float[np.ndarray, "4 4"]:  # noqa: N802
                    return T_to_sweep(time_us + round(at_ns / 1000))

                rows[seen, :3] = moved(rows[seen, :3], after_ns[seen], T_at, str(path))
            else:
                names.append("time_s")
                rows[:, 4] = -after_ns / 1e9
        return Sweep(rows=rows, names=tuple(names))

    def _seen(self, path: Path, points: Float32[np.ndarray, "N 3"], cloud: PcdCloud) -> Float32[np.ndarray, "N 3"]:
        """Points in the sensor's frame."""
        T = cloud.T_cloud_sensor
        if T is None or self.viewpoint == "sensor":
            return points
        if not self.viewpoint:
            detail = f"{path}: VIEWPOINT is a sensor at {np.round(T[:3, 3], 3).tolist()}"
            remedy = (
                "viewpoint=sensor if points are as seen from the sensor, viewpoint=cloud if it stands there among them"
            )
            raise DamagedError("meta-broken", f"{detail}, turned or moved: {remedy}")
        return transform(np.linalg.inv(T), points).astype(np.float32)

    def _intensity(self, path: Path, columns: Columns) -> Float32[np.ndarray, " N"] | None:
        if self.intensity == NONE:
            return None
        wanted = (self.intensity,) if self.intensity else INTENSITIES
        _, values = first_of(columns, wanted)
        if values is None:
            detail = f"{path} has no field {' or '.join(wanted)}; it has {listed(list(columns), 12)}"
            raise DamagedError("array-broken", f"{detail} (setting intensity=FIELD, or intensity=none)")
        return values.astype(np.float32)

    def _times(
        self, path: Path, columns: Columns, time_us: int
    ) -> tuple[Int[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
        """Nanoseconds after the sweep's time, and of which points they are known."""
        name, values = first_of(columns, TIMES)
        setting = "deskew" if self.deskew else "keep_times"
        if values is None:
            detail = f"{path} has none of the fields {', '.join(TIMES)}; it has {listed(list(columns), 12)}"
            raise DamagedError("array-broken", f"{detail} (setting {setting})")
        known = np.isfinite(values)
        after_ns = np.zeros(len(values), dtype=np.int64)
        _, of_known = after_stamp(f"{path}: {name}", name, values[known], time_us * 1000)
        if of_known is None:
            raise DamagedError("array-broken", f"{path}: {name} is {values[known][0]} everywhere (setting {setting})")
        after_ns[known] = of_known
        furthest = float(np.abs(after_ns).max(initial=0)) / 1e9
        if furthest > _LONGEST_S:
            raise DamagedError(
                "array-broken", f"{path}: {name} reaches {furthest:.3g} s from the sweep's time ({setting})"
            )
        return after_ns, known
