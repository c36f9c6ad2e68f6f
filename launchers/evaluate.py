"""`tandem evaluate`: what pre-training gained, beside no pre-training."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from common.run_files import RESULTS_FILE
from configs.dump import dump
from configs.find import SUFFIXES, config_names
from configs.load import ConfigError, load
from configs.runs import RunConfig, read_run
from configs.schema import EvaluateConfig
from launchers.cli import guarded
from launchers.evaluation.measure import evaluate_file, evaluate_random, evaluate_runs, results_file, shown_progress
from launchers.evaluation.weight_file import StatedByHand, WeightFile, like_config, open_weight_file
from launchers.options.evaluate import parse
from launchers.reporting.table import print_table
from launchers.runs.files import CONFIG_FILE
from launchers.runs.terminal import terminal

_WIDTH = 120
"""Of tables of detection metrics, which a pipe has no width for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 when all results are written."""
    options = parse(sys.argv[1:] if argv is None else argv)
    if options.detector is not None:
        return _rejudge(options)
    first = next(iter(options.checkpoints), "")
    if Path(options.config).is_dir() and (first.endswith(SUFFIXES) or first in config_names("downstream")):
        raise ConfigError(
            f"{options.config} is a folder and {first} a config: the run comes first, then the protocols; did you mean "
            f"tandem evaluate {options.config} {first}?"
        )
    config = load(EvaluateConfig, options.config, options.overrides)
    if options.out is not None:
        config = dataclasses.replace(config, results=str(Path(options.out) / RESULTS_FILE))
    if options.show_config:
        print(dump(config), end="")
        return 0
    console = terminal()
    paths = [Path(c) for c in options.checkpoints]
    file = None if options.weights is None else _file_of(options, config)
    with shown_progress(console) as progress:
        if file is not None:
            path = results_file(file.path, config)
            results = evaluate_file(file, config, path, progress=progress)
        elif options.random_only:
            path = results_file(_run_of(paths), config)
            results = evaluate_random(_config_of(paths[0]), config, path, progress=progress)
        else:
            path = results_file(paths[0], config)
            results = evaluate_runs(paths, config, progress=progress)
    print_table(results, console)
    console.print(f"results: {path}", soft_wrap=True)
    return 0


def _rejudge(options: argparse.Namespace) -> int:
    """What `--detector` asks for."""
    from launchers.evaluation.score_table import print_scores
    from launchers.finetuning.rejudge import rejudge

    console = terminal(width=_WIDTH)
    judged = rejudge(
        Path(options.detector),
        options.overrides,
        device=options.device,
        out=None if options.out is None else Path(options.out),
        submission=None if options.submission is None else Path(options.submission),
        tables=None if options.tables is None else Path(options.tables),
    )
    for scores in judged.scores.values():
        print_scores(scores, console)
    console.print(f"results: {judged.results}", soft_wrap=True)
    for place in judged.submissions:
        console.print(f"submission: {place}", soft_wrap=True)
    return 0


def _file_of(options: argparse.Namespace, config: EvaluateConfig) -> WeightFile:
    """The file that `--weights` names."""
    by_hand = StatedByHand(
        preset=options.backbone,
        leak=options.leak,
        like=None if options.like is None else like_config(options.like),
        intensity_scale=options.intensity_scale,
        intensity_offset=options.intensity_offset,
    )
    return open_weight_file(Path(options.weights), options.layout, config, by_hand)


def _run_of(paths: Sequence[Path]) -> Path:
    """The run that `--random-only` is about."""
    if len(paths) > 1:
        raise ConfigError(f"--random-only takes one run, got {len(paths)}: random networks are no repetitions of runs")
    return paths[0].parent if paths[0].is_file() else paths[0]


def _config_of(path: Path) -> RunConfig:
    """The config of a run's folder, or of the YAML file itself."""
    return read_run(path / CONFIG_FILE if path.is_dir() else path)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
