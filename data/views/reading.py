"""From a sample in the shards to its `View`: read what the method needs of it, and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int

from data.batch_spec import BatchSpec
from data.order import SampleDraws
from data.sample import IGNORE_LABEL, Sample
from data.storage.decode import Images, SuperpixelForm
from data.storage.reader import Reader, SampleError, blamed_on
from data.storage.shard import ShardError
from data.storage.teacher_cache import TeacherCache
from data.views.boxes import ViewBoxes, class_numbers, wanted_boxes
from data.views.making import make_view
from data.views.object_sampling import ObjectSampler
from data.views.pairs import cut_to_cameras
from data.views.second_sweep import PartnerFinder
from data.views.view import View, ViewConfig


def read_view(
    reader: Reader,
    index: int,
    config: ViewConfig,
    spec: BatchSpec,
    draws: SampleDraws,
    partners: PartnerFinder | None,
    cache: TeacherCache | None = None,
    *,
    labels: bool = False,
    sampler: ObjectSampler | None = None,
) -> View:
    """Read what the method needs of a sample, and nothing else, and make its view.

    A teacher cache gives features in place of pixels; `labels` adds the classes of points as the set numbers them
    (`spec.point_classes` does so in its own order); a sampler puts objects of other sweeps in, whose points' classes
    and pixels are not known, so it excludes `labels`, `spec.point_classes` and `spec.images`.

    Raises:
        SampleError: the sample is damaged, has no pairs, no partner, no labelled boxes or points where `spec` asks for
            them, or no view of it can be made, whatever the exception.
        ShardError: the cache was built with other superpixels, the set has no class of a name in `spec.boxes` or
            `spec.point_classes`, or the storage is away.
    """
    images: Images = "encoded" if spec.images and cache is None else False
    superpixels: SuperpixelForm = "runs" if spec.superpixels else False
    sample = reader.read(
        index, images=images, superpixels=superpixels, labels=labels or bool(spec.boxes or spec.point_classes)
    )
    return view_of(sample, reader, index, config, spec, draws, partners, cache, labels=labels, sampler=sampler)


def view_of(
    sample: Sample,
    reader: Reader,
    index: int,
    config: ViewConfig,
    spec: BatchSpec,
    draws: SampleDraws,
    partners: PartnerFinder | None = None,
    cache: TeacherCache | None = None,
    *,
    labels: bool = False,
    sampler: ObjectSampler | None = None,
) -> View:
    """As `read_view`, of a sample that has been read."""
    shard = reader.shard_of(index)
    with blamed_on(sample.key, shard):
        boxes = _boxes(sample, reader, spec, shard)
        if spec.point_classes:
            sample = _of_classes(sample, reader, spec, shard)
        elif not labels:
            sample = dataclasses.replace(sample, labels=None, instances=None)
        if config.cut_to_cameras:
            sample = cut_to_cameras(sample)
        if sampler is not None and boxes is not None:
            sample, boxes = sampler.put_into(sample, boxes, index, draws)
        partner = None if partners is None else partners.find(index, sample, draws.partner(), shard=shard)
        cached = None if cache is None else _cached_features(cache, index, sample)
        return make_view(sample, config, spec, draws, shard=shard, cached=cached, partner=partner, boxes=boxes)


def partners_for(reader: Reader, indices: Int[np.ndarray, " n"], spec: BatchSpec) -> PartnerFinder | None:
    """Finds other sweeps among the samples in use; None where the method needs none."""
    if spec.second_cloud is None or spec.second_cloud.source == "same":
        return None
    return PartnerFinder(reader, indices, spec.second_cloud)


def _boxes(sample: Sample, reader: Reader, spec: BatchSpec, shard: str) -> ViewBoxes | None:
    """Those of the classes that are asked for; None where none are."""
    if not spec.boxes:
        return None
    numbers = class_numbers(reader.manifest, spec.boxes)
    if sample.boxes is None:
        raise SampleError("no-boxes", sample.key, shard, "nobody has labelled its objects")
    return wanted_boxes(sample.boxes, numbers)


def _of_classes(sample: Sample, reader: Reader, spec: BatchSpec, shard: str) -> Sample:
    """With the classes of its points numbered as `spec` asks, and its objects where it asks for them."""
    numbers = class_numbers(reader.manifest, spec.point_classes, of="points")
    if sample.labels is None:
        raise SampleError("no-labels", sample.key, shard, "nobody has labelled its points")
    if spec.instances and sample.instances is None:
        raise SampleError("no-instances", sample.key, shard, "nobody has told the objects of its points apart")
    labels = np.where(numbers < 0, IGNORE_LABEL, numbers)[sample.labels].astype(np.uint8)
    return dataclasses.replace(sample, labels=labels, instances=sample.instances if spec.instances else None)


def _cached_features(cache: TeacherCache, index: int, sample: Sample) -> list[np.ndarray]:
    """Teacher features of each camera.

    Raises:
        ShardError: the cache was built with other superpixels, or has another sample's features there.
    """
    offsets, rows = cache.offsets(index), cache.features(index, sample.key)
    for number, view in enumerate(sample.cameras):
        stored = view.num_superpixels
        if stored != offsets[number + 1] - offsets[number]:
            raise ShardError(
                f"sample {sample.key}, camera {view.name}: {stored} superpixels in the shards, "
                f"{offsets[number + 1] - offsets[number]} in {cache.path}; delete that folder and build it again"
            )
    return [rows[offsets[number] : offsets[number + 1]] for number in range(len(sample.cameras))]
