"""`tandem prepare`: raw logs to WebDataset shards, with superpixels, in parallel; continues where it stopped."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.nearby import nearest
from common.printable import listed
from configs.dump import dump
from configs.load import Choices, ConfigError, load
from data.convert.base import Converter
from data.convert.sets import SETTINGS
from data.preparing.prepare import (
    PrepareConfig,
    PrepareSummary,
    Share,
    ShareSummary,
    join_shares,
    prepare,
    prepare_share,
)
from data.preparing.shard_task import RECORDS
from data.storage.manifest import Manifest
from data.storage.store import MANIFEST_NAME, is_url
from launchers import verify
from launchers.options.prepare import parse, verifies_only
from launchers.runs.terminal import terminal
from launchers.verify import progress

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit code.

    Raises:
        ConfigError: a setting that is unknown or out of range.
        ShardError: the source or the folder cannot be used.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if verifies_only(argv):
        return verify.main(argv)
    arguments = parse(argv)
    _check_order(arguments)
    config = _configure(arguments)
    if arguments.show_config:
        print(dump(config, choices=_CHOICES), end="")
        return 0
    if arguments.workers < 1:
        raise ConfigError(f"--workers: got {arguments.workers}, expected at least 1")
    console = terminal(highlight=True)
    if arguments.join:
        print_summary(join_shares(config.set, arguments.out, config.writing, verify=arguments.verify), console)
        return 0
    share = None if arguments.share is None else Share(number=arguments.share[0], count=arguments.share[1])
    with progress(console, "frames", f"{arguments.file or arguments.set} -> {arguments.out}") as show:
        work = functools.partial(prepare_share, share=share) if share else prepare
        how = {name: getattr(arguments, name) for name in ("workers", "verify", "retry_skipped")}
        done = work(config.set, arguments.out, config.writing, **how, on_progress=show)
    if share is not None and isinstance(done, ShareSummary):
        print_share(share, done, console)
    elif not isinstance(done, ShareSummary):
        print_summary(done, console)
    return 0


def _check_order(arguments: argparse.Namespace) -> None:
    """Refuse SRC and OUT the wrong way round, before anything is written into the raw data."""
    source, out = Path(arguments.source), Path(arguments.out)
    begun = [folder for folder in (source, out) if (folder / MANIFEST_NAME).is_file() or (folder / RECORDS).is_dir()]
    raw = out not in begun and out.is_dir() and any(out.iterdir())
    if raw and (source in begun or not (source.exists() or is_url(arguments.source) or arguments.source == "-")):
        what = "holds prepared shards" if source in begun else "does not exist"
        raise ConfigError(
            f"SRC {source} {what}, and OUT {out} holds other files: the raw data comes first, then the folder of the "
            f"shards; did you mean tandem prepare {arguments.file or arguments.set} {out} {source}?"
        )


def _configure(arguments: argparse.Namespace) -> PrepareRunConfig:
    """The file's settings, if there is one, then flags, then overrides."""
    if arguments.superpixels is False and any(text.startswith("superpixels.") for text in arguments.overrides):
        raise ConfigError("superpixels.*: set, but --no-superpixels switches them off; give one of the two")
    given = [] if arguments.file else [f"set.name={arguments.set}"]
    if arguments.source != "-" and arguments.set != "synthetic":
        # Absolute, so that the folder can be continued from another working directory.
        given.append(f"set.source={json.dumps(os.path.abspath(arguments.source))}")
    for name in ("limit", "samples_per_shard", "max_skip_share"):
        if getattr(arguments, name) is not None:
            given.append(f"{name}={getattr(arguments, name)}")
    if arguments.superpixels is not None:
        given.append("superpixels={}" if arguments.superpixels else "superpixels=null")
    overrides = [*given, *(_full_name(text) for text in arguments.overrides)]
    return load(PrepareRunConfig, arguments.file, overrides, choices=_CHOICES)


def _full_name(override: str) -> str:
    """The override with `set.` in front, unless it is there or the setting is one of writing."""
    names = {field.name for field in dataclasses.fields(PrepareRunConfig)}
    first = re.split(r"[.=]", override)[0]
    # A section that is misspelt is no setting of the set: the message should name the section.
    section = first in names or (first != override.partition("=")[0] and bool(nearest(first, names, cutoff=0.8)))
    return override if section or "=" not in override else f"set.{override}"


def without_pairs(manifest: Manifest) -> str:
    """How many samples have no point in an image, and the logs that have no other samples."""
    without = manifest.num_pairs == 0
    whole = [log for number, log in enumerate(manifest.logs) if without[manifest.sample_log == number].all()]
    of_logs = f"; all of {listed(whole)}" if whole else ""
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
        ("samples", f"{counts}, in {len(manifest.logs)} log{'s' if len(manifest.logs) > 1 else ''}"),
        ("points", f"{int(manifest.num_points.sum(dtype='int64')):,} ({manifest.num_points.mean():,.0f} a sample)"),
        (
            "pairs per sample",
            f"{pairs.mean():,.0f} (least {pairs.min():,}; cameras {cameras})" if cameras else "no cameras",
        ),
        ("superpixels", str(manifest.superpixels or "none")),
        ("images", manifest.stored_images),
        ("shards", f"{len(manifest.shards)}, {num_bytes / 1e6:,.1f} MB"),
        ("kept from before", f"{summary.num_reused_shards} of {summary.num_shards} shards"),
        ("seconds", f"{summary.seconds:.1f}"),
    ]
    if cameras and (pairs == 0).any():
        rows.insert(3, ("without pairs", without_pairs(manifest)))
    skipped = [(f"skipped: {reason}", f"{len(keys)}, e.g. {keys[0]}") for reason, keys in manifest.skipped.items()]
    rows += [*(skipped or [("skipped", "none")]), *(("note", note) for note in manifest.notes)]
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


if __name__ == "__main__":
    from launchers.cli import guarded

    sys.exit(guarded(main, sys.argv[1:]))
