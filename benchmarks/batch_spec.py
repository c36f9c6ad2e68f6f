"""Milliseconds of processor time a sample for what methods can ask of the loader; one process, one thread.

    python -m benchmarks.batch_spec --shards runs/street/shards

Each line is a `BatchSpec`: read, decode, find ground and objects, pair, augment twice where there are two views,
voxelise, collate. Medians over batches, divided by the batch's samples; waiting for disks is not counted.
"""

from __future__ import annotations

import argparse

import cv2
import numpy as np
import torch

from benchmarks.common import seconds_of
from data.batch_spec import BatchSpec, GroundConfig, PointClusterConfig, SecondCloud, VoxelConfig
from data.loading.loader import DataConfig, build_loader
from data.storage.manifest import load_manifest
from data.storage.reader import SampleError, SampleReader
from data.views.augment import AugmentConfig, ImageAugmentConfig
from data.views.colour import ColourConfig, draw_colour
from data.views.second_sweep import PartnerFinder

_SAME, _OTHER = SecondCloud(source="same"), SecondCloud(source="other")
_LINES, _PLANE = GroundConfig(kind="lines"), GroundConfig(kind="plane")
CASES = {
    "points": BatchSpec(images=False),
    "points, second cloud": BatchSpec(images=False, second_cloud=_SAME),
    "points, another sweep": BatchSpec(images=False, second_cloud=_OTHER),
    "points, ground by lines": BatchSpec(images=False, ground=_LINES),
    "points, ground by a plane": BatchSpec(images=False, ground=_PLANE),
    "points, ground by lines, radius clusters": BatchSpec(images=False, ground=_LINES, clusters=PointClusterConfig()),
    "points, second cloud, plane, DBSCAN": BatchSpec(
        images=False, second_cloud=_SAME, ground=_PLANE, clusters=PointClusterConfig(kind="dbscan", radius_m=0.25)
    ),
    "images": BatchSpec(),
    "images, superpixels": BatchSpec(superpixels=True),
    "images, only seen points, second cloud": BatchSpec(only_seen=True, second_cloud=_SAME),
    "images, second images": BatchSpec(second_images=True),
}


def milliseconds(config: DataConfig, spec: BatchSpec, batches: int) -> float:
    """Median processor time a sample."""
    stream = build_loader(config, spec=spec, seed=0, rank=0, world_size=1).batches(0)
    spent = [seconds_of(lambda: next(stream)) for _ in range(batches + 1)]
    return 1e3 * float(np.median(spent[1:])) / config.micro_batch_size


def colour_milliseconds(config: DataConfig, images: int) -> float:
    """Median processor time of the colour augmentation, all parts of it, of one image of the loader's size."""
    always = ColourConfig(enabled=True, jitter_probability=1.0, grey_probability=0.0, blur_probability=1.0)
    stored = SampleReader(load_manifest(config.shards)).read(0, labels=False).cameras[0].image
    image = cv2.resize(np.asarray(stored), config.image_size[::-1])
    rng = np.random.default_rng(0)
    return 1e3 * float(np.median([seconds_of(lambda: draw_colour(rng, always)(image)) for _ in range(images)]))


def partners(reader: SampleReader) -> str:
    """How many samples have no partner, and how far away in time the partners of the others are."""
    indices, gaps_s, without = reader.manifest.indices(), [], 0
    finder = PartnerFinder(reader, indices, _OTHER)
    for index in map(int, indices):
        sample = reader.read(index, images=False, superpixels=False, labels=False)
        try:
            partner = finder.find(index, sample, np.random.default_rng(index)).sample
            gaps_s.append(abs(partner.timestamp_us - sample.timestamp_us) / 1e6)
        except SampleError:
            without += 1
    return f"{without} of {len(indices)} without a partner; the others' is {np.median(gaps_s):.1f} s away (median)"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, help="a prepared set")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--image-size", type=int, nargs=2, default=(224, 416), metavar=("H", "W"))
    parser.add_argument("--voxel-m", type=float, default=0.1)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    config = DataConfig(
        shards=arguments.shards,
        image_size=tuple(arguments.image_size),
        voxel=VoxelConfig(kind="cartesian", size=(arguments.voxel_m,) * 3),
        augment=AugmentConfig(min_pairs=256, image=ImageAugmentConfig(colour=ColourConfig(enabled=False))),
        num_workers=0,
        max_skip_share=1.0,
    )
    manifest = load_manifest(config.shards)
    points = int(np.median(manifest.num_points))
    print(f"{len(manifest)} samples of {points} points, {len(manifest.camera_names)} cameras, {config.image_size} px")
    for title, spec in CASES.items():
        print(f"  {title:42s} {milliseconds(config, spec, arguments.batches):7.1f} ms a sample")
    print(f"  {partners(SampleReader(manifest))}")
    print(f"  colour augmentation, all parts             {colour_milliseconds(config, 200):7.2f} ms an image")


if __name__ == "__main__":
    main()
