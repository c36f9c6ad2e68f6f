"""Python programs whose native sources are built with the address sanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def must_run_clean(program: str, cache: Path) -> None:
    """Run a program, which prints "clean" at its end, with the sanitizer's runtime; libraries are built in `cache`."""
    found = subprocess.run(["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    runtime = Path(found.stdout.strip())
    if not runtime.is_absolute() or not runtime.exists():
        pytest.skip("the compiler has no address sanitizer")
    env = {
        **os.environ,
        "LD_PRELOAD": str(runtime.resolve()),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "XDG_CACHE_HOME": str(cache),
    }
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=200)
    assert done.stdout == "clean\n", done.stderr[-3000:]
