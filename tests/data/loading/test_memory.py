"""Large tensors of a batch are written once: the trainer gets them where the worker wrote them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from data.loading.memory import LARGE_BYTES, handed_over_alone, room
from data.loading.workers import Loaded, WorkerConfig, _Packed, run_workers
from data.sample import Batch
from tests.helpers.toy_batches import toy_batch

LARGE = (6, 3, 256, 256)


def large_batch(number: int) -> Batch:
    """A batch with images of over a megabyte."""
    images = room(LARGE, torch.uint8)
    images.copy_(torch.from_numpy(np.random.default_rng(number).integers(0, 256, LARGE, dtype=np.uint8)))
    return dataclasses.replace(toy_batch([0, 1]), images=images)


def made(number: int) -> Loaded:
    return Loaded(batch=large_batch(number), num_seen=1, notes=(bool(large_batch(number).images.is_shared()),))


def test_large_tensors_are_not_copied_and_small_ones_share_a_buffer() -> None:
    batch = large_batch(0)
    back = _Packed(Loaded(batch=batch, num_seen=1)).unpack().batch
    assert batch.images.nbytes >= LARGE_BYTES
    assert back.images.data_ptr() == batch.images.data_ptr()
    assert back.points.data_ptr() != batch.points.data_ptr()
    assert back.points.untyped_storage().data_ptr() == back.point_voxel.untyped_storage().data_ptr()
    assert torch.equal(back.points, batch.points)


def test_a_part_of_a_larger_tensor_is_copied() -> None:
    """Handing it over as it lies would hand over the whole."""
    whole = torch.zeros((8, *LARGE[1:]), dtype=torch.uint8)
    assert handed_over_alone(whole)
    assert not handed_over_alone(whole[:6])
    assert not handed_over_alone(whole.transpose(2, 3))
    assert not handed_over_alone(whole[:1].clone())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_hand_over_what_they_made(num_workers: int) -> None:
    config = WorkerConfig(num_workers=num_workers, start_method="fork")
    for number, loaded in enumerate(run_workers(made, range(4), config)):
        assert torch.equal(loaded.batch.images, large_batch(number).images)
        assert loaded.notes == (num_workers > 0,)
        loaded.batch.images.fill_(0)  # the trainer may write into it
