"""Sparse convolution against its dense bound, neighbour maps, and a whole Res16UNet step.

    python -m benchmarks.sparse --points '../shared/data/kitti_raw/**/velodyne_points/data/*.bin' --threads 2

The bound of a convolution is one matrix product with the same number of multiplications ([pairs, C_in] x [C_in, C_out];
its backward pass: two of them) in the same library. Every repetition drops other voxels, as in training: products of
new shapes can cost far more than repeated ones. Without --points, hollow boxes of random voxels stand in for sweeps.
Times are the median of the repetitions in milliseconds; on a busy machine compare them only within one call.
"""

from __future__ import annotations

import argparse
import functools
import time

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import kitti_points, kitti_sweeps, seconds_of
from models.lidar.backend_torch import _onednn
from models.lidar.res16unet import Res16UNetConfig
from models.lidar.sparse import SubmanifoldConv3d, load_backend, sparse_tensor


def sweeps(pattern: str | None, num: int, voxel_size_m: float, thin: int) -> Tensor:
    """(sample, x, y, z) of `num` sweeps, unique and sorted."""
    files = kitti_sweeps(pattern)[:num]
    rng = np.random.default_rng(0)
    parts = []
    for sample in range(num):
        if files:
            points = kitti_points(files[sample % len(files)])[::thin, :3]
            cells = np.floor(points / voxel_size_m)
        else:
            cells = rng.integers(-60, 60, (12_000, 3))
            cells[:, 2] = np.where(rng.random(12_000) < 0.7, 0, cells[:, 2] % 12)
            cells[cells[:, 2] > 0, 0] = cells[cells[:, 2] > 0, 0] // 40 * 40
        cells = np.unique(cells.astype(np.int32), axis=0)
        parts.append(np.concatenate([np.full((len(cells), 1), sample, np.int32), cells], axis=1))
    return torch.from_numpy(np.concatenate(parts))


def measure(args: argparse.Namespace, all_coords: Tensor, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    device, channels, sizes, pairs_a_voxel = args.device, args.channels, [], []
    conv = SubmanifoldConv3d(channels, channels, backend=args.backend).to(device)
    config = Res16UNetConfig(preset=args.preset, backend=args.backend)
    net = config.build().to(device)
    names = ("maps", "conv forward", "bound forward", "conv backward", "bound backward", "net forward", "net backward")
    times: dict[str, list[float]] = {name: [] for name in names}
    seconds = functools.partial(seconds_of, clock=time.perf_counter)
    for _ in range(args.warm_up + args.repeat):
        share = 0.85 + 0.1 * float(torch.rand((), generator=generator))
        coords = all_coords[torch.rand(len(all_coords), generator=generator) < share].to(device)
        sizes.append(len(coords))
        x, _ = sparse_tensor(coords, torch.rand(len(coords), channels, device=device).to(dtype), args.batch)
        times["maps"].append(seconds(functools.partial(x.grid.submanifold_map, 3)))
        kernel_map = x.grid.submanifold_map(3)
        pairs = kernel_map.num_pairs + len(coords)
        pairs_a_voxel.append(pairs / len(coords))
        rows, matrix = torch.rand(pairs, channels, device=device).to(dtype), conv.weight[0].detach().to(dtype)
        out = torch.empty_like(rows)
        wide = matrix.clone()
        with _onednn(rows):  # the faster of torch's two CPU libraries for both; its preparation is not counted
            torch.mm(rows, matrix, out=out)
            torch.mm(rows.t(), rows, out=wide)
            forward = seconds(functools.partial(torch.mm, rows, matrix, out=out))
            times["bound forward"].append(forward)
            times["bound backward"].append(forward + seconds(functools.partial(torch.mm, rows.t(), rows, out=wide)))
        features = x.features.requires_grad_()
        weight = conv.weight.detach().to(dtype).requires_grad_()
        backend = load_backend(args.backend, device)
        # What a back-end derives from the map once for all layers of a stage is not a layer's cost.
        backend.convolve(features, weight, kernel_map).sum().backward()
        result: list[Tensor] = []
        times["conv forward"].append(seconds(lambda: result.append(backend.convolve(features, weight, kernel_map))))  # noqa: B023
        grad = torch.rand_like(result[0])
        times["conv backward"].append(seconds(lambda: result[0].backward(grad)))  # noqa: B023
        net_out: list[Tensor] = []
        ones = torch.rand(len(coords), 1, device=device)
        with torch.autocast(device, torch.bfloat16, enabled=dtype is torch.bfloat16):
            times["net forward"].append(seconds(lambda: net_out.append(net(coords, ones, args.batch))))  # noqa: B023
        loss = net_out[0].float().square().mean()
        times["net backward"].append(seconds(loss.backward))
    mid = {name: 1e3 * float(np.median(values[args.warm_up :])) for name, values in times.items()}
    print(
        f"{device} {str(dtype)[6:]:9s} {torch.get_num_threads()} threads, {np.mean(sizes):.0f} voxels, "
        f"{np.mean(pairs_a_voxel):.1f} pairs a voxel, {channels} channels"
    )
    for name in names:
        bound = mid.get(name.replace("conv", "bound"))
        ratio = f"  {mid[name] / bound:.2f} x its dense bound" if name.startswith("conv") and bound else ""
        print(f"  {name:15s} {mid[name]:8.2f} ms{ratio}")
    print(f"  {args.preset} step {mid['net forward'] + mid['net backward']:.1f} ms (with all neighbour maps)")


def main() -> None:
    """Read the command line and measure float32 and bf16."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", help="glob of KITTI .bin sweeps")
    parser.add_argument("--batch", type=int, default=4, help="sweeps")
    parser.add_argument("--voxel-size-m", type=float, default=0.2)
    parser.add_argument("--thin", type=int, default=4, help="use every n-th point (a 64-beam sweep / 4 ~ 10k voxels)")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--preset", default="res16unet_tiny")
    parser.add_argument("--backend", default="auto", choices=("auto", "torch", "spconv"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--warm-up", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    coords = sweeps(args.points, args.batch, args.voxel_size_m, args.thin)
    for dtype in (torch.float32, torch.bfloat16):
        measure(args, coords, dtype)


if __name__ == "__main__":
    main()
