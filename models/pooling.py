"""Means over superpixels of what a map says of each pixel, without a value for any pixel.

Between cells a map is bilinear, so a pixel's feature is a mix of four cells, and the mean over a superpixel is a mix of
the cells under it:
    mix[p]  = sum over cells c of  weight[p, c] cells[c]
    mean[s] = sum over cells c of  W[s, c] cells[c],   W[s, c] = (sum over pixels p of s of weight[p, c]) / |s|
Where pixels are brought to unit length first, each pixel's weights are divided by the length of its mix, which asks
only for inner products of cells side by side:
    |mix[p]|^2 = sum over cells c, c' of  weight[p, c] weight[p, c'] (cells[c] . cells[c'])
Time and memory go with the pixels and with cells x channels, never with pixels x channels, and W of one image at a time
is held: its superpixels x its cells, stride^2 times less than superpixels x pixels.

On the CPU results are the same bit for bit from run to run with as many threads. On CUDA `index_add` adds in any order,
so that the last bits differ unless torch's deterministic algorithms are on.

Letters: I images, C channels, H W pixels, h w cells, S segments, s segments of one image, P = H W, K = h w.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.pairing import FeatureMap, full_precision, linear_cells

_EPS = 1e-12
"""Shorter features are divided by this instead of by their length, as `torch.nn.functional.normalize` does."""
_NOISE = 16.0
"""Rounding of a mix's squared length, at most, in units of the type's epsilon times the cells' squared lengths."""


def segment_mean_of_map(
    feature_map: FeatureMap, segments: Int[Tensor, "I H W"], num_segments: int
) -> tuple[Float[Tensor, "S C"], Float[Tensor, " S"]]:
    """Mean over each segment's pixels of the up-sampled map.

    In float32 (float64 for float64 input). `segments` has the segment of each pixel, unique over all images, negative
    where none.

    Returns:
        Means (zeros where a segment has no pixel) and the number of pixels of each segment.
    """
    values = full_precision(feature_map.values)
    grid = _Grid(feature_map, segments, values)
    means = values.new_zeros(num_segments, values.shape[1])
    counts = values.new_zeros(num_segments)
    for cells, ids in zip(values, segments, strict=True):
        found = _Found.of(ids, num_segments)
        share = grid.mixing(found) / found.pixels.unsqueeze(1)
        means = means.index_add(0, found.present, share @ cells.flatten(1).T)
        counts = counts.index_add(0, found.present, found.pixels.to(counts.dtype))
    return means, counts


def segment_mean_of_unit_pixels(
    feature_map: FeatureMap, segments: Int[Tensor, "I H W"], num_segments: int
) -> Float[Tensor, "S C"]:
    """Mean over each segment's pixels of the up-sampled map's features at unit length; zeros where it has no pixel.

    Equal to the mean of `models.heads.unit_pixels`, in value and gradient, up to rounding. In float32 (float64 for
    float64 input), also under autocast; once differentiable. A pixel whose four cells cancel to less than 0.14 % of
    the longest one (float32) is rounding alone: it counts with less than unit length.

    `segments` has the segment of each pixel, unique over all images, negative where none.
    """
    grid = _Grid(feature_map, segments, full_precision(feature_map.values[:0]))
    means: Tensor = _UnitMean.apply(feature_map.values, segments, num_segments, grid)  # type: ignore[no-untyped-call]
    return means


@dataclass(frozen=True)
class _Found:
    """The segments of one image, numbered without gaps."""

    present: Int64[Tensor, " s"]  # ascending
    local: Int64[Tensor, " P"]  # place in `present`, s for pixels of no segment
    pixels: Int64[Tensor, " s"]

    @classmethod
    def of(cls, ids: Int[Tensor, "H W"], num_segments: int) -> _Found:
        ids = torch.where(ids < 0, num_segments, ids).flatten().to(torch.int64)
        pixels = torch.bincount(ids, minlength=num_segments + 1)[:num_segments]
        present = pixels.nonzero().flatten()
        place = pixels.new_full((num_segments + 1,), len(present))
        place[present] = torch.arange(len(present), device=ids.device)
        return cls(present, place[ids], pixels[present])


