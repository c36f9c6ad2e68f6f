"""Notices ranks that died, hang or failed, so that the others leave with a clear message instead of waiting for ever.

One thread a rank tells the run's rendezvous store, over a connection of its own, that the process lives and where its
training is; rank 0's also listens to all and judges (`engine.watchdog_verdict`). A second thread watches the first,
because a store whose process is stopped answers nothing, not even an error. A verdict is written to the store, and
every rank that cannot raise it (it waits in a collective that will never return) is ended from here, with exit code 70
for a lost peer and 1 for one that failed by itself.

A step pays for this with a few assignments; the threads wake some ten times in `engine.heartbeat_s`.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from types import TracebackType

import torch.distributed as dist

from engine.distributed import World, barrier
from engine.errors import PeerFailedError, PeerLostError, StopRequested
from engine.watchdog_verdict import RESTART, Judge, Sign, State, WatchdogVerdict

EXIT_CODES = {"lost": 70, "failed": 1}
_MAX_INTERVAL_S = 5.0
_CLAIM_S = 3.0
"""How long the main thread has to raise a verdict itself before the process is ended."""
_HOOK_S = 10.0
"""How long the note in the run's folder may take: its storage may be what is away."""
_LEAVE_S = 20.0
"""How long rank 0, whose store the others need, waits for them at the end."""
_NO_VERDICT = "none"
_STORE_ERRORS = (RuntimeError, OSError)  # torch.distributed.DistError is a RuntimeError

logger = logging.getLogger("tandem.watchdog")


