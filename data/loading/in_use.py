"""The samples in use as a whole: whether they suit a method, and by what a run knows them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int

from data.batch_spec import BatchSpec
from data.loading.skips import MAX_UNSUITED_SHARE
from data.order import Order, SampleOrder, Stretch
from data.shard_order import Blocks, ShardOrder
from data.storage.manifest import Manifest
from data.storage.mixture import Opened
from data.storage.reader import SampleError
from data.storage.shard import ShardError
from data.views.boxes import class_numbers

NEWEST_ORDER = 2
"""`DataConfig.order` of new runs."""


def order_of(opened: Opened, version: int | None, *, seed: int, shards_per_group: int) -> Order:
    """The stream of the samples in use; `version`: see `DataConfig.order`."""
    if (version or NEWEST_ORDER) == 1:
        indices = opened.indices
        shards = opened.reader.manifest.sample_shard[indices]
        return SampleOrder(indices, shards, seed, shards_per_group, opened.stretches)
    return ShardOrder(opened.blocks, seed, shards_per_group, opened.stretches)


def fingerprint(opened: Opened, version: int | None) -> str:
    """Changes with the samples in use and with their weights: what a checkpoint says of them.

    Of version 1 of the order it is what runs have always written. That of version 2 is made without a list of all
    samples.
    """
    num = len(opened)
    if (version or NEWEST_ORDER) == 1:
        digest = hashlib.sha256(json.dumps([opened.reader.manifest.fingerprint(), num]).encode())
        digest.update(opened.indices.astype("<i8").tobytes())
    else:
        digest = hashlib.sha256(json.dumps([[part.manifest.fingerprint() for part in opened.sets], num]).encode())
        _add_blocks(digest, opened.blocks)
    if opened.stretches != (Stretch(num=num),):  # one set once an epoch: as before there were mixtures
        digest.update(json.dumps([[stretch.num, stretch.weight] for stretch in opened.stretches]).encode())
    return digest.hexdigest()[:16]


def _add_blocks(digest: hashlib._Hash, blocks: Blocks) -> None:
    columns = (blocks.first, blocks.count, blocks.shard, *(() if blocks.rows is None else (blocks.rows,)))
    for column in columns:
        digest.update(np.ascontiguousarray(column, dtype="<i8").data)


def check_labelled_points(opened: Opened, spec: BatchSpec) -> None:
    """Refuse samples whose points are all unlabelled, from which nothing would be learnt.

    Reads samples until a point has one of the classes that `spec` asks for, mostly the first.

    Raises:
        ShardError: none has; or the storage is away.
    """
    if not spec.point_classes:
        return
    wanted = class_numbers(opened.reader.manifest, spec.point_classes, of="points") >= 0
    for index in opened.indices.tolist():
        try:
            labels = opened.reader.read(index, images=False, superpixels=False).labels
        except SampleError:
            return  # damaged samples are the loader's to count
        if labels is None or wanted[labels].any():  # the loader refuses what nobody has labelled, by name
            return
    raise ShardError(
        f"{opened.reader.manifest.root}: no point of its {len(opened)} samples in use is labelled with any of "
        f"{', '.join(spec.point_classes)}, so there is nothing to learn; set model.classes to classes of its points, "
        "choose a labelled split (data.split), or prepare the set with its labels"
    )


def check_suits(
    manifest: Manifest, num_pairs: Iterable[Int[np.ndarray, " _"]], spec: BatchSpec, max_skip_share: float
) -> None:
    """Refuse a set that has next to nothing of what a method asks for, before anything is read.

    Args:
        manifest: of the set.
        num_pairs: (point, camera) pairs of all samples in use, in pieces.
        spec: what the method asks for.
        max_skip_share: of the samples, that may be of no use.

    Raises:
        ShardError: most samples have no point that a camera sees, and the method needs images; or the set has not the
            classes whose boxes or points the method needs. Says why.
    """
    if spec.boxes:
        class_numbers(manifest, spec.boxes)
    if spec.point_classes:
        class_numbers(manifest, spec.point_classes, of="points")
    if not spec.images:
        return
    if not spec.need_pairs:
        if not manifest.camera_names:
            raise ShardError(
                f"{manifest.root}: this method needs images, and the set has no cameras; take a method that needs "
                "none, or prepare the set with cameras into a new folder"
            )
        return
    counts = [(len(part), int((part == 0).sum())) for part in num_pairs]
    num, without = (sum(column) for column in zip(*counts, strict=True))
    if without < num and without <= max(max_skip_share, MAX_UNSUITED_SHARE) * num:
        return
    what = f"{manifest.root}: this method needs points that a camera sees, and {without} of {num} samples have "
    if not manifest.camera_names:
        raise ShardError(
            f"{what}none: the set has no cameras. Take a method that needs no images (docs/methods.md), or prepare the "
            "set with cameras into a new folder"
        )
    raise ShardError(
        f"{what}none in any of {', '.join(manifest.camera_names)}: the calibration of the source is wrong or read the "
        f"wrong way round, or most samples come without images. `tandem inspect {manifest.root} --out FOLDER` draws "
        "points into images; a method without images needs none (docs/methods.md)"
    )
