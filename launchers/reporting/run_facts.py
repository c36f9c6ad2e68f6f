"""What a run's folder says about the run in a few words: state, command, commit, machine, software."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.small_files import DamagedFileError
from launchers.cli import VERBS
from launchers.runs.files import read_environment
from launchers.runs.run_status import read_files, run_status


def run_facts(folder: Path, trouble: list[str]) -> dict[str, str]:
    """State, and as far as it was recorded: date, command, commit, machine, software.

    What is wrong with a damaged environment.json is added to `trouble`.
    """
    state = {"state": state_text(folder)}
    try:
        tree = read_environment(folder)
    except DamagedFileError as error:
        trouble.append(str(error))
        return state
    if tree is None:
        return state
    facts = {"date": str(tree.get("date", "")), "command": command_text(tree.get("command"))}
    return state | facts | machine_facts(tree)


def command_text(argv: object) -> str:
    """A recorded command line as a user would type it, whatever file Python was started with."""
    if not isinstance(argv, list) or not argv:
        return "unknown"
    program, *arguments = map(str, argv)
    name = Path(program).stem
    verb = [name] if name in VERBS else []  # `python -m launchers.pretrain`, as srun and torchrun start it
    known = verb or name in {"tandem", "cli"}
    return shlex.join(["tandem", *verb, *arguments] if known else [program, *arguments])


def state_text(folder: Path) -> str:
    """How a run ended, or how far it is: a run that was stopped on the way is not shown as one that is over."""
    status = run_status(read_files(folder), {})
    total = "" if status.num_steps is None else f" of {status.num_steps}"
    return status.state if status.step is None else f"{status.state}, {status.step}{total} updates"


def machine_facts(tree: Mapping[str, Any]) -> dict[str, str]:
    """Commit, machine and software of a description by `launchers.runs.provenance`."""
    git = tree.get("git")
    commit = str((git or {}).get("commit") or "unknown")[:12] + (" with changes" if (git or {}).get("dirty") else "")
    machine = f"{tree.get('processor')}, {tree.get('cores')} cores, {tree.get('memory_gib')} GiB"
    gpus = ", ".join(map(str, tree.get("gpus") or []))
    packages = ", ".join(f"{name} {v}" for name, v in (tree.get("packages") or {}).items())
    return {
        "commit": commit,
        "machine": machine + (f", {gpus}" if gpus else ""),
        "software": f"python {tree.get('python')}, {packages}",
    }
