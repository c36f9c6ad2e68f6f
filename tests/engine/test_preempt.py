from __future__ import annotations

import os
import signal

import pytest

from engine.preempt import STOP_SIGNALS, StopSignals, ignore_stop_signals, name_of


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_notes_the_first_signal_and_puts_handlers_back(number: signal.Signals) -> None:
    before = {n: signal.getsignal(n) for n in STOP_SIGNALS}
    with StopSignals() as signals:
        assert (signals.number, signals.received) == (0, None)
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (signals.number, signals.received) == (number, number.name)
    assert {n: signal.getsignal(n) for n in STOP_SIGNALS} == before


def test_a_block_inside_shares_what_came_before_it() -> None:
    with StopSignals() as outer:
        os.kill(os.getpid(), signal.SIGUSR2)
        with StopSignals() as inner:
            assert inner is outer
            assert inner.received == "SIGUSR2"
        os.kill(os.getpid(), signal.SIGTERM)  # still caught
    with StopSignals() as fresh:
        assert fresh.received is None


def test_second_interrupt_stops_at_once() -> None:
    with StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_ignored_at_the_very_end() -> None:
    with StopSignals():  # puts the handlers back afterwards
        ignore_stop_signals()
        os.kill(os.getpid(), signal.SIGTERM)
        assert {signal.getsignal(number) for number in STOP_SIGNALS} == {signal.SIG_IGN}


def test_names() -> None:
    assert (name_of(0), name_of(int(signal.SIGUSR1))) == (None, "SIGUSR1")
