"""The loops of SLIC in numpy, for machines without a compiler: `data.preparing.slic` and its `slic.c` say what they do.

Results are those of `slic.c` bit for bit, so each operation on floats is the same there, in the same order.

Letters: H, W image; K centres; R runs (pixels of one cluster next to each other in a row); P pixels of a piece.
"""

from __future__ import annotations

import heapq

import numpy as np
from jaxtyping import Float32, Float64, Int, Int32
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

_NONE = -1


def cluster(
    lab: Float32[np.ndarray, "H W 3"],
    seeds: Float64[np.ndarray, "K 2"],
    reach: tuple[int, int],
    weight: float,
    iterations: int,
) -> Int32[np.ndarray, "H W"]:
    """k-means of places and colours, the first time of places alone.

    Args:
        lab: colours, multiples of 2^-16 below 2^8.
        seeds: rows and columns of the first centres.
        reach: rows and columns between a pixel and the centres that it is compared with, at most.
        weight: of a squared distance in pixels against one of colours.
        iterations: assignments to the nearest centre.

    Returns:
        The centre of each pixel.
    """
    planes = np.ascontiguousarray(lab.transpose(2, 0, 1))
    centres = np.concatenate([seeds, np.zeros((len(seeds), 3))], axis=1)
    labels = np.zeros(lab.shape[:2], np.int32)
    _assign(np.zeros_like(planes), centres, reach, weight, labels)
    for _ in range(iterations - 1):
        centres = _means(planes, labels, centres)
        _assign(planes, centres, reach, weight, labels)
    return labels


def _assign(
    planes: Float32[np.ndarray, "3 H W"],
    centres: Float64[np.ndarray, "K 5"],
    reach: tuple[int, int],
    weight: float,
    labels: Int32[np.ndarray, "H W"],
) -> None:
    """Write the nearest centre of each pixel, the first one of several; a pixel without a centre keeps its label."""
    least = np.full(labels.shape, np.inf, np.float32)
    ends = [
        np.stack([np.maximum(np.floor(at - r), 0), np.minimum(np.floor(at + r) + 1, n)], axis=1).astype(int).tolist()
        for at, r, n in zip(centres.T, reach, labels.shape, strict=False)
    ]
    for number, (row, column, *_) in enumerate(centres):
        (top, bottom), (left, right) = (each[number] for each in ends)
        window = slice(top, bottom), slice(left, right)
        colours = centres[number, 2:].astype(np.float32)
        squares = [plane[window] - colour for plane, colour in zip(planes, colours, strict=True)]
        for square in squares:
            square *= square
        distance = squares[0]
        distance += squares[1]
        distance += squares[2]
        distance += (weight * (np.arange(top, bottom) - row) ** 2).astype(np.float32)[:, None]
        distance += (weight * (np.arange(left, right) - column) ** 2).astype(np.float32)
        nearer = distance < least[window]
        np.copyto(least[window], distance, where=nearer)
        np.copyto(labels[window], np.int32(number), where=nearer)


def _means(
    planes: Float32[np.ndarray, "3 H W"], labels: Int32[np.ndarray, "H W"], centres: Float64[np.ndarray, "K 5"]
) -> Float64[np.ndarray, "K 5"]:
    """Means of the centres' pixels, colours in single precision; a centre without any stays where it is."""
    rows, columns = np.indices(labels.shape)
    size, *sums = (
        np.bincount(labels.ravel(), None if part is None else part.ravel(), len(centres))
        for part in (None, rows, columns, *planes)
    )
    means = np.stack(sums, axis=1) / np.maximum(size, 1)[:, None]
    means[:, 2:] = means[:, 2:].astype(np.float32)
    return np.where(size[:, None] > 0, means, centres)


def join(labels: Int32[np.ndarray, "H W"], min_pixels: int, max_pixels: int) -> Int32[np.ndarray, "H W"]:
    """Give ids to the pieces of equal labels, in reading order.

    Args:
        labels: the centre of each pixel.
        min_pixels: a piece of fewer gets the id that its growth, breadth first, met last (0 where it met none).
        max_pixels: where a piece's growth ends; what is left makes further pieces.

    Returns:
        ids, consecutive from 0.
    """
    return _Pieces(labels).joined(min_pixels, max_pixels)


