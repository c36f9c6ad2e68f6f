"""Point-pixel pairs: which point of a sweep is seen at which pixel of which camera."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

from common.native import array_type, library
from data.geometry import visible
from data.sample import Sample

_SOURCE = Path(__file__).with_suffix(".c")
_INSTEAD = "numpy, with the same pairs in several times the time"


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of one sample, camera by camera.

    Attributes:
        point: index of the point.
        camera: index of the camera in the sample, non-decreasing.
        uv: pixel coordinates, the centre of the top-left pixel being (0, 0).
    """

    point: Int[np.ndarray, " P"]
    camera: Int[np.ndarray, " P"]
    uv: Float[np.ndarray, "P 2"]

    def __len__(self) -> int:
        return len(self.point)

    def select(self, mask: Bool[np.ndarray, " P"]) -> Pairs:
        """The pairs that a mask keeps."""
        # Several times as fast as indexing rows with a mask.
        rows = np.flatnonzero(mask)
        return Pairs(point=self.point.take(rows), camera=self.camera.take(rows), uv=self.uv.take(rows, axis=0))

    def keep_points(self, mask: Bool[np.ndarray, " N"]) -> Pairs:
        """The pairs of the points that stay when the others are dropped, renumbered."""
        new_index = np.cumsum(mask) - 1
        pairs = self.select(mask[self.point])
        return Pairs(point=new_index[pairs.point], camera=pairs.camera, uv=pairs.uv)

    def of_camera(self, camera: int) -> slice:
        """Where one camera's pairs are."""
        start, stop = np.searchsorted(self.camera, (camera, camera + 1))
        return slice(int(start), int(stop))

    def counts(self, num_cameras: int) -> Int[np.ndarray, " V"]:
        """Pairs of each camera."""
        return np.bincount(self.camera, minlength=num_cameras)


def cut_to_cameras(sample: Sample) -> Sample:
    """The sweep with only those points that lie inside the stored image of some camera; pixels are not looked at.

    Points right at an image's border count as inside, in front of the camera at any distance.

    Source: Team et al., OpenPCDet, released code for KITTI, whose labels end where the image does.
    """
    every_camera = point_pixel_pairs(sample, min_depth_m=0.0, border_px=0.0)
    seen = np.zeros(len(sample.points_lidar), dtype=bool)
    seen[every_camera.point] = True
    kept: dict[str, Any] = {name: values[seen] for name, values in sample.point_fields().items()}
    return dataclasses.replace(sample, **kept)


def no_pairs() -> Pairs:
    """Of a sample without cameras."""
    return Pairs(point=np.zeros(0, np.int64), camera=np.zeros(0, np.int64), uv=np.zeros((0, 2)))


def point_pixel_pairs(
    sample: Sample,
    cameras: tuple[int, ...] | None = None,
    *,
    min_depth_m: float | None = None,
    border_px: float = 1.0,
) -> Pairs:
    """All pairs of a sample; a point that several cameras see is in several.

    Each camera uses the ego pose of its own time (see `Sample.T_cam_lidar`) and its own `min_depth_m`, unless one is
    given. Occlusion is not tested. `cameras` are positions in `sample.cameras`, all by default; `Pairs.camera` counts
    within this choice. See `visible` for the rest.

    Source: Sautier et al., SLidR (CVPR 2022), section 3 and the released data loader (1 m, 1 px).
    """
    points, numbers, uvs = [], [], []
    recorded = np.ascontiguousarray(sample.points_lidar.T, dtype=np.float64)
    native = library(_SOURCE, _INSTEAD)
    project = project_numpy if native is None else functools.partial(_project, native)
    for number, camera in enumerate(range(len(sample.cameras)) if cameras is None else cameras):
        view = sample.cameras[camera]
        T_cam_lidar = sample.T_cam_lidar(view)
        # Rows that give u * depth, v * depth and depth.
        projection = np.concatenate((view.K[:2] @ T_cam_lidar[:3], T_cam_lidar[2:3]))
        least_m = view.min_depth_m if min_depth_m is None else min_depth_m
        seen, uv = project(recorded, projection, view.image_size, least_m, border_px)
        points.append(seen)
        numbers.append(np.full(len(seen), number, dtype=np.int64))
        uvs.append(uv)
    if not points:
        return no_pairs()
    return Pairs(point=np.concatenate(points), camera=np.concatenate(numbers), uv=np.concatenate(uvs))


def project_numpy(
    points: Float64[np.ndarray, "3 N"],
    projection: Float[np.ndarray, "3 4"],
    image_size: tuple[int, int],
    min_depth_m: float,
    border_px: float,
) -> tuple[Int64[np.ndarray, " P"], Float64[np.ndarray, "P 2"]]:
    """The points that make a pair with a camera (see `visible`), and their pixels.

    Args:
        points: an axis a row: numpy is then several times as fast.
        projection: rows that give u * depth, v * depth and depth.
        image_size: height, width.
        min_depth_m: see `visible`.
        border_px: likewise.
    """
    # Term by term, as in `pairs.c`: a matrix product rounds as the BLAS at hand does.
    x, y, z = points
    row = projection[2]
    depth = row[0] * x + row[1] * y + row[2] * z + row[3]
    # Most points are behind any one camera: they need nothing more.
    ahead = np.flatnonzero(depth > min_depth_m)
    x, y, z, depth = (values.take(ahead) for values in (x, y, z, depth))
    uv = np.stack([(row[0] * x + row[1] * y + row[2] * z + row[3]) / depth for row in projection[:2]]).T
    seen = np.flatnonzero(visible(uv, depth, image_size, min_depth_m=min_depth_m, border_px=border_px))
    return ahead.take(seen), np.ascontiguousarray(uv[seen])


def _project(
    native: ctypes.CDLL,
    points: Float64[np.ndarray, "3 N"],
    projection: Float[np.ndarray, "3 4"],
    image_size: tuple[int, int],
    min_depth_m: float,
    border_px: float,
) -> tuple[Int64[np.ndarray, " P"], Float64[np.ndarray, "P 2"]]:
    """See `project_numpy`."""
    function, count = native.tandem_pairs, points.shape[1]
    doubles, wholes = array_type(np.float64), array_type(np.int64)
    function.argtypes = [doubles, ctypes.c_int64, doubles, *[ctypes.c_double] * 4, wholes, doubles]
    function.restype = ctypes.c_int64
    point, uv = np.empty(count, np.int64), np.empty((count, 2))
    (height, width), rows = image_size, np.ascontiguousarray(projection, dtype=np.float64)
    ends = width - 1 - border_px, height - 1 - border_px
    found = function(points, count, rows, min_depth_m, border_px, *ends, point, uv)
    return point[:found], uv[:found]
