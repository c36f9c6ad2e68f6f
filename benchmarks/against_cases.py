"""What `benchmarks.against` times, in one of its two trees: this one file runs with the modules of either.

Not started by hand: `benchmarks.against` starts it with the tree as folder and on PYTHONPATH. It says what it is ready
for, then does one repetition for every line that it reads, and answers with a line of JSON. A tree of before may have
other names: what differs is found by looking (`_load_run`, `_batch`), never by a version.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import resource
import sys
import time
import typing
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Repetition = tuple[Callable[[int], Any], Callable[[Any], float]]
"""What is made ready for a repetition, untimed, by its number; and what is timed, which gives a value to compare."""

OLD_NAMES = {
    "cameras.sample": "image_sample",
    "cameras.K": "image_K",
    "cameras.T_cam_points": "image_T_cam_points",
    "cameras.affine": "image_affine",
    "pairs.point": "pair_point",
    "pairs.image": "pair_image",
    "pairs.uv": "pair_uv",
    "superpixels.num": "num_segments",
    "superpixels.per_image": "segments_per_image",
    "superpixels.of_pair": "pair_segment",
    "superpixels.of_pixel": "segments",
    "superpixels.features": "segment_features",
}
"""Field of a batch -> its name in trees whose batches have no groups."""


def step(spec: Mapping[str, Any]) -> Repetition:
    """A whole training step of a config under DeepSpeed, from a collated batch to the changed weights."""
    from engine.deepspeed_config import quiet_deepspeed
    from engine.distributed import init_distributed
    from engine.optim import build_optimizer
    from engine.zero import ZeroEngine

    config = _load_run()(spec["config"], [*spec["overrides"], f"engine.precision={spec['precision']}"])
    world = init_distributed("cpu")
    torch.manual_seed(0)
    objective = config.method.build().train()
    optimizer = build_optimizer(objective, config.optim, config.optim.lr)
    with quiet_deepspeed():
        engine = ZeroEngine(objective, optimizer, config.engine, world, micro_batch_size=config.data.micro_batch_size)

    def one(batch: Any) -> float:
        total, _, _ = engine.forward(batch.to(world.device))
        engine.backward(total, last=True)
        engine.update(config.optim.lr)
        return float(total.detach())

    return lambda number: _batch(_arrays(spec, number)), one


def network(spec: Mapping[str, Any], *, backward: bool) -> Repetition:
    """A 3D network with all its neighbour maps, forward, or forward and backward."""
    from models.lidar.res16unet import Res16UNetConfig

    torch.manual_seed(0)
    net = Res16UNetConfig(preset=spec["preset"]).build().train()

    def one(ready: tuple[Tensor, Tensor, int]) -> float:
        with _autocast(spec), nullcontext() if backward else torch.no_grad():
            out: Tensor = net(*ready)
        loss = out.float().square().mean()
        if backward:
            net.zero_grad(set_to_none=True)
            loss.backward()
        return float(loss.detach())

    def ready(number: int) -> tuple[Tensor, Tensor, int]:
        coords = _coords(spec, number)
        return coords, torch.rand(len(coords), 1, generator=_seeded(number)), int(coords[:, 0].max()) + 1

    return ready, one


def layer(spec: Mapping[str, Any], *, backward: bool) -> Repetition:
    """One submanifold convolution, its neighbour map given, and what a back-end keeps with the map."""
    from models.lidar.sparse import SubmanifoldConv3d, sparse_tensor

    torch.manual_seed(0)
    channels = spec["channels"]
    conv = SubmanifoldConv3d(channels, channels)

    def ready(number: int) -> Any:
        coords = _coords(spec, number)
        features = torch.rand(len(coords), channels, generator=_seeded(number)).to(_dtype(spec))
        x, _ = sparse_tensor(coords, features.requires_grad_(backward), int(coords[:, 0].max()) + 1)
        one(x)
        return x

    def one(x: Any) -> float:
        with _autocast(spec), nullcontext() if backward else torch.no_grad():
            out: Tensor = conv(x).features
        if backward:
            conv.zero_grad(set_to_none=True)
            x.features.grad = None
            out.backward(torch.ones_like(out))
        return float(out.detach().float().square().mean())

    return ready, one


def maps(spec: Mapping[str, Any]) -> Repetition:
    """All neighbour maps of a Res16UNet: 3x3x3 on five grids, 2x2x2 at stride 2 between them."""
    from models.lidar.sparse import sparse_tensor

    def one(coords: Tensor) -> float:
        x, _ = sparse_tensor(coords, torch.ones(len(coords), 1), int(coords[:, 0].max()) + 1)
        grid, pairs = x.grid, 0
        for level in range(5):
            pairs += grid.submanifold_map(3).num_pairs
            if level < 4:
                grid, kernel_map = grid.coarser(2)
                pairs += kernel_map.num_pairs
        return float(pairs)

    return lambda number: _coords(spec, number), one


def adamw(spec: Mapping[str, Any]) -> Repetition:
    """One update of all weights of a 3D network."""
    from engine.optim import OptimConfig, build_optimizer
    from models.lidar.res16unet import Res16UNetConfig

    torch.manual_seed(0)
    net = Res16UNetConfig(preset=spec["preset"]).build()
    optimizer = build_optimizer(net, OptimConfig(name="adamw", lr=1e-3), 1e-3)
    weights = list(net.parameters())

    def ready(number: int) -> None:
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=_seeded(number))

    def one(_: None) -> float:
        optimizer.step()
        return float(weights[0].detach().square().mean())

    return ready, one


CASES: Mapping[str, Callable[[Mapping[str, Any]], Repetition]] = {
    "step": step,
    "step-uncached": step,
    "network": lambda spec: network(spec, backward=True),
    "network-forward": lambda spec: network(spec, backward=False),
    "layer": lambda spec: layer(spec, backward=True),
    "layer-forward": lambda spec: layer(spec, backward=False),
    "maps": maps,
    "adamw": adamw,
}


def _load_run() -> Callable[..., Any]:
    for name in ("launchers.training.train", "launchers.run.training"):
        try:
            found: Callable[..., Any] = importlib.import_module(name).load_run
        except ModuleNotFoundError:
            continue
        return found
    raise RuntimeError(f"{os.getcwd()}: no load_run where a tree is known to have it; add its place to _load_run")


def _arrays(spec: Mapping[str, Any], number: int) -> dict[str, np.ndarray]:
    with np.load(Path(spec["data"]) / f"{number}.npz") as file:
        return dict(file)


def _coords(spec: Mapping[str, Any], number: int) -> Tensor:
    return torch.from_numpy(_arrays(spec, number)["voxel_coords"])


def _batch(arrays: Mapping[str, np.ndarray]) -> Any:
    """The tree's own Batch, of arrays by the names that `Batch.tensors()` has."""
    from data import sample
    from data.sample import Batch

    values: dict[str, Any] = {
        name: torch.from_numpy(array) if array.ndim else array.item()
        for name, array in arrays.items()
        if name != "keys"
    }
    values["keys"] = tuple(arrays["keys"].tolist())
    known = {field.name for field in dataclasses.fields(Batch)}
    if "pairs" not in known:
        named = {OLD_NAMES.get(name, name): value for name, value in values.items()}
        return Batch(**{name: value for name, value in named.items() if name in known})
    types = typing.get_type_hints(Batch, {**vars(sample), "torch": torch, "Tensor": Tensor})
    fields = {name: value for name, value in values.items() if "." not in name}
    for group in {name.partition(".")[0] for name in values if "." in name}:
        (kind,) = (kind for kind in typing.get_args(types[group]) if kind is not type(None))
        fields[group] = kind(**{one.name: values.get(f"{group}.{one.name}") for one in dataclasses.fields(kind)})
    return Batch(**fields)


def _seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def _dtype(spec: Mapping[str, Any]) -> torch.dtype:
    return torch.bfloat16 if spec["precision"] == "bf16" else torch.float32


def _autocast(spec: Mapping[str, Any]) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=spec["precision"] == "bf16")


def _resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak() -> int:
    """Bytes, since the last `_forget_peak`."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Serve repetitions on the pipe."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])
    ready, one = CASES[spec["case"]](spec)
    print(json.dumps({"ready": os.getcwd()}), file=answers, flush=True)
    for line in sys.stdin:
        prepared = ready(int(line))
        _forget_peak()
        resident = _resident()
        began, began_cpu = time.perf_counter(), time.process_time()
        value = one(prepared)
        wall, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        answer = {"wall": wall, "cpu": cpu, "value": value, "peak": _peak(), "added": _peak() - resident}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
