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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from common.run_files import RESULTS_FILE
from configs.load import ConfigError, dump, load
from configs.schema import PRETRAIN_CHOICES, EvaluateConfig, PretrainConfig
from data.storage.shards import ShardError, load_manifest
from engine.downstream.confusion import LabelError
from engine.downstream.protocols import ORDER, TOWERS, Initialisation, Tower
from engine.downstream.results import Result, ResultsError, read_results, write_results
from launchers.cli import guarded
from launchers.evaluation.common import Evaluation, Family, Progressing, device_of
from launchers.evaluation.images import measure_images
from launchers.evaluation.networks import (
    check_alike,
    check_tower,
    open_source,
    pretrained_initialisation,
    random_initialisation,
    run_folder_of,
)
from launchers.evaluation.registration_task import measure_registration
from launchers.evaluation.sweeps import measure_sweeps
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


@contextmanager
def shown_progress(console: Console) -> Iterator[Callable[[float, str], None]]:
    """A bar with a time estimate on a terminal; a line for each new piece of work in a log file."""
    if not console.is_terminal:
        last = [""]

        def line(share: float, text: str) -> None:
            if text != last[0]:
                console.print(f"{share:4.0%}  {text}")
                last[0] = text

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("reading", total=1.0)
        yield lambda share, text: bar.update(task, completed=share, description=text)
        bar.update(task, completed=1.0, description="evaluated")


def evaluate_runs(
    checkpoints: Sequence[Path],
    config: EvaluateConfig,
    *,
    chosen: tuple[str, ...] = (),
    progress: Progressing | None = None,
) -> list[Result]:
    """Measure pre-trained networks and random initialisation under the same budget, and write the results down.

    Args:
        checkpoints: folders of runs or checkpoints, repetitions of one method.
        config: protocols.
        chosen: how the checkpoints were chosen, see `Result.chosen`.
        progress: see `Progressing`.

    Returns:
        The results that answer this call, measured now or before.

    Raises:
        ConfigError: settings that do not fit the data or each other.
        ShardError: no such set or split, an unlabelled set, or damaged samples.
        CheckpointError: no usable weights, or checkpoints that are no repetitions of each other.
        DivergenceError: training diverged at every learning rate.
    """
    sources = [open_source(path) for path in checkpoints]
    check_alike(sources)

    def of_tower(tower: Tower) -> list[Initialisation]:
        random = [random_initialisation(sources[0].config, config, tower)] if config.random else []
        return [pretrained_initialisation(sources, tower, chosen), *random]

    return _measure(of_tower, sources[0].config, config, results_file(checkpoints[0], config), progress)


def evaluate_random(
    run_config: PretrainConfig, config: EvaluateConfig, path: Path, *, progress: Progressing | None = None
) -> list[Result]:
    """Measure random initialisation of a run's networks; no checkpoint is needed.

    Args:
        run_config: gives the networks, their input and the set (unless `config` names another).
        config: protocols.
        path: results file.
        progress: see `Progressing`.

    Returns:
        One record a protocol, measured now or before.

    Raises:
        ConfigError, ShardError, DivergenceError: as `evaluate_runs`.
    """
    return _measure(
        lambda tower: [random_initialisation(run_config, config, tower)], run_config, config, path, progress
    )


FAMILIES: dict[Tower, Family] = {
    "backbone": measure_sweeps,
    "image_backbone": measure_images,
    "objective": measure_registration,
}
"""Tower -> what measures it."""


def _measure(
    inits: Callable[[Tower], list[Initialisation]],
    run_config: PretrainConfig,
    config: EvaluateConfig,
    path: Path,
    progress: Progressing | None,
) -> list[Result]:
    towers = list(dict.fromkeys(TOWERS[p] for p in ORDER if p in config.protocols))
    for tower in towers:
        check_tower(run_config, tower, config.protocols)
    manifest = load_manifest(config.data.shards or run_config.data.shards, config.data.cache or run_config.data.cache)
    wanted: list[Result] = []
    try:
        for number, tower in enumerate(towers):
            evaluation = Evaluation(
                manifest=manifest,
                run=run_config,
                config=config,
                folder=path.parent,
                device=device_of(config.device),
                known=read_results(path) if path.exists() else [],
                progress=_part_of(progress, number, len(towers)),
            )
            for result in FAMILIES[tower](inits(tower), evaluation):
                wanted.append(result)
                if result not in evaluation.known:
                    write_results(path, [result])
    except LabelError as error:
        raise ShardError(f"{manifest.root}: {error}") from error
    except ResultsError as error:
        raise ConfigError(f"{error}; mend or remove the file, or give another with results=...") from error
    return wanted


def _part_of(progress: Progressing | None, number: int, count: int) -> Progressing | None:
    """A listener to one of several equal parts of the work."""
    if progress is None or count == 1:
        return progress
    return lambda share, text: progress((number + share) / count, text)


def results_file(checkpoint: str | Path, config: EvaluateConfig) -> Path:
    """Where results of a run or checkpoint go."""
    return Path(config.results) if config.results is not None else run_folder_of(Path(checkpoint)) / RESULTS_FILE


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
