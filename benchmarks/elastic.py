"""What it takes to redistribute an optimizer's state: seconds of the slowest process, by layout.

    python -m benchmarks.elastic                    # res16unet34c with AdamW
    python -m benchmarks.elastic --preset res16unet_tiny --moves 1:2-3:3

A move is stage:processes-stage:processes. Rank files with random numbers are written to a temporary folder and flushed;
then the processes of the new layout read one after another, as each does at the start of a continued run.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from benchmarks.common import markdown, seconds_of
from common.run_files import WEIGHTS_FILE
from engine.deepspeed_config import SUB_GROUP_NUMEL
from engine.reshard import recut_shard
from engine.zero import SHARD_KEYS
from engine.zero_layout import Layout, Param
from models.lidar.res16unet import Res16UNetConfig

MOVES = ("0:2-1:3", "1:2-1:1", "1:2-1:3", "3:2-3:3", "1:2-3:4", "1:64-1:48", "3:64-3:48")


def write_checkpoint(folder: Path, layout: Layout) -> int:
    """Rank files and weights as a run of that layout leaves them; gives their bytes."""
    for part in range(layout.parts):
        buffers = layout.buffers(part)
        state = {
            number: {"step": torch.tensor(9.0), "exp_avg": torch.rand(b.numel), "exp_avg_sq": torch.rand(b.numel)}
            for number, b in enumerate(buffers)
        }
        optimizer = {"state": state, "param_groups": [{"lr": 0.1, "params": list(state)}]}
        shard = dict(zip(SHARD_KEYS[layout.stage], (optimizer, [torch.rand(b.numel) for b in buffers]), strict=False))
        torch.save({"shard": shard}, folder / f"rank_{part:04d}.pt")
    save_file({p.name: torch.rand(p.shape) for group in layout.groups for p in group}, folder / WEIGHTS_FILE)
    return sum(path.stat().st_size for path in folder.iterdir())


def measure(before: Layout, now: Layout) -> tuple[float, float, int]:
    """Seconds of the slowest process of the new layout, seconds of all together, bytes on disk."""
    with TemporaryDirectory() as folder:
        size = write_checkpoint(Path(folder), before)
        recut = functools.partial(recut_shard, Path(folder), before, now)
        seconds = [seconds_of(functools.partial(recut, part), time.perf_counter) for part in range(now.parts)]
    return max(seconds), sum(seconds), size


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="res16unet34c", help="size of the 3D network")
    parser.add_argument("--moves", nargs="+", default=MOVES, metavar="STAGE:N-STAGE:N")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = Res16UNetConfig(preset=options.preset, backend="torch").build()
    group = tuple(Param(name=name, shape=tuple(p.shape)) for name, p in network.named_parameters())
    del network
    numel = sum(p.numel for p in group)
    print(f"{options.preset}, {len(group)} parameters, {numel / 1e6:.1f} M elements, AdamW\n")
    rows = []
    for move in options.moves:
        before, now = (
            Layout(groups=(group,), stage=stage, world_size=size, sub_group_numel=SUB_GROUP_NUMEL)
            for stage, size in (map(int, side.split(":")) for side in move.split("-"))
        )
        slowest, together, size = measure(before, now)
        names = [f"stage {side.stage}, {side.world_size} processes" for side in (before, now)]
        rows.append([*names, f"{size / 1e9:.2f}", f"{slowest:.2f}", f"{together:.1f}"])
    print(markdown(("from", "to", "on disk, GB", "slowest process, s", "all, s"), rows))


if __name__ == "__main__":
    main()
