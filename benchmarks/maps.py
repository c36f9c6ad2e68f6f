"""Neighbour maps by merging sorted keys (native) and by searching (torch), level by level of a Res16UNet.

    python -m benchmarks.maps --points '/data/kitti_raw/**/velodyne_points/data/*.bin' --batch 2 --voxel-size-m 0.1

Both take turns on the same voxels; the lists are compared, too. Processor time in milliseconds, medians; the ratio is
the median of the pairs'. Without --points, hollow boxes of random voxels stand in for sweeps. The last lines: all maps
of a step made at once for a worker to hand over (`data.maps_in_workers`), and how many bytes that is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks.common import markdown, seconds_of, setting
from benchmarks.sparse import sweeps
from models.lidar import neighbors
from models.lidar.neighbors import KernelMap, Window, pack
from models.lidar.prepared import MapPlan, _packed, built

_SEED = 0
Build = Callable[[], KernelMap | tuple[torch.Tensor, KernelMap]]


def compared(native: Build, other: Build, repeat: int) -> list[str]:
    """Milliseconds of both, and how many times as long the other takes; refuses different lists."""
    a, b = (found if isinstance(found, KernelMap) else found[1] for found in (native(), other()))
    assert torch.equal(a.in_rows, b.in_rows)
    assert torch.equal(a.out_rows, b.out_rows)
    assert a.counts == b.counts
    pairs = np.array([(seconds_of(native), seconds_of(other)) for _ in range(repeat)])
    ours, theirs = 1e3 * np.median(pairs, axis=0)
    return [f"{a.num_pairs:,}", f"{ours:.2f}", f"{theirs:.2f}", f"{np.median(pairs[:, 1] / pairs[:, 0]):.1f}"]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", help="glob of KITTI .bin sweeps")
    parser.add_argument("--batch", type=int, default=2, help="sweeps (default: %(default)s)")
    parser.add_argument("--voxel-size-m", type=float, default=0.1)
    parser.add_argument("--thin", type=int, default=1, help="use every n-th point (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of both (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    coords = sweeps(options.points, options.batch, options.voxel_size_m, options.thin)
    keys = pack(coords)
    rows = []
    for level in range(5):
        named: list[tuple[str, Build, Build]] = [
            (
                f"{size}³",
                partial(neighbors.submanifold_map, keys, size),
                partial(neighbors.submanifold_map_by_torch, keys, size),
            )
            for size in ((3, 5) if level == 0 else (3,))
        ]
        named += [
            (
                f"{size}³ stride 2",
                partial(neighbors.strided_map, keys, size),
                partial(neighbors.strided_map_by_torch, keys, size),
            )
            for size in (2, 3)
        ]
        if level == 0:
            cells = int(coords[:, 1:].max()) // 2 + 1
            window = Window(kernel=(3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1), cells=(cells, cells, cells))
            named.append(
                (
                    "3³ stride 2 in a box",
                    partial(neighbors.bounded_map, keys, window),
                    partial(neighbors.bounded_map_by_torch, keys, window),
                )
            )
        rows += [[f"{len(keys):,}", name, *compared(native, other, options.repeat)] for name, native, other in named]
        keys = neighbors.strided_map(keys, 2)[0]
    print(f"{setting(_SEED)}, {options.threads} thread(s)\n")
    print(markdown(("voxels", "kernel", "pairs", "native, ms", "torch, ms", "torch / native"), rows))
    plan = MapPlan.halving(5, sizes=(1, 3))
    grid = built(coords, options.batch, plan)
    spent = [seconds_of(partial(built, coords, options.batch, plan)) for _ in range(options.repeat)]
    all_keys, pairs, _ = _packed(grid, plan)
    print(f"\nall maps of a step: {1e3 * np.median(spent):.1f} ms; as a worker hands them over: ", end="")
    print(f"{(all_keys.nbytes + pairs.nbytes) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
