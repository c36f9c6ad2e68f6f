"""Files of a checkpoint, as all parts see them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.run_files import SUMS_FILE, damage


@pytest.mark.timeout(20)
def test_a_pipe_in_place_of_the_sums_is_damage_and_no_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / SUMS_FILE)
    assert "expected a file" in (damage(tmp_path) or "")


def test_half_a_checkpoint_has_no_sums(tmp_path: Path) -> None:
    assert damage(tmp_path) == f"{SUMS_FILE} is missing"
