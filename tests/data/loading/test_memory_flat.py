"""A worker's memory does not grow with the samples that it has read."""

import dataclasses
import gc

import psutil
import pytest

from data.batch_spec import BatchSpec, VoxelConfig
from data.loading.loader import DataConfig, build_loader
from tests.helpers.samples import write_toy_set

SAMPLES = 10_000
GROWTH_MIB = 20
"""An object of 2 kB kept of each sample would be as much."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_is_flat_over_10_000_samples(tmp_path):
    root = write_toy_set(tmp_path, num_logs=9, frames_per_log=8, num_points=100)
    config = DataConfig(
        shards=root,
        micro_batch_size=20,
        image_size=(24, 48),
        voxel=VoxelConfig(kind="cartesian", size=(0.5, 0.5, 0.5)),
        num_workers=1,
    )
    config = dataclasses.replace(config, augment=dataclasses.replace(config.augment, min_pairs=5))
    before = set(psutil.Process().children(recursive=True))
    stream = build_loader(config, spec=BatchSpec(superpixels=True), seed=0, rank=0, world_size=1).batches(0)
    sizes = []
    for number in range(SAMPLES // config.micro_batch_size):
        assert next(stream).num_samples == config.micro_batch_size
        if number % 20 == 0:
            workers = [child for child in psutil.Process().children(recursive=True) if child not in before]
            gc.collect()
            sizes.append(max(worker.memory_full_info().uss for worker in workers) / 2**20)
    settled = max(sizes[2 : len(sizes) // 4])
    print(f"worker: {sizes[0]:.0f} MiB at first, {settled:.0f} over the first quarter, {sizes[-1]:.0f} at the end")
    assert max(sizes[-5:]) < settled + GROWTH_MIB
    stream.close()
