"""The jobs that follow a pre-training run: plain values that can be pickled, called on another machine, called again.

job.name     safe as a file name, no two jobs of a run share it
job.done()   the results are there already; nothing is measured to find out
job()        does it; what was measured before is not measured again. Raises after writing error.txt on failure
"""

from __future__ import annotations

import dataclasses
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from common.files import replace_file
from common.run_files import RESULTS_FILE, SUMS_FILE, list_checkpoints, step_of
from configs.load import ConfigError, load
from configs.runs import read_run
from configs.schema import EvaluateConfig
from engine.checkpoint import newest_intact
from engine.downstream.results import ResultsError, fingerprint, read_results
from engine.errors import CheckpointError
from launchers.evaluation.measure import evaluate_random, evaluate_runs, shown_progress
from launchers.evaluation.networks import identity_of
from launchers.evaluation.selection import read_selection, select_best
from launchers.reporting.report_files import write_report
from launchers.runs.files import CONFIG_FILE, ERROR_FILE, EVALUATIONS, SELECTION
from launchers.runs.terminal import terminal

_PICTURED_RUNS = 8
"""A report of more runs has no pictures: each needs the run's networks."""

logger = logging.getLogger("tandem.followup")


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """One downstream element of one run; results go to `<run>/evaluation/<name>/results.json`.

    Attributes:
        settings: the protocols (`EvaluateConfig`) as resolved YAML.
        select: measure the best checkpoint beside the last; `SelectBestJob` comes before.
    """

    run_dir: str
    name: str
    settings: str
    select: bool = False

    @property
    def folder(self) -> Path:
        """Where the element's files go."""
        return Path(self.run_dir) / EVALUATIONS / self.name

    def done(self) -> bool:
        """Whether all of its records are there, of the run's present checkpoints and with these settings."""
        written, checkpoints = self.folder / CONFIG_FILE, list_checkpoints(Path(self.run_dir))
        if not checkpoints or not written.is_file() or written.read_text(encoding="utf-8") != self.settings:
            return False
        selection = read_selection(Path(self.run_dir)) if self.select else None
        if self.select and selection is None:
            return False
        needed = {identity_of(c) for c in checkpoints[:1] if (c / SUMS_FILE).is_file()}
        needed |= {identity_of(c) for c in checkpoints if selection is not None and step_of(c) == selection.step}
        have = _records(self.folder)
        protocols = yaml.safe_load(self.settings)["protocols"]
        return bool(needed) and all((p, (identity,)) in have for p in protocols for identity in needed)

    def __call__(self) -> None:
        """Measure."""
        with _failures_noted(self.folder):
            config = _settings_in(self.folder, self.settings)
            for checkpoint, chosen in self._checkpoints():
                with shown_progress(terminal()) as progress:
                    evaluate_runs([checkpoint], config, chosen=chosen, progress=progress)

    def _checkpoints(self) -> list[tuple[Path, tuple[str, ...]]]:
        run_dir = Path(self.run_dir)
        last = newest_intact(run_dir)
        if last is None:
            raise CheckpointError(f"{run_dir}: no checkpoint to evaluate; was the run ever trained?")
        if not self.select:
            return [(last, ())]
        selection = read_selection(run_dir)
        if selection is None or selection.last != identity_of(last):
            raise CheckpointError(
                f"{run_dir / SELECTION}: the best checkpoint has not been chosen"
                f"{'' if selection is None else ' since the run went on'}; the job that selects comes first"
            )
        if selection.step == step_of(last):
            return [(last, ("best", "last"))]
        best = next((c for c in list_checkpoints(run_dir) if step_of(c) == selection.step), None)
        if best is None:
            raise CheckpointError(f"{run_dir}: the chosen checkpoint of step {selection.step} is no longer there")
        return [(best, ("best",)), (last, ("last",))]


