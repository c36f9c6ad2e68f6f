"""`tandem demo`: the whole main job on the built-in street world, as the ordinary commands a user would type.

generate -> shards -> pre-train -> linear probe, kNN and few-label fine-tuning against random initialisation -> report.
Each stage is one `tandem` command, printed before it runs; each finds what an earlier call left and reuses it.

Examples:
    tandem demo
    tandem demo --short --root /tmp/demo
"""

from __future__ import annotations

import argparse

from launchers.cli import verb_parser


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem demo", __doc__)
    p.add_argument(
        "--root", default="runs/demo", metavar="FOLDER", help="for shards, runs and report (default: %(default)s)"
    )
    amount = p.add_mutually_exclusive_group()  # times: of launchers.demo.DemoSize
    amount.add_argument("--full", action="store_true", help="3 seeds and the random-teacher control: 45 minutes")
    amount.add_argument(
        "--short", action="store_true", help="a few steps on a few frames, shows that it runs: 2 minutes"
    )
    return p
