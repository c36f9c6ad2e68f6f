"""What metrics of points are given: the true and the found classes and objects of one frame's points.

Letters: N points, O found objects, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from engine.scores import JudgeError


@dataclass(frozen=True, kw_only=True)
class SegmentNames:
    """What is told apart.

    Attributes:
        classes: names, in the order of their numbers.
        things: those of them whose objects are told apart.
        dataset: name of the set, whose own tool's rules may count.
    """

    classes: tuple[str, ...]
    things: tuple[str, ...] = ()
    dataset: str = ""

    @property
    def is_thing(self) -> Bool[np.ndarray, " K"]:
        """Of each class, whether its objects are told apart."""
        return np.array([name in self.things for name in self.classes], dtype=np.bool_)


@dataclass(frozen=True, kw_only=True)
class SegmentedFrame:
    """All points of a frame, the true and the found.

    Attributes:
        key: of the frame.
        true_class: of each point; -1: unlabelled, or of none of the classes.
        true_object: of each point, any number from 0 on; -1: none. None where nobody has told objects apart.
        found_class: of each point; -1: nothing was found there.
        found_object: of each point, a row of the objects; -1: none.
        object_class: of each found object.
        object_score: how sure the network is of it, 0 to 1.
    """

    key: str
    true_class: Int64[np.ndarray, " N"]
    true_object: Int64[np.ndarray, " N"] | None
    found_class: Int64[np.ndarray, " N"]
    found_object: Int64[np.ndarray, " N"]
    object_class: Int64[np.ndarray, " O"]
    object_score: Float64[np.ndarray, " O"]

    def __post_init__(self) -> None:
        points, objects = len(self.true_class), len(self.object_class)
        for name in ("true_object", "found_class", "found_object"):
            value = getattr(self, name)
            if value is not None and len(value) != points:
                raise JudgeError(f"frame {self.key}: {len(value)} {name} of {points} points")
        if len(self.object_score) != objects:
            raise JudgeError(f"frame {self.key}: {len(self.object_score)} scores of {objects} found objects")
        if self.found_object.max(initial=-1) >= objects:
            raise JudgeError(f"frame {self.key}: a point is of object {self.found_object.max()} of {objects}")

    def objects(self, benchmark: str) -> Int64[np.ndarray, " N"]:
        """True objects, for a benchmark that cannot do without.

        Raises:
            JudgeError: nobody has told them apart.
        """
        if self.true_object is None:
            raise JudgeError(
                f"frame {self.key}: nobody has told the objects of its points apart, which {benchmark} needs; choose "
                "the benchmark semantic, or another set"
            )
        return self.true_object
