"""What the command lines of several verbs share, and what Tab offers for it."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from configs.find import SUFFIXES, config_names

NUM_CORES = len(os.sched_getaffinity(0))
"""Cores that this process may use: fewer than the machine's in a job or a container."""


def add_config(p: argparse.ArgumentParser, folder: str, help_text: str, *, nargs: str | None = None) -> None:
    """The positional CONFIG: path of a YAML file, or the name of one that comes with Tandem (`configs/<folder>`)."""
    completed(p.add_argument("config", metavar="CONFIG", nargs=nargs, help=help_text), offer_configs(folder))


def add_overrides(p: argparse.ArgumentParser, help_text: str = "settings, for example optim.lr=0.1") -> None:
    """The overrides behind a config."""
    p.add_argument("overrides", nargs="*", default=[], metavar="section.field=value", help=help_text)


def add_show_config(p: argparse.ArgumentParser) -> None:
    """The flag that prints the config with its overrides and stops; it may stand anywhere."""
    p.add_argument("--show-config", action="store_true", help="print the resolved config and stop")


def positive_number(text: str) -> float:
    """The type of an option that is a finite number above 0."""
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"got {text!r}, expected a finite number above 0")


def whole_number(text: str) -> int:
    """The type of an option that is a whole number of 0 or more."""
    if text.isascii() and text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of 0 or more")


# ---- what Tab offers: argcomplete calls these with the beginning of the word


def completed(action: argparse.Action, offer: Callable[[str], Iterable[str]]) -> None:
    """Say what Tab offers for an argument; `offer` gets what is typed so far."""
    setattr(action, "completer", lambda prefix, **_: list(offer(prefix)))  # noqa: B010 (argcomplete reads it there)


def offer_configs(folder: str) -> Callable[[str], Iterable[str]]:
    """Names of the packaged configs of a kind, and YAML files."""
    return lambda prefix: [*config_names(folder), *offer_paths(prefix, SUFFIXES)]


def offer_runs(prefix: str) -> Iterator[str]:
    """Folders; those of runs are complete."""
    from launchers.runs.files import is_run

    for path in offer_paths(prefix):
        yield path.rstrip("/") if is_run(Path(path)) else path


def offer_paths(prefix: str, suffixes: tuple[str, ...] = ()) -> Iterator[str]:
    """Folders, with a slash behind them, and files that end in one of the suffixes."""
    parent = prefix[: prefix.rfind("/") + 1]
    try:
        found = sorted(Path(parent or ".").iterdir())
    except OSError:  # no such folder: nothing to offer
        return
    for path in found:
        if not path.name.startswith(".") and (path.is_dir() or path.suffix in suffixes):
            yield f"{parent}{path.name}/" if path.is_dir() else f"{parent}{path.name}"
