"""Freezes a submission: the code that jobs run from, and what they run, so that later edits do not reach them.

The packages are copied to `<root>/code/<hash>/`, once for each state of the code; jobs start with that folder as their
current one, which Python searches first. What a run was asked for goes to `<run>/submission/`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from common.files import remove_leftovers, replace_file, temporary_name
from configs.load import ConfigError
from launchers.runs import files
from launchers.runs.files import COMMIT_FILE, CONFIG_FILE
from launchers.runs.provenance import PACKAGES

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class CodeState:
    """The code at the time of a submission.

    Attributes:
        folder: its copy, which jobs run from; the checkout itself where nothing is copied.
        commit: git commit it is based on; None outside a checkout.
        diff: tracked changes since that commit, as git prints them.
        untracked: files that git does not know (and does not ignore); they are in the copy, not in the diff.
    """

    folder: Path
    commit: str | None
    diff: str
    untracked: tuple[str, ...]


def present_code(repository: Path = REPOSITORY) -> CodeState:
    """The code as it lies here, not copied."""
    commit, diff, untracked, _ = _from_git(repository) or (None, "", (), [])
    return CodeState(folder=repository, commit=commit, diff=diff, untracked=untracked)


def freeze_code(root: Path, *, repository: Path = REPOSITORY) -> CodeState:
    """Copy the packages to `root`/code/<hash of their content>/ unless that copy is there.

    Raises:
        ConfigError: the folder cannot be written.
    """
    commit, diff, untracked, names = _from_git(repository) or (None, "", (), _all_files(repository))
    contents = {name: (repository / name).read_bytes() for name in sorted(names) if (repository / name).is_file()}
    digest = hashlib.sha256()
    for name, content in contents.items():
        # The length keeps name and content of neighbours apart.
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    code = root.absolute() / files.CODE_FOLDER / digest.hexdigest()[:12]
    state = CodeState(folder=code, commit=commit, diff=diff, untracked=untracked)
    if code.is_dir():
        return state
    hidden = code.with_name(f".{code.name}")
    draft = temporary_name(hidden)
    try:
        remove_leftovers(hidden)
        for name, content in contents.items():
            path = draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (draft / COMMIT_FILE).write_text(_commit_json(state), encoding="utf-8")
        try:
            os.rename(draft, code)
        except OSError:
            if not code.is_dir():
                raise
            shutil.rmtree(draft)  # another submission was first, with the same content
    except OSError as error:
        raise ConfigError(
            f"{code}: the code cannot be copied there: {error}; choose another run_dir or root"
        ) from error
    return state


def freeze_run(
    run_dir: Path, *, config_text: str, overrides: Sequence[str], cluster_text: str | None, code: CodeState
) -> Path:
    """Write what a run was asked for into its folder, in place of an earlier submission; returns the config's file.

    The texts are resolved configs, the overrides those of the command line or the sweep. Runs without SLURM have no
    cluster.
    """
    folder = run_dir.absolute() / files.SUBMISSION_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / files.OVERRIDES_FILE).write_text("".join(f"{line}\n" for line in overrides), encoding="utf-8")
    (folder / COMMIT_FILE).write_text(_commit_json(code), encoding="utf-8")
    (folder / files.DIFF_FILE).write_text(code.diff, encoding="utf-8", errors="surrogateescape")
    if cluster_text is not None:
        (folder / files.CLUSTER_FILE).write_text(cluster_text, encoding="utf-8")
    config = folder / CONFIG_FILE
    replace_file(config, config_text.encode(), durable=False)  # at once: an earlier submission's job may be reading it
    return config


def _from_git(repository: Path) -> tuple[str, str, tuple[str, ...], list[str]] | None:
    """Commit, diff, untracked files and all files of the packages; None where this is no checkout."""
    if not (repository / ".git").exists():
        return None  # a folder inside another project's checkout is not one
    try:
        commit = _git(repository, "rev-parse", "HEAD").strip()
        diff = _git(repository, "diff", "--binary", "HEAD", "--", *PACKAGES)
        tracked = _git(repository, "ls-files", "-z", "--", *PACKAGES).split("\0")
        others = _git(repository, "ls-files", "-z", "--others", "--exclude-standard", "--", *PACKAGES).split("\0")
    except (OSError, subprocess.CalledProcessError):
        return None
    untracked = tuple(sorted(filter(None, others)))
    return commit, diff, untracked, [*filter(None, tracked), *untracked]


def _git(repository: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=repository, check=True, capture_output=True)
    return done.stdout.decode(errors="surrogateescape")


def _all_files(repository: Path) -> list[str]:
    """All but what Python compiles: kernels and their headers are compiled where the job runs."""
    found = (path for name in PACKAGES for path in (repository / name).rglob("*"))
    return [str(p.relative_to(repository)) for p in found if p.is_file() and "__pycache__" not in p.parts]


def _commit_json(code: CodeState) -> str:
    content = {
        "commit": code.commit,
        "dirty": bool(code.diff or code.untracked),
        "untracked": list(code.untracked),
        "code": str(code.folder),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "folder": os.getcwd(),
    }
    return json.dumps(content, indent=1) + "\n"
