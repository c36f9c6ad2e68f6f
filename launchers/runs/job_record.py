"""`jobs.json` in a run's folder: which SLURM jobs work for it, so that status, cancel and requeue find them.

Replaced as a whole and at once, so that a reader sees the old file or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from common.file_lock import FileLock
from common.files import replace_file
from common.small_files import DamagedFileError, Kind, read_json
from engine.errors import CheckpointError, RunLockedError
from launchers.runs.files import JOBS_FILE

_LOCK = "jobs.lock"

_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("pretrain", "select", "report", "logs", "cluster"), "text"),
    **dict.fromkeys(("evaluate", "baselines"), "mapping"),
}


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """The jobs of one run, ids in SLURM's spelling ("12", "12_0").

    Attributes:
        pretrain: trains it; None where only evaluations were queued.
        select: chooses the best checkpoint before the evaluations; None where only the last one counts.
        evaluate: downstream jobs, name of the element -> id.
        baselines: random-initialisation rows that its report needs, key -> id; other runs may share them.
        report: writes the report, after all others.
        logs: folder of their output, <id>_<task>_log.out and .err.
        cluster: name of the cluster's config; None for jobs without SLURM.
    """

    pretrain: str | None = None
    select: str | None = None
    evaluate: Mapping[str, str] = field(default_factory=dict)
    baselines: Mapping[str, str] = field(default_factory=dict)
    report: str | None = None
    logs: str = ""
    cluster: str | None = None

    def ids(self) -> Iterator[str]:
        """All ids, pre-training first, each once."""
        found = (self.pretrain, self.select, *self.evaluate.values(), *self.baselines.values(), self.report)
        yield from dict.fromkeys(job for job in found if job is not None)


def read_jobs(run_dir: Path | str) -> Jobs | None:
    """The jobs of a run; None where none were ever submitted.

    Raises:
        CheckpointError: the file is there and is not what `write_jobs` writes.
    """
    path = Path(run_dir) / JOBS_FILE
    known = {f.name for f in fields(Jobs)}
    try:
        tree = read_json(path, {}, optional=_KINDS)
        if tree is None:
            return None
        ids = [*(tree.get("evaluate") or {}).values(), *(tree.get("baselines") or {}).values()]
        if not set(tree) <= known or not all(isinstance(job, str) for job in ids):
            raise DamagedFileError(f"{path}: expected a mapping of {', '.join(sorted(known))} with texts as ids")
    except DamagedFileError as error:
        raise CheckpointError(f"{error}; remove the file to forget the run's jobs") from error
    return Jobs(**{name: value for name, value in tree.items() if value is not None})


@contextmanager
def submitting(run_dir: Path, seen: Jobs) -> Iterator[None]:
    """Inside the block no other submission queues jobs for the run, and none has since its jobs were `seen`.

    Raises:
        RunLockedError: one does, or has.
        OSError: the folder is missing or not writable.
    """
    with FileLock(run_dir / _LOCK) as lock:
        if not lock.take():
            raise RunLockedError(f"jobs for {run_dir} are being queued by {lock.holder}; submit again when it is done")
        if (read_jobs(run_dir) or Jobs()) != seen:
            raise RunLockedError(f"jobs for {run_dir} have been queued by another submission meanwhile; submit again")
        yield


def write_jobs(run_dir: Path | str, jobs: Jobs) -> None:
    """Write or replace the run's jobs.

    Raises:
        OSError: the folder is missing or not writable.
    """
    content = json.dumps(asdict(jobs), indent=1) + "\n"
    replace_file(Path(run_dir) / JOBS_FILE, content.encode(), durable=False)
