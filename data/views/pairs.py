"""Point-pixel pairs: which point of a sweep is seen at which pixel of which camera."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from data.geometry import visible
from data.sample import Sample


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
    # An axis a row: numpy's products with 3 x 3 matrices and its sums over columns are then several times as fast.
    recorded = sample.points_lidar.T.astype(np.float64)
    for number, camera in enumerate(range(len(sample.cameras)) if cameras is None else cameras):
        view = sample.cameras[camera]
        T_cam_lidar = sample.T_cam_lidar(view)
        least_m = view.min_depth_m if min_depth_m is None else min_depth_m
        # Rows that give u * depth, v * depth and depth.
        projection = np.concatenate((view.K[:2] @ T_cam_lidar[:3], T_cam_lidar[2:3]))
        scaled = projection[:, :3] @ recorded + projection[:, 3:]
        # Most points are behind any one camera: they need no division.
        ahead = np.flatnonzero(scaled[2] > least_m)
        depth = scaled[2].take(ahead)
        uv = np.stack((scaled[0].take(ahead) / depth, scaled[1].take(ahead) / depth)).T
        seen = np.flatnonzero(visible(uv, depth, view.image_size, min_depth_m=least_m, border_px=border_px))
        points.append(ahead.take(seen))
        numbers.append(np.full(len(seen), number, dtype=np.int64))
        uvs.append(uv[seen])
    if not points:
        return no_pairs()
    return Pairs(point=np.concatenate(points), camera=np.concatenate(numbers), uv=np.concatenate(uvs))
