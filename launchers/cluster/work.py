"""What submitit runs in a job: small picklable callables, by name, so that the job's own copy of the code is used.

A job starts in the frozen copy of the code and goes back to the folder of submission, where relative paths of configs
begin. Only light modules are imported at the top: a signal that comes while a job loads must meet our handlers early.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from engine.preempt import StopSignals, ignore_stop_signals
from launchers.cli import TRY_AGAIN, guarded
from launchers.runs import slurm
from launchers.training.mistakes import mistakes_told

LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets; a job must not take those of the process that submits it for its own."""


@runtime_checkable
class Work(Protocol):
    """What a job does."""

    @property
    def name(self) -> str:
        """Short, for logs and the queue."""
        ...

    def __call__(self) -> None:
        """Do it. An exception, or an exit code other than 0, is a failed job."""
        ...


@dataclass(frozen=True, kw_only=True)
class PretrainJob:
    """One process of one run: pre-training, or the training of a detector.

    Attributes:
        run_dir: folder of the run, absolute.
        config: its frozen config, absolute.
        folder: where the submission was made; relative paths in the config begin here.
        local_port: TCP port at which the processes meet where no SLURM arranges it.
    """

    run_dir: str
    config: str
    folder: str
    local_port: int = 0

    @property
    def name(self) -> str:
        """The run folder's own name."""
        return Path(self.run_dir).name

    def __call__(self) -> None:
        """Train; leaves with the exit code of `tandem pretrain` where that is not 0."""
        # In place of submitit's handlers, before torch is imported: its own would kill or requeue at once.
        StopSignals().catch()
        slurm.stop_with_slurmstepd()
        _meet_local_peers(self.local_port)
        code = guarded(lambda _: self.train(), [])
        ignore_stop_signals()
        if code != 0:
            # Not an exception that submitit would note and turn into code 1: what follows depends on the code.
            sys.exit(code)

    def train(self) -> int:
        """Train in this process as it is; returns the exit code of `tandem pretrain`."""
        os.chdir(self.folder)
        with StopSignals():
            from engine.distributed import shutdown
            from launchers.finetuning.run import train_run
            from launchers.training.stages import stages
            from launchers.training.train import load_any_run

            with mistakes_told():
                planned = stages(load_any_run(self.config))
            finished = all(train_run(stage).status == "finished" for stage in planned)
            shutdown()
        return 0 if finished else TRY_AGAIN


@dataclass(frozen=True, kw_only=True)
class FollowJob:
    """An evaluation, a baseline or a report (`launchers.cluster.evaluation_jobs`), in the folder of its submission."""

    work: Work
    folder: str

    @property
    def name(self) -> str:
        """The name of its work."""
        return self.work.name

    def __call__(self) -> None:
        """Do the work; known errors end with one line and their exit code."""
        # submitit's handlers wait for a pre-emption that it would answer by queueing again; an evaluation just
        # ends. What it measured by then is kept, and SLURM queues a pre-empted job again by itself.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        slurm.stop_with_slurmstepd()
        os.chdir(self.folder)
        for name in LAUNCH_VARIABLES:  # one process, whatever started the one that submits it
            os.environ.pop(name, None)
        code = guarded(self._measure, [])
        if code != 0:
            sys.exit(code)

    def _measure(self, _: list[str]) -> int:
        self.work()
        return 0


def _meet_local_peers(port: int) -> None:
    """Without SLURM: give the processes that submitit started on this machine what torchrun would give them."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "local":
        return
    import submitit

    environment = submitit.JobEnvironment()
    if environment.num_tasks == 1:
        return
    os.environ.update(
        RANK=str(environment.global_rank),
        LOCAL_RANK=str(environment.local_rank),
        WORLD_SIZE=str(environment.num_tasks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
