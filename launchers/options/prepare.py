"""`tandem prepare SET SRC OUT`: raw logs to WebDataset shards with a manifest, in parallel; continues where it stopped.

SET is a data set's name, whose settings then have their defaults, or a YAML file: a path, or a name in configs/prepare.

Examples:
    tandem prepare synthetic - runs/street num_logs=10
    tandem prepare kitti-raw /data/kitti /data/kitti_shards cameras=[image_02] --workers 8
    tandem prepare nuscenes_slidr /data/nuscenes /data/nuscenes_shards
    tandem prepare --verify /data/kitti_shards --repair
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from common.nearby import nearest
from configs.find import SUFFIXES, config_names, elsewhere, find_config
from data.convert.set_help import HELP
from data.preparing.defaults import MAX_SKIP_SHARE, SAMPLES_PER_SHARD
from launchers.cli import verb_parser
from launchers.options import verify
from launchers.options.common import NUM_CORES, add_show_config, completed, offer_paths

_EPILOG = """\
Settings are given as name=value after the folders:
  superpixels.<name>=...    like (fast-slic, scikit-image, null), num_segments, compactness, smoothing, iterations
  image_reduction=2         images stored at half their height and width (docs/shards.md)
  codec.jpeg_quality=90     of the stored images
  <name>=...                of this data set: {names}
  set.<name>=...            the same, as it stands in a YAML file

Interrupted? Run the same command again: finished shards are kept, the rest is made.
On a cluster: `--share 0/8` to `--share 7/8` at once, on any machines that see the folder; then `--join`
(slurm/prepare_<set>.sh does both). The set is the same as without.
"""


def parser(file: str | None = None) -> argparse.ArgumentParser:
    """Options; a YAML file's name or path stands in the place of a set's name."""
    p = verb_parser("tandem prepare", __doc__)
    p.epilog = "tandem prepare --verify OUT [--repair] reads every sample of a set and reports what is broken."
    sets = p.add_subparsers(dest="set", required=True, metavar="SET", title="data sets")
    helps = HELP if file is None else {**HELP, file: (f"the set of {file}", "see tandem prepare SET --help")}
    for name, (title, names) in helps.items():
        one = sets.add_parser(
            name,
            help=title,
            description=title,
            epilog=_EPILOG.format(names=names),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        source = one.add_argument(
            "source", metavar="SRC", help="folder of the raw data" if name != "synthetic" else "-"
        )
        out = one.add_argument("out", metavar="OUT", help="folder of the shards; made if absent, continued if begun")
        for folder in (source, out):
            completed(folder, offer_paths)
        one.add_argument("overrides", nargs="*", default=[], metavar="NAME=VALUE", help="settings, see below")
        _add_options(one)
    completed(sets, lambda _: [*HELP, *config_names("prepare")])
    return p


def _add_options(p: argparse.ArgumentParser) -> None:
    add_show_config(p)
    p.add_argument(
        "--workers", type=int, default=NUM_CORES, metavar="N", help="processes (default: cores, %(default)s here)"
    )
    p.add_argument(
        "--superpixels",
        action=argparse.BooleanOptionalAction,
        help="cut the images into superpixels (default), which SLidR needs",
    )
    p.add_argument(
        "--verify", action="store_true", help="compare checksums of finished shards, and make damaged ones again"
    )
    p.add_argument(
        "--retry-skipped",
        action="store_true",
        help="make finished shards again of which frames were skipped, as after a repair of the source",
    )
    part = p.add_mutually_exclusive_group()
    part.add_argument("--share", type=_share, metavar="I/N", help="make only this share of the shards; join later")
    part.add_argument("--join", action="store_true", help="all shares are made: write the manifest")
    p.add_argument("--limit", type=int, metavar="N", help="use only the first N frames of the set")
    p.add_argument(
        "--samples-per-shard",
        type=int,
        metavar="N",
        help=f"frames in each shard, at most (default: {SAMPLES_PER_SHARD})",
    )
    p.add_argument(
        "--max-skip-share",
        type=float,
        metavar="SHARE",
        help=f"stop when more than this share of the frames is damaged (default: {MAX_SKIP_SHARE})",
    )


def _share(text: str) -> tuple[int, int]:
    """A share as it is written on the command line: 2/8 is number 2 of 8."""
    if not re.fullmatch(r"\d+/\d+", text) or not int(text.split("/")[0]) < int(text.split("/")[1]):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected i/n with i from 0 to n - 1, such as 0/8")
    number, count = text.split("/")
    return int(number), int(count)


def parser_for(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser that understands these words."""
    if verifies_only(argv):
        return verify.parser()
    return parser(argv[0] if argv and _is_file(argv[0]) else None)


def verifies_only(argv: Sequence[str]) -> bool:
    """Whether it is a look at what was prepared: `--verify` without a set before it."""
    return "--verify" in argv and not _is_set(argv[0])


def _is_set(first: str) -> bool:
    return first in HELP or _is_file(first)


def _is_file(first: str) -> bool:
    """Whether it means a YAML file; a set's name wins over a file's."""
    return first not in HELP and (first in config_names("prepare") or first.endswith(SUFFIXES))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """As argparse does, and settings may also stand after flags, where its subcommands would not see them.

    `set` is the set's name, or None where `file` is a YAML file. Words that only verify give what those mean.
    """
    if verifies_only(argv):
        return verify.parser().parse_args(argv)
    first = argv[0] if argv else ""
    p = parser(first if _is_file(first) else None)
    if first.startswith("-") and first not in ("-h", "--help"):
        p.error(f"{first}: options come behind the data set, see tandem prepare SET --help")
    if first and not first.startswith("-") and not _is_set(first):
        known = [*HELP, *config_names("prepare")]
        hint = elsewhere(first, "prepare") or nearest(first, known) or f"; known: {', '.join(known)}"
        p.error(f"no data set {first!r}{hint}")
    options, rest = p.parse_known_args(argv)
    unknown = [text for text in rest if text.startswith("-")]
    if unknown:
        p.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.overrides += rest
    options.file = None
    if _is_file(first):
        options.set = None
        try:
            options.file = str(find_config(first, "prepare"))
        except OSError as error:
            p.error(str(error))
    return options
