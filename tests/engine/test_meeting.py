"""The meeting of the ranks: the judgement alone, and threads that meet over a real store."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import pytest

from engine import meeting
from engine.distributed import free_port
from engine.errors import PeerLostError
from engine.meeting import Kind, Meeting, Refusal, Statement, judge


def said(rank: int, **facts: str) -> Statement:
    return Statement(rank=rank, facts=facts, host=f"n{rank}", pid=10 + rank)


def failed(rank: int, kind: Kind, error: str) -> Statement:
    return Statement(rank=rank, kind=kind, error=error, host=f"n{rank}", pid=10 + rank)


def test_equal_ranks_may_run() -> None:
    assert judge([said(0, lr="0.1"), said(1, lr="0.1")]) is None


def test_a_difference_is_named_with_both_values_and_their_ranks() -> None:
    ranks = [said(n, lr="0.1", steps="5") for n in range(4)] + [said(4, lr="5.0", steps="5")]
    refusal = judge(ranks)
    assert refusal is not None
    assert refusal.kind == "differ"
    assert "lr: 0.1 on ranks 0-3, 5.0 on rank 4 (process 14 on n4)" in refusal.text
    assert "steps" not in refusal.text


def test_a_fact_that_one_rank_lacks_is_a_difference() -> None:
    refusal = judge([said(0, lr="0.1", width="8"), said(1, lr="0.1")])
    assert refusal is not None
    assert "width: 8 on rank 0 (process 10 on n0), absent on rank 1" in refusal.text


def test_a_long_list_of_differences_is_cut() -> None:
    refusal = judge([said(rank, **{f"f{n:02d}": str(rank) for n in range(20)}) for rank in range(2)])
    assert refusal is not None
    assert "f07: " in refusal.text
    assert "f08: " not in refusal.text
    assert "and 12 more" in refusal.text


def test_an_error_goes_before_a_difference() -> None:
    refusal = judge([said(0, lr="0.1"), failed(1, "config", "ConfigError: lr: got -1")])
    assert refusal == Refusal(kind="config", text="rank 1 (process 11 on n1): ConfigError: lr: got -1")
    refusal = judge([failed(n, "failed", "ShardError: gone") for n in (0, 1, 3)])
    assert refusal == Refusal(kind="failed", text="ranks 0-1, 3: ShardError: gone")
    refusal = judge([failed(0, "config", "a"), failed(1, "stopped", "SIGTERM")])
    assert refusal == Refusal(kind="stopped", text="SIGTERM")


# ---- over a store


def hold(
    statements: list[Statement],
    *,
    world_size: int,
    timeout_s: float = 30.0,
    late_s: Mapping[int, float] = MappingProxyType({}),
    stopped_s: Mapping[int, float] = MappingProxyType({}),
    runs: Mapping[int, str] = MappingProxyType({}),
) -> list[Any]:
    """What each rank hears: None, a refusal, or the error.

    By rank: the seconds after which it comes, the seconds after which it gets a signal, the name of its run.
    """
    port, began = free_port(), time.monotonic()
    common: Any = {"host": "127.0.0.1", "port": port, "world_size": world_size, "timeout_s": timeout_s}
    held = [Meeting(**common, run=runs.get(n, "")) for n in range(len(statements))]

    def one(n: int) -> Any:
        time.sleep(late_s.get(n, 0.0))
        try:
            signalled = began + stopped_s.get(n, float("inf"))
            return held[n].hold(statements[n], stop=lambda: "SIGTERM" if time.monotonic() > signalled else None)
        except PeerLostError as error:
            return error

    with ThreadPoolExecutor(len(statements)) as pool:
        return list(pool.map(one, range(len(statements))))


def test_all_ranks_hear_the_same() -> None:
    assert hold([said(n, lr="1") for n in range(3)], world_size=3) == [None] * 3
    heard = hold([said(0, lr="1"), said(1, lr="1"), said(2, lr="2")], world_size=3)
    assert heard[0].kind == "differ"
    assert heard == [heard[0]] * 3


def test_a_mistake_is_heard_at_once_though_a_rank_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_GATHER_S", 0.2)
    monkeypatch.setattr(meeting, "_STAY_S", 0.5)
    began = time.monotonic()
    heard = hold([said(0), failed(1, "config", "ConfigError: no such file")], world_size=3)
    assert time.monotonic() - began < 5
    assert [refusal.kind for refusal in heard] == ["config", "config"]


def test_a_rank_that_comes_after_the_answer_hears_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(meeting, "_GATHER_S", 0.1)
    monkeypatch.setattr(meeting, "_TELL_EVERY_S", 0.05)
    heard = hold([failed(0, "config", "ConfigError: lr"), said(1), said(2)], world_size=3, late_s={2: 1.5})
    assert heard == [Refusal(kind="config", text="rank 0 (process 10 on n0): ConfigError: lr")] * 3
    first, *_ = caplog.messages
    assert first == "rank 0 (process 10 on n0) cannot begin, the other ranks are told: ConfigError: lr"
    assert any(re.fullmatch(r"waiting at 127\.0\.0\.1:\d+ for ranks? .*2 of 3", text) for text in caplog.messages)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_gets_a_signal_takes_its_word_back(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Having stated that it can run: the others do not begin without it, and need not wait for the last one."""
    monkeypatch.setattr(meeting, "_STAY_S", 0.5)
    began = time.monotonic()
    assert (
        hold([said(0), said(1), said(2)], world_size=4, stopped_s={rank: 0.5})
        == [Refusal(kind="stopped", text="SIGTERM")] * 3
    )
    assert time.monotonic() - began < 5


def test_two_runs_at_one_port_do_not_meet() -> None:
    heard = hold([said(0), said(1), said(1)], world_size=2, runs={0: "a", 1: "a", 2: "b"}, late_s={2: 0.1})
    assert heard[:2] == [None, None]
    assert "is where another run meets (a, this one is b); choose another port" in str(heard[2])


def test_a_rank_that_never_comes_is_named() -> None:
    heard = hold([said(0), said(1)], world_size=4, timeout_s=0.5)
    assert [refusal.kind for refusal in heard] == ["absent", "absent"]
    assert "ranks 2-3 of 4 never came" in heard[0].text
    (alone,) = hold([said(1)], world_size=2, timeout_s=0.5)
    assert isinstance(alone, PeerLostError)
    assert "rank 0 was never started" in str(alone)


def test_two_processes_of_one_rank_are_told_apart() -> None:
    heard = hold([said(0), said(1), said(1)], world_size=3, timeout_s=1.0)
    assert any("two processes say that they are rank 1" in str(one) for one in heard)


@contextmanager
def silent_stranger() -> Iterator[int]:
    """A port whose owner accepts connections and says nothing."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        yield stranger.getsockname()[1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_port_held_by_a_stranger(rank: int) -> None:
    with silent_stranger() as port:
        began = time.monotonic()
        with pytest.raises(PeerLostError) as raised:
            Meeting(host="127.0.0.1", port=port, world_size=2, timeout_s=1.0).hold(said(rank))
        assert str(port) in str(raised.value)
        assert f"held by process {os.getpid()} (" in str(raised.value)
        assert time.monotonic() - began < 5
