"""All downstream protocols: one entry of `PROTOCOLS` each, and one section of `ProtocolsConfig`.

A further protocol is a file with its config and its measuring function, its entry here and, unless it shares another's
settings, its section. Everything else (records, tables, follow-up jobs, the checks of a config) reads this table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from common.ranges import different, expect, some_of
from engine.downstream import depth, finetune, frozen, image_segmentation, registration
from engine.downstream.depth import DepthConfig
from engine.downstream.finetune import FinetuneConfig
from engine.downstream.image_segmentation import ImageFinetuneConfig, ImageProbeConfig
from engine.downstream.knn import KnnConfig
from engine.downstream.linear_probe import LinearProbeConfig
from engine.downstream.registration import RegistrationConfig
from engine.downstream.runner import Protocol, SharedConfig, Tower, drawn_work

# What the protocols of one kind have in common.
_points = partial(
    Protocol,
    remark="mIoU over the classes of the test split, every point with its voxel's prediction.",
    tower="backbone",
    metric="miou",
    truth="labels",
)
_frozen_points = partial(
    _points,
    frozen=True,
    shared=("voxels_per_sweep",),
    measure=frozen.measure_frozen,
    work=frozen.frozen_work,
)
_depth = partial(
    Protocol,
    remark="Depth metrics are taken for each image of the test split and averaged over the images.",
    tower="image_backbone",
    metric=depth.MAIN_METRIC,
    truth="depth",
    section="depth",
    drawn=True,
    work=drawn_work,
)
_pixels = partial(
    Protocol,
    remark="mIoU of images over the classes of the test split, every pixel at the size that the network sees.",
    tower="image_backbone",
    metric="miou",
    truth="labels",
)

PROTOCOLS: dict[str, Protocol] = {
    "linear_probe": _frozen_points(
        title="linear probe",
        idea="The network stays as it is; one linear layer learns the classes from its features, with all labels.",
        section="linear_probe",
    ),
    "knn": _frozen_points(
        title="kNN",
        idea="Nothing is trained: a voxel gets the class of its nearest labelled neighbours in feature space.",
        section="knn",
    ),
    "finetune": _points(
        title="fine-tuning",
        idea="The whole network learns the classes, from the labelled sweeps named in the title alone.",
        section="finetune",
        drawn=True,
        measure=finetune.measure_finetune,
        work=drawn_work,
    ),
    "sweep_probe": _points(
        title="linear probe on whole sweeps",
        idea="The network stays as it is; a linear layer learns the classes from whole, augmented sweeps.",
        section="finetune",
        frozen=True,
        drawn=True,
        measure=partial(finetune.measure_finetune, frozen=True),
        work=drawn_work,
    ),
    "depth": _depth(
        title="depth of images", idea="The image network and a decoder learn depth.", measure=depth.measure_depth
    ),
    "depth_frozen": _depth(
        title="depth of images, network frozen",
        idea="The image network stays as it is; a decoder learns depth from its features.",
        frozen=True,
        measure=partial(depth.measure_depth, frozen=True),
    ),
    "image_linear_probe": _pixels(
        title="classes of pixels, linear probe",
        idea="The image network stays as it is; one linear layer learns the classes from its features.",
        section="image_linear_probe",
        frozen=True,
        measure=image_segmentation.measure_image_probe,
        work=image_segmentation.image_probe_work,
    ),
    "image_finetune": _pixels(
        title="classes of pixels, fine-tuning",
        idea="The image network and a decoder learn the classes, from the labelled samples named in the title alone.",
        section="image_finetune",
        drawn=True,
        measure=image_segmentation.measure_image_finetune,
        work=drawn_work,
    ),
    "registration": Protocol(
        title="registration",
        remark=(
            "Registration: medians over the images of the test split, 180 degrees where no pose was found; "
            "registered: within 2 m and 5 degrees; matching errors over the points that an image shows. Nothing is "
            "trained, no label is used."
        ),
        tower="objective",
        metric=registration.MAIN_METRIC,
        truth="pose",
        section="registration",
        measure=registration.measure_registration,
        work=registration.registration_work,
        describe=registration.described_registration,
    ),
}
"""Name in configs and records -> protocol, in the order of tables."""


def title_of(name: str) -> str:
    """A protocol as tables name it; the bare name of one that this version does not know."""
    return PROTOCOLS[name].title if name in PROTOCOLS else name


def of_tower(names: Iterable[str], tower: Tower) -> dict[str, Protocol]:
    """Those of the named protocols that measure one tower, in the table's order."""
    chosen = set(names)
    return {name: p for name, p in PROTOCOLS.items() if name in chosen and p.tower == tower}


@dataclass(frozen=True, kw_only=True)
class ProtocolsConfig(SharedConfig):
    """Which protocols run, what they share, and a section for each (with the fields of `SharedConfig`)."""

    linear_probe: LinearProbeConfig = field(default_factory=LinearProbeConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    image_linear_probe: ImageProbeConfig = field(default_factory=ImageProbeConfig)
    image_finetune: ImageFinetuneConfig = field(default_factory=ImageFinetuneConfig)
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self, "protocols", bool(self.protocols), f"one or more of {', '.join(PROTOCOLS)}")
        some_of(self, protocols=PROTOCOLS)
        different(self, "protocols")

    def seeds(self, protocol: str) -> tuple[int, ...]:
        """Seeds of one protocol."""
        seeds: tuple[int, ...] = getattr(self, PROTOCOLS[protocol].section).seeds
        return seeds

    def undrawn(self, tower: Tower) -> tuple[str, ...]:
        """The chosen protocols of a tower that use all labels, or none: one pass through the sets serves them all."""
        return tuple(name for name, p in of_tower(self.protocols, tower).items() if not p.drawn)

    def drawn(self) -> tuple[str, ...]:
        """The chosen protocols that train on drawn samples."""
        return tuple(name for name, p in PROTOCOLS.items() if name in self.protocols and p.drawn)
