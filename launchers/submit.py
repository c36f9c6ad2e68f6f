"""`tandem submit`: queue a run and its evaluations on SLURM."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.dump import dump
from configs.load import ConfigError, load
from configs.runs import SECTIONS, read_run
from configs.schema import SlurmConfig
from launchers.cli import FAILURE, guarded
from launchers.cluster.plan_submission import Point, SubmitRequest, Where, with_first_stages
from launchers.cluster.submission import submit
from launchers.options.submit import parser
from launchers.runs.files import CONFIG_FILE, SUBMISSION_FOLDER
from launchers.training.train import load_any_run, resolved_yaml

_CLUSTER_PREFIX = "cluster."


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
        own = of_run(options.overrides)
        point = Point(config=load_any_run(options.config, own), overrides=tuple(own))
    where = where_of(options)
    cluster = load_cluster(options.cluster, overrides, nodes=options.nodes, where=where)
    if options.show_config:
        print(resolved_yaml(point.config) + commented("cluster", cluster), end="")
        return 0
    request = SubmitRequest(
        points=with_first_stages([point]) if options.follow is None else (point,),
        root=point.run_dir,
        cluster=cluster,
        where=where,
        evaluate=not options.no_evaluate,
        train=options.follow is None,
        after=options.after,
        check=not options.no_check,
    )
    return 0 if submit(request, dry_run=options.dry_run) else FAILURE


def commented(title: str, config: object) -> str:
    """A config as comments below another one, whose text stays a config."""
    return "".join(f"# {line}\n" for line in (f"{title}:", *dump(config).splitlines()))


def of_run(overrides: Sequence[str]) -> list[str]:
    """Those that are not about the cluster.

    Raises:
        ConfigError: one that is, without saying so.
    """
    known = {field.name for field in dataclasses.fields(SlurmConfig)}
    known -= {field.name for kind in SECTIONS for field in dataclasses.fields(kind)}
    for override in overrides:
        if re.split(r"[.=]", override)[0] in known:
            raise ConfigError(f"{override}: a setting of the cluster; did you mean {_CLUSTER_PREFIX}{override}?")
    return [override for override in overrides if not override.startswith(_CLUSTER_PREFIX)]


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
    cluster = _loaded(path, own, defaults)
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


def _loaded(path: str | None, own: Sequence[str], defaults: Mapping[str, object]) -> SlurmConfig:
    """`load`, whose messages call an override as it was written: with the prefix, which the settings' names lack."""
    for override in own:
        if "=" not in override:
            raise ConfigError(f"override {_CLUSTER_PREFIX + override!r}: expected cluster.field=value, without spaces")
    try:
        return load(SlurmConfig, path, own, defaults=defaults)
    except ConfigError as error:
        place = str(error).partition(":")[0].split(".")
        given = [override.partition("=")[0].split(".") for override in own]
        if any(name[: len(place)] == place[: len(name)] for name in given):
            raise ConfigError(f"{_CLUSTER_PREFIX}{error}") from error
        raise


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
    config = read_run(path, [*overrides, f"run_dir={json.dumps(os.fspath(run_dir))}"])
    return Point(config=config, overrides=tuple(overrides))


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
