"""How well a detector's anchors fit the boxes of a set, by class: before hours are spent on anchors that fit none.

    python -m benchmarks.anchors second_street --shards runs/street/shards
    python -m benchmarks.anchors my_detector.yaml --shards /data/my_set --frames 100 model.head.anchor_set=kitti

Boxes are those that the config's own settings give the detector, without augmentation. "matched": share of the boxes
that some anchor of their class overlaps by its `matched_iou` or more; each of the others has the one anchor that
overlaps it most, or, where none touches it, nothing at all ("untouched").
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.common import markdown, setting, street_set
from common.boxes.overlap import axis_aligned_bev_iou
from configs.detection import FINETUNE_CHOICES, FinetuneConfig
from configs.load import load
from data.loading.evaluation import load_batch
from data.sample import BatchBoxes
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from engine.downstream.common import thin
from models.detection.anchor_head import AnchorHead

HEADER = ("class", "boxes", "matched", "untouched", "anchors a box", "median best IoU")


def main() -> None:
    """Read the command line; print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, or its name in configs/finetune, of a detector with anchors")
    parser.add_argument("overrides", nargs="*", help="section.field=value")
    parser.add_argument("--shards", help="a prepared set; default: a small one of the street world, made now")
    parser.add_argument("--frames", type=int, default=12, help="of the config's split, evenly spread")
    args = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"data.shards={street_set(args.shards, Path(folder))}", "run_dir=unused", *args.overrides]
        config = load(FinetuneConfig, args.config, overrides, choices=FINETUNE_CHOICES)
        head = getattr(config.model.build(), "dense_head", None)
        if not isinstance(head, AnchorHead):
            parser.error(f"config: {args.config} has no anchors, expected second or pointpillars as model.name")
        manifest = load_manifest(config.data.shards)
        samples = thin(manifest.indices(config.data.split), args.frames)
        reader, spec = SampleReader(manifest), config.model.batch_spec()
        batches = [load_batch(reader, [int(one)], config.data, spec, augmented=False) for one in samples]
        boxes = [batch.need("boxes", by="benchmarks.anchors") for batch in batches]
    print(f"{setting(config.seed)}, {args.config}, {len(samples)} frames")
    print(markdown(HEADER, fit(head, config.model.classes, boxes)))


def fit(head: AnchorHead, classes: Sequence[str], frames: Sequence[BatchBoxes]) -> list[list[str]]:
    """Cells of each class that has boxes in some frames."""
    anchors = head.anchors(torch.device("cpu")).view(-1, len(classes), len(head.config.rotations), 7)
    rows = []
    for number, (name, kind) in enumerate(zip(classes, head.kinds, strict=True)):
        boxes = torch.cat([frame.boxes[frame.classes == number] for frame in frames])
        if len(boxes):
            overlaps = axis_aligned_bev_iou(anchors[:, number].reshape(-1, 7), boxes)
            rows.append([name, str(len(boxes)), *_cells(overlaps, kind.matched_iou)])
    return rows


def _cells(overlaps: Float[Tensor, "A K"], matched_iou: float) -> list[str]:
    matching = (overlaps >= matched_iou).sum(dim=0).numpy()
    best = overlaps.amax(dim=0).numpy()
    shares = [f"{np.mean(matching > 0):.2f}", f"{np.mean(best == 0):.2f}"]
    return [*shares, f"{matching.mean():.1f}", f"{np.median(best):.2f}"]


if __name__ == "__main__":
    main()
