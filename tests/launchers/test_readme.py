"""The list of README, "From raw logs to a report", line by line in a fresh clone: on KITTI's frames where they are.

One process runs all lines, as importing everything for each would take longer than most of them. Only the amount is
cut (see `FEWER`); commands, paths and order are README's. The lines for GPUs are resolved, not run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from engine.downstream.results import read_results
from tests.helpers.layouts.kitti import write_kitti_object, write_kitti_raw

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"
FEWER = {
    "prepare": ["--limit=6", "superpixels.num_segments=50"],
    "pretrain": ["schedule.steps=4", "schedule.warmup_steps=1", "monitor.picture_every=0"],
    "evaluate": ["linear_probe.steps=10", "linear_probe.lrs=[0.01]", "knn.queries_per_sweep=100", "data.limit_train=4"],
}

ALL_LINES = """
import json, shlex, sys
from launchers.cli import main
if __name__ == "__main__":  # data workers import this, too
    for words in json.loads(sys.argv[1]):
        print("$ tandem", shlex.join(words), flush=True)
        if code := main(words):
            sys.exit(code)
"""


def commands() -> tuple[list[list[str]], list[list[str]]]:
    """The words of each command of the list: those for a CPU, and those for a GPU."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"^## From raw logs to a report\n.*?^```\n(.*?)^```", text, re.S | re.M)
    assert block is not None
    gpu = "# with a GPU: "
    lines = re.sub(r" *\\\n#? *", " ", block[1]).splitlines()
    return (
        [shlex.split(line, comments=True) for line in lines if not line.startswith("#")],
        [shlex.split(line.removeprefix(gpu)) for line in lines if line.startswith(gpu)],
    )


def test_each_line_is_a_command_and_gpu_lines_resolve() -> None:
    cpu, gpu = commands()
    verbs = ["prepare", "inspect", "prepare", "pretrain", "evaluate", "report", "export"]
    assert [words[:2] for words in cpu[1:]] == [["tandem", verb] for verb in verbs]
    assert cpu[0] == ["source", ".venv/bin/activate"]
    assert [words[:2] for words in gpu] == [["tandem", "pretrain"], ["tandem", "evaluate"]]


@pytest.mark.slow
def test_the_list_of_readme_runs_in_a_fresh_clone(tmp_path: Path) -> None:
    raw, labelled = REAL / "kitti_raw", REAL / "kitti_object"
    if not (raw.is_dir() and labelled.is_dir()):
        raw, labelled = tmp_path / "raw", tmp_path / "object"
        write_kitti_raw(raw, frames=6)
        write_kitti_object(labelled, frames=6)
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    env = {**os.environ, "PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}
    folders = {"/data/kitti_raw": str(raw), "/data/kitti_object": str(labelled)}
    cpu, gpu = commands()
    lines = [[*words, *FEWER.get(words[1], [])] for words in cpu[1:]] + [[*gpu[0], "--show-config"]]
    lines = [[folders.get(word, word) for word in words[1:]] for words in lines]
    command = [sys.executable, "-c", ALL_LINES, json.dumps(lines)]
    done = subprocess.run(command, cwd=clone, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    for name in ("look/inspect.html", "report.html", "backbone.safetensors"):
        assert (clone / name).is_file(), name
    results = read_results(clone / "runs/slidr_kitti_cpu/results.json")
    assert {result.protocol for result in results} == {"linear_probe", "knn"}
    assert {result.pretrained for result in results} == {True, False}
    assert "resnet50" in done.stdout.rpartition("$ tandem")[2]
