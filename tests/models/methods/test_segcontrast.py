"""SegContrast: against loops, which segments take part, degenerate batches, one and two processes, resume."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.sample import Batch
from models.contrast.momentum import MomentumConfig
from models.lidar.res16unet import Res16UNetConfig
from models.methods import METHODS
from models.methods.segcontrast import SegContrast, SegContrastConfig
from models.visuals import PointSketch
from tests.helpers.distributed import run_distributed
from tests.helpers.momentum_run import built, train, train_as_one, train_as_rank, two_clouds_with_clusters
from tests.helpers.toy_batches import PointwiseConfig, with_changed
from tests.reference.memory import queue_contrast_loop, queue_loop

SMALL: dict[str, Any] = {
    "backbone": PointwiseConfig(in_channels=4),
    "queue_size": 9,
    "embedding_dim": 8,
    "hidden_dim": 16,
    "min_points": 2,
    "dropout": 0.0,
    "momentum": MomentumConfig(start=0.8),
}


def segcontrast(**settings: Any) -> SegContrast:
    objective = built(SegContrastConfig(**(SMALL | settings))).double()
    assert isinstance(objective, SegContrast)
    return objective


def sizes(batch: Batch) -> list[int]:
    """Points of each segment in the view that has fewer."""
    assert batch.clusters is not None
    assert batch.second is not None
    assert batch.second.clusters is not None
    return [
        min(int((batch.clusters.of_point == n).sum()), int((batch.second.clusters.of_point == n).sum()))
        for n in range(batch.clusters.num)
    ]


def pooled_loop(network: Any, view: Batch, ids: list[int]) -> Tensor:
    assert view.clusters is not None
    features = network(view.voxel_coords, view.voxel_features, view.num_samples)
    rows = []
    for number in ids:
        voxels = {int(view.point_voxel[n]) for n in range(view.num_points) if int(view.clusters.of_point[n]) == number}
        rows.append(torch.stack([features[v] for v in sorted(voxels)]).amax(dim=0))
    return torch.stack(rows)


def test_registry_and_the_papers_values() -> None:
    config = SegContrastConfig()
    assert METHODS["segcontrast"] is SegContrastConfig
    assert (config.queue_size, config.embedding_dim, config.temperature, config.max_segments) == (65_536, 128, 0.1, 50)
    assert config.momentum.start == 0.999
    spec = config.batch_spec()
    assert not spec.images
    assert spec.ground is not None
    assert (spec.ground.kind, spec.ground.distance_m) == ("plane", 0.25)
    assert spec.clusters is not None
    assert (spec.clusters.kind, spec.clusters.radius_m, spec.clusters.min_points) == ("dbscan", 0.25, 10)
    assert spec.second_cloud is not None
    assert spec.second_cloud.source == "same"


def test_loss_and_queue_equal_the_slow_reference() -> None:
    objective: Any = segcontrast()
    entered: list[Tensor] = []
    for step, samples in enumerate(([0, 1], [2], [3, 4])):
        batch = two_clouds_with_clusters(samples)
        assert batch.second is not None
        ids = [n for n, size in enumerate(sizes(batch)) if size >= 2]
        ids.sort(key=lambda n: (n // 5, -sizes(batch)[n], n))  # samples have five segments each
        queries = F.normalize(objective.head.layers(pooled_loop(objective.backbone, batch, ids)), dim=1)
        keys = objective.key_head.copy.layers(pooled_loop(objective.key_backbone.copy, batch.second, ids))
        keys = F.normalize(keys, dim=1).detach()
        negatives = queue_loop(entered, 9)
        stacked = torch.stack(negatives) if negatives else keys[:0]
        wanted = queue_contrast_loop(queries, keys, stacked, 0.1)
        terms = objective(batch)
        torch.testing.assert_close(terms.total, wanted)
        learnt = [p for p in objective.parameters() if p.requires_grad]
        for mine, theirs in zip(
            torch.autograd.grad(terms.total, learnt), torch.autograd.grad(wanted, learnt), strict=True
        ):
            torch.testing.assert_close(mine, theirs)
        assert terms.watch["segments"] == len(ids)
        entered.append(keys)
        objective.after_update((step + 1) / 3)


@pytest.mark.parametrize("most", [1, 2, None])
@pytest.mark.parametrize("least", [1, 6, 12])
def test_the_largest_segments_with_enough_points_take_part(most: int | None, least: int) -> None:
    batch = two_clouds_with_clusters([0, 1, 2])
    counted, expected = sizes(batch), []
    for sample in range(3):
        own = [n for n in range(5 * sample, 5 * sample + 5) if counted[n] >= least]
        expected += sorted(own, key=lambda n: -counted[n])[:most]
    kept = segcontrast(max_segments=most, min_points=least).common_segments(batch)
    assert sorted(counted[n] for n in kept.tolist()) == sorted(counted[n] for n in expected)
    assert torch.equal(kept // 5, torch.tensor([n // 5 for n in expected])) or most is None


def test_order_of_points_and_names_of_segments_do_not_matter() -> None:
    objective, batch = segcontrast(max_segments=None), two_clouds_with_clusters([0, 1])
    objective(two_clouds_with_clusters([2]))
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    plain = objective(batch).total
    order = torch.randperm(batch.num_points, generator=torch.Generator().manual_seed(0))
    names = torch.cat(
        [torch.randperm(batch.clusters.num, generator=torch.Generator().manual_seed(1)), torch.tensor([-1])]
    )
    assert batch.clusters is not None
    assert batch.second is not None
    assert batch.second.clusters is not None
    moved = dataclasses.replace(
        with_changed(batch, clusters={"of_point": names[batch.clusters.of_point[order]]}),
        points=batch.points[order],
        point_sample=batch.point_sample[order],
        point_voxel=batch.point_voxel[order],
        matches=None,
        second=with_changed(batch.second, clusters={"of_point": names[batch.second.clusters.of_point]}),
    )
    objective.load_state_dict(state)
    torch.testing.assert_close(objective(moved).total, plain)


@pytest.mark.parametrize("case", ["no clusters", "none in both", "none at all", "one cluster"])
def test_degenerate_batches(case: str) -> None:
    objective, batch = segcontrast(), two_clouds_with_clusters([0])
    objective(two_clouds_with_clusters([1]))
    assert batch.clusters is not None
    assert batch.second is not None
    nothing, second = torch.full_like(batch.clusters.of_point, -1), batch.second
    none_second = with_changed(second, clusters={"of_point": torch.full((second.num_points,), -1)})
    changed = {
        "no clusters": dataclasses.replace(
            with_changed(batch, clusters={"of_point": nothing, "num": 0}),
            second=with_changed(none_second, clusters={"num": 0}),
        ),
        "none in both": dataclasses.replace(batch, second=none_second),
        "none at all": dataclasses.replace(with_changed(batch, clusters={"of_point": nothing}), second=none_second),
        "one cluster": dataclasses.replace(
            with_changed(batch, clusters={"of_point": torch.zeros_like(nothing), "num": 1}),
            second=with_changed(
                second, clusters={"of_point": torch.zeros(second.num_points, dtype=torch.int64), "num": 1}
            ),
        ),
    }[case]
    seen = int(objective.queue.seen)
    terms = objective(changed)
    terms.total.backward()
    rows = 1 if case == "one cluster" else 0
    assert bool(terms.total > 0) == bool(rows)
    assert int(objective.queue.seen) == seen + rows
    for name, p in objective.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, name
            assert bool(p.grad.isfinite().all()), name
    assert all(bool(value.isfinite()) for value in terms.watch.values())
    objective.eval()
    for sketch in objective.sketches(changed).values():
        assert isinstance(sketch, PointSketch)
        assert len(sketch.points) == len(sketch.values)


def test_dropout_is_for_training_only() -> None:
    objective, batch = segcontrast(dropout=0.4), two_clouds_with_clusters([0, 1])
    objective(batch)
    assert objective(batch).total != objective(batch).total
    objective.eval()
    assert objective(batch).total == objective(batch).total


def test_a_cut_run_goes_on_bit_for_bit() -> None:
    config = SegContrastConfig(**SMALL)
    batches = [two_clouds_with_clusters([n]) for n in range(4)]
    whole, cut, again = (built(config).double() for _ in range(3))
    losses = train(whole, batches)
    first = train(cut, batches[:2], steps=4)
    again.load_state_dict(cut.state_dict())
    assert first + train(again, batches[2:], start=2, steps=4) == losses
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_refused() -> None:
    batch = two_clouds_with_clusters([0])
    for missing, message in (("second", "needs a second view"), ("clusters", "needs clusters")):
        with pytest.raises(ValueError, match=message):
            segcontrast()(dataclasses.replace(batch, **{missing: None}))
    with pytest.raises(ValueError, match="bf16_native does not work with segcontrast"):
        segcontrast().check_engine(zero_stage=1, precision="bf16_native")
    for settings in ({"queue_size": 0}, {"temperature": 0.0}, {"dropout": 1.0}, {"max_segments": 0}, {"watch_rows": 1}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            SegContrastConfig(**settings)


@pytest.mark.slow
def test_two_ranks_equal_one_process() -> None:
    """BatchNorm over all ranks, different numbers of segments: losses, weights, copies, statistics and queue."""
    tiny = Res16UNetConfig(preset="res16unet_tiny", in_channels=4, backend="torch")
    config = SegContrastConfig(**(SMALL | {"backbone": tiny}))
    shares = [[[0, 1], [2]], [[3], [4, 5]], [[6, 7], [8]]]
    losses, state = train_as_one(config, shares, two_clouds_with_clusters)
    assert min(losses[1:]) > 0
    for mine, theirs in run_distributed(train_as_rank, 2, config, shares, two_clouds_with_clusters):
        assert mine == pytest.approx(losses, rel=1e-8)
        for name, value in state.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-6, atol=1e-8, msg=name)
