"""docs/exporting.md: its commands, from an empty folder to a file that fits a tree of OpenPCDet's names."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launchers.options.export import parser
from tests.launchers.test_readme import ALL_LINES
from tests.models.layouts.skeletons import bev_backbone, listed, tree_of, voxel_backbone

ROOT = Path(__file__).parents[2]
FEWER = {
    "prepare": ["num_logs=2"],
    "pretrain": ["schedule.steps=2", "schedule.warmup_steps=1", "monitor.picture_every=0"],
}


def commands() -> list[list[str]]:
    """The words of each command of the first list."""
    text = (ROOT / "docs" / "exporting.md").read_text(encoding="utf-8")
    block = re.search(r"^## From an empty folder.*?^```\n(.*?)^```", text, re.S | re.M)
    assert block is not None
    return [shlex.split(line) for line in re.sub(r" *\\\n *", " ", block[1]).splitlines()]


def test_the_list_goes_from_nothing_to_a_file() -> None:
    lines = commands()
    assert [words[:2] for words in lines] == [["tandem", verb] for verb in ("prepare", "pretrain", "export")]
    options = parser().parse_args(lines[-1][2:])
    assert (options.format, options.out) == ("openpcdet", "second.pth")
    assert f"run_dir={options.source}" in lines[1]


@pytest.mark.slow
def test_the_list_gives_a_file_that_fits_there(tmp_path: Path) -> None:
    pytest.importorskip("spconv")
    lines = [[*words[1:], *FEWER.get(words[1], [])] for words in commands()]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ALL_LINES, json.dumps(lines)]
    done = subprocess.run(command, cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    assert re.search(r"read back: all 156 tensors; rebuilt from them, features differ by at most \d", done.stdout)
    blocks, ups = bev_backbone(256, (5, 5), (128, 256), (1, 2), (256, 256), padded=True)
    encoder = voxel_backbone((16, 32, 64, 64), 128, residual=False)
    tree = tree_of(backbone_3d=encoder, backbone_2d=listed(blocks=blocks, deblocks=ups))
    state = torch.load(tmp_path / "second.pth", weights_only=True)["model_state"]
    tree.load_state_dict(state, strict=True)
    text = (tmp_path / "second.pth.md").read_text()
    assert "POINT_CLOUD_RANGE: [-25.6, -25.6, -4, 25.6, 25.6, 4]" in text
    assert "NAME: VoxelBackBone8x" in text
