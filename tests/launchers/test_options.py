"""The verbs' command lines: quick to explain themselves, every option with help, near misses named, Tab answered."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launchers.cli import VERBS, parser_of
from launchers.cli import main as tandem
from launchers.options import evaluate, prepare

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "cv2", "omegaconf", "deepspeed", "rich", "argcomplete")


def test_help_and_mistakes_of_every_verb_import_nothing_heavy() -> None:
    """Imports are counted, not seconds: these packages are what made it slow."""
    code = f"""
import sys
from launchers.cli import VERBS, main
lines = [[verb, option] for verb in VERBS for option in ("--help", "--wrong")]
lines += [["prepare", "custom", "--help"], ["prepare", "--verify", "--wrong"], ["help", "plan"], ["--version"]]
for line in lines:
    try:
        main(line)
    except SystemExit as left:
        assert left.code == (2 if "--wrong" in line else 0), (line, left.code)
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    assert not heavy, (line, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"usage: tandem {verb}" in done.stdout for verb in VERBS)


def test_sets_are_looked_after_without_torch() -> None:
    """`tandem prepare` with `--show-config`, `--verify` or a mistake: what they import is counted."""
    code = (
        "import sys, launchers.prepare, launchers.verify; print([n for n in ('torch', 'aiohttp') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_run_imports_no_library_that_only_few_of_its_settings_need() -> None:
    code = "import sys, launchers.training.train as t; print([n for n in ('scipy', 'aiohttp') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


def actions(p: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, argparse.Action]]:
    for action in p._actions:
        yield p, action
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from actions(one)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_help_and_every_verb_an_example(verb: str) -> None:
    p = parser_of(verb, [])
    for owner, action in actions(p):
        assert action.help or isinstance(action, argparse._SubParsersAction), (owner.prog, action.dest)
    text = p.format_help()
    assert "Example" in text
    for line in re.findall(rf"^    tandem {verb} (.*)$", text.partition("Example")[2], re.MULTILINE):
        words = shlex.split(line)
        parse = p.parse_args if verb == "weights" else p.parse_intermixed_args
        if verb in ("evaluate", "prepare"):
            parse = {"evaluate": evaluate.parse, "prepare": prepare.parse}[verb]
        if verb == "prepare" and prepare.verifies_only(words):
            parse = parser_of(verb, words).parse_args
        assert parse(words), line


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        parser_of(words[0], words[1:]).parse_args(words[1:])
    assert left.value.code == 2
    return capsys.readouterr().err


def test_near_misses_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean '--show-config'?" in told(capsys, "pretrain", "x.yaml", "--shw-config")
    assert "did you mean '--out-dir'?" in told(capsys, "report", "runs", "--outdir=x")
    assert "did you mean 'slidr'?" in told(capsys, "export", "run", "x.pt", "--format", "sldir")
    assert "unrecognized arguments: --lr 1; settings are given as section.field=value" in told(
        capsys, "pretrain", "x.yaml", "--lr", "1"
    )
    assert told(capsys, "evaluate").endswith("the following arguments are required: CHECKPOINT, CONFIG\n")
    assert "unrecognized arguments: --helpp; did you mean '--help'?" in told(capsys, "pretrain", "--helpp")
    assert "unrecognized arguments: --dryrun; did you mean '--dry-run'?" in told(capsys, "submit", "--dryrun")
    with pytest.raises(SystemExit):
        prepare.parse(["kitty-raw", "SRC", "OUT"])
    assert "no data set 'kitty-raw'; did you mean 'kitti-raw'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepare.parse(["nuscenes_sldr", "SRC", "OUT"])
    assert "did you mean 'nuscenes_slidr'?" in capsys.readouterr().err
    assert tandem(["help", "evalute"]) == 2
    assert "no verb 'evalute'; did you mean 'evaluate'?" in capsys.readouterr().err


def test_overrides_and_show_config_stand_anywhere() -> None:
    for words in (
        ["a=1", "R", "S", "C", "--show-config", "b.c=[1,2]"],
        ["--show-config", "R", "a=1", "S", "b.c=[1,2]", "C"],
    ):
        options = evaluate.parse(words)
        assert (options.checkpoints, options.config) == (["R", "S"], "C")
        assert (options.overrides, options.show_config) == (["a=1", "b.c=[1,2]"], True)
    for verb in ("pretrain", "plan", "submit", "sweep"):
        options = parser_of(verb, []).parse_intermixed_args(["C", "a=1", "--show-config", "b=2"])
        assert (options.overrides, options.show_config) == (["a=1", "b=2"], True)
    options = prepare.parse(["waymo", "SRC", "--show-config", "OUT", "a=1"])
    assert (options.set, options.file, options.overrides, options.show_config) == ("waymo", None, ["a=1"], True)
    options = prepare.parse(["nuscenes_slidr", "SRC", "OUT"])
    assert options.set is None
    assert Path(options.file).name == "nuscenes_slidr.yaml"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("tandem pre", {"prepare", "pretrain"}),
        ("tandem help eva", {"evaluate"}),
        ("tandem help prepare sem", {"semantickitti", "semanticposs", "semantickitti_nclr"}),
        ("tandem pretrain slidr_st", {"slidr_street"}),
        ("tandem pretrain x.yaml --sh", {"--show-config"}),
        ("tandem prepare kitti-", {"kitti-raw", "kitti-object", "kitti-360"}),
        ("tandem prepare nuscenes_s", {"nuscenes_slidr", "nuscenes_slidr_voxelnet"}),
        ("tandem submit slidr_street --cluster ex", {"example"}),
        ("tandem evaluate runs/", {"runs/one", "runs/more/"}),
        ("tandem evaluate runs/one semanti", {"semantickitti"}),
    ],
)
def test_tab_is_answered(line: str, offered: set[str], tmp_path: Path) -> None:
    (tmp_path / "runs" / "one" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "more").mkdir()
    shell = {
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer"),
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    (tmp_path / "answer").touch()
    subprocess.run(
        [sys.executable, "-m", "launchers.cli"],
        cwd=tmp_path,
        env={**os.environ, **shell},
        capture_output=True,
        check=False,
    )
    assert set((tmp_path / "answer").read_text().split()) == offered


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem(["--version"]) == 0
    stated = re.search(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert stated is not None
    out = capsys.readouterr().out
    assert out.startswith(f"tandem {stated[1]}")
    assert "torch 2" in out
    assert f"Python {sys.version_info.major}." in out
