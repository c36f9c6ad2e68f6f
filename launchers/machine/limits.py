"""Processor, memory and files of this machine, and what a container or a job leaves of them.

Of Linux, from its own files: no package is needed, since a missing one is among what `tandem doctor` looks for.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launchers.machine.findings import Finding, human_gib

MIN_OPEN_FILES = 1024
"""Each large tensor that a loader worker hands over is an open file, beside some ten for each shard reader."""
MIN_SHARED_BYTES = 2**30
"""Of /dev/shm: a batch of four sweeps with six images is some 30 MB, and workers hold several ready."""
MIN_FREE_BYTES = 5 * 2**30
MIN_MEMORY_BYTES = 4 * 2**30

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "neon", "asimd", "sve", "bf16")
"""Those that kernels of ours or torch's are made for, as /proc/cpuinfo names them."""


@dataclass(frozen=True)
class GroupLimits:
    """What the control groups of this process allow; None: no limit.

    Attributes:
        memory_bytes: for all processes of the group together.
        cores: share of processor time, as a number of cores.
    """

    memory_bytes: int | None
    cores: float | None


def group_limits(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> GroupLimits:
    """The tightest limits of this process's control groups and all those above them, of both versions.

    Args:
        proc: lists the groups of this process: number:controllers:path.
        root: where the groups' files are mounted; within a container often those of its own group alone.
    """
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return GroupLimits(None, None)
    memory: list[float] = []
    cores: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if controllers == "":  # version 2: one tree for all controllers
            for base in (root, root / "unified"):
                for folder in _upwards(base, path):
                    memory += _number(folder / "memory.max")
                    cores += _quota(folder / "cpu.max")
        if "memory" in names:
            for folder in _upwards(root / "memory", path):
                memory += _number(folder / "memory.limit_in_bytes")
        if "cpu" in names:
            for base in (root / "cpu", root / "cpu,cpuacct"):
                for folder in _upwards(base, path):
                    cores += _old_quota(folder)
    # Version 1 says "no limit" as a number of bytes that no machine has.
    real = [value for value in memory if value < 2**60]
    return GroupLimits(int(min(real)) if real else None, min(cores) if cores else None)


def _upwards(base: Path, path: str) -> Iterator[Path]:
    """A group's folder and those above it, down to the mounted root; a container's root may stand for all of them."""
    folder = Path(os.path.normpath(base / path.lstrip("/")))
    while folder.is_relative_to(base):
        yield folder
        if folder == base:
            return
        folder = folder.parent


def _number(file: Path) -> list[float]:
    try:
        return [float(file.read_text())]
    except (OSError, ValueError):  # "max"
        return []


def _quota(file: Path) -> list[float]:
    try:
        quota, period = map(float, file.read_text().split())
    except (OSError, ValueError):
        return []
    return [quota / period]


def _old_quota(folder: Path) -> list[float]:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return [quota[0] / period[0]] if quota and period and quota[0] > 0 and period[0] > 0 else []


def usable_cores(limits: GroupLimits) -> float:
    """Cores that this process and its workers may keep busy."""
    allowed = float(len(os.sched_getaffinity(0)))
    return allowed if limits.cores is None else min(allowed, limits.cores)


def machine_findings(limits: GroupLimits) -> Iterator[Finding]:
    """Processor and memory."""
    section = "machine"
    yield Finding(
        section=section, name="system", value=f"{platform.system()} {platform.release()} {platform.machine()}"
    )
    found, cores = os.cpu_count() or 1, usable_cores(limits)
    value = f"{processor()}, {found} cores"
    if cores < found:
        value += f", {cores:g} usable by this process"
    yield Finding(section=section, name="processor", value=value)
    yield Finding(section=section, name="instructions", value=", ".join(instructions()) or "none of those looked for")
    total, available = memory()
    value = f"{human_gib(total)}, {human_gib(available)} available"
    if limits.memory_bytes is not None and limits.memory_bytes < total:
        value += f"; this job or container may use {human_gib(limits.memory_bytes)}"
    low = min(total, limits.memory_bytes or total) < MIN_MEMORY_BYTES
    remedy = "ask for more memory (SLURM: --mem, docker: --memory), or train with data.num_workers=0" if low else ""
    yield Finding(section=section, name="memory", value=value, state="missing" if low else "fine", remedy=remedy)


def memory(file: Path = Path("/proc/meminfo")) -> tuple[int, int]:
    """Bytes of memory, and those that are free or can be made free."""
    lines = dict(line.split(":", 1) for line in file.read_text().splitlines())
    total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return total, available


def driver_version(file: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Of NVIDIA's kernel module; None where it is not loaded."""
    try:
        words = file.read_text().split()
    except OSError:
        return None
    return next((word for word in words if word[:1].isdigit() and "." in word), "of unknown version")


def has_gpu() -> bool:
    """Whether there is a driver of NVIDIA's or AMD's, whatever torch can do with it."""
    return driver_version() is not None or Path("/dev/kfd").exists()


def processor() -> str:
    """The processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instructions() -> list[str]:
    """Vector instructions of the processor that matter here."""
    found = (_cpuinfo("flags") or _cpuinfo("Features") or "").split()
    return [name for name in _INSTRUCTIONS if name in found]


def _cpuinfo(field: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), None)


# ---- files


def file_findings(runs: Path, caches: dict[str, Path], *, shared: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Shared memory, open files, and the folders that training writes to.

    Args:
        runs: folder of runs, which need not exist yet.
        caches: what is kept in a folder -> the folder.
        shared: where memory that processes share is mounted.
    """
    section = "files"
    yield _shared_memory(shared)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES
    yield Finding(
        section=section,
        name="open files",
        value=f"{_limit(soft)} for each process, at most {_limit(hard)}",
        state="missing" if few else "fine",
        remedy=f"ulimit -n {4 * MIN_OPEN_FILES}, before training" if few else "",
    )
    yield _folder(section, "runs", runs, needed=True)
    for name, folder in caches.items():
        yield _folder(section, name, folder, needed=False)


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _shared_memory(shared: Path) -> Finding:
    section, name = "files", "shared memory"
    remedy = "docker: --shm-size=8g; or data.num_workers=0, which is slower"
    try:
        with tempfile.TemporaryFile(dir=shared):
            usage = shutil.disk_usage(shared)
    except OSError as error:
        value = f"{shared} cannot be written ({error.strerror})"
        return Finding(section=section, name=name, value=value, state="missing", remedy=remedy)
    small = usage.total < MIN_SHARED_BYTES
    value = f"{shared}: {human_gib(usage.total)}, {human_gib(usage.free)} free"
    if small:
        value += "; loader workers hand batches over there"
    return Finding(
        section=section, name=name, value=value, state="missing" if small else "fine", remedy=remedy if small else ""
    )


def _folder(section: str, name: str, folder: Path, *, needed: bool) -> Finding:
    """Whether a folder, or the nearest that exists above it, can be written, and how much is free."""
    absolute = folder.expanduser().absolute()
    there = next(parent for parent in (absolute, *absolute.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"0")
            file.flush()
        free = shutil.disk_usage(there).free
    except OSError as error:
        value = f"{folder} cannot be written ({error.strerror})"
        remedy = "give another one: --runs FOLDER here, run_dir=FOLDER/NAME in training" if needed else ""
        return Finding(section=section, name=name, value=value, state="broken" if needed else "missing", remedy=remedy)
    value = f"{folder}: {human_gib(free)} free on {file_system(there)}"
    low = free < MIN_FREE_BYTES
    return Finding(
        section=section,
        name=name,
        value=value + ("; a checkpoint of a large network is some GB" if low and needed else ""),
        state="note" if low else "fine",
        remedy="free disk space, or choose another folder" if low else "",
    )


def file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Kind of the file system that a folder lies on, as the system names it (ext4, nfs4, lustre, overlay)."""
    where, best, kind = folder.resolve(), -1, "a file system of unknown kind"
    for line in mounts.read_text().splitlines():
        _, mounted, name, *_ = line.split()
        point = mounted.replace("\\040", " ")  # how a blank is written there
        if where.is_relative_to(point) and len(point) >= best:  # a later one hides an earlier one
            best, kind = len(point), name
    return kind
