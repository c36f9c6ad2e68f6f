"""Point-pixel pairs: which point of a sweep is seen at which pixel of which camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from data.geometry import project, transform, visible
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
        return Pairs(point=self.point[mask], camera=self.camera[mask], uv=self.uv[mask])

    def keep_points(self, kept: Bool[np.ndarray, " N"]) -> Pairs:
        """The pairs of the points that stay when the others are dropped, renumbered."""
        new_index = np.cumsum(kept) - 1
        pairs = self.select(kept[self.point])
        return Pairs(point=new_index[pairs.point], camera=pairs.camera, uv=pairs.uv)

    def of_camera(self, camera: int) -> slice:
        """Where one camera's pairs are."""
        start, stop = np.searchsorted(self.camera, (camera, camera + 1))
        return slice(int(start), int(stop))

    def counts(self, num_cameras: int) -> Int[np.ndarray, " V"]:
        """Pairs of each camera."""
        return np.bincount(self.camera, minlength=num_cameras)


def point_pixel_pairs(
    sample: Sample,
    cameras: tuple[int, ...] | None = None,
    *,
    min_depth_m: float = 1.0,
    border_px: float = 1.0,
) -> Pairs:
    """All pairs of a sample; a point that several cameras see is in several.

    Each camera uses the ego pose of its own time (see `Sample.T_cam_lidar`). Occlusion is not tested.

    Args:
        sample: sweep and cameras.
        cameras: positions in `sample.cameras` to pair with; all by default. `Pairs.camera` counts within this choice.
        min_depth_m: points at or before this depth have no pair.
        border_px: margin inside the image.

    Source: Sautier et al., SLidR (CVPR 2022), section 3 and the released data loader (1 m, 1 px).
    """
    points, numbers, uvs = [], [], []
    for number, camera in enumerate(range(len(sample.cameras)) if cameras is None else cameras):
        view = sample.cameras[camera]
        points_cam = transform(sample.T_cam_lidar(view), sample.points_lidar)
        # Most points are behind any one camera: they need no division.
        ahead = np.flatnonzero(points_cam[:, 2] > min_depth_m)
        uv, depth = project(view.K, points_cam[ahead])
        seen = np.flatnonzero(visible(uv, depth, view.image_size, min_depth_m=min_depth_m, border_px=border_px))
        points.append(ahead[seen])
        numbers.append(np.full(len(seen), number, dtype=np.int64))
        uvs.append(uv[seen])
    if not points:
        return Pairs(point=np.zeros(0, np.int64), camera=np.zeros(0, np.int64), uv=np.zeros((0, 2)))
    return Pairs(point=np.concatenate(points), camera=np.concatenate(numbers), uv=np.concatenate(uvs))
