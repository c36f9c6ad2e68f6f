"""Points of several samples in one tensor, one sample after another, as in `data.sample.Batch`: counts and padding.

Letters: B samples, N points of all samples, C columns, L points of the largest sample.
"""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Bool, Int, Int64, Shaped
from torch import Tensor


def sample_counts(point_sample: Int[Tensor, " N"], num_samples: int) -> Int64[Tensor, " B"]:
    """Points of each sample from `Batch.point_sample`; 0 for a sample without points.

    Raises:
        ValueError: the samples do not stand one after another, or one is outside of 0 to B - 1.
    """
    if point_sample.numel():
        if bool((point_sample.diff() < 0).any()):
            raise ValueError("point_sample must not decrease: the points of a sample stand together; sort them first")
        low, high = int(point_sample[0]), int(point_sample[-1])
        if low < 0 or high >= num_samples:
            raise ValueError(f"point_sample runs from {low} to {high}, expected 0 to {num_samples - 1}")
    return torch.bincount(point_sample.long(), minlength=num_samples)


def bounds(counts: Int[Tensor, " B"], num_rows: int, what: str = "points") -> list[tuple[int, int]]:
    """First row and one past the last row of each sample.

    `what` names the rows, for the message.

    Raises:
        ValueError: a count is negative, or the counts do not add up to the rows.
    """
    sizes = [int(n) for n in counts.tolist()]
    if any(n < 0 for n in sizes) or sum(sizes) != num_rows:
        raise ValueError(
            f"counts of the samples {sizes} add up to {sum(sizes)}, but there are {num_rows} {what}; "
            "counts must be non-negative and cover all rows"
        )
    return list(itertools.pairwise(itertools.accumulate(sizes, initial=0)))


def pad(
    rows: Shaped[Tensor, "N C"], counts: Int[Tensor, " B"]
) -> tuple[Shaped[Tensor, "B L C"], Bool[Tensor, "B L"], Int64[Tensor, "B L"]]:
    """One row of equal length a sample.

    Returns:
        The rows (zeros where a sample has fewer than L), which of them are real, and the row of the input behind each
        (0 for the others).
    """
    spans = bounds(counts, rows.shape[0])
    longest = max((end - start for start, end in spans), default=0)
    place = torch.arange(longest, device=rows.device)
    starts, ends = torch.tensor(spans, device=rows.device, dtype=torch.int64).view(-1, 2).T
    index = starts[:, None] + place[None, :]
    real = index < ends[:, None]
    index = torch.where(real, index, 0)
    values = rows[index] if rows.shape[0] else rows.new_zeros(*index.shape, rows.shape[1])
    return values.masked_fill(~real[..., None], 0), real, index
