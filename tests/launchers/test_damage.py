"""`tandem pretrain` on damaged shards: it goes on and counts, or stops and says what to do. It never hangs."""

from __future__ import annotations

import ast
import logging
import math
import re
from pathlib import Path

import pytest

from data.storage.shard import ShardError
from engine.distributed import World
from tests.helpers.damaged_set import write_damaged_set
from tests.helpers.pretrain_run import UNCACHED, arguments, pretrain_here
from tests.helpers.toy_run import losses
from tests.helpers.warm import Child

pytestmark = pytest.mark.timeout(120)

Damaged = tuple[str, dict[str, tuple[str, str]]]
# 24 samples, 9 of them damaged; 8 steps of 4 are an epoch and a third.
LENGTH = "schedule.steps=8"


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    return write_damaged_set(tmp_path_factory.mktemp("damaged") / "set")


@pytest.mark.parametrize("num_workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_run_goes_on_and_counts(
    damaged: Damaged,
    num_workers: int,
    world: World,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, where = damaged
    overrides = (*UNCACHED, LENGTH, "data.max_skip_share=0.4", f"data.num_workers={num_workers}")
    with caplog.at_level(logging.WARNING):
        summary = pretrain_here(tmp_path, root, *overrides)
    assert (summary.status, summary.step, summary.skipped) == ("finished", 8, 0)
    assert all(math.isfinite(loss) for loss in losses(tmp_path))
    shown = " ".join(capsys.readouterr().out.split())
    counts = re.search(r"skipped: 0 updates, samples (\{.*?\})", shown)
    assert counts is not None, shown
    assert ast.literal_eval(counts.group(1)) == dict.fromkeys(where, 1)
    messages = [record.getMessage() for record in caplog.records]
    for reason, (key, shard) in where.items():
        assert any(f"{key} in {shard}: {reason}" in message for message in messages), (reason, messages)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_much_damage_stops_the_run(damaged: Damaged, num_workers: int, world: World, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"max_skip_share 0\.01 allows 1"):
        pretrain_here(tmp_path, damaged[0], *UNCACHED, LENGTH, f"data.num_workers={num_workers}")


@pytest.mark.slow
def test_at_the_command_line(damaged: Damaged, tmp_path: Path) -> None:
    """Exit code 1, no traceback; the message says how many, which, where, and what to do."""
    root, where = damaged
    process = Child("launchers.cli", "pretrain", *arguments(tmp_path, root, *UNCACHED, LENGTH, "data.num_workers=1"))
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 1, output
    assert "Traceback" not in output
    message = output[output.index("ShardError:") :]
    assert root in message
    assert "tandem prepare" in message
    assert "raise max_skip_share" in message
    named = [reason for reason, (key, shard) in where.items() if f"{key} in {shard}" in message and reason in message]
    assert len(named) >= 2


@pytest.mark.slow
def test_the_teacher_cache_meets_the_same_damage(damaged: Damaged, world: World, tmp_path: Path) -> None:
    root, _ = damaged
    with pytest.raises(ShardError, match=r"max_skip_share 0\.01 allows 1"):
        pretrain_here(tmp_path / "strict", root, "method.teacher.weights=random", LENGTH)
    summary = pretrain_here(
        tmp_path / "patient", root, "method.teacher.weights=random", LENGTH, "data.max_skip_share=0.4"
    )
    assert (summary.status, summary.step) == ("finished", 8)


@pytest.mark.slow
def test_a_shard_that_vanishes(tmp_path: Path, world: World) -> None:
    root, _ = write_damaged_set(tmp_path / "set")
    for file in sorted(Path(root).glob("*.tar"))[:3]:
        file.unlink()
    with pytest.raises(ShardError, match="shard-missing"):
        pretrain_here(tmp_path / "run", root, *UNCACHED, LENGTH, "data.num_workers=1")
