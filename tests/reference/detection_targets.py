"""What detection heads have to learn, box by box and cell by cell, from their papers and released code."""

from __future__ import annotations

import math

Box = list[float]
"""x, y, z of the centre, length, width, height, heading."""


def nearest_iou(a: Box, b: Box) -> float:
    """Overlap of two footprints, each turned to the axis that it is nearer to."""

    def rectangle(box: Box) -> tuple[float, float, float, float]:
        x, y, _, length, width, _, heading = box
        turn = abs(heading - math.floor(heading / math.pi + 0.5) * math.pi)
        if turn > math.pi / 4:
            length, width = width, length
        return x - length / 2, y - width / 2, x + length / 2, y + width / 2

    ax0, ay0, ax1, ay1 = rectangle(a)
    bx0, by0, bx1, by1 = rectangle(b)
    shared = max(min(ax1, bx1) - max(ax0, bx0), 0.0) * max(min(ay1, by1) - max(ay0, by0), 0.0)
    return shared / max(a[3] * a[4] + b[3] * b[4] - shared, 1e-6)


def assigned(anchors: list[Box], boxes: list[Box], matched: float, unmatched: float) -> list[int]:
    """For each anchor the number of its box, -1 for background, -2 for ignored."""
    if not boxes:
        return [-1] * len(anchors)
    table = [[nearest_iou(anchor, box) for box in boxes] for anchor in anchors]
    best_of_box = [max(row[k] for row in table) for k in range(len(boxes))]
    result = []
    for row in table:
        best = max(row)
        forced = any(row[k] == best_of_box[k] and row[k] > 0 for k in range(len(boxes)))
        if forced or best >= matched:
            result.append(row.index(best))
        else:
            result.append(-1 if best < unmatched else -2)
    return result


def radius(length: float, width: float, min_overlap: float, least: int) -> int:
    """Of the heat around a box of that many cells, as CenterNet's and CenterPoint's released codes have it."""
    s, a, m = length + width, length * width, min_overlap
    r1 = (s + math.sqrt(s * s - 4 * a * (1 - m) / (1 + m))) / 2
    r2 = (2 * s + math.sqrt(4 * s * s - 16 * (1 - m) * a)) / 2
    r3 = (-2 * m * s + math.sqrt(4 * m * m * s * s + 16 * m * (1 - m) * a)) / 2
    return max(int(min(r1, r2, r3)), least)


def heat_map(
    boxes: list[Box],
    low: tuple[float, float],
    cell: tuple[float, float],
    size: tuple[int, int],
    min_overlap: float,
    least: int,
) -> tuple[list[list[float]], list[tuple[int, int, float, float]]]:
    """Heat of one class (rows y, columns x), and the cell and the offset in it of each box."""
    heat = [[0.0] * size[0] for _ in range(size[1])]
    places = []
    for x, y, _, length, width, _, _ in boxes:
        u = min(max((x - low[0]) / cell[0], 0.0), size[0] - 0.5)
        v = min(max((y - low[1]) / cell[1], 0.0), size[1] - 0.5)
        i, j = int(u), int(v)
        places.append((i, j, u - i, v - j))
        r = radius(length / cell[0], width / cell[1], min_overlap, least)
        sigma = (2 * r + 1) / 6
        for dj in range(-r, r + 1):
            for di in range(-r, r + 1):
                if 0 <= i + di < size[0] and 0 <= j + dj < size[1]:
                    value = math.exp(-(di * di + dj * dj) / (2 * sigma * sigma))
                    heat[j + dj][i + di] = max(heat[j + dj][i + di], value)
    return heat, places


def seen_from(
    box: Box, K: list[list[float]], T: list[list[float]]
) -> tuple[tuple[float, float], float, list[float], float]:
    """A box in a camera's terms: its centre's pixel and depth, its size, its heading against the ray to the centre.

    By following the centre and a point ahead of it. A mirrored image (negative focal length) is mirrored back first.
    """
    mirrored = K[0][0] < 0

    def placed(x: float, y: float, z: float) -> list[float]:
        at = [row[0] * x + row[1] * y + row[2] * z + row[3] for row in T[:3]]
        return [-at[0] if mirrored else at[0], at[1], at[2]]

    x, y, z, length, width, height, heading = box
    centre = placed(x, y, z)
    ahead = placed(x + math.cos(heading), y + math.sin(heading), z)
    scale = math.dist(ahead, centre)
    u = abs(K[0][0]) * centre[0] / centre[2] + K[0][2]
    v = K[1][1] * centre[1] / centre[2] + K[1][2]
    turned = math.atan2(-(ahead[2] - centre[2]), ahead[0] - centre[0])
    angle = math.remainder(turned - math.atan2(centre[0], centre[2]), 2 * math.pi)
    return (u, v), centre[2], [scale * side for side in (length, width, height)], angle


def locations(sizes: list[tuple[int, int]], strides: list[int]) -> list[tuple[int, int, int]]:
    """Level, u and v of each cell of an image's maps."""
    return [
        (level, stride * column, stride * row)
        for level, ((rows, columns), stride) in enumerate(zip(sizes, strides, strict=True))
        for row in range(rows)
        for column in range(columns)
    ]


def box_of_location(
    place: tuple[int, int, int],
    strides: list[int],
    limits: list[float],
    centres: list[tuple[float, float]],
    bounds: list[tuple[float, float, float, float] | None],
    radius: float,
) -> int:
    """Number of the box that FCOS3D's location has to find, -1 for none; a box without bounds is not in the image."""
    level, u, v = place
    low, high = [-1.0, *limits, math.inf][level : level + 2]
    best, nearest = -1, math.inf
    for number, (centre, sides) in enumerate(zip(centres, bounds, strict=True)):
        if sides is None:
            continue
        left, top, right, bottom = sides
        reach = radius * strides[level]
        inside = abs(u - centre[0]) < reach and abs(v - centre[1]) < reach
        largest = max(u - left, v - top, right - u, bottom - v)
        distance = math.hypot(u - centre[0], v - centre[1])
        if inside and low <= largest <= high and distance < nearest:
            best, nearest = number, distance
    return best
