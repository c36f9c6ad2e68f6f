"""MoCo: against loops, what learns and what follows, one and two processes, resume."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.contrast.momentum import MomentumConfig
from models.image.resnet_encoder import ResNetEncoderConfig
from models.methods import METHODS
from models.methods.moco import Moco, MocoConfig
from models.visuals import PixelSketch
from tests.helpers.distributed import run_distributed
from tests.helpers.momentum_run import built, train, train_as_one, train_as_rank, two_image_views
from tests.helpers.toy_images import PatchConfig
from tests.reference.memory import queue_contrast_loop, queue_loop

SMALL: dict[str, Any] = {
    "image_backbone": PatchConfig(),
    "queue_size": 10,
    "embedding_dim": 8,
    "momentum": MomentumConfig(start=0.8),
}


def moco(**settings: Any) -> Moco:
    objective = built(MocoConfig(**(SMALL | settings))).double()
    assert isinstance(objective, Moco)
    return objective


def test_registry_and_the_papers_values() -> None:
    config = MocoConfig()
    assert METHODS["moco"] is MocoConfig
    assert (config.queue_size, config.embedding_dim, config.temperature) == (65_536, 128, 0.2)
    assert (config.momentum.start, config.momentum.ramp) == (0.999, "constant")
    assert config.batch_spec().second_images
    with torch.device("meta"):
        objective = dataclasses.replace(config, queue_size=2).build()
    assert [tuple(p.shape) for p in objective.head.parameters()] == [(2048, 2048), (2048,), (128, 2048), (128,)]


def test_loss_and_queue_equal_the_slow_reference() -> None:
    objective: Any = moco()
    entered: list[Tensor] = []
    for step, samples in enumerate(([0, 1], [2], [3, 4, 5])):
        batch = two_image_views(samples)
        assert batch.images is not None
        assert batch.second is not None
        rows = {}
        for name, backbone, head, images in (
            ("queries", objective.image_backbone, objective.head, batch.images),
            ("keys", objective.key_backbone.copy, objective.key_head.copy, batch.second.images),
        ):
            maps = backbone(images)
            means = torch.stack([m.flatten(1).mean(dim=1) for m in maps])
            rows[name] = F.normalize(head.layers(means), dim=1)
        negatives = queue_loop(entered, 10)
        stacked = torch.stack(negatives) if negatives else rows["keys"][:0]
        wanted = queue_contrast_loop(rows["queries"], rows["keys"].detach(), stacked, 0.2)
        terms = objective(batch)
        torch.testing.assert_close(terms.total, wanted)
        learnt = [p for p in objective.parameters() if p.requires_grad]
        for mine, theirs in zip(
            torch.autograd.grad(terms.total, learnt), torch.autograd.grad(wanted, learnt), strict=True
        ):
            torch.testing.assert_close(mine, theirs)
        entered.append(rows["keys"].detach())
        assert objective.queue.filled == min(sum(map(len, entered)), 10)
        objective.after_update((step + 1) / 3)
        with torch.no_grad():
            for p in learnt:
                p.add_(0.1)


def test_what_learns_and_what_follows() -> None:
    objective = moco()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective(two_image_views([0])).total.backward()
    objective.zero_grad(set_to_none=True)
    objective(two_image_views([1])).total.backward()
    for name, p in objective.named_parameters():
        assert (p.grad is None) == name.startswith("key_"), name
    with torch.no_grad():
        for p in objective.image_backbone.parameters():
            p.add_(1.0)
    objective.after_update(0.5)
    after = objective.state_dict()
    for name in before:
        if name.startswith("key_backbone."):
            torch.testing.assert_close(after[name], before[name] + 0.2)
        elif name.startswith("key_head."):
            assert torch.equal(after[name], before[name])


def test_looking_does_not_enter_the_queue() -> None:
    objective = moco()
    objective(two_image_views([0, 1]))
    seen = int(objective.queue.seen)
    objective.eval()
    objective(two_image_views([2]))
    drawn = objective.sketches(two_image_views([3]))["similarity"]
    assert isinstance(drawn, PixelSketch)
    assert drawn.values.shape == drawn.image.shape[1:]
    assert bool((drawn.values.abs() <= 1.0 + 1e-9).all())
    assert int(objective.queue.seen) == seen


def test_a_cut_run_goes_on_bit_for_bit() -> None:
    config = MocoConfig(**(SMALL | {"image_backbone": ResNetEncoderConfig(preset="resnet10_tiny")}))
    batches = [two_image_views([n, n + 1]) for n in range(6)]
    whole, cut = built(config), built(config)
    losses = train(whole, batches)
    first = train(cut, batches[:3], steps=6)
    again = built(config)
    again.load_state_dict(cut.state_dict())
    assert first + train(again, batches[3:], start=3, steps=6) == losses
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_the_same_twice_cannot_be_told_apart() -> None:
    """Identical images: the loss is the log of the number of rows, gradients are finite."""
    objective = moco()
    batch = two_image_views([0, 1])
    assert batch.images is not None
    assert batch.second is not None
    grey = torch.full_like(batch.images, 99)
    same = dataclasses.replace(batch, images=grey, second=dataclasses.replace(batch.second, images=grey))
    objective(same)
    terms = objective(same)
    assert terms.total.item() == pytest.approx(torch.log(torch.tensor(1.0 + len(grey))).item())
    terms.total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in objective.parameters() if p.grad is not None)
    assert terms.watch["contrastive_accuracy"] == 0


def test_refused() -> None:
    batch = two_image_views([0])
    for bad in (dataclasses.replace(batch, second=None), dataclasses.replace(batch, images=None)):
        with pytest.raises(ValueError, match=r"needs (images|a second view)"):
            moco()(bad)
    with pytest.raises(ValueError, match="zero_stage=3 does not work with moco"):
        moco().check_engine(zero_stage=3, precision="fp32")
    for settings in ({"queue_size": 0}, {"temperature": 0.0}, {"hidden_dim": 0}, {"watch_rows": 1}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            MocoConfig(**settings)


@pytest.mark.slow
@pytest.mark.parametrize("norms", ["batch", "running"])
def test_two_ranks_equal_one_process(norms: str) -> None:
    """BatchNorm over all ranks, unequal shares: losses, weights, copies, statistics and queue."""
    config = MocoConfig(
        **SMALL
        | {
            "image_backbone": ResNetEncoderConfig(preset="resnet10_tiny"),
            "momentum": MomentumConfig(start=0.8, norms=norms),  # type: ignore[arg-type]
        }
    )
    shares = [[[0, 1], [2]], [[3], [4, 5]], [[6, 7], [8]]]
    losses, state = train_as_one(config, shares, two_image_views)
    assert losses[0] == 0
    assert min(losses[1:]) > 0
    for mine, theirs in run_distributed(train_as_rank, 2, config, shares, two_image_views):
        assert mine == pytest.approx(losses, rel=1e-9)
        for name, value in state.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-7, atol=1e-9, msg=name)
