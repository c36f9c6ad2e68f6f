"""Objects of all frames side by side, and the pairs of true and found ones that overlap.

Benchmarks match within a frame; the work on all frames at once is what makes it fast. Letters: F frames, K true and
D found objects of all frames, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, Shaped
from torch import Tensor

from common.boxes.overlap import bev_iou_of_pairs, iou_3d_of_pairs
from engine.detection.frames import FoundObjects, TrueObjects

FramePair = tuple[TrueObjects, FoundObjects]
_CHUNK = 1 << 20
"""Pairs looked at together: memory is bounded, whatever the number of frames."""
_CLIPPED = 1 << 14
"""Pairs of boxes clipped together: their edges stay in the processor's caches."""


@dataclass(frozen=True, kw_only=True)
class Stacked:
    """Objects of all frames, one frame after another, in their frames' order.

    Attributes:
        true_boxes: of the true objects.
        true_frame: number of each one's frame.
        categories: their names in lower case: KITTI's tool and its ports compare names that way.
        found_boxes: of the found objects.
        found_frame: number of each one's frame.
        classes: their names in lower case.
        scores: of the found objects.
    """

    true_boxes: Float64[np.ndarray, "K 7"]
    true_frame: Int64[np.ndarray, " K"]
    categories: Shaped[np.ndarray, " K"]
    found_boxes: Float64[np.ndarray, "D 7"]
    found_frame: Int64[np.ndarray, " D"]
    classes: Shaped[np.ndarray, " D"]
    scores: Float64[np.ndarray, " D"]


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """Pairs of objects of one frame, by the row of the true one, then by that of the found one.

    Attributes:
        true: rows of true objects.
        found: rows of found objects.
        value: their overlap, 0 to 1.
    """

    true: Int64[np.ndarray, " P"]
    found: Int64[np.ndarray, " P"]
    value: Float64[np.ndarray, " P"]

    def where(self, keep: Bool[np.ndarray, " P"]) -> Overlaps:
        """Some of the pairs."""
        return Overlaps(true=self.true[keep], found=self.found[keep], value=self.value[keep])


def stacked(frames: Sequence[FramePair]) -> Stacked:
    """Objects of all frames."""
    truth, found = [pair[0] for pair in frames], [pair[1] for pair in frames]
    return Stacked(
        true_boxes=np.concatenate([frame.boxes for frame in truth]),
        true_frame=np.repeat(np.arange(len(truth)), [len(frame) for frame in truth]),
        categories=_names([frame.categories for frame in truth]),
        found_boxes=np.concatenate([frame.boxes for frame in found]),
        found_frame=np.repeat(np.arange(len(found)), [len(frame) for frame in found]),
        classes=_names([frame.classes for frame in found]),
        scores=np.concatenate([frame.scores for frame in found]),
    )


def _names(of_frames: Sequence[tuple[str, ...]]) -> Shaped[np.ndarray, " N"]:
    return np.array([name.lower() for names in of_frames for name in names], dtype=np.str_)


def box_overlaps(objects: Stacked, *, turned: bool = False) -> tuple[Overlaps, Overlaps]:
    """IoU of footprints and of volumes, of all pairs whose footprints share some area.

    Args:
        objects: of all frames.
        turned: as ONCE's released code has it, which turns every footprint by minus its heading.
    """
    true_boxes, found_boxes = objects.true_boxes, objects.found_boxes
    if turned:
        true_boxes, found_boxes = _mirrored(true_boxes), _mirrored(found_boxes)

    def near(true: Int64[np.ndarray, " P"], found: Int64[np.ndarray, " P"]) -> Bool[np.ndarray, " P"]:
        reach = true_radius[true] + found_radius[found]
        return np.asarray(((true_boxes[true, :2] - found_boxes[found, :2]) ** 2).sum(1) < reach**2)

    true_radius = np.hypot(true_boxes[:, 3], true_boxes[:, 4]) / 2
    found_radius = np.hypot(found_boxes[:, 3], found_boxes[:, 4]) / 2
    true, found = pairs_where(objects.true_frame, objects.found_frame, near)
    bev = _of_pairs(bev_iou_of_pairs, true_boxes[true], found_boxes[found])
    some = bev > 0
    true, found, bev = true[some], found[some], bev[some]
    volume = _of_pairs(iou_3d_of_pairs, true_boxes[true], found_boxes[found])
    return Overlaps(true=true, found=found, value=bev), Overlaps(true=true, found=found, value=volume)


