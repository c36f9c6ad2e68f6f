"""Run functions in several processes that talk through gloo; results and exceptions come back to the test."""

import atexit
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


@dataclass
class _Ranks:
    """Processes that wait for functions to run, one a rank; starting them costs more than most of what they run."""

    processes: list[SpawnProcess]
    links: list[Connection]

    @classmethod
    def start(cls, world_size: int) -> "_Ranks":
        context = mp.get_context("spawn")
        pipes = [context.Pipe() for _ in range(world_size)]
        processes = [context.Process(target=_worker, args=(theirs,)) for _, theirs in pipes]
        for process, (_, theirs) in zip(processes, pipes, strict=True):
            process.start()
            theirs.close()  # the child holds its end: when it dies, reading ends instead of waiting for ever
        return cls(processes, [ours for ours, _ in pipes])

    def end(self, wait_s: float) -> None:
        for link in self.links:
            link.close()  # ends a rank that waits for its next function
        for process in self.processes:
            process.join(timeout=wait_s)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()


_waiting: dict[int, _Ranks] = {}
"""Ranks at rest, by world size."""


@atexit.register
def _end_all() -> None:
    while _waiting:
        _waiting.popitem()[1].end(wait_s=5)


def run_distributed(function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 240.0) -> list[Any]:
    """Call `function(rank, world_size, *args)` on every rank of a gloo group; the ranks' results in order.

    The processes are kept for the next call, which begins with a group, a random state and an environment of its own;
    after a failure they are ended.

    Args:
        function: importable (module level), since processes are spawned.
        world_size: processes.
        args: picklable.
        timeout_s: seconds for all of it, start included; then the processes are ended and the test fails.

    Raises:
        RuntimeError: a rank raised (its traceback is the message), died, or took too long.
    """
    deadline = time.monotonic() + timeout_s
    ranks = _waiting.pop(world_size, None) or _Ranks.start(world_size)
    port = free_port()
    try:
        for rank, link in enumerate(ranks.links):
            link.send_bytes(pickle.dumps((rank, world_size, port, function, args)))
        results = _collect(ranks.links, deadline)
    except BaseException:
        ranks.end(wait_s=0)
        raise
    _waiting[world_size] = ranks
    return results


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _collect(links: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(links):
        waiting = {id(link): rank for rank, link in enumerate(links) if rank not in results}
        ready = wait([links[rank] for rank in waiting.values()], timeout=max(deadline - time.monotonic(), 0))
        if not ready:
            raise RuntimeError(f"ranks {sorted(waiting.values())} did not finish in time")
        for link in ready:
            rank = waiting[id(link)]
            try:
                ok, value = pickle.loads(link.recv_bytes())
            except EOFError:
                raise RuntimeError(f"rank {rank} died without a word") from None
            if not ok:
                raise RuntimeError(f"rank {rank} of {len(links)}:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(links))]


def _worker(link: Connection) -> None:
    environment = dict(os.environ)
    while True:
        try:
            rank, world_size, port, function, args = pickle.loads(link.recv_bytes())
        except EOFError:
            return
        os.environ.clear()
        os.environ.update(
            environment,
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world_size),
            LOCAL_WORLD_SIZE=str(world_size),
        )
        torch.set_num_threads(1)
        torch.manual_seed(0)
        try:
            dist.init_process_group("gloo", rank=rank, world_size=world_size)
            result = function(rank, world_size, *args)
            _send(link, True, result)
        except BaseException:
            _send(link, False, traceback.format_exc())
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def _send(link: Connection, ok: bool, value: Any) -> None:
    # Plain pickle copies tensors; the pipe's own pickler would share memory that ends with this process.
    link.send_bytes(pickle.dumps((ok, value)))
