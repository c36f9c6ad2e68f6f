"""A real two-node SLURM on one machine, for tests: its own munge, ports and folder, so that several run side by side.

In a test: `with SlurmCluster(folder) as cluster: cluster.run("sbatch", ...)`. By hand:
`python -m tests.helpers.slurm_cluster start DIR` prints the line to export, `... stop DIR` ends everything.

Needs root and Debian's `slurm-wlm` and `munge`. No accounting: `sacct` knows nothing here.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil

NODES = ("n1", "n2")
CPUS = 4
"""CPUs that each node claims to have, whatever the machine has."""

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "setpriv")

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE", "OUT_OF_MEMORY", "BOOT_FAIL")

_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

_CONF = """\
ClusterName=tandem
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it may start again; 120 s by default, 5 s at least.
AuthInfo=socket={munge}/socket,cred_expire=5
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
MailProg=/bin/true
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
# Short, so that tests see in seconds what takes minutes on a cluster.
SlurmdTimeout=15
SlurmctldTimeout=10
InactiveLimit=0
KillWait=10
MinJobAge=3600
CompleteWait=0
MessageTimeout=5
BatchStartTimeout=3
JobRequeue=1
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=0,batch_sched_delay=0,defer_batch=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=1440 DefaultTime=30 PriorityTier=1 GraceTime=30 PreemptMode=REQUEUE
PartitionName=urgent Nodes=n1,n2 Default=NO MaxTime=1440 DefaultTime=30 PriorityTier=10 PreemptMode=OFF
"""


class SlurmCluster:
    """Two nodes `n1` and `n2`; partition `main` (default) can be pre-empted by partition `urgent`.

    Attributes:
        folder: configuration, logs and state.
        env: environment in which SLURM's commands reach this cluster.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.conf = self.folder / "slurm.conf"
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        path = os.pathsep.join([outside.get("PATH", ""), _SYSTEM_PATH])
        self._children: list[subprocess.Popen[bytes]] = []
        self._guard: subprocess.Popen[bytes] | None = None
        self.env = outside | {"SLURM_CONF": str(self.conf), "PATH": path}

    def __enter__(self) -> SlurmCluster:
        # Ends the cluster should this process be killed before it can do so itself.
        guard = [sys.executable, "-m", "tests.helpers.slurm_cluster", "guard", str(self.folder), str(os.getpid())]
        quiet = subprocess.DEVNULL  # not the pipes of whoever waits for this process
        self._guard = subprocess.Popen(guard, start_new_session=True, stdin=quiet, stdout=quiet, stderr=quiet)
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()

    # ------------------------------------------------------------------------------------- whole cluster
    def start(self) -> None:
        """Bring everything up; returns when both nodes are idle."""
        reason = why_not()
        if reason:
            raise RuntimeError(f"no test cluster: {reason}")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "state").mkdir(exist_ok=True)
        # Short and readable by munge's user: pytest's folders are neither, and a socket's path has 107 characters.
        munge = Path(tempfile.mkdtemp(prefix="tandem-munge-", dir="/tmp"))
        (self.folder / "state.json").write_text(json.dumps({"munge": str(munge)}))
        self._start_munge(munge)
        ports = _free_ports(3)
        self.conf.write_text(
            _CONF.format(host=socket.gethostname(), folder=self.folder, munge=munge, ports=ports, cpus=CPUS)
        )
        self._daemon("slurmctld", "-D", "-c")
        for node in NODES:
            self.start_slurmd(node)
        self.wait_for_nodes()

    def stop(self) -> None:
        """End all jobs and daemons; no process of this cluster is left."""
        if not self.folder.is_dir():
            return
        deadline = time.monotonic() + 20
        while leftovers := list(self._processes()):
            for process in leftovers:
                _send(process, signal.SIGKILL)
            psutil.wait_procs(leftovers, timeout=1)
            for child in self._children:
                child.poll()
            if time.monotonic() > deadline:
                raise RuntimeError(f"cluster {self.folder}: processes {leftovers} cannot be ended")
        state = self.folder / "state.json"
        if state.is_file():
            shutil.rmtree(json.loads(state.read_text())["munge"], ignore_errors=True)

    def wait_for_nodes(self, timeout_s: float = 60.0) -> None:
        """Wait until both nodes can take jobs."""

        def ready() -> bool:
            done = self.run("sinfo", "-h", "-N", "-o", "%N %t", check=False)
            states = dict(line.split()[:2] for line in done.stdout.splitlines() if line.strip())
            return all(states.get(node) in {"idle", "mix", "alloc"} for node in NODES)

        wait_until(ready, timeout_s, lambda: f"nodes not ready; {self.logs()}")

    # ------------------------------------------------------------------------------------------ commands
    def run(
        self, *argv: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command against this cluster; a failure raises with the command's output."""
        done = subprocess.run(
            argv, env={**self.env, **(env or {})}, cwd=cwd, text=True, capture_output=True, timeout=120, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def sbatch(self, *argv: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """Queue a batch script; the job's id."""
        return self.run("sbatch", "--parsable", *argv, env=env, cwd=cwd).stdout.strip().split(";")[0]

    def job(self, job: str) -> dict[str, str]:
        """Fields of `scontrol show job`, such as JobState, Restarts, NodeList; empty for an unknown job."""
        done = self.run("scontrol", "-o", "show", "job", job, check=False)
        pairs = (word.partition("=") for word in done.stdout.split())
        return {name: value for name, sign, value in pairs if sign}

    def wait_for(self, job: str, states: Sequence[str] = FINAL, timeout_s: float = 120.0) -> str:
        """Wait until a job is in one of the states; that state."""

        def arrived() -> bool:
            return self.job(job).get("JobState") in states

        wait_until(arrived, timeout_s, lambda: f"job {job} is not in {states}: {self.job(job)}\n{self.logs()}")
        return self.job(job)["JobState"]

    def logs(self, lines: int = 30) -> str:
        """The ends of the daemons' logs, for messages."""
        parts = [f"--- {p.name}\n" + "\n".join(p.read_text().splitlines()[-lines:]) for p in self.folder.glob("*.log")]
        return "\n".join(parts)

    # -------------------------------------------------------------------------------------- single parts
    def start_slurmd(self, node: str) -> None:
        """Start a node's daemon, also after `kill_slurmd`."""
        self._daemon("slurmd", "-D", "-N", node)

    def slurmd(self, node: str) -> psutil.Process:
        """A node's daemon."""
        for process in self._processes("slurmd"):
            if process.cmdline()[-2:] == ["-N", node]:
                return process
        raise LookupError(f"no slurmd for {node}")

    def kill_slurmd(self, node: str) -> None:
        """`kill -9` of a node's daemon; its jobs' processes live on."""
        process = self.slurmd(node)
        process.kill()
        process.wait(10)

    def kill_node(self, node: str) -> None:
        """What a power cut does: the node's daemon and all that runs there are gone at once."""
        doomed = [self.slurmd(node), *self.stepds(node), *self.tasks(node)]
        for process in doomed:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(doomed, timeout=10)

    def stepds(self, node: str | None = None, job: str | None = None, step: str | None = None) -> list[psutil.Process]:
        """Processes `slurmstepd`, by node, job and step ("batch" or "0")."""
        found = []
        for process in self._processes("slurmstepd"):
            title = " ".join(_words(process))  # "slurmstepd: [JOB.STEP]"
            at_node = node is None or str(self.folder / f"slurmd-{node}.log") in _files(process)
            if at_node and (job is None or f"[{job}." in title) and (step is None or f".{step}]" in title):
                found.append(process)
        return found

    def kill_stepd(self, job: str, *, node: str | None = None, step: str = "0") -> None:
        """`kill -9` of the slurmstepd that looks after a step's tasks; the tasks themselves live on."""
        found = self.stepds(node, job, step)
        if not found:
            raise LookupError(f"no slurmstepd for {job}.{step} on {node or 'any node'}")
        for process in found:
            process.kill()
        psutil.wait_procs(found, timeout=10)

    def tasks(self, node: str | None = None, job: str | None = None) -> list[psutil.Process]:
        """Processes of jobs: batch scripts, ranks and their children."""
        found = []
        for process in self._processes():
            environment = _env(process)
            wanted = (node in {None, environment.get("SLURMD_NODENAME")}) and (
                job in {None, environment.get("SLURM_JOB_ID")}
            )
            if wanted and "SLURM_JOB_ID" in environment:
                found.append(process)
        return found

    def ranks(self, job: str, module: str = "launchers.pretrain") -> dict[int, psutil.Process]:
        """The processes that srun started as `python -m module`, by rank; loader workers are not among them."""
        found: dict[int, psutil.Process] = {}
        for process in self.tasks(job=job):
            environment = _env(process)
            if "SLURM_PROCID" not in environment or environment.get("SLURM_STEP_ID") is None:
                continue
            parent = process.parent()
            if module in _words(process) and (parent is None or module not in _words(parent)) and _is_python(process):
                found[int(environment["SLURM_PROCID"])] = process
        return found

    # ------------------------------------------------------------------------------------------ workings
    def _start_munge(self, folder: Path) -> None:
        key = folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        folder.chmod(0o755)
        for path in (folder, key):
            shutil.chown(path, "munge", "munge")
        files = [f"--{name}-file={folder}/{file}" for name, file in
                 [("key", "key"), ("pid", "pid"), ("log", "log"), ("seed", "seed")]]  # fmt: skip
        as_munge = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups"]
        self._popen([*as_munge, "munged", "-F", f"--socket={folder}/socket", *files], folder / "out")
        wait_until((folder / "socket").exists, 20, lambda: f"munged: {(folder / 'out').read_text()}")

    def _daemon(self, *argv: str) -> None:
        self._popen([*argv, "-f", str(self.conf)] if argv[0] == "slurmctld" else list(argv), self.folder / "out")

    def _popen(self, argv: list[str], out: Path) -> None:
        with out.open("a") as file:
            process = subprocess.Popen(
                argv, env=self.env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        self._children.append(process)

    def _processes(self, name: str | None = None) -> Iterator[psutil.Process]:
        """All that belongs to this cluster, daemons and jobs."""
        for process in psutil.process_iter():
            try:
                if name in {None, process.name()} and process.pid != os.getpid() and self._owns(process):
                    yield process
            except psutil.NoSuchProcess:
                continue

    def _owns(self, process: psutil.Process) -> bool:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        # slurmstepd writes its title over its environment; it is known by the log that it holds open.
        if process.name().startswith("slurm") and any(file.startswith(f"{self.folder}/") for file in _files(process)):
            return True
        return _env(process).get("SLURM_CONF") == str(self.conf)


def why_not() -> str | None:
    """Why no cluster can be started here; None where one can."""
    if os.geteuid() != 0:
        return "needs root (munged and slurmd change users)"
    missing = [program for program in PROGRAMS if not shutil.which(program, path=_SYSTEM_PATH)]
    return f"{', '.join(missing)} not installed; apt-get install slurm-wlm munge" if missing else None


def wait_until(
    condition: Callable[[], bool], timeout_s: float, message: Callable[[], str] = str, every_s: float = 0.2
) -> None:
    """Wait for a condition; after `timeout_s` seconds the test fails with the message."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout_s:.0f} s: {message()}")
        time.sleep(every_s)


def alive(process: psutil.Process) -> bool:
    """Whether a process still does something."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that the kernel gives to clients."""
    found: list[int] = []
    for port in random.Random().sample(range(10000, 20000), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports between 10000 and 20000")


def _env(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
        return {}


def _files(process: psutil.Process) -> set[str]:
    """Files that a process holds open."""
    found = set()
    with contextlib.suppress(OSError):
        for descriptor in os.scandir(f"/proc/{process.pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(descriptor.path))
    return found


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _is_python(process: psutil.Process) -> bool:
    words = _words(process)
    return bool(words) and Path(words[0]).name.startswith("python")


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def main() -> None:
    verb, folder = sys.argv[1], Path(sys.argv[2])
    cluster = SlurmCluster(folder)
    if verb == "start":
        warnings.simplefilter("ignore", ResourceWarning)  # the daemons stay when this process ends
        cluster.start()
        print(f"export SLURM_CONF={cluster.conf}")
    elif verb == "stop":
        cluster.stop()
    elif verb == "guard":
        parent = psutil.Process(int(sys.argv[3]))
        while alive(parent):
            time.sleep(0.5)
        cluster.stop()
    else:
        raise SystemExit(f"{verb!r}: expected start or stop")


if __name__ == "__main__":
    main()
