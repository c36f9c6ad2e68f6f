"""`tandem report RUN_OR_FOLDER... [--out-dir DIR]`: all results of any number of runs in one table and one page.

Searches the folders for results.json and for pre-training runs, and finds the random-initialisation rows that lie
beside the runs. Prints the table; --markdown prints it as markdown; --out writes one self-contained HTML file with
tables, curves, pictures and how the numbers were made, and the same in markdown beside it; --out-dir writes both as
report.html and report.md, and TensorBoard's table of hyper-parameters. Runs that differ in their seed alone become one
row with mean and spread; what failed is named with its reason.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from configs.load import ConfigError
from data.storage.shards import ShardError, replace_file
from engine.downstream.results import FILE_NAME, Result, ResultsError, read_results
from engine.errors import CheckpointError
from launchers.cli import guarded
from launchers.drawing.canvas import RgbImage
from launchers.drawing.predictions import read_predictions
from launchers.drawing.recall import recall_pictures
from launchers.evaluation.selection import Selection
from launchers.reporting.hparams import FOLDER as HPARAMS
from launchers.reporting.hparams import HparamRun, metrics_of, write_hparams
from launchers.reporting.report_page import CURVES, RunReport, page
from launchers.reporting.report_text import text_report
from launchers.reporting.table import markdown, print_table
from launchers.reporting.troubles import Trouble, selections, troubles
from launchers.runs.attempts import FILE as ATTEMPTS_FILE
from launchers.runs.elements import BASELINES
from launchers.runs.job_record import JOBS_FILE
from launchers.runs.provenance import describe_environment
from launchers.runs.run_status import read_config
from launchers.runs.settings import labels, setting_of_tree
from launchers.training.run_folder import METRICS_FILE, is_run, run_pictures

_ENVIRONMENT = "environment.json"
_NOT_SEARCHED = {"checkpoints", "tensorboard", "teacher_cache", "labelled", "submission", "code", HPARAMS}
"""Folders without results of their own."""
_OF_RUNS = (METRICS_FILE, ATTEMPTS_FILE, JOBS_FILE)
"""Each of these makes a folder a run's."""
PAGE = "report.html"


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = argparse.ArgumentParser(
        prog="tandem report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("folders", nargs="+", metavar="RUN_OR_FOLDER", help="searched with all folders inside")
    where = p.add_mutually_exclusive_group()
    where.add_argument("--out", metavar="FILE.html", help="write the page there, and FILE.md beside it")
    where.add_argument("--out-dir", metavar="DIR", help="write report.html, report.md and TensorBoard's hparams there")
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
    found = look([Path(folder) for folder in options.folders])
    # A pipe has no width of its own; a table squeezed to 80 columns is of no use in a file.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if options.markdown:
        print(markdown(found.results, found.labels), end="")
    else:
        print_table(found.results, console, found.labels)
        for trouble in found.trouble:
            console.print(f"{trouble.run} ({trouble.state}): {'; '.join(trouble.why)}", markup=False, soft_wrap=True)
    if options.out is None and options.out_dir is None:
        return 0
    html = Path(options.out) if options.out is not None else Path(options.out_dir) / PAGE
    written = write_files(found, html, options.title, _made(["report", *arguments]), options.pictures)
    if options.out_dir is not None:
        write_hparams(html.parent, hparam_runs(found))
    size = html.stat().st_size / 2**20
    console.print(
        f"{' and '.join(map(str, written))}: {size:.1f} MiB, {len(found.results)} results, {len(found.runs)} runs",
        markup=False,
        soft_wrap=True,
    )
    return 0


def write_report(folders: Sequence[Path], out: Path, *, title: str, pictures: int = 1) -> None:
    """All that a report is, in one folder: report.html, report.md, TensorBoard's hparams.

    Args:
        folders: runs, or folders of runs.
        out: where to.
        title: heading.
        pictures: validation samples to draw of each run.

    Raises:
        ConfigError: nothing to report, or a damaged file.
    """
    found = look(folders)
    command = ["report", *map(str, folders), "--out-dir", str(out)]
    write_files(found, out / PAGE, title, _made(command), pictures)
    write_hparams(out, hparam_runs(found))


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a report is made of.

    Attributes:
        results: downstream results of all runs, random initialisation included.
        runs: folders by name.
        configs: resolved config of each run, as far as there is one.
        labels: setting of pre-training -> text that tells it from others.
        chosen: how the best checkpoint was chosen, by run.
        trouble: what is missing, and why.
    """

    results: list[Result]
    runs: dict[str, Path]
    configs: dict[str, dict[str, Any]]
    labels: dict[str, str]
    chosen: dict[str, Selection]
    trouble: list[Trouble]


def look(folders: Sequence[Path]) -> Found:
    """Find everything.

    Raises:
        ConfigError: nothing to report, or a damaged file.
    """
    try:
        results, runs = gather(folders)
    except ResultsError as error:
        raise ConfigError(f"{error}; mend or remove the file") from error
    if not results and not runs:
        raise ConfigError(
            f"{', '.join(map(str, folders))}: found neither {FILE_NAME} nor {METRICS_FILE}; expected folders that "
            "`tandem pretrain` or `tandem evaluate` wrote"
        )
    configs = {name: read_config(folder) for name, folder in runs.items()}
    return Found(
        results=results,
        runs=runs,
        configs=configs,
        labels=labels({setting_of_tree(config): config for config in configs.values() if config}),
        chosen=selections(runs),
        trouble=troubles(runs),
    )


def write_files(found: Found, html: Path, title: str, made: dict[str, str], pictures: int) -> tuple[Path, Path]:
    """The page and the text beside it; their paths."""
    html.parent.mkdir(parents=True, exist_ok=True)
    text = html.with_suffix(".md")
    reports = [describe_run(name, folder, pictures) for name, folder in found.runs.items()]
    more: dict[str, Any] = {"labels": found.labels, "chosen": found.chosen, "trouble": found.trouble}
    replace_file(html, page(title, made, found.results, reports, **more).encode())
    replace_file(text, text_report(title, made, found.results, reports, **more).encode())
    return html, text


def hparam_runs(found: Found) -> list[HparamRun]:
    """Lines of TensorBoard's table of hyper-parameters: runs with a config."""
    made = []
    names = [folder.name for folder in found.runs.values()]
    for name, folder in found.runs.items():
        inside = {r.identity for r in gather([folder])[0] if r.pretrained}
        # Results of several runs may lie in one file elsewhere; then the checkpoint's name says whose they are.
        by_name = [folder.name] if names.count(folder.name) == 1 else []
        own = [
            r
            for r in found.results
            if r.identity in inside or (by_name and [c.partition("/")[0] for c in r.checkpoint] == by_name)
        ]
        if found.configs[name]:
            metrics = metrics_of(own, found.results)
            made.append(HparamRun(name=name, config=found.configs[name], metrics=metrics))
    return made


def gather(folders: Sequence[Path]) -> tuple[list[Result], dict[str, Path]]:
    """All results (each once) and all pre-training runs below some folders, with the baselines beside the runs.

    Of rows in a folder `baselines`, shared by all runs around it, those count that a result here is compared with.

    Args:
        folders: folders, or results files.

    Returns:
        Results; run folders by the shortest name that tells them apart.

    Raises:
        ConfigError: a folder does not exist.
        ResultsError: a damaged results file.
    """
    results: dict[tuple[object, ...], Result] = {}
    shared: dict[tuple[object, ...], Result] = {}
    runs: dict[Path, None] = {}
    for folder in folders:
        if not folder.exists():
            raise ConfigError(f"{folder}: no such file or folder")
        for found in [folder] if folder.is_file() else _search(folder):
            if found.name in _OF_RUNS:
                runs[found.parent.resolve()] = None
            else:
                _take(results if BASELINES not in found.parts[-3:-1] else shared, read_results(found))
    for folder in dict.fromkeys(run.parent / BASELINES for run in runs):
        for found in sorted(folder.glob(f"*/{FILE_NAME}")):
            _take(shared, read_results(found))
    compared = {(r.protocol, r.fingerprint) for r in results.values() if r.pretrained}
    needed = [r for r in shared.values() if not compared or (r.protocol, r.fingerprint) in compared]
    _take(results, needed)
    return list(results.values()), _names(list(runs))


def _take(results: dict[tuple[object, ...], Result], found: Sequence[Result]) -> None:
    """The same measurement may lie in several files; of repeated ones the newest counts."""
    for result in found:
        kept = results.get(result.identity)
        if kept is None or result.date >= kept.date:
            results[result.identity] = result


def _search(folder: Path) -> Iterator[Path]:
    for name in (FILE_NAME, *_OF_RUNS):
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
    lines = list(read_metrics(folder / METRICS_FILE)) if (folder / METRICS_FILE).is_file() else []
    curves, last = {}, dict[str, float]()
    for metric, title in CURVES:
        have = [line for line in lines if metric in line]
        if have:
            values = [math.nan if line[metric] is None else float(line[metric]) for line in have]
            curves[metric] = ([float(line["step"]) for line in have], values)
            if finite := [value for value in values if math.isfinite(value)]:
                last[title] = finite[-1]
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
    pictures = {**pictures, **recall_pictures(folder), **read_predictions(folder)}
    return RunReport(name=name, facts=facts, curves=curves, pictures=pictures, remark=remark, last=last)


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
    made = {"date": str(environment["date"]), "command": shlex.join(["tandem", *arguments])}
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
