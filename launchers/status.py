"""`tandem status`: one line for each run. Imports no torch and reads the ends of files only."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.nearby import nearby
from common.printable import printable_line
from configs.load import ArgumentError
from launchers.cli import guarded
from launchers.options.status import parser
from launchers.runs import slurm
from launchers.runs.files import find_runs, holds_runs
from launchers.runs.run_status import RunStatus, read_files, run_status
from launchers.runs.run_trouble import BAD
from launchers.runs.terminal import terminal

PIPE_WIDTH = 240
"""Columns where the output is no terminal: nothing is folded there."""
SPACE = 3
"""Columns that a table column needs beside its text."""

STYLES = {"finished": "green", "running": "bold", "preempted": "yellow", "requeued": "yellow"}


@dataclass(frozen=True)
class StatusColumn:
    """A column of the table.

    Attributes:
        rank: columns with the highest rank are left out first where the terminal is narrow.
    """

    title: str
    text: Callable[[RunStatus], str]
    rank: int
    right: bool = True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 unless there is nothing to show."""
    options = parser().parse_args(argv)
    console = terminal(width=PIPE_WIDTH)
    while True:
        statuses, remark = gather([Path(root) for root in options.roots])
        if options.json:
            print(json.dumps([asdict(status) for status in statuses], indent=1))
        else:
            if options.watch:
                console.clear()
            show(statuses, remark, console)
        if not options.watch:
            return 0
        try:
            time.sleep(options.watch)
        except KeyboardInterrupt:
            return 0


def gather(roots: Sequence[Path]) -> tuple[list[RunStatus], str]:
    """The status of all runs below the roots, and a remark on what could not be asked ("" if nothing).

    Raises:
        ArgumentError: a root is no folder, or there are no runs.
    """
    folders: dict[Path, None] = {}
    for root in roots:
        if not root.is_dir():
            raise ArgumentError(f"{root}: no such folder{nearby(root, holds_runs) or _WANTED}")
        folders |= dict.fromkeys(find_runs(root))
    if not folders:
        shown = ", ".join(map(str, roots))
        hint = nearby(roots[0], holds_runs) or "; a run's folder has config.yaml, submission/ or checkpoints/"
        raise ArgumentError(f"no runs in {shown}{hint}")
    files = [read_files(folder) for folder in folders]
    queue, remark = ask_slurm([job for one in files for job in one.ids])
    return [run_status(one, queue) for one in files], remark


_WANTED = "; name a run's folder or one that holds runs"


def ask_slurm(ids: Sequence[str]) -> tuple[dict[str, slurm.JobInfo], str]:
    """What SLURM knows of jobs; a remark instead where it is here and does not answer."""
    if not ids or shutil.which("squeue") is None:
        return {}, ""
    try:
        return slurm.queue(ids), ""
    except slurm.SlurmError as error:
        return {}, f"states from the runs' own records only: {error}"


def show(found: Sequence[RunStatus], remark: str, console: Console) -> None:
    """The table, then why runs failed."""
    common = Path(os.path.commonpath([Path(status.run).absolute() for status in found]))
    base = common.parent if len(found) == 1 else common
    name = StatusColumn("run", lambda s: _name(s, base), 0, right=False)
    columns = fitting((name, *COLUMNS), found, console.width)
    table = Table(box=None, padding=(0, SPACE - 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(
            column.title, justify="right" if column.right else "left", no_wrap=True, overflow="ellipsis", min_width=4
        )
    for status in found:
        style = "red" if status.state in BAD else STYLES.get(status.state, "")
        table.add_row(*(escape(column.text(status)) for column in columns), style=style)
    console.print(table)
    for status in found:
        if status.why:
            console.print(escape(f"\n{_name(status, base)}: {status.state}"), style="bold", soft_wrap=True)
            for line in status.why:
                console.print(escape(f"  {printable_line(line)}"), soft_wrap=True)
    if remark:
        console.print(escape(f"\n{remark}"), style="yellow", soft_wrap=True)


def fitting(columns: Sequence[StatusColumn], found: Sequence[RunStatus], width: int) -> tuple[StatusColumn, ...]:
    """The columns that a terminal has room for; the least important ones give way, the run's name is cut last."""
    widths = {c.title: max(len(c.title), *(len(c.text(s)) for s in found)) + SPACE - 1 for c in columns}
    shown = [c for c in columns if not c.rank or any(c.text(s) for s in found)]  # no column that is empty for all runs
    for column in sorted(shown, key=lambda c: -c.rank):
        if sum(widths[c.title] for c in shown) <= width or column.rank <= 1:
            break
        shown.remove(column)
    return tuple(shown)


def _name(status: RunStatus, base: Path) -> str:
    return printable_line(os.path.relpath(Path(status.run).absolute(), base))


def _steps(status: RunStatus) -> str:
    if status.step is None and status.num_steps is None:
        return ""
    return f"{status.step or 0}/{'?' if status.num_steps is None else status.num_steps}"


def _checkpoint(status: RunStatus) -> str:
    if status.checkpoint_step is None or status.checkpoint_age_s is None:
        return ""
    return f"{status.checkpoint_step}, {duration(status.checkpoint_age_s)} ago"


def duration(seconds: float) -> str:
    """E.g. "40s", "12m", "3h05m", "2d04h"."""
    minutes, hours = round(seconds / 60), round(seconds / 60) // 60
    if seconds < 100:
        return f"{seconds:.0f}s"
    if hours < 1:
        return f"{minutes}m"
    if hours < 48:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{hours // 24}d{hours % 24:02d}h"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


COLUMNS = (
    StatusColumn("state", lambda s: s.state, 1, right=False),
    StatusColumn("job", lambda s: s.job or "", 8, right=False),
    StatusColumn("where", lambda s: s.where, 9, right=False),
    StatusColumn("step", _steps, 1),
    StatusColumn("loss", lambda s: _number(s.loss, ".3f"), 2),
    StatusColumn("acc", lambda s: _number(s.accuracy, ".3f"), 4),
    StatusColumn("samples/s", lambda s: _number(s.samples_per_s, ".1f"), 5),
    StatusColumn("wait", lambda s: _number(s.data_wait_share, ".0%"), 6),
    StatusColumn("left", lambda s: "" if s.eta_s is None else duration(s.eta_s), 2),
    StatusColumn("checkpoint", _checkpoint, 7),
    StatusColumn("eval", lambda s: f"{s.evaluations_done}/{s.evaluations}" if s.evaluations else "", 3),
    StatusColumn("starts", lambda s: str(s.attempts) if s.attempts > 1 else "", 10),
)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
