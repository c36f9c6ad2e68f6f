from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from engine.optim import OptimConfig, build_optimizer, in_form_of, momentum_of, param_groups, peak_lr, set_lr
from engine.schedule import ScheduleConfig, lr_scale, lr_table, momentum_at, total_steps


def test_cosine_against_closed_form_and_torch() -> None:
    config = ScheduleConfig(kind="cosine", steps=20)
    ours = [lr_scale(s, 20, config) for s in range(20)]
    assert ours == pytest.approx([(1 + math.cos(math.pi * s / 20)) / 2 for s in range(20)])
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=20)
    theirs = []
    for _ in range(20):
        theirs.append(sgd.param_groups[0]["lr"])
        sgd.step()
        torchs.step()
    assert ours == pytest.approx(theirs)


def test_warmup_then_cosine_to_a_floor() -> None:
    config = ScheduleConfig(steps=14, warmup_steps=4, final_lr_scale=0.1)
    values = [lr_scale(s, 14, config) for s in range(14)]
    assert values[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert values[4] == pytest.approx(1.0)
    assert values[9] == pytest.approx(0.1 + 0.9 * 0.5)
    assert all(a >= b for a, b in itertools.pairwise(values[4:]))
    assert values[-1] > 0.1
    assert lr_scale(3, 14, ScheduleConfig(kind="constant", steps=14)) == 1.0


def test_poly_is_torchs() -> None:
    weight = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    torchs = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=50, power=0.9)
    for step in range(50):
        assert lr_scale(step, 50, ScheduleConfig(kind="poly", steps=50)) == pytest.approx(torchs.get_last_lr()[0])
        optimizer.step()
        torchs.step()
    assert lr_scale(50, 50, ScheduleConfig(kind="poly", steps=50, final_lr_scale=0.1)) == pytest.approx(0.1)


def test_exponential_is_torchs_but_for_its_steps() -> None:
    """PointContrast's: 0.99 every 250 of 60,000 updates. Between its steps ours falls on, by less than 1 %."""
    config = ScheduleConfig(kind="exponential", steps=60_000, final_lr_scale=0.99**240)
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.ExponentialLR(sgd, gamma=0.99)
    for period in range(240):
        theirs = sgd.param_groups[0]["lr"]
        assert lr_scale(250 * period, 60_000, config) == pytest.approx(theirs)
        assert 0.99 * theirs < lr_scale(250 * period + 249, 60_000, config) < theirs
        sgd.step()
        torchs.step()
    with pytest.raises(ValueError, match=r"final_lr_scale: got 0.0, expected above 0"):
        ScheduleConfig(kind="exponential")


def test_steps_are_torchs_and_need_their_places() -> None:
    """VoteNet's: a tenth after epochs 80, 120 and 160 of 180."""
    config = ScheduleConfig(kind="steps", epochs=180, drop_at=(80 / 180, 120 / 180, 160 / 180))
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.MultiStepLR(sgd, milestones=[80, 120, 160], gamma=0.1)
    for epoch in range(180):
        assert lr_scale(epoch, 180, config) == pytest.approx(sgd.param_groups[0]["lr"])
        sgd.step()
        torchs.step()
    with pytest.raises(ValueError, match=r"drop_at: got \(\), expected shares of the run for steps alone"):
        ScheduleConfig(kind="steps")
    with pytest.raises(ValueError, match=r"drop_at: got .*, expected shares of the run for steps alone"):
        ScheduleConfig(drop_at=(0.5,))
    with pytest.raises(ValueError, match=r"drop_at: got .*, expected rising shares"):
        ScheduleConfig(kind="steps", drop_at=(0.5, 0.4))


def test_onecycle_is_torchs_with_momentum_mirrored() -> None:
    """torch counts its last rate into the run and turns at 0.4 N - 1, so it is compared on runs that end alike."""
    config = ScheduleConfig(kind="onecycle", steps=50, momentum_range=(0.95, 0.85), final_lr_scale=1e-5)
    parameter = nn.Parameter(torch.zeros(1))
    adam = torch.optim.AdamW([parameter], lr=1.0, betas=(0.95, 0.99))
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        adam,
        max_lr=1.0,
        total_steps=51,
        pct_start=21 / 51,
        div_factor=10,
        final_div_factor=1e4,
        base_momentum=0.85,
        max_momentum=0.95,
    )
    for step in range(50):
        assert lr_scale(step, 50, config) == pytest.approx(adam.param_groups[0]["lr"])
        assert momentum_at(step, 50, config) == pytest.approx(adam.param_groups[0]["betas"][0])
        adam.step()
        torchs.step()
    assert lr_scale(0, 50, config) == pytest.approx(0.1)
    assert lr_scale(20, 50, config) == 1.0
    assert momentum_at(20, 50, config) == pytest.approx(0.85)
    assert lr_scale(0, 1, config) == 1.0, "a run of one update has no rise"
    assert momentum_at(3, 50, ScheduleConfig()) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "onecycle", "warmup_steps": 3}, r"warmup_steps: got 3, expected 0"),
        ({"kind": "cosine", "momentum_range": (0.9, 0.8)}, r"momentum_range: got \(0.9, 0.8\), expected null"),
        ({"kind": "onecycle", "momentum_range": (0.9, 1.0)}, r"momentum_range"),
        ({"kind": "onecycle", "rise_share": 1.5}, r"rise_share: got 1.5"),
    ],
    ids=["warmup", "cosine", "one", "share"],
)
def test_settings_of_onecycle_that_mean_nothing(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_momentum_holds_for_one_update(name: str) -> None:
    optimizer = build_optimizer(nn.Linear(2, 1), OptimConfig(name=name, lr=0.1), 0.1)  # type: ignore[arg-type]
    groups = optimizer.param_groups
    key, before = ("betas", (0.9, 0.999)) if name == "adamw" else ("momentum", 0.9)
    with momentum_of(groups, 0.85):
        assert groups[0][key] == ((0.85, 0.999) if name == "adamw" else 0.85)
    assert groups[0][key] == before
    with momentum_of(groups, None):
        assert groups[0][key] == before


def test_total_steps_shows_every_sample_often_enough() -> None:
    config = ScheduleConfig(epochs=3)
    assert total_steps(config, samples_per_epoch=10, global_batch_size=4) == 8  # 32 >= 30 > 28
    assert total_steps(config, samples_per_epoch=12, global_batch_size=4) == 9
    assert total_steps(ScheduleConfig(steps=5), samples_per_epoch=12, global_batch_size=4) == 5
    with pytest.raises(ValueError, match="no samples"):
        total_steps(config, samples_per_epoch=0, global_batch_size=4)
    with pytest.raises(ValueError, match=r"warmup_steps=9, expected fewer than the 9 updates"):
        total_steps(ScheduleConfig(epochs=3, warmup_steps=9), samples_per_epoch=12, global_batch_size=4)


def test_table_has_first_and_last_update() -> None:
    lines = lr_table(ScheduleConfig(steps=101), 101, 0.5).splitlines()
    assert lines[1].split() == ["0", "0.5"]
    assert lines[-1].split()[0] == "100"
    assert len(lines) == 12


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1).requires_grad_(False))


