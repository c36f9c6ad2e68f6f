"""`tandem report`: all results of any number of runs in one table and one page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from common.printable import printable
from configs.load import ArgumentError
from launchers.cli import guarded
from launchers.options.report import parser
from launchers.reporting.collect import collect
from launchers.reporting.hparams import write_hparams
from launchers.reporting.report_files import hparam_runs, made_by, write_files
from launchers.reporting.table import markdown, print_table
from launchers.runs.files import REPORT_PAGE
from launchers.runs.terminal import terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    page = next((folder for folder in options.folders if folder.endswith(".html")), None)
    if page is not None:
        raise ArgumentError(f"{page}: expected folders of runs; the page to write is given as --out {page}")
    sources = collect([Path(folder) for folder in options.folders])
    # A pipe has no width of its own; a table squeezed to 80 columns is of no use in a file.
    console = terminal(width=160)
    if options.markdown:
        print(printable(markdown(sources.results, sources.labels)), end="")
    else:
        print_table(sources.results, console, sources.labels)
        for trouble in sources.trouble:
            console.print(f"{trouble.run} ({trouble.state}): {'; '.join(trouble.why)}", markup=False, soft_wrap=True)
    if options.out is None and options.out_dir is None:
        return 0
    html = Path(options.out) if options.out is not None else Path(options.out_dir) / REPORT_PAGE
    written = write_files(sources, html, options.title, made_by(["report", *arguments]), options.pictures)
    if options.out_dir is not None:
        write_hparams(html.parent, hparam_runs(sources))
    size = html.stat().st_size / 2**20
    results, runs = len(sources.results), len(sources.runs)
    console.print(
        f"{' and '.join(map(str, written))}: {size:.1f} MiB, {results} result{'s' if results != 1 else ''}, "
        f"{runs} run{'s' if runs != 1 else ''}",
        markup=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
