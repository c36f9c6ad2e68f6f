"""`tandem doctor`: limits, packages and folders from files made here; libraries that fail, hang or crash; no names."""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import launchers.doctor
from launchers.cli import main as tandem
from launchers.doctor import told
from launchers.machine import cluster, computing, limits
from launchers.machine.findings import Finding, anonymous
from launchers.machine.limits import GroupLimits, file_findings, file_system, group_limits, memory, usable_cores
from launchers.machine.packages import Wanted, wanted
from launchers.machine.probe import probed
from launchers.runs.slurm import SlurmError

REPOSITORY = Path(__file__).resolve().parents[2]


# ---- limits


def put(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")
    return file


def test_the_tightest_of_nested_groups_counts_in_version_2(tmp_path: Path) -> None:
    proc, root = put(tmp_path / "cgroup", "0::/slurm/job_7/step_0"), tmp_path / "fs"
    put(root / "slurm" / "job_7" / "memory.max", str(8 * 2**30))
    put(root / "slurm" / "job_7" / "step_0" / "memory.max", "max")
    put(root / "slurm" / "memory.max", str(64 * 2**30))
    put(root / "slurm" / "job_7" / "cpu.max", "250000 100000")
    put(root / "slurm" / "cpu.max", "max 100000")
    assert group_limits(proc, root) == GroupLimits(8 * 2**30, 2.5)


def test_groups_of_version_1(tmp_path: Path) -> None:
    proc, root = put(tmp_path / "cgroup", "4:memory:/box\n3:cpu,cpuacct:/box\n2:cpuset:/\n0::/"), tmp_path / "fs"
    put(root / "memory" / "box" / "memory.limit_in_bytes", str(3 * 2**30))
    put(root / "memory" / "memory.limit_in_bytes", "9223372036854771712")  # its way to say that there is no limit
    put(root / "cpu,cpuacct" / "box" / "cpu.cfs_quota_us", "150000")
    put(root / "cpu,cpuacct" / "box" / "cpu.cfs_period_us", "100000")
    put(root / "cpu,cpuacct" / "cpu.cfs_quota_us", "-1")
    put(root / "cpu,cpuacct" / "cpu.cfs_period_us", "100000")
    assert group_limits(proc, root) == GroupLimits(3 * 2**30, 1.5)


def test_a_group_whose_path_is_that_of_the_host_is_read_at_the_containers_root(tmp_path: Path) -> None:
    proc, root = put(tmp_path / "cgroup", "0::/docker/0123"), tmp_path / "fs"
    put(root / "memory.max", "1073741824")
    assert group_limits(proc, root) == GroupLimits(2**30, None)


def test_no_groups_no_limits(tmp_path: Path) -> None:
    assert group_limits(tmp_path / "cgroup", tmp_path) == GroupLimits(None, None)
    assert usable_cores(GroupLimits(None, None)) == len(os.sched_getaffinity(0))
    assert usable_cores(GroupLimits(None, 0.5)) == 0.5


def test_memory_driver_and_file_system_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    meminfo = put(
        tmp_path / "meminfo", "MemTotal:       2048 kB\nMemFree:  1 kB\nMemAvailable:   1024 kB\nHugePages_Total: 0"
    )
    assert memory(meminfo) == (2 * 2**20, 2**20)
    nvidia = put(
        tmp_path / "version", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build"
    )
    assert limits.driver_version(nvidia) == "570.86.15"
    assert limits.driver_version(tmp_path / "absent") is None
    folder = tmp_path / "a b" / "c"
    folder.mkdir(parents=True)
    name = str(tmp_path / "a b").replace(" ", "\\040")
    mounts = put(tmp_path / "mounts", f"x / overlay rw 0 0\nserver:/x {name} nfs4 rw 0 0\nx {tmp_path}/a ext4 rw 0 0")
    assert file_system(folder, mounts) == "nfs4"
    assert file_system(Path("/usr"), mounts) == "overlay"


def test_little_memory_for_a_job_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory", lambda: (64 * 2**30, 60 * 2**30))
    (found,) = (f for f in limits.machine_findings(GroupLimits(2 * 2**30, 0.5)) if f.name == "memory")
    assert found.value == "64.0 GiB, 60.0 GiB available; this job or container may use 2.0 GiB"
    assert found.state == "missing"
    assert "--mem" in found.remedy


# ---- files


def test_a_folder_of_runs_that_cannot_be_written_is_broken_and_a_cache_is_not(tmp_path: Path) -> None:
    file = put(tmp_path / "file", "")
    found = {
        f.name: f for f in file_findings(file, {"cache": file, "other": tmp_path / "new" / "one"}, shared=tmp_path)
    }
    assert (found["runs"].state, found["cache"].state) == ("broken", "missing")
    assert "cannot be written (Not a directory)" in found["runs"].value
    assert "run_dir=" in found["runs"].remedy
    assert found["other"].value.startswith(f"{tmp_path}/new/one: ")
    assert not (tmp_path / "new").exists()


def test_shared_memory_that_is_small_or_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {f.name: f for f in file_findings(tmp_path, {}, shared=tmp_path / "shm")}["shared memory"]
    assert (absent.state, "--shm-size" in absent.remedy) == ("missing", True)
    usage = type("Usage", (), {"total": 64 * 2**20, "free": 60 * 2**20})
    monkeypatch.setattr(limits.shutil, "disk_usage", lambda _: usage)
    small = {f.name: f for f in file_findings(tmp_path, {}, shared=tmp_path)}["shared memory"]
    assert small.value == f"{tmp_path}: 64 MiB, 60 MiB free; loader workers hand batches over there"
    assert small.state == "missing"


def test_few_open_files_are_told_with_the_line_that_allows_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (256, limits.resource.RLIM_INFINITY))
    found = {f.name: f for f in file_findings(tmp_path, {}, shared=tmp_path)}["open files"]
    assert (found.value, found.state) == ("256 for each process, at most unlimited", "missing")
    assert found.remedy.startswith("ulimit -n 4096")


