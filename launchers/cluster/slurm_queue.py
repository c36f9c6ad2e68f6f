"""Job arrays on SLURM, by submitit and sbatch."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.schema import ResourcesConfig, SlurmConfig
from launchers.cluster.queues import AT_ONCE, After, Queue, frozen_python, own_variables_only
from launchers.cluster.work import PretrainJob, Work
from launchers.runs import slurm

_SURVIVORS_FINISH = ("--kill-on-bad-exit=0", "--wait=120")
"""When one process of a run has ended, the others find out by themselves which, note it, and leave with the code that
decides what comes next; SLURM ends them two minutes later."""
_SET_BY_US = frozenset(
    f"SBATCH_{option}" for option in ("TIMELIMIT", "SIGNAL", "ARRAY_INX", "OPEN_MODE", "OUTPUT", "ERROR", "NO_REQUEUE")
)


@dataclass(kw_only=True)
class SlurmQueue(Queue):
    """Job arrays by submitit and sbatch; nothing has run when `submit` comes back.

    Attributes:
        config: the cluster, and what pre-training asks for; other work gets `config.evaluate`.
        code: folder of the frozen code.
    """

    config: SlurmConfig
    code: Path

    def submit(self, works: Sequence[Work], *, name: str, after: After = AT_ONCE) -> list[str]:
        """Queue an array; pre-training is throttled to `array_parallelism` elements at a time.

        Raises:
            SlurmError: sbatch refuses; its words are in the message.
        """
        import submitit

        parameters = sbatch_parameters(self.config, works, name=name, after=after, code=self.code)
        # sbatch prefers its variables to the lines of a script.
        ours = {f"SBATCH_{option.upper()}" for option in ("partition", "account", "qos") if option in parameters}
        with own_variables_only(hide=ours | _SET_BY_US):
            executor = submitit.SlurmExecutor(folder=self.logs, python=frozen_python(self.code))
            executor.update_parameters(**parameters)
            try:
                jobs = executor.submit_array(list(works))
            except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
                raise slurm.SlurmError(f"sbatch refused {name}: {' '.join(str(error).split())}") from error
        ids = [str(job.job_id) for job in jobs]
        # sbatch accepts jobs that their partition never starts.
        info = slurm.queue(ids[:1]).get(ids[0])
        if info is not None and info.reason.startswith("Partition"):
            print(
                f"job {ids[0]} cannot start as things are ({info.reason}); see sinfo. Where it asks for more than its "
                "partition allows, cancel it and ask for less (cluster.time_min, --nodes)",
                file=sys.stderr,
            )
        return ids


def sbatch_parameters(
    config: SlurmConfig, works: Sequence[Work], *, name: str, after: After, code: Path
) -> dict[str, Any]:
    """Parameters of an array for submitit (its names for sbatch's options)."""
    training = isinstance(works[0], PretrainJob)
    dependencies = [f"afterok:{':'.join(after.succeeded)}"] if after.succeeded else []
    dependencies += [f"afterany:{':'.join(after.ended)}"] if after.ended else []
    asked: ResourcesConfig = config if training else config.evaluate
    parameters: dict[str, Any] = {
        "job_name": job_name(name),
        "time": asked.time_min,
        "nodes": asked.nodes,
        "ntasks_per_node": asked.tasks,
        "cpus_per_task": asked.cpus_per_task,
        # Seconds before the end; a short job still has half its time.
        "signal_delay_s": min(config.signal_s, 60 * asked.time_min // 2),
        "array_parallelism": config.array_parallelism if training else len(works),
        "setup": [*config.setup, *(_after_step([w for w in works if isinstance(w, PretrainJob)], code))],
        # srun does not take over cpus-per-task from sbatch since SLURM 22.05.
        "srun_args": [*_SURVIVORS_FINISH, f"--cpus-per-task={asked.cpus_per_task}"],
        # Else a job stays in the queue for ever when what it waits for has failed.
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes"}
        | {option: True if value.lower() == "true" else value for option, value in config.sbatch.items()},
        "partition": asked.partition or config.partition,
        "account": config.account,
        "qos": config.qos,
        "gpus_per_node": asked.gpus_per_node or None,
        "mem": None if asked.mem_gb is None else f"{round(asked.mem_gb * 1024)}M",
        "dependency": ",".join(dependencies) or None,
    }
    return {key: value for key, value in parameters.items() if value is not None}


def job_name(name: str) -> str:
    """A name that is safe in a batch script and readable in `squeue`."""
    return "tandem-" + (re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-")[:60] or "run")


def _after_step(works: Sequence[PretrainJob], code: Path) -> list[str]:
    """Shell lines: when the batch script ends, decide in one place whether the run is queued again."""
    if not works:
        return []
    runs = " ".join(shlex.quote(work.run_dir) for work in works)
    return [
        f"runs=({runs})",
        "run_dir=${runs[${SLURM_ARRAY_TASK_ID:-0}]}",
        f"after_step() {{ code=$?; cd {shlex.quote(str(code))} && "
        f'{shlex.quote(sys.executable)} -m launchers.cluster.after_step "$code" "$run_dir"; }}',
        "trap after_step EXIT",
        f"(cd {shlex.quote(str(code))} && "
        f'exec {shlex.quote(sys.executable)} -m launchers.cluster.srun_reaper "$run_dir" $$) &',
        "trap : TERM",  # at a cancellation the script gets it too, and has to outlive srun
    ]
