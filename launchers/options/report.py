"""`tandem report RUN_OR_FOLDER... [--out-dir DIR]`: all results of any number of runs in one table and one page.

Searches the folders for results.json and for pre-training runs, and finds the random-initialisation rows that lie
beside the runs. Prints the table; --markdown prints it as markdown; --out writes one self-contained HTML file with
tables, curves, pictures and how the numbers were made, and the same in markdown beside it; --out-dir writes both as
report.html and report.md, and TensorBoard's table of hyper-parameters. Runs that differ in their seed alone become one
row with mean and spread; what failed is named with its reason.

Examples:
    tandem report runs/slidr_street
    tandem report runs --out-dir runs/report
    tandem report runs/seed0 runs/seed1 --out seeds.html --pictures 4
"""

from __future__ import annotations

import argparse

from launchers.cli import verb_parser
from launchers.options.common import completed, offer_runs


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem report", __doc__)
    folders = p.add_argument("folders", nargs="+", metavar="RUN_OR_FOLDER", help="searched with all folders inside")
    completed(folders, offer_runs)
    where = p.add_mutually_exclusive_group()
    where.add_argument("--out", metavar="FILE.html", help="write the page there, and FILE.md beside it")
    where.add_argument("--out-dir", metavar="DIR", help="write report.html, report.md and TensorBoard's hparams there")
    p.add_argument("--markdown", action="store_true", help="print markdown instead of a drawn table")
    p.add_argument(
        "--title",
        default="Tandem: what pre-training gained",
        metavar="TEXT",
        help="heading of the page (default: %(default)r)",
    )
    p.add_argument(
        "--pictures",
        type=int,
        default=1,
        metavar="N",
        help="validation samples to draw of each run, with its networks (default: %(default)s)",
    )
    return p