# ---- packages


def test_packages_are_compared_with_what_is_stated() -> None:
    stated = [
        f"torch>={torch.__version__.partition('+')[0]}",
        "numpy<1",
        "no-such-package-of-anybody>=2; python_version >= '3'",
        "another-one; python_version < '3'",
        "rich>=1; extra == 'more'",
    ]
    versions = {one.name: one for one in wanted(requirements=stated)}
    assert set(versions) == {"torch", "numpy", "no-such-package-of-anybody"}
    assert (versions["torch"].fits, versions["numpy"].fits) == (True, False)
    assert versions["no-such-package-of-anybody"] == Wanted("no-such-package-of-anybody", ">=2", None, False)
    assert [(one.name, one.fits) for one in wanted("more", stated)] == [("rich", True)]


# ---- names


def test_names_of_people_and_machines_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann.lee")
    monkeypatch.setattr(getpass, "getuser", lambda: "ann.lee")
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu07.example.org")
    text = "/home/ann.lee/.cache, /home/ann.lees/x, /scratch/ann.lee/runs on gpu07 (GPU07.example.org): annotation"
    assert anonymous(text) == "~/.cache, /home/ann.lees/x, /scratch/USER/runs on HOST (HOST): annotation"


def test_a_short_or_common_name_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/root")
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    monkeypatch.setattr(socket, "gethostname", lambda: "n1")
    assert anonymous("/root/runs, root of n1, n1.5") == "~/runs, root of n1, n1.5"


# ---- libraries


def child(code: str) -> list[Finding]:
    first = 'print(\'{"section": "computing", "name": "torch", "value": "2.7"}\', flush=True)\n'
    return list(probed([sys.executable, "-c", first + code], timeout_s=2.0 if "sleep" in code else 60.0))


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "was ended by SIGILL after 'torch'"),
        ("raise OSError('libcudart.so.12: not found')", "failed with code 1 after 'torch': OSError: libcudart.so.12"),
        ("import time; time.sleep(60)", "gave no answer in 2 s after 'torch'"),
    ],
    ids=["crash", "error", "hang"],
)
def test_whatever_the_libraries_do_is_a_finding(code: str, ended: str) -> None:
    torch_finding, last = child(code)
    assert torch_finding == Finding(section="computing", name="torch", value="2.7")
    assert ended in last.value
    assert last.state == "broken"


def test_other_lines_of_the_libraries_are_no_findings() -> None:
    assert [one.name for one in child("print('a banner'); print('{}')")] == ["torch"]


