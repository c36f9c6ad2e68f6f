"""Two optimisers in one run: against two optimisers of torch, at every ZeRO stage, interrupted and cut anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from common.run_files import list_checkpoints
from engine.distributed import World
from engine.downstream.finetune import FinetuneConfig, SegmentationNetwork, rate_groups
from engine.errors import CheckpointError
from engine.interfaces import HasLayers
from engine.optim import OptimConfig, build_optimizer, optimizer_name, param_groups, set_lr, state_numbers
from engine.tower_optim import TowerOptimConfig, TowersOptimizer, tower_of
from models.image.resnet import ResNet
from models.lidar.res16unet import Res16UNetConfig
from tests.helpers.toy_objective import ToyObjective, ToySource
from tests.helpers.toy_run import finish, losses, run_toy, spawn, stop_at, weights

STAGES = (0, 1, 2, 3)
TOWERS: dict[str, Any] = {
    "backbone": {"name": "adamw", "lr": 0.02, "eps": 1e-4, "weight_decay": 0.1},
    "head": {"lr": 0.05, "momentum": 0.5},
}


def job(run_dir: Path, stage: int, **more: Any) -> dict[str, Any]:
    engine = {"zero_stage": stage} | more.pop("engine", {})
    return {
        "run_dir": str(run_dir),
        "settings": {
            "engine": engine,
            "optim": {"lr": 0.1, "towers": more.pop("towers", TOWERS)},
            "checkpoint": {"every_steps": 3, "keep": 9},
        },
        "source": {"micro_batch_size": more.pop("micro_batch_size", 4)},
    } | more


def reference(steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same training with three optimisers of torch, one a tower."""
    objective, source, result = ToyObjective(), ToySource(micro_batch_size=4), []
    optimizers = [
        (0.02, torch.optim.AdamW(objective.backbone.parameters(), eps=1e-4, weight_decay=0.1)),
        (0.05, torch.optim.SGD(objective.head.parameters(), momentum=0.5, dampening=0.1, weight_decay=1e-4)),
        (0.1, torch.optim.SGD([objective.scale], momentum=0.9, dampening=0.1, weight_decay=1e-4)),
    ]
    for step in range(steps):
        loss = objective(source.batch(step)).total
        for peak, optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = peak * (1 + np.cos(np.pi * step / steps)) / 2
            optimizer.zero_grad()
        loss.backward()
        for _, optimizer in optimizers:
            optimizer.step()
        result.append(float(loss.detach()))
    return result, objective.state_dict()


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_trains_like_separate_optimisers(world: World, tmp_path: Path, stage: int) -> None:
    run_toy(job(tmp_path, stage))
    expected, state = reference(8)
    assert losses(tmp_path) == pytest.approx(expected, rel=1e-5)
    for name, value in weights(tmp_path).items():
        torch.testing.assert_close(value, state[name], rtol=1e-5, atol=1e-5, msg=name)
    run_toy(job(tmp_path / "plain", stage, towers={}))
    assert losses(tmp_path / "plain") != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_bit_identical(world: World, tmp_path: Path, stage: int) -> None:
    more: dict[str, Any] = {"objective": {"dropout": 0.3}, "engine": {"accumulation_steps": 2}}
    run_toy(job(tmp_path / "whole", stage, **more))
    run_toy(job(stop_at(tmp_path / "whole", tmp_path / "cut", 3), stage, **more))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "cut")[name], value), name


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_tower_is_trained_bit_for_bit_as_by_torch(kind: str) -> None:
    """Also with parameters of other dtypes in one group, and without momentum."""
    for momentum in (0.9, 0.0):
        ours, theirs = nn.Linear(7, 5), nn.Linear(7, 5)
        theirs.load_state_dict(ours.state_dict())
        numbers = {"momentum": momentum, "dampening": 0.1} if kind == "sgd" else {"betas": (0.8, 0.9), "eps": 1e-6}
        group = {"params": list(ours.parameters()), "kind": kind, "weight_decay": 0.01} | numbers
        plain = torch.optim.SGD if kind == "sgd" else torch.optim.AdamW
        numbers["fused"] = kind == "adamw"  # as on any CPU
        pair = (TowersOptimizer([group], 0.1), plain(theirs.parameters(), lr=0.1, weight_decay=0.01, **numbers))
        for step in range(4):
            x = torch.randn(3, 7, generator=torch.Generator().manual_seed(step))
            for network, optimizer in zip((ours, theirs), pair, strict=True):
                optimizer.zero_grad()
                network(x).square().sum().backward()
                optimizer.step()
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)


