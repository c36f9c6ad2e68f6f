"""Overlap of upright, rotated boxes in the ground plane and in space.

A box is x, y, z of its centre, length along the heading, width, height (metres), heading from +x counter-clockwise
about z (radians), in any frame whose z points up. Overlaps are exact: one rectangle is clipped by the other, in the
precision of the boxes. Only pairs are clipped whose circumscribed circles meet, some at a time, so that apart from the
result memory does not grow with the number of pairs.

A box overlaps nothing, itself included, where one of the values in question is not finite (z and height do not matter
for footprints), where a size is not positive, or where its area or volume exceeds what its precision can hold.

Letters: K, L boxes, P pairs of boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

_DISTANCES_AT_A_TIME = 1 << 20
"""Pairs whose distance is looked at together."""

_PAIRS_AT_A_TIME = 1 << 14
"""Pairs that are clipped together on a CPU: their edges stay in its caches. A GPU gets 64 times as many."""

_FOOTPRINT = (0, 1, 3, 4, 6)
"""Columns x, y, length, width, heading."""


def bev_corners(boxes: Float[Tensor, "K 7"]) -> Float[Tensor, "K 4 2"]:
    """Corners of the footprints, counter-clockwise; the first is on the left at the front."""
    along = boxes.new_tensor([0.5, -0.5, -0.5, 0.5]) * boxes[:, 3:4]
    across = boxes.new_tensor([0.5, 0.5, -0.5, -0.5]) * boxes[:, 4:5]
    c, s = boxes[:, 6:7].cos(), boxes[:, 6:7].sin()
    return torch.stack([boxes[:, 0:1] + along * c - across * s, boxes[:, 1:2] + along * s + across * c], dim=-1)


def bev_intersection(a: Float[Tensor, "K 7"], b: Float[Tensor, "L 7"]) -> Float[Tensor, "K L"]:
    """Area that two footprints share, m^2."""
    return _of_all_pairs(a, b, _shared_area)


def bev_iou(a: Float[Tensor, "K 7"], b: Float[Tensor, "L 7"]) -> Float[Tensor, "K L"]:
    """Intersection over union of footprints; 0 where both have no area."""
    return _of_all_pairs(a, b, bev_iou_of_pairs)


def bev_iou_of_pairs(a: Float[Tensor, "K 7"], b: Float[Tensor, "K 7"]) -> Float[Tensor, " K"]:
    """`bev_iou` of each box with the one in the same row."""
    return _ratio(_shared_area(a, b), a[:, 3] * a[:, 4], b[:, 3] * b[:, 4])


def iou_3d(a: Float[Tensor, "K 7"], b: Float[Tensor, "L 7"]) -> Float[Tensor, "K L"]:
    """Intersection over union of volumes; 0 where both have none."""
    return _of_all_pairs(a, b, iou_3d_of_pairs)


def iou_3d_of_pairs(a: Float[Tensor, "K 7"], b: Float[Tensor, "K 7"]) -> Float[Tensor, " K"]:
    """`iou_3d` of each box with the one in the same row."""
    # Heights are added to the distance of the centres, not to z: boxes may lie far from the origin.
    offset, half_a, half_b = b[:, 2] - a[:, 2], a[:, 5] / 2, b[:, 5] / 2
    height = torch.minimum(half_a, offset + half_b) - torch.maximum(-half_a, offset - half_b)
    shared = _shared_area(a, b) * height.clamp(min=0)
    return _ratio(shared, a[:, 3:6].prod(dim=1), b[:, 3:6].prod(dim=1))


def axis_aligned_bev_iou(a: Float[Tensor, "K 7"], b: Float[Tensor, "L 7"]) -> Float[Tensor, "K L"]:
    """IoU of footprints turned to the nearer axis, as anchors are assigned.

    Length and width are swapped where the heading is nearer to +-y than to +-x (at 45 degrees they are not).
    """
    return _of_all_pairs(_to_nearer_axis(a), _to_nearer_axis(b), bev_iou_of_pairs)


def near_pairs(
    a: Float[Tensor, "K 7"], b: Float[Tensor, "L 7"]
) -> Iterator[tuple[Int[Tensor, " P"], Int[Tensor, " P"]]]:
    """Pairs of boxes whose footprints may overlap: their circumscribed circles meet. No pair that overlaps is missed.

    Yields:
        Row of `a` and row of `b` of each pair, sorted by them, some pairs at a time.
    """
    reach_a, reach_b = _reach(a), _reach(b)
    rows = max(1, _DISTANCES_AT_A_TIME // max(1, len(b)))
    at_a_time = _PAIRS_AT_A_TIME if a.device.type == "cpu" else 64 * _PAIRS_AT_A_TIME
    for start in range(0, len(a), rows):
        part = a[start : start + rows, :2]
        offset = part[:, None] - b[None, :, :2]
        distance = torch.hypot(offset[..., 0], offset[..., 1])
        # A little more than the radii, which are rounded; comparisons with NaN are false.
        near = distance <= (reach_a[start : start + rows, None] + reach_b) * (1 + 1e-5)
        i, j = near.nonzero(as_tuple=True)
        yield from zip((i + start).split(at_a_time), j.split(at_a_time), strict=True)


def _of_all_pairs(
    a: Float[Tensor, "K 7"], b: Float[Tensor, "L 7"], of_pairs: Callable[[Tensor, Tensor], Tensor]
) -> Float[Tensor, "K L"]:
    """A measure of pairs that is 0 unless the footprints overlap."""
    out = torch.zeros((len(a), len(b)), dtype=torch.promote_types(a.dtype, b.dtype), device=a.device)
    for i, j in near_pairs(a, b):
        out[i, j] = of_pairs(a[i], b[j]).to(out.dtype)
    return out


def _reach(boxes: Float[Tensor, "K 7"]) -> Float[Tensor, " K"]:
    """Radius of the circle around each footprint; NaN where there is no footprint."""
    usable = boxes[:, _FOOTPRINT].isfinite().all(dim=1) & (boxes[:, 3:5] > 0).all(dim=1)
    reach: Tensor = torch.hypot(boxes[:, 3], boxes[:, 4]) / 2
    return torch.where(usable, reach, torch.nan)


def _to_nearer_axis(boxes: Float[Tensor, "K 7"]) -> Float[Tensor, "K 7"]:
    yaw = boxes[:, 6]
    swap = yaw.sin().abs() > yaw.cos().abs() * (1 + 1e-6)
    length, width = torch.where(swap, boxes[:, 4], boxes[:, 3]), torch.where(swap, boxes[:, 3], boxes[:, 4])
    # A heading that is not finite stays, so that such a box overlaps nothing here either.
    return torch.stack([*boxes[:, :3].unbind(1), length, width, boxes[:, 5], yaw * 0], dim=1)


def _ratio(shared: Float[Tensor, " P"], of_a: Float[Tensor, " P"], of_b: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """Intersection over union; 0 where there is none."""
    # Rounding must not make more of the intersection than there is of the smaller one.
    shared = shared.minimum(of_a).minimum(of_b)
    usable = (shared > 0) & of_a.isfinite() & of_b.isfinite()
    return torch.where(usable, shared / (of_a + (of_b - shared)), 0)


def _shared_area(a: Float[Tensor, "P 7"], b: Float[Tensor, "P 7"]) -> Float[Tensor, " P"]:
    """Area of each footprint of `a` within the one of `b` in the same row.

    In the axes of the larger one, from the centre of the smaller one, the larger one is a range of x and of y, and the
    area is the integral over this x of the y between the smaller one's upper and lower edges that lie in this range of
    y: the integral of y, clamped, along the smaller one's four edges. Each is a sum of trapezoids between the x and y
    at which the edge enters and leaves. Every step is continuous in the boxes, so parallel, touching and equal edges
    need no tolerance.
    """
    larger = (a[:, 3] * a[:, 4] > b[:, 3] * b[:, 4])[:, None]
    outer, inner = torch.where(larger, a, b), torch.where(larger, b, a)
    low, high = _footprint_seen_from(inner, outer)
    turned = torch.stack([torch.zeros_like(inner[:, 0])] * 3 + [*inner[:, 3:6].unbind(1), inner[:, 6] - outer[:, 6]], 1)
    x0, y0 = bev_corners(turned).unbind(-1)
    x1, y1 = x0.roll(-1, dims=1), y0.roll(-1, dims=1)
    enter, leave = _share_within(x0, x1, low[:, :1], high[:, :1])
    first, last = _share_within(y0, y1, low[:, 1:], high[:, 1:])
    shares = [enter, first.clamp(enter, leave), last.clamp(enter, leave), leave]
    ys = [torch.lerp(y0, y1, share).clamp(low[:, 1:], high[:, 1:]) for share in shares]
    parts = [(s1 - s0) * (v0 + v1) for s0, s1, v0, v1 in zip(shares, shares[1:], ys, ys[1:], strict=False)]
    area: Tensor = ((parts[0] + parts[1] + parts[2]) * (x0 - x1)).sum(dim=1) / 2
    usable = torch.isfinite(area) & _reach(a).isfinite() & _reach(b).isfinite()
    return torch.where(usable, area.clamp(min=0), 0)


def _footprint_seen_from(
    inner: Float[Tensor, "P 7"], outer: Float[Tensor, "P 7"]
) -> tuple[Float[Tensor, "P 2"], Float[Tensor, "P 2"]]:
    """Lowest and highest x and y of `outer` in its own axes, with the centre of `inner` as origin."""
    offset, (c, s) = outer[:, :2] - inner[:, :2], (outer[:, 6].cos(), outer[:, 6].sin())
    x, y = offset[:, 0] * c + offset[:, 1] * s, offset[:, 1] * c - offset[:, 0] * s
    center = torch.stack([x, y], dim=1)
    return center - outer[:, 3:5] / 2, center + outer[:, 3:5] / 2


def _share_within(
    v0: Float[Tensor, "P 4"], v1: Float[Tensor, "P 4"], low: Float[Tensor, "P 1"], high: Float[Tensor, "P 1"]
) -> tuple[Float[Tensor, "P 4"], Float[Tensor, "P 4"]]:
    """Shares of the way from v0 to v1 at which the range is entered and left, 0 to 1.

    Both are the same where v is never in the range; they are 0 and 1 where v does not change, in the range or not.
    """
    step = v1 - v0
    still = step == 0
    step = torch.where(still, 1, step)
    at_low, at_high = (low - v0) / step, (high - v0) / step
    enter, leave = at_low.minimum(at_high).clamp(0, 1), at_low.maximum(at_high).clamp(0, 1)
    return torch.where(still, 0, enter), torch.where(still, 1, leave)