def test_the_backend_that_auto_takes_is_tried() -> None:
    assert computing.convolution_error(torch, "torch", "cpu") == 0
    (auto,) = (f for f in computing._backends(torch) if f.name == "backend=auto on cpu")
    assert auto.value in {"native, forward and backward tried", "torch, forward and backward tried"}


def test_a_backend_that_is_wrong_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ModuleType("models.lidar.backend_native")
    plain = computing.importlib.import_module("models.lidar.backend_torch")
    setattr(wrong, "convolve", lambda f, w, m: 1.01 * plain.convolve(f, w, m))  # noqa: B010
    sparse = computing.importlib.import_module("models.lidar.sparse")
    monkeypatch.setattr(sparse, "load_backend", lambda name, _: plain if name == "torch" else wrong)
    found = [f for f in computing._backends(torch) if f.name == "backend=auto on cpu"]
    assert [f.state for f in found] == ["broken"]
    assert found[0].value.startswith("native, which fails: it differs from backend=torch on the CPU by 0.0")


# ---- SLURM


def test_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.shutil, "which", lambda _: None)
    assert [(f.name, f.state) for f in cluster.cluster_findings()] == [("SLURM", "note")]
    monkeypatch.setattr(cluster.shutil, "which", lambda name: None if name == "scontrol" else f"/usr/bin/{name}")
    assert [f.value for f in cluster.cluster_findings()] == ["scontrol not found"]
    monkeypatch.setattr(cluster.shutil, "which", lambda name: f"/usr/bin/{name}")

    def answer(*command: str, timeout_s: float = 0.0) -> str:
        return {"sbatch": "slurm 23.11.4\n", "sinfo": "gpu\ncpu\ngpu\n", "scontrol": "up"}[command[0]]

    monkeypatch.setattr(cluster.slurm, "run_command", answer)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    values = [f.value for f in cluster.cluster_findings()]
    assert values == ["23.11.4, the controller answers, 2 partition(s)", "outside of any"]

    def silence(*command: str, timeout_s: float = 0.0) -> str:
        raise SlurmError("`scontrol ping` gave no answer in 15 s; is the controller up?")

    monkeypatch.setattr(cluster.slurm, "run_command", silence)
    assert [f.state for f in cluster.cluster_findings()] == ["missing"]


# ---- the verb


def test_the_exit_code_tells_of_what_is_broken_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    libraries = [Finding(section="computing", name="GPU", value="none", state="missing", remedy="buy one")]
    monkeypatch.setattr(launchers.doctor, "probed", lambda: iter(libraries))
    monkeypatch.setattr(launchers.doctor, "package_findings", lambda: iter(()))
    assert tandem(["doctor", "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "COULD BE BETTER\n" in out
    assert "  GPU: buy one\n" in out
    assert out.endswith("nothing that training needs is broken\n")
    libraries[0] = dataclasses.replace(libraries[0], state="broken")
    assert tandem(["doctor", "--runs", str(tmp_path), "--json"]) == 1
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["GPU"] == {**dataclasses.asdict(libraries[0])}
    assert {"runs", "memory", "processor", "SLURM", "data.num_workers"} <= set(found)


def test_a_long_value_is_wrapped_below_itself() -> None:
    found = [Finding(section="one", name="name", value="word " * 20, state="broken", remedy="do this")]
    lines = told(found, 60).splitlines()
    assert lines[:2] == ["ONE", "name  BROKEN   " + ("word " * 9).strip()]
    assert lines[2] == " " * 15 + ("word " * 9).strip()
    assert lines[-5:] == ["", "TRAINING WILL NOT WORK", "  name: do this", "", "1 broken"]


def test_it_works_without_any_package() -> None:
    code = "import sys, launchers.doctor as d; d.probed = lambda: iter(()); sys.exit(d.main([]))"
    line = [sys.executable, "-S", "-c", code]  # -S: nothing that is installed is found
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "packaging is not installed" in done.stdout


@pytest.mark.slow
def test_this_machine_can_train(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "launchers.doctor", "--json", "--runs", str(tmp_path)]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert [one for one in found.values() if one["state"] == "broken"] == []
    assert done.returncode == 0
    assert {"torch", "DeepSpeed", "backend=auto on cpu", "engine.precision=bf16"} <= set(found)
