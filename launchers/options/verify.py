"""`tandem prepare --verify OUT [--repair]`: is a prepared set whole, and dropping what is not."""

from __future__ import annotations

import argparse

from launchers.cli import verb_parser
from launchers.options.common import NUM_CORES


def parser() -> argparse.ArgumentParser:
    """Options."""
    p = verb_parser(
        "tandem prepare --verify",
        "Read and decode every sample of a prepared set; exit code 1 when something is broken. The report\n"
        "goes into OUT/verify.json. To make damaged shards again from the raw data instead:\n"
        "tandem prepare SET SRC OUT --verify.",
    )
    p.add_argument("--verify", action="store_true", required=True, help=argparse.SUPPRESS)
    p.add_argument("out", metavar="OUT", help="folder of the prepared set")
    p.add_argument(
        "--repair",
        action="store_true",
        help="drop what is broken from the manifest; the files that change are kept as *.before-repair",
    )
    p.add_argument(
        "--fraction",
        type=float,
        default=1.0,
        metavar="F",
        help="look into this share of the shards, evenly spread; 0: the table of samples alone (default: 1)",
    )
    p.add_argument(
        "--upgrade",
        action="store_true",
        help="first write the manifest anew in the form of large sets, which opens at once; shards stay as they are",
    )
    p.add_argument(
        "--workers",
        type=int,
        default=NUM_CORES,
        metavar="N",
        help="processes (default: cores, %(default)s here)",
    )
    return p
