"""`tandem evaluate CHECKPOINT... CONFIG [section.field=value ...]`: what pre-training gained, beside no pre-training.

CHECKPOINT is a run's folder (its newest checkpoint) or a checkpoint's folder. Several are taken as repetitions of one
method (other seeds): the r-th seed of a protocol uses the r-th of them. Results are added to results.json; what is
there already is not measured again. The lists of labelled sweeps that fine-tuning drew lie beside it.

With --random-only no checkpoint is needed: CHECKPOINT is a run's folder or config.yaml, and only random initialisation
of its networks is measured. data.holdout=true measures on logs held out from the train split.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from configs.load import ConfigError, dump, load
from configs.schema import PRETRAIN_CHOICES, EvaluateConfig, PretrainConfig
from launchers.cli import guarded
from launchers.evaluation.measure import evaluate_random, evaluate_runs, results_file, shown_progress
from launchers.reporting.table import print_table
from launchers.runs.files import CONFIG_FILE


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = argparse.ArgumentParser(
        prog="tandem evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="folder of a run or of a checkpoint")
    p.add_argument("config", help="YAML file of the protocols, for example configs/downstream/street.yaml")
    p.add_argument("--random-only", action="store_true", help="random initialisation of the run's network alone")
    p.add_argument("--show-config", action="store_true", help="print the resolved config and stop")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 when all results are written."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Overrides may stand anywhere; argparse cannot tell them from checkpoints.
    overrides = [a for a in arguments if re.match(r"[a-z_][a-z0-9_.]*=", a)]
    options = parser().parse_args([a for a in arguments if a not in overrides])
    config = load(EvaluateConfig, options.config, overrides)
    if options.show_config:
        print(dump(config), end="")
        return 0
    console = Console(highlight=False)
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
