"""Boxes as one camera sees them: where their centre is in the image, how far away, and how they are turned to the ray.

A monocular network must not care where a camera is mounted, how the points of its sweep were augmented, or whether its
image was mirrored. So boxes are taken into the camera's own frame (x right, y down, z forward). A mirrored image (a
negative focal length, see `data.sample.Cameras`) is what a camera sees of the mirrored world, whose x axis is turned
round: there it has a positive focal length again, and lengths, depths and angles mean what they mean in other images.

Headings and velocities lie in the points' ground plane, which a tilted camera does not see edge-on. Their x and z
components in the camera's frame determine them (unless it looks straight down), so `from_camera` inverts `to_camera`
exactly, under any motion of the points with one scale of all axes.

Source: Wang et al., "FCOS3D", ICCV Workshops 2021, section 3.1; local headings as KITTI's observation angle.

Letters: I images, K boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from data.sample import Cameras

_BEHIND_M = 1e-3
"""Least depth that a projection is divided by: centres behind the camera have no place in the image anyway."""


@dataclass(frozen=True, kw_only=True)
class Optics:
    """Intrinsics with positive focal lengths and the matching extrinsics, in double precision, one row an image.

    Attributes:
        K: pinhole intrinsics, pixels.
        T_cam_points: frame of `Batch.points` to the (mirrored) camera's.
    """

    K: Float[Tensor, "I 3 3"]
    T_cam_points: Float[Tensor, "I 4 4"]

    @classmethod
    def of(cls, cameras: Cameras) -> Optics:
        """Of each camera; a mirrored one sees the mirrored world."""
        K, T = cameras.K.double(), cameras.T_cam_points.double().clone()
        side = torch.where(K[:, 0, 0] < 0, -1.0, 1.0).to(K.dtype)
        T[:, 0] *= side[:, None]
        return cls(K=torch.cat([K[:, :, :1] * side[:, None, None], K[:, :, 1:]], dim=2), T_cam_points=T)

    def at(self, image: Int[Tensor, " K"] | int) -> Optics:
        """Those of some images."""
        return Optics(K=self.K[image], T_cam_points=self.T_cam_points[image])


@dataclass(frozen=True, kw_only=True)
class CameraBoxes:
    """Boxes in the terms of the image that each is in.

    Attributes:
        centers_px: where the box's centre is seen, u and v; the centre of the top-left pixel is (0, 0).
        depths_m: of the centre, along the optical axis.
        sizes_m: length, width, height.
        angles: heading against the ray to the centre, radians; -pi/2 heads away from the camera.
        velocities_mps: towards x and z of the camera; NaN where unknown.
    """

    centers_px: Float[Tensor, "K 2"]
    depths_m: Float[Tensor, " K"]
    sizes_m: Float[Tensor, "K 3"]
    angles: Float[Tensor, " K"]
    velocities_mps: Float[Tensor, "K 2"]


def to_camera(boxes: Float[Tensor, "K 7"], velocities_mps: Float[Tensor, "K 2"], optics: Optics) -> CameraBoxes:
    """Boxes in the frame of the points, each in the image of the optics' same row."""
    T, boxes = optics.T_cam_points, boxes.to(optics.K.dtype)
    center = _moved(T, boxes[:, :3])
    pixel = (optics.K @ center[:, :, None]).squeeze(2)
    plane = _ground_plane(T)
    heading = _turned(plane, torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin()], dim=1))
    angles = torch.atan2(-heading[:, 1], heading[:, 0]) - torch.atan2(center[:, 0], center[:, 2])
    return CameraBoxes(
        centers_px=pixel[:, :2] / pixel[:, 2:].clamp(min=_BEHIND_M),
        depths_m=center[:, 2],
        sizes_m=boxes[:, 3:6] * _scale(T)[:, None],
        angles=torch.atan2(angles.sin(), angles.cos()),
        velocities_mps=_turned(plane, velocities_mps.to(plane.dtype)),
    )


def from_camera(seen: CameraBoxes, optics: Optics) -> tuple[Float[Tensor, "K 7"], Float[Tensor, "K 2"]]:
    """Boxes and velocities in the frame of the points; not finite where a camera looks straight down."""
    T = optics.T_cam_points
    pixel = torch.cat([seen.centers_px, torch.ones_like(seen.centers_px[:, :1])], dim=1).to(T.dtype)
    center = (torch.linalg.inv(optics.K) @ pixel[:, :, None]).squeeze(2) * seen.depths_m[:, None]
    turned = seen.angles + torch.atan2(center[:, 0], center[:, 2])
    back = _inverse(_ground_plane(T))
    heading = _turned(back, torch.stack([turned.cos(), -turned.sin()], dim=1))
    sizes = seen.sizes_m / _scale(T)[:, None]
    yaws = torch.atan2(heading[:, 1], heading[:, 0])
    boxes = torch.cat([_moved(torch.linalg.inv(T), center), sizes, yaws[:, None]], dim=1)
    return boxes, _turned(back, seen.velocities_mps.to(T.dtype))


def _moved(T: Float[Tensor, "K 4 4"], points: Float[Tensor, "K 3"]) -> Float[Tensor, "K 3"]:
    return (T[:, :3, :3] @ points[:, :, None]).squeeze(2) + T[:, :3, 3]


def _turned(matrix: Float[Tensor, "K 2 2"], flat: Float[Tensor, "K 2"]) -> Float[Tensor, "K 2"]:
    return (matrix @ flat[:, :, None]).squeeze(2)


def _ground_plane(T: Float[Tensor, "K 4 4"]) -> Float[Tensor, "K 2 2"]:
    """Directions in the points' ground plane to their x and z components in the camera's frame."""
    return T[:, 0:3:2, :2]


def _scale(T: Float[Tensor, "K 4 4"]) -> Float[Tensor, " K"]:
    """Metres in the camera's frame for each one in the frame of points, which augmentation may have scaled."""
    volume: Tensor = torch.linalg.det(T[:, :3, :3]).abs()
    return volume.pow(1 / 3)


def _inverse(matrix: Float[Tensor, "K 2 2"]) -> Float[Tensor, "K 2 2"]:
    """Not finite instead of an error where there is none."""
    (a, b), (c, d) = (row.unbind(1) for row in matrix.unbind(1))
    rows = [torch.stack([d, -b], dim=1), torch.stack([-c, a], dim=1)]
    return torch.stack(rows, dim=1) / (a * d - b * c)[:, None, None]
