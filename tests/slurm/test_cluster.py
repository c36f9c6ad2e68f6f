"""The test cluster itself: two nodes, a requeue within seconds, parts that die, nothing left behind."""

import json
import subprocess
import sys

import psutil
import pytest

from tests.helpers.pretrain_run import REPOSITORY
from tests.helpers.slurm_cluster import NODES, SlurmCluster, alive, wait_until, why_not

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(why_not() is not None, reason=f"no SLURM test cluster: {why_not()}"),
]

SLEEP = "#!/bin/sh\necho start $SLURM_RESTART_COUNT\nsrun sh -c 'echo on $SLURMD_NODENAME; sleep 100'\n"


def running(pid):
    return psutil.pid_exists(pid) and alive(psutil.Process(pid))


def script(folder, name="job.sh", text=SLEEP):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_a_job_on_both_nodes_is_requeued_within_seconds(cluster, tmp_path):
    out = tmp_path / "out"
    job = cluster.sbatch("-N2", "-n2", "--open-mode=append", f"--output={out}", script(tmp_path))
    wait_until(lambda: out.exists() and all(f"on {node}" in out.read_text() for node in NODES), 20)
    assert len(cluster.stepds(job=job)) == 3  # the batch script's and one a node
    assert len(cluster.stepds("n2", job=job, step="0")) == 1
    cluster.run("scontrol", "requeue", job)
    wait_until(lambda: "start 1" in out.read_text(), 30)
    cluster.run("scancel", job)
    assert cluster.wait_for(job) == "CANCELLED"


def test_a_job_outlives_the_death_of_a_node(cluster, tmp_path):
    out = tmp_path / "out"
    job = cluster.sbatch("-N1", "-n1", "-w", "n2", "--open-mode=append", f"--output={out}", script(tmp_path))
    wait_until(lambda: out.exists() and "on n2" in out.read_text(), 20)
    cluster.kill_node("n2")
    assert not cluster.tasks("n2")
    assert cluster.wait_for(job, ("PENDING",), 40) == "PENDING"  # the node is seen to be down
    cluster.start_slurmd("n2")
    wait_until(lambda: "start 1" in out.read_text(), 60)
    cluster.run("scancel", job)
    cluster.wait_for(job)
    cluster.wait_for_nodes()


def test_nothing_is_left_when_the_test_itself_is_killed(tmp_path):
    code = (
        "import os, pathlib, time; from tests.helpers.slurm_cluster import SlurmCluster\n"
        f"with SlurmCluster(pathlib.Path({str(tmp_path / 'c')!r})) as c:\n"
        "    print([p.pid for p in c._processes()], flush=True); time.sleep(60)"
    )
    victim = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert victim.stdout is not None
    pids = json.loads(victim.stdout.readline())
    assert len(pids) >= 4
    victim.kill()
    victim.communicate()
    wait_until(lambda: not any(running(pid) for pid in pids), 30)


def test_two_clusters_side_by_side_and_nothing_left(cluster, tmp_path):
    with SlurmCluster(tmp_path / "second") as second:
        job = second.sbatch("-N2", "-n2", f"--output={tmp_path}/out", script(tmp_path))
        second.wait_for(job, ("RUNNING",))
        assert cluster.job("999") == {}
        mine = [process.pid for process in second.tasks()] + [second.slurmd(node).pid for node in NODES]
    assert not [pid for pid in mine if running(pid)]
    cluster.wait_for_nodes()
