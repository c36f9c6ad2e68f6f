"""`slurm/pretrain_synthetic.sh` at toy size on the test cluster, and what can be read from its run."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from launchers.runs.attempts import Attempt, read_attempts
from tests.helpers.pretrain_run import REPOSITORY, SMALL, UNCACHED
from tests.helpers.slurm_cluster import SlurmCluster, wait_until
from tests.helpers.toy_run import losses, metrics

SCRIPT = "slurm/pretrain_synthetic.sh"
ENV = {"TANDEM_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "TANDEM_EVALUATE": "0", "PYTHONUNBUFFERED": "1"}
TOY = (*SMALL, *UNCACHED)


@contextlib.contextmanager
def slowed(processes: Iterable[psutil.Process]) -> Iterator[None]:
    """Let processes run a tenth of the time: what SLURM looks at every 30 s has to meet a run that lasts longer."""
    those, over = list(processes), threading.Event()

    def send(act: Callable[[psutil.Process], None]) -> None:
        for process in those:
            with contextlib.suppress(psutil.NoSuchProcess):
                act(process)

    def work() -> None:
        while not over.is_set():
            send(psutil.Process.suspend)
            over.wait(0.9)
            send(psutil.Process.resume)
            time.sleep(0.1)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()  # its last act is to let them run


@dataclass(frozen=True, kw_only=True)
class SbatchRun:
    """One run folder on a cluster, trained by any number of jobs.

    Attributes:
        cluster: where.
        run_dir: its folder.
        shards: of a toy set.
        overrides: of the config, the same for all jobs.
    """

    cluster: SlurmCluster
    run_dir: Path
    shards: str
    overrides: tuple[str, ...]

    @property
    def output(self) -> Path:
        """What the jobs print."""
        return self.run_dir.parent / f"{self.run_dir.name}.out"

    def settings(self) -> list[str]:
        """Arguments of the script."""
        return [f"run_dir={self.run_dir}", f"data.shards={self.shards}", *TOY, *self.overrides]

    def queue(self, *options: str, evaluate: bool = False, settings: Sequence[str] = ()) -> str:
        """Queue the script as a user does; the job's id."""
        env = ENV | {"TANDEM_EVALUATE": str(int(evaluate))}
        own = ("--cpus-per-task=1", f"--output={self.output}", *options)
        return self.cluster.sbatch(*own, SCRIPT, *self.settings(), *settings, env=env, cwd=REPOSITORY)

    def wait_for_step(self, step: int, timeout_s: float = 120.0) -> None:
        """Wait until an update is logged."""

        def there() -> bool:
            return (self.run_dir / "metrics.jsonl").is_file() and len(metrics(self.run_dir)) >= step

        wait_until(there, timeout_s, self.told, every_s=0.1)

    def wait_for_attempt(self, number: int, timeout_s: float = 120.0) -> None:
        """Wait until the run has begun so many times."""
        wait_until(lambda: len(self.attempts()) >= number, timeout_s, self.told)

    def finish(self, job: str, timeout_s: float = 240.0) -> None:
        """Wait for the job's end, which has to be a good one."""
        try:
            state = self.cluster.wait_for(job, timeout_s=timeout_s)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.told()}") from error
        assert state == "COMPLETED", self.told()

    def attempts(self) -> list[Attempt]:
        """The run's own history."""
        return read_attempts(self.run_dir)

    def losses(self) -> list[float]:
        """Loss of each update."""
        return losses(self.run_dir)

    def told(self) -> str:
        """All that the jobs printed, for messages."""
        text = self.output.read_text()[-6000:] if self.output.exists() else "nothing printed"
        return f"{text}\n{self.attempts()}"
