"""Whether SLURM can be reached from here. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from launchers.machine.findings import Finding
from launchers.runs import slurm

_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")


def cluster_findings() -> Iterator[Finding]:
    """SLURM's commands and its controller."""
    section, name = "cluster", "SLURM"
    found = [command for command in _COMMANDS if shutil.which(command)]
    if not found:
        value = "no commands of SLURM here; `tandem submit --local` and torchrun need none"
        yield Finding(section=section, name=name, value=value, state="note")
        return
    lacking = sorted({*_COMMANDS} - {*found})
    if lacking:
        value, remedy = f"{', '.join(lacking)} not found", "module load slurm, or work on a login node"
        yield Finding(section=section, name=name, value=value, state="missing", remedy=remedy)
        return
    try:
        version = slurm.run_command("sbatch", "--version", timeout_s=15.0).strip().removeprefix("slurm ")
        slurm.run_command("scontrol", "ping", timeout_s=15.0)
        partitions = len(slurm.partitions())
    except slurm.SlurmError as error:
        remedy = "ask the cluster's administrators; `tandem submit --local` needs no SLURM"
        yield Finding(section=section, name=name, value=str(error), state="missing", remedy=remedy)
        return
    value = f"{version}, the controller answers, {partitions} partition(s)"
    yield Finding(section=section, name=name, value=value)
    yield Finding(section=section, name="job", value="inside one" if slurm.own_job() else "outside of any")
