"""A set of nuScenes' shape, and a training step on it split by stage, for `benchmarks.gpu`."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from jaxtyping import Float32, Int32

from benchmarks.common import REPOSITORY, wait_for_device
from benchmarks.step import timed_neighbor_maps, training
from configs.schema import PretrainConfig
from data.sample import Batch, CameraView, Sample
from data.storage.manifest import SetInfo
from data.storage.shard_writer import join_manifest, write_shard
from engine.distributed import World
from engine.monitor import peak_rss_gib
from engine.zero import ZeroEngine
from launchers.training.train import load_run
from tests.helpers.samples import make_camera, make_sample

STAGES = ("loader", "copy", "teacher", "maps", "forward", "backward", "optimizer")
WARM_UP = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Of the samples that are drawn.

    Attributes:
        samples: of the set, one log.
        cameras: of each, evenly around the vehicle.
        image_size: height and width, pixels.
        segments: superpixels of an image, down and across.
        beams: of the scanner, and points of each.
    """

    samples: int
    cameras: int
    image_size: tuple[int, int]
    segments: tuple[int, int]
    beams: tuple[int, int]


NUSCENES = Shape(samples=16, cameras=6, image_size=(900, 1600), segments=(10, 15), beams=(32, 1085))
SHORT = Shape(samples=4, cameras=2, image_size=(48, 96), segments=(3, 4), beams=(8, 100))


def scan(rng: np.random.Generator, beams: tuple[int, int]) -> Float32[np.ndarray, "N 3"]:
    """Points of a rotating scanner 1.8 m above flat ground among walls 5 to 60 m away, metres."""
    elevation = np.deg2rad(np.linspace(-30, 10, beams[0]))[:, None]
    azimuth = np.linspace(-np.pi, np.pi, beams[1], endpoint=False)[None]
    walls = np.repeat(rng.uniform(5, 60, 24), -(-beams[1] // 24))[None, : beams[1]]
    ground = np.where(elevation < 0, 1.8 / np.maximum(-np.sin(elevation), 1e-3), np.inf)
    reach = np.minimum(walls, ground) + rng.normal(0, 0.02, beams)
    flat = reach * np.cos(elevation)
    points = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), reach * np.sin(elevation)], axis=-1)
    return points.reshape(-1, 3).astype(np.float32)


def _ids(shape: Shape) -> Int32[np.ndarray, "H W"]:
    """Superpixels: a grid of rectangles."""
    rows, columns = (np.arange(n) * parts // n for n, parts in zip(shape.image_size, shape.segments, strict=True))
    return (rows[:, None] * shape.segments[1] + columns[None]).astype(np.int32)


def write_set(folder: Path, shape: Shape, seed: int) -> str:
    """Shards of drawn samples: a scan, and images of smooth blocks."""
    rng, ids = np.random.default_rng(seed), _ids(shape)
    names = tuple(f"camera_{number}" for number in range(shape.cameras))

    def camera(name: str, yaw: float) -> CameraView:
        view = make_camera(rng, name, yaw=yaw, image_size=shape.image_size, superpixels=False, depth=False)
        height, width = shape.image_size
        blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        image = np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width]
        return dataclasses.replace(view, image=image, superpixels=ids)

    def sample(number: int) -> Sample:
        points = scan(rng, shape.beams)
        bare = make_sample(rng, key=f"log_{number:06d}", log="log", frame=number, num_points=len(points), labels=False)
        yaws = 2 * np.pi * np.arange(shape.cameras) / shape.cameras
        cameras = tuple(camera(name, float(yaw)) for name, yaw in zip(names, yaws, strict=True))
        return dataclasses.replace(bare, points_lidar=points, cameras=cameras)

    folder.mkdir(parents=True)
    table = write_shard(folder / "shard-000000.tar", [sample(number) for number in range(shape.samples)])
    join_manifest(str(folder), SetInfo(set_name="drawn", camera_names=names, logs=("log",), splits=("train",)), [table])
    return str(folder)


