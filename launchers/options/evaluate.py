"""`tandem evaluate CHECKPOINT... CONFIG [section.field=value ...]`: what pre-training gained, beside no pre-training.

CHECKPOINT is a run's folder (its newest checkpoint) or a checkpoint's folder. Several are taken as repetitions of one
method (other seeds): the r-th seed of a protocol uses the r-th of them. Results are added to results.json; what is
there already is not measured again. The lists of labelled sweeps that fine-tuning drew lie beside it.

With --random-only no checkpoint is needed: CHECKPOINT is a run's folder or config.yaml, and only random initialisation
of its networks is measured. data.holdout=true measures on logs held out from the train split.

With --weights a network from a file is measured, a published one for example, without a run's folder:

    tandem evaluate --weights FILE --layout LAYOUT --out FOLDER CONFIG data.shards=... [section.field=value ...]

Layouts:
    tandem      what `tandem export` writes.
    slidr       checkpoints of the SLidR family, and what `tandem export --format slidr` writes.
    openpcdet and the other formats of `tandem export --help` for 3D networks    what it writes, and those projects' own
                files. The latter do not say what the network is fed: --like CONFIG does.
    torchvision, moco_v1, moco_v2, moco_v3, dino, openmmlab_bgr, openmmlab_rgb, slidr_images
                ResNets, for the protocols of image networks.

With --detector the checkpoint of a run of `tandem finetune`, a detector's or a segmenter's, is judged once more, on any
split, and what it finds is written as benchmarks take it:

    tandem evaluate --detector RUN [--submission FOLDER] [judge.split=test] [judge.benchmarks=[kitti]] [judge.limit=100]

Examples:
    tandem evaluate runs/slidr_street street
    tandem evaluate runs/seed0 runs/seed1 runs/seed2 street finetune.seeds=[0,1,2] protocols=[knn,finetune]
    tandem evaluate runs/slidr_nuscenes nuscenes data.shards=/data/nuscenes/shards --show-config
    tandem evaluate --weights model.pt --layout slidr --out runs/published nuscenes data.shards=/data/nuscenes/shards
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from launchers.cli import verb_parser
from launchers.options.common import (
    add_config,
    add_overrides,
    add_show_config,
    completed,
    offer_paths,
    offer_runs,
    positive_number,
)
from launchers.options.export import NO_POINTS, SUFFIXES

_OVERRIDE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")

_WEIGHTS = (".pt", ".pth", ".ckpt", ".tar", ".safetensors")
"""What names of files of weights end in."""
LAYOUTS = (
    *(name for name in SUFFIXES if name not in NO_POINTS),
    *("torchvision", "moco_v1", "moco_v2", "moco_v3", "dino", "openmmlab_bgr", "openmmlab_rgb", "slidr_images"),
)
"""Of files of weights."""
LEAKS = ("none", "ssl-teacher", "supervised-teacher", "class-agnostic-masks", "class-name-prompts", "unknown")
"""The words of `engine.downstream.results.LeakLevel`, which is slow to import."""


def parser(*, from_file: bool = False, of_detector: bool = False) -> argparse.ArgumentParser:
    """Options of the verb; with --weights (`from_file`) no checkpoint is named, with --detector no protocols either."""
    p = verb_parser("tandem evaluate", __doc__)
    if from_file or of_detector:
        p.set_defaults(checkpoints=[])
    else:
        checkpoints = p.add_argument(
            "checkpoints", nargs="+", metavar="CHECKPOINT", help="folder of a run or of a checkpoint"
        )
        completed(checkpoints, offer_runs)
    if of_detector:
        p.set_defaults(config=None)
    else:
        add_config(p, "downstream", "YAML file of the protocols, or its name in configs/downstream, for example street")
    add_overrides(p, "settings, for example finetune.steps=500")
    p.add_argument("--random-only", action="store_true", help="random initialisation of the run's network alone")
    p.add_argument("--out", metavar="FOLDER", help="folder of results.json (default: the run's own)")
    judged = p.add_argument_group("a detector in place of CHECKPOINT and CONFIG")
    detector = judged.add_argument(
        "--detector", metavar="RUN", help="folder of a run of tandem finetune (also of a segmenter), or of a checkpoint"
    )
    completed(detector, offer_runs)
    judged.add_argument("--submission", metavar="FOLDER", help="write the benchmarks' own files of what it finds there")
    judged.add_argument(
        "--tables", metavar="FOLDER", help="of nuScenes (v1.0-trainval): name its files of points by them"
    )
    judged.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where it runs (default: auto)"
    )
    file = p.add_argument_group("a file of weights in place of CHECKPOINT")
    weights = file.add_argument("--weights", metavar="FILE", help="file of weights")
    completed(weights, lambda prefix: offer_paths(prefix, _WEIGHTS))
    file.add_argument("--layout", choices=LAYOUTS, help="how its tensors are named, see above")
    file.add_argument(
        "--backbone", metavar="PRESET", help="its network, for example res16unet34c or resnet50 (default: as it fits)"
    )
    file.add_argument(
        "--leak", choices=LEAKS, help="labels that reached its training (default: as it says, or unknown)"
    )
    like = file.add_argument(
        "--like",
        metavar="CONFIG",
        help="of files that do not say it: a run, or a config of pre-training, with the file's network and voxels",
    )
    completed(like, offer_runs)
    file.add_argument(
        "--intensity-scale",
        type=positive_number,
        metavar="MAX",
        help="the largest intensity that it was fed (default: as it says; of slidr, 255; else 1)",
    )
    file.add_argument(
        "--intensity-offset",
        type=float,
        metavar="N",
        help="what was added to intensity; 1 for SLidR's runs on SemanticKITTI (default: as it says, or 0)",
    )
    add_show_config(p)
    return p


def parser_for(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for the words behind the verb."""
    given = {word.partition("=")[0] for word in words}
    return parser(from_file="--weights" in given, of_detector="--detector" in given)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Overrides may stand anywhere; argparse cannot tell them from checkpoints."""
    overrides = [word for word in argv if _OVERRIDE.match(word)]
    p = parser_for(argv)
    options = p.parse_intermixed_args([word for word in argv if word not in overrides])
    options.overrides = overrides
    if options.weights is not None and (options.layout is None or options.out is None or options.random_only):
        p.error("--weights needs --layout and --out, and goes without --random-only")
    if options.detector is None and options.submission is not None:
        p.error("--submission goes with --detector RUN")
    if options.submission is None and options.tables is not None:
        p.error("--tables goes with --submission")
    given = [
        option
        for option in ("layout", "backbone", "leak", "like", "intensity_scale", "intensity_offset")
        if getattr(options, option) is not None
    ]
    if options.weights is None and given:
        p.error(f"--{given[0].replace('_', '-')} is for a file of weights: expected --weights FILE")
    return options
