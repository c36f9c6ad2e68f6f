"""Peak memory and time of InfoNCE, plain and in chunks: forward and backward pass, both directions, loss and gradient.

    python -m benchmarks.info_nce                                    # up to what fits into --max-gib (6)
    python -m benchmarks.info_nce --rows 16384 65536 --device cuda --max-gib 120

Each measurement has a process of its own. Memory: its highest resident size (on CUDA: highest allocation) minus what it
had when the rows were there. Where the plain form would pass --max-gib it is not run, and its memory is scaled from the
largest run by the square of the rows (marked ~), which is what its logits grow by. Gradients: largest difference from
those of the plain form over the largest gradient.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.common import REPOSITORY, markdown, setting
from models.contrast.losses import info_nce

PLAIN_COPIES = 6
"""Matrices of rows x rows that the plain form is expected to hold at once, for the limit of memory only."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement.

    Attributes:
        rows: pairs.
        dim: of the embeddings.
        chunk: rows at a time; 0: plain.
        symmetric: both directions.
        device: where.
        passes: forward and backward, the last of which is timed.
    """

    rows: int
    dim: int
    chunk: int
    symmetric: bool
    device: str
    passes: int

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"chunks of {self.chunk}" if self.chunk else "plain"


class Figures(NamedTuple):
    """Memory above the inputs, seconds of the last pass, the loss, and the file of the gradients."""

    peak_mib: float
    seconds: float
    loss: float
    gradients: str


def measure(case: Case, gradients: str) -> Figures:
    """Run one case in this process, which must be fresh."""
    generator = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(case.rows, case.dim, generator=generator), dim=1) for _ in range(2))
    a, b = (x.to(case.device).requires_grad_() for x in (a, b))
    before = _peak_bytes(case.device)
    seconds = 0.0
    for _ in range(case.passes):  # the first also loads libraries
        a.grad = b.grad = None
        began = time.perf_counter()
        loss = info_nce(a, b, temperature=0.07, symmetric=case.symmetric, chunk_rows=case.chunk if case.chunk else None)
        loss.backward()
        value = float(loss.detach())  # waits for the device
        seconds = time.perf_counter() - began
    peak = (_peak_bytes(case.device) - before) / 2**20
    torch.save([x.grad.cpu() for x in (a, b) if x.grad is not None], gradients)
    return Figures(peak, seconds, value, gradients)


def _peak_bytes(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_child(case: Case, folder: Path) -> Figures:
    """Run one case in a process of its own."""
    gradients = folder / f"{case.rows}-{case.dim}-{case.chunk}.pt"
    command = [sys.executable, "-m", "benchmarks.info_nce", "--child", json.dumps([vars(case), str(gradients)])]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    return Figures(*json.loads(done.stdout.splitlines()[-1]))


def compare(cases: list[Case], max_gib: float, folder: Path) -> list[list[str]]:
    """Rows of the table for one number of dimensions, plain first at each size."""
    table: list[list[str]] = []
    plain: dict[int, Figures] = {}
    for case in cases:
        cells = [f"{case.rows:,}", str(case.dim), case.name]
        if not case.chunk and PLAIN_COPIES * 4 * case.rows**2 >= max_gib * 2**30:
            table.append([*cells, f"~{_scaled(plain, case.rows):,.0f}", "", "", "", ""])
            continue
        found = in_child(case, folder)
        if not case.chunk:
            plain[case.rows] = found
        reference = plain.get(case.rows)
        memory = reference.peak_mib if reference is not None else _scaled(plain, case.rows)
        mark = "" if reference is not None else "~"
        ratio = f"{mark}{memory / max(found.peak_mib, 1e-3):.1f}" if case.chunk else "1.0"
        difference = f"{_difference(reference, found):.1e}" if reference is not None and case.chunk else ""
        cells += [f"{found.peak_mib:,.0f}", f"{found.seconds:.2f}", ratio, f"{found.loss:.6f}", difference]
        table.append(cells)
        print(" ".join(table[-1]), file=sys.stderr, flush=True)
    return table


def _scaled(plain: dict[int, Figures], rows: int) -> float:
    if not plain:
        return float("nan")
    largest = max(plain)
    return plain[largest].peak_mib * (rows / largest) ** 2


def _difference(reference: Figures, found: Figures) -> float:
    expected, got = (torch.load(figures.gradients) for figures in (reference, found))
    return max(float((x - y).abs().max() / x.abs().max()) for x, y in zip(expected, got, strict=True))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[4096, 8192, 16384, 65536])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--chunks", type=int, nargs="+", default=[256, 1024], help="rows at a time")
    parser.add_argument("--max-gib", type=float, default=6.0, help="the plain form is not run beyond (%(default)s)")
    parser.add_argument("--one-way", action="store_true", help="one direction only")
    parser.add_argument("--passes", type=int, default=2, help="the last one is timed (default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        case, gradients = json.loads(options.child)
        print(json.dumps(measure(Case(**case), gradients)))
        return
    table: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for dim in options.dims:
            same = {"dim": dim, "symmetric": not options.one_way, "device": options.device, "passes": options.passes}
            sizes = itertools.product(sorted(options.rows), (0, *options.chunks))
            cases = [Case(rows=rows, chunk=chunk, **same) for rows, chunk in sizes]
            table += compare(cases, options.max_gib, Path(folder))
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{setting(0)}; {device}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    header = ["rows", "dims", "form", "peak MiB", "s", "plain / this", "loss", "gradient, relative"]
    print(markdown(header, table))


if __name__ == "__main__":
    main()