@dataclass(frozen=True)
class _Axis:
    """How the pixels along one axis mix its cells."""

    lower: Int64[Tensor, " length"]
    upper: Int64[Tensor, " length"]
    weight: Float[Tensor, " length"]  # of the upper cell
    squares: Float[Tensor, "length cells"]  # each cell's weight, squared
    products: Float[Tensor, "length cells"]  # each cell's weight times that of the next, twice

    @classmethod
    def of(cls, length: int, cells: int, feature_map: FeatureMap, like: Tensor) -> _Axis:
        stride, origin = feature_map.stride, feature_map.origin_px
        lower, upper, weight = linear_cells(length, cells, 1 / stride, -origin / stride, like)
        squares, products = weight.new_zeros(2, length, cells)
        squares.scatter_(1, lower[:, None], (1 - weight).square()[:, None])
        squares.scatter_add_(1, upper[:, None], weight.square()[:, None])
        products.scatter_(1, lower[:, None], (2 * weight * (1 - weight))[:, None])
        return cls(lower, upper, weight, squares, products)


class _Grid:
    """Which cells each pixel of an image mixes, and how."""

    def __init__(self, feature_map: FeatureMap, segments: Int[Tensor, "I H W"], like: Tensor) -> None:
        (height, width), (h, w) = segments.shape[-2:], feature_map.size
        y, x = _Axis.of(height, h, feature_map, like), _Axis.of(width, w, feature_map, like)
        self.y, self.x = y, x
        self.num_cells = h * w
        self.corners = [  # the four cells of each pixel and their weights
            ((yi[:, None] * w + xi[None, :]).flatten(), (wy[:, None] * wx[None, :]).flatten())
            for yi, wy in ((y.lower, 1 - y.weight), (y.upper, y.weight))
            for xi, wx in ((x.lower, 1 - x.weight), (x.upper, x.weight))
        ]

    def mixing(self, found: _Found, factor: Float[Tensor, " P"] | None = None) -> Float[Tensor, "s K"]:
        """W[s, c] |s|: sums over each segment's pixels of their weights for each cell, times a factor a pixel."""
        weights = self.y.weight.new_zeros((len(found.present) + 1) * self.num_cells)
        first = found.local * self.num_cells
        for cell, weight in self.corners:
            weights.index_add_(0, first + cell, weight if factor is None else weight * factor)
        return weights.view(-1, self.num_cells)[:-1]

    def mixed(self, found: _Found, table: Float[Tensor, "s K"]) -> Float[Tensor, " P"]:
        """Each pixel's mix of what its segment's row says of cells, 0 for pixels of no segment: adjoint of `mixing`."""
        entries = F.pad(table, (0, 0, 0, 1)).flatten()
        first = found.local * self.num_cells
        total = entries.new_zeros(len(first))
        for cell, weight in self.corners:
            total.addcmul_(entries.index_select(0, first + cell), weight)
        return total

    def inverse_lengths(self, cells: Float[Tensor, "h w C"]) -> tuple[Float[Tensor, " P"], Bool[Tensor, " P"]]:
        """1 / length of each pixel's mix, and whether that length is more than rounding."""
        y, x = self.y, self.x
        own = cells.square().sum(-1)
        right, down, *across = ((cells[one] * cells[other]).sum(-1) for one, other in _NEIGHBOURS)
        even = own @ x.squares.T + F.pad(right, (0, 1)) @ x.products.T
        odd = F.pad(down, (0, 0, 0, 1)) @ x.squares.T + F.pad(across[0] + across[1], (0, 1, 0, 1)) @ (x.products.T / 2)
        squared = y.squares @ even + y.products @ odd
        longest = torch.maximum(own[y.lower], own[y.upper])  # of the cells above and below each row of pixels
        longest = torch.maximum(longest[:, x.lower], longest[:, x.upper])
        least = (_NOISE * torch.finfo(own.dtype).eps * longest).clamp(min=_EPS**2)
        return torch.maximum(squared, least).rsqrt().flatten(), (squared > least).flatten()

    def add_lengths_gradient(
        self, grad_cells: Float[Tensor, "h w C"], cells: Float[Tensor, "h w C"], grad: Float[Tensor, " P"]
    ) -> None:
        """Add what the gradient with respect to the pixels' squared lengths is with respect to the cells."""
        y, x = self.y, self.x
        of_pixels = grad.view(len(y.weight), len(x.weight))
        even, odd = y.squares.T @ of_pixels, y.products.T @ of_pixels
        grad_cells.addcmul_(cells, (even @ x.squares).unsqueeze(-1), value=2)
        across = odd @ x.products / 2
        weights = (even @ x.products)[:, :-1], (odd @ x.squares)[:-1], across[:-1, :-1], across[:-1, :-1]
        for (one, other), weight in zip(_NEIGHBOURS, weights, strict=True):
            grad_cells[one].addcmul_(cells[other], weight.unsqueeze(-1))
            grad_cells[other].addcmul_(cells[one], weight.unsqueeze(-1))


