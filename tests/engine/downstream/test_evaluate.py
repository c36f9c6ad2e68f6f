from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from engine.downstream import frozen
from engine.downstream.common import ChangedError, LabelDraws, hold_out, voxel_labels
from engine.downstream.features import SweepParts, Threads
from engine.downstream.finetune import FinetuneConfig, finetune, rate_groups
from engine.downstream.fit import learning_rate_factor
from engine.downstream.knn import KnnClassifier, KnnConfig
from engine.downstream.linear_probe import LinearProbeConfig
from engine.downstream.protocols import ProtocolsConfig, of_tower
from engine.downstream.results import Result, paired_difference
from engine.downstream.runner import LATER, Initialisation, Job, measure
from tests.engine.downstream.toy import TASK, ToyNet, ToySweeps, toy_batch, toy_splits

SMALL = ProtocolsConfig(
    linear_probe=LinearProbeConfig(steps=40, lrs=(0.003, 0.03), seeds=(0, 1)),
    knn=KnnConfig(bank_size=200),
    finetune=FinetuneConfig(steps=12, lrs=(0.001, 0.01), seeds=(0, 1)),
    tune_sweeps=2,
)
DRAWS = LabelDraws(text="1 frame", runs=(np.array([2]), np.array([5])), tuning=(np.array([1]),), settings={})
PRETRAINED = Initialisation(name="toy", pretrained=True, networks=(lambda: ToyNet(0),), checkpoint=("abc",))
RANDOM = Initialisation(
    name="random", pretrained=False, networks=(lambda: ToyNet(1, good=False), lambda: ToyNet(2, good=False))
)


def run(
    inits: list[Initialisation],
    sweeps: ToySweeps,
    config: ProtocolsConfig = SMALL,
    *,
    draws: LabelDraws | None = DRAWS,
    known: Sequence[Result] = (),
    progress: Callable[[float, str], None] | None = None,
    threads: Threads = nullcontext,
) -> list[Result]:
    job = Job(
        protocols=of_tower(config.protocols, "backbone"),
        parts=SweepParts(read=sweeps, threads=threads),
        splits=toy_splits(),
        dataset="toy",
        classes=TASK,
        config=config,
        draws={} if draws is None else {"finetune": draws, "sweep_probe": draws},
    )
    return list(measure(inits, job, known=known, progress=progress))


def test_all_protocols_compare_under_the_same_budget() -> None:
    sweeps, shares = ToySweeps(), []
    results = run([PRETRAINED, RANDOM], sweeps, progress=lambda share, text: shares.append(share))
    assert [(r.init, r.protocol) for r in results] == [
        (init, p) for init in ("toy", "random") for p in ("linear_probe", "knn", "finetune")
    ]
    for ours, random in zip(results[:3], results[3:], strict=True):
        assert ours.fingerprint == random.fingerprint
        gain = paired_difference(ours, random)
        assert gain is not None
        assert gain.num_pairs == len(ours.seeds)
        if ours.protocol != "finetune":
            assert gain.mean > 50
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    # Paired draws: both initialisations trained on the same sweeps with the same seeds.
    trained = [(indices, seed) for indices, augment, seed, _ in sweeps.calls if augment]
    half = len(trained) // 2
    assert trained[:half] == trained[half:]


