"""Where the time of a training step goes: data wait, neighbour maps, forward, backward, update; peak memory.

    python -m benchmarks.step                                  # a toy set in a temporary folder
    python -m benchmarks.step --shards runs/street/shards --preset res16unet_tiny --batch 4 --steps 30 --cached

The step is the one of `tandem pretrain`: real loader, SLidR, DeepSpeed engine at ZeRO 0. Neighbour maps are built
within the forward pass; their time is taken out of it. Medians over steps, after 2 steps of warm-up, so that a busy
machine shifts them less than a mean. Peak memory is this process's; workers come on top.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.common import STREET, markdown, wait_for_device
from configs.schema import PretrainConfig
from data.loading.loader import build_loader
from data.sample import Batch
from engine.deepspeed_config import quiet_deepspeed
from engine.distributed import World, init_distributed, shutdown
from engine.monitor import peak_rss_gib
from engine.optim import build_optimizer
from engine.precision import fastest_precision
from engine.sync_bn import convert_sync_batchnorm
from engine.zero import ZeroEngine
from launchers.runs.changes import begun_with
from launchers.training.teacher_cache import open_or_build
from launchers.training.train import load_run
from models.lidar import sparse
from models.methods.base import PoolsTeacher
from tests.helpers.samples import write_toy_set

WARM_UP = 2
STAGES = ("data wait", "neighbour maps", "forward", "backward", "update")
TOY = ("data.image_size=[48,96]", "data.augment.min_pairs=20", "data.voxel.size=[0.5,0.5,0.5]")


@contextmanager
def timed_neighbor_maps() -> Iterator[list[float]]:
    """Seconds of each call that builds a neighbour map, while inside."""
    spent: list[float] = []

    def timed(build: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = build(*args, **kwargs)
            wait_for_device()
            spent.append(time.perf_counter() - begin)
            return result

        return call

    with ExitStack() as stack:
        for name in ("submanifold_map", "strided_map", "bounded_map"):
            stack.enter_context(mock.patch.object(sparse, name, timed(getattr(sparse, name))))
        yield spent


@contextmanager
def training(config: PretrainConfig, world: World) -> Iterator[tuple[ZeroEngine, Iterator[Batch]]]:
    """Engine and batches of a run as `tandem pretrain` has them, for one epoch."""
    config = begun_with(config, None, fastest_precision(world))
    torch.manual_seed(config.seed)
    objective = config.method.build()
    cache = None
    if config.method.caches_teacher and isinstance(objective, PoolsTeacher):
        cache = open_or_build(objective, config.data, world)
    if config.engine.sync_bn and world.world_size > 1:
        convert_sync_batchnorm(objective)
    objective.to(world.device).train()
    optimizer = build_optimizer(objective, config.optim, config.optim.lr)
    ranks = {"rank": world.rank, "world_size": world.world_size}
    finish = objective.map_maker() if config.data.maps_in_workers else None
    source = build_loader(
        config.data, spec=config.method.batch_spec(), seed=0, teacher_cache=cache, finish=finish, **ranks
    )
    with quiet_deepspeed():
        engine = ZeroEngine(objective, optimizer, config.engine, world, micro_batch_size=config.data.micro_batch_size)
        stream = source.batches(0)
        yield engine, stream
        stream.close()  # type: ignore[attr-defined]
        engine.close()


def measure(config: PretrainConfig, steps: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each stage in each step; means of what was in the batches."""
    world = init_distributed(config.engine.device)
    seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
    contents: dict[str, list[int]] = {"points": [], "voxels": [], "superpixels": []}
    with training(config, world) as (engine, stream), timed_neighbor_maps() as maps:
        for step in range(WARM_UP + steps):
            maps.clear()
            began = time.perf_counter()
            batch = next(stream).to(world.device)
            ready = _now()
            total, _, _ = engine.forward(batch)
            forwarded = _now()
            engine.backward(total, last=True)
            backwarded = _now()
            engine.update(config.optim.lr)
            times = (began, ready, forwarded, backwarded, _now())
            if step < WARM_UP:
                continue
            wait, forward, backward, update = np.diff(times).tolist()
            for stage, spent in zip(STAGES, (wait, sum(maps), forward - sum(maps), backward, update), strict=True):
                seconds[stage].append(spent)
            contents["points"].append(batch.num_points)
            contents["voxels"].append(len(batch.voxel_coords))
            contents["superpixels"].append(0 if batch.superpixels is None else batch.superpixels.num)
    return seconds, {name: float(np.mean(values)) for name, values in contents.items()}


def _now() -> float:
    wait_for_device()
    return time.perf_counter()


def show(spent: dict[str, list[float]], contents: dict[str, float], title: str) -> None:
    """The table."""
    medians = {stage: float(np.median(values)) for stage, values in spent.items()}
    whole = sum(medians.values())
    rows = [[stage, f"{1e3 * seconds:.1f}", f"{seconds / whole:.1%}"] for stage, seconds in medians.items()]
    inside = ", ".join(f"{mean:,.0f} {name}" for name, mean in contents.items())
    print(f"{title}\n\n{markdown(('stage', 'ms', 'share'), [*rows, ['step', f'{1e3 * whole:.1f}', '100.0%']])}\n")
    print(f"a batch: {inside}; peak RSS {peak_rss_gib():.2f} GiB without workers")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", help="a prepared set; a toy set is made without")
    parser.add_argument("--preset", default="res16unet_tiny", help="of the 3D network (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="sweeps a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="measured steps (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="loader processes (default: %(default)s)")
    parser.add_argument("--cached", action="store_true", help="teacher cache instead of images in each step")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="of slidr_street.yaml")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        shards = options.shards or write_toy_set(Path(folder) / "set", num_logs=4, frames_per_log=4, num_points=4000)
        settings = [
            f"data.shards={shards}",
            f"data.micro_batch_size={options.batch}",
            f"data.num_workers={options.workers}",
            f"method.backbone.preset={options.preset}",
            f"method.teacher.cache={str(options.cached).lower()}",
            *(() if options.shards else TOY),
            *options.overrides,
        ]
        config = load_run(str(STREET), settings)
        try:
            seconds, contents = measure(replace(config, run_dir=folder), options.steps)
        finally:
            shutdown()
    teacher = "cached teacher" if options.cached else "teacher in each step"
    title = f"{options.preset}, batch {options.batch}, {teacher}, {options.threads} thread(s)"
    show(seconds, contents, title)


if __name__ == "__main__":
    main()
