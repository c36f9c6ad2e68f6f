"""Detectors on the street world: parameters, milliseconds a training step, memory, detection of a frame.

    python -m benchmarks.detectors --shards runs/street/shards
    python -m benchmarks.detectors second_street --repeat 20

Each config (default: all of `configs/finetune/*_street.yaml`) is measured in a process of its own, on batches that its
own settings make, data wait left out. A step is forward, backward and update; a frame of detection is the network, then
what follows it up to the detections (decoding, non-maximum suppression), at the config's least score and, as the worst
case, at 0, where every frame has as many boxes as the config lets in. On the CPU; medians of
the process's own time (of all threads), which a busy machine disturbs less. Memory is the process's highest resident
one. Without a set one of 48 sweeps is made first.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import REPOSITORY, CallTimer, markdown, seconds_of, setting, street_set
from configs.detection import FINETUNE_CHOICES, FinetuneConfig
from configs.load import load
from data.loading.evaluation import load_batch
from data.sample import Batch
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from engine.monitor import peak_rss_gib
from models.detection.anchor_head import AnchorHead
from models.detection.base import Detector
from models.detection.centre_head import CentreHead
from models.detection.fcos3d_head import Fcos3dHead

HEADER = ("config", "M parameters", "ms a step", "GiB", "network, ms a frame", "decode + NMS", "at score 0")
CONFIGS = REPOSITORY / "configs" / "finetune"


def main() -> None:
    """Read the command line; measure each config in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", help="names in configs/finetune; default: those of the street world")
    parser.add_argument("--shards", help="a prepared street set")
    parser.add_argument("--repeat", type=int, default=8, help="steps and frames, after two that do not count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)  # of one config, in this process
    args = parser.parse_args()
    if args.row:
        print(" | ".join(row(args.configs[0], args)))
        return
    names = args.configs or sorted(path.stem for path in CONFIGS.glob("*_street.yaml"))
    if not names:
        parser.error(f"{CONFIGS} has no config of the street world, expected names or files of configs")
    with tempfile.TemporaryDirectory() as folder:
        shards = street_set(args.shards, Path(folder))
        print(f"{setting(args.seed)}, {torch.get_num_threads()} threads", flush=True)
        rows = []
        for name in names:
            options = [f"--shards={shards}", f"--repeat={args.repeat}", f"--seed={args.seed}"]
            command = [sys.executable, "-m", "benchmarks.detectors", name, "--row", *options]
            done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(done.stdout.strip().splitlines()[-1].split(" | "))
    print(markdown(HEADER, rows))


def row(name: str, args: argparse.Namespace) -> list[str]:
    """The cells of a config."""
    overrides = [f"data.shards={args.shards}", "run_dir=unused", "data.num_workers=0"]
    config = load(FinetuneConfig, name, overrides, choices=FINETUNE_CHOICES)
    torch.manual_seed(args.seed)
    model = config.model.build().train()
    assert isinstance(model, Detector)
    step = _step_ms(model, config, args)
    memory = peak_rss_gib()
    network, head, worst = _frame_ms(model, config, args)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    cells = [f"{size:.2f}", f"{step:.0f}", f"{memory:.2f}", f"{network:.0f}", f"{head:.1f}", f"{worst:.1f}"]
    return [f"{Path(name).stem}, {config.data.micro_batch_size} a step", *cells]


def _batches(config: FinetuneConfig, args: argparse.Namespace, size: int, *, augmented: bool) -> list[Batch]:
    """Different ones, as the run would see them."""
    manifest = load_manifest(config.data.shards)
    reader, samples = SampleReader(manifest), manifest.indices(config.data.split)
    spec = config.model.batch_spec()
    chosen = [np.resize(np.roll(samples, -number * size), size) for number in range(args.repeat + 2)]
    return [load_batch(reader, list(map(int, some)), config.data, spec, augmented=augmented) for some in chosen]


def _median_ms(seconds: list[float]) -> float:
    return 1e3 * float(np.median(seconds[2:]))


def _step_ms(model: Detector, config: FinetuneConfig, args: argparse.Namespace) -> float:
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        model(batch).total.backward()
        optimizer.step()

    batches = _batches(config, args, config.data.micro_batch_size, augmented=True)
    return _median_ms([seconds_of(lambda batch=batch: step(batch)) for batch in batches])  # type: ignore[misc]


def _frame_ms(model: Detector, config: FinetuneConfig, args: argparse.Namespace) -> tuple[float, float, float]:
    """Milliseconds of the network and of what follows it, and of the latter where every box has a score to count."""
    model.eval()
    frames = _batches(config, args, 1, augmented=False)
    network, head = zip(*(_split(model, frame) for frame in frames), strict=True)
    nms: Any = getattr(model, "nms", None)
    assert nms is not None, f"{type(model).__name__} has no suppression of its own to open"
    model.nms = dataclasses.replace(nms, min_score=0.0)
    worst = [_split(model, frame)[1] for frame in frames]
    return _median_ms(list(network)), _median_ms(list(head)), _median_ms(worst)


@torch.no_grad()
def _split(model: Detector, frame: Batch) -> tuple[float, float]:
    """Seconds of the network, and of decoding with suppression."""
    watch = CallTimer()
    with watch.over({"head": [(head, "detect") for head in (AnchorHead, CentreHead, Fcos3dHead)]}):
        total = seconds_of(lambda: model.detect(frame))
    return total - watch.seconds["head"], watch.seconds["head"]


if __name__ == "__main__":
    main()
