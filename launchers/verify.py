"""`tandem prepare --verify OUT [--repair]`: is a prepared set whole, and dropping what is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from configs.load import ConfigError
from data.preparing.early import skip_text
from data.preparing.pool import Progress as ShowProgress
from data.preparing.repair import Repaired, repair, undo_half, upgrade
from data.preparing.verify import VerifyReport, examples, save_report, verify
from launchers.options.verify import parser
from launchers.runs.terminal import drawn_late, terminal

_EXAMPLES = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Verify, repair if asked to; 1 when something was broken and still is.

    Raises:
        ConfigError: no worker.
        ShardError: the set cannot be read at all, or not be repaired.
    """
    options = parser().parse_args(argv)
    if options.workers < 1:
        raise ConfigError(f"--workers: got {options.workers}, expected at least 1")
    if not 0 <= options.fraction <= 1:
        raise ConfigError(f"--fraction: got {options.fraction:g}, expected 0 to 1")
    console = terminal(highlight=True)
    if options.repair and undo_half(options.out):
        console.print("an earlier repair was interrupted; its half-written table is undone")
    if options.upgrade and (kept := upgrade(options.out)):
        console.print(f"the manifest is written anew; kept: {', '.join(kept)}", highlight=False, soft_wrap=True)
    verdict = _verify(options.out, options.workers, options.fraction, console)
    if verdict.problems and options.repair:
        show_repaired(repair(verdict), console)
        verdict = _verify(options.out, options.workers, options.fraction, console)
    return 1 if verdict.problems else 0


def _verify(out: str, workers: int, fraction: float, console: Console) -> VerifyReport:
    with progress(console, "samples", f"verifying {out}") as show:
        verdict = verify(out, workers=workers, fraction=fraction, on_progress=show)
    show_report(verdict, save_report(verdict), console)
    return verdict


@contextmanager
def progress(console: Console, unit: str, title: str) -> Iterator[ShowProgress]:
    """A bar with done of all, time taken and time left; yields what shows (done, total, left out by reason) on it."""
    counts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    bar = Progress(*counts, *times, console=console)
    task = bar.add_task(title, total=None)  # until the first report says how many
    with drawn_late(bar) as draw:

        def show(done: int, total: int, skipped: Mapping[str, int]) -> None:
            draw()
            bar.update(
                task, completed=done, total=total, description=" ".join(filter(None, (title, skip_text(skipped))))
            )

        yield show


def show_report(verdict: VerifyReport, path: str, console: Console) -> None:
    """One row a reason."""
    looked = f"{verdict.num_samples} samples in {verdict.num_shards} shards, {verdict.seconds:.1f} s"
    if verdict.num_read < verdict.num_shards:
        looked += f"; looked into {verdict.num_read} of the shards"
    if not verdict.problems:
        console.print(f"{verdict.root} is whole: {looked}", highlight=False, soft_wrap=True)
        return
    table = Table(title=f"{verdict.root}: {len(verdict.broken_rows)} broken of {looked}")
    table.add_column("reason")
    table.add_column("found", justify="right")
    table.add_column("examples", overflow="fold")
    for reason, problems in verdict.by_reason().items():
        named = [
            f"{problem.key or problem.shard}{f' in {problem.shard}' if problem.key else ''} ({problem.detail:.120})"
            for problem in examples(problems, _EXAMPLES)
        ]
        table.add_row(reason, str(len(problems)), escape("\n".join(named)))
    console.print(table)
    console.print(f"all of them: {path}", highlight=False, soft_wrap=True)


def show_repaired(repaired: Repaired, console: Console) -> None:
    """What is gone, and where the old files are."""
    for reason, keys in repaired.dropped.items():
        more = f" and {len(keys) - _EXAMPLES} more" if len(keys) > _EXAMPLES else ""
        console.print(f"dropped {len(keys)} samples, {reason}: {', '.join(keys[:_EXAMPLES])}{more}", highlight=False)
    for what, names in (
        ("dropped shards", repaired.dropped_shards),
        ("new checksums", repaired.changed_shards),
        ("kept", repaired.kept),
    ):
        if names:
            console.print(f"{what}: {', '.join(names)}", highlight=False, soft_wrap=True)
