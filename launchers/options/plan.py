"""`tandem plan CONFIG --nodes 128 --gpus-per-node 8`: what a run would cost, without a cluster.

Counts come from the manifest (or --samples), parameters from the real objective, the step time from a measurement:
--step-time-s, the metrics of a finished run (--from-run), or a few updates here and now (--measure). A step time holds
for the kind of GPU that it was measured on, and is taken to grow with the samples a process has in an update.

Examples:
    tandem plan slidr_nuscenes data.shards=/data/nuscenes/shards --nodes 2 --gpus-per-node 8 --from-run runs/trial
    tandem plan slidr_nuscenes --samples 28130 --bytes-per-sample 1.2e6 --cameras 6 --gpus-per-node 8
    tandem plan slidr_street data.shards=runs/street --measure
"""

from __future__ import annotations

import argparse
from pathlib import Path

from launchers.cli import verb_parser
from launchers.options.common import add_config, add_overrides, add_show_config, completed, offer_runs
from launchers.planning.figures import GPU_HOURS_PER_FAILURE, RESTART_S


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem plan", __doc__)
    add_config(p, "pretrain", "YAML file of the run, or its name in configs/pretrain, for example slidr_nuscenes")
    add_overrides(p)
    add_show_config(p)
    p.add_argument("--nodes", type=_at_least_one, default=1, metavar="N", help="machines (default: 1)")
    p.add_argument(
        "--gpus-per-node", type=_at_least_one, default=1, metavar="N", help="one process for each (default: 1)"
    )
    how = p.add_mutually_exclusive_group()
    how.add_argument("--step-time-s", type=_positive, metavar="S", help="seconds that one process needs for an update")
    from_run = how.add_argument(
        "--from-run", type=Path, metavar="RUN", help="take the step time from the metrics of a run"
    )
    completed(from_run, offer_runs)
    how.add_argument("--measure", action="store_true", help="train a few updates on this machine")
    p.add_argument("--samples", type=_at_least_one, metavar="N", help="samples of the split, where there is no set yet")
    p.add_argument("--bytes-per-sample", type=_positive, metavar="B", help="with --samples: mean size of a sample")
    p.add_argument(
        "--cameras",
        type=_at_least_one,
        metavar="N",
        help="with --samples: cameras of a sample, for gathered negatives (default: 1)",
    )
    p.add_argument(
        "--network-gb-s",
        type=_positive,
        metavar="GB",
        help="gigabytes a second between processes, for each; adds communication to the times",
    )
    p.add_argument(
        "--write-mb-s",
        type=_positive,
        metavar="MB",
        help="megabytes a second that the run folder takes (default: measured)",
    )
    p.add_argument(
        "--gpu-hours-per-failure",
        type=_positive,
        default=GPU_HOURS_PER_FAILURE,
        metavar="H",
        help="GPU-hours between unexpected interruptions (default: %(default)g, as published for 16,384 GPUs)",
    )
    p.add_argument(
        "--restart-s",
        type=_positive,
        default=RESTART_S,
        metavar="S",
        help="seconds from a failure to a new update (default: %(default)g)",
    )
    p.add_argument("--json", action="store_true", help="all figures, for scripts")
    return p


def _at_least_one(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected at least 1")
    return int(text)


def _positive(text: str) -> float:
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"got {text}, expected above 0")
    return float(text)
