"""What a report says beside the numbers: what failed and why, and how the best checkpoints were chosen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launchers.evaluation.selection import Selection, read_selection
from launchers.runs.files import BASELINES, ERROR_FILE, SELECTION, read_error
from launchers.runs.run_status import read_files, run_status
from launchers.runs.run_trouble import BAD
from launchers.runs.slurm import JobInfo, SlurmError, available, queue

logger = logging.getLogger("tandem.report")


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """A run of which something is missing.

    Attributes:
        run: its name.
        state: of its pre-training: failed, died, running, finished, ...
        done: elements with results.
        elements: elements known.
        why: lines that explain it.
    """

    run: str
    state: str
    done: int
    elements: int
    why: tuple[str, ...]


def troubles(runs: Mapping[str, Path]) -> list[Trouble]:
    """Runs that failed, or of which elements failed; what still waits or runs is none.

    Raises:
        CheckpointError: a damaged jobs.json.
    """
    files = {name: read_files(folder) for name, folder in runs.items()}
    known: dict[str, JobInfo] = {}
    try:
        known = queue([job for f in files.values() for job in f.ids]) if available() else {}
    except SlurmError as error:  # the runs' own records say most of it
        logger.warning("the report goes without SLURM's word: %s", error)
    found = []
    for name, folder in runs.items():
        status = run_status(files[name], known)
        why = list(status.why)
        if (reason := read_error(folder / SELECTION)) is not None:
            why.append(f"choice of the best checkpoint: {reason}")
        if status.state in BAD and status.evaluations_done < status.evaluations:
            left = status.evaluations - status.evaluations_done
            why.append(f"{left} of {status.evaluations} evaluations did not run: they wait for the end of pre-training")
        if why:
            found.append(
                Trouble(
                    run=name,
                    state=status.state,
                    done=status.evaluations_done,
                    elements=status.evaluations,
                    why=tuple(line.strip() for line in why),
                )
            )
    return [*found, *_baselines(runs)]


def _baselines(runs: Mapping[str, Path]) -> list[Trouble]:
    folders = dict.fromkeys(folder.parent / BASELINES for folder in runs.values())
    failed = sorted(path.parent for folder in folders for path in folder.glob(f"*/{ERROR_FILE}"))
    return [
        Trouble(
            run=f"random initialisation {folder.name}",
            state="failed",
            done=0,
            elements=1,
            why=(read_error(folder) or "unknown",),
        )
        for folder in failed
    ]


def selections(runs: Mapping[str, Path]) -> dict[str, Selection]:
    """How the best checkpoint was chosen, by run, where it was.

    Raises:
        ConfigError: a damaged file.
    """
    return {name: made for name, folder in runs.items() if (made := read_selection(folder)) is not None}


def describe_scores(selection: Selection) -> str:
    """E.g. "step 100 27.1, step 200 *31.2": scores of all steps, the best one marked."""
    marked = (
        f"step {s} {'*' if s == selection.step else ''}{selection.measure.text(score)}"
        for s, score in selection.scores.items()
    )
    return ", ".join(marked)
