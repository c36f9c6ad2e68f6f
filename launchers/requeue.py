"""`tandem requeue`: continue runs: a running one restarts, a failed one is submitted again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from common.printable import say
from configs.load import ConfigError, load
from launchers.cancel import runs_below
from launchers.cli import guarded
from launchers.options.requeue import parser
from launchers.runs import slurm
from launchers.runs.files import CLUSTER_FILE, CONFIG_FILE, OVERRIDES_FILE, SUBMISSION_FOLDER
from launchers.runs.run_status import read_files

STOP_SIGNAL = "USR2"
"""What submitit asks SLURM to send before a time limit; training answers any stop signal alike."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 when everything that can continue does."""
    options = parser().parse_args(argv)
    runs = runs_below([Path(path) for path in options.runs])
    files = [read_files(run) for run in runs]
    queue = slurm.queue(job for one in files for job in one.ids)
    ended = []
    for one in files:
        info = queue.get(one.job(queue) or "")
        last = one.attempts[-1].status if one.attempts else None
        if info is not None and info.state == "RUNNING":
            slurm.send_signal(info.id, STOP_SIGNAL)
            say(f"{one.folder.name}: {info.id} writes a checkpoint and is queued again")
        elif info is not None and info.active:
            say(f"{one.folder.name}: {info.id} is {info.state.lower()} already")
        elif last == "finished" and not (one.folder / SUBMISSION_FOLDER).is_dir():
            say(f"{one.folder.name}: finished")
        else:
            ended.append(one.folder)  # of a finished one, the evaluations that are not done
    if ended:
        _submit_again(ended, check=not options.no_check)
    return 0


def _submit_again(runs: Sequence[Path], *, check: bool) -> None:
    # Here, since a verb that restarts running runs needs none of it.
    from configs.runs import read_run
    from configs.schema import SlurmConfig
    from launchers.cluster.plan_submission import Point, SubmitRequest, with_first_stages
    from launchers.cluster.submission import submit

    # Runs that asked for the same go as one array; logs lie in the sweep that a run belongs to, else in the run itself.
    by_cluster: dict[tuple[str, Path], list[Path]] = {}
    for run in runs:
        cluster_file, logs = run / SUBMISSION_FOLDER / CLUSTER_FILE, read_files(run).jobs.logs
        if not cluster_file.is_file():
            raise ConfigError(f"{run} was not queued by tandem submit or sweep; start it again the way it was started")
        root = Path(logs).parent if logs else run
        by_cluster.setdefault((cluster_file.read_text(encoding="utf-8"), root), []).append(run)
    for (_, root), group in by_cluster.items():
        points = []
        for run in group:
            folder = run / SUBMISSION_FOLDER
            config = read_run(folder / CONFIG_FILE)
            overrides = (folder / OVERRIDES_FILE).read_text(encoding="utf-8").splitlines()
            points.append(Point(config=config, overrides=tuple(overrides)))
        cluster = load(SlurmConfig, group[0] / SUBMISSION_FOLDER / CLUSTER_FILE)
        submit(SubmitRequest(points=with_first_stages(points), root=root, cluster=cluster, where="slurm", check=check))


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
