"""Who of a run's ranks is dead or stuck: a judgement on what was heard, without threads, sockets or clocks of others.

Each rank tells a counter that its watchdog moves (the process lives) and a counter that its training moves (it gets
on). Only standing still counts, measured by the listener's own clock, so clocks of other machines do not matter.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

State = Literal["runs", "broken", "failed", "left"]
"""How a rank sees itself: in the run; a connection to a peer broke; ended with an error; ended as it should."""

UNLIMITED = frozenset({"start", "teacher cache", "checkpoint", "pictures", "measure", "end"})
"""Phases that may take as long as they like: the time limit of collectives bounds the wait for them."""


@dataclass(frozen=True, kw_only=True)
class Sign:
    """What a rank tells the others.

    Attributes:
        rank: whose.
        host: where it runs.
        pid: its process there.
        beat: grows as long as the process lives.
        progress: grows with every phase that training enters; the same course on every rank.
        step: updates done.
        phase: what it is doing.
        state: see `State`.
        reason: why it failed.
    """

    rank: int
    host: str
    pid: int
    beat: int = 0
    progress: int = 0
    step: int = 0
    phase: str = "start"
    state: State = "runs"
    reason: str = ""

    def encode(self) -> str:
        """As text for the store."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str | bytes) -> Sign:
        """From the store's text."""
        return cls(**json.loads(text))

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    @property
    def where(self) -> str:
        """Where in the run it was."""
        return f"step {self.step}, phase '{self.phase}'"


@dataclass(frozen=True, kw_only=True)
class WatchdogVerdict:
    """Why the run cannot continue.

    Attributes:
        kind: "lost": a restart continues; "failed": a rank ended with an error of its own.
        text: what happened, one line.
        ranks: who is to blame.
    """

    kind: Literal["lost", "failed"]
    text: str
    ranks: tuple[int, ...]

    def encode(self) -> str:
        """As text for the store."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str | bytes) -> WatchdogVerdict:
        """From the store's text."""
        values = json.loads(text)
        return cls(kind=values["kind"], text=values["text"], ranks=tuple(values["ranks"]))


RESTART = "The same command again continues from the last checkpoint."


@dataclass
class _Heard:
    sign: Sign
    beat_at: float
    progress_at: float


@dataclass(kw_only=True)
class Judge:
    """Keeps when each rank last moved.

    Attributes:
        heartbeat_s: silence after which a rank counts as dead.
        suspect_s: the same while some rank reports a broken connection, which is evidence enough to be quicker.
        stall_s: standing still after which the rank that is furthest behind counts as stuck.
    """

    heartbeat_s: float
    suspect_s: float
    stall_s: float
    heard: dict[int, _Heard] = field(default_factory=dict)

    def hear(self, sign: Sign, now: float) -> None:
        """Take note of a rank's newest sign; `now` is the listener's clock, seconds."""
        known = self.heard.get(sign.rank)
        if known is None:
            self.heard[sign.rank] = _Heard(sign, now, now)
            return
        if sign.beat != known.sign.beat:
            known.beat_at = now
        if sign.progress != known.sign.progress:
            known.progress_at = now
        known.sign = sign

    def verdict(self, now: float) -> WatchdogVerdict | None:
        """Why the run cannot continue, None while it can; `now` is the listener's clock, seconds."""
        present = [h for h in self.heard.values() if h.sign.state != "left" and h.sign.phase != "end"]
        return self._failed(present) or self._silent(present, now) or self._stuck(present, now)

    def behind(self) -> list[Sign]:
        """Ranks that are not as far as others; [] if all are at the same point."""
        last = min((h.sign.progress for h in self.heard.values()), default=0)
        signs = [h.sign for h in self.heard.values() if h.sign.progress == last]
        return signs if len(signs) < len(self.heard) else []

    def _failed(self, present: list[_Heard]) -> WatchdogVerdict | None:
        failed = [h.sign for h in present if h.sign.state == "failed"]
        if not failed:
            return None
        text = "; ".join(f"{sign} ended at {sign.where} with {sign.reason}" for sign in failed)
        return WatchdogVerdict(kind="failed", text=text, ranks=tuple(sign.rank for sign in failed))

    def _silent(self, present: list[_Heard], now: float) -> WatchdogVerdict | None:
        broken = any(h.sign.state == "broken" for h in present)
        limit = self.suspect_s if broken else self.heartbeat_s
        silent = [h for h in present if now - h.beat_at > limit]
        if not silent:
            return None
        names = "; ".join(f"{h.sign}, silent for {now - h.beat_at:.0f} s, last at {h.sign.where}" for h in silent)
        text = (
            f"lost {names}. It was killed, or its machine is down, hangs or is cut off; the end of its own output and "
            f"of its machine's system log may say more. {RESTART}"
        )
        return WatchdogVerdict(kind="lost", text=text, ranks=tuple(h.sign.rank for h in silent))

    def _stuck(self, present: list[_Heard], now: float) -> WatchdogVerdict | None:
        if not present:
            return None
        last = min(h.sign.progress for h in present)
        behind = [h for h in present if h.sign.progress == last]
        # One that may take its time, or moved lately, excuses the others that wait for it.
        if any(h.sign.phase in UNLIMITED or now - h.progress_at <= self.stall_s for h in behind):
            return None
        who = (
            "all ranks stand" if len(behind) == len(present) > 1 else ", ".join(str(h.sign) for h in behind) + " stands"
        )
        text = (
            f"{who} still at {behind[0].sign.where}, for {(now - behind[0].progress_at) / 60:.1f} min "
            f"(engine.stall_min={self.stall_s / 60:g}). The process answers, so something it waits for hangs: storage, "
            f"a data worker, the GPU or the network. {RESTART}"
        )
        return WatchdogVerdict(kind="lost", text=text, ranks=tuple(h.sign.rank for h in behind))
