"""Tests of what changed against a branch, one a line: `python .ci/changed_tests.py [main]`.

A changed test is itself; a changed module is the test file that mirrors it, or, where there is none, the tests of the
mirroring folder that name it; a changed page is the check of links. Only names are looked at, nothing is imported.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = "tests/test_docs_links.py"


def changed(base: str) -> list[str]:
    """Files that differ from where this branch left `base`, committed or not, new ones included."""
    fork = _git("merge-base", base, "HEAD").strip()
    listed = _git("diff", "--name-only", "--diff-filter=d", fork) + _git("ls-files", "--others", "--exclude-standard")
    return sorted(set(listed.splitlines()))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def mirrored(path: Path, root: Path) -> Iterator[str]:
    """Test files for one changed file."""
    if path.suffix == ".md":
        yield PAGES
    if path.suffix != ".py":
        return
    if path.parts[0] == "tests":
        if path.name.startswith("test_"):
            yield path.as_posix()
        return
    mirror = Path("tests") / path.parent / f"test_{path.name}"
    if (root / mirror).is_file():
        yield mirror.as_posix()
        return
    module = ".".join(path.with_suffix("").parts)
    folder = mirror.parent
    while not (root / folder).is_dir():
        folder = folder.parent
    for test in sorted((root / folder).glob("test_*.py")):
        text = test.read_text(encoding="utf-8")
        if module in text or f'"{path.name}"' in text:
            yield test.relative_to(root).as_posix()


if __name__ == "__main__":
    files = changed(sys.argv[1] if len(sys.argv) > 1 else "main")
    print(*sorted({test for path in files for test in mirrored(Path(path), ROOT) if (ROOT / test).is_file()}), sep="\n")
