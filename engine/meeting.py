"""Where a run's ranks meet before anything else: all are there, none has an error, and all are about to do the same.

Each rank states at the rendezvous (MASTER_ADDR:MASTER_PORT) what it is about to run, or why it cannot. Rank 0 reads all
statements, and its answer is everybody's. torch's process group comes after that: its collectives would answer a rank
that does something else with a wrong sum, an abort or silence.

A store that is not ours may accept a connection and never answer; torch's client then waits without limit inside C++.
So all talking is done by a thread that is left behind at the time limit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Literal

import psutil
import torch.distributed as dist

from common.retry import growing_delays
from engine.errors import PeerLostError

Kind = Literal["differ", "absent", "config", "locked", "stopped", "failed"]
"""Why a run cannot begin: ranks that differ or never came; or what one of them has met: a mistake in its config, a
folder that is taken, a stop signal, another error."""

_GATHER_S = 20.0
"""How long rank 0 goes on listening after the first trouble, so that its answer quotes all that have some."""
_STAY_S = 110.0
"""How long it then stays for ranks that are still on their way. srun kills what is left 120 s after the first rank has
gone (`--wait` of our batch scripts), and a killed rank would make a mistake in the config a reason to requeue."""
_ANSWER_S = 60.0
"""A rendezvous that accepts a connection answers in milliseconds; this is for one whose process is suspended."""
_HEARD_S = 10.0
"""For an answer that is there to be fetched, and for how long a rank that is told to stop waits for one."""
_TELL_EVERY_S = 60.0
_POLL_S = 0.05
_RUN_KEY = "tandem_run"
_SHOWN = 8
"""Differing facts that a message lists."""
_STORE_ERRORS = (RuntimeError, OSError)

logger = logging.getLogger("tandem.pretrain")


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What a rank says of itself.

    Attributes:
        rank: whose.
        facts: name -> value, as text, of all that must be the same on all ranks.
        kind: of the error that keeps it from running; None without one.
        error: in words.
    """

    rank: int
    facts: Mapping[str, str] = field(default_factory=dict)
    kind: Kind | None = None
    error: str = ""
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why the run cannot begin, the same on all ranks.

    Attributes:
        kind: of the trouble.
        text: one line; of "stopped" the name of the signal.
    """

    kind: Kind
    text: str


def judge(statements: Sequence[Statement]) -> Refusal | None:
    """Whether these ranks may run together; None if they may.

    An error of a rank goes before a difference: what it states is then incomplete.
    """
    stopped = [s for s in statements if s.kind == "stopped"]
    if stopped:
        return Refusal(kind="stopped", text=stopped[0].error)
    troubled = [s for s in statements if s.kind is not None]
    if troubled:
        kinds = {s.kind for s in troubled}
        kind = kinds.pop() if len(kinds) == 1 else "failed"
        assert kind is not None
        by_error: dict[str, list[Statement]] = {}
        for statement in troubled:
            by_error.setdefault(statement.error, []).append(statement)
        return Refusal(kind=kind, text="; ".join(f"{_who(who)}: {error}" for error, who in by_error.items()))
    differing = differences(statements)
    if not differing:
        return None
    shown = "; ".join(differing[:_SHOWN]) + (f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else "")
    return Refusal(
        kind="differ",
        text=f"the processes of this run are about to do different things: {shown}. Start all of them with the same "
        "command, code, packages and data",
    )


def differences(statements: Sequence[Statement]) -> list[str]:
    """Facts that are not the same everywhere, as "name: value on ranks 0-2, value on rank 3 (process ... on ...)"."""
    names = dict.fromkeys(name for statement in statements for name in statement.facts)
    lines = []
    for name in names:
        by_value: dict[str, list[Statement]] = {}
        for statement in statements:
            by_value.setdefault(statement.facts.get(name, "absent"), []).append(statement)
        if len(by_value) > 1:
            lines.append(f"{name}: " + ", ".join(f"{value} on {_who(who)}" for value, who in by_value.items()))
    return lines


def _who(statements: Sequence[Statement]) -> str:
    if len(statements) == 1:
        return str(statements[0])
    return f"ranks {_ranges([statement.rank for statement in statements])}"


def _ranges(ranks: Sequence[int]) -> str:
    """E.g. "0-2, 5"."""
    ranges: list[list[int]] = []
    for rank in sorted(ranks):
        if ranges and rank == ranges[-1][-1] + 1:
            ranges[-1][1:] = [rank]
        else:
            ranges.append([rank])
    return ", ".join("-".join(map(str, ends)) for ends in ranges)


class Meeting:
    """The ranks' meeting at their rendezvous; keeps it open (on rank 0) as long as the object lives."""

    def __init__(self, *, host: str, port: int, world_size: int, timeout_s: float, run: str = "") -> None:
        """Nothing is opened yet.

        Args:
            host: of the rendezvous: rank 0's, or that of torchrun's agent.
            port: there.
            world_size: ranks that are expected.
            timeout_s: how long to wait for all of them, seconds.
            run: what the launcher calls this run, the same on its ranks only; "" where it has no name.
        """
        self._host, self._port, self._world_size = host, port, world_size
        self._timeout_s, self._run = timeout_s, run
        self._deadline = 0.0
        self._stop: Callable[[], str | None] = lambda: None
        self._opening = False
        self._clients: list[Any] = []

    def hold(self, own: Statement, *, stop: Callable[[], str | None] = lambda: None) -> Refusal | None:
        """State, and hear whether all may run. An error of this rank is logged first: the others may keep it waiting.

        Args:
            own: this rank's statement.
            stop: asked while waiting; the name of a signal takes back that this rank can run, and ends the wait.

        Returns:
            None if the run may begin, with all ranks there.

        Raises:
            PeerLostError: not all came, or something else answers (or does not) at the rendezvous.
        """
        if own.kind not in (None, "stopped"):
            logger.error("%s cannot begin, the other ranks are told: %s", own, own.error)
        self._deadline, self._stop = time.monotonic() + self._timeout_s, stop
        answer: Future[Refusal | None] = Future()
        threading.Thread(target=self._answer, args=(own, answer), name="meeting", daemon=True).start()
        limit = self._deadline + _STAY_S + 2 * _HEARD_S
        opening_since = stopped_since = float("inf")
        while not answer.done():
            wait([answer], timeout=_POLL_S)
            now, signal = time.monotonic(), stop()
            opening_since = min(opening_since, now) if self._opening else float("inf")
            stopped_since = min(stopped_since, now) if signal else float("inf")
            if not answer.done() and (now - opening_since > min(_ANSWER_S, self._timeout_s) or now > limit):
                raise PeerLostError(self._silent())
            if not answer.done() and signal and now - stopped_since > _HEARD_S:
                return Refusal(kind="stopped", text=signal)
        error = answer.exception()
        if error is None or isinstance(error, PeerLostError) or not isinstance(error, _STORE_ERRORS):
            return answer.result()
        broke_off = (
            f"the rendezvous at {self._host}:{self._port} broke off: {_short(error)}. Rank 0, or the launcher on its "
            "machine, has ended; their output says why"
        )
        raise PeerLostError(self._silent() if self._opening else broke_off) from error

    # --- in the thread

    def _answer(self, own: Statement, answer: Future[Refusal | None]) -> None:
        try:
            answer.set_result(self._talk(own))
        except BaseException as error:
            answer.set_exception(error)

    def _talk(self, own: Statement) -> Refusal | None:
        # torchrun's agent has opened the store already, for all ranks to use.
        serves = own.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        if not serves:
            self._await_listener(tells=own.rank == 1)
        self._opening = True
        store = self._open(serves=serves, is_main=own.rank == 0)
        came = store.add(f"came{own.rank}", 1)
        self._opening = False
        if came > 1:
            raise PeerLostError(
                f"two processes say that they are rank {own.rank} of the run at {self._host}:{self._port}; give each "
                "its own RANK"
            )
        facts = json.dumps(dict(own.facts))
        digest = hashlib.sha256(facts.encode()).hexdigest()
        # By content: what all ranks state alike is kept, and read, once.
        store.set(f"facts{digest}", facts)
        store.set(f"rank{own.rank}", json.dumps(asdict(own) | {"facts": digest}))
        if own.rank != 0:
            return self._hear(store, own.rank)
        refusal = self._judge(store)
        store.set("answer", json.dumps(None if refusal is None else asdict(refusal)))
        if refusal is not None:  # this process is about to end, and the store with it
            self._stay(store, refusal)
        return refusal

    def _await_listener(self, *, tells: bool) -> None:
        """Until somebody listens at the rendezvous."""
        tell_at = time.monotonic() + _TELL_EVERY_S if tells else float("inf")
        while True:
            try:
                socket.create_connection((self._host, self._port), timeout=5.0).close()
                return
            except OSError as error:
                if time.monotonic() > self._deadline:
                    raise PeerLostError(
                        f"nobody listens at {self._host}:{self._port} after {_minutes(self._timeout_s)} "
                        f"({_short(error)}): rank 0 was never started there, has ended, or cannot be reached from "
                        f"{socket.gethostname()}; its output says more"
                    ) from error
                if time.monotonic() > tell_at:
                    tell_at += _TELL_EVERY_S
                    logger.warning("waiting for rank 0: nobody listens at %s:%d yet", self._host, self._port)
                time.sleep(4 * _POLL_S)

    def _open(self, *, serves: bool, is_main: bool) -> Any:
        left = timedelta(seconds=max(self._deadline - time.monotonic(), 1.0))
        try:
            client = dist.TCPStore(  # type: ignore[attr-defined]  # public, but not in the stubs' list
                self._host,
                self._port,
                is_master=serves,
                wait_for_workers=False,
                timeout=left,
                multi_tenant=True,  # torch's process group opens the same port again, in the same process
            )
        except _STORE_ERRORS as error:
            if serves and _in_use(error):
                raise PeerLostError(
                    f"port {self._port}, at which the processes of this run are to meet, is {_holder(self._port)}; end "
                    "it, or choose another port (MASTER_PORT, torchrun's --master-port; a job that SLURM starts again "
                    "takes another by itself)"
                ) from error
            raise
        self._clients.append(client)
        if is_main:
            client.set(_RUN_KEY, self._run)
        # torchrun's agent keeps its store when it starts the ranks again.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return dist.PrefixStore(f"tandem_meeting/{self._run}/{attempt}", client)  # type: ignore[attr-defined]

    def _judge(self, store: Any) -> Refusal | None:
        """Rank 0's answer: when all have come or the time is over, soon after the first trouble, at once to a stop."""
        came: dict[int, Statement] = {}
        trouble: Refusal | None = None
        deadline, tell_at = self._deadline, time.monotonic() + _TELL_EVERY_S
        while True:
            if signal := self._stop() or (store.get("stopped").decode() if store.check(["stopped"]) else None):
                return Refusal(kind="stopped", text=signal)
            away = [rank for rank in range(self._world_size) if rank not in came]
            new = {rank: _read(store, rank) for rank in away if store.check([f"rank{rank}"])}
            now = time.monotonic()
            if new:
                came |= new
                away = [rank for rank in away if rank not in new]
                trouble = judge([came[rank] for rank in sorted(came)])
                if trouble is not None:
                    deadline = min(deadline, now + _GATHER_S)
            if not away or now > deadline or (trouble is not None and trouble.kind == "stopped"):
                break
            if now > tell_at:
                tell_at += _TELL_EVERY_S
                logger.warning("waiting at %s:%d for %s", self._host, self._port, self._named(away))
            time.sleep(0 if new else _POLL_S)
        if trouble is not None or not away:
            return trouble
        text = (
            f"{self._named(away)} never came to {self._host}:{self._port} within {_minutes(self._timeout_s)} "
            "(engine.timeout_min): not started, ended before, or cut off; their output says more"
        )
        return Refusal(kind="absent", text=text)

    def _named(self, ranks: Sequence[int]) -> str:
        return f"{'rank' if len(ranks) == 1 else 'ranks'} {_ranges(ranks)} of {self._world_size}"

    def _hear(self, store: Any, rank: int) -> Refusal | None:
        """Another rank's way to rank 0's answer."""
        client = self._clients[-1]
        limit_s = max(self._deadline - time.monotonic(), 0.0) + _HEARD_S
        for delay in growing_delays(_POLL_S, 10 * _POLL_S, limit_s):
            if store.check(["answer"]):
                answer = json.loads(store.get("answer"))
                store.set(f"heard{rank}", "")
                return None if answer is None else Refusal(**answer)
            if client.check([_RUN_KEY]) and (theirs := client.get(_RUN_KEY).decode()) != self._run:
                raise PeerLostError(
                    f"{self._host}:{self._port} is where another run meets ({theirs or 'without a name'}, this one is "
                    f"{self._run or 'without a name'}); choose another port (MASTER_PORT, torchrun's --master-port)"
                )
            if signal := self._stop():
                store.set("stopped", signal)
            time.sleep(delay)
        raise PeerLostError(
            f"rank 0 gave no answer at {self._host}:{self._port} within {_minutes(self._timeout_s)} "
            "(engine.timeout_min); its output says why"
        )

    def _stay(self, store: Any, refusal: Refusal) -> None:
        """Until all ranks have heard; for those who did not come in all the time that there was, nobody waits on."""
        absent = refusal.kind == "absent"
        waiting = [rank for rank in range(1, self._world_size) if not absent or store.check([f"rank{rank}"])]
        deadline = time.monotonic() + (_HEARD_S if absent else min(_STAY_S, self._timeout_s))
        while waiting and time.monotonic() < deadline:
            waiting = [rank for rank in waiting if not store.check([f"heard{rank}"])]
            time.sleep(_POLL_S)

    def _silent(self) -> str:
        here = _holder(self._port) if _is_here(self._host) else f"held by a process on {self._host}"
        return (
            f"{self._host}:{self._port}, at which the processes of this run are to meet, takes connections and does "
            f"not answer as a rendezvous: the port is {here}. If that is not rank 0 of this run, end it, or choose "
            "another port (MASTER_PORT, torchrun's --master-port)"
        )


def _read(store: Any, rank: int) -> Statement:
    content = json.loads(store.get(f"rank{rank}"))
    return Statement(**content | {"facts": json.loads(store.get(f"facts{content['facts']}"))})


def _in_use(error: BaseException) -> bool:
    text = str(error)
    return "EADDRINUSE" in text or "address already in use" in text.lower()


def _is_here(host: str) -> bool:
    """Whether an address is this machine's."""
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    try:
        return bool({str(info[4][0]) for info in socket.getaddrinfo(host, None)} & own)
    except OSError:
        return False


def _holder(port: int) -> str:
    """Who listens on a port of this machine, in words: "held by process 12 (nc -l 29500, of user ann)"."""
    try:
        listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        pids = [c.pid for c in listening if c.laddr and c.laddr.port == port]
    except psutil.Error:
        pids = [None]
    if not pids:
        return "free again: what held it has ended"
    for pid in filter(None, pids):
        try:
            process = psutil.Process(pid)
            return f"held by process {pid} ({' '.join(process.cmdline())[:120]}, of user {process.username()})"
        except psutil.Error:
            continue
    return f"held by another process (`ss -ltnp 'sport = :{port}'` as root names it)"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.2g} min"


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
