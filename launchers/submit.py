"""`tandem submit CONFIG --cluster CLUSTER [section.field=value ...]`: queue a run and its evaluations on SLURM.

Code and config are frozen as they are now: later edits do not reach queued jobs. Before anything is queued, a dry check
looks at the config, the shards, the folders, the partition and one batch. Overrides that begin with `cluster.` change
what is asked of SLURM. Submitted again, it queues what is neither done nor queued.

`--local` does the same on this machine without SLURM, `--debug` in this process, from the code as it is.
`--follow RUN` queues only what follows a run that is trained already (or is being trained by job `--after`).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.load import ConfigError, load
from configs.schema import PRETRAIN_CHOICES, PretrainConfig, SlurmConfig
from launchers.cli import FAILURE, guarded, verb_parser
from launchers.cluster.plan_submission import Point, SubmitRequest, Where, with_first_stages
from launchers.cluster.submission import submit
from launchers.runs.files import CONFIG_FILE, SUBMISSION_FOLDER
from launchers.training.train import load_run

_CLUSTER_PREFIX = "cluster."


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem submit", __doc__)
    p.add_argument("config", nargs="?", help="YAML file of the run, for example configs/pretrain/slidr_street.yaml")
    p.add_argument("overrides", nargs="*", metavar="section.field=value", help="for example optim.lr=0.1")
    p.add_argument("--follow", metavar="RUN", help="queue only what follows this run")
    p.add_argument("--after", metavar="JOB", help="with --follow: the job that trains the run; wait for it to succeed")
    add_where(p)
    return p


def add_where(p: argparse.ArgumentParser) -> None:
    """Options that `submit` and `sweep` share."""
    p.add_argument("--cluster", metavar="FILE", help="YAML file of the cluster, see configs/cluster/")
    p.add_argument("--nodes", type=int, help="machines of a run; same as cluster.nodes=N")
    how = p.add_mutually_exclusive_group()
    how.add_argument("--local", action="store_true", help="processes on this machine instead of SLURM")
    how.add_argument("--debug", action="store_true", help="in this process, code not frozen")
    p.add_argument("--no-evaluate", action="store_true", help="no evaluations, no report")
    p.add_argument("--no-check", action="store_true", help="do not try one batch first")
    p.add_argument("--dry-run", action="store_true", help="check, say what would be queued, queue nothing")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 when everything is queued or, without SLURM, done."""
    options = parser().parse_intermixed_args(argv)
    overrides = [word for word in (options.config, *options.overrides) if word is not None]
    if options.follow is not None:
        point = _trained(Path(options.follow), [o for o in overrides if not o.startswith(_CLUSTER_PREFIX)])
    elif options.after is not None:
        raise ConfigError("--after goes with --follow RUN: a new run waits for nothing")
    elif options.config is None:
        raise ConfigError("no config given; expected a YAML file, for example configs/pretrain/slidr_street.yaml")
    else:
        own = [o for o in options.overrides if not o.startswith(_CLUSTER_PREFIX)]
        point = Point(config=load_run(options.config, own), overrides=tuple(own))
    where = where_of(options)
    request = SubmitRequest(
        points=with_first_stages([point]) if options.follow is None else (point,),
        root=point.run_dir,
        cluster=load_cluster(options.cluster, overrides, nodes=options.nodes, where=where),
        where=where,
        evaluate=not options.no_evaluate,
        train=options.follow is None,
        after=options.after,
        check=not options.no_check,
    )
    return 0 if submit(request, dry_run=options.dry_run) else FAILURE


def where_of(options: argparse.Namespace) -> Where:
    """Where the jobs go."""
    return "local" if options.local else "debug" if options.debug else "slurm"


def load_cluster(path: str | None, overrides: Sequence[str], *, nodes: int | None, where: Where) -> SlurmConfig:
    """The cluster's config with the `cluster.` overrides; defaults where no file is named.

    Raises:
        ConfigError: a mistake in it, or several machines asked for without SLURM.
    """
    own = [o.removeprefix(_CLUSTER_PREFIX) for o in overrides if o.startswith(_CLUSTER_PREFIX)]
    # On one machine, runs side by side take each other's cores: one at a time unless asked otherwise.
    defaults = {"array_parallelism": 1} if where == "local" and path is None else {}
    cluster = load(SlurmConfig, path, own, defaults=defaults)
    if nodes is not None:
        cluster = dataclasses.replace(cluster, nodes=nodes)
    if where == "local" and cluster.nodes > 1:
        raise ConfigError(
            f"--local: {cluster.nodes} nodes asked for, and this machine is one; use cluster.nodes=1 and "
            f"cluster.tasks_per_node={cluster.nodes * cluster.tasks} for as many processes"
        )
    if where == "debug" and cluster.nodes * cluster.tasks > 1:
        print(f"--debug: one process instead of {cluster.nodes * cluster.tasks}", file=sys.stderr)
    return cluster


def _trained(run_dir: Path, overrides: Sequence[str]) -> Point:
    """A run from its folder, with other evaluations if overrides say so."""
    candidates = (run_dir / CONFIG_FILE, run_dir / SUBMISSION_FOLDER / CONFIG_FILE)
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise ConfigError(f"{run_dir}: no {CONFIG_FILE} in it; expected the folder of a run that has begun")
    wrong = [o for o in overrides if not o.startswith("evaluate.")]
    if wrong:
        raise ConfigError(
            f"override {wrong[0]!r}: the run is trained already; with --follow only evaluate.* can change"
        )
    config = load(PretrainConfig, path, [*overrides, f"run_dir={os.fspath(run_dir)}"], choices=PRETRAIN_CHOICES)
    return Point(config=config, overrides=tuple(overrides))


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
