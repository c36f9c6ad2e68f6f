"""Judge classes and objects of points as a benchmark does.

A benchmark keeps little of each frame, so that frames can be looked at one by one and on several processes, and makes
its figures of what was kept of all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.scores import JudgeError, Scores
from engine.segmentation import instances, panoptic
from engine.segmentation.frames import SegmentedFrame, SegmentNames
from engine.segmentation.semantic import score_semantic, semantic_counts


@dataclass(frozen=True, kw_only=True)
class SegmentBenchmark:
    """A metric of points.

    Attributes:
        keep: what it needs of a frame, small; a JudgeError where the frame lacks it.
        score: its figures, of what was kept of each frame, by key.
        things: whether it judges objects.
    """

    keep: Callable[[SegmentedFrame, SegmentNames], Any]
    score: Callable[[Mapping[str, Any], SegmentNames], Scores]
    things: bool


def _panoptic(rules: panoptic.PanopticRules) -> SegmentBenchmark:
    return SegmentBenchmark(
        keep=functools.partial(panoptic.panoptic_counts, rules=rules),
        score=functools.partial(panoptic.score_panoptic, rules=rules),
        things=True,
    )


def _instances(rules: instances.InstanceRules) -> SegmentBenchmark:
    return SegmentBenchmark(
        keep=functools.partial(instances.instance_counts, rules=rules),
        score=functools.partial(instances.score_instances, rules=rules),
        things=True,
    )


BENCHMARKS: Mapping[str, SegmentBenchmark] = {
    "semantic": SegmentBenchmark(keep=semantic_counts, score=score_semantic, things=False),
    "panoptic_semantickitti": _panoptic(panoptic.SEMANTICKITTI),
    "panoptic_nuscenes": _panoptic(panoptic.NUSCENES),
    "instances": _instances(instances.FEW_POINTS),
    "instances_scannet": _instances(instances.SCANNET),
}
"""Name of a benchmark -> its metric with the official settings."""


def check_names(benchmark: str, names: SegmentNames) -> None:
    """Refuse to judge objects where none are told apart.

    Raises:
        JudgeError: there are no things.
    """
    if BENCHMARKS[benchmark].things and not names.things:
        raise JudgeError(
            f"{benchmark} judges objects, and the network tells none apart (model.things=[]); choose the benchmark "
            "semantic, or a network and classes with things"
        )


def judge(benchmark: str, kept: Mapping[str, Any], names: SegmentNames) -> Scores:
    """Figures of a benchmark.

    Args:
        benchmark: one of `BENCHMARKS`.
        kept: what it has kept of each frame, by key.
        names: what is told apart.

    Raises:
        JudgeError: there is no frame.
    """
    if not kept:
        raise JudgeError("there is no labelled frame to judge; is the split empty?")
    return BENCHMARKS[benchmark].score(kept, names)