class Watchdog:
    """Watches a run's ranks inside a `with` block; all ranks enter it together.

    An error of a collective that leaves the block is turned into one that names the peer; that takes until it is known
    which peer is gone. With one process there is no peer to lose, and only standing still is noticed.
    """

    def __init__(
        self,
        world: World,
        *,
        heartbeat_s: float,
        stall_min: float,
        on_verdict: Callable[[str], None] | None = None,
    ) -> None:
        """Nothing starts before the `with` block.

        Args:
            world: the run's processes.
            heartbeat_s: silence after which a rank counts as dead, seconds.
            stall_min: standing still in one phase of a step after which a rank counts as stuck, minutes.
            on_verdict: called once with the reason, from a thread, before this process leaves; notes it somewhere.
        """
        self._world = world
        self._interval_s = min(heartbeat_s / 10, _MAX_INTERVAL_S)
        self._heartbeat_s = heartbeat_s
        self._judge = Judge(heartbeat_s=heartbeat_s, suspect_s=4 * self._interval_s, stall_s=stall_min * 60)
        self._on_verdict = on_verdict
        self._sign = Sign(rank=world.rank, host=socket.gethostname(), pid=os.getpid())
        self._progress, self._step, self._phase = 0, 0, "start"
        self._state: State = "runs"
        self._reason = ""
        self._store: dist.Store | None = None
        self._closing = threading.Event()
        self._decided = threading.Event()
        self._verdict: WatchdogVerdict | None = None
        self._claimed = False
        self._decide_lock = threading.Lock()
        self._clock, self._clock_at = 0.0, time.monotonic()
        self._talked = time.monotonic()
        self._threads: list[threading.Thread] = []

    # --- what the training calls ---

    def __enter__(self) -> Watchdog:
        """Meet the other ranks and begin."""
        if self._world.world_size > 1:
            self._connect()
        work = [self._talk] + ([self._guard] if self._store is not None else [])
        self._talked = time.monotonic()
        for run in work:
            thread = threading.Thread(target=run, name=f"watchdog{run.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Tell the others how this rank ended.

        Raises:
            PeerLostError, PeerFailedError: in place of an error of a collective.
        """
        self._claimed = True  # the main thread is on its way out by itself
        explained = self._explain(error) if error is not None else None
        agreed = isinstance(explained, PeerLostError | PeerFailedError | StopRequested)
        if explained is not None and not agreed:
            self._reason = f"{type(explained).__name__}: {' '.join(str(explained).split())}"
            self._state = "failed"
        else:
            self._state = "left"
        if self._store is not None:
            self._say_goodbye(self._store)
        self._closing.set()
        for thread in self._threads:
            thread.join(timeout=5.0)
        self._store = None
        if explained is not None and explained is not error:
            raise explained from error

    def phase(self, name: str, step: int) -> None:
        """Say what the training does now, after `step` updates, in the same order on every rank.

        The name is "data", "forward", "update", or one of `UNLIMITED`.
        """
        self._phase, self._step = name, step
        self._progress += 1

    # --- threads ---

    def _talk(self) -> None:
        """Tell, listen, judge."""
        beat = 0
        while not self._closing.wait(self._interval_s if beat else 0.0):
            beat += 1
            now = self._tick()
            try:
                self._exchange(beat, now)
            except _STORE_ERRORS as error:
                if not self._over():
                    self._decide(self._store_gone(f"its connection closed ({_short(error)})"))
                return
            self._talked = time.monotonic()
            if self._verdict is None and not self._over():
                verdict = self._judge.verdict(now)
                if verdict is not None:
                    self._decide(verdict)

    def _exchange(self, beat: int, now: float) -> None:
        """One round with the store. Alone, hear only oneself."""
        own = self._own(beat)
        store = self._store
        if store is None:
            self._judge.hear(own, now)
            return
        store.set(_key(self._world.rank), own.encode())
        if self._world.is_main:
            for text in store.multi_get([_key(rank) for rank in range(self._world.world_size)]):
                self._judge.hear(Sign.decode(text), now)
            return
        self._judge.hear(_read(store, 0), now)
        self._judge.hear(replace(own, phase="start"), now)  # whether it is stuck is for rank 0 to say, who sees all
        text = store.get("verdict").decode()
        if text != _NO_VERDICT and self._verdict is None and not self._over():
            self._decide(WatchdogVerdict.decode(text))

    def _guard(self) -> None:
        """Notice that the store answers neither yes nor no."""
        silent, before = 0.0, time.monotonic()
        while not self._closing.wait(self._interval_s):
            now = time.monotonic()
            # Bounded, so that a whole job that was suspended for an hour does not find everybody silent for an hour.
            silent = silent + min(now - before, 2 * self._interval_s) if self._talked <= before else 0.0
            before = now
            if silent > self._heartbeat_s and self._verdict is None and not self._over():
                self._decide(self._store_gone(f"silent for {silent:.0f} s"))
                return

    def _decide(self, verdict: WatchdogVerdict) -> None:
        """Spread a verdict, and end this process unless its main thread does."""
        with self._decide_lock:
            if self._verdict is not None:
                return
            self._verdict = verdict
        self._note(verdict)
        if self._world.is_main and self._store is not None:
            try:
                self._store.set("verdict", verdict.encode())
                self._wait_for_others(self._store, verdict.ranks, 3 * self._interval_s + 2.0, told=True)
            except _STORE_ERRORS as error:
                logger.warning("the other ranks could not be told: %s", _short(error))  # they notice by themselves
        self._decided.set()
        threading.Thread(target=self._leave, args=(verdict,), name="watchdog_leave", daemon=True).start()

    def _leave(self, verdict: WatchdogVerdict) -> None:
        deadline = time.monotonic() + _CLAIM_S
        while time.monotonic() < deadline and not self._claimed:
            time.sleep(0.05)
        if self._claimed and self._closing.wait(_LEAVE_S):
            return
        sys.stderr.write(f"{type(_error(verdict)).__name__}: rank {self._world.rank} leaves: {verdict.text}\n")
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_CODES[verdict.kind])  # the main thread waits in a collective: no exception would reach it

    # --- parts ---

    def _connect(self) -> None:
        """A client of one's own: the main thread's is busy whenever it waits in it."""
        names: list[str | None] = [uuid.uuid4().hex if self._world.is_main else None]
        dist.broadcast_object_list(names, src=0, device=self._world.device)
        client = dist.TCPStore(  # type: ignore[attr-defined]  # public, but not in the stubs' list
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=max(self._heartbeat_s, 30.0)),
        )
        self._store = dist.PrefixStore(f"tandem_watchdog/{names[0]}", client)  # type: ignore[attr-defined]
        self._store.set(_key(self._world.rank), self._own(0).encode())
        if self._world.is_main:
            self._store.set("verdict", _NO_VERDICT)
        barrier(self._world)  # every key is there before anybody reads
        if not self._world.is_main:
            # So that rank 0 can be named if it dies within the first round.
            self._judge.hear(_read(self._store, 0), self._tick())

    def _explain(self, error: BaseException) -> BaseException:
        """Turn an error of a collective into one that names the peer; any other comes back as it is.

        Waits until it is known which peer is gone.
        """
        if self._store is None or not is_collective_error(error):
            return error
        self._state = "broken"
        self._decided.wait(timeout=self._heartbeat_s + 2 * self._interval_s)
        if self._verdict is not None:
            return _error(self._verdict)
        behind = "; ".join(f"{sign} is behind, at {sign.where}" for sign in self._judge.behind())
        return PeerLostError(
            f"a collective failed at step {self._step}, phase '{self._phase}', though all ranks still answer: "
            f"{_short(error)}. {behind or 'Look at the network between the nodes'}. {RESTART}"
        )

    def _own(self, beat: int) -> Sign:
        return replace(
            self._sign,
            beat=beat,
            progress=self._progress,
            step=self._step,
            phase=self._phase,
            state=self._state,
            reason=self._reason,
        )

    def _tick(self) -> float:
        """A clock that stands still while this process is suspended."""
        now = time.monotonic()
        self._clock += min(now - self._clock_at, 2 * self._interval_s + 1.0)
        self._clock_at = now
        return self._clock

    def _over(self) -> bool:
        """Whether this rank is past the point where it needs the others."""
        return self._closing.is_set() or self._phase == "end" or self._state in ("failed", "left")

    def _store_gone(self, how: str) -> WatchdogVerdict:
        heard = self._judge.heard.get(0)
        who = f"{heard.sign}, last at {heard.sign.where}" if heard is not None else "rank 0"
        text = f"lost {who}: {how}. It was killed or stopped, its machine is down, or cut off from this one. {RESTART}"
        return WatchdogVerdict(kind="lost", text=text, ranks=(0,))

    def _note(self, verdict: WatchdogVerdict) -> None:
        if self._on_verdict is None:
            return
        hook = threading.Thread(
            target=self._on_verdict, args=(f"{type(_error(verdict)).__name__}: {verdict.text}",), daemon=True
        )
        hook.start()
        hook.join(timeout=_HOOK_S)

    def _say_goodbye(self, store: dist.Store) -> None:
        """Write how this rank ended to the store, and wait for those who need to read it."""
        try:
            store.set(_key(self._world.rank), self._own(-1).encode())
            if not self._world.is_main:
                if self._state == "failed":
                    # The job may be ended as soon as this process is: first let rank 0 note why.
                    _await_verdict(store, 3 * self._interval_s + _CLAIM_S)
            elif self._verdict is None and self._state == "failed":
                sign = self._own(-1)
                text = f"{sign} ended at {sign.where} with {sign.reason}"
                self._verdict = WatchdogVerdict(kind="failed", text=text, ranks=(0,))
                store.set("verdict", self._verdict.encode())
                self._wait_for_others(store, (), 3 * self._interval_s + _CLAIM_S, told=True)
            elif self._verdict is None:
                self._wait_for_others(store, (), _LEAVE_S, told=False)
        except _STORE_ERRORS as error:
            logger.debug("store of the watchdog: %s", error)  # rank 0 has left already: it needs to hear nothing

    def _wait_for_others(self, store: dist.Store, lost: tuple[int, ...], limit_s: float, *, told: bool) -> None:
        """Keep the store there until all others have heard (`told`), or have left.

        Every rank tells again after each round, so one more beat after the verdict means that it was read.
        """
        deadline = time.monotonic() + limit_s
        others = [rank for rank in range(self._world.world_size) if rank != 0 and rank not in lost]
        first = {rank: _read(store, rank).beat for rank in others}
        while others and time.monotonic() < deadline:
            signs = {rank: _read(store, rank) for rank in others}
            others = [
                rank
                for rank, sign in signs.items()
                if sign.state not in ("left", "failed") and not (told and sign.beat > first[rank] + 1)
            ]
            time.sleep(0.02)


def _key(rank: int) -> str:
    return f"rank{rank}"


def _read(store: dist.Store, rank: int) -> Sign:
    return Sign.decode(store.get(_key(rank)))


def _await_verdict(store: dist.Store, limit_s: float) -> None:
    """Wait until rank 0 has written a verdict, or has left."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and store.get("verdict").decode() == _NO_VERDICT:
        if _read(store, 0).state in ("left", "failed"):
            return
        time.sleep(0.05)


def is_collective_error(error: BaseException) -> bool:
    """Whether an error, or what caused it, came out of a collective of gloo or nccl."""
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause).lower()
        if isinstance(cause, dist.DistError) or (
            isinstance(cause, RuntimeError) and any(word in text for word in ("gloo", "nccl", "closed by peer"))
        ):
            return True
        cause = cause.__cause__
    return False


def _error(verdict: WatchdogVerdict) -> PeerLostError | PeerFailedError:
    return PeerLostError(verdict.text) if verdict.kind == "lost" else PeerFailedError(verdict.text)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
