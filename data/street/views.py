"""What a camera sees of the labelled objects: 2D boxes, how much of them is cut off or hidden, observation angles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from common.boxes.image import image_boxes, observation_angles
from data.geometry import transform
from data.sample import CameraView

_MARGIN = 8
"""Sides of the image by which it is widened to see how much of an object is cut off."""
_NEARER_M = 0.3
"""By which a surface is nearer than an object's nearest corner to count as in front of it."""
_PARTLY, _LARGELY = 0.1, 0.5
"""Share of a 2D box that is hidden, above which an object counts as partly and as largely occluded."""


@dataclass(frozen=True, kw_only=True)
class SeenBoxes:
    """Columns of `Boxes`.

    Attributes:
        image_boxes_px: bounds of the projected corners, clipped to the image; NaN for what is not in it.
        truncations: share of those bounds outside the image, between 0 and 1.
        occlusions: 0 where less than a tenth of the 2D box is hidden by something nearer, 1 up to a half, 2 beyond; -1
            for what is not in the image.
        alphas: as KITTI's, of what is in the image.
    """

    image_boxes_px: Float[np.ndarray, "boxes 4"]
    truncations: Float[np.ndarray, " boxes"]
    occlusions: Int[np.ndarray, " boxes"]
    alphas: Float[np.ndarray, " boxes"]


def seen_boxes(boxes_world: Float[np.ndarray, "boxes 7"], view: CameraView) -> SeenBoxes:
    """What the view, which has its depth, sees of upright boxes that are where they are at its time.

    Args:
        boxes_world: x, y, z of the centre, length, width, height, heading in the world.
        view: with `depth_m`.
    """
    assert view.depth_m is not None
    T_cam_world = view.T_cam_ego @ np.linalg.inv(view.T_world_ego)
    boxes, T = torch.from_numpy(boxes_world), torch.from_numpy(T_cam_world)
    rectangles = image_boxes(boxes, torch.from_numpy(view.K), T, view.image_size).numpy()
    unseen = np.isnan(rectangles).any(axis=1)
    whole = _unclipped(boxes, T, view)
    with np.errstate(invalid="ignore"):
        truncations = 1 - _areas(rectangles) / np.maximum(_areas(whole), 1e-9)
    return SeenBoxes(
        image_boxes_px=rectangles,
        truncations=np.clip(truncations, 0, 1),
        occlusions=np.array(
            [
                -1 if gone else _occlusion(box, rectangle, T_cam_world, view.depth_m)
                for gone, box, rectangle in zip(unseen, boxes_world, rectangles, strict=True)
            ],
            dtype=np.int64,
        ),
        alphas=np.where(unseen, np.nan, observation_angles(boxes, T).numpy()),
    )


def _unclipped(boxes: torch.Tensor, T: torch.Tensor, view: CameraView) -> Float[np.ndarray, "boxes 4"]:
    """Bounds in an image that is several times as large to each side."""
    height, width = view.image_size
    K = view.K.copy()
    K[0, 2] += _MARGIN * width
    K[1, 2] += _MARGIN * height
    larger = ((2 * _MARGIN + 1) * height, (2 * _MARGIN + 1) * width)
    return np.asarray(image_boxes(boxes, torch.from_numpy(K), T, larger).numpy())


def _areas(rectangles: Float[np.ndarray, "boxes 4"]) -> Float[np.ndarray, " boxes"]:
    return np.asarray((rectangles[:, 2:] - rectangles[:, :2]).prod(axis=1))


def _occlusion(
    box: Float[np.ndarray, " 7"],
    rectangle: Float[np.ndarray, " 4"],
    T_cam_world: Float[np.ndarray, "4 4"],
    depth_m: Float[np.ndarray, "H W"],
) -> int:
    """Level by the share of the 2D box's pixels in which something is nearer than all of the 3D box."""
    left, top = np.floor(rectangle[:2]).astype(int)
    right, bottom = np.ceil(rectangle[2:]).astype(int)
    pixels = depth_m[top : bottom + 1, left : right + 1]
    c, s = np.cos(box[6]), np.sin(box[6])
    axes = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) @ T_cam_world[:3, :3].T
    # The nearest corner: half of each side, as far as it points along the optical axis, before the centre.
    nearest = transform(T_cam_world, box[None, :3])[0, 2] - (np.abs(axes[:, 2]) * box[3:6] / 2).sum()
    hidden = float(((pixels > 0) & (pixels < nearest - _NEARER_M)).mean())
    return 0 if hidden < _PARTLY else 1 if hidden <= _LARGELY else 2
