"""`tandem status [ROOT ...]`: one line for each run: state, progress, speed, time left, evaluations; why it failed.

With SLURM it asks the controller once for all runs; without, the runs' own records speak. Reads the ends of files only
and imports no torch, so a hundred runs take well under a second.

Examples:
    tandem status
    tandem status runs/sweep_street --watch 10
    tandem status runs --json
"""

from __future__ import annotations

import argparse

from launchers.cli import verb_parser
from launchers.options.common import completed, offer_runs


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem status", __doc__)
    roots = p.add_argument(
        "roots", nargs="*", default=["runs"], metavar="ROOT", help="runs or folders of runs (default: runs)"
    )
    completed(roots, offer_runs)
    how = p.add_mutually_exclusive_group()
    how.add_argument("--watch", type=float, metavar="S", help="show again every S seconds, until Ctrl-C")
    how.add_argument("--json", action="store_true", help="all fields as a JSON list, for scripts")
    return p
