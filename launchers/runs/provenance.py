"""Where a result comes from: commit, machine, versions."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from launchers.runs.files import COMMIT_FILE

PACKAGES = ("common", "configs", "data", "engine", "launchers", "models")
"""Folders of the code."""

_PACKAGES = ("tandem-pretrain", "torch", "deepspeed", "spconv", "webdataset", "numpy", "scipy")
_COMPUTE = (
    "spconv-cu120",
    "spconv-cu126",
    "spconv-triton",
    "triton",
    "opencv-contrib-python-headless",
    "safetensors",
    "simplejpeg",
    "fpsample",
)
"""More packages that a run's numbers may depend on."""


def describe_environment() -> dict[str, object]:
    """Date, commit, command, machine and versions, as JSON values."""
    import psutil  # here, since `tandem --version` must not wait for torch
    import torch

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "git": git_state(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=True),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: installed for name in _PACKAGES if (installed := _version(name)) is not None},
    }


def installed_packages() -> dict[str, str]:
    """Version of Python, and of each package that a run's numbers may depend on ("not installed" where it is not)."""
    found = {name: _version(name) or "not installed" for name in (*_PACKAGES, *_COMPUTE)}
    return {"python": platform.python_version(), **found}


def code_digest() -> str:
    """SHA-256 of the code that runs here: the same for the same content, wherever it lies and whatever git says."""
    root, digest = Path(__file__).resolve().parents[2], hashlib.sha256()
    files = (path for package in PACKAGES for path in (root / package).rglob("*.py"))
    for path in sorted(filter(Path.is_file, files)):  # an editor's lock may be a link that leads nowhere
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def version_text() -> str:
    """What `tandem --version` prints: the versions of Tandem, with the commit of a checkout, and of what it runs on."""
    state = git_state()
    commit = (
        "" if state is None else f" (commit {str(state['commit'])[:12]}{', with changes' if state['dirty'] else ''})"
    )
    others = ", ".join(f"{name} {_version(name) or 'missing'}" for name in ("torch", "deepspeed"))
    return f"tandem {own_version()}{commit}\n{others}, Python {platform.python_version()}"


def own_version() -> str:
    """Of the code that runs: as the checkout states it, else as it was installed."""
    stated = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if stated.is_file():
        found = re.search(r'^version = "(.+)"$', stated.read_text(encoding="utf-8"), re.MULTILINE)
        if found is not None:
            return found[1]
    return _version("tandem-pretrain") or "of unknown version"


def git_state() -> dict[str, object] | None:
    """Commit of the checkout and whether it has uncommitted changes; None outside a checkout.

    A job that runs from a copy of the code (`launchers.cluster.freeze`) finds what was noted when the copy was made.
    """
    folder = Path(__file__).resolve().parent
    noted = folder.parents[1] / COMMIT_FILE
    if noted.is_file():
        content = json.loads(noted.read_text(encoding="utf-8"))
        return {"commit": content["commit"], "dirty": content["dirty"], "code": content["code"]}
    try:
        if Path(_git(folder, "rev-parse", "--show-toplevel")).resolve() != folder.parents[1]:
            return None  # installed in somebody else's checkout: its commit is not that of this code
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
