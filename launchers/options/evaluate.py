"""`tandem evaluate CHECKPOINT... CONFIG [section.field=value ...]`: what pre-training gained, beside no pre-training.

CHECKPOINT is a run's folder (its newest checkpoint) or a checkpoint's folder. Several are taken as repetitions of one
method (other seeds): the r-th seed of a protocol uses the r-th of them. Results are added to results.json; what is
there already is not measured again. The lists of labelled sweeps that fine-tuning drew lie beside it.

With --random-only no checkpoint is needed: CHECKPOINT is a run's folder or config.yaml, and only random initialisation
of its networks is measured. data.holdout=true measures on logs held out from the train split.

Examples:
    tandem evaluate runs/slidr_street street
    tandem evaluate runs/seed0 runs/seed1 runs/seed2 street finetune.seeds=[0,1,2] protocols=[knn,finetune]
    tandem evaluate runs/slidr_nuscenes nuscenes data.shards=/data/nuscenes/shards --show-config
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from launchers.cli import verb_parser
from launchers.options.common import add_config, add_overrides, add_show_config, completed, offer_runs

_OVERRIDE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem evaluate", __doc__)
    checkpoints = p.add_argument(
        "checkpoints", nargs="+", metavar="CHECKPOINT", help="folder of a run or of a checkpoint"
    )
    completed(checkpoints, offer_runs)
    add_config(p, "downstream", "YAML file of the protocols, or its name in configs/downstream, for example street")
    add_overrides(p, "settings, for example finetune.steps=500")
    p.add_argument("--random-only", action="store_true", help="random initialisation of the run's network alone")
    add_show_config(p)
    return p


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Overrides may stand anywhere; argparse cannot tell them from checkpoints."""
    overrides = [word for word in argv if _OVERRIDE.match(word)]
    options = parser().parse_intermixed_args([word for word in argv if word not in overrides])
    options.overrides = overrides
    return options
