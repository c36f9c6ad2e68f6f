"""The scripts of slurm/ without a cluster: alike, pointing at configs that exist, and what they say anywhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((REPOSITORY / "slurm").glob("*_*.sh"))
PRETRAIN = [path for path in SCRIPTS if path.name.startswith("pretrain_")]


def name_of(path: Path) -> str:
    return path.stem


def call(script: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """On a machine without SLURM."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "TANDEM_"))}
    kept |= {"PATH": "/usr/bin:/bin", "TANDEM_PYTHON": sys.executable} | env
    return subprocess.run(["bash", str(script), *argv], env=kept, text=True, capture_output=True, check=False)


def test_there_are_scripts() -> None:
    assert {path.stem for path in SCRIPTS} >= {
        *(f"pretrain_{name}" for name in ("waymo", "nuscenes", "kitti", "synthetic")),
        *(f"prepare_{name}" for name in ("waymo", "nuscenes", "kitti", "synthetic")),
    }


@pytest.mark.parametrize("path", PRETRAIN, ids=name_of)
def test_each_pretrain_script_has_what_survival_needs(path: Path) -> None:
    text = path.read_text()
    for line in ("--requeue", "--open-mode=append", "--output=slurm/logs/%x-%j.out"):
        assert f"#SBATCH {line}\n" in text
    # Without B: the ranks get the signal, not the batch script.
    assert re.search(r"^#SBATCH --signal=USR1@\d+$", text, re.MULTILINE)
    (config,) = re.findall(r"configs/pretrain/\w+\.yaml", text)
    assert (REPOSITORY / config).is_file()
    gpus = re.findall(r"--gpus-per-node=(\d+)", text)
    assert gpus in ([], re.findall(r"--ntasks-per-node=(\d+)", text))


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_its_head_is_its_help(path: Path) -> None:
    done = call(path, "--help")
    assert done.returncode == 0, done.stderr
    assert f"bash slurm/{path.name}" in done.stdout
    assert "#SBATCH" not in done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_mistakes_that_need_no_cluster(path: Path) -> None:
    done = call(path, "steps")
    assert done.returncode == 2
    assert f"{path.name}: 'steps': expected section.field=value, or an option of sbatch as --name=value" in done.stderr
    done = call(path, TANDEM_PYTHON="/none/python")
    assert done.returncode == 2
    assert "no Python at '/none/python'" in done.stderr


@pytest.mark.parametrize("option", ["--job-name=a/b", "--job-name=two\nlines", "-Ja b", "--job=x/y"])
def test_a_job_name_that_spoils_the_names_of_logs_is_refused(option: str) -> None:
    for path in (REPOSITORY / "slurm" / "pretrain_kitti.sh", REPOSITORY / "slurm" / "prepare_kitti.sh"):
        done = call(path, option, TANDEM_PYTHON="/none/python")
        assert done.returncode == 2
        assert "expected letters, digits and any of" in done.stderr
    assert "job name a/b: expected" in call(path, TANDEM_PYTHON="/none/python", SBATCH_JOB_NAME="a/b").stderr


@pytest.mark.parametrize("first", [(), ("/runs/a run-first",)])
def test_a_job_tells_its_helpers_the_folders_of_all_stages(first: tuple[str, ...], tmp_path: Path) -> None:
    """The script as a job runs it, with stand-ins for Python and srun."""
    folders = ("/runs/a run", *first)
    lines = "".join(f"echo {shlex.quote(folder)}; " for folder in folders)
    noted = f'printf "%s\\n" "$2" "${{@:3}}" >"{tmp_path}/${{2##*.}}"'
    stand_ins = {
        "python": f"case $2 in *.sbatch_check) {lines};; *) {noted} ;; esac",
        "srun": "exit 75",
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = {"SLURM_JOB_ID": "12", "TANDEM_PYTHON": str(tmp_path / "python"), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = call(REPOSITORY / "slurm" / "pretrain_kitti.sh", **env)
    assert done.returncode == 75, done.stderr
    assert (tmp_path / "after_step").read_text().splitlines() == ["launchers.cluster.after_step", "75", *folders]
    while not (tmp_path / "srun_reaper").exists():  # runs beside the script
        time.sleep(0.01)
    module, run_dir, _, *others = (tmp_path / "srun_reaper").read_text().splitlines()
    assert (module, run_dir, tuple(others)) == ("launchers.cluster.srun_reaper", folders[0], first)


@pytest.mark.skipif(shutil.which("sbatch", path="/usr/bin:/bin") is not None, reason="SLURM is installed here")
def test_a_machine_without_slurm_is_told() -> None:
    done = call(REPOSITORY / "slurm" / "prepare_synthetic.sh")
    assert "no sbatch here" in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    files = [str(path) for path in (REPOSITORY / "slurm").glob("*.sh")] + [str(REPOSITORY / ".ci" / "run")]
    done = subprocess.run(["shellcheck", "-x", *files], cwd=REPOSITORY, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
