"""What surrounds a run's training: stop signals, the folder's lock, the record of the attempt, its peers, a watchdog.

Whatever happens on the way, the run's folder says so (`launchers.runs.attempts`), and all ranks end alike.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch.distributed as dist

from configs.load import ConfigError
from configs.runs import RunConfig, dump_run
from engine.distributed import Launch, World, agree_signal, init_distributed, read_launch
from engine.errors import CheckpointError, PeerFailedError, PeerLostError, RunLockedError, StopRequested
from engine.preempt import StopSignals
from engine.pretrain import PretrainSummary
from engine.run_lock import RunLock
from engine.watchdog import Watchdog
from launchers.runs import attempts, slurm
from launchers.runs.files import CONFIG_FILE
from launchers.training.same_run import meet

_CLEAN_UP_S = 30


@dataclass(kw_only=True)
class Supervised:
    """A run whose folder is locked, whose processes have met and are watched.

    Attributes:
        record: of this attempt; None on other ranks than 0.
        summary: how it ended, set by whoever trains.
    """

    world: World
    signals: StopSignals
    watchdog: Watchdog
    record: attempts.AttemptRecord | None
    summary: PretrainSummary | None = None

    def stop_if_signalled(self) -> None:
        """Leave on all ranks when one got a stop signal, at a moment when nothing has to be saved.

        Raises:
            StopRequested: on all ranks.
        """
        _stop_together(self.signals, self.world)


@contextmanager
def supervised(config: RunConfig) -> Iterator[Supervised]:
    """Everything that has to be in place before a run trains, and a note of how the block ended.

    Rank 0 holds the run's lock and writes the record. All processes of the run enter together.

    Raises:
        ConfigError: instead of a ValueError inside the block; or the ranks differ, see `launchers.training.same_run`.
        RunLockedError: on all ranks, when another job has the run's folder.
        CheckpointError, PeerFailedError: on rank 0 and the others, when the folder cannot be written.
        StopRequested: on all ranks, when one has got a stop signal by now.
        PeerLostError: the processes did not all meet.
    """
    record: attempts.AttemptRecord | None = None
    refused: Exception | None = None
    with StopSignals() as signals, ExitStack() as held:
        launch = _launch()
        if launch.rank == 0:
            try:
                job, nodes = slurm.own_job(), os.environ.get("SLURM_STEP_NODELIST")
                wait_s = config.checkpoint.lock_wait_s
                held.enter_context(RunLock(config.run_dir, wait_s=wait_s, job=job, stop=lambda: signals.number > 0))
                record = attempts.begin(config.run_dir, launch.world_size, job=job, nodes=nodes)
                record.keep(CONFIG_FILE, dump_run(config))
            except RunLockedError as error:
                refused = error  # raised below on all ranks: the others would wait for rank 0
            except OSError as error:
                refused = CheckpointError(
                    f"the run's folder {config.run_dir} cannot be written: {error.strerror}; free disk space, repair "
                    "its permissions, or choose another run_dir"
                )
        try:
            world = _join(config, signals, refused)
            _stop_together(signals, world)
            with Watchdog(
                world,
                heartbeat_s=config.engine.heartbeat_s,
                stall_min=config.engine.stall_min,
                on_verdict=None if record is None else lambda reason: record.end("failed", reason=reason),
            ) as watchdog:
                run = Supervised(world=world, signals=signals, watchdog=watchdog, record=record)
                try:
                    yield run
                except ValueError as error:
                    raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from error
        except StopRequested as stop:
            if record is not None:
                record.end("preempted", signal=stop.signal)
            raise
        except BaseException as error:
            if isinstance(error, PeerLostError | PeerFailedError):
                # The interpreter's clean-up may wait for the peer that is gone; the kernel ends us then.
                signal.alarm(_CLEAN_UP_S)
            if record is not None:
                record.end("failed", reason=f"{type(error).__name__}: {error}")
            raise
        if record is not None and run.summary is not None:
            record.end(run.summary.status, step=run.summary.step, signal=run.summary.signal)


def _launch() -> Launch:
    try:
        return read_launch(os.environ)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _join(config: RunConfig, signals: StopSignals, refused: Exception | None) -> World:
    """Meet the other ranks, all of which are about to do the same, in a process group."""
    meeting = meet(config, refused, lambda: signals.received)
    try:
        world = init_distributed(config.engine.device, timeout_min=config.engine.timeout_min)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except dist.DistError as error:
        raise PeerLostError(
            f"the processes met at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}, but got no process "
            f"group within engine.timeout_min={config.engine.timeout_min:g} min: {error}. The outputs of the other "
            "processes say which of them failed"
        ) from error
    del meeting  # it kept the rendezvous open until now
    return world


def _stop_together(signals: StopSignals, world: World) -> None:
    received = agree_signal(signals, world)
    if received is not None:
        raise StopRequested(received)
