"""`tandem evaluate`: what pre-training gained, beside no pre-training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from configs.find import SUFFIXES, config_names
from configs.load import ConfigError, dump, load
from configs.schema import PRETRAIN_CHOICES, EvaluateConfig, PretrainConfig
from launchers.cli import guarded
from launchers.evaluation.measure import evaluate_random, evaluate_runs, results_file, shown_progress
from launchers.options.evaluate import parse
from launchers.reporting.table import print_table
from launchers.runs.files import CONFIG_FILE
from launchers.runs.terminal import terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 when all results are written."""
    options = parse(sys.argv[1:] if argv is None else argv)
    first = options.checkpoints[0]
    if Path(options.config).is_dir() and (first.endswith(SUFFIXES) or first in config_names("downstream")):
        raise ConfigError(
            f"{options.config} is a folder and {first} a config: the run comes first, then the protocols; did you mean "
            f"tandem evaluate {options.config} {first}?"
        )
    config = load(EvaluateConfig, options.config, options.overrides)
    if options.show_config:
        print(dump(config), end="")
        return 0
    console = terminal()
    paths = [Path(c) for c in options.checkpoints]
    with shown_progress(console) as progress:
        if options.random_only:
            path = results_file(_run_of(paths), config)
            results = evaluate_random(_config_of(paths[0]), config, path, progress=progress)
        else:
            path = results_file(paths[0], config)
            results = evaluate_runs(paths, config, progress=progress)
    print_table(results, console)
    console.print(f"results: {path}", soft_wrap=True)
    return 0


def _run_of(paths: Sequence[Path]) -> Path:
    """The run that `--random-only` is about."""
    if len(paths) > 1:
        raise ConfigError(f"--random-only takes one run, got {len(paths)}: random networks are no repetitions of runs")
    return paths[0].parent if paths[0].is_file() else paths[0]


def _config_of(path: Path) -> PretrainConfig:
    """The config of a run's folder, or of the YAML file itself."""
    return load(PretrainConfig, path / CONFIG_FILE if path.is_dir() else path, choices=PRETRAIN_CHOICES)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