class _Pieces:
    """The 4-connected pieces of clusters. Pixels are numbered in reading order, in an image with a border of one."""

    def __init__(self, labels: Int[np.ndarray, "H W"]) -> None:
        height, width = labels.shape
        starts = np.ones(labels.shape, bool)
        starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
        run_of = np.cumsum(starts, dtype=np.int32).reshape(labels.shape) - 1
        first = np.flatnonzero(starts)
        lengths = np.diff(first, append=labels.size)
        joint = (labels[1:] == labels[:-1]) & (starts[1:] | starts[:-1])  # once for each two runs that touch
        touching = csr_array(
            (np.ones(joint.sum(), np.int8), (run_of[1:][joint], run_of[:-1][joint])), (len(first),) * 2
        )
        count, piece_of = connected_components(touching, directed=False)
        self.padded = np.full((height + 2, width + 2), count, np.int32)
        self.padded[1:-1, 1:-1] = np.repeat(piece_of, lengths).reshape(labels.shape)
        self.sizes = np.bincount(piece_of, lengths, count).astype(np.int64)
        self.near = self._touching(count)
        order = np.argsort(piece_of, kind="stable")
        self.ends = np.cumsum(np.bincount(piece_of, minlength=count))
        row, column = np.divmod(first[order], width)
        self.first, self.lengths = (row + 1) * (width + 2) + column + 1, lengths[order]
        self.around = np.array([1, -1, width + 2, -width - 2])
        """Right, left, below, above: the order in which a search looks."""
        self.numbers = np.full(self.padded.size, _NONE, np.int32)

    def _touching(self, count: int) -> list[list[int]]:
        """The pieces that touch each piece."""
        inner = self.padded[1:-1, 1:-1]
        pairs = [
            np.stack([one[apart], other[apart]])
            for one, other in ((inner[1:], inner[:-1]), (inner[:, 1:], inner[:, :-1]))
            for apart in [one != other]
        ]
        one, other = np.concatenate([*pairs, *(pair[::-1] for pair in pairs)], axis=1)
        codes = np.unique(one.astype(np.int64) * count + other)
        one, other = np.divmod(codes, count)
        ends = np.cumsum(np.bincount(one, minlength=count)).tolist()
        others = other.tolist()
        return [others[first:last] for first, last in zip([0, *ends[:-1]], ends, strict=True)]

    def pixels(self, piece: int) -> Int[np.ndarray, " P"]:
        """Pixels of a piece, in reading order."""
        runs = slice(self.ends[piece - 1] if piece else 0, self.ends[piece])
        lengths = self.lengths[runs]
        before = np.cumsum(lengths) - lengths
        return np.repeat(self.first[runs] - before, lengths) + np.arange(lengths.sum())

    def graph(self, pixels: Int[np.ndarray, " P"]) -> csr_array:
        """Which of the pixels touch which."""
        self.numbers[pixels] = np.arange(len(pixels))
        near = self.numbers[pixels[:, None] + self.around]
        self.numbers[pixels] = _NONE
        there = near != _NONE
        ends = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
        return csr_array((np.ones(ends[-1]), near[there], ends), shape=(len(pixels),) * 2)

    def growth(self, pixels: Int[np.ndarray, " P"]) -> Int[np.ndarray, " P"]:
        """Rows of a piece's pixels in the order of a breadth-first search from the first."""
        return np.asarray(breadth_first_order(self.graph(pixels), 0, return_predecessors=False))

    def joined(self, min_pixels: int, max_pixels: int) -> Int32[np.ndarray, "H W"]:
        """Ids of pieces taken in reading order: what is beyond the largest size is cut off, small ones join another."""
        piece_at = self.padded.ravel().copy()
        chosen = np.full(len(self.sizes) + 1, _NONE, np.int32)  # the last one: the border
        queue = [(int(self.first[end]), piece) for piece, end in enumerate([0, *self.ends[:-1]])]
        heapq.heapify(queue)
        cut: dict[int, np.ndarray] = {}
        cut_from: set[int] = set()
        following = 0
        while queue:
            piece = heapq.heappop(queue)[1]
            size = len(cut[piece]) if piece in cut else int(self.sizes[piece])
            if min_pixels <= size <= max_pixels:
                chosen[piece], following = following, following + 1
                continue
            if size < min_pixels and piece not in cut:
                known = {int(chosen[other]) for other in self.near[piece]} - {_NONE}
                if len(known) < 2 and not cut_from.intersection(self.near[piece]):
                    chosen[piece] = known.pop() if known else 0
                    continue
            pixels = cut[piece] if piece in cut else self.pixels(piece)
            if size < min_pixels:
                chosen[piece] = self._met_last(pixels, chosen[piece_at[pixels[:, None] + self.around]])
                continue
            chosen[piece], following = following, following + 1
            cut_from.add(piece)
            rest = np.delete(pixels, self.growth(pixels)[:max_pixels])
            count, part_of = connected_components(self.graph(rest), directed=False)
            for part in range(count):
                own = rest[part_of == part]
                cut[len(chosen)] = own
                piece_at[own] = len(chosen)
                heapq.heappush(queue, (int(own[0]), len(chosen)))
                chosen = np.append(chosen, np.int32(_NONE))
        return np.ascontiguousarray(chosen[piece_at].reshape(self.padded.shape)[1:-1, 1:-1])

    def _met_last(self, pixels: Int[np.ndarray, " P"], ids: Int[np.ndarray, "P 4"]) -> int:
        """The id that a search through the pixels meets last among those around them; 0 where there is none yet."""
        known = ids[ids != _NONE]
        if len(known) and (known != known[0]).any():
            ids = ids[self.growth(pixels)]
            known = ids[ids != _NONE]
        return int(known[-1]) if len(known) else 0
