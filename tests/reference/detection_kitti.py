"""KITTI's object metric, loop by loop, for one class and difficulty at a time.

The rules are those of the official C++ tool: objects in file order, two passes, thresholds from the first pass.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.detection.frames import FoundObjects, TrueObjects
from tests.reference.upright_boxes import area_2d, iou_3d, iou_bev, overlap_2d

Frames = Sequence[tuple[TrueObjects, FoundObjects]]

DIFFICULTIES = {"easy": (40, 0, 0.15), "moderate": (25, 1, 0.30), "hard": (25, 2, 0.50)}
"""Smallest height in pixels, largest occlusion, largest truncation."""

NEIGHBOURS = {"Car": "Van", "Pedestrian": "Person_sitting", "Cyclist": None}
STRICT = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
LOOSE = {"Car": 0.5, "Pedestrian": 0.25, "Cyclist": 0.25}

OTHER, VALID, NEUTRAL = -1, 0, 1


@dataclass
class Pass:
    """Counts of one pass over a frame."""

    true: int = 0
    false: int = 0
    missed: int = 0
    similarity: float = 0.0
    scores: tuple[float, ...] = ()


def truth_flag(truth: TrueObjects, row: int, category: str, difficulty: str, least_excluded: bool) -> int:
    height, occlusion, truncation = DIFFICULTIES[difficulty]
    _, top, _, bottom = truth.image_boxes_px[row]
    if truth.categories[row] == NEIGHBOURS[category]:
        return NEUTRAL
    if truth.categories[row] != category:
        return OTHER
    small = bottom - top <= height if least_excluded else bottom - top < height
    if small or truth.occlusions[row] > occlusion or truth.truncations[row] > truncation:
        return NEUTRAL
    return VALID


def found_flag(found: FoundObjects, row: int, category: str, difficulty: str, whole_pixels: bool) -> int:
    _, top, _, bottom = found.image_boxes_px[row]
    height = int(abs(bottom - top)) if whole_pixels else abs(bottom - top)
    if height < DIFFICULTIES[difficulty][0]:
        return NEUTRAL
    return VALID if found.classes[row] == category else OTHER


def overlap(truth: TrueObjects, i: int, found: FoundObjects, j: int, view: str) -> float:
    if view == "2D":
        a, b = truth.image_boxes_px[i], found.image_boxes_px[j]
        shared = overlap_2d(a, b)
        return shared / (area_2d(a) + area_2d(b) - shared) if shared > 0 else 0.0
    return {"BEV": iou_bev, "3D": iou_3d}[view](truth.boxes[i], found.boxes[j])


def thresholds(scores: Sequence[float], num_true: int) -> list[float]:
    """Scores at which recall is nearest to 0, 1/40, 2/40 and so on."""
    chosen, recall = [], 0.0
    falling = sorted(scores, reverse=True)
    for i, score in enumerate(falling):
        last = i == len(falling) - 1
        left = (i + 1) / num_true
        right = left if last else (i + 2) / num_true
        if right - recall < recall - left and not last:
            continue
        chosen.append(score)
        recall += 1 / 40
    return chosen


def first_pass(frame, flags_true: list[int], flags_found: list[int], above: Callable[[int, int], bool]) -> Pass:
    """Each true object takes the free detection of highest score."""
    truth, found = frame
    result, taken = Pass(), set()
    for i in range(len(truth)):
        if flags_true[i] == OTHER:
            continue
        best = None
        for j in range(len(found)):
            if flags_found[j] == OTHER or j in taken or not above(i, j):
                continue
            if best is None or found.scores[j] > found.scores[best]:
                best = j
        if best is None:
            continue
        taken.add(best)
        if flags_true[i] == VALID and flags_found[best] == VALID:
            result.scores += (float(found.scores[best]),)
    return result


def second_pass(
    frame, flags_true: list[int], flags_found: list[int], iou: Callable[[int, int], float], least: float, score: float
) -> tuple[Pass, set[int]]:
    """Each true object takes the free detection of largest overlap, a neutral one only while it has none."""
    truth, found = frame
    result, taken = Pass(), set()
    usable = [j for j in range(len(found)) if flags_found[j] != OTHER and found.scores[j] >= score]
    for i in range(len(truth)):
        if flags_true[i] == OTHER:
            continue
        best, best_iou = None, 0.0
        for j in usable:
            if j in taken or iou(i, j) <= least:
                continue
            if flags_found[j] == VALID and (best is None or flags_found[best] == NEUTRAL or iou(i, j) > best_iou):
                best, best_iou = j, iou(i, j)
            elif flags_found[j] == NEUTRAL and best is None:
                best = j
        if best is None:
            result.missed += flags_true[i] == VALID
            continue
        taken.add(best)
        if flags_true[i] == VALID and flags_found[best] == VALID:
            result.true += 1
            if truth.alphas is not None and found.alphas is not None:
                result.similarity += (1 + math.cos(found.alphas[best] - truth.alphas[i])) / 2
    result.false = sum(flags_found[j] == VALID and j not in taken for j in usable)
    return result, taken


def within_ignored(truth: TrueObjects, found: FoundObjects, rows: Sequence[int], least: float) -> int:
    """Detections of which a part larger than `least` lies in one rectangle of unlabelled objects."""
    count = 0
    for j in rows:
        own = found.image_boxes_px[j]
        count += any(overlap_2d(own, region) / area_2d(own) > least for region in truth.ignored_px)
    return count


def curves(
    frames: Frames,
    category: str,
    difficulty: str,
    view: str,
    least: float,
    *,
    least_excluded: bool = False,
    whole_pixels: bool = True,
) -> tuple[list[float], list[float], int]:
    """41 precisions, 41 orientation similarities, number of valid true objects."""
    prepared, scores, num_true = [], [], 0
    for truth, found in frames:
        flags_true = [truth_flag(truth, i, category, difficulty, least_excluded) for i in range(len(truth))]
        flags_found = [found_flag(found, j, category, difficulty, whole_pixels) for j in range(len(found))]
        ious = {(i, j): overlap(truth, i, found, j, view) for i in range(len(truth)) for j in range(len(found))}
        first = first_pass((truth, found), flags_true, flags_found, lambda i, j, ious=ious: ious[i, j] > least)
        scores += first.scores
        num_true += flags_true.count(VALID)
        prepared.append((truth, found, flags_true, flags_found, ious))

    precision, similarity = [0.0] * 41, [0.0] * 41
    for index, score in enumerate(thresholds(scores, num_true)):
        true, false, similar = 0, 0, 0.0
        for truth, found, flags_true, flags_found, ious in prepared:
            counts, taken = second_pass(
                (truth, found), flags_true, flags_found, lambda i, j, ious=ious: ious[i, j], least, score
            )
            true, false, similar = true + counts.true, false + counts.false, similar + counts.similarity
            if view == "2D" and truth.ignored_px is not None:
                free = [
                    j
                    for j in range(len(found))
                    if flags_found[j] == VALID and found.scores[j] >= score and j not in taken
                ]
                false -= within_ignored(truth, found, free, least)
        if true + false:
            precision[index] = true / (true + false)
            similarity[index] = similar / (true + false)
    for values in (precision, similarity):
        for index in range(39, -1, -1):
            values[index] = max(values[index], values[index + 1])
    return precision, similarity, num_true


def average(values: Sequence[float], points: int) -> float:
    """In per cent: of 11 points at every fourth index from 0, of 40 at all but index 0."""
    return 100 * sum(values[::4]) / 11 if points == 11 else 100 * sum(values[1:]) / 40