def test_incomplete_groups_are_refused() -> None:
    p = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="kind is None, expected one of sgd, adamw"):
        TowersOptimizer([{"params": [p]}], 0.1)
    with pytest.raises(ValueError, match="kind 'adamw' lacks weight_decay, betas"):
        TowersOptimizer([{"params": [p], "kind": "adamw", "eps": 1e-8}], 0.1)


# ---- groups


def test_the_longest_name_wins_and_only_whole_parts_fit() -> None:
    towers = ("backbone", "backbone.stem", "head")
    assert tower_of("backbone.stem.weight", towers) == "backbone.stem"
    assert tower_of("backbone.stem2.weight", towers) == "backbone"
    assert tower_of("backbone2.weight", towers) is None
    assert tower_of("head", towers) == "head"


def test_groups_of_towers() -> None:
    config = OptimConfig(
        lr=0.1,
        decay_norms_and_biases=False,
        towers={
            "backbone": TowerOptimConfig(name="adamw", lr=0.01, weight_decay=0.2),
            "backbone.norm": TowerOptimConfig(lr=0.03),
        },
    )
    groups = param_groups(ToyObjective(), config)
    found = [(g["kind"], round(g["lr_scale"], 6), g["weight_decay"], len(g["params"])) for g in groups]
    assert found == [
        ("sgd", 1.0, 1e-4, 1),  # head.weight
        ("sgd", 1.0, 0.0, 2),  # head.bias and scale, which the objective holds itself
        ("adamw", 0.1, 0.2, 2),
        ("adamw", 0.1, 0.0, 2),
        ("sgd", 0.3, 0.0, 2),
    ]
    assert optimizer_name(config) == "sgd, backbone: adamw"
    assert (state_numbers(config), state_numbers(OptimConfig()), state_numbers(OptimConfig(momentum=0.0))) == (2, 1, 0)
    optimizer = build_optimizer(ToyObjective(), config, 0.1)
    set_lr(optimizer.param_groups, 0.05)  # the schedule is at half
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.05, 0.05, 0.005, 0.005, 0.015])


class OwnGroups(ToyObjective):
    def param_groups(self) -> list[dict[str, object]]:
        rest = [p for n, p in self.named_parameters() if not n.startswith("backbone.first")]
        return [
            {"params": list(self.backbone.first.parameters()), "lr_scale": 0.5, "weight_decay": 0.7},
            {"params": rest},
        ]


def test_an_objectives_own_groups_multiply() -> None:
    groups = param_groups(OwnGroups(), OptimConfig(lr=0.1, towers={"backbone": TowerOptimConfig(lr=0.2)}))
    found = [(g["lr_scale"], g["weight_decay"], len(g["params"])) for g in groups]
    assert found == [(1.0, 0.7, 2), (1.0, 1e-4, 3), (2.0, 1e-4, 4)]


def test_a_tower_without_parameters_is_refused_by_name() -> None:
    for name in ("image_backbone", "teacher", "back"):
        with pytest.raises(ValueError, match=rf"towers.{name}: no trainable .* expected one of backbone, head, scale"):
            param_groups(ToyObjective(), OptimConfig(towers={name: TowerOptimConfig()}))


