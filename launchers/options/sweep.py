"""`tandem sweep SWEEP [section.field=value ...]`: many runs that differ in some settings, evaluated, in one report.

SWEEP is a YAML file of configs/sweep/: a base config, and a grid or a list of overrides; or runs with a config each,
and a grid. Each point is a run folder in the sweep's root. All are one throttled array; submitted again, only what
failed or is new is queued.

Examples:
    tandem sweep slidr_street --local data.shards=runs/street
    tandem sweep my_sweep.yaml --cluster my_cluster.yaml --dry-run
"""

from __future__ import annotations

import argparse

from launchers.cli import verb_parser
from launchers.options.common import add_overrides, completed, offer_configs
from launchers.options.submit import add_where


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem sweep", __doc__)
    sweep = p.add_argument(
        "sweep", metavar="SWEEP", help="YAML file of the sweep, or its name in configs/sweep, for example slidr_street"
    )
    completed(sweep, offer_configs("sweep"))
    add_overrides(p, "settings for all points, for example optim.lr=0.1 or cluster.time_min=60")
    p.add_argument("--root", metavar="FOLDER", help="instead of the file's root")
    add_where(p)
    return p
