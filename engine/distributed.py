"""Who this process is among its peers, and the few things that all ranks must agree on.

A run is started by torchrun, by srun, or alone. All three end in the same `World`; nothing else in the code base reads
a launcher's variables. Collectives here are small (a handful of numbers an update).
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from common.files import private_folder
from engine.deepspeed_config import import_deepspeed
from engine.preempt import StopSignals, name_of

Device = Literal["auto", "cpu", "cuda"]

CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TORCHINDUCTOR_CACHE_DIR": "torch_inductor",
}
"""Environment variable of each compile cache -> name of its folder."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among its peers.

    Attributes:
        rank: 0 to world_size - 1.
        world_size: processes of the run.
        local_rank: number of this process on its machine; chooses the GPU.
        device: where the network lives.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and the shared files."""
        return self.rank == 0


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a launcher tells a process through the environment.

    Attributes:
        launcher: who started the process.
        rank: of this process.
        world_size: processes in all.
        local_rank: on this machine.
        master_addr: host of rank 0.
        master_port: TCP port of the rendezvous on that host; 0 = any free one, which only a process alone can take.
        run: the launcher's name of this run, the same for its processes only; "" where it gives none.
    """

    launcher: Literal["torchrun", "srun", "alone"]
    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int
    run: str = ""

    def __post_init__(self) -> None:
        if self.rank >= self.world_size:
            raise ValueError(f"environment: rank {self.rank} of {self.world_size}; expected ranks from 0 to one less")


