"""Milliseconds of point operations, matching and EPnP, on sweeps; accuracy of EPnP.

    python -m benchmarks.points --points '../shared/data/kitti_raw/**/velodyne_points/data/*.bin' --threads 1

Without --points, a ground plane with boxes stands in for sweeps. On CPU, `library` and `all pairs / torch` are both
measured; with --device cuda only what runs there. Medians of the repetitions: wall time, and processor time of all
threads, which a busy machine disturbs less (but still slows: compare within one call).
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from unittest import mock

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from benchmarks.common import kitti_points, kitti_sweeps, wait_for_device
from models.contrast import matching
from models.points import neighbors, sampling
from models.pose.epnp import epnp


def sweep(pattern: str | None, num: int, seed: int) -> Tensor:
    """`num` points of a sweep, in its order but thinned at random; padded by jittered copies where it has fewer."""
    rng = np.random.default_rng(seed)
    files = kitti_sweeps(pattern)
    if files:
        points = kitti_points(files[seed % len(files)])[:, :3]
    else:
        points = rng.uniform(-50, 50, (2 * num, 3)).astype(np.float32)
        points[:, 2] = np.where(rng.random(2 * num) < 0.6, 0.05 * rng.standard_normal(2 * num), points[:, 2] % 3)
    keep = np.sort(rng.choice(len(points), num, replace=len(points) < num))
    return torch.from_numpy(points[keep])


class Clock:
    """Times calls and prints a line for each."""

    def __init__(self, repeat: int) -> None:
        self.repeat = repeat

    def __call__(self, name: str, run: Callable[[], object], repeat: int | None = None) -> None:
        """Median wall and processor time of `run`, after one call that is not counted."""
        run()
        wall, busy = [], []
        for _ in range(repeat or self.repeat):
            wait_for_device()
            start, start_busy = time.perf_counter(), time.process_time()
            run()
            wait_for_device()
            wall.append(1e3 * (time.perf_counter() - start))
            busy.append(1e3 * (time.process_time() - start_busy))
        print(f"  {name:58s} {np.median(wall):9.2f} ms   processor {np.median(busy):9.2f} ms", flush=True)


def measure_sampling(clock: Clock, points: Tensor) -> None:
    num = points.shape[0]
    counts = torch.tensor([num], device=points.device)
    start = torch.zeros(1, dtype=torch.int64, device=points.device)
    for kept in (1024, 4096):
        clock(f"farthest, 3D, to {kept}", functools.partial(sampling.farthest_points, points, counts, kept))
        flat = points[:, :2].contiguous()
        clock(f"farthest, bird's-eye view, to {kept}", functools.partial(sampling.farthest_points, flat, counts, kept))
    if points.device.type == "cpu":
        plain = functools.partial(sampling.farthest_points, points, counts, 1024)
        with mock.patch.object(sampling, "MAX_TREE_DIMS", 0):
            clock("farthest, 3D, to 1024, library without tree", plain, repeat=3)
        loop = functools.partial(sampling._farthest_torch, points, counts, 1024, start)
        clock("farthest, 3D, to 1024, torch loop", loop, repeat=2)
    some = points[:: num // 4096][:4096]
    features = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0)).to(points.device)
    rows, few = sampling.joint_space(some, features), torch.tensor([4096], device=points.device)
    clock("farthest, 67 columns, 4096 to 512", functools.partial(sampling.farthest_points, rows, few, 512))
    clock("random, to 4096", functools.partial(sampling.random_points, counts, 4096))


def measure_neighbors(clock: Clock, points: Tensor) -> None:
    counts = torch.tensor([points.shape[0]], device=points.device)
    index, chosen = sampling.farthest_points(points, counts, 1024)
    centres = points[index]
    features = torch.randn(1024, 64, generator=torch.Generator().manual_seed(0)).to(points.device)

    def searches(kind: str, repeat: int | None = None) -> None:
        for k, name, queries, number in ((16, "all points", points, counts), (32, "1024 centres", centres, chosen)):
            if kind and queries is points and points.shape[0] > 20_000:
                continue
            run = functools.partial(neighbors.knn, queries, number, points, counts, k)
            clock(f"k-NN, {k} of {name}{kind}", run, repeat)
        for radius in (0.8, 3.2):
            for choose in ("first", "nearest"):
                run = functools.partial(
                    neighbors.ball_query, centres, chosen, points, counts, 32, radius=radius, choose=choose
                )
                clock(f"ball {radius} m, 32 {choose} of 1024 centres{kind}", run, repeat)

    searches("")
    if points.device.type == "cpu":
        with mock.patch.object(neighbors, "MAX_TREE_DIMS", 0):
            searches(", all pairs", repeat=2)
    interpolate = functools.partial(neighbors.interpolate, features, centres, chosen, points, counts)
    clock("3 nearest of 1024, 64 channels, interpolated to all points", interpolate)


def measure_matching(clock: Clock, pattern: str | None, device: str, samples: int) -> None:
    """Costs as in SimIPU: distances between farthest points of two thinnings of one sweep."""
    chosen = []
    for seed in range(2 * samples):
        points = sweep(pattern, 16_384, seed // 2)
        points = points + 0.02 * torch.randn(points.shape, generator=torch.Generator().manual_seed(seed))
        keep = torch.randperm(16_384, generator=torch.Generator().manual_seed(seed))[:12_000]
        index, _ = sampling.farthest_points(points[keep], torch.tensor([12_000]), 1024)
        chosen.append(points[keep][index])
    distances = torch.stack([torch.cdist(chosen[2 * i], chosen[2 * i + 1]) for i in range(samples)]).to(device)
    uniform = torch.rand(samples, 1024, 1024, generator=torch.Generator().manual_seed(0)).to(device)
    for name, costs, gate in (
        ("distances", distances, np.inf),
        ("distances, gate 4 m", distances, 4.0),
        ("distances, gate 1 m", distances, 1.0),
        ("uniform costs", uniform, np.inf),
    ):
        clock(f"Hungarian, {name}, 1 sample", functools.partial(matching.hungarian, costs[:1], gate=gate))
        many = functools.partial(matching.hungarian, costs, gate=gate)
        clock(f"Hungarian, {name}, {samples} samples one by one", functools.partial(many, threads=1))
        clock(f"Hungarian, {name}, {samples} samples in threads", many)
        clock(f"greedy, {name}, 1 sample", functools.partial(matching.greedy, costs[:1], gate=gate))


def measure_epnp(clock: Clock, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for samples, num in ((4, 128), (16, 128), (16, 1024)):
        K = torch.tensor([[700.0, 0, 600], [0, 700, 180], [0, 0, 1]]).expand(samples, 3, 3).to(device)
        seen = torch.rand(samples, num, 3, generator=generator) * torch.tensor([40.0, 6, 40]) + torch.tensor(
            [-20, -3, 6]
        )
        pixels = (seen[..., :2] / seen[..., 2:] * 700 + torch.tensor([600, 180])).to(device)
        pixels = pixels + torch.randn(pixels.shape, generator=generator).to(device)
        points = seen.to(device)
        clock(f"EPnP, {samples} samples of {num}, forward", functools.partial(epnp, points, pixels, K))

        def step(points: Tensor = points, pixels: Tensor = pixels, K: Tensor = K) -> None:
            pose = epnp(points, pixels.detach().requires_grad_(), K)
            (pose.rotation.sum() + pose.translation_m.sum()).backward()

        clock(f"EPnP, {samples} samples of {num}, forward and backward", step)


def compare_with_opencv(samples: int = 64) -> None:
    """Errors of EPnP here and in OpenCV: turned KITTI-like cameras that see points at 5 to 50 m, with noisy pixels."""
    K = torch.tensor([[700.0, 0, 600], [0, 700, 180], [0, 0, 1]], dtype=torch.float64)
    for num, noise_px in ((20, 2.0), (100, 2.0), (1000, 2.0)):
        rng = np.random.default_rng(0)
        pixels = rng.uniform((0, 0), (1200, 360), (samples, num, 2))
        depth = rng.uniform(5, 50, (samples, num, 1))
        R, t = Rotation.random(samples, rng=rng).as_matrix(), rng.normal(0, 5, (samples, 3))
        camera = np.concatenate([(pixels - K[:2, 2].numpy()) / 700 * depth, depth], axis=2)
        points = (camera - t[:, None]) @ R
        pixels = pixels + rng.normal(0, noise_px, pixels.shape)
        ours = epnp(torch.from_numpy(points), torch.from_numpy(pixels), K.expand(samples, 3, 3))
        answers = {"here": (ours.rotation.numpy(), ours.translation_m.numpy())}
        theirs = [
            cv2.solvePnP(p, uv, K.numpy(), None, flags=cv2.SOLVEPNP_EPNP)[1:]
            for p, uv in zip(points, pixels, strict=True)
        ]
        answers["OpenCV"] = (
            np.stack([cv2.Rodrigues(vector)[0] for vector, _ in theirs]),
            np.stack([shift[:, 0] for _, shift in theirs]),
        )
        for name, (R_found, t_found) in answers.items():
            angles = np.degrees(Rotation.from_matrix(R_found @ R.transpose(0, 2, 1)).magnitude())
            metres = np.linalg.norm(t_found - t, axis=1)
            print(
                f"  {num:4d} points, {noise_px} px, {name:6s}: rotation {np.median(angles):.4f} deg "
                f"(worst {angles.max():.4f}), translation {np.median(metres):.4f} m (worst {metres.max():.4f})"
            )


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", help="glob of KITTI .bin sweeps")
    parser.add_argument("--sizes", type=int, nargs="*", default=[16_384, 65_536], help="points a sweep")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--samples", type=int, default=4, help="of the matching batch (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = Clock(args.repeat)
    for size in args.sizes:
        print(f"{args.device}, {args.threads} thread(s), {size:,} points")
        points = sweep(args.points, size, 0).to(args.device)
        measure_sampling(clock, points)
        measure_neighbors(clock, points)
    print("matching of 1024 x 1024")
    measure_matching(clock, args.points, args.device, args.samples)
    print("pose")
    measure_epnp(clock, args.device)
    compare_with_opencv()


if __name__ == "__main__":
    main()
