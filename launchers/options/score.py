"""`tandem score`: judge anybody's detections as a benchmark does, from files; no network is needed.

    tandem score BENCHMARK PREDICTIONS GROUND_TRUTH [--frames LIST] [--out FILE.json]

PREDICTIONS and GROUND_TRUTH are what the benchmark's own tool reads:

    kitti       folder of result files (or with a folder data in it)        training/label_2
    nuscenes    JSON of results                                             folder of tables (v1.0-trainval)
    waymo       binary Objects, or .parquet                                 the same, or folder lidar_box
    once        JSON list of frames                                         folder data, or one <sequence>.json
    argoverse2  feather file                                                folder of logs with annotations.feather
    panoptic_semantickitti  folder with sequences/NN/predictions            folder with sequences/NN/labels
    panoptic_nuscenes       folder of TOKEN_panoptic.npz                    the same (panoptic/v1.0-trainval)

GROUND_TRUTH of detections may also be a set that `tandem prepare` made of the benchmark's own, with --split.

Each frame of GROUND_TRUTH, or of --frames, must have predictions, if only an empty list; files of Waymo and Argoverse 2
do not list frames in which nothing is. What each benchmark counts, and which of its odd rules are kept:
docs/detection_metrics.md.

Examples:
    tandem score kitti results/data /data/kitti/training/label_2 --frames ImageSets/val.txt
    tandem score nuscenes results.json /data/nuscenes/v1.0-trainval --split val
    tandem score kitti results/data runs/kitti_object/shards --split val
    tandem score once results.json /data/once/data --frames val_frames.txt --out scores.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from launchers.cli import verb_parser
from launchers.options.common import completed, offer_paths, positive_number, whole_number

OF_POINTS = ("panoptic_semantickitti", "panoptic_nuscenes")
BENCHMARKS = ("kitti", "nuscenes", "waymo", "once", "argoverse2", *OF_POINTS)
SUFFIXES = (".json", ".bin", ".parquet", ".feather")
"""Of files that Tab offers."""
HEIGHT_RULES = ("development-kit", "ports")
STUFF = ("classes", "words")
MANIFEST = "manifest.json"
"""What tells a prepared set (`data.storage.store.MANIFEST_NAME`, which is slow to import)."""
_OF_ONE = {
    "split": "nuscenes",
    "height_rule": "kitti",
    "max_distance": "once",
    "stuff": "panoptic_semantickitti",
}
"""Option -> the one benchmark that has it."""


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem score", __doc__)
    p.add_argument("benchmark", metavar="BENCHMARK", choices=BENCHMARKS, help=", ".join(BENCHMARKS))
    for name, text in (("predictions", "what a detector found"), ("ground_truth", "the set's labels")):
        completed(p.add_argument(name, metavar=name.upper(), help=text), lambda prefix: offer_paths(prefix, SUFFIXES))
    p.add_argument("--frames", metavar="LIST", help="text file with the frames that count, one name a line")
    p.add_argument(
        "--split", metavar="NAME", help="nuscenes, and prepared sets: what counts, such as val (default: all)"
    )
    p.add_argument("--out", metavar="FILE", help="write all figures, curves and the errors of each frame as JSON")
    p.add_argument("--worst", type=whole_number, default=5, metavar="N", help="frames to name (default: %(default)s)")
    p.add_argument(
        "--height-rule",
        choices=HEIGHT_RULES,
        default=HEIGHT_RULES[0],
        help="kitti: do true objects of exactly the least height count, as in the development kit, or not, as in its "
        "Python ports (default: %(default)s)",
    )
    p.add_argument(
        "--max-distance",
        type=positive_number,
        metavar="M",
        help="once: boxes farther apart do not overlap; 5 is what the released code does on a CPU",
    )
    p.add_argument(
        "--stuff",
        choices=STUFF,
        default=STUFF[0],
        help="panoptic_semantickitti: one segment a class, or a word, so that road and its markings are two, as in the "
        "official script (default: %(default)s)",
    )
    return p


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; leaves with a message and code 2 where one is of another benchmark, which would change nothing."""
    p = parser()
    options = p.parse_args(words)
    own = {name: one for name, one in _OF_ONE.items() if name != "split" or not _is_prepared(options.ground_truth)}
    for name, benchmark in own.items():
        if options.benchmark != benchmark and getattr(options, name) != p.get_default(name):
            option = f"--{name.replace('_', '-')}"
            p.error(f"{option} is an option of {benchmark}, got it with {options.benchmark}: leave it out")
    return options


def _is_prepared(ground_truth: str) -> bool:
    return (Path(ground_truth) / MANIFEST).is_file()