def read_launch(env: Mapping[str, str]) -> Launch:
    """Work out from the environment how this process was started.

    torchrun's variables win. srun is recognised by SLURM_STEP_NUM_TASKS: it is absent in a batch script's own shell,
    where the other SLURM variables promise peers that were never started.

    Raises:
        ValueError: some of torchrun's variables are set and others missing, or one is no number or out of range.
    """
    if "WORLD_SIZE" in env or "RANK" in env:
        needed = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in needed if name not in env]
        if missing:
            raise ValueError(
                f"environment: {' and '.join(n for n in needed if n in env)} set, but {', '.join(missing)} missing; "
                "start the run with torchrun or srun, or unset them to run alone"
            )
        return Launch(
            launcher="torchrun",
            rank=_number(env, "RANK"),
            world_size=_number(env, "WORLD_SIZE"),
            local_rank=_number(env, "LOCAL_RANK"),
            master_addr=env["MASTER_ADDR"],
            master_port=_number(env, "MASTER_PORT"),
            run=env.get("TORCHELASTIC_RUN_ID", ""),
        )
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return Launch(
            launcher="srun",
            rank=int(env["SLURM_PROCID"]),
            world_size=int(env["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(env["SLURM_LOCALID"]),
            master_addr=first_host(env["SLURM_STEP_NODELIST"]),
            master_port=slurm_port(
                int(env["SLURM_JOB_ID"]), int(env.get("SLURM_STEP_ID", "0")), int(env.get("SLURM_RESTART_COUNT", "0"))
            ),
            run=f"job {env['SLURM_JOB_ID']}, step {env.get('SLURM_STEP_ID', '0')}",
        )
    return Launch(launcher="alone", rank=0, world_size=1, local_rank=0, master_addr="127.0.0.1", master_port=0)


def _number(env: Mapping[str, str], name: str) -> int:
    if not env[name].isdecimal():
        raise ValueError(f"environment: {name}={env[name]!r}, expected a whole number from 0")
    return int(env[name])


_FIRST_PORT, _LAST_PORT = 12288, 32767
"""Between the well-known ports and those that Linux hands out by itself (32768 to 60999)."""
_PORTS_A_JOB = 16


def slurm_port(job: int, step: int, restarts: int) -> int:
    """Port of a job step's rendezvous: jobs that share a machine must not meet.

    Every job (every element of an array is one, with a SLURM_JOB_ID of its own) has 16 ports to itself, and 1,280 jobs
    with neighbouring numbers share none. A requeued job, which keeps its number, takes another of its 16, in case its
    former process is still letting go.
    """
    jobs = (_LAST_PORT - _FIRST_PORT + 1) // _PORTS_A_JOB
    return _FIRST_PORT + job % jobs * _PORTS_A_JOB + (step + 5 * restarts) % _PORTS_A_JOB


def first_host(nodelist: str) -> str:
    """First host of a SLURM node list (SLURM_STEP_NODELIST): "gpu[003-010,12],x1" gives "gpu003".

    Raises:
        ValueError: the text is no node list.
    """
    match = re.match(r"^([^\[\],]+)(?:\[([^\]]+)\])?([^,\[]*)", nodelist)
    if match is None:
        raise ValueError(f"SLURM node list {nodelist!r} cannot be read; expected e.g. 'gpu[003-010,12]'")
    prefix, ranges, suffix = match.groups()
    number = re.split(r"[-,]", ranges)[0] if ranges else ""
    return f"{prefix}{number}{suffix}"


def address(node: str) -> str:
    """Where a SLURM node is reached: by its name, or, where names of nodes are no host names, by SLURM's address."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        command = ("scontrol", "--oneliner", "show", "node", node)
        try:
            shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            shown = ""
        match = re.search(r"\bNodeAddr=(\S+)", shown)
        return match.group(1) if match else node
    return node


def separate_caches(env: MutableMapping[str, str]) -> None:
    """Point the compile caches in `env` to folders that only this user can write, unless the user has set some.

    Of a SLURM job, each attempt gets its own. Elsewhere Triton and torch keep theirs in the user's home, all but one; a
    user without a home gets them all below TMPDIR.

    Raises:
        OSError: the folder cannot be made, or is in others' hands.
    """
    if "SLURM_JOB_ID" not in env and (cache := _user_cache(env)) is not None:
        env.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "tandem" / CACHES["TORCHINDUCTOR_CACHE_DIR"]))
        return
    if all(name in env for name in CACHES):
        return
    # Elements of an array start at the same moment, often on one machine, and would find each other's half-built files;
    # a job that was killed leaves lock files behind that its next attempt would wait for.
    attempt = f"{env.get('SLURM_JOB_ID', 'alone')}_{env.get('SLURM_RESTART_COUNT', '0')}"
    root = private_folder(Path(env.get("TMPDIR", tempfile.gettempdir())) / f"tandem_{os.getuid()}_{attempt}")
    for name, folder in CACHES.items():
        env.setdefault(name, str(root / folder))


def _user_cache(env: Mapping[str, str]) -> Path | None:
    """The user's folder of caches; None for one without a home, as in containers that run under a bare number."""
    if given := env.get("XDG_CACHE_HOME"):
        return Path(given)
    with suppress(RuntimeError):
        return Path.home() / ".cache"
    return None


def free_port() -> int:
    """A TCP port on this machine that is free at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def choose_device(device: Device, local_rank: int) -> torch.device:
    """The device of a process: its own GPU where "auto" finds CUDA.

    Raises:
        ValueError: CUDA asked for and not available, or fewer GPUs than processes on this machine.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ValueError(
            f"engine.device={device}: process {local_rank} of this machine needs a GPU of its own, but torch sees "
            f"{count}; start fewer processes or set engine.device=cpu"
        )
    return torch.device("cuda", local_rank)


def init_distributed(device: Device = "auto", *, timeout_min: float = 30.0) -> World:
    """Join the run's process group (nccl on CUDA, gloo on CPU); calling it again gives the same answer.

    A collective waits `timeout_min` minutes for a peer before the run fails.

    Raises:
        ValueError: inconsistent environment or no such device.
    """
    separate_caches(os.environ)
    launch = read_launch(os.environ)
    chosen = choose_device(device, launch.local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    deepspeed = import_deepspeed(chosen.type)
    if not (dist.is_initialized() and deepspeed.comm.is_initialized()):
        # DeepSpeed and torch both read these, whatever is passed as an argument.
        os.environ.update(
            RANK=str(launch.rank),
            WORLD_SIZE=str(launch.world_size),
            LOCAL_RANK=str(launch.local_rank),
            MASTER_ADDR=address(launch.master_addr) if launch.launcher == "srun" else launch.master_addr,
            MASTER_PORT=str(launch.master_port),
        )
        deepspeed.init_distributed(
            dist_backend="nccl" if chosen.type == "cuda" else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            timeout=timedelta(minutes=timeout_min),
        )
    return World(rank=dist.get_rank(), world_size=dist.get_world_size(), local_rank=launch.local_rank, device=chosen)


def shutdown() -> None:
    """Leave the process group. Tests aside, the last act of a process."""
    if dist.is_initialized():
        deepspeed = import_deepspeed("cuda" if dist.get_backend() == "nccl" else "cpu")
        if deepspeed.comm.is_initialized():
            # DeepSpeed's own call, so that the groups it caches go too.
            deepspeed.comm.destroy_process_group()
        if dist.is_initialized():
            dist.destroy_process_group()


def agree_max(values: Sequence[float], world: World) -> list[float]:
    """Of each number (in the same order on all ranks), the largest on any rank; exact up to 2^24."""
    votes = torch.tensor([float(value) for value in values], device=world.device)
    if world.world_size > 1:
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [float(vote) for vote in votes.tolist()]


def agree_any(flags: Sequence[bool], world: World) -> list[bool]:
    """For each flag: is it set on any rank? All ranks get the same answer."""
    return [bool(vote) for vote in agree_max([float(flag) for flag in flags], world)]


def agree_signal(signals: StopSignals, world: World) -> str | None:
    """Name of the signal that any rank received, the same on all ranks; None if none did."""
    (number,) = agree_max([float(signals.number)], world)
    return name_of(int(number))


def mean_over_ranks(values: Float[Tensor, " n"], world: World) -> Float[Tensor, " n"]:
    """Mean of each number over ranks."""
    if world.world_size == 1:
        return values
    summed = values.clone()
    dist.all_reduce(summed)
    return summed / world.world_size


def barrier(world: World) -> None:
    """Wait for all ranks."""
    agree_any([False], world)
