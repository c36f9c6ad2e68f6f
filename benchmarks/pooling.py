"""Superpixels' targets of SLidR from a teacher's map: by way of every pixel, as before, and from the cells alone.

    python -m benchmarks.pooling                                        # street shape, fp32 and bf16, memory
    python -m benchmarks.pooling --shape nuscenes --pairs 3
    python -m benchmarks.pooling --shape nuscenes --pairs 3 --device cuda

Linear head, features at pixels, unit length, mean over superpixels, and the gradient back to the head's weights; the
teacher is not run, its map is random. Both ways in one process in alternation; each pair has its ratio, reported is
their median with the quartiles. The head alone, which both need, is timed beside them. Memory: a first pass in a
process of its own for each way, its highest resident size (on CUDA: highest allocation) above what was there before.
`tests/reference/pooling.py` is the way by pixels.

Shapes: "street" is a batch of slidr_street (12 images of 160x320, map of 176 channels), "nuscenes" one of
slidr_nuscenes (24 images of 224x416, map of 2048 channels), both at stride 4 with 150 superpixels an image.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.common import REPOSITORY, markdown, setting, wait_for_device
from models.heads import PixelHead
from models.pairing import FeatureMap
from tests.reference.pooling import mean_of_pixels

EMBEDDING = 64
STRIDE = 4
WAYS = ("pixels", "cells")


@dataclass(frozen=True)
class Shape:
    """Of a batch."""

    images: int
    channels: int
    size: tuple[int, int]
    superpixels: tuple[int, int]  # rows and columns of them an image


SHAPES = {
    "street": Shape(images=12, channels=176, size=(160, 320), superpixels=(10, 15)),
    "nuscenes": Shape(images=24, channels=2048, size=(224, 416), superpixels=(10, 15)),
}


class Case:
    """Head, map and superpixels of a shape."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str) -> None:
        torch.manual_seed(0)
        cells = [length // STRIDE for length in shape.size]
        # As teachers give them: in the type of their products, the channels of a cell side by side.
        values = torch.randn(shape.images, *cells, shape.channels).to(device, dtype).movedim(-1, 1)
        self.maps = FeatureMap(values, STRIDE, 0.0)
        self.head = PixelHead(shape.channels, EMBEDDING).to(device)
        self.segments = _superpixels(shape).to(device)
        self.num = shape.images * shape.superpixels[0] * shape.superpixels[1]
        self.dtype, self.device = dtype, device

    def run(self, way: str) -> Float[Tensor, "D C"]:
        """Targets and a gradient; gives back that of the head's weight."""
        self.head.zero_grad()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            if way == "head":
                targets = self.head.linear(self.maps.values.movedim(1, -1))
            elif way == "cells":
                targets = self.head.segment_mean(self.maps, self.segments, self.num)
            else:
                cells = self.head.linear(self.maps.values.movedim(1, -1)).movedim(-1, 1)
                targets = mean_of_pixels(replace(self.maps, values=cells), self.segments, self.num, unit=True)
        targets.square().sum().backward()
        gradient = self.head.linear.weight.grad
        assert gradient is not None
        return gradient


def _superpixels(shape: Shape) -> Int[Tensor, "I H W"]:
    """Cells of a grid with wavy borders, numbered over all images."""
    (height, width), (rows, columns) = shape.size, shape.superpixels
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    row = ((v + 3 * torch.sin(u / 7)) * rows / height).long().clamp(0, rows - 1)
    column = ((u + 3 * torch.sin(v / 5)) * columns / width).long().clamp(0, columns - 1)
    return row * columns + column + rows * columns * torch.arange(shape.images)[:, None, None]


def seconds(call: Callable[[], object], device: str) -> float:
    """Processor time of a call; on a GPU the time until it has finished."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    wait_for_device()
    began = clock()
    call()
    wait_for_device()
    return clock() - began


def peak_mib(case: Case, way: str) -> float:
    """Of a first pass in this process, which must be fresh, above what is there before it."""
    if case.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        case.run(way)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = _peak_kib()
    case.run(way)
    return (_peak_kib() - before) / 2**10


def _peak_kib() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1])


def _alternate(name: str, precision: str, device: str, pairs: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of each pass of each way and of the head, and how far the gradients are apart."""
    case = Case(SHAPES[name], {"fp32": torch.float32, "bf16": torch.bfloat16}[precision], device)
    gradients = [case.run(way).clone() for way in WAYS]  # the first runs also load libraries
    difference = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
    found: dict[str, list[float]] = {way: [] for way in (*WAYS, "head")}
    for number in range(pairs):
        for way in (*WAYS, "head") if number % 2 else ("head", *reversed(WAYS)):
            found[way].append(seconds(functools.partial(case.run, way), device))
    return found, difference


def row(name: str, precision: str, device: str, pairs: int) -> list[str]:
    """A line of the table."""
    found, difference = _alternate(name, precision, device, pairs)
    ratios = np.divide(found["pixels"], found["cells"])
    low, mid, high = np.percentile(ratios, (25, 50, 75))
    times = [f"{1e3 * float(np.median(found[way])):.1f}" for way in (*WAYS, "head")]
    memory = [_in_child(name, precision, device, way) for way in WAYS]
    return [
        f"{name}, {precision}",
        *times,
        f"{mid:.1f} ({low:.1f}-{high:.1f})",
        *(f"{mib:.0f}" for mib in memory),
        f"{memory[0] / max(memory[1], 1e-3):.1f}",
        f"{difference:.1e}",
    ]


def _in_child(*what: str) -> float:
    command = [sys.executable, "-m", "benchmarks.pooling", "--child", json.dumps(what)]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), nargs="+", default=["street"])
    parser.add_argument("--precision", choices=("fp32", "bf16"), nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--pairs", type=int, default=9, help="of timed passes (default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, precision, device, way = json.loads(options.child)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        print(peak_mib(Case(SHAPES[name], dtype, device), way))
        return
    rows = [row(name, kind, options.device, options.pairs) for name in options.shape for kind in options.precision]
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{setting(0)}; {device}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)\n")
    header = ["batch", "pixels, ms", "cells, ms", "head alone, ms", "pixels / cells", "pixels, MiB", "cells, MiB"]
    print(markdown([*header, "pixels / cells", "gradient, relative"], rows))


if __name__ == "__main__":
    main()
