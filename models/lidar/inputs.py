"""What the numbers that a 3D network is fed mean: as much a part of the network as its weights.

Two files with the same tensors are two networks where one learnt from intensities of 0 to 255 and the other from 0 to
1, and nothing in the tensors says so: BatchNorm's statistics belong to one of them, and the other input gives other
features without any error.

Sets hold intensity from 0 to 1 here, so a factor is folded into the first layer's weights when a file is read or
written: W (s x) = (s W) x at every voxel. An offset cannot be folded: a sparse convolution sums over the neighbours
that exist, sum W (x + o) = sum W x + o sum W over *those*, which no bias equals, because their number differs from
voxel to voxel. It is added where voxels are made (`VoxelConfig.intensity_offset`), which is exact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from common.ranges import below, one_of, positive
from common.small_files import is_kind
from data.batch_spec import Features, VoxelConfig

_CHANNELS: Mapping[Features, str] = {
    "intensity": "intensity{}",
    "occupancy": "1 (occupancy)",
    "xyz_intensity": "x, y, z in metres, intensity{}",
    "xyz_intensity_time": "x, y, z in metres, intensity{}, seconds since the point was measured",
    "xyz_intensity_elongation": "x, y, z in metres, intensity{}, elongation of the pulse",
    "rgb": "red, green, blue from -0.5 to 0.5",
    "xyz_rgb": "x, y, z in metres, red, green, blue from -0.5 to 0.5",
}
"""In words; the range of intensity takes the place of the braces."""

_INTENSITY: Mapping[Features, int | None] = {
    "intensity": -1,
    "occupancy": None,
    "xyz_intensity": -1,
    "xyz_intensity_time": -2,
    "xyz_intensity_elongation": -2,
    "rgb": None,
    "xyz_rgb": None,
}
"""Channel that intensity is, counted from the last."""


@dataclass(frozen=True, kw_only=True)
class PointInput:
    """The features of an input voxel as a network, or the file that holds it, expects them.

    Attributes:
        features: which channels, see `VoxelConfig`.
        reduce: which points of a voxel make them, see `VoxelConfig`.
        intensity_scale: what the set's largest intensity, 1 here, is fed as, before the offset.
        intensity_offset: added to the scaled intensity.
    """

    features: Features = "intensity"
    reduce: Literal["first", "mean"] = "first"
    intensity_scale: float = 1.0
    intensity_offset: float = 0.0

    def __post_init__(self) -> None:
        one_of(self, features=Features, reduce=("first", "mean"))
        positive(self, "intensity_scale")
        below(self, intensity_scale=float("inf"))

    @classmethod
    def of(cls, voxels: VoxelConfig) -> PointInput:
        """What the loader makes with these settings."""
        return cls(features=voxels.features, reduce=voxels.reduce, intensity_offset=voxels.intensity_offset)

    @classmethod
    def from_text(cls, text: str) -> PointInput:
        """From `to_text`.

        Raises:
            ValueError: something else.
        """
        try:
            tree = json.loads(text)
            numbers = {name: tree[name] for name in ("intensity_scale", "intensity_offset")}
            if not all(is_kind(number, "number") for number in numbers.values()):
                raise ValueError(f"expected numbers as scale and offset, got {numbers}")
            return cls(**{**tree, **{name: float(number) for name, number in numbers.items()}})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"weights: the statement of the input, {text!r}, cannot be read ({error})") from error

    def to_text(self) -> str:
        """For a file's metadata, JSON."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        """For a person, e.g. "intensity from 0 to 255, of the first point of a voxel"."""
        span = f" from {self.intensity_offset:g} to {self.intensity_offset + self.intensity_scale:g}"
        channels = _CHANNELS[self.features].format(span)
        points = "the first point" if self.reduce == "first" else "the mean of the points"
        return f"{channels}, of {points} of a voxel"

    def scaled(self, scale: float) -> PointInput:
        """The input of the same network with its first layer's intensity weights divided by `scale`, see `fold`."""
        return PointInput(
            features=self.features,
            reduce=self.reduce,
            intensity_scale=self.intensity_scale * scale,
            intensity_offset=self.intensity_offset * scale,
        )

    def fold(self, kernel: Float[Tensor, "K Cin Cout"], factor: float) -> Float[Tensor, "K Cin Cout"]:
        """The first layer's kernel with the weights of intensity times `factor`."""
        channel = _INTENSITY[self.features]
        if channel is None or factor == 1:
            return kernel
        folded = kernel.clone()
        folded[:, channel] *= factor
        return folded

    def scale_features(self, features: Float[Tensor, "M F"]) -> Float[Tensor, "M F"]:
        """Features of voxels as this input has them, from those of a set here, with intensity times the scale."""
        channel = _INTENSITY[self.features]
        if channel is None or self.intensity_scale == 1:
            return features
        scaled = features.clone()
        scaled[:, channel] *= self.intensity_scale
        return scaled


SLIDR_INPUT = PointInput(intensity_scale=255.0)
"""Of published SLidR checkpoints, which learnt from nuScenes' intensities as its files have them.

Source: Sautier et al., SLidR (CVPR 2022), released code: the pre-training loader feeds the raw value of a voxel's first
point. On SemanticKITTI its downstream loader feeds 1 + intensity, 0 to 1, to the same weights.
"""

SLIDR_VOXELS = VoxelConfig(kind="cylindrical", size=(0.1, 1.0, 0.1), features="intensity", reduce="first")
"""Their grid; m, degrees, m."""
