"""DepthContrast: against loops, formats and weights, degenerate batches, one and two processes, resume."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.fidelity import paper_config
from data.sample import Batch
from models.contrast.momentum import MomentumConfig
from models.lidar.pointnet2 import PointNet2Config
from models.lidar.res16unet import Res16UNetConfig
from models.methods import METHODS
from models.methods.depthcontrast import DepthContrast, DepthContrastConfig
from models.visuals import PointSketch
from tests.helpers.distributed import run_distributed
from tests.helpers.momentum_run import built, train, train_as_one, train_as_rank, two_clouds
from tests.helpers.toy_batches import PointwiseConfig
from tests.reference.memory import queue_contrast_loop, queue_loop

POINTS = PointNet2Config(preset="pointnet2_tiny", in_channels=4)
SMALL: dict[str, Any] = {
    "backbone": PointwiseConfig(in_channels=4),
    "point_backbone": POINTS,
    "queue_size": 5,
    "embedding_dim": 8,
    "hidden_dim": 16,
    "momentum": MomentumConfig(start=0.8),
}


def depthcontrast(**settings: Any) -> DepthContrast:
    objective = built(DepthContrastConfig(**(SMALL | settings))).double()
    assert isinstance(objective, DepthContrast)
    return objective


def pooled_loop(network: Any, view: Batch) -> Tensor:
    features = network(view.voxel_coords, view.voxel_features, view.num_samples)
    return torch.stack([features[view.voxel_coords[:, 0] == n].amax(dim=0) for n in range(view.num_samples)])


def test_registry_and_the_papers_values() -> None:
    config = DepthContrastConfig()
    assert METHODS["depthcontrast"] is DepthContrastConfig
    assert (config.queue_size, config.embedding_dim, config.temperature) == (65_536, 128, 0.1)
    assert (config.within_weight, config.across_weight, config.momentum.start) == (1.0, 1.0, 0.999)
    assert not config.batch_spec().images
    assert list(config.point_networks()) == ["backbone", "point_backbone"]
    assert list(dataclasses.replace(config, formats="voxel").point_networks()) == ["backbone"]


LIDAR, SCANNET = (paper_config(f"depthcontrast_{name}").method for name in ("waymo", "scannet"))


@pytest.mark.parametrize(
    ("settings", "within", "across"),
    [
        ({"within_weight": 0.3, "across_weight": 0.9}, 0.15, 0.45),
        (dataclasses.replace(LIDAR, **SMALL), 1.0, 0.0),
        (dataclasses.replace(SCANNET, **SMALL), 0.5, 0.5),
    ],
    ids=["weights", "released on LiDAR", "released on ScanNet"],
)
def test_loss_and_queues_equal_the_slow_reference(settings: Any, within: float, across: float) -> None:
    """`within` and `across` weigh each of the four contrasts, which are added, as in the released code."""
    objective: Any = depthcontrast(**settings) if isinstance(settings, dict) else built(settings).double()
    networks = {"voxel": objective.backbone, "point": objective.point_backbone}
    entered: dict[str, list[Tensor]] = {"voxel": [], "point": []}
    for step, samples in enumerate(([0, 1], [2, 3, 4], [5, 6])):
        batch = two_clouds(samples)
        assert batch.second is not None
        queries, keys = {}, {}
        for name, network in networks.items():
            queries[name] = F.normalize(objective.heads[name].layers(pooled_loop(network, batch)), dim=1)
            pooled = pooled_loop(objective.key_backbones[name].copy, batch.second)
            keys[name] = F.normalize(objective.key_heads[name].copy.layers(pooled), dim=1).detach()
        wanted = torch.zeros((), dtype=torch.float64)
        for f in networks:
            for g in networks:
                negatives = queue_loop(entered[g], 5)
                stacked = torch.stack(negatives) if negatives else keys[g][:0]
                one = queue_contrast_loop(queries[f], keys[g], stacked, 0.1)
                wanted = wanted + (within if f == g else across) * one
        terms = objective(batch)
        torch.testing.assert_close(terms.total.double(), wanted)
        learnt = [p for p in objective.parameters() if p.requires_grad]
        for mine, theirs in zip(
            torch.autograd.grad(terms.total, learnt), torch.autograd.grad(wanted, learnt), strict=True
        ):
            torch.testing.assert_close(mine, theirs)
        assert set(terms.parts) == {"within_voxel", "within_point", "voxel_to_point", "point_to_voxel"}
        for name in networks:
            entered[name].append(keys[name])
        objective.after_update((step + 1) / 3)


@pytest.mark.parametrize("formats", ["voxel", "point"])
def test_one_format_alone(formats: str) -> None:
    backbone = POINTS if formats == "point" else SMALL["backbone"]
    objective = depthcontrast(formats=formats, backbone=backbone)
    assert not hasattr(objective, "point_backbone")
    objective(two_clouds([0, 1]))
    terms = objective(two_clouds([2, 3]))
    assert set(terms.parts) == {f"within_{formats}"}
    assert terms.total == terms.parts[f"within_{formats}"]
    terms.total.backward()
    assert all(p.grad is not None for p in objective.backbone.parameters())
    assert set(objective.sketches(two_clouds([0]))) == {f"maxima_{formats}"}


def test_a_sample_without_points_in_a_view_is_left_out() -> None:
    objective: Any = depthcontrast()
    batch = two_clouds([0, 1])
    assert batch.second is not None
    second = batch.second
    points, voxels = second.point_sample == 1, second.voxel_coords[:, 0] == 1
    emptied = dataclasses.replace(
        second,
        points=second.points[points],
        point_sample=second.point_sample[points],
        point_voxel=second.point_voxel[points] - int((~voxels).sum()),
        voxel_coords=second.voxel_coords[voxels],
        voxel_features=second.voxel_features[voxels],
    )
    objective(dataclasses.replace(batch, second=emptied, matches=None))
    assert [int(q.seen) for q in objective.queues.values()] == [1, 1]


def test_a_batch_without_points_has_a_loss_and_gradients() -> None:
    objective, batch = depthcontrast(formats="voxel"), two_clouds([0])
    objective(batch)
    empty = dataclasses.replace(
        batch,
        points=batch.points[:0],
        point_sample=batch.point_sample[:0],
        point_voxel=batch.point_voxel[:0],
        voxel_coords=batch.voxel_coords[:0],
        voxel_features=batch.voxel_features[:0],
    )
    terms = objective(dataclasses.replace(empty, second=batch.second, matches=None))
    terms.total.backward()
    assert terms.total == 0
    for name, p in objective.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, name
            assert bool((p.grad == 0).all()), name


def test_maxima_are_shares() -> None:
    objective = depthcontrast().eval()
    for sketch in objective.sketches(two_clouds([0])).values():
        assert isinstance(sketch, PointSketch)
        assert bool((sketch.values >= 0).all())
        assert float(sketch.values.max()) > 0


def test_a_cut_run_goes_on_bit_for_bit() -> None:
    config = DepthContrastConfig(**SMALL)
    batches = [two_clouds([n, n + 1]) for n in range(4)]
    whole, cut, again = (built(config).double() for _ in range(3))
    losses = train(whole, batches)
    first = train(cut, batches[:2], steps=4)
    again.load_state_dict(cut.state_dict())
    assert first + train(again, batches[2:], start=2, steps=4) == losses
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_refused() -> None:
    with pytest.raises(ValueError, match="needs a second view"):
        depthcontrast()(dataclasses.replace(two_clouds([0]), second=None))
    with pytest.raises(ValueError, match="zero_stage=3 does not work with depthcontrast"):
        depthcontrast().check_engine(zero_stage=3, precision="fp32")
    for settings, what in (
        ({"formats": "point"}, "expected backbone to be pointnet2"),
        ({"backbone": POINTS}, "a network on voxels"),
        ({"point_backbone": Res16UNetConfig()}, "expected point_backbone to be pointnet2"),
        ({"within_weight": 0.0, "across_weight": 0.0}, "not all 0"),
        ({"formats": "voxel", "within_weight": 0.0}, "nothing to learn"),
        ({"queue_size": 0}, "queue_size"),
        ({"temperature": 0.0}, "temperature"),
    ):
        with pytest.raises(ValueError, match=what):
            DepthContrastConfig(**settings)


@pytest.mark.slow
def test_two_ranks_equal_one_process() -> None:
    """BatchNorm over all ranks, unequal shares: losses, weights, copies, statistics and queues of both formats."""
    tiny = Res16UNetConfig(preset="res16unet_tiny", in_channels=4, backend="torch")
    config = DepthContrastConfig(**(SMALL | {"backbone": tiny}))
    shares = [[[0, 1], [2]], [[3], [4, 5]], [[6, 7], [8]]]
    losses, state = train_as_one(config, shares, two_clouds)
    assert min(losses[1:]) > 0
    for mine, theirs in run_distributed(train_as_rank, 2, config, shares, two_clouds):
        assert mine == pytest.approx(losses, rel=1e-6)
        for name, value in state.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-7, msg=name)
