"""Which objects of which frame went wrong, from rows over all frames side by side (`engine.detection.pairs.Stacked`).

Letters: T thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from engine.detection.pairs import FramePair
from engine.scores import FrameErrors


def best_threshold(
    right: Int64[np.ndarray, " T"], wrong: Int64[np.ndarray, " T"], missed: Int64[np.ndarray, " T"]
) -> int | None:
    """Number of the threshold of highest F1, the first of equal ones; None where nothing is right at any.

    Args:
        right: matches at each threshold.
        wrong: found objects that match nothing.
        missed: true objects that nothing matches.
    """
    if not right.any():
        return None
    return int(np.argmax(2 * right / np.maximum(2 * right + wrong + missed, 1)))


def errors_by_frame(
    frames: Sequence[FramePair],
    missed: Sequence[Int64[np.ndarray, " _"]],
    false: Sequence[Int64[np.ndarray, " _"]],
    right: Sequence[Int64[np.ndarray, " _"]],
) -> tuple[FrameErrors, ...]:
    """The errors of each frame, in their order.

    Args:
        frames: true and found objects.
        missed: rows of true objects, of each class.
        false: rows of found objects, of each class.
        right: rows of found objects, of each class.
    """
    true_sizes, found_sizes = [len(pair[0]) for pair in frames], [len(pair[1]) for pair in frames]
    lost = _rows_by_frame(missed, true_sizes)
    blamed, matched = _rows_by_frame(false, found_sizes), _rows_by_frame(right, found_sizes)
    return tuple(
        FrameErrors(key=frame.key, missed=lost[number], false=blamed[number], right=matched[number])
        for number, (frame, _) in enumerate(frames)
    )


def _rows_by_frame(parts: Sequence[Int64[np.ndarray, " _"]], sizes: Sequence[int]) -> list[Int64[np.ndarray, " _"]]:
    """Rows of all frames -> rows within each frame, rising."""
    rows = np.sort(np.concatenate([np.zeros(0, np.int64), *parts]))
    ends = np.cumsum(sizes)
    bounds = np.searchsorted(rows, ends)
    return [
        rows[low:high] - (end - size)
        for low, high, end, size in zip(np.append(0, bounds[:-1]), bounds, ends, sizes, strict=True)
    ]
