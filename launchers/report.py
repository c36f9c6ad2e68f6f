"""`tandem report RUN_OR_FOLDER... [--out report.html]`: all results of any number of runs in one table and one page.

Searches the folders for results.json and for pre-training runs (metrics.jsonl). Prints the table; --markdown prints it
as markdown; --out writes one self-contained HTML file with tables, curves, pictures and how the numbers were made.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from configs.load import ConfigError
from data.shards import ShardError, replace_file
from engine.downstream.results import FILE_NAME, Result, ResultsError, read_results
from engine.errors import CheckpointError
from launchers.cli import guarded
from launchers.drawing import RgbImage
from launchers.provenance import describe_environment
from launchers.report_page import CURVES, RunReport, page
from launchers.run_folder import METRICS_FILE, is_run, run_pictures
from launchers.table import markdown, print_table

_ENVIRONMENT = "environment.json"
_NOT_SEARCHED = {"checkpoints", "tensorboard", "teacher_cache", "labelled"}
"""Folders without results of their own."""


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = argparse.ArgumentParser(
        prog="tandem report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("folders", nargs="+", metavar="RUN_OR_FOLDER", help="searched with all folders inside")
    p.add_argument("--out", metavar="FILE.html", help="write the page there")
    p.add_argument("--markdown", action="store_true", help="print markdown instead of a drawn table")
    p.add_argument("--title", default="Tandem: what pre-training gained", help="heading of the page")
    p.add_argument(
        "--pictures",
        type=int,
        default=1,
        metavar="N",
        help="validation samples to draw of each run, with its networks (default: %(default)s)",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    try:
        results, runs = gather([Path(folder) for folder in options.folders])
    except ResultsError as error:
        raise ConfigError(f"{error}; mend or remove the file") from error
    if not results and not runs:
        raise ConfigError(
            f"{', '.join(options.folders)}: found neither {FILE_NAME} nor {METRICS_FILE}; expected folders that "
            "`tandem pretrain` or `tandem evaluate` wrote"
        )
    # A pipe has no width of its own; a table squeezed to 80 columns is of no use in a file.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if options.markdown:
        print(markdown(results), end="")
    else:
        print_table(results, console)
    if options.out is not None:
        out = Path(options.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        reports = [describe_run(name, folder, options.pictures) for name, folder in runs.items()]
        content = page(options.title, _made(arguments), results, reports).encode()
        replace_file(out, content)
        console.print(
            f"{out}: {len(content) / 2**20:.1f} MiB, {len(results)} results, {len(runs)} runs", soft_wrap=True
        )
    return 0


def gather(folders: Sequence[Path]) -> tuple[list[Result], dict[str, Path]]:
    """All results (each once) and all pre-training runs below some folders.

    Args:
        folders: folders, or results files.

    Returns:
        Results; run folders by the shortest name that tells them apart.

    Raises:
        ConfigError: a folder does not exist.
        ResultsError: a damaged results file.
    """
    results: dict[tuple[object, ...], Result] = {}
    runs: list[Path] = []
    for folder in folders:
        if not folder.exists():
            raise ConfigError(f"{folder}: no such file or folder")
        for found in [folder] if folder.is_file() else _search(folder):
            if found.name == METRICS_FILE:
                runs.append(found.parent.resolve())
                continue
            for result in read_results(found):
                # The same measurement may lie in several files; of repeated ones the newest counts.
                kept = results.get(result.identity)
                if kept is None or result.date >= kept.date:
                    results[result.identity] = result
    return list(results.values()), _names(list(dict.fromkeys(runs)))


def _search(folder: Path) -> Iterator[Path]:
    for name in (FILE_NAME, METRICS_FILE):
        if (folder / name).is_file():
            yield folder / name
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.is_symlink() and child.name not in _NOT_SEARCHED:
            yield from _search(child)


def _names(runs: Sequence[Path]) -> dict[str, Path]:
    names = [run.name for run in runs]
    return {run.name if names.count(run.name) == 1 else f"{run.parent.name}/{run.name}": run for run in runs}


def describe_run(name: str, folder: Path, num_pictures: int) -> RunReport:
    """Curves, facts and pictures of a pre-training run.

    A run whose networks or shards are gone is reported without pictures, and says why.
    """
    lines = list(read_metrics(folder / METRICS_FILE))
    curves = {}
    for metric, _ in CURVES:
        have = [line for line in lines if metric in line]
        if have:
            values = [math.nan if line[metric] is None else float(line[metric]) for line in have]
            curves[metric] = ([float(line["step"]) for line in have], values)
    facts = _facts(folder)
    if lines:
        facts["updates"] = str(lines[-1]["step"])
        minutes = (float(lines[-1]["time"]) - float(lines[0]["time"])) / 60
        facts["time"] = f"{minutes:.1f} min from the first log line to the last"
    pictures: dict[str, RgbImage] = {}
    remark = ""
    if num_pictures > 0 and is_run(folder):
        try:
            pictures, remark = run_pictures(folder, num_pictures)
        except (CheckpointError, ShardError, ConfigError) as error:
            remark = f"no pictures: {error}"
    return RunReport(name=name, facts=facts, curves=curves, pictures=pictures, remark=remark)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a metrics.jsonl; the last one may be cut short by a crash, then it is left out.

    Raises:
        ConfigError: a line before the last is no JSON object with a step.
    """
    texts = path.read_text().splitlines()
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            float(line["step"]), float(line["time"])
        except (ValueError, TypeError, KeyError) as error:
            if number == len(texts):
                return
            raise ConfigError(
                f"{path}, line {number}: expected a JSON object with step and time, got {text[:60]!r}"
            ) from error
        yield line


def _facts(folder: Path) -> dict[str, str]:
    path = folder / _ENVIRONMENT
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path}: not readable as JSON ({error})") from error
    facts = {"date": str(tree.get("date", "")), "command": shlex.join(map(str, tree.get("command", [])))}
    return facts | _machine(tree)


def _made(arguments: Sequence[str]) -> dict[str, str]:
    environment = describe_environment()
    made = {"date": str(environment["date"]), "command": shlex.join(["tandem", "report", *arguments])}
    return made | _machine(environment)


def _machine(tree: dict[str, Any]) -> dict[str, str]:
    git = tree.get("git")
    commit = f"{git['commit'][:12]}{' with changes' if git['dirty'] else ''}" if isinstance(git, dict) else "unknown"
    machine = f"{tree.get('processor')}, {tree.get('cores')} cores, {tree.get('memory_gib')} GiB"
    gpus = ", ".join(map(str, tree.get("gpus", [])))
    packages = ", ".join(f"{name} {v}" for name, v in dict(tree.get("packages", {})).items())
    return {
        "commit": commit,
        "machine": machine + (f", {gpus}" if gpus else ""),
        "software": f"python {tree.get('python')}, {packages}",
    }


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
