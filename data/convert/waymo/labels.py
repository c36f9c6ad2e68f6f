"""Classes, intensity and boxes of the Waymo Open Dataset in our terms.

Source: the official segmentation.proto and label.proto for numbers and their names.
"""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from data.convert.intensity import check_intensity
from data.convert.waymo.frame import RawFrame
from data.convert.waymo.range_image import LaserPoints
from data.sample import IGNORE_LABEL, Boxes
from data.storage.damage import DamagedError

SEGMENTATION_NAMES = (
    *("car", "truck", "bus", "other_vehicle", "motorcyclist", "bicyclist", "pedestrian", "sign", "traffic_light"),
    *("pole", "construction_cone", "bicycle", "motorcycle", "building", "vegetation", "tree_trunk", "curb", "road"),
    *("lane_marker", "other_ground", "walkable", "sidewalk"),
)
"""Classes 1 to 22 of the files; 0 (undefined) is ignored."""

BOX_NAMES = ("background", "vehicle", "pedestrian", "sign", "cyclist")
"""Types 1 to 4 of the boxes, and what lies in none."""

BOX_CATEGORIES = BOX_NAMES[1:]
"""What `Boxes.categories` counts."""


_SATURATED = 4.0
"""Its tanh is 0.9993."""


def scale_intensity(intensity: Float[np.ndarray, " N"], where: str) -> Float32[np.ndarray, " N"]:
    """Tanh of what the laser gives: values are mostly below 1, a few (reflectors) reach thousands.

    Raises:
        DamagedError: see `data.convert.intensity.check_intensity`.

    Source: the field's usual treatment of the set, e.g. OpenPCDet's Waymo configs.
    """
    # Reflectors are bounded by tanh, whatever they give.
    check_intensity(intensity, _SATURATED, where, "most values that the set publishes are below 1", absurd=np.inf)
    return np.asarray(np.tanh(np.maximum(intensity, 0.0)).astype(np.float32))


def segmentation_labels(cloud: LaserPoints) -> tuple[UInt8[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Index into `SEGMENTATION_NAMES`, and objects numbered from 1 in this frame.

    Raises:
        DamagedError: a class that the set has not.
    """
    worst = int(cloud.classes.max(initial=0))
    if worst > len(SEGMENTATION_NAMES) or int(cloud.classes.min(initial=0)) < 0:
        raise DamagedError("array-broken", f"point class {worst}, expected 0 to {len(SEGMENTATION_NAMES)}")
    labels = np.where(cloud.classes == 0, IGNORE_LABEL, cloud.classes - 1).astype(np.uint8)
    ids, numbers = np.unique(np.append(cloud.instances, 0), return_inverse=True)
    order = np.zeros(len(ids), dtype=np.int32)
    order[ids != 0] = np.arange(1, len(ids))
    return labels, order[numbers.reshape(-1)[:-1]]


def lidar_boxes(frame: RawFrame, T_ego_lidar: Float[np.ndarray, "4 4"], class_names: tuple[str, ...]) -> Boxes | None:
    """Boxes in the frame of the points, with the difficulty that people gave them: 1 or 2, -1 where they gave none.

    The benchmark then takes boxes of at most 5 points for level 2, those with more for level 1, and leaves out those
    without points.

    The segmentation has pedestrians and signs as the boxes do; vehicles and cyclists are several of its classes, so
    they are IGNORE_LABEL there.
    """
    raw = frame.boxes
    if raw is None:
        return None
    classes = [class_names.index(name) if name in class_names else IGNORE_LABEL for name in BOX_CATEGORIES]
    table = np.array([IGNORE_LABEL, *classes], dtype=np.int32)
    known = (raw.types >= 0) & (raw.types < len(table))
    # The set states velocities along the world's axes.
    velocities = raw.velocities @ frame.T_world_vehicle[:3, :3]
    return Boxes(
        centers_m=raw.table[:, :3] - T_ego_lidar[:3, 3],
        sizes_m=raw.table[:, 3:6],
        yaws=raw.table[:, 6],
        velocities_mps=velocities[:, :2],
        classes=np.where(known, table[np.where(known, raw.types, 0)], IGNORE_LABEL).astype(np.int32),
        track_ids=np.array([track_number(name) for name in raw.ids], dtype=np.int32),
        categories=np.where(known, raw.types - 1, -1).astype(np.int32),
        num_points=raw.num_points.astype(np.int64),
        difficulties=raw.difficulties.astype(np.int64),
    )


def track_number(name: str) -> int:
    """A number for an object's name, the same in both formats; two of 1000 objects meet once in 4000 segments."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") >> 1
