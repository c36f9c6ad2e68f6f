"""What nuScenes' detection challenge fixes: classes, attributes, ranges, and which objects count.

Source: Caesar et al., nuScenes (CVPR 2020), section 3.1; nuscenes-devkit 1.2.0 (released code), eval/detection:
configs/detection_cvpr_2019.json, constants.py, utils.py, and eval/common/loaders.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64

from common.ranges import above, between, different, expect, some_of

CLASS_RANGE_M = {
    "car": 50.0,
    "truck": 50.0,
    "bus": 50.0,
    "trailer": 50.0,
    "construction_vehicle": 50.0,
    "pedestrian": 40.0,
    "motorcycle": 40.0,
    "bicycle": 40.0,
    "traffic_cone": 30.0,
    "barrier": 30.0,
}
"""Class -> distance from the vehicle, on the ground, below which its objects count."""

CLASS_OF = {
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
} | {name: name for name in CLASS_RANGE_M}
"""Category -> class, also for sets whose categories are the classes; objects of others do not count."""

RACK = "static_object.bicycle_rack"
IN_RACKS = ("bicycle", "motorcycle")
"""Classes whose objects do not count inside a bicycle rack."""

_VEHICLE = ("vehicle.moving", "vehicle.parked", "vehicle.stopped")
_CYCLE = ("cycle.with_rider", "cycle.without_rider")
ATTRIBUTES = {
    **dict.fromkeys(("car", "truck", "bus", "trailer", "construction_vehicle"), _VEHICLE),
    **dict.fromkeys(("motorcycle", "bicycle"), _CYCLE),
    "pedestrian": ("pedestrian.moving", "pedestrian.standing", "pedestrian.sitting_lying_down"),
    "traffic_cone": (),
    "barrier": (),
}
"""Class -> names of attributes that its objects may have."""

ERRORS = {"ATE": "m", "ASE": "", "AOE": "rad", "AVE": "m/s", "AAE": ""}
"""Errors of matched objects and their units: translation, scale, orientation, velocity, attribute."""

_MOVING_MPS = 0.2
"""Speed from which on an object is taken to move."""

NO_ERROR = {"traffic_cone": ("AOE", "AVE", "AAE"), "barrier": ("AVE", "AAE")}
"""Class -> errors that are not measured for it."""


@dataclass(frozen=True, kw_only=True)
class NuscenesSettings:
    """What may differ from the official rules, for sets with fewer classes.

    Attributes:
        classes: those that the means are over, of the official ten.
        distances_m: below which a found object matches a true one, rising.
        error_distance_m: that of `distances_m` at which errors are measured.
        min_recall: precision and errors count beyond it.
        min_precision: is taken off all precision.
        max_boxes: found objects of a frame, at most.
        other_classes: found objects of classes that nuScenes has not are passed over; False: refused, as officially.
    """

    classes: tuple[str, ...] = tuple(CLASS_RANGE_M)
    distances_m: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    error_distance_m: float = 2.0
    min_recall: float = 0.1
    min_precision: float = 0.1
    max_boxes: int = 500
    other_classes: bool = False

    def __post_init__(self) -> None:
        expect(self, "classes", len(self.classes) > 0, "at least one class")
        some_of(self, classes=CLASS_RANGE_M)
        different(self, "classes")
        above(self, distances_m=0, max_boxes=0)
        expect(self, "error_distance_m", self.error_distance_m in self.distances_m, f"one of {self.distances_m}")
        between(self, min_recall=(0, 0.99), min_precision=(0, 0.99))

    @property
    def is_official(self) -> bool:
        """Whether figures may stand beside published ones."""
        return replace(self, other_classes=False) == NuscenesSettings()


def inside_any(points: Float64[np.ndarray, "N 3"], boxes: Float64[np.ndarray, "K 7"]) -> Bool[np.ndarray, " N"]:
    """Whether points lie in one of some boxes or on its faces."""
    apart = points[:, None] - boxes[None, :, :3]
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    along, across = apart[..., 0] * cos + apart[..., 1] * sin, apart[..., 1] * cos - apart[..., 0] * sin
    within = np.abs(np.stack([along, across, apart[..., 2]], axis=-1)) <= boxes[:, 3:6] / 2
    return np.asarray(within.all(axis=-1).any(axis=1))


def likely_attribute(name: str, speed_mps: float) -> str:
    """An attribute for an object whose detector gives none, by its class and speed; "" for classes without.

    A cycle that moves has a rider; at rest a pedestrian stands, a bus is stopped, another vehicle parked. Most released
    detectors choose like this.
    """
    moving = speed_mps >= _MOVING_MPS
    if name in IN_RACKS:
        return "cycle.with_rider" if moving else "cycle.without_rider"
    if name == "pedestrian":
        return "pedestrian.moving" if moving else "pedestrian.standing"
    if not ATTRIBUTES[name]:
        return ""
    return "vehicle.moving" if moving else "vehicle.stopped" if name == "bus" else "vehicle.parked"
