"""Frames a second and core of `tandem prepare`, and where the time goes.

    python -m benchmarks.prepare [SET=SRC ...] [--frames N]

Without SET=SRC: the street world, and the real frames beside the repository as far as they are there. Times are
processor time of one process and one thread, which a busy machine shifts less than a clock's; files were read before,
so that no disk is waited for. The stages:

- read: bytes of files (`data.convert.raw_files.read_bytes`);
- decode: images (OpenCV, libjpeg) and packed streams (zlib);
- superpixels: `data.preparing.shard_task.segment`;
- encode: JPEG, PNG, run lengths, arrays, pairs counted (`ShardWriter.write` without the tar);
- write: the tar, its checksums, the disk;
- convert: the rest: parsing, geometry, classes; for the street world the drawing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from typing import Any

import cv2
import simplejpeg

import data.convert.raw_files
import data.preparing.shard_task
import data.storage.shard_writer
from benchmarks.common import REPOSITORY, CallTimer, markdown, setting
from data.convert.base import Converter
from data.convert.sets import SETTINGS
from data.convert.synthetic import SyntheticConverter
from data.preparing.prepare import PrepareConfig, prepare
from data.storage.shard import ShardError
from data.storage.shard_writer import ShardWriter

REAL = REPOSITORY.parent / "shared" / "data"
FOLDERS = {
    "kitti-raw": "kitti_raw",
    "kitti-object": "kitti_object",
    "semantickitti": "semantickitti",
    "nuscenes": "nuscenes",
    "7scenes": "7scenes",
    "sunrgbd": "sunrgbd/sunrgbd_trainval",
    "scannet": "scannet/scannet_train_instance_data",
}
"""Set -> its real frames, where they are. Those of Waymo lack the range images; benchmarks/raw_sets.py makes some."""

STAGES = ("read", "decode", "convert", "superpixels", "encode", "write")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", metavar="SET=SRC", help="folders in the official layouts")
    parser.add_argument("--frames", type=int, default=10, help="of each set, at most (default: %(default)s)")
    options = parser.parse_args(argv)
    cv2.setNumThreads(1)
    pairs = [tuple(text.split("=", 1)) for text in options.sources] or _default_sources()
    unknown = [pair for pair in pairs if len(pair) != 2 or pair[0] not in SETTINGS]
    if unknown:
        parser.error(f"got {'='.join(unknown[0])!r}, expected SET=SRC with SET one of {', '.join(SETTINGS)}")
    print(setting(0), file=sys.stderr)
    rows = []
    for name, source in pairs:
        try:
            rows.append(_row(name, _converter(name, source), options.frames))
        except ShardError as error:
            print(f"{name}: {error}", file=sys.stderr)
    header = ["set", "frames/s a core", "ms a frame", *(f"{stage} ms" for stage in STAGES), "MB a frame"]
    print(markdown(header, rows))
    return 0


def _default_sources() -> list[tuple[str, str]]:
    there = [(name, str(REAL / folder)) for name, folder in FOLDERS.items() if (REAL / folder).is_dir()]
    return [("synthetic", "-"), *there]


def _converter(name: str, source: str) -> Converter:
    return SyntheticConverter() if name == "synthetic" else SETTINGS[name](source=source)  # type: ignore[call-arg]


def _row(name: str, converter: Converter, frames: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        config = PrepareConfig(limit=frames, max_skip_share=1.0)
        prepare(converter, f"{folder}/warm", config)  # files and code are in memory after it
        watch = CallTimer()
        with watch.over(stages()):
            started = time.process_time()
            summary = prepare(converter, f"{folder}/measured", config)
            total = time.process_time() - started
        count = len(summary.manifest)
        num_bytes = sum(shard.num_bytes for shard in summary.manifest.shards)
    seconds = watch.seconds
    seconds["convert"] = total - sum(seconds.values())
    shares = [f"{1e3 * seconds[stage] / count:.1f}" for stage in STAGES]
    speed = [f"{count / total:.2f}", f"{1e3 * total / count:.0f}"]
    return [f"{name} ({count})", *speed, *shares, f"{num_bytes / count / 1e6:.2f}"]


def stages() -> dict[str, list[tuple[Any, str]]]:
    """Stage -> its functions; reading is `read_bytes` under every name by which a converter imported it."""
    original = data.convert.raw_files.read_bytes
    modules = [module for name, module in sys.modules.items() if name.startswith("data.convert.")]
    return {
        "read": [(module, "read_bytes") for module in modules if getattr(module, "read_bytes", None) is original],
        "decode": [(cv2, "imdecode"), (simplejpeg, "decode_jpeg"), (zlib, "decompress")],
        "superpixels": [(data.preparing.shard_task, "segment")],
        "encode": [(data.storage.shard_writer, "encode_sample"), (data.storage.shard_writer, "count_pairs")],
        "write": [(ShardWriter, "write"), (ShardWriter, "finish")],
    }


if __name__ == "__main__":
    raise SystemExit(main())
