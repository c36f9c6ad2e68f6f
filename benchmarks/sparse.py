"""Sparse convolution against its arithmetic alone, back-ends side by side, and a whole Res16UNet step.

    python -m benchmarks.sparse --points '../shared/data/kitti_raw/**/velodyne_points/data/*.bin'

"Arithmetic" is the time of the products of as many pairs, [4096, C] times [C, C] in the faster of torch's two CPU
libraries, again and again on the same cache-warm rows: nothing is gathered or scattered and memory is not waited for.
(One product of all pairs, as it was here before, is bound by memory up to 128 channels and no floor.) For each width:
forward, the gradient of the input and that of the weight of a 3 x 3 x 3 submanifold convolution, each divided by its
arithmetic, and other back-ends' times divided by the first one's. Maps are made before.

All are measured in alternation; ratios are formed repetition by repetition, and reported are medians: on a busy machine
compare figures of one call only. With one thread it is processor time. Every repetition drops other voxels, as in
training: products of new shapes can cost far more than repeated ones. Widths from 192 on are measured on the grid of
stride 4. Without --points, hollow boxes of random voxels stand in for sweeps.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import kitti_points, kitti_sweeps, markdown, seconds_of
from models.lidar.backend_torch import _onednn
from models.lidar.neighbors import KernelMap
from models.lidar.res16unet import Res16UNetConfig
from models.lidar.sparse import Backend, load_backend, sparse_tensor

WIDTHS = (16, 32, 48, 64, 96, 128, 256)
CHUNK = 4096
PASSES = ("forward", "input", "weight")

Times = dict[str, float]


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


def arithmetic(
    pairs: int, channels: int, dtype: torch.dtype, seconds: Callable[[Callable[[], object]], float]
) -> Times:
    """Seconds of the products of so many pairs alone, by pass."""
    rows, grads = (torch.rand(CHUNK, channels).to(dtype) for _ in range(2))
    weight, out = torch.rand(channels, channels).to(dtype), torch.empty_like(rows)
    square = torch.empty_like(weight)
    calls = {
        "forward": functools.partial(torch.mm, rows, weight, out=out),
        "input": functools.partial(torch.mm, grads, weight.t(), out=out),
        "weight": functools.partial(torch.mm, rows.t(), grads, out=square),
    }
    # As many as take about as long as what is compared with it, within bounds.
    repeats = min(max(pairs // CHUNK, 4), 32)

    def several(call: Callable[[], object]) -> None:
        for _ in range(repeats):
            call()

    with _onednn(rows):
        for call in calls.values():
            call()
        return {
            name: seconds(functools.partial(several, call)) * pairs / (CHUNK * repeats) for name, call in calls.items()
        }


def passes(
    backend: Backend,
    kernel_map: KernelMap,
    channels: int,
    dtype: torch.dtype,
    seconds: Callable[[Callable[[], object]], float],
    *,
    backward: bool,
) -> Times:
    """Seconds of a back-end's convolution, by pass."""
    features = torch.randn(kernel_map.num_in, channels).to(dtype)
    weight = torch.randn(len(kernel_map.counts), channels, channels).to(dtype) / channels
    grad = torch.randn(kernel_map.num_out, channels).to(dtype)
    with torch.no_grad():
        times = {"forward": seconds(lambda: backend.convolve(features, weight, kernel_map))}
    if backward:
        for name, leaf in (("input", features), ("weight", weight)):
            leaf.requires_grad_()
            out = backend.convolve(features, weight, kernel_map)
            times[name] = seconds(functools.partial(out.backward, grad))
            leaf.requires_grad_(False)
    return times