def _mirrored(boxes: Float64[np.ndarray, "K 7"]) -> Float64[np.ndarray, "K 7"]:
    return np.asarray(boxes * np.array([1, 1, 1, 1, 1, 1, -1.0]))


def _of_pairs(
    measure: Callable[[Tensor, Tensor], Tensor], a: Float64[np.ndarray, "P 7"], b: Float64[np.ndarray, "P 7"]
) -> Float64[np.ndarray, " P"]:
    """A measure of overlap, of some pairs at a time."""
    parts = [
        measure(torch.from_numpy(a[start : start + _CLIPPED]), torch.from_numpy(b[start : start + _CLIPPED])).numpy()
        for start in range(0, len(a), _CLIPPED)
    ]
    return np.concatenate([np.zeros(0), *parts])


def image_overlaps(
    true_frame: Int64[np.ndarray, " K"],
    true_px: Float64[np.ndarray, "K 4"],
    found_frame: Int64[np.ndarray, " D"],
    found_px: Float64[np.ndarray, "D 4"],
    *,
    of_found: bool = False,
) -> Overlaps:
    """IoU of rectangles in the image, of all pairs that share some area; NaN rectangles share none.

    Args:
        true_frame: frame of each true rectangle.
        true_px: left, top, right, bottom.
        found_frame: frame of each found rectangle.
        found_px: left, top, right, bottom.
        of_found: the shared area as a part of the found rectangle's own, in place of IoU.
    """

    def touch(true: Int64[np.ndarray, " P"], found: Int64[np.ndarray, " P"]) -> Bool[np.ndarray, " P"]:
        low = np.maximum(true_px[true, :2], found_px[found, :2])
        return np.asarray((low < np.minimum(true_px[true, 2:], found_px[found, 2:])).all(1))

    true, found = pairs_where(true_frame, found_frame, touch)
    a, b = true_px[true], found_px[found]
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    shared = (high - low).prod(1)
    whole = (b[:, 2:] - b[:, :2]).prod(1)
    if not of_found:
        whole = whole + (a[:, 2:] - a[:, :2]).prod(1) - shared
    return Overlaps(true=true, found=found, value=shared / whole)


def pairs_where(
    true_frame: Int64[np.ndarray, " K"],
    found_frame: Int64[np.ndarray, " D"],
    keep: Callable[[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]], Bool[np.ndarray, " P"]],
) -> tuple[Int64[np.ndarray, " Q"], Int64[np.ndarray, " Q"]]:
    """Pairs of one frame that a condition holds of, by the true row, then by the found row.

    Args:
        true_frame: frame of each true object, non-decreasing.
        found_frame: frame of each found object, non-decreasing.
        keep: tells of rows of true and of found objects which pairs are wanted.
    """
    kept = [
        (true[wanted], found[wanted])
        for true, found in _pairs(true_frame, found_frame)
        for wanted in [keep(true, found)]
    ]
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *[pair[0] for pair in kept]]), np.concatenate([none, *[pair[1] for pair in kept]])


def _pairs(
    true_frame: Int64[np.ndarray, " K"], found_frame: Int64[np.ndarray, " D"]
) -> Iterator[tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]]:
    """Every true object with every found one of its frame, some true objects at a time."""
    first = np.searchsorted(found_frame, true_frame, "left")
    count = np.searchsorted(found_frame, true_frame, "right") - first
    ends = np.cumsum(count)
    start = 0
    while start < len(true_frame):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _CHUNK, "right")))
        rows, counts = np.arange(start, stop), count[start:stop]
        true = np.repeat(rows, counts)
        offsets = np.arange(len(true)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield true, np.repeat(first[start:stop], counts) + offsets
        start = stop
