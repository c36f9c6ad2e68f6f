from __future__ import annotations

from dataclasses import replace

import pytest

from engine.watchdog_verdict import Judge, Sign, WatchdogVerdict


def sign(rank: int, **values: object) -> Sign:
    return replace(Sign(rank=rank, host=f"n{rank}", pid=100 + rank), **values)  # type: ignore[arg-type]


def judge() -> Judge:
    return Judge(heartbeat_s=60.0, suspect_s=15.0, stall_s=600.0)


def test_ranks_that_move_are_fine() -> None:
    watch = judge()
    for now in range(0, 3600, 5):
        for rank in range(3):
            watch.hear(sign(rank, beat=now, progress=now // 10, phase="forward"), float(now))
        assert watch.verdict(float(now)) is None


def test_a_silent_rank_is_named_with_host_process_step_and_phase() -> None:
    watch = judge()
    for now in range(0, 200, 5):
        watch.hear(sign(0, beat=now, progress=now, phase="update"), float(now))
        watch.hear(sign(1, beat=min(now, 100), progress=now, step=7, phase="data"), float(now))
        verdict = watch.verdict(float(now))
        assert (verdict is not None) == (now > 160)
    assert verdict is not None
    assert (verdict.kind, verdict.ranks) == ("lost", (1,))
    assert "rank 1 (process 101 on n1), silent for 95 s, last at step 7, phase 'data'" in verdict.text


def test_a_broken_connection_makes_quicker() -> None:
    watch = judge()
    for rank in (0, 1, 2):
        watch.hear(sign(rank, beat=1, progress=1, phase="forward"), 0.0)
    for rank in (0, 2):
        watch.hear(sign(rank, beat=9, progress=1, phase="forward", state="broken"), 20.0)
    verdict = watch.verdict(20.0)
    assert verdict is not None
    assert verdict.ranks == (1,)


@pytest.mark.parametrize(("phase", "stuck"), [("data", True), ("forward", True), ("checkpoint", False)])
def test_who_is_behind_is_the_one_that_is_stuck(phase: str, stuck: bool) -> None:
    """The others wait in a collective, further on; long phases have no limit here."""
    watch = judge()
    for now in range(0, 1000, 5):
        watch.hear(sign(0, beat=now, progress=6, phase="update"), float(now))
        watch.hear(sign(1, beat=now, progress=5, phase=phase), float(now))
    verdict = watch.verdict(1000.0)
    assert (verdict is not None) == stuck
    if verdict is not None:
        assert verdict.ranks == (1,)
        assert f"phase '{phase}'" in verdict.text


def test_who_is_behind() -> None:
    watch = judge()
    assert watch.behind() == []
    for rank, progress in ((0, 6), (1, 5), (2, 6)):
        watch.hear(sign(rank, progress=progress, phase="checkpoint"), 0.0)
    assert [s.rank for s in watch.behind()] == [1]
    watch.hear(sign(1, progress=6), 1.0)
    assert watch.behind() == []


def test_all_stand_still() -> None:
    watch = judge()
    for now in range(0, 700, 5):
        for rank in range(2):
            watch.hear(sign(rank, beat=now, progress=6, phase="forward"), float(now))
    verdict = watch.verdict(700.0)
    assert verdict is not None
    assert verdict.ranks == (0, 1)
    assert "all ranks stand" in verdict.text


def test_who_has_left_is_not_missed() -> None:
    watch = judge()
    watch.hear(sign(0, beat=1, progress=1, phase="end"), 0.0)
    watch.hear(sign(1, beat=1, progress=1, phase="forward", state="left"), 0.0)
    assert watch.verdict(1e6) is None


def test_a_rank_that_failed_is_quoted() -> None:
    watch = judge()
    watch.hear(sign(1, state="failed", reason="ShardError: too many damaged samples", step=3, phase="data"), 0.0)
    verdict = watch.verdict(0.0)
    assert verdict is not None
    assert verdict.kind == "failed"
    assert "rank 1 (process 101 on n1) ended at step 3, phase 'data' with ShardError: too many" in verdict.text


def test_signs_and_verdicts_travel_as_text() -> None:
    there = sign(3, beat=4, progress=5, step=6, phase="data", state="broken", reason="ü")
    assert Sign.decode(there.encode()) == there
    verdict = WatchdogVerdict(kind="lost", text="ü", ranks=(1, 2))
    assert WatchdogVerdict.decode(verdict.encode()) == verdict
