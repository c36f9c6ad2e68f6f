"""`tandem cancel RUN_OR_ROOT ...`: end the jobs of runs: training, evaluations, and a report that no other run needs.

Jobs that other runs share (random-initialisation rows, a sweep's report) stay, unless all of those runs are named.
A running training writes a checkpoint first; what it has is kept, and `tandem submit` continues it.

Examples:
    tandem cancel runs/slidr_nuscenes
    tandem cancel runs/sweep_street
"""

from __future__ import annotations

import argparse

from launchers.cli import verb_parser
from launchers.options.common import completed, offer_runs


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem cancel", __doc__)
    runs = p.add_argument("runs", nargs="+", metavar="RUN_OR_ROOT", help="run folders, or folders of runs")
    completed(runs, offer_runs)
    return p
