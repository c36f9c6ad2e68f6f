"""What voxels learn from objects, and how voxels become objects: point by point, from the words of the card."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def agreed_by_sets(values: Sequence[int], of_voxel: Sequence[int], num_voxels: int, none: int) -> list[int]:
    """The one value that a voxel's points have beside `none`; `none` where there is no such one."""
    said: list[set[int]] = [set() for _ in range(num_voxels)]
    for value, voxel in zip(values, of_voxel, strict=True):
        if value != none:
            said[voxel].add(value)
    return [next(iter(values)) if len(values) == 1 else none for values in said]


def objects_breadth_first(
    shifted: np.ndarray, classes: np.ndarray, samples: np.ndarray, things: Sequence[int], radius: float, least: int
) -> list[tuple[int, int, frozenset[int]]]:
    """Objects as (sample, class, voxels): from each voxel on, neighbours of neighbours of the same class."""
    done: set[int] = set()
    found = []
    for start in range(len(classes)):
        if start in done or classes[start] not in things:
            continue
        queue, inside = [start], {start}
        while queue:
            here = queue.pop(0)
            for other in range(len(classes)):
                same = classes[other] == classes[start] and samples[other] == samples[start]
                if same and other not in inside and np.linalg.norm(shifted[other] - shifted[here]) <= radius:
                    inside.add(other)
                    queue.append(other)
        done |= inside
        if len(inside) >= least:
            found.append((int(samples[start]), int(classes[start]), frozenset(inside)))
    return found
