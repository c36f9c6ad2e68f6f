"""From feature maps and pairs to rows that can be compared: reading at pixels, means over superpixels.

A feature map has cells: the centre of cell i lies on pixel `origin_px + stride * i` (pixel 0 = centre of the top-left
pixel). Between centres features are bilinear, outside the outermost centres they are constant.

Means over the superpixels of a map, without its pixels: `models.pooling`.

Letters: I images, C channels, H W pixels, h w cells, R rows, P pairs, S segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor


@dataclass(frozen=True)
class FeatureMap:
    """A map and where its cells lie."""

    values: Float[Tensor, "I C h w"]  # one map an image
    stride: int = 1  # pixels from one cell to the next
    origin_px: float = 0.0  # pixel under the centre of cell 0

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return self.values.shape[-2], self.values.shape[-1]

    def read_at(self, size: tuple[int, int], *, stride: int, origin_px: float) -> Float[Tensor, "I C H W"]:
        """Bilinear values where the cells of a map with this size, stride and origin lie."""
        offset = (origin_px - self.origin_px) / self.stride
        return resample_cells(self.values, size, scale=stride / self.stride, offset=offset)


def full_precision(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Values of 16 bits as float32, because their sums would lose rows; longer types as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def row_mask(rows: Int[Tensor, " n"], num_rows: int) -> Bool[Tensor, " R"]:
    """A mask of `num_rows` entries that is set at some of them."""
    mask = torch.zeros(num_rows, dtype=torch.bool, device=rows.device)
    mask[rows] = True
    return mask


def first_of_each(group: Int[Tensor, " R"], num_groups: int) -> Int64[Tensor, " num_groups"]:
    """Place of the first occurrence of each of 0 to `num_groups` - 1, all of which occur."""
    places = torch.arange(len(group), device=group.device)
    return places.new_full((num_groups,), len(group)).scatter_reduce(0, group, places, "amin")


def segment_mean(
    features: Float[Tensor, "R C"], index: Int[Tensor, " R"], num_segments: int
) -> tuple[Float[Tensor, "S C"], Float[Tensor, " S"]]:
    """Mean of the rows of each segment.

    Sums run in float32 (or float64 for float64 input), also under autocast: a superpixel can have thousands of rows,
    more than bfloat16 can count.

    `index` has the segment of each row (pixel or point); negative rows belong to none and are left out.

    Returns:
        Means (zeros where a segment is empty) and the number of rows of each segment.
    """
    features = full_precision(features)
    # Rows of no segment go to an extra row that is cut off: cheaper than selecting the others.
    target = torch.where(index < 0, num_segments, index)
    sums = features.new_zeros(num_segments + 1, features.shape[1]).index_add(0, target, features)
    ones = features.new_ones(features.shape[0])
    counts = features.new_zeros(num_segments + 1).index_add(0, target, ones)[:num_segments]
    return sums[:num_segments] / counts.clamp(min=1).unsqueeze(1), counts


def segment_max(features: Float[Tensor, "R C"], index: Int[Tensor, " R"], num_segments: int) -> Float[Tensor, "S C"]:
    """Largest value of each channel among the rows of each segment; 0 where a segment is empty.

    Rows that share the largest value share its gradient. `index` has the segment of each row, 0 to S - 1.
    """
    features = full_precision(features)
    target = index.to(torch.int64).unsqueeze(1).expand_as(features)
    empty = features.new_zeros(num_segments, features.shape[1])
    # include_self=False: the zeros count only where a segment has no row, also if all of its features are negative.
    return empty.scatter_reduce(0, target, features, "amax", include_self=False)


def draw_rows(num_rows: int, limit: int | None, device: torch.device) -> Int[Tensor, " K"]:
    """Different rows, drawn evenly from torch's CPU generator, whose state checkpoints hold; all where few enough.

    At most `limit` of them (None: all); the result lies on `device`.
    """
    if limit is None or num_rows <= limit:
        return torch.arange(num_rows, device=device)
    return torch.randperm(num_rows)[:limit].to(device)


def read_pixels(
    feature_map: FeatureMap,
    image: Int[Tensor, " P"],
    uv: Float[Tensor, "P 2"],
    *,
    mode: Literal["bilinear", "nearest"] = "bilinear",
) -> Float[Tensor, "P C"]:
    """Features at pixel coordinates.

    `uv` are pixel coordinates (u to the right, v down) in each pair's `image`, not cells. `nearest` takes the nearest
    centre (halves go to the even cell).
    """
    values = feature_map.values
    height, width = values.shape[-2:]
    x = ((uv[:, 0] - feature_map.origin_px) / feature_map.stride).clamp(0, width - 1)
    y = ((uv[:, 1] - feature_map.origin_px) / feature_map.stride).clamp(0, height - 1)
    if mode == "nearest":
        return values[image, :, y.round().long(), x.round().long()]
    x0, y0 = x.floor().long(), y.floor().long()
    x1, y1 = (x0 + 1).clamp(max=width - 1), (y0 + 1).clamp(max=height - 1)
    fx = (x - x0).to(values.dtype).unsqueeze(1)
    fy = (y - y0).to(values.dtype).unsqueeze(1)
    top = torch.lerp(values[image, :, y0, x0], values[image, :, y0, x1], fx)
    bottom = torch.lerp(values[image, :, y1, x0], values[image, :, y1, x1], fx)
    return torch.lerp(top, bottom, fy)


def resample_cells(
    feature_map: Float[Tensor, "I C h w"], size: tuple[int, int], *, scale: float, offset: float
) -> Float[Tensor, "I C H W"]:
    """Bilinear reading on a regular grid: output (i, j) is the input at cell (offset + scale i, offset + scale j).

    Two passes of linear interpolation, rows then columns. `torch.nn.functional.interpolate` knows only two offsets,
    neither of which is the place where padded, strided convolutions put their cells.

    For up-sampling to pixels `scale` is 1 / stride, `offset` is -origin_px / stride.
    """
    if scale == 1 and offset == 0 and tuple(feature_map.shape[-2:]) == size:
        return feature_map
    # Along the memory as it lies: `index_select` is several times slower across it.
    channels_last = feature_map.is_contiguous(memory_format=torch.channels_last)
    cells, axes = (feature_map.movedim(1, -1), (1, 2)) if channels_last else (feature_map, (2, 3))
    for dim, length in zip(axes, size, strict=True):
        lower, upper, weight = linear_cells(length, cells.shape[dim], scale, offset, cells)
        shape = [1, 1, 1, 1]
        shape[dim] = length
        cells = torch.lerp(cells.index_select(dim, lower), cells.index_select(dim, upper), weight.view(shape))
    return cells.movedim(-1, 1) if channels_last else cells


def upsample_to_pixels(feature_map: FeatureMap, size: tuple[int, int]) -> Float[Tensor, "I C H W"]:
    """The map's bilinear features at every pixel of an image of `size` (height, width)."""
    return feature_map.read_at(size, stride=1, origin_px=0.0)


def linear_cells(
    length: int, cells: int, scale: float, offset: float, like: Tensor
) -> tuple[Int[Tensor, " length"], Int[Tensor, " length"], Float[Tensor, " length"]]:
    """For each output position the two cells around it and the weight of the upper one."""
    positions = torch.arange(length, dtype=torch.float64, device=like.device) * scale + offset
    positions = positions.clamp(0, cells - 1)
    lower = positions.floor().long()
    upper = (lower + 1).clamp(max=cells - 1)
    return lower, upper, (positions - lower).to(like.dtype)
