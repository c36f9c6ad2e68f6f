"""Writes a report: the page, the text beside it, TensorBoard's table of hyper-parameters."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from common.files import replace_file
from common.printable import printable
from configs.load import ConfigError
from data.storage.shard import ShardError
from engine.errors import CheckpointError
from launchers.drawing.canvas import RgbImage
from launchers.drawing.predictions import read_predictions
from launchers.drawing.recall import recall_pictures
from launchers.reporting.collect import ReportSources, collect, gather
from launchers.reporting.detection_report import describe_detector
from launchers.reporting.hparams import HparamRun, metrics_of, write_hparams
from launchers.reporting.report_page import CURVES, MOST_PREDICTIONS, RunReport, page
from launchers.reporting.report_text import text_report
from launchers.reporting.run_facts import machine_facts, run_facts
from launchers.reporting.run_pictures import run_pictures
from launchers.runs.files import REPORT_PAGE, is_run, read_config, read_metrics
from launchers.runs.provenance import describe_environment


def write_report(folders: Sequence[Path], out: Path, *, title: str, pictures: int = 1) -> None:
    """All that a report is, in one folder: report.html, report.md, TensorBoard's hparams.

    Raises:
        ConfigError: nothing to report, or a damaged file.
    """
    sources = collect(folders)
    command = ["report", *map(str, folders), "--out-dir", str(out)]
    write_files(sources, out / REPORT_PAGE, title, made_by(command), pictures)
    write_hparams(out, hparam_runs(sources))


def write_files(
    sources: ReportSources, html: Path, title: str, made: dict[str, str], pictures: int
) -> tuple[Path, Path]:
    """The page and the text beside it; their paths."""
    html.parent.mkdir(parents=True, exist_ok=True)
    text = html.with_suffix(".md")
    reports = [describe_run(name, folder, pictures) for name, folder in sources.runs.items()]
    predicted = read_predictions(sources.evaluated, MOST_PREDICTIONS)
    # Whoever prints the files is as safe as a browser is, and what UTF-8 has no code for is gone, too.
    replace_file(html, printable(page(sources, reports, title, made, *predicted)).encode())
    replace_file(text, printable(text_report(sources, reports, title, made)).encode())
    return html, text


def hparam_runs(sources: ReportSources) -> list[HparamRun]:
    """Lines of TensorBoard's table of hyper-parameters: runs with a config."""
    made = []
    names = [folder.name for folder in sources.runs.values()]
    for name, folder in sources.runs.items():
        inside = {r.identity for r in gather([folder])[0] if r.pretrained}
        # Results of several runs may lie in one file elsewhere; then the checkpoint's name says whose they are.
        by_name = [folder.name] if names.count(folder.name) == 1 else []
        own = [
            r
            for r in sources.results
            if r.identity in inside or (by_name and [c.partition("/")[0] for c in r.checkpoint] == by_name)
        ]
        if sources.configs[name]:
            metrics = metrics_of(own, sources.results)
            made.append(HparamRun(name=name, config=sources.configs[name], metrics=metrics))
    return made


def describe_run(name: str, folder: Path, num_pictures: int) -> RunReport:
    """Curves, facts and pictures of a run.

    A run whose networks or shards are gone is reported without pictures, and says why.
    """
    notes: list[str] = []
    lines = read_metrics(folder, notes)
    curves, last = {}, dict[str, float]()
    for metric, title, _ in CURVES:
        have = [line for line in lines if metric in line]
        if have:
            values = [math.nan if line[metric] is None else float(line[metric]) for line in have]
            curves[metric] = ([float(line["step"]) for line in have], values)
            if finite := [value for value in values if math.isfinite(value)]:
                last[title] = finite[-1]
    facts = run_facts(folder, notes)
    times = [line["time"] for line in (*lines[:1], *lines[-1:]) if line.get("time") is not None]
    if len(times) == 2:
        minutes = (times[1] - times[0]) / 60
        facts["time"] = f"{minutes:.1f} min from the first log line to the last"
    detection = describe_detector(folder, read_config(folder), notes)
    pictures: dict[str, RgbImage] = {}
    if num_pictures > 0 and is_run(folder):
        try:
            pictures, why_not = run_pictures(folder, num_pictures)
            notes += [why_not] if why_not else []
        except (CheckpointError, ShardError, ConfigError, OSError) as error:
            notes.append(f"no pictures: {error}")
    try:
        pictures = {**pictures, **recall_pictures(folder)}
    except ConfigError as error:
        notes.append(str(error))
    remark = "; ".join(notes)
    return RunReport(
        name=name, facts=facts, curves=curves, pictures=pictures, remark=remark, last=last, detection=detection
    )


def made_by(arguments: Sequence[str]) -> dict[str, str]:
    """How a report came about: date, command, commit, machine, software."""
    environment = describe_environment()
    made = {"date": str(environment["date"]), "command": shlex.join(["tandem", *arguments])}
    return made | machine_facts(environment)
