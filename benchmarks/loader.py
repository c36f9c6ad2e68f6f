"""Samples a second and core: our shards beside the ordinary way from the same frames as files, and where the time goes.

    python -m benchmarks.loader --nuscenes DIR     # frames: the first key frame of a folder in nuScenes' layout
    python -m benchmarks.loader                    # frames: the street world at nuScenes' size (slow to draw)
    python -m benchmarks.loader --nuscenes DIR --image-reduction 2     # images stored at half size, quality 90
    python -m benchmarks.loader --shards SET --image-size 160 320 --workers 1     # stages and waiting on a set of yours

Six cameras of 900 x 1600, 35,000 points, 150 superpixels an image, crops of 224 x 416, cylindrical voxels. Both ways
make the same of each frame, one process, one thread, by turns; times are processor time, which a busy machine
shifts less than a clock's. The frames are files of their own, read before, so that no disk is waited for.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch

import data.storage.decode
import data.storage.reader
import data.views.augment
import data.views.making
from benchmarks.common import CallTimer, markdown, seconds_of, setting
from benchmarks.ordinary import OfficialFrames, ordinary_sample, street_frames, write_copies, write_frames
from data.batch_spec import BatchSpec, VoxelConfig
from data.loading.collate import collate
from data.loading.loader import DataConfig, build_loader
from data.loading.memory import keep_freed_memory
from data.loading.workers import Loaded, _Packed
from data.order import SampleDraws
from data.preparing.shard_task import finished
from data.preparing.superpixels import SuperpixelConfig
from data.sample import Sample
from data.storage.encode import CodecConfig
from data.storage.manifest import SetInfo, load_manifest
from data.storage.reader import SampleReader
from data.storage.shard_writer import join_manifest, write_shard
from data.storage.teacher_cache import TeacherCache, TeacherCacheWriter
from data.views.augment import AugmentConfig, ImageAugmentConfig
from data.views.reading import read_view

_SPEC = BatchSpec(superpixels=True)
_SEED = 0
_STAGES: dict[str, tuple[tuple[Any, str], ...]] = {
    "read": ((SampleReader, "_sample_bytes"),),
    "checksum": ((zlib, "crc32"),),
    "points, calibration": ((data.storage.reader, "decode_sample"), (data.storage.reader, "_members")),
    "superpixels": ((data.storage.decode, "_decode_superpixels"),),
    "pairs": ((data.views.making, "point_pixel_pairs"),),
    "augment the cloud": ((data.views.making, "_draw_cloud"),),
    "draw crops": ((data.views.making, "draw_pixel_transform"),),
    "decode JPEG": ((data.views.making, "decode_jpeg"),),
    "resize, mirror": ((data.views.augment.PixelTransform, "image"),),
    "cut superpixels, look up pairs": ((data.views.making, "_assemble"),),
    "voxelise": ((data.views.making, "voxelize"),),
}
"""Functions whose own time (without that of other stages that they call) is a stage's."""


# ---- our way
def _ours(reader: SampleReader, indices: list[int], config: DataConfig, epoch: int) -> None:
    """Batches of all samples, made and packed for the trainer."""
    for start in range(0, len(indices), config.micro_batch_size):
        chosen = indices[start : start + config.micro_batch_size]
        views = [read_view(reader, i, config, _SPEC, SampleDraws(_SEED, epoch, i), None) for i in chosen]
        batch = collate(views)
        _Packed(Loaded(batch=batch, num_seen=len(chosen)))


def _print_stages(reader: SampleReader, indices: list[int], config: DataConfig, rounds: int) -> None:
    watch = CallTimer()
    whole = watch.timed("collate, pack, rest", _ours)
    with watch.over(_STAGES):
        for epoch in range(rounds):
            whole(reader, indices, config, epoch)
    count = rounds * len(indices)
    total = sum(watch.seconds.values())
    rows = [[stage, f"{1e3 * s / count:.2f}", f"{s / total:.0%}"] for stage, s in watch.seconds.items()]
    print(markdown(("stage", "ms a sample", "share"), [*rows, ["all", f"{1e3 * total / count:.1f}", "100%"]]))


# ---- side by side
def _write_set(root: Path, frames: OfficialFrames, reduction: int, quality: int) -> None:
    root.mkdir()
    samples = (frames.sample(token, f"log_{number:06d}") for number, token in enumerate(frames.tokens))
    if reduction > 1:
        bare = (_without_superpixels(sample) for sample in samples)
        samples = (finished(sample, SuperpixelConfig(), reduction) for sample in bare)
    table = write_shard(root / "shard-000000.tar", samples, CodecConfig(jpeg_quality=quality))  # JPEGs of files stay
    size = (root / "shard-000000.tar").stat().st_size
    print(f"{size / len(frames.tokens) / 1e6:.2f} MB a sample")
    names = tuple(frames.cameras(frames.tokens[0]))
    join_manifest(str(root), SetInfo(set_name="frames", camera_names=names, logs=("log",), splits=("train",)), [table])


def _without_superpixels(sample: Sample) -> Sample:
    bare = tuple(dataclasses.replace(camera, superpixels=None) for camera in sample.cameras)
    return dataclasses.replace(sample, cameras=bare)