@dataclass(frozen=True, kw_only=True)
class SelectBestJob:
    """Chooses a run's best checkpoint on logs held out from the train split; see `launchers.evaluation.selection`.

    Attributes:
        settings: the protocols of each downstream file as resolved YAML.
        every: updates between the checkpoints that take part.
        by: protocol that compares them.
    """

    run_dir: str
    settings: tuple[str, ...]
    every: int
    by: str

    @property
    def name(self) -> str:
        """Always the same: a run has one."""
        return "select-best"

    @property
    def folder(self) -> Path:
        """Where the outcome goes."""
        return Path(self.run_dir) / SELECTION

    @property
    def _identity(self) -> str:
        return fingerprint({"settings": self.settings, "every": self.every})

    def done(self) -> bool:
        """Whether the run's present checkpoints have been compared with these settings."""
        selection, checkpoints = read_selection(Path(self.run_dir)), list_checkpoints(Path(self.run_dir))
        if selection is None or not checkpoints or not (checkpoints[0] / SUMS_FILE).is_file():
            return False
        return selection.settings == self._identity and selection.last == identity_of(checkpoints[0])

    def __call__(self) -> None:
        """Measure and choose."""
        with _failures_noted(self.folder):
            configs = [_settings_in(self.folder / str(n), settings) for n, settings in enumerate(self.settings)]
            run_dir, identity = Path(self.run_dir), self._identity
            with shown_progress(terminal()) as progress:
                outcome = select_best(
                    run_dir, configs, every=self.every, by=self.by, settings=identity, progress=progress
                )
            scores = ", ".join(f"step {step} {outcome.measure.text(s)}" for step, s in outcome.scores.items())
            print(f"best on {outcome.split}: step {outcome.step} ({self.by}, {outcome.measure.heading}: {scores})")


@dataclass(frozen=True, kw_only=True)
class BaselineJob:
    """Random-initialisation rows of one element, shared by all runs with the same key.

    Attributes:
        key: what the rows depend on, see `baseline_key`.
        folder: where the rows go.
        run: config of one of the runs (`RunConfig`) as resolved YAML: its 3D network, its voxels.
        settings: the protocols (`EvaluateConfig`) as resolved YAML.
    """

    key: str
    element: str
    folder: str
    run: str
    settings: str

    @property
    def name(self) -> str:
        """Of the element, with the key."""
        return f"{self.element}-{self.key}"

    def done(self) -> bool:
        """Whether all of its records are there (the key holds all that they depend on)."""
        have = _records(Path(self.folder))
        return all((p, ()) in have for p in yaml.safe_load(self.settings)["protocols"])

    def __call__(self) -> None:
        """Measure."""
        folder = Path(self.folder)
        with _failures_noted(folder):
            config = _settings_in(folder, self.settings)
            replace_file(folder / "run.yaml", self.run.encode())
            run = read_run(folder / "run.yaml")
            with shown_progress(terminal()) as progress:
                evaluate_random(run, config, folder / RESULTS_FILE, progress=progress)


@dataclass(frozen=True, kw_only=True)
class ReportJob:
    """Writes report.md, report.html and TensorBoard's table of hyper-parameters.

    Attributes:
        root: folder of the sweep, or the run's own; the report goes there.
    """

    root: str
    run_dirs: tuple[str, ...]

    @property
    def name(self) -> str:
        """Always the same: a sweep has one."""
        return "report"

    def __call__(self) -> None:
        """Write."""
        root, runs = Path(self.root), [Path(run) for run in self.run_dirs]
        with _failures_noted(root):
            write_report(runs, root, title=root.resolve().name, pictures=int(len(runs) <= _PICTURED_RUNS))


@contextmanager
def _failures_noted(folder: Path) -> Iterator[None]:
    """Leave the reason of a failure in the folder, for status and report; the error is raised again."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR_FILE).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        try:
            replace_file(folder / ERROR_FILE, f"{reason}\n\n{traceback.format_exc()}".encode())
        except OSError as e:
            logger.warning("%s could not be written (%s)", folder / ERROR_FILE, e)
        raise


def _settings_in(folder: Path, settings: str) -> EvaluateConfig:
    """Write an element's settings into its folder, so that it can be read and run again, and load them."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / CONFIG_FILE, settings.encode())
    return dataclasses.replace(load(EvaluateConfig, folder / CONFIG_FILE), results=str(folder / RESULTS_FILE))


def _records(folder: Path) -> set[tuple[str, tuple[str, ...]]]:
    """Protocol and checkpoint of each record of a folder.

    Raises:
        ConfigError: a damaged results file.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        return set()
    try:
        return {(record.protocol, record.checkpoint) for record in read_results(path)}
    except ResultsError as error:
        raise ConfigError(f"{error}; repair or remove the file") from error
