"""`tandem weights`: which published image networks load here, and what a weight file is.

    tandem weights list                 where the published files come from, their licences, how they are loaded
    tandem weights check FILE           what FILE is, its layout, which networks it fills; nothing in it is executed

docs/teacher_weights.md has the same table. Files are never downloaded by Tandem.

Example:
    tandem weights check moco_v2_800ep_pretrain.pth.tar
"""

from __future__ import annotations

import argparse

from launchers.cli import verb_parser


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem weights", __doc__)
    verbs = p.add_subparsers(dest="what", required=True, metavar="list | check FILE")
    listing = verbs.add_parser("list", help="published files: source, licence, checksum, how to load them")
    listing.add_argument("--markdown", action="store_true", help="as the table of docs/teacher_weights.md")
    check = verbs.add_parser("check", help="what a weight file is, and which networks it fills")
    check.add_argument("file", metavar="FILE", help="a downloaded file, or the folder of a run or checkpoint of ours")
    return p
