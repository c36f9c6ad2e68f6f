"""Frames a second of CPU time of the Waymo converter on frames of full size, by stage; both published formats.

    python -m benchmarks.waymo [--frames 6] [--prepare]

The frames are generated: range images of 64 x 2650 and four times 200 x 600 cells, filled as densely as the set's are
(some 180,000 points), with poses at each cell; five JPEGs of 1280 x 1920 or 886 x 1920 pixels; point classes; 60 boxes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.common import CallTimer, place, prepared
from data.convert.waymo.converter import WaymoConverter
from data.sample import Sample
from tests.helpers.layouts.waymo import WaymoOptions
from tests.helpers.layouts.waymo_full import write_full_size

_STAGES = {
    "read": ("data.convert.waymo.tfrecord.read_range", "data.convert.parquet_rows.ParquetRows.rows"),
    "unpack": ("data.convert.waymo.proto._floats", "data.convert.waymo.proto._integers"),
    "points": ("data.convert.waymo.converter.laser_points",),
    "jpeg": ("data.convert.waymo.converter.decode_jpeg",),
}
"""Stage -> functions; reading Parquet is unpacking it as well."""


_REPEATS = 3
"""The fastest counts: what else runs on the machine only makes it slower."""


def main() -> None:
    """Print one line a format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--prepare", action="store_true", help="also the whole preparation, with superpixels")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for version in ("v1", "v2"):
            root = Path(folder) / version
            write_full_size(root, version, args.frames, WaymoOptions())
            num_bytes = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
            converter = WaymoConverter(source=str(root))
            (log,) = converter.logs()
            list(converter.frames(log, 0, 1))  # imports, tables of numpy and Arrow
            total, seconds, points = min((_convert(converter, log, args.frames) for _ in range(_REPEATS)), key=_total)
            parts = ", ".join(f"{stage} {1e3 * spent / args.frames:.0f}" for stage, spent in seconds.items())
            print(
                f"{version}: {args.frames / total:.2f} frames/s of a core; {1e3 * total / args.frames:.0f} ms ({parts})"
            )
            print(f"  {points} points, {num_bytes / args.frames / 1e6:.2f} MB a source frame", flush=True)
            if args.prepare:
                print(f"  {prepared(converter, Path(folder) / f'{version}-shards', args.frames)}", flush=True)


def _convert(converter: WaymoConverter, log: str, frames: int) -> tuple[float, dict[str, float], int]:
    """Seconds, seconds of each stage, points a frame."""
    watch = CallTimer()
    with watch.over({stage: [place(name) for name in names] for stage, names in _STAGES.items()}):
        began = time.process_time()
        samples = [item for item in converter.frames(log, 0, frames) if isinstance(item, Sample)]
        total = time.process_time() - began
    assert len(samples) == frames
    return total, watch.seconds, sum(len(sample.points_lidar) for sample in samples) // frames


def _total(run: tuple[float, dict[str, float], int]) -> float:
    return run[0]


if __name__ == "__main__":
    main()
