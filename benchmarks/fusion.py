"""What MVX-Net gains from pre-training its 3D network, its image network, or both, on the street world with few labels.

    python -m benchmarks.fusion --shards runs/street/shards --out runs/fusion

SimIPU trains both networks of `configs/finetune/mvx_net_street.yaml` together, once a seed; then the detector is
trained from random weights, from SimIPU's 3D network alone, from its image network alone, and from both, on the same
labelled frames, drawn by the seed. The last lines are `tandem report`'s table: means, and paired differences to random
weights. Interrupted, the same command goes on where it was. `--updates`, `--pretraining` and `--labels` say how long
and how many.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.common import REPOSITORY, setting
from configs.detection import FinetuneConfig
from configs.runs import read_run
from models.detection.mvx_net import MvxNetConfig

CONFIG = REPOSITORY / "configs" / "finetune" / "mvx_net_street.yaml"
TOWERS: Mapping[str, tuple[str, ...]] = {
    "random": (),
    "3D": ("backbone",),
    "image": ("image_backbone",),
    "both": ("backbone", "image_backbone"),
}
"""Name -> networks that start from the pre-training run."""

_QUIET = ("monitor.progress=false", "monitor.tensorboard=false", "monitor.picture_every=0", "checkpoint.every_min=0")


def main() -> None:
    """Read the command line; train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, help="a prepared street set")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pretraining", type=int, default=120, help="updates of SimIPU")
    parser.add_argument("--updates", type=int, default=65, help="of the detector")
    parser.add_argument("--labels", type=int, default=50, help="labelled frames")
    args = parser.parse_args()
    for seed in args.seeds:
        source = args.out / f"simipu-{seed}"
        run("pretrain", "simipu_street", source, [*pretraining(args.pretraining), f"seed={seed}"], args.shards)
        for name, towers in TOWERS.items():
            start = [f"init={source}", f"init_towers={json.dumps(towers)}"] if towers else ["init=random"]
            few = [f"data.fraction.count={args.labels}", "data.fraction.kind=random", f"data.fraction.seed={seed}"]
            length = [f"schedule.steps={args.updates}", "judge.every_epochs=0", "judge.limit=24"]
            overrides = [*start, *few, *length, f"seed={seed}", "data.micro_batch_size=4"]
            run("finetune", CONFIG.stem, args.out / f"{name}-{seed}", overrides, args.shards)
    print(f"{setting(args.seeds[0])}, seeds {args.seeds}", flush=True)
    subprocess.run([sys.executable, "-m", "launchers.report", str(args.out)], cwd=REPOSITORY, check=True)


def pretraining(updates: int) -> list[str]:
    """SimIPU with the detector's networks, on the detector's grid."""
    detector = read_run(CONFIG, ["run_dir=unused"], kind=FinetuneConfig)
    assert isinstance(detector, FinetuneConfig)
    assert isinstance(detector.model, MvxNetConfig)
    voxel = detector.data.voxel
    points = {"name": "voxelnet", **asdict(detector.model.backbone), "in_channels": voxel.num_features}
    images = {"name": "resnet_fpn", **asdict(detector.model.image_backbone)}
    return [
        f"data.voxel={json.dumps(asdict(voxel))}",
        f"data.image_size={list(detector.data.image_size)}",
        f"method.backbone={json.dumps(points)}",
        f"method.image_backbone={json.dumps(images)}",
        "method.num_centres=256",
        f"schedule.steps={updates}",
        "checkpoint.every_steps=0",
    ]


def run(verb: str, config: str, run_dir: Path, overrides: Sequence[str], shards: str) -> None:
    """One run, in a process of its own; one that is finished ends at once."""
    given = [f"run_dir={run_dir}", f"data.shards={shards}", *overrides, *_QUIET]
    subprocess.run([sys.executable, "-m", f"launchers.{verb}", config, *given], cwd=REPOSITORY, check=True)


if __name__ == "__main__":
    main()
