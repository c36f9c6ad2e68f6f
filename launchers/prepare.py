"""`tandem prepare`: raw logs to WebDataset shards, with superpixels, in parallel; continues where it stopped.

What to prepare is a YAML file (configs/prepare/), or the name of a data set, whose settings then have their defaults.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from configs.load import Choices, ConfigError, dump, load
from data.convert.base import Converter
from data.convert.sets import HELP, SETTINGS
from data.preparing.prepare import (
    PrepareConfig,
    PrepareSummary,
    Share,
    ShareSummary,
    join_shares,
    prepare,
    prepare_share,
)
from data.storage.manifest import Manifest
from launchers import verify
from launchers.verify import NUM_CORES, progress

_YAML = (".yaml", ".yml")
_CHOICES: Choices = {"set": SETTINGS}


@dataclass(frozen=True, kw_only=True)
class PrepareRunConfig(PrepareConfig):
    """A set to prepare: the YAML files of configs/prepare (with the fields of `PrepareConfig`).

    Attributes:
        set: the data set and its own settings; `set.name` chooses.
    """

    set: Converter

    @property
    def writing(self) -> PrepareConfig:
        """Without the data set: what `data.preparing` goes by, and remembers of a folder."""
        return PrepareConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(PrepareConfig)})


_EPILOG = """\
Settings are given as name=value after the folders:
  superpixels.<name>=...    num_segments, compactness, smoothing, iterations
  codec.jpeg_quality=90     of the stored images
  <name>=...                of this data set: {names}
  set.<name>=...            the same, as it stands in a YAML file

Interrupted? Run the same command again: finished shards are kept, the rest is made.
On a cluster: `--share 0/8` to `--share 7/8` at once, on any machines that see the folder; then `--join`
(slurm/prepare_<set>.sh does both). The set is the same as without.
"""


def _parser(file: str | None) -> argparse.ArgumentParser:
    """Options; a YAML file on the command line stands in the place of a set's name."""
    parser = argparse.ArgumentParser(
        prog="tandem prepare",
        description="Turn the raw logs of a data set into WebDataset shards with a manifest. "
        "tandem prepare configs/prepare/NAME.yaml SRC OUT takes the settings of a file.",
        epilog="tandem prepare --verify OUT [--repair] reads every sample of a set and reports what is broken.",
    )
    sets = parser.add_subparsers(dest="set", required=True, metavar="SET", title="data sets")
    helps = HELP if file is None else {**HELP, file: (f"the set of {file}", "see tandem prepare SET --help")}
    for name, (title, names) in helps.items():
        one = sets.add_parser(
            name,
            help=title,
            description=title,
            epilog=_EPILOG.format(names=names),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.add_argument("source", metavar="SRC", help="folder of the raw data" if name != "synthetic" else "-")
        one.add_argument("out", metavar="OUT", help="folder of the shards; made if absent, continued if begun")
        one.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="settings, see below")
        _add_options(one)
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    defaults = PrepareConfig()
    parser.add_argument("--show-config", action="store_true", help="print the resolved config and stop")
    parser.add_argument(
        "--workers", type=int, default=NUM_CORES, metavar="N", help="processes (default: cores, %(default)s here)"
    )
    parser.add_argument(
        "--superpixels",
        action=argparse.BooleanOptionalAction,
        help="cut the images into superpixels (default), which SLidR needs",
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare checksums of finished shards, and make damaged ones again"
    )
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--share", type=_share, metavar="I/N", help="make only this share of the shards; join later")
    part.add_argument("--join", action="store_true", help="all shares are made: write the manifest")
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N frames of the set")
    per_shard = f"frames a shard, at most (default: {defaults.samples_per_shard})"
    parser.add_argument("--samples-per-shard", type=int, metavar="N", help=per_shard)
    skipped = f"stop when more than this share of the frames is damaged (default: {defaults.max_skip_share})"
    parser.add_argument("--max-skip-share", type=float, metavar="SHARE", help=skipped)


