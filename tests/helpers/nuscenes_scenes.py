"""Random frames with all that nuScenes' metric has rules for, and the form in which its official tool is given them.

python -m tests.helpers.nuscenes_scenes DIR     # for tests/reference/nuscenes_devkit_metric.py
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from engine.detection.frames import FoundObjects, TrueObjects
from engine.detection.nuscenes_rules import ATTRIBUTES, CLASS_OF, CLASS_RANGE_M, RACK

Frame = tuple[TrueObjects, FoundObjects]
SCENES = 6
_CATEGORIES = [name for name in CLASS_OF if "." in name] + [RACK, "animal"]
_SIZES = {
    "car": (4.6, 1.9, 1.7),
    "truck": (6.9, 2.5, 2.8),
    "bus": (11.0, 2.9, 3.5),
    "trailer": (12.3, 2.9, 3.9),
    "construction_vehicle": (6.4, 2.9, 3.2),
    "pedestrian": (0.7, 0.7, 1.8),
    "motorcycle": (2.1, 0.8, 1.5),
    "bicycle": (1.7, 0.6, 1.3),
    "traffic_cone": (0.4, 0.4, 1.1),
    "barrier": (0.5, 2.5, 1.0),
    RACK: (8.0, 4.0, 1.5),
    "animal": (0.7, 0.4, 0.5),
}


def scene(seed: int | list[int], frames: int, num_true: int, num_found: int, digits: int = 3) -> list[Frame]:
    """Frames in the world: objects found with noise, several times or not at all, with equal scores and scores of 0.

    Args:
        seed: of all frames.
        frames: number of them.
        num_true: objects of a frame.
        num_found: objects found in a frame.
        digits: of coordinates. In thousands of frames with 3, an object lies on a face of a bicycle rack to the last
            bit, and whether that is inside is a matter of rounding.
    """
    rng = np.random.default_rng(seed)
    name = "-".join(map(str, np.atleast_1d(seed)))
    return [_frame(rng, f"{name}-{number}", num_true, num_found, digits) for number in range(frames)]


def _frame(rng: np.random.Generator, key: str, num_true: int, num_found: int, digits: int) -> Frame:
    origin = np.round(rng.uniform(-1000, 1000, 3) * (1, 1, 0), digits)
    categories = [str(name) for name in rng.choice(_CATEGORIES, num_true)]
    boxes = _boxes(rng, [CLASS_OF.get(name, name) for name in categories], origin)
    velocities = rng.normal(0, 3, (num_true, 2))
    velocities[rng.random(num_true) < 0.15] = np.nan
    attributes = [_attribute(rng, CLASS_OF.get(name, name)) for name in categories]
    true = TrueObjects(
        key=key,
        boxes=np.round(boxes, digits),
        categories=tuple(categories),
        origin_m=origin,
        velocities_mps=np.round(velocities, digits),
        attributes=tuple(attributes),
        num_lidar_points=rng.integers(0, 4, num_true),
        num_radar_points=rng.integers(0, 2, num_true),
    )
    known = [row for row, name in enumerate(categories) if name in CLASS_OF]
    copies = rng.choice(known, min(2 * len(known), num_found * 2 // 3)) if known else np.zeros(0, np.int64)
    names = [CLASS_OF[categories[row]] for row in copies]
    names += [str(name) for name in rng.choice(list(CLASS_RANGE_M), num_found - len(copies))]
    found_boxes = _boxes(rng, names, origin)
    spread = np.array([1, 1, 0.3, 0.2, 0.05, 0.05, 0.3]) * rng.choice([0.1, 0.5, 1.5], (len(copies), 1))
    found_boxes[: len(copies)] = boxes[copies] + rng.normal(0, 1, (len(copies), 7)) * spread
    found_boxes[:, 3:6] = np.maximum(found_boxes[:, 3:6], 0.1)
    scores = np.where(rng.random(num_found) < 0.03, 0.0, rng.beta(1 + 2 * (np.arange(num_found) < len(copies)), 3))
    return true, FoundObjects(
        key=key,
        boxes=np.round(found_boxes, digits),
        scores=np.round(scores, 3),
        classes=tuple(names),
        velocities_mps=np.round(rng.normal(0, 3, (num_found, 2)), digits),
        attributes=tuple(_attribute(rng, name) for name in names),
    )


def _boxes(rng: np.random.Generator, names: list[str], origin: np.ndarray) -> np.ndarray:
    places = origin + rng.normal(0, 22, (len(names), 3)) * (1, 1, 0.02)
    sizes = np.array([_SIZES[name] for name in names]).reshape(-1, 3) * rng.uniform(0.8, 1.2, (len(names), 3))
    return np.column_stack([places, sizes, rng.uniform(-np.pi, np.pi, len(names))])


def _attribute(rng: np.random.Generator, name: str) -> str:
    names = ("", *ATTRIBUTES.get(name, ()))
    return str(names[rng.integers(0, len(names))])


def line_of(frame: Frame) -> str:
    """A frame as JSON: rows of name, box, velocity, attribute, then points of both sensors or the score."""
    true, found = frame
    assert true.num_lidar_points is not None
    assert true.num_radar_points is not None
    points = np.column_stack([true.num_lidar_points, true.num_radar_points]).tolist()
    content = {
        "key": true.key,
        "origin": true.origin_m.tolist(),
        "true": _rows(true.categories, true, points),
        "found": _rows(found.classes, found, found.scores[:, None].tolist()),
    }
    return json.dumps(content, separators=(",", ":"))


def _rows(names: tuple[str, ...], side: Any, rest: list[list[float]]) -> list[list[Any]]:
    velocities = [[None if math.isnan(v) else v for v in row] for row in side.velocities_mps.tolist()]
    rows = zip(names, side.boxes.tolist(), velocities, side.attributes, rest, strict=True)
    return [[name, *box, *velocity, attribute, *more] for name, box, velocity, attribute, more in rows]


def frame_of(content: dict[str, Any]) -> Frame:
    """What `line_of` wrote, read again."""
    true, found = content["true"], content["found"]
    return (
        TrueObjects(
            key=content["key"],
            origin_m=np.array(content["origin"], dtype=np.float64),
            categories=tuple(row[0] for row in true),
            num_lidar_points=np.array([row[11] for row in true], dtype=np.int64),
            num_radar_points=np.array([row[12] for row in true], dtype=np.int64),
            **_common(true),
        ),
        FoundObjects(
            key=content["key"],
            classes=tuple(row[0] for row in found),
            scores=np.array([row[11] for row in found], dtype=np.float64),
            **_common(found),
        ),
    )


def _common(rows: list[list[Any]]) -> dict[str, Any]:
    numbers = np.array([row[1:10] for row in rows], dtype=np.float64).reshape(-1, 9)
    return {
        "boxes": numbers[:, :7],
        "velocities_mps": numbers[:, 7:],
        "attributes": tuple(row[10] for row in rows),
    }


if __name__ == "__main__":
    for seed in range(SCENES):
        lines = [line_of(frame) for frame in scene(seed, frames=4, num_true=4 + 4 * seed, num_found=8 + 7 * seed)]
        (Path(sys.argv[1]) / f"scene_{seed}.jsonl").write_text("\n".join(lines) + "\n")
