"""`tandem submit CONFIG --cluster CLUSTER [section.field=value ...]`: queue a run and its evaluations on SLURM.

Code and config are frozen as they are now: later edits do not reach queued jobs. Before anything is queued, a dry check
looks at the config, the shards, the folders, the partition and one batch. Overrides that begin with `cluster.` change
what is asked of SLURM. Submitted again, it queues what is neither done nor queued.

`--local` does the same on this machine without SLURM, `--debug` in this process, from the code as it is.
`--follow RUN` queues only what follows a run that is trained already (or is being trained by job `--after`).

Examples:
    tandem submit slidr_nuscenes --cluster my_cluster.yaml --nodes 2 data.shards=/data/nuscenes/shards
    tandem submit slidr_street --local data.shards=runs/street
    tandem submit --follow runs/slidr_nuscenes --cluster my_cluster.yaml evaluate.fractions=[10]
"""

from __future__ import annotations

import argparse

from launchers.cli import verb_parser
from launchers.options.common import (
    add_config,
    add_overrides,
    add_show_config,
    completed,
    offer_configs,
    offer_runs,
)


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem submit", __doc__)
    add_config(
        p, "pretrain", "YAML file of the run, or its name in configs/pretrain, for example slidr_street", nargs="?"
    )
    add_overrides(p, "settings, for example optim.lr=0.1 or cluster.time_min=60")
    follow = p.add_argument("--follow", metavar="RUN", help="queue only what follows this run")
    completed(follow, offer_runs)
    p.add_argument("--after", metavar="JOB", help="with --follow: the job that trains the run; wait for it to succeed")
    add_where(p)
    return p


def add_where(p: argparse.ArgumentParser) -> None:
    """Options that `submit` and `sweep` share."""
    cluster = p.add_argument(
        "--cluster", metavar="FILE", help="YAML file of the cluster, or its name in configs/cluster"
    )
    completed(cluster, offer_configs("cluster"))
    p.add_argument("--nodes", type=int, metavar="N", help="machines for each run; same as cluster.nodes=N")
    how = p.add_mutually_exclusive_group()
    how.add_argument("--local", action="store_true", help="processes on this machine instead of SLURM")
    how.add_argument("--debug", action="store_true", help="in this process, code not frozen")
    p.add_argument("--no-evaluate", action="store_true", help="no evaluations, no report")
    p.add_argument("--no-check", action="store_true", help="do not try one batch first")
    p.add_argument("--dry-run", action="store_true", help="check, say what would be queued, queue nothing")
    add_show_config(p)
