"""Milliseconds of box operations on one thread: overlaps, non-maximum suppression, points in boxes.

    python -m benchmarks.boxes --threads 1
    python -m benchmarks.boxes --device cuda

Boxes are cars spread over 100 m x 100 m, or as a detector gives them: many around each of 40 objects. Medians of wall
time and of processor time, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.common import markdown, setting, wait_for_device
from common.boxes.nms import rotated_nms
from common.boxes.overlap import bev_iou, iou_3d
from common.boxes.points import first_box_of_points, points_in_boxes


def spread_boxes(num: int, generator: torch.Generator) -> Tensor:
    """Cars of 2 to 5 m anywhere in the square."""
    scale, shift = torch.tensor([100.0, 100, 2, 3, 1, 1, 6.28]), torch.tensor([-50.0, -50, -1, 2, 1, 1, -3.14])
    return torch.rand(num, 7, generator=generator) * scale + shift


def crowded_boxes(num: int, generator: torch.Generator) -> Tensor:
    """Boxes a few centimetres around 40 cars."""
    objects = spread_boxes(40, generator)[torch.randint(40, (num,), generator=generator)]
    return objects + 0.05 * torch.randn(num, 7, generator=generator)


def median_ms(run: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Wall time and processor time of one call."""
    times = []
    for _ in range(repeat):
        wall, processor = time.perf_counter(), time.process_time()
        run()
        wait_for_device()
        times.append((1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - processor)))
    walls, processors = (sorted(column)[repeat // 2] for column in zip(*times, strict=True))
    return walls, processors


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all and print a table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cpu")
    options = p.parse_args(argv)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    generator = torch.Generator().manual_seed(options.seed)
    spread, crowded = (make(4096, generator).to(device) for make in (spread_boxes, crowded_boxes))
    many, few = spread_boxes(10_000, generator).to(device), spread_boxes(100, generator).to(device)
    scores = torch.rand(4096, generator=generator).to(device)
    points = (torch.rand(20_000, 3, generator=generator) * 100 - 50).to(device)
    cases: dict[str, Callable[[], object]] = {
        "NMS at .1, 4,096 boxes spread": lambda: rotated_nms(spread, scores, 0.1),
        "NMS at .1, 4,096 boxes around 40 objects": lambda: rotated_nms(crowded, scores, 0.1),
        "NMS at .1, the 500 best of them": lambda: rotated_nms(crowded, scores, 0.1, num_before=500),
        "3D IoU, 100 x 4,096": lambda: iou_3d(few, spread),
        "BEV IoU, 10,000 x 10,000": lambda: bev_iou(many, many),
        "points in boxes, 20,000 x 100": lambda: points_in_boxes(points, few),
        "first box of points, 20,000 x 100": lambda: first_box_of_points(points, few),
    }
    rows = [(name, *(f"{ms:.1f}" for ms in median_ms(run, options.repeat))) for name, run in cases.items()]
    print(markdown(("operation", "wall ms", "processor ms"), rows))
    print(setting(options.seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
