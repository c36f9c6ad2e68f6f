"""CPU time a frame of the converters of ONCE, PandaSet and Argoverse 2, by stage, on generated frames of full size.

    python -m benchmarks.raw_sets [--frames 3] [--prepare]

Images have the sets' sizes (street pictures enlarged, with sensor noise), sweeps their numbers of points; tables are
written as each set publishes them. Reading is that of a warm cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import CallTimer, place, prepared
from data.convert.argoverse2 import Argoverse2Converter
from data.convert.base import Converter
from data.convert.once import OnceConverter
from data.convert.pandaset.converter import PandasetConverter
from data.sample import CameraView, Sample
from tests.helpers.layouts import argoverse2, once, pandaset
from tests.helpers.street_logs import street_log

_STAGES = {
    "read": (
        "data.convert.files.read_bytes",
        "data.convert.feather.read_bytes",
        "data.convert.pandaset.pandas_pickle.read_bytes",
    ),
    "jpeg": ("data.convert.files.decode_jpeg",),
    "undistort": ("data.convert.once._Reader._undistorted",),
    "pickles": ("data.convert.pandaset.converter.read_table",),
    "feather": ("data.convert.argoverse2.read_feather",),
    "boxes to labels": tuple(f"data.convert.{name}.labels_from_boxes" for name in ("once", "pandaset", "argoverse2")),
}
"""Stage -> functions; each has its own time, without that of others in it."""


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


SETS: dict[str, Callable[[Path, int], Converter]] = {
    "once": _write_once,
    "pandaset": _write_pandaset,
    "argoverse2": _write_argoverse2,
}


def main() -> None:
    """Print two lines a set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--prepare", action="store_true", help="also the whole preparation, with superpixels")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name, write in SETS.items():
            converter = write(Path(folder) / name, args.frames)
            _measure(name, converter, args.frames)
            if args.prepare:
                print(f"  {prepared(converter, Path(folder) / f'{name}-shards', args.frames)}", flush=True)


def _measure(name: str, converter: Converter, frames: int) -> None:
    (log,) = converter.logs()
    list(converter.frames(log, 0, 1))  # imports, tables of Arrow
    watch = CallTimer()
    with watch.over({stage: [place(name) for name in names] for stage, names in _STAGES.items()}):
        began = time.process_time()
        found = list(converter.frames(log, 0, frames))
        total = time.process_time() - began
    assert all(isinstance(item, Sample) for item in found), found
    parts = ", ".join(f"{stage} {1e3 * spent / frames:.0f}" for stage, spent in watch.seconds.items())
    print(f"{name}: {frames / total:.2f} frames/s of a core; {1e3 * total / frames:.0f} ms ({parts})", flush=True)


if __name__ == "__main__":
    main()
