"""`tandem doctor`: what this machine has, what each choice would run, what is missing.

Needs no package beside Python's own: where one is missing or does not load, it says so.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.printable import say
from launchers.cli import FAILURE, guarded
from launchers.machine.cluster import cluster_findings
from launchers.machine.findings import Finding, anonymous
from launchers.machine.limits import file_findings, group_limits, machine_findings, usable_cores
from launchers.machine.packages import package_findings
from launchers.machine.probe import probed
from launchers.options.doctor import parser

PIPE_WIDTH = 160
"""Columns where the output is no terminal."""
MARKS = {"fine": "ok", "note": "-", "missing": "missing", "broken": "BROKEN"}
"""State -> the word that stands for it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 1 where something that training needs is broken."""
    options = parser().parse_args(argv)
    found = [_anonymous(finding) for finding in examined(Path(options.runs))]
    if options.json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=1))
    else:
        say(told(found, shutil.get_terminal_size((PIPE_WIDTH, 0)).columns))
    return FAILURE if any(one.state == "broken" for one in found) else 0


def examined(runs: Path) -> list[Finding]:
    """Everything, those of a section together."""
    limits = group_limits()
    found = [
        *package_findings(),
        *machine_findings(limits),
        *file_findings(runs, cache_folders()),
        *probed(),
        *cluster_findings(),
        *_workers(usable_cores(limits)),
    ]
    sections = list(dict.fromkeys(one.section for one in found))
    return sorted(found, key=lambda one: sections.index(one.section))


def cache_folders() -> dict[str, Path]:
    """What is kept between runs, outside of their folders."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    folders = {"compiled kernels": cache / "tandem" / "native", "temporary files": Path(tempfile.gettempdir())}
    for name, variable in (("Triton's cache", "TRITON_CACHE_DIR"), ("torch's extensions", "TORCH_EXTENSIONS_DIR")):
        if variable in os.environ:
            folders[name] = Path(os.environ[variable])
    return folders


def _workers(cores: float) -> Iterator[Finding]:
    spare = max(int(cores) - 1, 0)
    value = f"up to {spare} of all processes on this machine together: {cores:g} cores, one for each training process"
    yield Finding(section="what settings would run", name="data.num_workers", value=value)


def _anonymous(finding: Finding) -> Finding:
    return dataclasses.replace(finding, value=anonymous(finding.value), remedy=anonymous(finding.remedy))


def told(found: Sequence[Finding], width: int) -> str:
    """The findings by section, then what to do about them."""
    names, marks = max(len(one.name) for one in found), max(map(len, MARKS.values()))
    indent = names + marks + 4
    lines: list[str] = []
    section = ""
    for one in found:
        if one.section != section:
            section = one.section
            lines += ["", section.upper()] if lines else [section.upper()]
        start = f"{one.name:<{names}}  {MARKS[one.state]:<{marks}}  "
        text = " ".join(one.value.split())
        lines += textwrap.wrap(
            text, max(width, indent + 40), initial_indent=start, subsequent_indent=" " * indent, break_on_hyphens=False
        )
    for state, title in (("broken", "training will not work"), ("missing", "could be better"), ("note", "optional")):
        wanting = [f"  {one.name}: {one.remedy}" for one in found if one.state == state and one.remedy]
        lines += ["", title.upper(), *wanting] if wanting else []
    broken = sum(one.state == "broken" for one in found)
    return "\n".join([*lines, "", f"{broken} broken" if broken else "nothing that training needs is broken"])


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
