"""Judge found objects as a benchmark does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from engine.detection.argoverse2 import score_argoverse2
from engine.detection.frames import FoundObjects, JudgeError, TrueObjects, paired
from engine.detection.kitti import score_kitti
from engine.detection.nuscenes import score_nuscenes
from engine.detection.once import score_once
from engine.detection.scores import Scores
from engine.detection.waymo import score_waymo

Pairs = Sequence[tuple[TrueObjects, FoundObjects]]
"""True and found objects of every frame."""

BENCHMARKS: Mapping[str, Callable[[Pairs], Scores]] = {
    "argoverse2": score_argoverse2,
    "kitti": score_kitti,
    "nuscenes": score_nuscenes,
    "waymo": score_waymo,
    "once": score_once,
}
"""Name of a benchmark -> its metric with the official settings."""


def judge(benchmark: str, truth: Sequence[TrueObjects], found: Sequence[FoundObjects]) -> Scores:
    """Figures of a benchmark over all frames.

    Args:
        benchmark: one of `BENCHMARKS`.
        truth: labelled objects.
        found: in any order; exactly the frames of `truth`.

    Raises:
        JudgeError: the benchmark is not known, frames do not fit, or lack what the benchmark needs.
    """
    if benchmark not in BENCHMARKS:
        raise JudgeError(f"benchmark: got {benchmark!r}, expected one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[benchmark](paired(truth, found))
