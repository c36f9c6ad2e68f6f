"""Judge found objects as a benchmark does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from engine.detection import argoverse2
from engine.detection.argoverse2 import score_argoverse2
from engine.detection.frames import FoundObjects, TrueObjects, paired
from engine.detection.indoor import score_indoor
from engine.detection.kitti import score_kitti
from engine.detection.kitti_rules import KITTI_CLASSES
from engine.detection.nuscenes import score_nuscenes
from engine.detection.nuscenes_rules import CLASS_RANGE_M
from engine.detection.once import ONCE_CLASSES, score_once
from engine.detection.waymo import MIN_IOU, score_waymo
from engine.scores import JudgeError, Scores

Pairs = Sequence[tuple[TrueObjects, FoundObjects]]
"""True and found objects of every frame."""

BENCHMARKS: Mapping[str, Callable[[Pairs], Scores]] = {
    "argoverse2": score_argoverse2,
    "kitti": score_kitti,
    "nuscenes": score_nuscenes,
    "waymo": score_waymo,
    "once": score_once,
    "indoor": score_indoor,
}
"""Name of a benchmark -> its metric with the official settings."""


CLASSES: Mapping[str, tuple[str, ...]] = {
    "argoverse2": argoverse2.CLASSES,
    "kitti": tuple(kind.name for kind in KITTI_CLASSES),
    "nuscenes": tuple(CLASS_RANGE_M),
    "waymo": tuple(MIN_IOU),
    "once": tuple(name for kind in ONCE_CLASSES for name in kind.members),
}
"""Benchmark -> names of the classes that it judges, where they are not the set's own. Case does not count, but for
nuScenes'."""


def check_classes(benchmark: str, classes: Sequence[str], *, of_set: Sequence[str] = ()) -> None:
    """Refuse a detector that knows nothing of what a benchmark judges: it would have 0, however good it is.

    Args:
        benchmark: one of `BENCHMARKS`.
        classes: of the detector, by the benchmark's names.
        of_set: names that the set's objects have, for a benchmark without classes of its own; (): not known.

    Raises:
        JudgeError: none of them is judged.
    """
    known = CLASSES.get(benchmark, tuple(of_set))
    if known and not any(_judged(benchmark, known, classes)):
        raise JudgeError(
            f"none of the detector's classes ({', '.join(classes)}) is judged by {benchmark}, which knows "
            f"{', '.join(known)}; choose a benchmark of these classes"
        )


def _judged(benchmark: str, known: Sequence[str], names: Iterable[str]) -> Iterator[bool]:
    """Of each name, whether it is one that is known."""
    if benchmark == "nuscenes":
        return (name in known for name in names)
    spelt = {name.lower() for name in known}
    return (name.lower() in spelt for name in names)


def note_of_classes(benchmark: str, found: Sequence[FoundObjects]) -> tuple[str, ...]:
    """What is to be said where objects were found, and none is of a class that the benchmark judges."""
    names = dict.fromkeys(name for frame in found for name in frame.classes)
    known = CLASSES.get(benchmark, ())
    if not names or not known or any(_judged(benchmark, known, names)):
        return ()
    return (
        f"no found object is of a class that {benchmark} judges ({', '.join(known)}); found were {', '.join(names)}",
    )


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
