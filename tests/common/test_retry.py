"""Delays between tries."""

from __future__ import annotations

import itertools

import pytest

from common.retry import growing_delays


def test_delays_double_up_to_the_longest() -> None:
    assert list(itertools.islice(growing_delays(0.5, 3.0), 5)) == [0.5, 1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize("total", [0.0, 0.5, 7.0, 100.0])
def test_delays_fill_the_time_allowed(total: float) -> None:
    delays = list(growing_delays(1.0, 30.0, total))
    assert sum(delays) == pytest.approx(total)
    assert all(0 < delay <= 30 for delay in delays)
