"""Processes that start with torch, DeepSpeed and Tandem imported: forked from one that has done so once.

`python -m MODULE ARGV` spends two thirds of a toy run's processor time on imports, and the tests start hundreds of such
processes. All that are forked have one seed of Python's hashes; the tests on SLURM start theirs from nothing.

`python -m tests.helpers.warm FD` is the process that they are forked from.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.distributed import free_port
from launchers.cluster.work import LAUNCH_VARIABLES

REPOSITORY = Path(__file__).resolve().parents[2]

_IMPORTED = ("launchers.cli", "launchers.pretrain", "launchers.finetune", "launchers.evaluate", "tests.helpers.toy_run")
_BYTES = 1 << 18  # of a message: command line and environment
_NUMBER = b"%d\n"  # a process's own, and at its end its status


class Child:
    """`python -m MODULE ARGV`, one thread, both outputs in one pipe of text; used like `subprocess.Popen`."""

    def __init__(self, module: str, *argv: str, env: Mapping[str, str] | None = None, new_group: bool = False) -> None:
        """Start it; `env`: beside this process's variables, but for its rank; `new_group`: to signal all of it."""
        outside = {k: v for k, v in os.environ.items() if k not in LAUNCH_VARIABLES}
        whole = outside | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | dict(env or {})
        self.args = (module, *argv)
        self.returncode: int | None = None
        self._printed: list[bytes] = []
        output, output_there = os.pipe()
        self._status, status_there = os.pipe()
        asked = json.dumps({"module": module, "argv": argv, "env": whole, "new_group": new_group})
        socket.send_fds(_server(), [asked.encode()], [output_there, status_there])
        os.close(output_there)
        os.close(status_there)
        self.stdout = os.fdopen(output, "r", encoding="utf-8", errors="replace")
        self.pid = int(self._read_number())

    def _read_number(self) -> bytes:
        number = b""
        while not number.endswith(b"\n"):
            part = os.read(self._status, 1)
            if not part:
                raise RuntimeError("the process that tests fork theirs from has died; its error stands above")
            number += part
        return number

    def poll(self) -> int | None:
        """The exit code, as `subprocess.Popen` gives it; None while the process runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs after so many seconds.
        """
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def _end(self) -> None:
        self.returncode = os.waitstatus_to_exitcode(int(self._read_number()))
        os.close(self._status)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What was printed and not read before, once the process has ended.

        Raises:
            subprocess.TimeoutExpired: it, or who inherited its output, still runs after so many seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while not self.stdout.closed:
            left = None if until is None else max(until - time.monotonic(), 0.0)
            if not select.select([self.stdout], [], [], left)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0, output=b"".join(self._printed))
            part = os.read(self.stdout.fileno(), 1 << 16)
            if not part:
                self.stdout.close()
            self._printed.append(part)
        self.wait(None if until is None else max(until - time.monotonic(), 0.0))
        return b"".join(self._printed).decode(errors="replace"), None

    def send_signal(self, number: int) -> None:
        """Nothing is sent to a process that has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def rank_variables(world_size: int, port: int | None = None) -> list[dict[str, str]]:
    """Of each rank of a group that meets on this machine, at a free port if none is given, as `torchrun` sets them."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or free_port()), "WORLD_SIZE": str(world_size)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]


@functools.cache
def _server() -> socket.socket:
    """The line to the process that is forked; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.warm", str(theirs.fileno())],
        env=env,
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    atexit.register(_end, ours, process)
    return ours


def _end(line: socket.socket, server: subprocess.Popen[bytes]) -> None:
    line.close()
    server.wait()


def _import_all() -> None:
    for name in _IMPORTED:
        importlib.import_module(name)
    import torch

    from engine.deepspeed_config import import_deepspeed

    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        import_deepspeed("cpu")
    gc.collect()
    gc.freeze()


def _serve(line: socket.socket) -> dict[str, Any] | None:
    """Fork what is asked for. In a child: what it is to run. In the server: None, when nobody asks any more."""
    statuses: dict[int, int] = {}
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    while True:
        ready = select.select([line, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 1 << 12)
            _report_ends(statuses)
        if line not in ready:
            continue
        asked, descriptors, *_ = socket.recv_fds(line, _BYTES, 2)
        if not asked:
            return None
        output, status = descriptors
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for descriptor in (line.fileno(), woken, wakes, status, *statuses.values()):
                os.close(descriptor)
            line.detach()
            return json.loads(asked) | {"output": output}
        os.close(output)
        os.write(status, _NUMBER % pid)
        statuses[pid] = status


def _report_ends(statuses: dict[int, int]) -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            line = statuses.pop(pid)
            with suppress(BrokenPipeError):  # nobody waits for it
                os.write(line, _NUMBER % status)
            os.close(line)


def _become(job: Mapping[str, Any]) -> None:
    """Run what was asked for as if it had just been started."""
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if job["new_group"]:
        os.setsid()
    for stream in (1, 2):
        os.dup2(job["output"], stream)
    os.close(job["output"])
    os.environ.clear()
    os.environ.update(job["env"])
    import numpy as np

    random.seed()
    np.random.seed()
    sys.argv[1:] = job["argv"]
    warnings.filterwarnings("ignore", message=".*found in sys.modules after import of package")
    runpy.run_module(job["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _import_all()
    mine = _serve(socket.socket(fileno=int(sys.argv[1])))
    if mine is not None:
        _become(mine)
