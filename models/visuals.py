"""What a method shows of a batch, before it is drawn: plain tensors that say what they are.

Methods make sketches (`Objective.sketches`), `launchers.drawing.sketches` draws them, so that no method draws and no
drawing knows a method. `scale` says how `values` become colours, `caption` is one line.

Letters: N points, P pixel positions, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

Scale = Literal["share", "similarity", "labels", "metres", "free"]
"""How values become colours: 0 to 1; -1 to 1; one colour a whole number (negative: grey); 0 to 80 m; least to most."""


@dataclass(frozen=True, kw_only=True)
class PointSketch:
    """Points seen from above, coloured.

    Attributes:
        points: x, y, z, metres.
        marked: points drawn larger, with a ring (units, anchors); None: none.
    """

    points: Float[Tensor, "N 3"]
    values: Float[Tensor, " N"] | Int[Tensor, " N"]
    scale: Scale
    caption: str
    marked: Bool[Tensor, " N"] | None = None


@dataclass(frozen=True, kw_only=True)
class PixelSketch:
    """A map over an RGB image."""

    image: UInt8[Tensor, "3 H W"]
    values: Float[Tensor, "H W"] | Int[Tensor, "H W"]
    scale: Scale
    caption: str


@dataclass(frozen=True, kw_only=True)
class ProjectionSketch:
    """Points drawn into an RGB image, at pixel coordinates `uv`; those outside are left out."""

    image: UInt8[Tensor, "3 H W"]
    uv: Float[Tensor, "P 2"]
    values: Float[Tensor, " P"] | Int[Tensor, " P"]
    scale: Scale
    caption: str


@dataclass(frozen=True, kw_only=True)
class MatchSketch:
    """Pixel coordinates that a method found, and the true ones: lines in an RGB image, coloured by their length."""

    image: UInt8[Tensor, "3 H W"]
    found: Float[Tensor, "P 2"]
    true: Float[Tensor, "P 2"]
    caption: str


Sketch = PointSketch | PixelSketch | ProjectionSketch | MatchSketch
