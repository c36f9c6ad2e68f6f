"""Tables of a set are there once for all workers."""

import itertools
import os
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import data.shared_memory
from data.batch_spec import BatchSpec, VoxelConfig
from data.loading.loader import DataConfig, build_loader
from data.loading.workers import Loaded, WorkerConfig, run_workers
from data.shared_memory import SharesTables
from tests.helpers.samples import write_toy_set

ROWS = 600_000


@dataclass(frozen=True)
class Tables(SharesTables):
    """Two large tables and a small one."""

    keys: np.ndarray
    numbers: np.ndarray
    small: np.ndarray


@dataclass(frozen=True)
class Marks:
    """A worker's job that writes its number into the table, which only a test does."""

    tables: Tables

    def __call__(self, number: int) -> Loaded:
        """Marks one row; says who did it, and what the others hold."""
        self.tables._tables["numbers"].memory.view(torch.int64)[number] = -number
        ends = (int(self.tables.numbers[1, -1]), int(self.tables.keys[-1]), int(self.tables.small[-1]))
        return Loaded(batch=None, num_seen=1, indices=(os.getpid(), *ends))


def tables() -> Tables:
    keys = np.array([b"%09d" % number for number in range(ROWS)])
    return Tables(keys=keys, numbers=np.arange(2 * ROWS).reshape(2, ROWS), small=np.arange(5))


@pytest.mark.parametrize("method", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_all_processes_see_one_table(method):
    shared = tables()
    config = WorkerConfig(num_workers=2, prefetch=1, start_method=method)
    told = [loaded.indices for loaded in run_workers(Marks(shared), range(1, 9), config)]
    assert len({pid for pid, *_ in told}) == 2
    assert all(tuple(ends) == (2 * ROWS - 1, ROWS - 1, 4) for _, *ends in told)
    assert shared.numbers[0, :9].tolist() == [0, -1, -2, -3, -4, -5, -6, -7, -8]
    assert shared.numbers[0, 9] == 9


def test_plain_pickles_hold_the_values():
    first = tables()
    second = pickle.loads(pickle.dumps(first))
    for name in ("keys", "numbers", "small"):
        np.testing.assert_array_equal(getattr(second, name), getattr(first, name))
    with pytest.raises(ValueError, match="read-only"):
        second.numbers[0, 0] = 1
    second.small[0] = 1


def test_batches_are_the_same_from_shared_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(data.shared_memory, "MIN_BYTES", 1)
    root = write_toy_set(tmp_path, num_logs=3, frames_per_log=3, num_points=300)
    batches = []
    for workers in (0, 2):
        config = DataConfig(
            shards=root,
            image_size=(24, 48),
            voxel=VoxelConfig(kind="cartesian", size=(0.5, 0.5, 0.5)),
            num_workers=workers,
            micro_batch_size=2,
        )
        source = build_loader(config, spec=BatchSpec(superpixels=True), seed=0, rank=0, world_size=1)
        stream = source.batches(0)
        batches.append(list(itertools.islice(stream, 5)))
        stream.close()
        assert ("keys" in source.manifest.__dict__.get("_tables", {})) == (workers > 0)
    for one, two in zip(*batches, strict=True):
        assert one.keys == two.keys
        for name, tensor in one.tensors().items():
            assert torch.equal(tensor, two.tensors()[name]), name
