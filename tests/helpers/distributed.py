"""Run a function in several processes that talk through gloo; results and exceptions come back to the test."""

import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_distributed(function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 240.0) -> list[Any]:
    """Call `function(rank, world_size, *args)` on every rank of a gloo group; the ranks' results in order.

    Args:
        function: importable (module level), since processes are spawned.
        world_size: processes.
        args: picklable.
        timeout_s: seconds for all of it, start included; then the processes are ended and the test fails.

    Raises:
        RuntimeError: a rank raised (its traceback is the message), died, or took too long.
    """
    context = mp.get_context("spawn")
    port = free_port()
    links = [context.Pipe(duplex=False) for _ in range(world_size)]
    workers = [
        context.Process(target=_worker, args=(rank, world_size, port, links[rank][1], function, args), daemon=False)
        for rank in range(world_size)
    ]
    try:
        for worker, (_, ours) in zip(workers, links, strict=True):
            worker.start()
            ours.close()  # the child holds its end: when it dies, reading ends instead of waiting for ever
        return _collect([receive for receive, _ in links], time.monotonic() + timeout_s)
    finally:
        for worker in workers:
            worker.join(timeout=5)
            if worker.is_alive():
                worker.kill()
                worker.join()
            worker.close()
        for receive, _ in links:
            receive.close()


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


def _worker(
    rank: int, world_size: int, port: int, link: Connection, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
    )
    try:
        dist.init_process_group("gloo", rank=rank, world_size=world_size)
        result = function(rank, world_size, *args)
        _send(link, True, result)
    except BaseException:
        _send(link, False, traceback.format_exc())
    finally:
        link.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def _send(link: Connection, ok: bool, value: Any) -> None:
    # Plain pickle copies tensors; the pipe's own pickler would share memory that ends with this process.
    link.send_bytes(pickle.dumps((ok, value)))
