"""`tandem requeue RUN_OR_ROOT ...`: continue runs: a running one restarts, a failed one is submitted again.

A running training writes a checkpoint, then its batch script queues it again (to move it off a slow node, say). One
that failed, died or was cancelled is submitted as it was, with the code as it is now and with what follows it; of a
finished one, the evaluations that are not done. Runs that wait are left alone.

Examples:
    tandem requeue runs/slidr_nuscenes
    tandem requeue runs/sweep_street --no-check
"""

from __future__ import annotations

import argparse

from launchers.cli import verb_parser
from launchers.options.common import completed, offer_runs


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem requeue", __doc__)
    runs = p.add_argument("runs", nargs="+", metavar="RUN_OR_ROOT", help="run folders, or folders of runs")
    completed(runs, offer_runs)
    p.add_argument("--no-check", action="store_true", help="do not try one batch before submitting again")
    return p
