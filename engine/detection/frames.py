"""What detection metrics are given: the true and the found objects of one frame.

Boxes are x, y, z of the centre, length along the heading, width, height (metres) and heading from +x counter-clockwise
about z (radians), all of one frame of reference whose z points up: the LiDAR's, or the world's where a benchmark
measures on the map (nuScenes). Names of classes, attributes and frames are the benchmark's own.

Letters: K true objects, D found objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float64, Int64

from engine.scores import JudgeError

T = TypeVar("T")

_MOST = 1e8
"""Metres: above coordinates of any map, and nothing that is computed of them overflows."""


def _origin() -> Float64[np.ndarray, "3"]:
    return np.zeros(3)


@dataclass(frozen=True, kw_only=True)
class TrueObjects:
    """Labelled objects of a frame. What only some benchmarks ask for is None where the set has nothing of the kind.

    Attributes:
        key: of the frame.
        boxes: see above.
        categories: the set's own name of each object, also of kinds that are no class of the benchmark ("Van").
        origin_m: where ranges are measured from, in the frame of the boxes: the LiDAR's or the vehicle's origin.
        velocities_mps: in the ground plane, in the frame of the boxes; NaN where unknown.
        attributes: the set's own name of each object's attribute; "" where it has none.
        num_lidar_points: LiDAR points inside; -1 where unknown.
        num_radar_points: radar points inside; -1 where unknown.
        difficulties: the set's own level; -1 where it was not set.
        truncations: share of the object outside the image.
        occlusions: the set's own level.
        image_boxes_px: left, top, right, bottom; NaN for objects that the image does not show.
        alphas: observation angle, radians; NaN where unknown.
        ignored_px: left, top, right, bottom of image regions with unlabelled objects (KITTI's DontCare).
    """

    key: str
    boxes: Float64[np.ndarray, "K 7"]
    categories: tuple[str, ...]
    origin_m: Float64[np.ndarray, "3"] = field(default_factory=_origin)
    velocities_mps: Float64[np.ndarray, "K 2"] | None = None
    attributes: tuple[str, ...] | None = None
    num_lidar_points: Int64[np.ndarray, " K"] | None = None
    num_radar_points: Int64[np.ndarray, " K"] | None = None
    difficulties: Int64[np.ndarray, " K"] | None = None
    truncations: Float64[np.ndarray, " K"] | None = None
    occlusions: Int64[np.ndarray, " K"] | None = None
    image_boxes_px: Float64[np.ndarray, "K 4"] | None = None
    alphas: Float64[np.ndarray, " K"] | None = None
    ignored_px: Float64[np.ndarray, "rects 4"] | None = None

    def __post_init__(self) -> None:
        _check_rows(self, "true", len(self.categories), apart=("ignored_px", "origin_m"))
        _check_boxes(self.boxes, "true", self.key)

    def __len__(self) -> int:
        return len(self.categories)


@dataclass(frozen=True, kw_only=True)
class FoundObjects:
    """What a detector found in a frame, in any order that means something to the benchmark where scores are equal.

    Attributes:
        key: of the frame.
        boxes: in the frame of reference of the true ones.
        scores: confidences; benchmarks differ in what they accept, 0 to 1 is fine for all.
        classes: name of each object's class.
        velocities_mps: in the ground plane, in the frame of the boxes; NaN where unknown.
        attributes: name of each object's attribute; "" for none.
        image_boxes_px: left, top, right, bottom, clipped to the image; NaN for objects that the image does not show.
        alphas: observation angle, radians.
    """

    key: str
    boxes: Float64[np.ndarray, "D 7"]
    scores: Float64[np.ndarray, " D"]
    classes: tuple[str, ...]
    velocities_mps: Float64[np.ndarray, "D 2"] | None = None
    attributes: tuple[str, ...] | None = None
    image_boxes_px: Float64[np.ndarray, "D 4"] | None = None
    alphas: Float64[np.ndarray, " D"] | None = None

    def __post_init__(self) -> None:
        _check_rows(self, "found", len(self.classes), apart=())
        _check_boxes(self.boxes, "found", self.key)
        wrong = np.flatnonzero(~np.isfinite(self.scores))
        if wrong.size:
            raise JudgeError(f"frame {self.key}: the score of found object {wrong[0]} is {self.scores[wrong[0]]}")

    def __len__(self) -> int:
        return len(self.classes)


def needed(value: T | None, name: str, frame: TrueObjects | FoundObjects, benchmark: str) -> T:
    """A field that a benchmark cannot do without.

    Args:
        value: of the field.
        name: of the field.
        frame: that it belongs to.
        benchmark: that needs it.

    Raises:
        JudgeError: it is None.
    """
    if value is None:
        who = "true" if isinstance(frame, TrueObjects) else "found"
        raise JudgeError(
            f"frame {frame.key}: the {who} objects have no {name}, which the {benchmark} metric needs; choose a "
            "benchmark that does without, or prepare a set whose source states them"
        )
    return value


def _check_rows(frame: Any, who: str, count: int, *, apart: tuple[str, ...]) -> None:
    """Every field that lists objects must list all of them."""
    for entry in fields(frame):
        value = getattr(frame, entry.name)
        if isinstance(value, (np.ndarray, tuple)) and entry.name not in apart and len(value) != count:
            raise JudgeError(f"frame {frame.key}: {len(value)} {entry.name} of {count} {who} objects")


def _check_boxes(boxes: Float64[np.ndarray, "K 7"], who: str, key: str) -> None:
    wrong = np.flatnonzero(~(np.abs(boxes) <= _MOST).all(1) | (boxes[:, 3:6] < 0).any(1))  # nor NaN
    if wrong.size:
        row = boxes[wrong[0]].tolist()
        raise JudgeError(
            f"frame {key}: {who} object {wrong[0]} is the box {row}: expected finite numbers up to {_MOST:g} in size, "
            "sizes of 0 or more"
        )


def paired(truth: Sequence[TrueObjects], found: Sequence[FoundObjects]) -> list[tuple[TrueObjects, FoundObjects]]:
    """Each true frame with the found one of the same key, in the order of the true ones.

    Raises:
        JudgeError: there is no frame, a key occurs twice, or only one side has it.
    """
    if not truth:
        raise JudgeError("there is no frame to judge; is the split empty?")
    by_key: dict[str, FoundObjects] = {}
    for frame in found:
        if frame.key in by_key:
            raise JudgeError(f"frame {frame.key} is found twice; each frame's objects must be in one place")
        by_key[frame.key] = frame
    keys = [frame.key for frame in truth]
    if len(set(keys)) < len(keys):
        twice = next(key for number, key in enumerate(keys) if key in keys[:number])
        raise JudgeError(f"frame {twice} is twice in the ground truth")
    missing = [key for key in keys if key not in by_key]
    if missing:
        raise JudgeError(
            f"frame {missing[0]} has no predictions ({len(missing)} of {len(keys)} frames have none); a frame in "
            "which nothing was found needs an empty list, so that forgotten frames are told apart"
        )
    extra = sorted(set(by_key) - set(keys))
    if extra:
        raise JudgeError(
            f"frame {extra[0]} has predictions, but no ground truth ({len(extra)} such frames); judge with the "
            "split that was predicted"
        )
    return [(frame, by_key[frame.key]) for frame in truth]
