"""`python -m launchers.cluster.sbatch_check CONFIG [section.field=value ...]`: asked by the batch scripts first.

Looks at the config, the shards and the run's folder; a mistake is one message and exit code 2 or 1. Prints the folder
of the run, which the batch script needs and the config knows, and that of its first stage on the next line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launchers.cli import guarded
from launchers.cluster.dry_check import check_folder, check_runs, check_spelling
from launchers.training.stages import first_folder
from launchers.training.train import load_any_run


def main(argv: Sequence[str] | None = None) -> int:
    """Check; prints the folders.

    Raises:
        ConfigError: a mistake in the config, or a folder that cannot be written or that SLURM cannot take.
        ShardError: no prepared set where the config says.
    """
    parser = argparse.ArgumentParser(prog="python -m launchers.cluster.sbatch_check", description=__doc__)
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    options = parser.parse_args(argv)
    config = load_any_run(options.config, options.overrides)
    check_runs([config], one_batch=False)
    folders = [config.run_dir, *([] if config.first is None else [str(first_folder(config))])]
    for folder in folders:
        check_spelling(Path(folder), holds_logs=False)
        check_folder(Path(folder))
    print("\n".join(folders))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