def config_of(
    shards: str, run_dir: str, *, device: str, short: bool, precision: str, batch: int, backend: str, workers: int
) -> PretrainConfig:
    """The paper's run of SLidR with a teacher of random weights, which take as long; `short`: of tiny networks."""
    settings = [
        f"data.shards={shards}",
        f"data.micro_batch_size={batch}",
        f"data.num_workers={workers}",
        "data.expected_superpixels=null",
        "data.split=train",
        "method.teacher.weights=random",
        f"method.backbone.backend={backend}",
        f"engine.precision={precision}",
        f"engine.device={device}",
    ]
    if short:
        settings += [
            "data.image_size=[48,96]",
            "data.augment.min_pairs=5",
            "data.voxel={kind: cartesian, size: [0.5,0.5,0.5]}",
            "method.backbone.preset=res16unet_tiny",
            "method.teacher.name=resnet10_tiny",
        ]
    config = load_run(str(REPOSITORY / "configs" / "pretrain" / "slidr_nuscenes.yaml"), settings)
    return dataclasses.replace(config, run_dir=run_dir)


@contextmanager
def _timed_teacher(engine: ZeroEngine) -> Iterator[list[float]]:
    """Seconds of each pass of the teacher, while inside."""
    spent: list[float] = []
    teacher: Any = engine.objective.teacher
    plain: Callable[..., Any] = teacher.feature_map

    def call(*args: Any, **kwargs: Any) -> Any:
        wait_for_device()
        began = time.perf_counter()
        maps = plain(*args, **kwargs)
        wait_for_device()
        spent.append(time.perf_counter() - began)
        return maps

    with mock.patch.object(teacher, "feature_map", call):
        yield spent


def _step(engine: ZeroEngine, stream: Iterator[Batch], device: torch.device, lr: float) -> list[float]:
    """Times before and after waiting, copying, forward, backward and update."""
    marks = [_now()]
    batch = next(stream)
    marks.append(_now())
    batch = batch.to(device)
    marks.append(_now())
    total, _, _ = engine.forward(batch)
    marks.append(_now())
    engine.backward(total, last=True)
    marks.append(_now())
    engine.update(lr)
    marks.append(_now())
    return marks


def _now() -> float:
    wait_for_device()
    return time.perf_counter()


def step_row(config: PretrainConfig, world: World, steps: int) -> list[str]:
    """Cells of a run: seconds of the first step, ms of a step as it runs, ms of each stage, GiB.

    The stages are measured on steps of their own, with the device waited for at each stage's end: they add up to more
    than a step as it runs, in which host and device overlap.
    """
    on_gpu = world.device.type == "cuda"
    if on_gpu:
        gc.collect()  # what the last run left in cycles is no memory of this one
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with training(config, world) as (engine, stream):
        marks = _step(engine, stream, world.device, config.optim.lr)
        first = marks[-1] - marks[1]
        for _ in range(WARM_UP):
            _step(engine, stream, world.device, config.optim.lr)
        began = _now()
        for _ in range(steps):
            total, _, _ = engine.forward(next(stream).to(world.device))
            engine.backward(total, last=True)
            engine.update(config.optim.lr)
        whole = (_now() - began) / steps
        rows = []
        with timed_neighbor_maps() as maps, _timed_teacher(engine) as teacher:
            for _ in range(steps):
                maps.clear()
                teacher.clear()
                wait, copy, forward, backward, update = np.diff(_step(engine, stream, world.device, config.optim.lr))
                inside = (sum(teacher), sum(maps))
                rows.append([wait, copy, *inside, forward - sum(inside), backward, update])
    memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else peak_rss_gib()
    stages = [f"{1e3 * seconds:.1f}" for seconds in np.median(rows, axis=0)]
    return [f"{first:.1f}", f"{1e3 * whole:.1f}", *stages, f"{memory:.1f}"]
