"""One training step of each 3D network on the same sweeps: voxels, parameters, milliseconds forward and backward.

    python -m benchmarks.backbones --points '../shared/data/kitti_raw/**/velodyne_points/data/*.bin'

Each network gets the grid that its paper uses on KITTI, WaffleIron ScaLR's (`GRIDS`), its input made by the loader's
own `voxelize`. Times are medians over repetitions; each drops other points, as in training, so that no shape repeats.
On the CPU it is the process's own time (of all threads), which a busy machine disturbs less; compare within one call
nonetheless.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import kitti_points, kitti_sweeps, wait_for_device
from data.batch_spec import VoxelConfig
from data.views.voxelize import inside_range, voxelize
from models.lidar.backbones import BACKBONES

CARTESIAN = VoxelConfig(kind="cartesian", size=(0.2, 0.2, 0.2), features="xyz_intensity", reduce="mean")
SECOND = VoxelConfig(
    kind="cartesian",
    size=(0.05, 0.05, 0.1),
    features="xyz_intensity",
    reduce="mean",
    range_min=(0.0, -40.0, -3.0),
    range_max=(70.4, 40.0, 1.0),
)
PILLARS = VoxelConfig(
    kind="cartesian",
    size=(0.08, 0.08, 0.1),
    features="xyz_intensity",
    range_min=(0.0, -39.68, -3.0),
    range_max=(69.12, 39.68, 1.0),
)
SCALR = VoxelConfig(
    kind="cartesian",
    size=(0.1, 0.1, 0.1),
    features="xyz_intensity",
    range_min=(-64.0, -64.0, -8.0),
    range_max=(64.0, 64.0, 8.0),
)
GRIDS = {"voxelnet": SECOND, "pillars": PILLARS, "waffleiron": SCALR}
SECOND_GRID = {"grid_min": (0, -800, -30), "grid_max": (1408, 800, 10)}
RUNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("res16unet", {"preset": "res16unet_tiny"}),
    ("res16unet", {"preset": "res16unet34c"}),
    ("res16unet", {"preset": "minkunet18"}),
    ("spvcnn", {"preset": "spvcnn_tiny"}),
    ("spvcnn", {"preset": "spvcnn"}),
    ("voxelnet", {"preset": "second_tiny", **SECOND_GRID}),
    ("voxelnet", {"preset": "voxelbackbone8x", **SECOND_GRID}),
    ("voxelnet", {"preset": "second", **SECOND_GRID}),
    ("voxelnet", {"preset": "centerpoint", **SECOND_GRID}),
    ("pillars", {"preset": "pillars_tiny"}),
    ("pillars", {"preset": "pointpillars"}),
    ("pillars", {"preset": "centerpoint"}),
    ("pointnet2", {"preset": "pointnet2_tiny"}),
    ("pointnet2", {"preset": "pointrcnn"}),
    ("pointnet2", {"preset": "simipu_released"}),
    ("waffleiron", {"preset": "waffleiron_tiny"}),
)


def batch(clouds: list[np.ndarray], grid: VoxelConfig) -> tuple[Tensor, Tensor]:
    """Coordinates and features of the voxels of all sweeps."""
    coords, features = [], []
    for sample, cloud in enumerate(clouds):
        cloud = cloud[inside_range(cloud[:, :3], grid)]
        cells, values, _ = voxelize(cloud[:, :3], cloud[:, 3], grid)
        coords.append(np.concatenate([np.full((len(cells), 1), sample, np.int32), cells], axis=1))
        features.append(values)
    return torch.from_numpy(np.concatenate(coords)), torch.from_numpy(np.concatenate(features))


def sweeps(pattern: str | None, num: int) -> list[np.ndarray]:
    """x, y, z, intensity; without files a ground plane and walls."""
    if pattern:
        return [kitti_points(file) for file in kitti_sweeps(pattern)[:num]]
    rng = np.random.default_rng(0)
    radius, angle = rng.gamma(2.0, 8.0, (num, 60_000)), rng.uniform(-np.pi, np.pi, (num, 60_000))
    height = np.where(rng.random((num, 60_000)) < 0.6, -1.7, rng.uniform(-1.7, 1.0, (num, 60_000)))
    clouds = np.stack([radius * np.cos(angle), radius * np.sin(angle), height, rng.random((num, 60_000))], axis=-1)
    return list(clouds.astype(np.float32))


def main() -> None:
    """Read the command line and print a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", help="glob of KITTI .bin sweeps")
    parser.add_argument("--batch", type=int, default=1, help="sweeps")
    parser.add_argument("--only", help="comma-separated presets; default all")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--bf16", action="store_true", help="under autocast")
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    clouds = sweeps(args.points, args.batch)
    print(f"{args.device}, {torch.get_num_threads()} threads, {args.batch} sweeps of {len(clouds[0])} points")
    print(f"{'network':28s} {'M params':>8s} {'voxels':>8s} {'forward':>9s} {'backward':>9s} {'GPU MiB':>8s}")
    for name, settings in RUNS:
        if args.only and settings["preset"] not in args.only.split(","):
            continue
        torch.manual_seed(0)
        net = BACKBONES[name](in_channels=4, **settings).build().to(args.device)
        times, sizes = [], []
        for _ in range(args.warm_up + args.repeat):
            kept = [c[rng.random(len(c)) < 0.9] for c in clouds]
            coords, features = (t.to(args.device) for t in batch(kept, GRIDS.get(name, CARTESIAN)))
            times.append(step(net, coords, features, args))
            sizes.append(len(coords))
        forward, backward = np.median(times[args.warm_up :], axis=0)
        peak = torch.cuda.max_memory_allocated() / 2**20 if args.device == "cuda" else 0
        params = sum(p.numel() for p in net.parameters()) / 1e6
        print(
            f"{name + ' ' + str(settings['preset']):28s} {params:8.2f} {np.mean(sizes):8.0f} "
            f"{forward:6.0f} ms {backward:6.0f} ms {peak:8.0f}",
            flush=True,
        )


def step(net: torch.nn.Module, coords: Tensor, features: Tensor, args: argparse.Namespace) -> tuple[float, float]:
    """Milliseconds forward and backward."""
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    wait_for_device()
    clock = time.perf_counter if args.device == "cuda" else time.process_time
    start = clock()
    with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
        out = net(coords, features, args.batch)
    loss = out.float().square().mean()
    wait_for_device()
    middle = clock()
    loss.backward()
    wait_for_device()
    return 1e3 * (middle - start), 1e3 * (clock() - middle)


if __name__ == "__main__":
    main()
