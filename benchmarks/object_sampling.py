"""What objects of other sweeps in a training sweep cost ("ground-truth sampling"): processor time of one core a sample.

    python -m benchmarks.object_sampling SET --counts Car=20 Pedestrian=15 Cyclist=15 --cut-to-cameras
    python -m benchmarks.object_sampling SET --counts car=8 pedestrian=8 --split train

Views of all samples of the split, in this process, with and without sampling by turns; points only, no images. The
database is made in a temporary folder first.
"""

from __future__ import annotations

import argparse
import logging
import tempfile

import cv2
import numpy as np
import torch

import data.views.making
import data.views.object_sampling
from benchmarks.common import CallTimer, markdown, seconds_of, setting
from data.batch_spec import BatchSpec, VoxelConfig
from data.loading.objects import open_objects
from data.order import SampleDraws
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from data.views.augment import AugmentConfig, PointAugmentConfig
from data.views.boxes import BoxConfig, class_numbers, wanted_boxes
from data.views.object_sampling import ObjectSampler, ObjectSamplingConfig
from data.views.reading import read_view
from data.views.view import ViewConfig

_SEED = 0
_STAGES = {
    "draw, collisions": ((ObjectSampler, "put_into"),),
    "cut the scene, join the points": ((ObjectSampler, "_with_points"),),
    "read": ((SampleReader, "read_parts"),),
    "voxelise": ((data.views.making, "voxelize"),),
    "move, count points in boxes": ((data.views.making, "_with_boxes"),),
}


def _count(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    return name, int(number)


def _tables(
    reader: SampleReader, indices: list[int], config: ViewConfig, spec: BatchSpec, sampler: ObjectSampler, rounds: int
) -> None:
    def views(epoch: int, with_objects: ObjectSampler | None) -> None:
        for index in indices:
            read_view(reader, index, config, spec, SampleDraws(_SEED, epoch, index), None, sampler=with_objects)

    views(0, sampler)
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    watch = CallTimer()
    whole = watch.timed("rest of the view", views)
    for epoch in range(1, rounds + 1):
        seconds["without"].append(seconds_of(lambda: views(epoch, None)))  # noqa: B023
        seconds["with"].append(seconds_of(lambda: views(epoch, sampler)))  # noqa: B023
    with watch.over(_STAGES):
        for epoch in range(1, rounds + 1):
            whole(epoch, sampler)
    ms = {name: 1e3 * float(np.median(values)) / len(indices) for name, values in seconds.items()}
    rows = [[f"a view {name} objects", f"{value:.1f}"] for name, value in ms.items()]
    rows += [[f"... {stage}", f"{1e3 * s / rounds / len(indices):.1f}"] for stage, s in watch.seconds.items()]
    print(markdown(("processor time a sample", "ms"), rows))


def _added(reader: SampleReader, indices: list[int], spec: BatchSpec, sampler: ObjectSampler) -> tuple[float, float]:
    """Objects that a sample has, and that are put into it."""
    numbers, before, after = class_numbers(reader.manifest, spec.boxes), 0, 0
    for index in indices:
        sample = reader.read(index, images=False, superpixels=False)
        assert sample.boxes is not None
        boxes = wanted_boxes(sample.boxes, numbers)
        before += len(boxes)
        after += len(sampler.put_into(sample, boxes, index, SampleDraws(_SEED, 0, index))[1])
    return before / len(indices), (after - before) / len(indices)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="a prepared set with boxes")
    parser.add_argument("--counts", type=_count, nargs="+", required=True, metavar="CLASS=NUMBER")
    parser.add_argument("--split")
    parser.add_argument("--cut-to-cameras", action="store_true")
    parser.add_argument("--min-points", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    print(setting(_SEED))
    reader = SampleReader(load_manifest(arguments.shards))
    samples = reader.manifest.indices(arguments.split)
    sampling = ObjectSamplingConfig(counts=dict(arguments.counts))
    spec = BatchSpec(images=False, boxes=tuple(sampling.counts))
    config = ViewConfig(
        voxel=VoxelConfig(kind="cartesian", size=(0.05, 0.05, 0.1), features="xyz_intensity", reduce="mean"),
        augment=AugmentConfig(points=PointAugmentConfig(drop_max_side=0.0, scale_range=(0.95, 1.05))),
        cut_to_cameras=arguments.cut_to_cameras,
        boxes=BoxConfig(min_points=arguments.min_points),
        sampling=sampling,
    )
    with tempfile.TemporaryDirectory() as folder:

        def database() -> None:
            open_objects(
                reader,
                samples,
                spec,
                folder=folder,
                cut_to_cameras=arguments.cut_to_cameras,
                num_workers=0,
                max_skip_share=0.01,
            )

        made_s = seconds_of(database)
        objects = open_objects(
            reader,
            samples,
            spec,
            folder=folder,
            cut_to_cameras=arguments.cut_to_cameras,
            num_workers=0,
            max_skip_share=0.01,
        )
        sampler = ObjectSampler(objects, spec.boxes, sampling)
        indices = samples.tolist()
        has, added = _added(reader, indices, spec, sampler)
        num_points = float(reader.manifest.num_points[samples].mean())
        print(
            f"{len(indices)} samples of {num_points:.0f} points; {len(objects.table)} objects, made in "
            f"{1e3 * made_s / len(indices):.1f} ms a sample; a sample has {has:.1f} boxes and gets {added:.1f} more\n"
        )
        _tables(reader, indices, config, spec, sampler, arguments.rounds)


if __name__ == "__main__":
    main()
