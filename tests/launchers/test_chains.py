"""Killed again and again (kill -9), from the teacher cache to the report: nothing differs from an undisturbed run."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.distributed import World
from launchers.cli import main as tandem
from tests.helpers.pretrain_run import arguments, pretrain_here
from tests.helpers.run_folder import QUICK, STREET_PROTOCOLS, write_toy_run
from tests.helpers.samples import write_toy_set
from tests.helpers.toy_run import losses, metrics, weights
from tests.helpers.warm import Child

STEPS = 8
RUN = (
    "method.teacher.weights=random",
    "method.teacher.cache=true",
    "data.augment.image.enabled=false",
    f"schedule.steps={STEPS}",
    "checkpoint.every_steps=2",
    "monitor.tensorboard=true",
    "monitor.picture_every=4",
)
EVALUATE = ("protocols=[linear_probe,knn]", *QUICK)

_CLOCK = ("perf/", "time/", "mem/")
"""Tags whose values depend on the clock and the machine."""


def kill_when(ready: Callable[[], bool], verb: str, argv: list[str], delay_s: float) -> None:
    """Start a verb, and kill it a moment after a sign of its progress; it may have ended by then."""
    process = Child(f"launchers.{verb}", *argv)
    deadline = time.monotonic() + 120
    while process.poll() is None and not ready() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(delay_s)
    process.kill()
    process.communicate()


def reached(run: Path, step: int) -> Callable[[], bool]:
    return lambda: (run / "metrics.jsonl").is_file() and any(line["step"] >= step for line in metrics(run))


def curves(run: Path) -> dict[str, list[Any]]:
    """Tag -> steps of what TensorBoard shows, with the values where they do not depend on the machine."""
    shown = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    shown.Reload()
    found: dict[str, list[Any]] = {}
    for tag in shown.Tags()["scalars"]:
        found[tag] = [(event.step, None if tag.startswith(_CLOCK) else event.value) for event in shown.Scalars(tag)]
    for tag in shown.Tags()["images"]:
        found[tag] = [(event.step, event.encoded_image_string) for event in shown.Images(tag)]
    return found


def results(run: Path) -> Any:
    """results.json without what depends on the clock."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in ("date", "seconds")}
        return [plain(item) for item in value] if isinstance(value, list) else value

    return plain(json.loads((run / "results.json").read_text()))


def tables(root: Path) -> list[str]:
    """Lines of the report's tables without its dates."""
    lines = (root / "report.md").read_text().replace(str(root), "ROOT").splitlines()
    return [
        re.sub(r"\d{4}-\d\d-\d\d[T ][\d:+]+|[\d.]+ (s|min|h)\b", "", line) for line in lines if line.startswith("|")
    ]


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of the undisturbed and of the killed run: of one name, as reports show it."""
    return tmp_path / "whole" / "run", tmp_path / "cut" / "run"


@pytest.mark.slow
def test_kills_while_the_teacher_is_cached_and_while_it_trains(
    runs: tuple[Path, Path], world: World, one_thread: None, tmp_path: Path
) -> None:
    (whole, cut), rng = runs, random.Random(0)
    shards = write_toy_set(tmp_path / "set", num_logs=6, frames_per_log=2)
    cache = Path(shards) / "teacher_cache"
    pretrain_here(whole, shards, *RUN)
    shutil.rmtree(cache)
    for ready in (cache.exists, reached(cut, 3), reached(cut, 6)):
        kill_when(ready, "pretrain", arguments(cut, shards, *RUN), rng.uniform(0.0, 0.2))
    pretrain_here(cut, shards, *RUN)
    assert losses(cut) == losses(whole)
    assert [line["step"] for line in metrics(cut)] == list(range(1, STEPS + 1))
    assert all(torch.equal(weights(cut)[name], value) for name, value in weights(whole).items())
    assert curves(cut) == curves(whole)


@pytest.mark.slow
def test_kills_while_it_is_evaluated_and_reported(runs: tuple[Path, Path], one_thread: None, tmp_path: Path) -> None:
    (whole, cut), rng = runs, random.Random(0)
    shards = write_toy_set(tmp_path / "set", num_logs=6, frames_per_log=2)
    for run in runs:
        write_toy_run(run, shards)
        evaluate = ["evaluate", str(run), str(STREET_PROTOCOLS), *EVALUATE]
        if run == cut:
            kill_when((run / "results.json").exists, "evaluate", evaluate[1:], rng.uniform(0.0, 0.2))
        assert tandem(evaluate) == 0
    assert results(cut) == results(whole)
    for run in runs:
        page = run.parent / "report.html"
        report = ["report", str(run.parent), "--out", str(page)]
        if run == cut:
            page.write_text("an older report")
            kill_when(lambda: True, "report", report[1:], rng.uniform(4.0, 6.0))
            # Whole, the old one or the new one.
            assert page.read_text() == "an older report" or page.read_text().rstrip().endswith("</html>")
        assert tandem(report) == 0
    assert tables(cut.parent) == tables(whole.parent)
    assert not list(tmp_path.rglob("*.tmp"))
