"""Each file in examples/ runs as its first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from tests.helpers.street_set import write_street_set

ROOT = Path(__file__).parents[2]


def run(example: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "examples" / example, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_own_data_becomes_a_set(tmp_path):
    assert run("own_data.py", tmp_path / "shards").startswith("20 samples, ")
    manifest = load_manifest(str(tmp_path / "shards"))
    sample = SampleReader(manifest).read(0)
    assert sample.cameras[0].superpixels is not None
    assert manifest.num_pairs.min() > 1000


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the method of own_method.py, with the set it trained on beside it."""
    root = tmp_path_factory.mktemp("own")
    shards = write_street_set(root / "shards")
    settings = [f"data.shards={shards}", "data.image_size=[64, 128]", "data.micro_batch_size=2", "schedule.steps=3"]
    quick = ["schedule.warmup_steps=0", "engine.precision=fp32", "data.num_workers=0", f"run_dir={root / 'run'}"]
    run("own_method.py", "pretrain", ROOT / "examples" / "own_method.yaml", *settings, *quick)
    return root


@pytest.mark.slow
def test_an_own_method_trains_and_its_weights_serve_plain_torch(own_run, tmp_path):
    exported = tmp_path / "backbone.safetensors"
    run("own_method.py", "export", own_run / "run", exported)
    sample = SampleReader(load_manifest(str(own_run / "shards"))).read(0)
    np.save(tmp_path / "sweep.npy", np.column_stack([sample.points_lidar, sample.intensity]).astype(np.float32))
    told = run("plain_torch.py", exported, tmp_path / "sweep.npy")
    assert told.startswith(f"features ({len(sample.points_lidar)}, 48)")
    assert int(told.split(", ")[-1].split("%")[0]) > 60
