"""Whatever happens to a file: a counted skip or a named error, never a crash, a hang, a blow-up or executed code.

FUZZ_NUMBER=20000 FUZZ_SEED=7 pytest -m slow tests/data/test_fuzz.py strikes more often; a mutation is a function of
seed and number, so a failure's line names all that is needed to see it again:
python -m tests.helpers.fuzz_child FOLDER SEED NUMBER NUMBER+1
"""

from __future__ import annotations

import collections
import json
import os
import selectors
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
SILENCE_S = 240.0
"""A child that says nothing for so long hangs where no signal reaches it."""
GOOD = {"fine", "skipped", "named"}
SEED = int(os.environ.get("FUZZ_SEED", "0"))
NUMBER = int(os.environ.get("FUZZ_NUMBER", "1000"))


Line = dict[str, Any]
"""What a child says of one mutation."""


def strikes(folder: Path, seed: int, number: int) -> list[Line]:
    """Outcomes of all mutations; a child that dies is one, and the next child goes on behind it."""
    found: list[Line] = []
    first = 0
    while first < number:
        command = [sys.executable, "-m", "tests.helpers.fuzz_child", str(folder), str(seed), str(first), str(number)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
        complaints = folder / "stderr"  # no pipe: decoders complain at length, and nobody reads it meanwhile
        with complaints.open("w") as stderr:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
            with process:
                lines = follow(process)
        found += [line for line in lines if "number" in line]
        last = lines[-1] if lines else {}
        if last.get("done") == number:
            return found
        assert "start" in last, f"the child ended before its first strike: {complaints.read_text()[-2000:]}"
        how = f"exit code {process.returncode}"
        found.append({**last, "number": last["start"], "outcome": "died", "label": "", "detail": how})
        first = last["start"] + 1
    return found


def follow(process: "subprocess.Popen[str]") -> list[Line]:
    """Lines of a child until it ends or is silent for too long."""
    assert process.stdout is not None
    lines: list[Line] = []
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(SILENCE_S):
            line = process.stdout.readline()
            if not line:
                return lines
            lines.append(json.loads(line))
    process.kill()
    return lines + [json.loads(line) for line in process.stdout]  # what was read ahead


def assert_all_good(found: list[Line], number: int) -> None:
    bad = [line for line in found if line["outcome"] not in GOOD]
    shown = "\n".join(
        f"{one['number']}: {one['target']}: {one['label']}: {one['outcome']}\n{one['detail']}" for one in bad
    )
    assert not bad, f"seed {SEED}, {len(bad)} of {number}:\n{shown}"
    assert len(found) == number
    # That a target is always fine would mean that it is not struck at all. Raw files have room for harmless changes.
    by_target: dict[str, set[str]] = collections.defaultdict(set)
    for one in found:
        by_target[one["target"]].add(one["outcome"])
    assert all(outcomes != {"fine"} for target, outcomes in by_target.items() if target.startswith("set"))
    assert {outcome for outcomes in by_target.values() for outcome in outcomes} == GOOD


@pytest.mark.slow
def test_a_few_mutations(tmp_path: Path) -> None:
    assert_all_good(strikes(tmp_path, SEED, 120), 120)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_many_mutations(tmp_path: Path) -> None:
    assert_all_good(strikes(tmp_path, SEED + 1, NUMBER), NUMBER)
