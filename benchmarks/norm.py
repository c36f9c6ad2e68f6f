"""BatchNorm + residual + ReLU: the native operation against torch's operations one after another.

    python -m benchmarks.norm                     # rows and channels of a street batch's stages, 1 thread
    python -m benchmarks.norm --rows 67700 --channels 96 --threads 2

Both take the same rows in alternation, the first one changes; ratios are formed pair by pair, reported are their median
and quartiles. Before each the caches are emptied, as a convolution does in a network.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import markdown, setting
from engine.heap import map_large_tensors
from models.lidar.layers import norm_act

SHAPES = ((30_600, 16), (30_600, 48), (30_600, 96), (12_000, 64), (2_000, 128), (500, 256))
"""Rows and channels."""
WARM_UP = 3

Call = Callable[[nn.BatchNorm1d, Tensor, Tensor | None], Tensor]


def by_torch(norm: nn.BatchNorm1d, x: Tensor, residual: Tensor | None) -> Tensor:
    """Without the native operation."""
    out: Tensor = norm(x)
    return F.relu_(out if residual is None else out + residual)


def native(norm: nn.BatchNorm1d, x: Tensor, residual: Tensor | None) -> Tensor:
    """As in the networks."""
    return norm_act(norm, x, residual=residual)


def seconds(call: Call, norm: nn.BatchNorm1d, x: Tensor, residual: Tensor | None, grad: Tensor) -> tuple[float, float]:
    """Processor time of one forward and one backward pass."""
    x.grad = None
    if residual is not None:
        residual.grad = None
    began = time.process_time()
    out = call(norm, x, residual)
    middle = time.process_time()
    out.backward(grad)
    return middle - began, time.process_time() - middle


def measure(rows: int, channels: int, dtype: torch.dtype, *, added: bool, pairs: int) -> list[str]:
    """A row of the table."""
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm1d(channels)
    x, residual, grad = (torch.randn(rows, channels, generator=generator).to(dtype) for _ in range(3))
    x.requires_grad_()
    other = residual.requires_grad_() if added else None
    flush = torch.empty(2**23)
    times: dict[Call, list[tuple[float, float]]] = {by_torch: [], native: []}
    for number in range(WARM_UP + pairs):
        for call in (by_torch, native) if number % 2 else (native, by_torch):
            flush.fill_(number)
            spent = seconds(call, norm, x, other, grad)
            if number >= WARM_UP:
                times[call].append(spent)
    before, after = (np.array(times[call]) for call in (by_torch, native))
    ratios = before.sum(1) / after.sum(1)
    medians = (1e3 * np.median(t, axis=0) for t in (before, after))
    return [
        f"{rows} x {channels}, {str(dtype)[6:]}, {'residual' if added else 'alone'}",
        *(f"{forward:.2f} + {backward:.2f}" for forward, backward in medians),
        f"{np.median(ratios):.2f} ({np.quantile(ratios, 0.25):.2f}-{np.quantile(ratios, 0.75):.2f})",
    ]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="with --channels: this shape alone")
    parser.add_argument("--channels", type=int)
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=15, help="default: %(default)s")
    options = parser.parse_args()
    if (options.rows is None) != (options.channels is None):
        parser.error("--rows and --channels go together")
    torch.set_num_threads(options.threads)
    map_large_tensors()  # as in training
    print(setting(0) + "\n")
    shapes = SHAPES if options.rows is None else ((options.rows, options.channels),)
    rows = [
        measure(count, channels, dtype, added=added, pairs=options.pairs)
        for count, channels in shapes
        for dtype in (torch.float32, torch.bfloat16)
        for added in (False, True)
    ]
    header = ("rows x channels", "torch, ms forward + backward", "native", "torch / native")
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