def _side_by_side(frames: OfficialFrames, reader: SampleReader, config: DataConfig, rounds: int) -> None:
    """Each round times both ways and the decoder alone on the same frames."""
    indices, size = list(range(len(frames.tokens))), config.image_size
    files = [frames.path(token, channel) for token in frames.tokens for channel in frames.cameras(token)]
    jpegs = [file.read_bytes() for file in files]
    height, width, _, _ = simplejpeg.decode_jpeg_header(jpegs[0])
    half = {"min_height": -(-height // 2), "min_width": -(-width // 2)}

    def ordinary(epoch: int) -> None:
        rng = np.random.default_rng((_SEED, epoch))
        for token in frames.tokens:
            ordinary_sample(frames, token, config.augment, size, rng)

    ways: dict[str, Callable[[int], object]] = {
        "files, the ordinary way": ordinary,
        "shards": lambda epoch: _ours(reader, indices, config, epoch),
        "JPEG decoder alone, full size": lambda _: [simplejpeg.decode_jpeg(jpeg) for jpeg in jpegs],
        "JPEG decoder alone, half size": lambda _: [simplejpeg.decode_jpeg(jpeg, **half) for jpeg in jpegs],
    }
    for way in ways.values():
        way(0)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in range(1, rounds + 1):
        for name, way in ways.items():
            taken[name].append(seconds_of(functools.partial(way, epoch)))
    each = {name: 1e3 * np.array(seconds) / len(indices) for name, seconds in taken.items()}
    first = each["files, the ordinary way"]
    rows = [
        [name, f"{np.median(ms):.1f}", f"{1e3 / np.median(ms):.1f}", f"{np.median(first / ms):.2f}"]
        for name, ms in each.items()
    ]
    print(markdown(("", "ms a sample", "samples/s a core", "times the ordinary way"), rows))


# ---- beside a trainer
def _build_cache(root: str, dim: int) -> TeacherCache:
    """Random features: what a cached step reads, without a teacher."""
    manifest = load_manifest(root)
    writer = TeacherCacheWriter(root, f"benchmark-{dim}", dim, manifest)
    reader = SampleReader(manifest)
    rng = np.random.default_rng(_SEED)
    for index in writer.missing(np.arange(len(manifest))):
        cameras = reader.read(int(index), images=False, labels=False).cameras
        counts = [0 if view.superpixels is None else int(view.superpixels.max()) + 1 for view in cameras]
        writer.add(int(index), rng.normal(size=(sum(counts), dim)).astype(np.float32), counts)
    return writer.finish()


def _waiting(batches: Iterator[object], step_s: float, steps: int) -> tuple[float, float]:
    """Seconds to the first batch, and median wait for each later one beside steps of this length."""
    first = seconds_of(lambda: next(batches), time.perf_counter)
    waits = []
    for _ in range(steps):
        time.sleep(step_s)
        waits.append(seconds_of(lambda: next(batches), time.perf_counter))
    return first, float(np.median(waits))


def _print_waiting(root: str, config: DataConfig, cached: DataConfig, dim: int, step_s: float) -> None:
    print(f"\n{config.num_workers} worker(s), batches of {config.micro_batch_size}, steps of {step_s} s")
    cache = _build_cache(root, dim)
    for title, settings, teacher in (("images", config, None), ("cached teacher", cached, cache)):
        source = build_loader(settings, spec=_SPEC, seed=_SEED, rank=0, world_size=1, teacher_cache=teacher)
        first, wait = _waiting(source.batches(0), step_s, 20)
        share = wait / (wait + step_s)
        print(f"  {title:15s} first batch after {first:.2f} s, then waits {1e3 * wait:.1f} ms a step ({share:.1%})")


def _frames(arguments: argparse.Namespace, folder: Path) -> OfficialFrames:
    if arguments.nuscenes:
        print(f"frames: {arguments.samples} copies of the first key frame in {arguments.nuscenes}")
        return write_copies(Path(arguments.nuscenes), folder, arguments.samples)
    print(f"frames: {arguments.samples} of the street world")
    return write_frames(street_frames(arguments.samples), folder)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", help="a prepared set: its stages, and nothing beside it")
    parser.add_argument("--nuscenes", help="folder in nuScenes' layout whose first key frame is used")
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image-size", type=int, nargs=2, default=(224, 416), metavar=("H", "W"))
    parser.add_argument("--image-reduction", type=int, default=1, help="of the stored images")
    parser.add_argument("--jpeg-quality", type=int, default=90, help="of stored images that are reduced")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--cameras", type=int, help="cameras a sample, of those that it has")
    parser.add_argument("--min-pairs", type=int, default=1024)
    parser.add_argument("--cache-dim", type=int, default=320, help="width of the cached teacher features")
    parser.add_argument("--workers", type=int, default=0, help="also measure how long a trainer with this many waits")
    parser.add_argument("--step-s", type=float, default=0.3)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    keep_freed_memory()  # as in a worker
    print(setting(_SEED))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root, frames = arguments.shards, None
        if root is None:
            root = str(folder / "shards")
            frames = _frames(arguments, folder / "files")
            _write_set(Path(root), frames, arguments.image_reduction, arguments.jpeg_quality)
        config = DataConfig(
            shards=root,
            split=None,
            micro_batch_size=arguments.batch,
            image_size=(arguments.image_size[0], arguments.image_size[1]),
            cameras_per_sample=arguments.cameras,
            voxel=VoxelConfig(),
            augment=AugmentConfig(min_pairs=arguments.min_pairs),
            num_workers=arguments.workers,
        )
        reader = SampleReader(load_manifest(root))
        if frames is not None:
            _side_by_side(frames, reader, config, arguments.rounds)
        indices = list(range(min(len(reader.manifest), arguments.samples)))
        print()
        _print_stages(reader, indices, config, arguments.rounds)
        if arguments.workers:
            still = dataclasses.replace(config.augment, image=ImageAugmentConfig(enabled=False))
            cached = dataclasses.replace(config, augment=still)
            _print_waiting(root, config, cached, arguments.cache_dim, arguments.step_s)


if __name__ == "__main__":
    main()
