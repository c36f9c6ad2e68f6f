"""`tandem reproduce`: from raw data to a paper's table, step by step."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.small_files import DamagedFileError
from configs.load import ConfigError
from configs.paper_tables import Asked, asked, load_paper, papers
from launchers.cli import FAILURE, guarded
from launchers.options.reproduce import parser
from launchers.reproducing.queueing import check_ready, known_jobs, run_steps
from launchers.reproducing.state import State, figure, left, shown, state_of
from launchers.reproducing.steps import RAW_VARIABLE, ROOT, WEIGHTS_VARIABLE, Places, Step, steps_of
from launchers.runs.terminal import terminal
from launchers.submit import load_cluster, where_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 when all is queued or, without SLURM, done."""
    options = parser().parse_intermixed_args(argv)
    console = terminal()
    if options.paper is None:
        _check_alone(options)
        list_papers(console)
        return 0
    if options.markdown:
        from launchers.reproducing.page import page

        print(page(options.paper), end="")
        return 0
    if options.gpus is not None and options.gpus < 1:
        raise ConfigError(f"--gpus: got {options.gpus}, expected at least 1")
    if other := [text for text in options.overrides if not text.startswith("cluster.")]:
        raise ConfigError(
            f"{other[0]}: the steps of a table have the settings of its file; expected cluster.field=value, or change "
            "a copy of configs/reproduce/<paper>.yaml and give that"
        )
    part = asked(options.paper, options.table, tuple(options.row))
    places = places_of(options)
    steps = steps_of(part, places, options.gpus)
    folder = places.root / part.name
    try:
        jobs = known_jobs(folder)
    except DamagedFileError as error:
        raise ConfigError(f"{error}; remove the file, if no job of it is queued") from error
    states = {step.name: state_of(step, jobs.get(step.name)) for step in steps}
    where = where_of(options)
    cluster = load_cluster(options.cluster, options.overrides, nodes=None, where=where)
    if options.dry_run:
        show_tables(part, steps, console)
        show_steps(steps, states)
        return 0
    _check_gpus(steps, states, where)
    good = run_steps(steps, states, folder, cluster, where)
    if where != "slurm":
        show_tables(part, steps, console)
    return 0 if good else FAILURE


def _check_alone(options: argparse.Namespace) -> None:
    """Refuse options that say something of a paper where none is named."""
    without = vars(parser().parse_args([]))
    for name, value in vars(options).items():
        if value != without[name]:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option}: expected the name of a paper before it, one of {', '.join(papers())}")


def places_of(options: argparse.Namespace) -> Places:
    """Where things lie, by the command line and the environment."""
    return Places(
        root=Path(options.root or ROOT),
        data=_pairs("--data", options.data),
        raw=os.environ.get(RAW_VARIABLE),
        weights=options.weights or os.environ.get(WEIGHTS_VARIABLE),
        shards=_pairs("--shards", options.shards),
    )


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in given:
        name, sign, folder = text.partition("=")
        if not (name and sign and folder):
            raise ConfigError(f"{option}: got {text!r}, expected NAME=FOLDER")
        pairs[name] = folder
    return pairs


def _check_gpus(steps: Sequence[Step], states: Mapping[str, State], where: str) -> None:
    """Refuse to start more processes than this machine has GPUs; without any, the CPU takes one."""
    if where == "slurm":
        return
    most = 1 if where == "debug" else max(1, torch.cuda.device_count())
    for step in steps:
        if step.processes > most and states[step.name].kind != "done":
            raise ConfigError(
                f"{step.name} runs on {step.processes} GPUs as published, and here it has {most}: --gpus {most} keeps "
                "the batch and takes longer; or queue it with --cluster"
            )


# ---- output


def list_papers(console: Console) -> None:
    """Which papers and tables there are."""
    for name in papers():
        paper = load_paper(name)
        console.print(f"[bold]{name}[/bold]  {escape(paper.title)} ({escape(paper.paper)})", soft_wrap=True)
        for key, table in paper.tables.items():
            console.print(escape(f"    --table {key}: {table.title}"), soft_wrap=True)
    console.print("\ntandem reproduce PAPER --dry-run shows the commands and what there is already", style="dim")


def show_tables(part: Asked, steps: Sequence[Step], console: Console) -> None:
    """The tables: published, and what came out here."""
    by_name = {step.name: step for step in steps}
    for key, entry in part.tables.items():
        console.print(escape(f"table {key}: {entry.title}"), style="bold", soft_wrap=True)
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column("", overflow="fold")
        for column in entry.columns:
            table.add_column(column, justify="right")
        for row, line in entry.rows.items():
            cells = []
            for column in entry.columns:
                cell = line.cells.get(column)
                here = figure(cell, by_name[cell.step]) if cell is not None and cell.step else None
                cells.append("" if cell is None else f"{shown(cell.published) or '–'} | {shown(here) or '–'}")
            table.add_row(escape(row), *cells)
        console.print(table)
    console.print("published | here\n", style="dim")


def show_steps(steps: Sequence[Step], states: Mapping[str, State]) -> None:
    """The commands in order, as a shell script whose comments say how far each is."""
    done = sum(state.kind == "done" for state in states.values())
    print(f"# {len(steps)} steps, {done} of them done")
    for number, step in enumerate(steps, start=1):
        state = states[step.name]
        print(f"\n# {number}. {step.name}: {state}")
        if state.kind not in ("done", "queued"):
            for text in step.missing:
                print(f"#    missing: {text}")
        print(step.command())
    try:
        check_ready(left(steps, states))
    except ConfigError:
        print("\n# what is missing has to be there before anything is started")


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