def _share(text: str) -> Share:
    """A share as it is written on the command line: 2/8 is number 2 of 8."""
    if not re.fullmatch(r"\d+/\d+", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected i/n with i from 0 to n - 1, such as 0/8")
    number, count = text.split("/")
    try:
        return Share(number=int(number), count=int(count))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit code.

    Raises:
        ConfigError: a setting that is unknown or out of range.
        ShardError: the source or the folder cannot be used.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # Without a set before it: not an option of preparing, but a look at what was prepared.
    if "--verify" in argv and argv[0] not in SETTINGS:
        return verify.main(argv)
    arguments = _parse(argv)
    config = _configure(arguments)
    if arguments.show_config:
        print(dump(config, choices=_CHOICES), end="")
        return 0
    if arguments.workers < 1:
        raise ConfigError(f"--workers: got {arguments.workers}, expected at least 1")
    console = Console()
    if arguments.join:
        print_summary(join_shares(config.set, arguments.out, config.writing, verify=arguments.verify), console)
        return 0
    with progress(console, "frames", f"{arguments.set} -> {arguments.out}") as show:
        work = functools.partial(prepare_share, share=arguments.share) if arguments.share else prepare
        how = {"workers": arguments.workers, "verify": arguments.verify}
        done = work(config.set, arguments.out, config.writing, **how, on_progress=show)
    if isinstance(done, ShareSummary):
        print_share(arguments.share, done, console)
    else:
        print_summary(done, console)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """As argparse does, and settings may also stand after flags, where its subcommands would not see them."""
    parser = _parser(next((text for text in argv if text.endswith(_YAML)), None))
    first = argv[0] if argv else ""
    if first.startswith("-") and first not in ("-h", "--help"):
        parser.error(f"{first}: options come behind the data set, see tandem prepare SET --help")
    if first and not first.startswith("-") and first not in HELP and not first.endswith(_YAML):
        near = difflib.get_close_matches(first, HELP, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(HELP)}"
        parser.error(f"no data set {first!r}{hint}")
    arguments, rest = parser.parse_known_args(argv)
    unknown = [text for text in rest if text.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    arguments.overrides += rest
    return arguments


def _configure(arguments: argparse.Namespace) -> PrepareRunConfig:
    """The file's settings, if there is one, then flags, then overrides."""
    if arguments.superpixels is False and any(text.startswith("superpixels.") for text in arguments.overrides):
        raise ConfigError("superpixels.*: set, but --no-superpixels switches them off; give one of the two")
    is_file = arguments.set.endswith(_YAML)
    given = [] if is_file else [f"set.name={arguments.set}"]
    if arguments.source != "-" and arguments.set != "synthetic":
        # Absolute, so that the folder can be continued from another working directory.
        given.append(f"set.source={json.dumps(os.path.abspath(arguments.source))}")
    for name in ("limit", "samples_per_shard", "max_skip_share"):
        if getattr(arguments, name) is not None:
            given.append(f"{name}={getattr(arguments, name)}")
    if arguments.superpixels is not None:
        given.append("superpixels={}" if arguments.superpixels else "superpixels=null")
    overrides = [*given, *(_full_name(text) for text in arguments.overrides)]
    return load(PrepareRunConfig, arguments.set if is_file else None, overrides, choices=_CHOICES)


def _full_name(override: str) -> str:
    """The override with `set.` in front, unless it is there or the setting is one of writing."""
    names = {field.name for field in dataclasses.fields(PrepareRunConfig)}
    return override if re.split(r"[.=]", override)[0] in names or "=" not in override else f"set.{override}"


def _without_pairs(manifest: Manifest) -> str:
    """How many samples have no point in an image, and the logs that have no other samples."""
    without = manifest.num_pairs == 0
    whole = [log for number, log in enumerate(manifest.logs) if without[manifest.sample_log == number].all()]
    of_logs = f"; all of {len(whole)} logs, such as {whole[0]}" if whole else ""
    return f"{int(without.sum())} of {len(manifest)} samples have no point in an image{of_logs}"


def print_share(share: Share, summary: ShareSummary, console: Console) -> None:
    """What a share made, and what comes next."""
    console.print(
        f"share {share.number}/{share.count}: {summary.num_shards} of {summary.num_all_shards} shards, "
        f"{summary.num_reused_shards} kept from before, {summary.num_skipped} frames skipped, {summary.seconds:.1f} s; "
        "when all shares are made, run the same command with --join",
        highlight=False,
        soft_wrap=True,
    )


def print_summary(summary: PrepareSummary, console: Console) -> None:
    """What was written, what was left out, and what had to be assumed."""
    manifest = summary.manifest
    num_bytes = sum(shard.num_bytes for shard in manifest.shards)
    splits = {split: len(manifest.indices(split)) for split in sorted(set(manifest.splits))}
    table = Table(title=f"{manifest.set_name} in {manifest.root}", show_header=False)
    counts = ", ".join(f"{count} {split}" for split, count in splits.items())
    pairs, cameras = manifest.num_pairs, ", ".join(manifest.camera_names)
    rows = [
        ("samples", f"{counts}, in {len(manifest.logs)} logs"),
        ("points", f"{int(manifest.num_points.sum(dtype='int64')):,} ({manifest.num_points.mean():,.0f} a sample)"),
        (
            "pairs a sample",
            f"{pairs.mean():,.0f} (least {pairs.min():,}; cameras {cameras})" if cameras else "no cameras",
        ),
        ("superpixels", str(manifest.superpixels or "none")),
        ("shards", f"{len(manifest.shards)}, {num_bytes / 1e6:,.1f} MB"),
        ("kept from before", f"{summary.num_reused_shards} of {summary.num_shards} shards"),
        ("seconds", f"{summary.seconds:.1f}"),
    ]
    if cameras and (pairs == 0).any():
        rows.insert(3, ("without pairs", _without_pairs(manifest)))
    skipped = [(f"skipped: {reason}", f"{len(keys)}, e.g. {keys[0]}") for reason, keys in manifest.skipped.items()]
    rows += [*(skipped or [("skipped", "none")]), *(("note", note) for note in manifest.notes)]
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


if __name__ == "__main__":
    from launchers.cli import guarded

    sys.exit(guarded(main, sys.argv[1:]))
