"""Mean sizes of the classes of a prepared set, as lines for the config of a VoteNet.

    python -m benchmarks.mean_sizes runs/street/shards --classes car,truck,bus,pedestrian,cyclist
    python -m benchmarks.mean_sizes runs/scannet_scans/shards --axis-aligned --classes cabinet,bed

Length along the heading, width and height are averaged over all labelled boxes of the split, in metres; with
`--axis-aligned` over the boxes along the axes around them. Without `--classes`: all of which the split has boxes.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from data.loading.detection_frames import frame_truth
from data.sample import IGNORE_LABEL
from data.storage.manifest import Manifest, load_manifest
from data.storage.reader import SampleError, SampleReader
from data.views.boxes import all_boxes, class_numbers
from models.detection.targets_votes import bounding_boxes


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line; print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="folder or URL of a prepared set with labelled boxes")
    parser.add_argument("--split", default="train", help="of the set (default: %(default)s)")
    parser.add_argument("--classes", default="", help="names, separated by commas, in the order of the config")
    parser.add_argument("--axis-aligned", action="store_true", help="for num_headings: 1")
    args = parser.parse_args(argv)
    manifest = load_manifest(args.shards)
    sizes = sizes_by_class(manifest, args.split, axis_aligned=args.axis_aligned)
    wanted = [name for name in args.classes.split(",") if name] or [n for n in manifest.class_names if n in sizes]
    class_numbers(manifest, wanted)
    missing = [name for name in wanted if name not in sizes]
    if missing or not wanted:
        parser.error(f"split {args.split!r} of {manifest.root} has no box of {', '.join(missing) or 'any class'}")
    print(f"# {manifest.set_name}, {args.split}: " + ", ".join(f"{len(sizes[name])} {name}" for name in wanted))
    print(f"classes: [{', '.join(wanted)}]")
    print(f"mean_sizes_m: {[[round(edge, 3) for edge in sizes[name].mean(axis=0).tolist()] for name in wanted]}")


def sizes_by_class(manifest: Manifest, split: str, *, axis_aligned: bool) -> dict[str, Float[np.ndarray, "K 3"]]:
    """Length, width and height of all boxes of each class that has any; damaged frames are left out."""
    rows: dict[str, list[np.ndarray]] = defaultdict(list)
    reader = SampleReader(manifest)
    for index in manifest.indices(split).tolist():
        try:
            boxes = frame_truth(reader, index).boxes
        except SampleError:
            continue
        if boxes is None:
            continue
        table = all_boxes(boxes)
        if axis_aligned:
            table = bounding_boxes(torch.from_numpy(table)).numpy()
        for number, row in zip(boxes.classes.tolist(), table, strict=True):
            if number != IGNORE_LABEL:
                rows[manifest.class_names[number]].append(row[3:6])
    return {name: np.stack(found) for name, found in rows.items()}


if __name__ == "__main__":
    main()
