"""Weak scaling on one machine: 1 -> 2 processes with the same samples each; time in communication and in waiting.

    python -m benchmarks.scaling                                    # a small street set, made in a temporary folder
    python -m benchmarks.scaling --shards runs/street/shards --steps 40 --stage 1

Each process has one thread and makes its batches itself, so that on two cores two processes do not share one. The step
is that of `tandem pretrain`: real loader, SLidR with cached teacher and synchronised BatchNorm, DeepSpeed.

Every other update runs untouched and gives the step time. In the others all ranks meet before each collective: the
time until all are there is *waiting* (ranks have different numbers of voxels, and the machine has other things to do),
the rest of the collective is *moving* data. The meetings cost time themselves, so both are upper bounds. What computing
takes on top of one process's is *contention*: memory bandwidth and caches that two processes share.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.common import STREET, markdown, outputs, ranks, setting, street_set

WARM_UP = 3
PARTS = ("data", "compute", "waiting", "moving")


def child(options: argparse.Namespace) -> None:
    """One rank: train and print what each update took."""
    from tests.helpers.collectives import record

    kept = record()  # before DeepSpeed is imported

    import torch

    from benchmarks.step import training
    from engine.distributed import init_distributed, shutdown
    from launchers.training.train import load_run

    torch.set_num_threads(1)
    overrides = [f"data.shards={options.shards}", f"engine.zero_stage={options.stage}", "data.num_workers=0"]
    config = load_run(str(STREET), [*overrides, f"data.micro_batch_size={options.batch}", *options.overrides])
    world = init_distributed(config.engine.device)
    found: list[dict[str, Any]] = []
    with training(config, world) as (engine, stream):
        for number in range(2 * (WARM_UP + options.steps)):
            kept.clear()
            kept.on, kept.split = world.world_size > 1, number % 2 == 1
            began = time.perf_counter()
            batch = next(stream)
            have_data = time.perf_counter()
            total, _, _ = engine.forward(batch)
            engine.backward(total, last=True)
            engine.update(config.optim.lr)
            ended = time.perf_counter()
            spent = {"step": ended - began, "data": have_data - began}
            spent |= {"waiting": kept.waiting_s, "moving": kept.moving_s}
            counts = {"calls": sum(kept.calls.values()), "small": kept.small, "received": sum(kept.received.values())}
            found.append(spent | counts | {"voxels": len(batch.voxel_coords)})
    shutdown()
    print(json.dumps(found))


def summary(texts: list[str]) -> dict[str, float]:
    """Medians over updates and means over ranks, seconds."""
    ranks_found = [json.loads(text.splitlines()[-1])[2 * WARM_UP :] for text in texts]
    plain, split = [one[::2] for one in ranks_found], [one[1::2] for one in ranks_found]
    values = {name: fmean(_medians(one, name) for one in plain) for name in ("step", "data", "calls", "small")}
    values["received"] = fmean(_medians(one, "received") for one in plain)
    values["instrumented"] = fmean(_medians(one, "step") for one in split)
    for name in ("waiting", "moving"):
        values[name] = fmean(_medians(one, name) for one in split)
    values["compute"] = values["instrumented"] - values["data"] - values["waiting"] - values["moving"]
    voxels = [[line["voxels"] for line in update] for update in zip(*plain, strict=True)]
    values["voxel_spread"] = fmean(max(ranks) / fmean(ranks) - 1 for ranks in voxels)
    return values


def _medians(lines: list[dict[str, Any]], name: str) -> float:
    return float(median(line[name] for line in lines))


def main() -> None:
    """Measure both sizes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", help="a prepared set; a small street set is made without")
    parser.add_argument("--steps", type=int, default=25, help="measured updates (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="sweeps a process (default: %(default)s)")
    parser.add_argument("--stage", type=int, default=0, help="of ZeRO (default: %(default)s)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="of slidr_street.yaml")
    options = parser.parse_intermixed_args()
    if options.child:
        child(options)
        return
    where = setting(0)
    with tempfile.TemporaryDirectory() as folder:
        shards = street_set(options.shards, Path(folder))
        argv = ["--child", f"--shards={shards}", f"--steps={options.steps}", f"--batch={options.batch}"]
        argv += [f"--stage={options.stage}", *options.overrides]
        outputs(ranks("benchmarks.scaling", [*argv, "--steps=1"], 1))  # fills the teacher cache
        found = {n: summary(outputs(ranks("benchmarks.scaling", argv, n))) for n in (1, 2)}
    show(found, options, where)


def show(found: dict[int, dict[str, float]], options: argparse.Namespace, where: str) -> None:
    """Table and reading of it."""
    print(f"weak scaling, {where}; ZeRO {options.stage}, {options.batch} sweeps a process, one thread each\n")
    header = ("processes", "step, ms", "instrumented", *PARTS, "collectives", "of them small", "received", "efficiency")
    rows = []
    for n, values in found.items():
        cells = [f"{1e3 * values[name]:.1f}" for name in ("step", "instrumented", *PARTS)]
        cells += [f"{values['calls']:.0f}", f"{values['small']:.0f}", f"{values['received'] / 2**20:.1f} MiB"]
        rows.append([str(n), *cells, f"{found[1]['step'] / values['step']:.0%}"])
    print(markdown(header, rows))
    one, two = found[1], found[2]
    extra = two["step"] - one["step"]
    slower = two["compute"] - one["compute"]
    print(
        f"\nA step on 2 processes takes {1e3 * extra:.0f} ms more: computing {1e3 * slower:+.0f} ms (contention), "
        f"waiting at most {1e3 * two['waiting']:.0f} ms (the larger of the two batches has "
        f"{two['voxel_spread']:.0%} more voxels than the mean), moving data at most {1e3 * two['moving']:.0f} ms."
    )


if __name__ == "__main__":
    main()
