"""The interface between models and loader: how voxels are made, and what a method asks for beyond points and voxels.

A method's config returns it from `batch_spec()`; the loader's workers do that work without knowing the method.

Numbers that a paper gives for its method (a radius, a distance to the ground) are fields of these dataclasses, stated
once by the method's config. How strongly clouds and images are augmented is the run's choice: `data.views.augment`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from common.ranges import above, at_least, below, expect, positive, share

Features = Literal[
    "intensity", "occupancy", "xyz_intensity", "xyz_intensity_time", "xyz_intensity_elongation", "rgb", "xyz_rgb"
]

_NUM_FEATURES: Mapping[Features, int] = {
    "intensity": 1,
    "occupancy": 1,
    "xyz_intensity": 4,
    "xyz_intensity_time": 5,
    "xyz_intensity_elongation": 5,
    "rgb": 3,
    "xyz_rgb": 6,
}
"""Channels of a voxel's input."""


@dataclass(frozen=True, kw_only=True)
class VoxelConfig:
    """The grid and the input features.

    Attributes:
        kind: "cylindrical": the cell's axes are radius, azimuth, height; "cartesian": x, y, z.
        size: edge lengths of a cell: (m, degrees, m) for cylindrical, (m, m, m) for cartesian.
        features: "intensity", "occupancy" (always 1) or "xyz_intensity" (x, y, z in metres, then intensity), which
            "xyz_intensity_time" and "xyz_intensity_elongation" follow by `Sample.times_s` and `Sample.elongations`.
            "rgb": `Sample.colors`, from -0.5 to 0.5; "xyz_rgb": x, y, z in metres, then those.
        reduce: how the points of a cell make its features: "first" (lowest point index) or "mean".
        range_min: lower limits along the cell's axes, in the units of `size`; None: unlimited.
        range_max: upper limits (exclusive).
        intensity_offset: added to intensity where it is a feature: 1 is what SLidR's code feeds on SemanticKITTI. It
            cannot be part of a network's weights, see `models.lidar.inputs`.

    With limits, the pre-training loader drops the points outside (`inside_range`), while `voxelize` itself puts
    them into the nearest cell inside, because at evaluation every point needs a voxel's prediction.

    Source: Sautier et al., SLidR (CVPR 2022): cylindrical, 0.1 m, 1 degree, 0.1 m. The paper feeds occupancy, its
    released code the intensity of the first point of a voxel, 0 to 255 on nuScenes; here intensity is 0 to 1 in every
    data set, and files of weights are converted.
    """

    kind: Literal["cartesian", "cylindrical"] = "cylindrical"
    size: tuple[float, float, float] = (0.1, 1.0, 0.1)
    features: Features = "intensity"
    reduce: Literal["first", "mean"] = "first"
    range_min: tuple[float, float, float] | None = None
    range_max: tuple[float, float, float] | None = None
    intensity_offset: float = 0.0

    def __post_init__(self) -> None:
        positive(self, "size")
        expect(self, "intensity_offset", math.isfinite(self.intensity_offset), "a finite number")
        below(self, size=math.inf)
        if (self.range_min is None) != (self.range_max is None):
            raise ValueError("range_min and range_max must be given together or not at all")
        if self.range_min is not None and self.range_max is not None:
            ordered = all(low < high for low, high in zip(self.range_min, self.range_max, strict=True))
            expect(self, "range_min", ordered, f"below range_max {self.range_max}")

    @property
    def num_features(self) -> int:
        """Channels of a voxel's input."""
        return _NUM_FEATURES[self.features]


@dataclass(frozen=True, kw_only=True)
class GroundConfig:
    """How points on the ground are separated from the others, in the recorded sweep. See `data.views.ground`.

    Attributes:
        kind: "lines": line fits in polar sectors (Himmelsbach et al., IV 2010); "plane": one plane by RANSAC.
        distance_m: points closer than this to the fitted line or plane are ground.
        max_slope: of a line or plane, rise by run.
        sectors: of "lines": angular sectors around the sensor.
        bin_m: of "lines": length of a radial bin.
        fit_error_m: of "lines": root mean square distance of a line's points to it, at most.
        step_m: of "lines": how far above or below the one line the next may begin, if it follows at once; over a gap
            half of `max_slope` is added.
        sensor_height_m: of "lines": where the ground is expected below the sensor; None: estimated from the sweep.
        trials: of "plane": planes tried.
    """

    kind: Literal["lines", "plane"] = "lines"
    distance_m: float = 0.25
    max_slope: float = 0.15
    sectors: int = 180
    bin_m: float = 0.5
    fit_error_m: float = 0.05
    step_m: float = 0.2
    sensor_height_m: float | None = None
    trials: int = 100

    def __post_init__(self) -> None:
        positive(self, "distance_m", "max_slope", "bin_m", "fit_error_m", "step_m")
        at_least(self, sectors=4, trials=1)