def test_groups_cover_each_trainable_parameter_once() -> None:
    net = network()
    assert [len(g["params"]) for g in param_groups(net, OptimConfig())] == [4]
    groups = param_groups(net, OptimConfig(decay_norms_and_biases=False, weight_decay=0.01))
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.01), (3, 0.0)]
    assert groups[0]["params"][0] is net[0].weight


class TwoTowers(nn.Module):
    def __init__(self, *, forget: bool = False, twice: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.forget, self.twice = forget, twice

    def param_groups(self) -> list[dict[str, object]]:
        groups: list[dict[str, object]] = [{"params": list(self.a.parameters()), "lr_scale": 0.1}]
        if not self.forget:
            groups.append({"params": list(self.b.parameters()), "weight_decay": 0.0})
        if self.twice:
            groups.append({"params": [self.a.weight]})
        return groups


def test_own_groups_scale_the_rate() -> None:
    optimizer = build_optimizer(TwoTowers(), OptimConfig(name="adamw", lr=0.2), 0.2)
    set_lr(optimizer.param_groups, 0.2)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.02, 0.2])
    assert [g["weight_decay"] for g in optimizer.param_groups] == [1e-4, 0.0]


def test_groups_that_miss_or_repeat_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 trainable parameters are in no group \(the first: b.weight\)"):
        param_groups(TwoTowers(forget=True), OptimConfig())
    with pytest.raises(ValueError, match=r"a.weight is in two groups"):
        param_groups(TwoTowers(twice=True), OptimConfig())
    with pytest.raises(ValueError, match="no trainable parameter"):
        param_groups(nn.Linear(2, 2).requires_grad_(False), OptimConfig())


def test_rate_follows_the_global_batch_only_when_asked() -> None:
    assert peak_lr(OptimConfig(lr=0.5), 64) == 0.5
    assert peak_lr(OptimConfig(lr=0.5, reference_batch_size=16), 64) == 2.0


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.0), ("momentum", 1.0), ("weight_decay", -1.0), ("betas", (0.9, 1.0)), ("reference_batch_size", 0)],
)
def test_optim_ranges(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        OptimConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("epochs", 0), ("warmup_steps", -1), ("final_lr_scale", 2.0)]
)
def test_schedule_ranges(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}: got {value}"):
        ScheduleConfig(**{field: value})  # type: ignore[arg-type]


def test_fused_adamw_is_torchs_whatever_a_gradients_strides() -> None:
    """On the CPU the fused form, which alone would read a gradient of other strides as it lies in memory."""
    weights = []
    for ours in (True, False):
        network = nn.Conv2d(4, 6, 3)
        nn.init.constant_(network.weight, 0.1)
        optimizer = (
            build_optimizer(network, OptimConfig(name="adamw", lr=0.1, weight_decay=0.01), 0.1)
            if ours
            else torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.01)
        )
        assert bool(optimizer.param_groups[0]["fused"]) == ours
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            grad = torch.randn(network.weight.shape, generator=generator)
            network.weight.grad = grad.to(memory_format=torch.channels_last)
            assert network.weight.grad.stride() != network.weight.stride()
            optimizer.step()
        weights.append(network.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-6)


def test_a_state_takes_the_form_of_the_optimizer_that_reads_it() -> None:
    weight = nn.Parameter(torch.ones(3))
    plain = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones(3)
    plain.step()
    fused = torch.optim.AdamW([weight], lr=0.1, fused=True)
    state = in_form_of(fused.param_groups, plain.state_dict())
    assert [group["fused"] for group in state["param_groups"]] == [True]
    fused.load_state_dict(state)
    assert fused.state[weight]["step"] == 1
    towers = [{"lr": 0.1, "kind": "adamw"}]  # they have no such entry, and get none
    assert in_form_of(towers, {"state": {}, "param_groups": towers}) == {"state": {}, "param_groups": towers}
