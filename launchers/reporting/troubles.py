"""What a report says beside the numbers: what failed and why, and which checkpoints were chosen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launchers.evaluation.selection import Selection
from launchers.runs.files import BASELINES, ERROR_FILE, SELECTION, read_error
from launchers.runs.run_status import read_files, run_status
from launchers.runs.run_trouble import BAD
from launchers.runs.slurm import JobInfo, SlurmError, available, queue

logger = logging.getLogger("tandem.report")


@dataclass(frozen=True)
class Trouble:
    """A run of which something is missing.

    Attributes:
        state: of its pre-training: failed, died, running, finished, ...
        done: elements with results.
        elements: elements known.
    """

    run: str
    state: str
    done: int
    elements: int
    why: tuple[str, ...]


def troubles(runs: Mapping[str, Path], damaged: Mapping[Path, str]) -> list[Trouble]:
    """Runs that failed, or of which elements failed or files are damaged; what still waits or runs is none.

    `damaged` says of files, those of runs and others, what is wrong with them.
    """
    elsewhere = dict(damaged)
    files = {name: read_files(folder) for name, folder in runs.items()}
    known: dict[str, JobInfo] = {}
    try:
        known = queue([job for f in files.values() for job in f.ids]) if available() else {}
    except SlurmError as error:  # the runs' own records say most of it
        logger.warning("the report shows no states from SLURM: %s", error)
    found = []
    for name, folder in runs.items():
        status = run_status(files[name], known)
        why = list(status.why)
        if (reason := read_error(folder / SELECTION)) is not None:
            why.append(f"choice of the best checkpoint: {reason}")
        if status.state in BAD and status.evaluations_done < status.evaluations:
            left = status.evaluations - status.evaluations_done
            why.append(f"{left} of {status.evaluations} evaluations did not run: they wait for the end of pre-training")
        own = [path for path in elsewhere if folder in path.resolve().parents]
        why += [elsewhere.pop(path) for path in own]
        if why:
            lines = tuple(line.strip() for line in why)
            found.append(Trouble(name, status.state, status.evaluations_done, status.evaluations, lines))
    found += [Trouble(str(path), "damaged", done=0, elements=0, why=(text,)) for path, text in elsewhere.items()]
    baselines = dict.fromkeys(folder.parent / BASELINES for folder in runs.values())
    for folder in sorted(path.parent for parent in baselines for path in parent.glob(f"*/{ERROR_FILE}")):
        reason = read_error(folder) or "unknown"
        found.append(Trouble(f"random initialisation {folder.name}", "failed", done=0, elements=1, why=(reason,)))
    return found


def choice_rows(chosen: Mapping[str, Selection]) -> list[tuple[str, ...]]:
    """Which checkpoint was chosen and by which scores: a heading and a row a run, nothing without a choice."""
    rows: list[tuple[str, ...]] = [("run", "best", "compared by", "scores (* best)", "date")]
    for run, s in sorted(chosen.items()):
        scores = (f"step {n} {'*' if n == s.step else ''}{s.measure.text(score)}" for n, score in s.scores.items())
        rows.append((run, f"step {s.step}", f"{s.by} on {s.split}", ", ".join(scores), s.date))
    return rows if chosen else []
