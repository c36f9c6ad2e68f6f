"""The demo's commands are commands that a user could type."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from configs.load import load
from configs.schema import EvaluateConfig
from launchers.cli import VERBS
from launchers.demo import FULL, NORMAL, SHORT, DemoSize, commands, main, time_left
from launchers.options.demo import parser
from launchers.reporting.run_facts import command_text
from launchers.training.train import load_run


@pytest.mark.parametrize("size", [NORMAL, FULL, SHORT], ids=["normal", "full", "short"])
def test_every_stage_is_a_valid_command(tmp_path: Path, size: DemoSize) -> None:
    made = commands(tmp_path, size)
    assert sum(stage.share for stage in made) == pytest.approx(1.0)
    assert {stage.argv[0] for stage in made} == {"prepare", "pretrain", "evaluate", "report"} <= set(VERBS)
    runs = [stage.argv for stage in made if stage.argv[0] == "pretrain"]
    configs = [load_run(argv[1], argv[2:]) for argv in runs]
    assert len({config.run_dir for config in configs}) == len(configs) == size.seeds * (1 + size.controls)
    assert {config.seed for config in configs} == set(range(size.seeds))
    assert {config.schedule.steps for config in configs} == {size.steps}
    teachers = {config.method.teacher.weights for config in configs}  # type: ignore[attr-defined]
    assert teachers == ({"imagenet", "random"} if size.controls else {"imagenet"})
    for stage in made:
        if stage.argv[0] == "evaluate":
            yaml = next(i for i, word in enumerate(stage.argv) if word.endswith(".yaml"))
            assert set(stage.argv[1:yaml]) <= {config.run_dir for config in configs}
            evaluation = load(EvaluateConfig, stage.argv[yaml], stage.argv[yaml + 1 :])
            assert evaluation.linear_probe.seeds == tuple(range(size.seeds))


@pytest.mark.parametrize(("option", "size"), [("--full", FULL), ("--short", SHORT)])
def test_help_says_the_time_that_the_estimate_begins_with(option: str, size: DemoSize) -> None:
    helps = {action.option_strings[-1]: action.help for action in parser()._actions}
    assert f": {size.minutes:.0f} minutes" in (helps[option] or "")


def test_the_first_failure_ends_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[str] = []
    before = sys.argv

    def failing(argv: tuple[str, ...]) -> int:
        called.append(argv[0])
        assert command_text(sys.argv) == shlex.join(["tandem", *argv])  # as a run records it
        return 0 if argv[0] == "prepare" else 3

    monkeypatch.setattr("launchers.demo.tandem", failing)
    assert main(["--short", "--root", str(tmp_path / "a[red]b\x1b[31m")]) == 3
    said = capsys.readouterr().out
    assert "a[red]b?[31m" in said  # neither a style nor an order to the terminal
    assert "\x1b" not in said
    assert called == ["prepare", "pretrain"]
    assert sys.argv is before


def test_the_time_left_follows_the_plan_and_then_the_machine() -> None:
    assert time_left(10.0, 0.0, 0.0) == "about 10 min"
    assert time_left(10.0, 0.1, 2.0) == "about 13 min"  # 0.9 * (0.4 * 20 + 0.6 * 10)
    assert time_left(10.0, 0.5, 20.0) == "about 20 min"
    assert time_left(2.0, 0.98, 2.0) == "under a minute"
