"""Labelled boxes of a view: those of the wanted classes, moved with the points, without those that no network can find.

Letters: K boxes, N points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from common.nearby import nearest
from common.ranges import at_least
from data.batch_spec import VoxelConfig
from data.geometry import transform
from data.sample import IGNORE_LABEL, Boxes
from data.storage.manifest import Manifest
from data.storage.shard import ShardError
from data.views.voxelize import inside_range


@dataclass(frozen=True, kw_only=True)
class BoxConfig:
    """Which labelled boxes are in `Batch.boxes`, of those that `BatchSpec.boxes` names. Their centres lie in the grid.

    Attributes:
        min_points: boxes with fewer points of the view inside are left out; 0: none are.
    """

    min_points: int = 0

    def __post_init__(self) -> None:
        at_least(self, "0: all boxes", min_points=0)


@dataclass(frozen=True, kw_only=True)
class ViewBoxes:
    """Boxes of one sample; as `data.sample.BatchBoxes`, without the sample's number."""

    boxes: Float[np.ndarray, "K 7"]
    velocities_mps: Float[np.ndarray, "K 2"]
    classes: Int[np.ndarray, " K"]

    def __len__(self) -> int:
        """K."""
        return len(self.boxes)

    def select(self, rows: Shaped[np.ndarray, " k"]) -> ViewBoxes:
        """Some of them, by their numbers or a mask."""
        return ViewBoxes(boxes=self.boxes[rows], velocities_mps=self.velocities_mps[rows], classes=self.classes[rows])

    def joined(self, others: ViewBoxes) -> ViewBoxes:
        """These, then the others."""
        return ViewBoxes(
            boxes=np.concatenate((self.boxes, others.boxes)),
            velocities_mps=np.concatenate((self.velocities_mps, others.velocities_mps)),
            classes=np.concatenate((self.classes, others.classes)),
        )

    def moved(self, T: Float[np.ndarray, "4 4"]) -> ViewBoxes:
        """After a motion of the points: rotation about z, mirroring of x or y, one scale of all axes, translation.

        A mirrored box has its heading mirrored; velocities are turned and scaled with the points.
        """
        ground = T[:2, :2]
        scale = math.sqrt(abs(float(np.linalg.det(ground))))
        heading = ground @ np.stack((np.cos(self.boxes[:, 6]), np.sin(self.boxes[:, 6])))
        yaws = np.arctan2(heading[1], heading[0])
        parts = (transform(T, self.boxes[:, :3]), scale * self.boxes[:, 3:6], yaws[:, None])
        return ViewBoxes(
            boxes=np.concatenate(parts, axis=1), velocities_mps=self.velocities_mps @ ground.T, classes=self.classes
        )

    def kept(self, points: Float[np.ndarray, "N 3"], voxel: VoxelConfig, config: BoxConfig) -> ViewBoxes:
        """Those that a network can be asked for: centre inside the grid's limits, enough of the points inside.

        Source: of the limits by the centre: Team et al., OpenPCDet, released code, training data.
        """
        inside = self.select(inside_range(self.boxes[:, :3], voxel))
        if config.min_points == 0:
            return inside
        return inside.select(num_points_inside(points, inside.boxes) >= config.min_points)


def num_points_inside(points: Float[np.ndarray, "N 3"], boxes: Float[np.ndarray, "K 7"]) -> Int[np.ndarray, " K"]:
    """Points in each box or on its faces."""
    return np.array([len(rows) for rows in rows_inside(points, boxes)], dtype=np.int64)


def rows_inside(points: Float[np.ndarray, "N 3"], boxes: Float[np.ndarray, "K 7"]) -> list[Int[np.ndarray, " n"]]:
    """The points in each box or on its faces, ascending; a point in several boxes is in several lists."""
    # Most points are far from any one box: only those in the square around it are turned into its axes.
    x, y = np.ascontiguousarray(points[:, 0]), np.ascontiguousarray(points[:, 1])
    boxes = boxes.astype(np.float64)
    reach = np.hypot(boxes[:, 3], boxes[:, 4]) / 2 * (1 + 1e-5) + 1e-3
    near = [
        np.flatnonzero((np.abs(x - box[0]) <= far) & (np.abs(y - box[1]) <= far))
        for box, far in zip(boxes, reach, strict=True)
    ]
    rows = np.concatenate([*near, np.zeros(0, dtype=np.int64)])
    of_row = np.repeat(boxes, [len(part) for part in near], axis=0)
    offset, half = points[rows].astype(np.float64) - of_row[:, :3], of_row[:, 3:6] / 2
    c, s = np.cos(of_row[:, 6]), np.sin(of_row[:, 6])
    along, across = offset[:, 0] * c + offset[:, 1] * s, offset[:, 1] * c - offset[:, 0] * s
    inside = (np.abs(along) <= half[:, 0]) & (np.abs(across) <= half[:, 1]) & (np.abs(offset[:, 2]) <= half[:, 2])
    parts = np.split(inside, np.cumsum([len(part) for part in near])[:-1])
    return [part[hit] for part, hit in zip(near, parts, strict=False)]


def class_numbers(manifest: Manifest, wanted: Sequence[str], *, of: str = "boxes") -> Int[np.ndarray, " classes"]:
    """For each class of a set, and for IGNORE_LABEL, its place in `wanted`; -1 where it is not there.

    `of` says what is asked for, for the message.

    Raises:
        ShardError: the set has no class of such a name; names those that it has.
    """
    names = manifest.class_names
    unknown = [name for name in wanted if name not in names]
    if unknown:
        known = f"its classes are {', '.join(names)}" if names else "it has no classes"
        near = nearest(unknown[0], names) if names else ""
        raise ShardError(
            f"{manifest.root} ({manifest.set_name}) has no class {', '.join(map(repr, unknown))} whose {of} are "
            f"asked for; {known}{near or '.'} Set model.classes to names of the set"
        )
    numbers = np.full(max(len(names), IGNORE_LABEL + 1), -1, dtype=np.int64)
    for number, name in enumerate(wanted):
        numbers[names.index(name)] = number
    return numbers


def all_boxes(boxes: Boxes) -> Float[np.ndarray, "K 7"]:
    """Boxes of every class, a row each as in `ViewBoxes.boxes`."""
    return np.concatenate((boxes.centers_m, boxes.sizes_m, boxes.yaws[:, None]), axis=1).astype(np.float64)


def wanted_boxes(boxes: Boxes, numbers: Int[np.ndarray, " classes"]) -> ViewBoxes:
    """The boxes of wanted classes, as recorded; `numbers` as of `class_numbers`."""
    classes = numbers[boxes.classes]
    every = ViewBoxes(boxes=all_boxes(boxes), velocities_mps=boxes.velocities_mps.astype(np.float64), classes=classes)
    return every.select(classes >= 0)
