"""What every segmentation network offers to the engine, the launchers and the metrics.

A segmenter is an objective like a pre-training method and like a detector: its `forward` gives the loss of a labelled
batch. Beside it, `segment` gives classes and objects of points.

Letters: N points of all samples, O objects of all samples.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from common.nearby import nearest
from common.ranges import different, expect
from data.batch_spec import BatchSpec
from data.sample import Batch
from models.methods.base import Objective
from models.supervised import SupervisedConfig


@dataclass(frozen=True, kw_only=True)
class Segments:
    """What a network says of the points of a batch.

    Attributes:
        point_class: index into the network's classes.
        point_object: object of each point, -1 for none; those of one sample are consecutive. Its points may be of
            several classes, as the network gives them.
        object_class: of each object, index into the network's classes.
        object_score: how sure the network is of it, 0 to 1.
    """

    point_class: Int[Tensor, " N"]
    point_object: Int[Tensor, " N"]
    object_class: Int[Tensor, " O"]
    object_score: Float[Tensor, " O"]


class Segmenter(Objective):
    """A 3D network (attribute `backbone`, which `init` fills) with the heads that make segments of its features."""

    @abstractmethod
    def segment(self, batch: Batch) -> Segments:
        """Class and object of each point; called in evaluation mode without gradient."""


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(SupervisedConfig):
    """Settings of a segmentation network: the paper's values as defaults.

    Attributes:
        classes: names of the set's classes that are told apart, in the order of the network's outputs; points of all
            others are neither learnt from nor judged.
        things: those of them whose objects are told apart; (): none are.
    """

    classes: tuple[str, ...] = ()
    things: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check ranges; a network's own `__post_init__` calls this one."""
        expect(self, "classes", len(self.classes) > 1, "at least two names")
        different(self, "classes", "things")
        unknown = [name for name in self.things if name not in self.classes]
        near = nearest(unknown[0], self.classes) if unknown else ""
        expect(self, "things", not unknown, f"some of the classes ({', '.join(self.classes)}){near}")

    def batch_spec(self) -> BatchSpec:
        """Points, their classes, and their objects where these are told apart."""
        return BatchSpec(images=False, point_classes=self.classes, instances=bool(self.things))

    @abstractmethod
    def build(self) -> Segmenter:
        """Assemble the network with fresh weights."""
