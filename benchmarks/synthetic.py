"""Speed of the street world: frames a second on one core, split into world, LiDAR and cameras.

    OMP_NUM_THREADS=1 python -m benchmarks.synthetic

Processor time is the figure to compare on a machine that does other things too; the wall clock is printed beside it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, TypeVar

from data.street.config import StreetCameraConfig, StreetConfig, StreetLidarConfig
from data.street.log import LogRenderer

_T = TypeVar("_T")


class Clock:
    """Adds up processor and wall-clock time by part."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = {}
        self.wall_s: dict[str, float] = {}

    def time(self, part: str, call: Callable[..., _T], *arguments: Any) -> _T:
        """Run `call` and book its time on `part`."""
        cpu, wall = time.process_time(), time.perf_counter()
        result = call(*arguments)
        self.cpu_s[part] = self.cpu_s.get(part, 0.0) + time.process_time() - cpu
        self.wall_s[part] = self.wall_s.get(part, 0.0) + time.perf_counter() - wall
        return result


def measure(config: StreetConfig, first_log: int) -> Clock:
    clock = Clock()
    for log in range(first_log, config.num_logs):
        renderer = clock.time("world", LogRenderer, config, log)
        for frame in range(config.frames_per_log):
            sweep = clock.time("lidar", renderer.sweep, frame)
            for camera in range(len(config.cameras.names)):
                clock.time("cameras", renderer.view, frame, camera)
            clock.time("boxes", renderer.boxes, frame, sweep)
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=int, default=6, help="worlds to measure, after one to warm up")
    parser.add_argument("--frames", type=int, default=6, help="frames a world")
    parser.add_argument("--beams", type=int, default=32)
    parser.add_argument("--azimuths", type=int, default=720)
    parser.add_argument("--image-size", type=int, nargs=2, default=(160, 320), metavar=("HEIGHT", "WIDTH"))
    arguments = parser.parse_args()
    config = StreetConfig(
        num_logs=arguments.logs + 1,
        frames_per_log=arguments.frames,
        lidar=StreetLidarConfig(beams=arguments.beams, azimuths=arguments.azimuths),
        cameras=StreetCameraConfig(image_size=(arguments.image_size[0], arguments.image_size[1])),
    )
    LogRenderer(config, 0).sample(config.log_name(0), 0)
    clock = measure(config, 1)
    frames = arguments.logs * arguments.frames
    print(f"{'part':8s} {'cpu s/frame':>12s} {'wall s/frame':>13s}")
    for part in clock.cpu_s:
        print(f"{part:8s} {clock.cpu_s[part] / frames:12.4f} {clock.wall_s[part] / frames:13.4f}")
    cpu, wall = sum(clock.cpu_s.values()) / frames, sum(clock.wall_s.values()) / frames
    print(f"{'all':8s} {cpu:12.4f} {wall:13.4f}   {1 / cpu:.1f} frames a processor second, {1 / wall:.1f} by the clock")


if __name__ == "__main__":
    main()