_ALL, _FIRST, _SECOND = slice(None), slice(None, -1), slice(1, None)
_NEIGHBOURS = (
    ((_ALL, _FIRST), (_ALL, _SECOND)),  # to the right
    ((_FIRST, _ALL), (_SECOND, _ALL)),  # below
    ((_FIRST, _FIRST), (_SECOND, _SECOND)),  # both diagonals
    ((_FIRST, _SECOND), (_SECOND, _FIRST)),
)
"""Pairs of cells that a pixel mixes."""


class _UnitMean(torch.autograd.Function):
    """`segment_mean_of_unit_pixels`.

    With n = |mix[p]| and g the gradient of mean[s] over |s|, the gradient of cell c is the sum over pixels p of
        weight[p, c] g / n  -  weight[p, c] mix[p] (g . mix[p]) / n^3,
    of which the first part is W^T g, and the second that of -(g . mix[p]) / (2 n^3) on the squared lengths.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Float[Tensor, "I C h w"], segments: Int[Tensor, "I H W"], num_segments: int, grid: _Grid
    ) -> Float[Tensor, "S C"]:
        means = grid.y.weight.new_zeros(num_segments, values.shape[1])
        inverses, certain = [], []
        with torch.autocast(values.device.type, enabled=False):
            for image, ids in zip(values, segments, strict=True):
                cells, found = _rows(image), _Found.of(ids, num_segments)
                inverse, sure = grid.inverse_lengths(cells)
                inverses.append(inverse)
                certain.append(sure)
                sums = grid.mixing(found, inverse) @ cells.flatten(0, 1)
                means[found.present] = sums / found.pixels.unsqueeze(1)
        ctx.grid = grid
        ctx.save_for_backward(values, segments, *inverses, *certain)
        return means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Float[Tensor, "S C"]) -> tuple[Float[Tensor, "I C h w"], None, None, None]:
        values, segments, *saved = ctx.saved_tensors
        grid, (grad,) = ctx.grid, grads
        out = torch.empty_like(values)
        with torch.autocast(values.device.type, enabled=False):
            for number, (image, ids) in enumerate(zip(values, segments, strict=True)):
                inverse, sure = saved[number], saved[len(values) + number]
                cells, found = _rows(image), _Found.of(ids, len(grad))
                rows = grad[found.present] / found.pixels.unsqueeze(1)
                of_lengths = grid.mixed(found, rows @ cells.flatten(0, 1).T) * inverse**3 * (-0.5 * sure)
                grad_cells = (grid.mixing(found, inverse).T @ rows).view_as(cells)
                grid.add_lengths_gradient(grad_cells, cells, of_lengths)
                out[number] = grad_cells.movedim(-1, 0)
        return out, None, None, None


def _rows(image: Float[Tensor, "C h w"]) -> Float[Tensor, "h w C"]:
    """An image's cells, one beside the other, in full precision."""
    return full_precision(image).movedim(0, -1).contiguous()