@dataclass(frozen=True, kw_only=True)
class PointClusterConfig:
    """How points become objects without labels, in the recorded sweep, ground left out. See `data.views.clusters`.

    Attributes:
        kind: "radius": points within `radius_m` of each other are one cluster (Klasing et al., ICRA 2008); "dbscan":
            the same, grown from core points only.
        radius_m: distance of neighbours.
        min_points: of "dbscan": neighbours, itself included, that make a core point; of both: smaller clusters are
            dropped.
        max_points: larger clusters are dropped; None: no limit.
        max_extent_m: clusters that are longer, wider or higher are dropped; None: no limit. Length and width are
            along the principal axes of the footprint.
        max_aspect: clusters whose footprint is longer than this many times its width are dropped; None: no limit.
    """

    kind: Literal["radius", "dbscan"] = "radius"
    radius_m: float = 0.5
    min_points: int = 10
    max_points: int | None = None
    max_extent_m: float | None = None
    max_aspect: float | None = None

    def __post_init__(self) -> None:
        positive(self, "radius_m")
        at_least(self, min_points=1)
        above(self, "null: no limit", max_points=0, max_extent_m=0, max_aspect=0)


@dataclass(frozen=True, kw_only=True)
class SecondCloud:
    """A second cloud of each sample, augmented on its own, and which points of the two belong together.

    Attributes:
        source: "same": the sample's sweep again; "other": another sweep of its log, registered by their poses.
        match_radius_m: of "other": nearest neighbours in the common frame match up to this distance.
        min_overlap: of "other": share of points that must have a match; sweeps of less overlap are not paired.
        max_gap_s: of "other": time between the two sweeps at most. A sample with no such partner is skipped and
            counted.
    """

    source: Literal["same", "other"] = "same"
    match_radius_m: float = 0.2
    min_overlap: float = 0.3
    max_gap_s: float = 10.0

    def __post_init__(self) -> None:
        positive(self, "match_radius_m", "max_gap_s")
        share(self, "min_overlap")


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """What a batch must hold.

    Attributes:
        images: pixels and point-pixel pairs. False: no image is decoded and sweeps without pairs are used too.
        need_pairs: of `images`: leave out samples none of whose points an image shows. False: they are used, too, even
            without any point in the voxel grid; a sample without cameras never is.
        superpixels: of the images; the set must have been prepared with them.
        only_seen: keep only points that some image shows.
        second_images: the same images augmented once more, in `Batch.second`.
        second_cloud: a second cloud in `Batch.second`; None: none.
        ground: `Batch.ground`; None: not computed.
        clusters: `Batch.clusters`; None: not computed. Ground points are left out where `ground` is asked for.
        boxes: classes, by their names in the set, whose boxes are in `Batch.boxes`, numbered in this order; (): none.
        point_classes: classes, by their names in the set, that `Batch.labels` tells apart, numbered in this order;
            points of all others are unlabelled. (): no labels of points.
        instances: `Batch.instances`, beside `point_classes`.
    """

    images: bool = True
    need_pairs: bool = True
    superpixels: bool = False
    only_seen: bool = False
    second_images: bool = False
    second_cloud: SecondCloud | None = None
    ground: GroundConfig | None = None
    clusters: PointClusterConfig | None = None
    boxes: tuple[str, ...] = ()
    point_classes: tuple[str, ...] = ()
    instances: bool = False

    def __post_init__(self) -> None:
        if self.instances and not self.point_classes:
            raise ValueError("instances need point_classes: objects are those of labelled points")
        if not self.images and (self.superpixels or self.only_seen or self.second_images):
            raise ValueError("superpixels, only_seen and second_images need images=True")
        if not self.need_pairs and (self.superpixels or self.only_seen):
            raise ValueError(
                "superpixels and only_seen need need_pairs=True: they are about the points that images show"
            )
        if self.clusters is not None and self.second_cloud is not None and self.second_cloud.source == "other":
            raise ValueError(
                "clusters of two sweeps have nothing to do with each other: they need second_cloud.source='same'"
            )
