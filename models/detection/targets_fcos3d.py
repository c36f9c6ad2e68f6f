"""Which box each location of an image's maps has to find, and how central it is in it.

Source: Wang et al., "FCOS3D", ICCV Workshops 2021, section 3.2; details as in MMDetection3D's released code.

Letters: L locations of all levels, K boxes of an image, P locations with a box.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

NO_BOX = -1
"""Of locations that are background."""


@dataclass(frozen=True, kw_only=True)
class Locations:
    """The cells of all levels of an image's maps, level by level, row by row.

    Attributes:
        places_px: u, v of each cell's centre.
        strides: pixels to the next cell of its level.
        reaches: least and largest extent in pixels of the boxes that are found on its level.
        per_level: how many each level has.
    """

    places_px: Float[Tensor, "L 2"]
    strides: Float[Tensor, " L"]
    reaches: Float[Tensor, "L 2"]
    per_level: tuple[int, ...]

    @classmethod
    def of(
        cls,
        sizes: Sequence[tuple[int, int]],
        strides: Sequence[int],
        limits_px: Sequence[float],
        device: torch.device,
    ) -> Locations:
        """Of levels, finest first, whose cell 0 lies on pixel 0.

        Args:
            sizes: rows and columns of cells of each level.
            strides: of each level.
            limits_px: extents at which the levels change, one fewer than there are levels.
            device: of the result.
        """
        places = []
        for (rows, columns), stride in zip(sizes, strides, strict=True):
            v, u = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            places.append(stride * torch.stack([u.flatten(), v.flatten()], dim=1))
        per_level = tuple(map(len, places))
        counts = torch.tensor(per_level)
        ends = [-1.0, *limits_px, math.inf]
        reaches = torch.tensor(list(itertools.pairwise(ends)))
        return cls(
            places_px=torch.cat(places).float().to(device),
            strides=torch.tensor(strides).float().repeat_interleave(counts).to(device),
            reaches=reaches.repeat_interleave(counts, dim=0).to(device),
            per_level=per_level,
        )


def assign(
    locations: Locations,
    centers_px: Float[Tensor, "K 2"],
    bounds_px: Float[Tensor, "K 4"],
    *,
    radius: float,
) -> Int[Tensor, " L"]:
    """The box of each location, `NO_BOX` where it has none.

    A location has a box whose projected centre is less than `radius` strides away along u and along v, if the farthest
    side of the box's bounds is as far away as boxes of its level are large; of several the one whose centre is nearest,
    of equally near ones the first.

    Args:
        locations: of the image.
        centers_px: projected centres of the boxes.
        bounds_px: left, top, right, bottom of the boxes in the image; NaN for those that it does not show.
        radius: in strides.
    """
    if len(centers_px) == 0:
        return torch.full_like(locations.strides, NO_BOX, dtype=torch.long)
    away = locations.places_px[:, None] - centers_px.to(locations.places_px.dtype)
    near = away.abs().amax(dim=2) < radius * locations.strides[:, None]
    bounds = bounds_px.to(away.dtype)
    sides = torch.cat([locations.places_px[:, None] - bounds[:, :2], bounds[:, 2:] - locations.places_px[:, None]], 2)
    # NaN fits no level.
    extent = sides.amax(dim=2)
    low, high = locations.reaches[:, :1], locations.reaches[:, 1:]
    distance = away.norm(dim=2).masked_fill(~(near & (extent >= low) & (extent <= high)), torch.inf)
    nearest, box = distance.min(dim=1)
    return torch.where(nearest.isfinite(), box, NO_BOX)


def centreness(offsets: Float[Tensor, "P 2"], *, radius: float, decay: float) -> Float[Tensor, " P"]:
    """1 where a location lies on its box's centre, falling to exp(-decay) at the corners of the square around it.

    Args:
        offsets: from the centre to the location, in strides.
        radius: half the edge of the square, in strides.
        decay: 2.5 in the paper, equation 4.
    """
    return torch.exp(-decay * offsets.norm(dim=1) / (math.sqrt(2) * radius))
