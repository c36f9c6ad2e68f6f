"""Shards -> batches: read, pair, augment, voxelise, collate.

The n-th batch of a rank is a pure function of (config, seed, n, rank, world size). Workers hold no state: each gets
a batch number and makes that batch, so the batches do not depend on the number of workers, and a run resumes at any
number. A damaged sample is replaced (`Order.replacement`), so every batch has its full size, and counted
(`data.loading.skips`).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from common.ranges import at_least, expect, share
from common.retry import RETRY_MIN
from data.batch_spec import BatchSpec
from data.loading.collate import collate
from data.loading.fractions import FractionConfig
from data.loading.in_use import NEWEST_ORDER, check_labelled_points, check_suits, fingerprint, order_of
from data.loading.labelled import class_balanced, with_fraction
from data.loading.objects import open_objects
from data.loading.skips import Skip, SkipLedger
from data.loading.workers import Loaded, WorkerConfig, run_workers
from data.order import Order, SampleDraws, batch_positions
from data.sample import Batch
from data.storage.mixture import Opened, SetConfig, open_sets
from data.storage.object_database import ObjectDatabase
from data.storage.prefetch import check_cache, shards_of
from data.storage.reader import Reader, SampleError, SampleReader
from data.storage.remote.shard_cache import CacheConfig
from data.storage.shard import ShardError
from data.storage.teacher_cache import TeacherCache
from data.views.object_sampling import ObjectSampler
from data.views.reading import partners_for, read_view
from data.views.second_sweep import PartnerFinder
from data.views.view import View, ViewConfig

logger = logging.getLogger(__name__)

_MAX_REPLACEMENTS = 50
"""Damaged samples in a row at one position before the loader gives up; never reached at a share of 1 %."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(SetConfig, ViewConfig, WorkerConfig):
    """Where training batches come from (`SetConfig`), what is done to them (`ViewConfig`) and who does it.

    Attributes:
        more: further sets, mixed with the first one by their weights. What looks at one set only (evaluation without a
            set of its own, pictures) takes the first.
        micro_batch_size: samples a rank takes in one forward pass.
        shards_per_group: shards that are shuffled with each other.
        order: version of the order of samples. 1: made for an epoch as a whole (`data.order.SampleOrder`); 2: for a
            group of shards at a time, so that it costs the same in a set of any size (`data.shard_order.ShardOrder`).
            null: the run's own when it goes on, else 2.
        max_skip_share: share of damaged samples that a run tolerates, see `SkipLedger`.
        retry_min: minutes for which the storage of the shards may be away before the run ends.
        cache: where shards of sets behind a URL are kept.
        fraction: which samples keep their labels, for what learns from labels; the others are not read.
        class_balanced: repeat samples so that the detector's classes are equally frequent, see
            `data.loading.labelled.class_balanced`.
        objects_folder: where the objects that `sampling` puts in are kept; None: in the set's folder.
        maps_in_workers: the network's neighbour maps are made by the loader's workers, not by the training itself.
    """

    more: tuple[SetConfig, ...] = ()
    micro_batch_size: int = 4
    shards_per_group: int = 8
    order: int | None = None
    max_skip_share: float = 0.01
    retry_min: float = RETRY_MIN
    cache: CacheConfig = field(default_factory=CacheConfig)
    fraction: FractionConfig = field(default_factory=FractionConfig)
    class_balanced: bool = False
    objects_folder: str | None = None
    maps_in_workers: bool = False

    def __post_init__(self) -> None:
        SetConfig.__post_init__(self)
        ViewConfig.__post_init__(self)
        WorkerConfig.__post_init__(self)
        at_least(self, micro_batch_size=1, shards_per_group=1)
        expect(self, "order", self.order in (None, 1, 2), "1, 2 or null")
        share(self, "max_skip_share")
        at_least(self, "minutes; 0: never", retry_min=0)

    @property
    def sets(self) -> tuple[SetConfig, ...]:
        """The first set and those of `more`."""
        return (self, *self.more)


