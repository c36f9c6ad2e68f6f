"""SECOND with objects of other sweeps in its sweeps, MVX-Net with images: killed, on two processes, and on 2 -> 1 -> 3.

Tolerances of losses and norms of gradients as in `tests.launchers.test_ranks`: the order of sums differs between
numbers of processes. Single gradients are compared in `tests.models.detection.test_detectors`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.detection import FinetuneConfig
from engine.distributed import World
from launchers.finetuning.run import train_run
from launchers.runs.attempts import read_attempts
from launchers.training.train import load_any_run
from tests.helpers.finetune_run import spawn_ranks
from tests.helpers.pretrain_run import CONFIGS
from tests.helpers.toy_run import finish, losses, metrics, stop_at, weights
from tests.launchers.test_resume import kill_after

STEPS, EVERY = 6, 2
SETTINGS = (
    "data.voxel.size=[0.4,0.4,0.2]",
    "model.backbone.voxel_size_m=[0.4,0.4,0.2]",
    "model.backbone.grid_min=[-64,-64,-12]",
    "model.backbone.grid_max=[64,64,12]",
    "data.num_workers=0",
    "data.micro_batch_size=3",
    "judge.benchmarks=[]",
    "optim.name=sgd",
    "optim.lr=0.01",
    "engine.device=cpu",
    "engine.timeout_min=2",
    f"schedule.steps={STEPS}",
    f"checkpoint.every_steps={EVERY}",
    "checkpoint.every_min=0",
    "checkpoint.keep=9",
    "monitor.log_every=1",
    "monitor.tensorboard=false",
    "monitor.progress=false",
)
OWN = {
    "second_street": ("data.sampling.counts={car: 3, pedestrian: 3}", "data.sampling.fill_up=false"),
    # At the preset's rates rounding grows a thousandfold in six updates through BatchNorm of so few images.
    "mvx_net_street": ("optim.lr=0.001", "optim.towers.image_backbone.lr=0.0001"),
}
"""Config -> its own settings."""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("config", OWN)
def test_killed_and_on_other_numbers_of_processes(
    config: str, street_set: str, world: World, one_thread: None, tmp_path: Path
) -> None:
    def command(run_dir: Path, shards: str, *overrides: str) -> list[str]:
        """Command line behind `tandem finetune`; the objects are cut out beside the runs."""
        where = (f"run_dir={run_dir}", f"data.shards={shards}", f"data.objects_folder={run_dir.parent / 'objects'}")
        return [str(CONFIGS.parent / "finetune" / f"{config}.yaml"), *SETTINGS, *OWN[config], *where, *overrides]

    def here(run_dir: Path, shards: str, *overrides: str) -> None:
        path, *rest = command(run_dir, shards, *overrides)
        assert train_run(load_any_run(path, rest, kind=FinetuneConfig)).status == "finished"

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ranks = spawn_ranks([command(whole, street_set), command(cut, street_set)], world_size=2)
    kill_after(ranks[0], cut, EVERY + 1)
    ranks[1].kill()
    ranks[1].communicate()
    samples_objects = config == "second_street"
    assert (tmp_path / "objects").exists() == samples_objects
    assert len(metrics(cut)) < STEPS

    # Bit for bit after SIGKILL.
    finish(spawn_ranks([command(cut, street_set)], world_size=2))
    assert read_attempts(cut)[-1].resumed == EVERY
    assert losses(cut) == losses(whole)
    expected, got = weights(whole), weights(cut)
    assert all(torch.equal(got[name], expected[name]) for name in expected)

    # One process with the same updates from the beginning, and others that go on.
    here(tmp_path / "one", street_set, "data.micro_batch_size=6")
    fewer = stop_at(whole, tmp_path / "fewer", EVERY)
    here(fewer, street_set)
    more = stop_at(fewer, tmp_path / "more", 2 * EVERY)
    finish(spawn_ranks([command(more, street_set)], world_size=3))
    assert [attempt.world_size for attempt in read_attempts(more)] == [2, 1, 3]
    for run in (tmp_path / "one", fewer, more):
        assert losses(run) == pytest.approx(losses(whole), rel=1e-4), run.name
        norms = [[line["optim/grad_norm"] for line in metrics(path)] for path in (run, whole)]
        assert norms[0] == pytest.approx(norms[1], rel=0.02), run.name

    if not samples_objects:
        return
    # The objects of other sweeps are in what was learnt.
    here(tmp_path / "without", street_set, "data.micro_batch_size=6", "data.sampling.counts={}", "schedule.steps=1")
    assert losses(tmp_path / "without")[0] != pytest.approx(losses(whole)[0], rel=1e-3)
