"""`tandem doctor`: what this machine has, what each choice would run on it, and what is missing.

It tries what a training relies on: a product on each GPU, a sparse convolution forward and backward, the import of
DeepSpeed, the compiler, the folders. Names of users and machines are left out, so that the answer can go into a bug
report. The exit code is 1 where something is broken that training needs, 0 otherwise.

Examples:
    tandem doctor
    tandem doctor --runs /scratch/runs
    tandem doctor --json
"""

from __future__ import annotations

import argparse

from launchers.cli import verb_parser
from launchers.options.common import completed, offer_paths


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem doctor", __doc__)
    runs = p.add_argument(
        "--runs", default="runs", metavar="FOLDER", help="where runs are to be written (default: %(default)s)"
    )
    completed(runs, offer_paths)
    p.add_argument("--json", action="store_true", help="all findings as JSON, for bug reports and scripts")
    return p
