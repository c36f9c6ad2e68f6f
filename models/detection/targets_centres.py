"""Where on a heat map boxes are to be found.

Letters: K boxes, X Y cells, P cells of a patch.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.lidar.base import BirdEyeGrid


def places(boxes: Float[Tensor, "K 7"], grid: BirdEyeGrid) -> Float[Tensor, "K 2"]:
    """x, y of the centres in cells, the first one from 0 to 1; those outside are moved to the rim.

    Source: CenterPoint in OpenPCDet's released code, which keeps centres half a cell from the far ends.
    """
    low, cell = boxes.new_tensor(grid.low_m), boxes.new_tensor(grid.cell_m)
    last = boxes.new_tensor(grid.size) - 0.5
    return ((boxes[:, :2] - low) / cell).clamp(min=torch.zeros_like(last), max=last)


def radii(boxes: Float[Tensor, "K 7"], grid: BirdEyeGrid, *, min_overlap: float, min_radius: int) -> Int[Tensor, " K"]:
    """Cells around a box's centre in which predictions count as nearly right, rounded down, at least `min_radius`.

    The least of three distances by which a box of the same size may be off while it overlaps the true one by
    `min_overlap`, where both corners move alike, both inwards or both outwards: solutions of quadratic equations in
    length and width in cells.

    Deviation: as in CenterPoint's released code and all that descends from CornerNet's, the roots are not divided by
    the leading coefficient, so that the second and third are no such distances; published results are of these radii.

    Source: Law and Deng, "CornerNet", ECCV 2018, section 3.2 and released code.
    """
    length, width = boxes[:, 3] / grid.cell_m[0], boxes[:, 4] / grid.cell_m[1]
    both, area = length + width, length * width
    equations = (
        (1.0, both, area * (1 - min_overlap) / (1 + min_overlap)),
        (4.0, 2 * both, area * (1 - min_overlap)),
        (4 * min_overlap, -2 * min_overlap * both, area * (min_overlap - 1)),
    )
    roots = [(b + (b**2 - 4 * a * c).clamp(min=0).sqrt()) / 2 for a, b, c in equations]
    return torch.stack(roots).amin(dim=0).long().clamp(min=min_radius)


def heat_map(
    cells: Int[Tensor, "K 2"],
    radii: Int[Tensor, " K"],
    planes: Int[Tensor, " K"],
    num_planes: int,
    size: tuple[int, int],
) -> Float[Tensor, "num_planes Y X"]:
    """1 at each box's cell, falling off as a Gaussian to the edges of a square, the largest where squares overlap.

    Args:
        cells: x, y of each box's cell.
        radii: the square has this many cells on each side of the middle one; the Gaussian's sigma is a sixth of its
            edge.
        planes: which map each box is drawn into: one a class and sample.
        num_planes: number of maps.
        size: cells along x and y.
    """
    x_size, y_size = size
    heat = torch.zeros(num_planes * y_size * x_size, device=cells.device)
    if len(cells) == 0:
        return heat.view(num_planes, y_size, x_size)
    reach = int(radii.max())
    offset = torch.arange(-reach, reach + 1, device=cells.device)
    dy, dx = (part.flatten() for part in torch.meshgrid(offset, offset, indexing="ij"))
    x, y = cells[:, :1] + dx, cells[:, 1:] + dy
    near = (dx.abs() <= radii[:, None]) & (dy.abs() <= radii[:, None])
    drawn = near & (x >= 0) & (x < x_size) & (y >= 0) & (y < y_size)
    sigma = (2 * radii + 1).to(heat.dtype) / 6
    value = torch.exp(-(dx**2 + dy**2) / (2 * sigma[:, None] ** 2))
    place = (planes[:, None] * y_size + y) * x_size + x
    return heat.scatter_reduce(0, place[drawn], value[drawn], "amax").view(num_planes, y_size, x_size)
