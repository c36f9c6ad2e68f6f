"""`tandem evaluate` with protocol "registration", from a checkpoint to results, curves and report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.load import ConfigError, load
from configs.schema import EvaluateConfig
from data.sample import Batch
from data.storage.manifest import load_manifest
from engine.distributed import World
from engine.downstream.common import Samples
from engine.downstream.registration import RegistrationConfig
from engine.downstream.results import read_results
from launchers.evaluation import measure
from launchers.evaluation.networks import open_source, pretrained_network, random_network
from launchers.evaluation.registration_task import PerturbedImages
from launchers.reporting.report_files import write_report
from launchers.training.train import load_run
from models.methods.nclr import Nclr
from tests.helpers.pretrain_run import CONFIGS, SMALL, pretrain_here
from tests.helpers.run_folder import write_toy_run
from tests.helpers.samples import write_toy_set
from tests.helpers.toy_settings import toy_overrides

NCLR = CONFIGS / "nclr_street.yaml"
TOY = [*(o for o in SMALL if not o.startswith("method.")), *toy_overrides(NCLR)]
QUICK = ("protocols=[registration]", "registration.seeds=[0,1]", "calibration_sweeps=2", "device=cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_toy_set(tmp_path_factory.mktemp("set"), num_logs=3, frames_per_log=2)


@pytest.fixture(scope="module")
def nclr_run(tmp_path_factory: pytest.TempPathFactory, shards: str, world: World) -> Path:
    run = tmp_path_factory.mktemp("runs") / "nclr"
    settings = [*TOY, "method.pose_start=0.0", "schedule.steps=2", "data.micro_batch_size=2"]
    pretrain_here(run, shards, *settings, config=NCLR)
    return run


@pytest.mark.slow
def test_from_checkpoint_to_results_and_report(nclr_run: Path, shards: str, tmp_path: Path) -> None:
    config = load(EvaluateConfig, None, [*QUICK])
    results = measure.evaluate_runs([nclr_run], config)
    assert [(r.init, r.protocol, r.labels, r.metric) for r in results] == [
        ("nclr", "registration", "none", "rre_median"),
        ("random", "registration", "none", "rre_median"),
    ]
    assert results[0].fingerprint == results[1].fingerprint
    assert all(0 <= value <= 180 for r in results for value in r.values)
    assert results == read_results(nclr_run / "results.json")
    errors = json.loads((nclr_run / "registration" / "errors.json").read_text())
    assert set(errors) == {f"{init}, seed {seed}" for init in ("nclr", "random") for seed in (0, 1)}
    assert all(len(column) == 2 for entry in errors.values() for column in entry.values())
    before = (nclr_run / "results.json").read_text()
    assert measure.evaluate_runs([nclr_run], config) == results
    assert (nclr_run / "results.json").read_text() == before
    write_report([nclr_run], tmp_path, title="t", pictures=0)
    page = (tmp_path / "report.html").read_text()
    assert "registration: recall" in page
    assert "RRE median" in page


@pytest.mark.slow
def test_all_weights_of_the_run_are_loaded(nclr_run: Path) -> None:
    source = open_source(nclr_run)
    trained = pretrained_network(source, "objective")
    assert isinstance(trained, Nclr)
    assert trained.progress == 1.0
    fresh = random_network(source.config, "objective", 0)
    same = [torch.equal(a, b) for a, b in zip(trained.parameters(), fresh.parameters(), strict=True)]
    assert not any(same)


def test_perturbations_depend_on_seed_and_sweep_alone(shards: str) -> None:
    manifest = load_manifest(shards)
    run = load_run(str(NCLR), [f"data.shards={shards}", "run_dir=a", *TOY])
    test = manifest.indices("val")
    config = RegistrationConfig(max_rotation_deg=30.0, translate_m=(2.0, 1.0, 0.0))
    reader = PerturbedImages(manifest, run.data, config)

    def read(indices: np.ndarray, seed: int) -> list[Batch]:
        return list(reader(Samples(indices.tolist(), truth="pose", seed=seed)))

    first, again, other, alone = read(test, 0), read(test, 0), read(test, 1), read(test[1:], 0)
    assert len(first) == len(test)
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a.points, b.points)
        assert not torch.equal(a.T_aug_lidar, c.T_aug_lidar)
        assert len(a.images) == 1
        T = a.T_aug_lidar[0].double().numpy()
        angle = math.degrees(math.atan2(T[1, 0], T[0, 0]))
        shift = T[:3, :3].T @ T[:3, 3]
        assert abs(angle) <= 30
        assert (np.abs(shift) <= (2.0 + 1e-4, 1.0 + 1e-4, 1e-5)).all()
    assert torch.equal(alone[0].points, first[1].points)


def test_methods_without_poses_are_refused(tmp_path: Path, shards: str) -> None:
    write_toy_run(tmp_path / "slidr", shards)
    with pytest.raises(ConfigError, match="Slidr has no estimate_pose"):
        measure.evaluate_runs([tmp_path / "slidr"], load(EvaluateConfig, None, [*QUICK]))
