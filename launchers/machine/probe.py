"""A process that tries the libraries, so that `tandem doctor` itself outlives whatever they do.

Run as `python -m launchers.machine.probe` it prints one finding a line, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from launchers.machine.findings import Finding

PROBE = (sys.executable, "-m", "launchers.machine.probe")
TIMEOUT_S = 600.0
"""Compiling everything takes a minute on a slow machine, importing from a cluster's file system another."""


def probed(command: Sequence[str] = PROBE, timeout_s: float = TIMEOUT_S) -> Iterator[Finding]:
    """The findings of the other process, and how it ended if it did not get to the end of them."""
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=env, timeout=timeout_s)
        output, errors, code = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        output, errors, code = _text(error.stdout), _text(error.stderr), None
    last = ""
    for line in output.splitlines():
        if line.startswith('{"section"'):
            finding = Finding(**json.loads(line))
            last = f" after {finding.name!r}"
            yield finding
    if code == 0:
        return
    if code is None:
        ended = f"gave no answer in {timeout_s:.0f} s"
    else:
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with code {code}"
    said = next(iter(errors.strip().splitlines()[::-1]), "")
    yield Finding(
        section="computing",
        name="libraries",
        value=f"the process that tries them {ended}{last}" + (f": {said}" if said else ""),
        state="broken",
        remedy=f"{Path(command[0]).name} {' '.join(command[1:])} shows all that it says",
    )


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def main() -> int:
    """Print the findings."""
    from launchers.machine.computing import computing_findings

    for finding in computing_findings():
        print(json.dumps(asdict(finding)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