@pytest.mark.parametrize("field", [{"lr": 0.0}, {"betas": (0.9, 1.0)}, {"layer_decay": 0.0}, {"weight_decay": -1.0}])
def test_ranges(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        TowerOptimConfig(**field)


# ---- layer decay


class Wrapper(nn.Module):
    """A tower whose layers are numbered one level down, with a head."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.tower = nn.ModuleDict({"network": network, "head": nn.Linear(4, 4)})


@pytest.mark.parametrize(
    ("network", "layers", "first", "last"),
    [
        (lambda: ResNet("resnet18"), 5, "conv1.weight", "layer4.1.conv2.weight"),
        (lambda: Res16UNetConfig(preset="res16unet_tiny").build(), 9, "stem_norm.bias", "decoder.3.up.weight"),
    ],
)
def test_layer_decay(network: Any, layers: int, first: str, last: str) -> None:
    objective = Wrapper(network())
    names = {p: name for name, p in objective.named_parameters()}
    config = OptimConfig(lr=0.1, towers={"tower": TowerOptimConfig(lr=0.2, layer_decay=0.5)})
    scale = {names[p]: g["lr_scale"] for g in param_groups(objective, config) for p in g["params"]}
    assert scale["tower.head.weight"] == 2.0
    assert scale[f"tower.network.{last}"] == 2.0
    assert scale[f"tower.network.{first}"] == pytest.approx(2.0 * 0.5 ** (layers - 1))
    assert len(set(scale.values())) == layers
    tower = objective.tower["network"]
    assert isinstance(tower, HasLayers)
    seen = [tower.layer_of(n) for n, _ in network().named_parameters()]
    assert set(seen) == set(range(layers))
    assert seen == sorted(seen)  # named_parameters goes from the input to the output


def test_layer_decay_needs_numbered_layers() -> None:
    for tower in ("backbone", "scale"):
        config = OptimConfig(towers={tower: TowerOptimConfig(layer_decay=0.5)})
        with pytest.raises(ValueError, match=rf"layer_decay=0.5 of {tower}: .* no module in it does"):
            param_groups(ToyObjective(), config)
    param_groups(ToyObjective(), OptimConfig(towers={"backbone": TowerOptimConfig(layer_decay=1.0)}))


def test_layer_decay_in_fine_tuning() -> None:
    network = SegmentationNetwork(Res16UNetConfig(preset="res16unet_tiny").build(), 3, torch.Generator())
    (plain, head) = rate_groups(network, FinetuneConfig(), 0.1)
    assert [plain["lr"], head["lr"]] == [0.1, 0.5]
    assert plain["params"] == list(network.backbone.parameters())
    groups = rate_groups(network, FinetuneConfig(layer_decay=0.5), 0.1)
    assert [g["lr"] for g in groups] == pytest.approx([0.1 * 0.5**n for n in range(8, -1, -1)] + [0.5])
    assert sum(len(g["params"]) for g in groups) == len(list(network.parameters()))
    with pytest.raises(ValueError, match=r"layer_decay: got 0\.0"):
        FinetuneConfig(layer_decay=0.0)


# ---- other layouts


def test_other_optimisers_are_refused_and_other_numbers_told(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_toy(job(tmp_path / "whole", 0))
    other = TOWERS | {"backbone": {"name": "sgd"}}
    with pytest.raises(CheckpointError, match="optimizer=sgd, the checkpoint has sgd, backbone: adamw"):
        run_toy(job(stop_at(tmp_path / "whole", tmp_path / "other", 3), 0, towers=other))
    slower = TOWERS | {"head": TOWERS["head"] | {"lr": 0.025}}
    run_toy(job(stop_at(tmp_path / "whole", tmp_path / "slower", 3), 0, towers=slower))
    assert "settings change from here on: lr_scale 0.5 -> 0.25" in caplog.text


def test_one_process_goes_on_at_another_stage(world: World, tmp_path: Path) -> None:
    """Momentum of SGD and running means of AdamW, each in its own groups, cut anew."""
    run_toy(job(tmp_path / "whole", 0))
    for stage in (1, 3):
        run_toy(job(stop_at(tmp_path / "whole", tmp_path / f"to{stage}", 3), stage))
        assert losses(tmp_path / f"to{stage}") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    (saved,) = list_checkpoints(stop_at(tmp_path / "to3", tmp_path / "cut", 3))
    assert saved.name == "step_00000003"
    shutil.rmtree(tmp_path / "cut")


@pytest.mark.slow
def test_two_ranks_equal_one_and_go_on_as_one(world: World, tmp_path: Path) -> None:
    finish(spawn([job(tmp_path / f"two{s}", s, micro_batch_size=2) for s in STAGES], world_size=2))
    run_toy(job(tmp_path / "one", 0))
    for stage in STAGES:
        assert losses(tmp_path / f"two{stage}") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
        to = (stage + 1) % 4
        run_toy(job(stop_at(tmp_path / f"two{stage}", tmp_path / f"{stage}to{to}", 3), to))
        assert losses(tmp_path / f"{stage}to{to}") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