def layers(args: argparse.Namespace, all_coords: Tensor, dtype: torch.dtype) -> None:
    """A line for each width."""
    seconds = functools.partial(seconds_of, clock=time.process_time if args.threads == 1 else time.perf_counter)
    backends = {name: load_backend(name, "cpu") for name in args.backends}
    first, *others = backends
    generator = torch.Generator().manual_seed(0)
    header = ["channels", "voxels"]
    for name in PASSES:
        header += [f"{name}, ms", "of arithmetic"]
    header += [f"{other} / {first}: forward, all" for other in others]
    print(f"\n{str(dtype)[6:]}, {args.threads} threads, {first}\n\n{markdown(header, [])}", flush=True)
    for channels in args.channels:
        found: list[Mapping[str, Times]] = []
        voxels = []
        for _ in range(args.warm_up + args.repeat):
            coords = thinned(all_coords, generator)
            grid = sparse_tensor(coords, torch.ones(len(coords), 1), args.batch)[0].grid
            if channels >= 192:
                grid = grid.coarser(2)[0].coarser(2)[0]
            kernel_map = grid.submanifold_map(3)
            pairs = kernel_map.num_pairs + kernel_map.num_in
            voxels.append(kernel_map.num_in)
            row = {"arithmetic": arithmetic(pairs, channels, dtype, seconds)}
            for name, backend in backends.items():
                # What a back-end derives from the map once for all layers of a stage is not a layer's cost.
                backward = name != "spconv"  # whose CPU build has none
                passes(backend, kernel_map, 1, torch.float32, seconds, backward=backward)
                row[name] = passes(backend, kernel_map, channels, dtype, seconds, backward=backward)
            found.append(row)
        found = found[args.warm_up :]
        cells = [f"{channels}", f"{np.median(voxels) / 1e3:.1f}k"]
        for name in PASSES:
            mine = np.array([row[first][name] for row in found])
            cells.append(f"{1e3 * np.median(mine):.1f}")
            cells.append(f"{np.median(mine / [row['arithmetic'][name] for row in found]):.2f}")
        for other in others:
            forward = np.median([row[other]["forward"] / row[first]["forward"] for row in found])
            text = f"{forward:.2f}"
            if "weight" in found[0][other]:
                whole = [sum(row[other].values()) / sum(row[first].values()) for row in found]
                text += f", {np.median(whole):.2f}"
            cells.append(text)
        print("| " + " | ".join(cells) + " |", flush=True)


def thinned(coords: Tensor, generator: torch.Generator) -> Tensor:
    """85 to 95 % of the voxels."""
    share = 0.85 + 0.1 * float(torch.rand((), generator=generator))
    return coords[torch.rand(len(coords), generator=generator) < share]


def network(args: argparse.Namespace, all_coords: Tensor, dtype: torch.dtype) -> None:
    """Res16UNet forward and backward with its maps, by back-end."""
    clock = time.process_time if args.threads == 1 and args.device == "cpu" else time.perf_counter
    seconds = functools.partial(seconds_of, clock=clock)
    names = [name for name in args.backends if name != "spconv" or args.device == "cuda"]
    generator = torch.Generator().manual_seed(0)
    nets = {name: Res16UNetConfig(preset=args.preset, backend=name).build().to(args.device) for name in names}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(args.warm_up + args.repeat):
        coords = thinned(all_coords, generator).to(args.device)
        ones = torch.rand(len(coords), 1, device=args.device)
        for name, net in nets.items():
            out: list[Tensor] = []
            with torch.autocast(args.device, torch.bfloat16, enabled=dtype is torch.bfloat16):
                forward = seconds(lambda: out.append(net(coords, ones, args.batch)))  # noqa: B023
            loss = out[0].float().square().mean()
            times[name].append((forward, seconds(loss.backward)))
            net.zero_grad()
    kept = {name: np.array(values[args.warm_up :]) for name, values in times.items()}
    for name, values in kept.items():
        forward, backward = 1e3 * np.median(values, axis=0)
        ratio = np.median(values.sum(axis=1) / kept[names[0]].sum(axis=1))
        print(
            f"{args.preset} {str(dtype)[6:]} {name}: forward {forward:.0f} ms, backward {backward:.0f} ms, "
            f"{ratio:.2f} times {names[0]}'s",
            flush=True,
        )


def main() -> None:
    """Read the command line and measure float32 and bf16."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", help="glob of KITTI .bin sweeps")
    parser.add_argument("--batch", type=int, default=2, help="sweeps")
    parser.add_argument("--voxel-size-m", type=float, default=0.2)
    parser.add_argument("--thin", type=int, default=1, help="use every n-th point")
    parser.add_argument("--channels", type=int, nargs="*", default=WIDTHS, help="widths of layers; none: no layers")
    parser.add_argument("--preset", default="res16unet_tiny", help="of the network; '': none")
    parser.add_argument("--backends", nargs="+", default=["native", "torch"], choices=("native", "torch", "spconv"))
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of the network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    coords = sweeps(args.points, args.batch, args.voxel_size_m, args.thin)
    for precision in args.precision:
        dtype = getattr(torch, precision)
        if args.device == "cpu" and args.channels:
            layers(args, coords, dtype)
        if args.preset:
            network(args, coords, dtype)


if __name__ == "__main__":
    main()
