"""What every detector offers to the engine, the launchers and the metrics.

A detector is an objective like a pre-training method: its `forward` gives the loss of a labelled batch, so that the
same engine trains both. Beside it, `detect` gives boxes.

Letters: D detections of all samples, B samples.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from common.ranges import different, expect
from data.batch_spec import BatchSpec
from data.sample import Batch
from models.methods.base import Objective
from models.supervised import SupervisedConfig


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Found objects of a batch, those of one sample after another, by falling score within a sample.

    Attributes:
        boxes: as `data.sample.BatchBoxes.boxes`, in the frame of `Batch.points`.
        velocities_mps: in the ground plane; NaN where the detector gives none.
        classes: index into the detector's classes.
        scores: 0 to 1.
        sample: sample of each, non-decreasing.
    """

    boxes: Float[Tensor, "D 7"]
    velocities_mps: Float[Tensor, "D 2"]
    classes: Int[Tensor, " D"]
    scores: Float[Tensor, " D"]
    sample: Int[Tensor, " D"]


class Detector(Objective):
    """Networks (attributes `backbone`, a 3D one, or `image_backbone`; `init` fills them) with heads that make boxes."""

    LOOKS_AT_IMAGES: ClassVar[bool] = False
    """Whether `detect` needs images with their calibration; frames without a point in them are then looked at, too."""

    @abstractmethod
    def detect(self, batch: Batch) -> Detections:
        """Objects of each sample, after non-maximum suppression; called in evaluation mode without gradient."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(SupervisedConfig):
    """Settings of a detector: the paper's values as defaults.

    Attributes:
        classes: names of the set's classes that are found, in the order of the detector's outputs.
    """

    classes: tuple[str, ...] = ("car", "pedestrian", "cyclist")

    def __post_init__(self) -> None:
        """Check ranges; a detector's own `__post_init__` calls this one."""
        expect(self, "classes", len(self.classes) > 0, "at least one name")
        different(self, "classes")

    def batch_spec(self) -> BatchSpec:
        """Points and boxes."""
        return BatchSpec(images=False, boxes=self.classes)

    @abstractmethod
    def build(self) -> Detector:
        """Assemble the detector with fresh weights."""
