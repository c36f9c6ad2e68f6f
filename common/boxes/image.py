"""What a camera sees of upright, rotated boxes. Boxes as in `common.boxes.overlap`, in the LiDAR frame.

Letters: N boxes, K intrinsics.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from common.boxes.overlap import bev_corners

NEAR_M = 0.01
"""Depth at which boxes are cut that reach behind the camera."""

EDGES = [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)]
"""Pairs of rows of `box_corners`."""


def box_corners(boxes: Float[Tensor, "N 7"]) -> Float[Tensor, "N 8 3"]:
    """Corners: those of the bottom as `bev_corners` gives them, then those of the top in the same order."""
    flat = bev_corners(boxes)
    bottom, top = boxes[:, 2] - boxes[:, 5] / 2, boxes[:, 2] + boxes[:, 5] / 2
    faces = [torch.cat([flat, z[:, None, None].expand(-1, 4, 1)], dim=2) for z in (bottom, top)]
    return torch.cat(faces, dim=1)


def image_boxes(
    boxes: Float[Tensor, "N 7"],
    K: Float[Tensor, "3 3"],
    T_cam_lidar: Float[Tensor, "4 4"],
    image_size: tuple[int, int],
) -> Float[Tensor, "N 4"]:
    """Left, top, right, bottom of the boxes in the image: bounds of their projected corners, clipped to the image.

    What lies behind the camera is cut off first, so that a box beside the camera has the bounds of its visible part.
    NaN where nothing of a box is in front of the camera, where its bounds lie outside the image, or where it is not
    finite. Pixel (0, 0) is the centre of the top-left pixel and bounds are clipped to 0 and size - 1, as in OpenPCDet's
    KITTI detections (released code), which however neither cuts at the camera nor tells boxes outside the image.

    Args:
        boxes: in the LiDAR frame.
        K: intrinsics, pixels.
        T_cam_lidar: extrinsics.
        image_size: height, width.
    """
    start, end = (_to_camera(box_corners(boxes), T_cam_lidar)[:, rows] for rows in zip(*EDGES, strict=True))
    # Share of the way from the start of an edge to its end at which it comes to lie in front.
    step = end[..., 2] - start[..., 2]
    cut = ((NEAR_M - start[..., 2]) / torch.where(step == 0, 1, step)).clamp(0, 1)[..., None]
    start_front, end_front = start[..., 2:] >= NEAR_M, end[..., 2:] >= NEAR_M
    crossing = torch.lerp(start, end, cut)
    ends = torch.cat([torch.where(start_front, start, crossing), torch.where(end_front, end, crossing)], dim=1)
    seen = (start_front | end_front).squeeze(-1).repeat(1, 2)

    pixels = ends @ K.T
    uv = pixels[..., :2] / pixels[..., 2:].clamp(min=NEAR_M)
    low = uv.masked_fill(~seen[..., None], torch.inf).amin(dim=1)
    high = uv.masked_fill(~seen[..., None], -torch.inf).amax(dim=1)
    last = uv.new_tensor([image_size[1] - 1, image_size[0] - 1])
    visible = ((high >= 0) & (low <= last)).all(dim=1, keepdim=True) & seen.any(dim=1, keepdim=True)
    bounds = torch.cat([low.clamp(min=0), high.minimum(last)], dim=1)
    return torch.where(visible & boxes.isfinite().all(dim=1, keepdim=True), bounds, torch.nan)


def observation_angles(boxes: Float[Tensor, "N 7"], T_cam_lidar: Float[Tensor, "4 4"]) -> Float[Tensor, " N"]:
    """KITTI's alpha: heading of each box about the camera's y axis against the ray to its centre, -pi to pi.

    A car that heads away from the camera along the ray has -pi/2. Source: devkit of the object benchmark.
    """
    center = _to_camera(boxes[:, None, :3], T_cam_lidar)[:, 0]
    zero = torch.zeros_like(boxes[:, 6])
    heading = torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin(), zero], dim=1) @ T_cam_lidar[:3, :3].T
    rotation_y = torch.atan2(-heading[:, 2], heading[:, 0])
    alpha = rotation_y - torch.atan2(center[:, 0], center[:, 2])
    return torch.atan2(alpha.sin(), alpha.cos())


def _to_camera(points: Float[Tensor, "N n 3"], T_cam_lidar: Float[Tensor, "4 4"]) -> Float[Tensor, "N n 3"]:
    return points @ T_cam_lidar[:3, :3].T + T_cam_lidar[:3, 3]
