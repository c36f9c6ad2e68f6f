from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from engine import metric_names as names
from engine.distributed import World
from engine.monitor import Monitor, MonitorConfig, Window, peak_rss_gib
from engine.settings import PretrainSettings


def test_window_means_and_empties(world: World) -> None:
    window = Window()
    window.add({"a": 1.0, "b": 2.0})
    window.add({"a": 2.0, "b": 4.0})
    assert window.means(world) == {"a": 1.5, "b": 3.0}
    assert window.means(world) == {}


def test_numbers_that_json_does_not_know_become_null(world: World, tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, MonitorConfig(tensorboard=False, progress=False), world, step=0, num_steps=3)
    monitor.log(1, {names.LOSS: float("nan"), names.LR: 0.5})
    monitor.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["step"], line[names.LOSS], line[names.LR]) == (1, None, 0.5)


def test_plain_lines_where_there_is_no_terminal(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = Monitor(tmp_path, MonitorConfig(tensorboard=False), world, step=0, num_steps=4)
    monitor.log(2, {names.LOSS: 1.25, names.SAMPLES_PER_S: 3.0, names.DATA_WAIT_SHARE: 0.02, names.SKIPPED: 1.0})
    monitor.close()
    text = capsys.readouterr().err
    assert "step 2/4  loss 1.2500  3.0 samples/s  waiting for data 2%  skipped 1  0:00:00 left" in text


def test_time_left_is_that_of_the_recent_updates(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow beginning is forgotten."""
    now = 0.0
    monkeypatch.setattr("engine.monitor.time.monotonic", lambda: now)
    monitor = Monitor(tmp_path, MonitorConfig(tensorboard=False), world, step=0, num_steps=100)
    for step in range(10, 70, 10):
        now += 1000.0 if step == 10 else 10.0
        monitor.log(step, {names.LOSS: 1.0})
    monitor.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("2:30:00 left")
    assert lines[-1].endswith("0:00:40 left")


def test_a_bar_on_a_terminal(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("engine.monitor.Console", lambda **_: Console(file=screen, force_terminal=True, width=150))
    monitor = Monitor(tmp_path, MonitorConfig(tensorboard=False), world, step=1, num_steps=4)
    monitor.log(2, {names.LOSS: 1.25})
    monitor.advance(2, {names.LOSS: 1.25})
    monitor.close()
    assert "2/4" in screen.getvalue()
    assert "loss 1.2500" in screen.getvalue()
    assert "left" in screen.getvalue()


def test_other_ranks_are_silent(tmp_path: Path, world: World) -> None:
    other = World(rank=1, world_size=2, local_rank=1, device=world.device)
    monitor = Monitor(tmp_path / "run", MonitorConfig(), other, step=0, num_steps=4)
    monitor.log(1, {names.LOSS: 1.0})
    monitor.advance(1)
    monitor.close()
    assert not (tmp_path / "run").exists()


def test_settings_are_what_omegaconf_takes() -> None:
    config = OmegaConf.merge(OmegaConf.structured(PretrainSettings), {"engine": {"zero_stage": 2}})
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, PretrainSettings)
    assert settings.engine.zero_stage == 2
    assert settings.optim.betas == (0.9, 0.999)


def test_peak_memory_is_plausible() -> None:
    assert 0.05 < peak_rss_gib() < 200