# ---- training stream
@dataclass(frozen=True, kw_only=True)
class _TrainingBatches:
    """Makes the n-th batch of one rank (runs in the workers).

    Attributes:
        ahead: samples of the stream whose shards are announced to the reader; 0 where none lie behind a URL.
        chosen: fingerprint of the samples that the order is made of.
        num_samples: how many these are.
        sampler: puts objects of other sweeps in.
        finish: what is done to each batch last.
    """

    reader: Reader
    order: Order
    chosen: str
    num_samples: int
    ahead: int
    config: DataConfig
    spec: BatchSpec
    rank: int
    world_size: int
    cache: TeacherCache | None
    partners: PartnerFinder | None
    sampler: ObjectSampler | None
    finish: Callable[[Batch], Batch] | None

    def __call__(self, number: int) -> Loaded:
        positions = batch_positions(
            number, rank=self.rank, world_size=self.world_size, micro_batch_size=self.config.micro_batch_size
        )
        if self.ahead:
            self.reader.expect(shards_of(self.reader.manifest, self.order.window(positions.start, self.ahead)))
        views: list[View] = []
        skips: list[Skip] = []
        for position in positions:
            view = self._view_at(position, skips)
            if view is None:
                return Loaded(batch=None, num_seen=len(positions) + len(skips), skips=tuple(skips))
            views.append(view)
        batch = collate(views)
        if self.finish is not None:
            batch = self.finish(batch)
        return Loaded(batch=batch, num_seen=len(positions) + len(skips), skips=tuple(skips))

    def _view_at(self, position: int, skips: list[Skip]) -> View | None:
        epoch, index = self.order.at(position)
        # The sample's own pass may be another one than the stream's.
        until = self.config.sampling.epochs
        sampler = self.sampler if until is None or position < until * len(self.order) else None
        # A replacement is drawn from all samples, so each try is damaged with the set's share of damaged samples.
        for attempt in range(1, _MAX_REPLACEMENTS + 1):
            try:
                return self._view(index, SampleDraws(self.order.seed, epoch, index, attempt - 1), sampler)
            except SampleError as error:
                skips.append(Skip.of(index, error))
                index = self.order.replacement(position, attempt)
        return None

    def _view(self, index: int, draws: SampleDraws, sampler: ObjectSampler | None) -> View:
        if self.cache is not None and index not in self.cache:
            key, shard = self.reader.manifest.key(index), self.reader.shard_of(index)
            raise SampleError("not-cached", key, shard, f"no features in {self.cache.path}")
        return read_view(self.reader, index, self.config, self.spec, draws, self.partners, self.cache, sampler=sampler)