@pytest.mark.parametrize("name", ["linear_probe", "knn", "finetune", "sweep_probe"])
def test_networks_run_with_their_own_threads_and_what_is_fitted_to_features_with_all(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = [False]

    @contextmanager
    def threads() -> Iterator[None]:
        assert not inside[0] or name in ("finetune", "sweep_probe")  # they calibrate inside
        before, inside[0] = inside[0], True
        yield
        inside[0] = before

    def noted(function: Callable[..., Any], places: list[bool]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (places.append(inside[0]), function(*args, **kwargs))[1]

    networks: list[bool] = []
    fits: list[bool] = []
    monkeypatch.setattr(ToyNet, "forward", noted(ToyNet.forward, networks))
    monkeypatch.setattr(frozen, "fit_linear", noted(frozen.fit_linear, fits))
    monkeypatch.setattr(KnnClassifier, "predict", noted(KnnClassifier.predict, fits))
    run([PRETRAINED], ToySweeps(), dataclasses.replace(SMALL, protocols=(name,)), threads=threads)
    assert networks
    assert all(networks)
    assert not any(fits)
    assert bool(fits) == (name in ("linear_probe", "knn"))


def test_nothing_is_ever_fitted_or_tuned_on_the_test_split() -> None:
    sweeps, splits = ToySweeps(), toy_splits()
    run([PRETRAINED], sweeps)
    test = set(splits.test.tolist())
    asked = [set(indices) for indices, *_ in sweeps.calls]
    assert [a for a in asked if a & test] == [test] * 3  # one frozen pass, one for each of two fine-tuning seeds


def test_draws_that_do_not_fit_are_refused() -> None:
    splits = toy_splits()
    held = hold_out(splits.train, splits.train_logs, SMALL.validation_share)[1]
    bad = {
        "got none": None,
        "one for each seed: 2 and 1": dataclasses.replace(DRAWS, runs=DRAWS.runs[:1]),
        "not all of it lies in the train split": dataclasses.replace(DRAWS, runs=(DRAWS.runs[0], np.array([13]))),
        "compared on": dataclasses.replace(DRAWS, tuning=(held[:1],)),
    }
    for message, draws in bad.items():
        with pytest.raises(ValueError, match=message):
            run([PRETRAINED], ToySweeps(), draws=draws)


def test_known_results_are_not_measured_again() -> None:
    frozen = dataclasses.replace(SMALL, protocols=("linear_probe", "knn"))
    first = run([PRETRAINED], ToySweeps(), frozen)
    sweeps = ToySweeps()
    assert run([PRETRAINED], sweeps, frozen, known=first) == first
    assert not sweeps.calls
    other = dataclasses.replace(frozen, knn=KnnConfig(bank_size=100))
    again = run([PRETRAINED], sweeps, other, known=first)
    assert [r.protocol for r in again] == ["linear_probe", "knn"]
    assert again[0] == first[0]
    assert again[1] != first[1]


def test_an_old_record_stays_known_where_every_class_occurred() -> None:
    """Earlier versions left predicted classes out of the mean if they were never true."""
    config = dataclasses.replace(SMALL, protocols=("knn",))
    (now,) = run([PRETRAINED], ToySweeps(), config)
    assert now.settings["absent_class"] == "left-out"
    old = dataclasses.replace(now, settings={k: v for k, v in now.settings.items() if k != "absent_class"})
    assert run([PRETRAINED], ToySweeps(), config, known=[old]) == [old]
    other_mean = dataclasses.replace(old, class_iou={**old.class_iou, TASK.class_names[0]: None})
    (again,) = run([PRETRAINED], ToySweeps(), config, known=[other_mean])
    assert again.class_iou == now.class_iou
    assert again.identity == other_mean.identity  # so it takes its place


def test_evaluation_repeats_bit_for_bit() -> None:
    runs = [[r.values for r in run([PRETRAINED], ToySweeps())] for _ in "ab"]
    assert runs[0] == runs[1]


def test_finetuning_learns_leaves_the_start_alone_and_uses_only_the_drawn_sweeps() -> None:
    backbone, sweeps = ToyNet(0).eval(), ToySweeps()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    config = FinetuneConfig(steps=40)
    network = finetune(backbone, sweeps, np.array([4]), TASK, config, lr=0.01, seed=0)
    for name, value in backbone.state_dict().items():
        torch.testing.assert_close(value, before[name])
    assert {indices for indices, *_ in sweeps.calls} == {(4,)}
    assert [epoch for *_, epoch in sweeps.calls] == list(range(40))
    assert not network.training
    assert not torch.equal(network.backbone.first.weight, backbone.first.weight)


def test_recipes_of_the_literature() -> None:
    backbone, sweeps = ToyNet(0).eval(), ToySweeps()
    recipe = FinetuneConfig(
        optimizer="sgd", epochs=3, batch_size=2, warmup_share=0.0, clip_norm=None, bn_momentum=0.02, voxel_label="first"
    )
    network = finetune(backbone, sweeps, np.arange(5), TASK, recipe, lr=0.05, seed=0)
    assert len([epoch for *_, epoch in sweeps.calls]) == 3, "five sweeps in batches of two are three updates an epoch"
    assert network.backbone.norm.momentum == 0.02
    optimizer = recipe.build(rate_groups(network, recipe, 0.05))
    assert isinstance(optimizer, torch.optim.SGD)
    numbers = [(g["lr"], g["momentum"], g["dampening"], g["weight_decay"]) for g in optimizer.param_groups]
    assert numbers == [(0.05, 0.9, 0.1, 0.01), (0.25, 0.9, 0.1, 0.01)]
    assert [learning_rate_factor(step, 4, 0.0) for step in (0, 2)] == [1.0, 0.5]


@pytest.mark.parametrize("head", ["linear", "norm_linear"])
def test_a_probe_on_whole_sweeps_leaves_the_network_as_it_is(head: str) -> None:
    backbone = ToyNet(0).eval()
    recipe = FinetuneConfig(steps=40, head=head, batch_size=4)  # type: ignore[arg-type]
    network = finetune(backbone, ToySweeps(), np.arange(8), TASK, recipe, lr=0.01, seed=0, frozen=True)
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, backbone.state_dict()[name]), name
    batch = toy_batch([20])
    with torch.no_grad():
        right = network(batch).argmax(1) == voxel_labels(batch, TASK)
    assert right.float().mean() > 0.6


class CountingNet(ToyNet):
    """Writes to a buffer in every pass, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__(0)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, voxel_coords: torch.Tensor, voxel_features: torch.Tensor, num_samples: int) -> torch.Tensor:
        self.passes += 1
        return super().forward(voxel_coords, voxel_features, num_samples)


@pytest.mark.parametrize("protocol", ["linear_probe", "knn", "sweep_probe"])
def test_a_frozen_network_that_changes_is_refused(protocol: str) -> None:
    config = dataclasses.replace(SMALL, protocols=(protocol,))
    changing = dataclasses.replace(PRETRAINED, networks=(CountingNet,))
    with pytest.raises(ChangedError, match=r"1 of 10 parameters and buffers \(passes\)"):
        run([changing], ToySweeps(), config)


def test_a_record_says_whether_its_network_was_frozen_and_came_out_as_it_was() -> None:
    records = run([PRETRAINED], ToySweeps(), dataclasses.replace(SMALL, protocols=("linear_probe", "knn", "finetune")))
    assert {r.protocol: r.kept_frozen for r in records} == {"linear_probe": True, "knn": True, "finetune": False}


def test_settings_that_came_later_leave_old_records_known() -> None:
    (record,) = run([PRETRAINED], ToySweeps(), dataclasses.replace(SMALL, protocols=("finetune",)))
    assert not LATER.keys() & record.settings.keys()
    recipe = dataclasses.replace(SMALL.finetune, warmup_share=0.0)
    config = dataclasses.replace(SMALL, protocols=("finetune",), finetune=recipe)
    (other,) = run([PRETRAINED], ToySweeps(), config)
    assert other.settings["warmup_share"] == 0.0
    assert other.fingerprint != record.fingerprint


def test_unlabelled_sweeps_are_refused() -> None:
    with pytest.raises(ValueError, match="no point labels"):
        run([PRETRAINED], ToySweeps(labelled=False))


def test_learning_rate_curve() -> None:
    curve = [learning_rate_factor(step, 20) for step in range(20)]
    assert curve[:3] == [0.5, 1.0, 1.0]
    assert curve[2:] == sorted(curve[2:], reverse=True)
    assert 0 < curve[-1] < 0.02


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (lambda: ProtocolsConfig(protocols=()), "protocols"),
        (lambda: ProtocolsConfig(validation_share=0.9), "validation_share"),
        (lambda: ProtocolsConfig(voxels_per_sweep=0), "voxels_per_sweep"),
        (lambda: FinetuneConfig(lrs=(0.1, 0.1)), "lrs"),
        (lambda: FinetuneConfig(steps=0), "steps"),
        (lambda: FinetuneConfig(epochs=0), "epochs"),
        (lambda: FinetuneConfig(warmup_share=1.0), "warmup_share"),
        (lambda: FinetuneConfig(bn_momentum=1.5), "bn_momentum"),
        (lambda: LinearProbeConfig(lrs=()), "lrs"),
        (lambda: LinearProbeConfig(seeds=(-1,)), "seeds"),
    ],
)
def test_configs_refuse_values_out_of_range(config: object, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        config()  # type: ignore[operator]
