"""Point labels made from 3D boxes, for sets that label objects but not points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from data.sample import Boxes


def points_in_box(
    points: Float[np.ndarray, "N 3"], center_m: Float[np.ndarray, " 3"], size_m: Float[np.ndarray, " 3"], yaw: float
) -> Bool[np.ndarray, " N"]:
    """Which points (metres) lie inside an upright box or on its faces.

    The size is length along the heading, width, height; the yaw is the heading about z in radians.
    """
    offset = points.astype(np.float64) - center_m
    c, s = np.cos(yaw), np.sin(yaw)
    along = offset[:, 0] * c + offset[:, 1] * s
    across = offset[:, 1] * c - offset[:, 0] * s
    half = size_m / 2
    return np.asarray((np.abs(along) <= half[0]) & (np.abs(across) <= half[1]) & (np.abs(offset[:, 2]) <= half[2]))


def boxes_from_rows(
    rows: Sequence[Sequence[float]] | Float[np.ndarray, "boxes 7"], classes: Sequence[int] | Int[np.ndarray, " boxes"]
) -> Boxes:
    """Boxes of rows x, y, z, length, width, height (m), yaw (rad), without velocities and tracks."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    return Boxes(
        centers_m=table[:, 0:3],
        sizes_m=table[:, 3:6],
        yaws=table[:, 6],
        velocities_mps=np.full((len(table), 2), np.nan),
        classes=np.array(classes, dtype=np.int32),
        track_ids=np.full(len(table), -1, dtype=np.int32),
    )


def labels_from_boxes(
    points: Float[np.ndarray, "N 3"], boxes: Boxes, background: int
) -> tuple[UInt8[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Class and object of each point; a point in several boxes belongs to the smallest of them.

    The smallest, because where boxes overlap a large one reaches into its neighbour's air (a rider beside a truck),
    seldom the other way round.

    Args:
        points: metres, LiDAR frame.
        boxes: `classes` may be IGNORE_LABEL, which their points then get.
        background: label of the points that are in no box.

    Returns:
        Labels, and instances: 1 + index of the box, 0 in the background.
    """
    labels = np.full(points.shape[0], background, dtype=np.uint8)
    instances = np.zeros(points.shape[0], dtype=np.int32)
    # The smallest comes last and overwrites.
    for box in np.argsort(-boxes.sizes_m.prod(axis=1), kind="stable"):
        inside = points_in_box(points, boxes.centers_m[box], boxes.sizes_m[box], float(boxes.yaws[box]))
        labels[inside] = boxes.classes[box]
        instances[inside] = box + 1
    return labels, instances
