"""One sample from the shards as the view that a method wants of it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from data.batch_spec import BatchSpec
from data.order import SampleDraws
from data.sample import Sample
from data.storage.decode import Images
from data.storage.encode import DamagedError
from data.storage.mixture import Reader
from data.storage.shards import SampleError, ShardError
from data.storage.teacher_cache import TeacherCache
from data.views.second_sweep import PartnerFinder
from data.views.view import View, ViewConfig, make_view


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
) -> View:
    """Read what the method wants, and nothing else, and make its view.

    Args:
        reader: of the set.
        index: of the sample in the manifest.
        config: what to make of it.
        spec: what it must hold.
        draws: the sample's random numbers.
        partners: see `partners_for`.
        cache: teacher features in place of pixels.
        labels: also the classes of points.

    Raises:
        SampleError: the sample is damaged, or has no pairs or no partner where they are wanted.
        ShardError: the cache was built with other superpixels.
    """
    images: Images = "encoded" if spec.images and cache is None else False
    sample = reader.read(index, images=images, superpixels=spec.superpixels, labels=labels)
    shard = shard_file(reader, index)
    partner = None if partners is None else partners.find(index, sample, draws.partner(), shard=shard)
    cached = None if cache is None else _cached(cache, index, sample)
    try:
        return make_view(sample, config, spec, draws, shard=shard, cached=cached, partner=partner)
    except DamagedError as error:  # an image that was stored broken: all other damage is found on reading
        raise SampleError(error.reason, sample.key, shard, error.detail) from error


def shard_file(reader: Reader, index: int) -> str:
    """Name of the shard that holds a sample."""
    return reader.manifest.shards[int(reader.manifest.sample_shard[index])].file


def partners_for(reader: Reader, indices: Int[np.ndarray, " n"], spec: BatchSpec) -> PartnerFinder | None:
    """Finds other sweeps among the samples in use; None where the method wants none."""
    if spec.second_cloud is None or spec.second_cloud.source == "same":
        return None
    return PartnerFinder(reader, indices, spec.second_cloud)


def _cached(cache: TeacherCache, index: int, sample: Sample) -> list[np.ndarray]:
    """Teacher features of each camera.

    Raises:
        ShardError: the cache was built with other superpixels.
    """
    offsets, rows = cache.offsets(index), cache.features(index)
    for number, view in enumerate(sample.cameras):
        stored = 0 if view.superpixels is None else int(view.superpixels.max()) + 1
        if stored != offsets[number + 1] - offsets[number]:
            raise ShardError(
                f"sample {sample.key}, camera {view.name}: {stored} superpixels in the shards, "
                f"{offsets[number + 1] - offsets[number]} in {cache.path}; delete that folder and build it again"
            )
    return [rows[offsets[number] : offsets[number + 1]] for number in range(len(sample.cameras))]
