"""The import rule of pyproject.toml: it holds, and an import that it forbids is found and named."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "configs", "data", "engine", "launchers", "models")

FORBIDDEN = {
    "models/heads.py": ("data.storage.untrusted", "models see the contract of data, nothing else of it"),
    "engine/optim.py": ("data.sample", "the engine sees interfaces, not data"),
    "data/order.py": ("engine.errors", "imports point one way"),
    "data/storage/untrusted.py": ("data.loading.collate", "rooms of data point down"),
    "launchers/runs/slurm.py": ("launchers.cluster.work", "rooms of launchers point down"),
}
"""File -> a module that it must not import, and the contract that says so."""


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command as c; c()"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


def test_forbidden_imports_are_named(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    whole = lint(tmp_path)
    assert whole.returncode == 0, whole.stdout
    assert "BROKEN" not in whole.stdout

    for name, (module, _) in FORBIDDEN.items():
        file = tmp_path / name
        file.write_text(f"{file.read_text()}\nimport {module}\n")
    (tmp_path / "launchers" / "stray.py").write_text("")
    broken = lint(tmp_path)
    assert broken.returncode == 1
    for name, (module, contract) in FORBIDDEN.items():
        assert f"{contract} BROKEN" in broken.stdout
        assert f"{name.removesuffix('.py').replace('/', '.')} -> {module}" in broken.stdout
    assert "launchers.stray" in broken.stdout, "a file without a place is refused, too"
