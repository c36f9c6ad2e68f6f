"""CPU time a frame of the converters of ONCE, PandaSet, Argoverse 2 and Waymo, on generated frames of full size.

    python -m benchmarks.raw_sets [SET ...] [--frames 3] [--prepare]

Images have the sets' sizes (street pictures enlarged, with sensor noise), sweeps their numbers of points; tables are
written as each set publishes them. Reading is that of a warm cache. Waymo in both its formats: range images of
64 x 2650 and four times 200 x 600 cells, filled as densely as the set's are (some 180,000 points), with poses at each
cell; five JPEGs of 1280 x 1920 or 886 x 1920 pixels; point classes; 60 boxes.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import converted, prepared
from data.convert.argoverse2 import Argoverse2Converter
from data.convert.base import Converter
from data.convert.once import OnceConverter
from data.convert.pandaset.converter import PandasetConverter
from data.convert.waymo.converter import WaymoConverter
from data.sample import CameraView, Sample
from tests.helpers.layouts import argoverse2, once, pandaset
from tests.helpers.layouts.waymo import WaymoOptions
from tests.helpers.layouts.waymo_full import write_full_size
from tests.helpers.street_logs import street_log

_LABELLING = ("once", "pandaset.converter", "argoverse2")
_STAGES = {
    "read": (
        *(f"data.convert.{name}.read_bytes" for name in ("raw_files", "feather", "pandaset.pandas_pickle")),
        "data.convert.waymo.tfrecord.read_range",
        "data.convert.parquet_rows.ParquetRows.rows",  # reading Parquet is unpacking it as well
    ),
    "unpack": ("data.convert.waymo.proto._floats", "data.convert.waymo.proto._integers"),
    "points": ("data.convert.waymo.converter.laser_points",),
    "jpeg": ("data.convert.raw_files.decode_jpeg", "data.convert.waymo.converter.decode_jpeg"),
    "undistort": ("data.convert.once._Reader._undistorted",),
    "pickles": ("data.convert.pandaset.converter.read_table",),
    "feather": ("data.convert.argoverse2.read_feather",),
    "boxes to labels": tuple(f"data.convert.{name}.labels_from_boxes" for name in _LABELLING),
}
"""Stage -> functions, see `converted`."""
_REPEATS = 3


def full_size(cameras: tuple[str, ...], frames: int, image_size: tuple[int, int], points: int) -> list[Sample]:
    """Street frames with larger images, and with points near the street's own until there are enough."""
    street = street_log(cameras, frames=min(frames, 3))
    return [_enlarged(street[number % 3], number, image_size, points) for number in range(frames)]


def _enlarged(sample: Sample, number: int, image_size: tuple[int, int], points: int) -> Sample:
    rng = np.random.default_rng(number)
    chosen = rng.integers(0, len(sample.points_lidar), points)
    assert sample.labels is not None
    shift_us = number // 3 * 10_000_000
    views = [_enlarged_view(view, image_size, rng, shift_us) for view in sample.cameras]
    return dataclasses.replace(
        sample,
        timestamp_us=sample.timestamp_us + shift_us,
        points_lidar=(sample.points_lidar[chosen] + rng.normal(0, 0.02, (points, 3))).astype(np.float32),
        intensity=sample.intensity[chosen],
        labels=sample.labels[chosen],
        cameras=tuple(views),
    )


def _enlarged_view(view: CameraView, size: tuple[int, int], rng: np.random.Generator, shift_us: int) -> CameraView:
    assert view.image is not None
    image = cv2.resize(view.image, size[::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32)
    image += rng.normal(0, 3, size).astype(np.float32)[..., None]
    scale = size[1] / view.image_size[1]
    return dataclasses.replace(
        view,
        image=np.clip(image, 0, 255).astype(np.uint8),
        image_size=size,
        K=np.diag([scale, scale, 1.0]) @ view.K,
        timestamp_us=view.timestamp_us + shift_us,
    )


def _write_once(root: Path, frames: int) -> Converter:
    once.write_once(root, {"000076": full_size(once.CAMERAS, frames, (1020, 1920), 70_000)}, labelled=("000076",))
    return OnceConverter(source=str(root), raw="none")


def _write_pandaset(root: Path, frames: int) -> Converter:
    samples = full_size(pandaset.CAMERAS, frames, (1080, 1920), 166_000)
    pandaset.write_pandaset(root, {"001": samples}, semseg=("001",))
    return PandasetConverter(source=str(root))


def _write_argoverse2(root: Path, frames: int) -> Converter:
    samples = full_size(argoverse2.RING, frames, (1550, 2048), 98_000)
    argoverse2.write_argoverse2(root, {"train": {"log": samples}})
    return Argoverse2Converter(source=str(root))


def _write_waymo(version: str, root: Path, frames: int) -> Converter:
    write_full_size(root, version, frames, WaymoOptions())
    return WaymoConverter(source=str(root))


SETS: dict[str, Callable[[Path, int], Converter]] = {
    "once": _write_once,
    "pandaset": _write_pandaset,
    "argoverse2": _write_argoverse2,
    "waymo-v1": functools.partial(_write_waymo, "v1"),
    "waymo-v2": functools.partial(_write_waymo, "v2"),
}


def main() -> None:
    """Print two or three lines a set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"some of {', '.join(SETS)}; all without")
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--prepare", action="store_true", help="also the whole preparation, with superpixels")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.sets or SETS:
            root = Path(temporary) / name
            converter = SETS[name](root, args.frames)
            num_bytes = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
            speed, samples = converted(converter, args.frames, _STAGES, repeats=_REPEATS)
            points = sum(len(sample.points_lidar) for sample in samples) // args.frames
            print(f"{name}: {speed}")
            print(f"  {points} points, {num_bytes / args.frames / 1e6:.2f} MB a source frame", flush=True)
            if args.prepare:
                print(f"  {prepared(converter, Path(temporary) / f'{name}-shards', args.frames)}", flush=True)


if __name__ == "__main__":
    main()