class ShardLoader:
    """An endless stream of one rank's batches; satisfies `engine.interfaces.BatchSource`.

    Attributes:
        manifest: of the set, or of all sets of a mixture.
    """

    def __init__(self, make: _TrainingBatches) -> None:
        self.manifest = make.reader.manifest
        self._make, self._config = make, make.config
        # Counted here and not in the workers, which each see only their own batches.
        self._ledger = SkipLedger(
            max_share=make.config.max_skip_share, num_samples=make.num_samples, root=make.config.shards
        )

    @property
    def samples_per_epoch(self) -> int:
        """Samples of all ranks in one epoch."""
        return len(self._make.order)

    @property
    def counters(self) -> dict[str, int]:
        """Different samples that this process skipped, by reason."""
        return dict(self._ledger.counters)

    def batches(self, start: int) -> Iterator[Batch]:
        """Batches number `start`, `start` + 1, ... of this rank, for ever.

        Raises:
            ShardError: too many damaged samples, or a worker died.
        """
        for loaded in run_workers(self._make, itertools.count(start), self._config):
            self._ledger.account(loaded.num_seen, loaded.skips)
            if loaded.batch is None:  # _MAX_REPLACEMENTS damaged samples in a row
                raise self._ledger.error()
            yield loaded.batch

    @property
    def samples_per_micro_batch(self) -> int:
        """Samples that all ranks together take with one batch each."""
        return self._config.micro_batch_size * self._make.world_size

    def state(self, position: int) -> dict[str, int | str]:
        """What continues the stream at batch number `position`: a few integers and a fingerprint.

        The place is kept in samples of all ranks together, which does not depend on how batches share them.
        """
        order = self._make.order
        return {
            "samples_taken": position * self.samples_per_micro_batch,
            "seed": order.seed,
            "order": self._config.order or NEWEST_ORDER,
            "samples_per_epoch": self.samples_per_epoch,
            "shards_per_group": order.shards_per_group,
            "samples": self._make.chosen,
        }

    def check_state(self, state: Mapping[str, int | str]) -> None:
        """Refuse a state of another stream.

        Another number of ranks or another `micro_batch_size` is accepted where the stream was left at a boundary of
        the global batches that they make: every sample then comes in the order of the run before.

        Raises:
            ValueError: naming the field that differs, both values and what to do.
        """
        remedies = {
            "seed": "use the run's seed",
            "order": "set data.order to the run's",
            "samples_per_epoch": "use the same sets, splits, limits, fraction and weights",
            "shards_per_group": "set it back",
            "samples": "use the same sets, splits, limits, fraction and weights",
        }
        expected, state = self.state(0), {"order": 1, **state}  # the first runs knew no other order
        for name, remedy in remedies.items():
            if state.get(name) != expected[name]:
                raise ValueError(
                    f"loader state: {name} is {state.get(name)!r} in the checkpoint and {expected[name]!r} here, so "
                    f"the stream of samples cannot be continued; {remedy}, or start a new run"
                )
        # In samples, not batches: the new batches must begin where the old ones ended.
        taken = _samples_taken(state)
        if taken % self.samples_per_micro_batch:
            raise ValueError(
                f"loader state: {taken} samples were taken, which is no multiple of micro_batch_size "
                f"{self._config.micro_batch_size} x {self._make.world_size} ranks; choose them so that "
                "micro_batch_size x ranks x accumulation_steps stays what it was"
            )


def _ahead(order: Order, micro_batch_size: int) -> int:
    """Samples of an average group of shards, so that the group after the present one is announced in time."""
    group = len(order) * order.shards_per_group // order.num_shards
    return min(max(group, micro_batch_size), len(order))


def _samples_taken(state: Mapping[str, int | str]) -> int:
    """The place in the stream, also of states that count batches of all ranks (the first checkpoints)."""
    names = ("samples_taken",) if "samples_taken" in state else ("position", "global_micro_batch")
    product = 1
    for name in names:
        value = state.get(name)
        if not isinstance(value, int) or value < 0:
            raise ValueError(f"loader state: {name} is {value!r}, expected an integer that is not negative")
        product *= value
    return product


def open_samples(config: DataConfig, *, warn: bool = False) -> Opened:
    """The samples in use. With `warn`, see `open_sets`.

    Raises:
        ShardError: no prepared set, no such split or no samples, or superpixels other than expected.
        ValueError: a fraction that keeps nothing.
    """
    opened = open_sets(config.sets, config.cache, retry_min=config.retry_min, warn=warn)
    return with_fraction(opened, config.fraction)


def samples_fingerprint(config: DataConfig) -> str:
    """What `ShardLoader.state` says of the samples of these sets, without a loader; errors as of `open_samples`."""
    return fingerprint(open_samples(config), config.order)


