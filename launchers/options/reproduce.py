"""`tandem reproduce PAPER [--table N] [--row NAME]`: a paper's table from raw data, step by step; does what is left.

PAPER is a name in configs/reproduce; `street` is a table of the built-in world, for your own machine. Without --table:
all tables. It says what there is already and what is missing, then queues the steps that are left on SLURM, each behind
those that it needs, or runs them here (--local), where the output of each goes to a log. Called again it goes on. Raw
data: --data for each set, or TANDEM_RAW for a folder that holds them; weights of teachers: --weights or TANDEM_WEIGHTS.

Examples:
    tandem reproduce                                   # which papers, which tables
    tandem reproduce slidr --table 2 --dry-run         # the commands, in order; what is done, what is missing
    tandem reproduce slidr --table 2 --row SLidR --data nuscenes=/data/nuscenes --weights /weights --cluster my.yaml
    tandem reproduce street --local
"""

from __future__ import annotations

import argparse

from configs.find import config_names
from launchers.cli import verb_parser
from launchers.options.common import completed, offer_configs, offer_paths


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem reproduce", __doc__)
    paper = p.add_argument("paper", nargs="?", metavar="PAPER", help=f"one of {', '.join(config_names('reproduce'))}")
    completed(paper, offer_configs("reproduce"))
    p.add_argument("overrides", nargs="*", default=[], metavar="cluster.field=value", help="what is asked of SLURM")
    p.add_argument("--table", metavar="N", help="its number in the paper, or its name here (default: all)")
    p.add_argument("--row", action="append", default=[], metavar="NAME", help="this row only; may be repeated")
    p.add_argument("--dry-run", action="store_true", help="print the commands and how far each is; do nothing")
    p.add_argument("--markdown", action="store_true", help="print the paper's page of docs/reproduce")
    places = p.add_argument_group("where things lie")
    places.add_argument("--root", metavar="FOLDER", help="of all that is made (default: runs/reproduce)")
    places.add_argument(
        "--data", action="append", default=[], metavar="SET=FOLDER", help="raw data of a set; may be repeated"
    )
    places.add_argument(
        "--shards", action="append", default=[], metavar="STEP=FOLDER", help="a set that you have prepared already"
    )
    weights = places.add_argument(
        "--weights",
        metavar="FOLDER",
        help="holds files of weights under their published names (docs/teacher_weights.md)",
    )
    completed(weights, offer_paths)
    how = p.add_argument_group("how it runs")
    cluster = how.add_argument(
        "--cluster", metavar="FILE", help="YAML file of the cluster, or its name in configs/cluster"
    )
    completed(cluster, offer_configs("cluster"))
    how.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="GPUs of a run, at most (default: as many as the paper's had); an update is then made of several parts, "
        "so that its batch stays",
    )
    here = how.add_mutually_exclusive_group()
    here.add_argument("--local", action="store_true", help="one after the other on this machine instead of SLURM")
    here.add_argument("--debug", action="store_true", help="in this process, code not frozen")
    return p