def build_loader(
    config: DataConfig,
    *,
    spec: BatchSpec,
    seed: int,
    rank: int,
    world_size: int,
    teacher_cache: TeacherCache | None = None,
    finish: Callable[[Batch], Batch] | None = None,
) -> ShardLoader:
    """The training stream of one rank, whose batches hold what `spec` asks for.

    With a teacher cache, images are not decoded: batches carry `superpixels.features` instead of `images` and
    `superpixels.of_pixel`. `finish` changes each batch last; it is picklable, as workers
    call it.

    Raises:
        ShardError: no prepared set, no such split, no samples, none that suits the method or has labels for it, or a
            cache of another set.
        ValueError: settings that exclude each other.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}, expected 0 to {world_size - 1}")
    warn = rank == 0 and spec.superpixels
    opened = open_samples(config, warn=warn)
    check_cache(config.cache, opened, config.shards_per_group, warn=rank == 0)
    if teacher_cache is not None:
        if config.more:
            raise ValueError(
                "a teacher cache holds the features of one set, and data.more names others; set "
                "method.teacher.cache=false, or train on one set"
            )
        if config.augment.image.enabled:
            raise ValueError(
                "augment.image.enabled is true with a teacher cache, whose features are those of unchanged images; "
                "set augment.image.enabled=false, or do without the cache"
            )
        if not spec.superpixels or spec.second_images:
            raise ValueError(
                "a teacher cache holds the features of superpixels of unchanged images; it is of no use to a method "
                "without superpixels, or with a second view of the images. Set method.teacher.cache=false"
            )
        if teacher_cache.manifest_fingerprint != opened.reader.manifest.fingerprint():
            raise ShardError(f"{teacher_cache.path} was built from other shards than {config.shards}; build it again")
    if config.more and spec.boxes:
        raise ValueError("data.more names other sets, but boxes are read of one set: classes differ; set data.more=[]")
    moved = (config.augment.points, config.augment.second_points or config.augment.points)
    if spec.boxes and any(points.enabled and (points.tilt_rad or points.elastic_m) for points in moved):
        raise ValueError(
            "tilt_rad and elastic_m of data.augment.points would move points out of their boxes, which stay upright; "
            "set tilt_rad=0 and elastic_m=[] to train on boxes"
        )
    check_suits(opened.reader.manifest, opened.values("num_pairs"), spec, config.max_skip_share)
    check_labelled_points(opened, spec)
    chosen = fingerprint(opened, config.order)
    database = _objects(config, opened, spec)
    if database is not None and config.class_balanced:
        opened = class_balanced(opened, database)
    if rank == 0 and len(opened) < config.micro_batch_size * world_size:
        logger.warning(
            "%s: %d samples are fewer than one global micro-batch (%d x %d); a batch will hold a sample twice",
            config.shards,
            len(opened),
            config.micro_batch_size,
            world_size,
        )
    reader = opened.reader
    order = order_of(opened, config.order, seed=seed, shards_per_group=config.shards_per_group)
    sampler = ObjectSampler(database, spec.boxes, config.sampling) if database and config.sampling.counts else None
    if rank == 0 and sampler is not None:
        sampler.tell_lacking()
    make = _TrainingBatches(
        reader=reader,
        order=order,
        chosen=chosen,
        num_samples=len(opened),
        ahead=_ahead(order, config.micro_batch_size) if reader.remote_shards else 0,
        config=config,
        spec=spec,
        rank=rank,
        world_size=world_size,
        cache=teacher_cache,
        partners=partners_for(reader, opened.indices, spec) if spec.second_cloud else None,
        sampler=sampler,
        finish=finish,
    )
    return ShardLoader(make)


def _objects(config: DataConfig, opened: Opened, spec: BatchSpec) -> ObjectDatabase | None:
    """The objects of the samples in use, where sampling or balancing asks for them.

    Raises:
        ValueError: settings that exclude each other.
    """
    asked = "data.sampling.counts" if config.sampling.counts else "data.class_balanced" if config.class_balanced else ""
    if not asked:
        return None
    if not spec.boxes:
        raise ValueError(f"{asked} is about labelled boxes, and this method does not ask for any; leave it out")
    if config.sampling.counts and spec.images:
        raise ValueError(
            "data.sampling.counts puts objects into the cloud that no image shows, and this method pairs points with "
            "pixels; set data.sampling.counts={}"
        )
    assert isinstance(opened.reader, SampleReader)
    return open_objects(
        opened.reader,
        opened.indices,
        spec,
        folder=config.objects_folder,
        cut_to_cameras=config.cut_to_cameras,
        num_workers=config.num_workers,
        max_skip_share=config.max_skip_share,
    )
