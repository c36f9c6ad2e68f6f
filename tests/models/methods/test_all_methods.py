"""What holds for all methods of the registry: one that is added there is tested here without a line more.

Each is built from its street config and fed batches of a tiny street set, made by the loader as it wants them.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from data.sample import Batch, first_sample
from launchers.drawing.sketches import draw
from models.lidar import sparse
from models.methods import METHODS
from models.methods.base import LossTerms, MethodConfig, Objective
from tests.helpers.degenerate_batches import degenerate_batches
from tests.helpers.pretrain_run import CONFIGS
from tests.helpers.street_run import street_batch, street_config, street_objective
from tests.helpers.street_set import write_street_set

NAMES = sorted(METHODS)
every_method = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def street_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_street_set(tmp_path_factory.mktemp("street"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def build(name: str, shards: str) -> Objective:
    return street_objective(street_config(name, shards))


def step(objective: Objective, batch: Batch) -> LossTerms:
    """Forward and backward from empty gradients."""
    objective.zero_grad(set_to_none=True)
    terms: LossTerms = objective(batch)
    terms.total.backward()
    return terms


def trainable(objective: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in objective.named_parameters() if p.requires_grad}


@contextmanager
def no_tensors_left_in_cycles() -> Iterator[None]:
    """Tensors in reference cycles stay until Python's oldest generation is collected: every few hundred updates."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
        gc.collect()
        left = [(type(o).__name__, tuple(o.shape)) for o in gc.garbage if isinstance(o, Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left


def check_finite(terms: LossTerms, objective: nn.Module, case: str = "") -> None:
    assert terms.total.shape == (), case
    assert terms.total.isfinite(), f"{case}: loss {terms.total}"
    for name, value in {**terms.parts, **terms.watch}.items():
        assert value.isfinite(), f"{case}: {name} = {value}"
        assert not value.requires_grad, f"{case}: {name} keeps its graph"
    for name, parameter in trainable(objective).items():
        assert parameter.grad is not None, f"{case}: {name} has no gradient: other ranks would wait for it"
        assert parameter.grad.isfinite().all(), f"{case}: gradient of {name}"


@every_method
def test_it_has_a_street_config_and_a_page(name: str) -> None:
    assert (CONFIGS / f"{name}_street.yaml").is_file()
    assert issubclass(METHODS[name], MethodConfig)
    assert METHODS[name]().batch_spec() == METHODS[name]().batch_spec()
    pages = CONFIGS.parents[1] / "docs" / "methods"
    assert (pages / f"{name}.md").is_file()


@every_method
def test_what_the_config_says_of_its_networks_is_what_is_built(name: str, street_set: str) -> None:
    config = street_config(name, street_set).method
    objective = config.toy().build()
    for tower in ("backbone", "image_backbone"):
        assert (config.tower(tower) is None) == (objective.part(tower) is None)
    for network in (*config.point_networks(), *config.image_networks(), *config.teachers()):
        assert objective.part(network) is not None
    if config.gather_negatives is not None:
        assert dataclasses.replace(config, gather_negatives=True).gather_negatives  # type: ignore[call-arg]
    assert all(small == small.toy() for small in config.toy().point_networks().values())


@pytest.mark.slow
@every_method
def test_all_that_trains_learns_and_nothing_else(name: str, street_set: str) -> None:
    """Over two updates, so that what starts at zero has begun to move. Nor does an update leave memory behind."""
    objective = build(name, street_set)
    parameters = trainable(objective)
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
    frozen = {n: p.clone() for n, p in objective.named_parameters() if not p.requires_grad}
    teacher = {n: v.clone() for n, v in objective.state_dict().items() if n.startswith("teacher.")}
    reached: set[str] = set()
    losses: list[float] = []
    for samples in ((0, 1), (2, 3)):
        with no_tensors_left_in_cycles():
            terms = step(objective, street_batch(name, street_set, samples))
            check_finite(terms, objective)
            reached |= {n for n, p in parameters.items() if p.grad is not None and bool((p.grad != 0).any())}
            losses.append(float(terms.total.detach()))
            optimizer.step()
            del terms
    assert not set(parameters) - reached, "no gradient reaches these: they are dead weight in every checkpoint"
    assert losses[0] != losses[1]
    for n, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, n
            assert torch.equal(parameter, frozen[n]), f"{n} is frozen, yet a forward pass changed it"
    for n, value in teacher.items():
        assert torch.equal(objective.state_dict()[n], value), f"{n} of the teacher changed"


@every_method
def test_maps_made_in_the_loader_change_no_number_and_are_used(name: str, street_set: str) -> None:
    objective = build(name, street_set).eval()
    make = objective.map_maker()
    if make is None:
        pytest.skip("its network has no neighbour maps")
    batch = street_batch(name, street_set)
    with torch.no_grad():
        torch.manual_seed(0)
        expected = objective(batch).total
        built = mock.Mock(side_effect=AssertionError("a map was built again"))
        with_maps = make(batch)
        with mock.patch.multiple(sparse, submanifold_map=built, strided_map=built, bounded_map=built):
            torch.manual_seed(0)
            assert torch.equal(objective(with_maps).total, expected)


@every_method
def test_a_3d_or_an_image_network_can_be_taken_over(name: str, street_set: str) -> None:
    objective = build(name, street_set)
    towers = [tower for tower in ("backbone", "image_backbone") if getattr(objective, tower, None) is not None]
    assert towers
    for tower in towers:
        assert hasattr(METHODS[name](), tower), f"the config has no section {tower}: it could not be built again"
        assert any(p.requires_grad for p in getattr(objective, tower).parameters())


SOME = {"one point", "no pairs", "no matches", "no cluster", "all ground"}
"""Degenerate batches that are cheap and have broken most methods."""


@every_method
@pytest.mark.parametrize("which", ["some", pytest.param("others", marks=pytest.mark.slow)])
def test_degenerate_batches_give_a_finite_loss_and_gradient(name: str, which: str, street_set: str) -> None:
    objective = build(name, street_set)
    before = {n: value.clone() for n, value in objective.state_dict().items()}
    wrong: list[str] = []
    for case, batch in degenerate_batches(street_batch(name, street_set)).items():
        if (case in SOME) != (which == "some"):
            continue
        objective.load_state_dict(before)
        try:
            check_finite(step(objective, batch), objective, case)
        except Exception as error:
            wrong.append(f"{case}: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        wrong += [
            f"{case}: {n} of the state is not finite"
            for n, value in objective.state_dict().items()
            if value.is_floating_point() and not bool(value.isfinite().all())
        ]
    assert not wrong, "\n".join(wrong)


@cache
def plain_loss(name: str, street_set: str) -> Tensor:
    objective = build(name, street_set)
    torch.manual_seed(5)
    return step(objective, street_batch(name, street_set)).total.detach()


@pytest.mark.slow
@every_method
def test_the_same_batch_gives_the_same_loss(name: str, street_set: str) -> None:
    """All random choices come from torch's generator, which is stored in checkpoints."""
    assert torch.equal(plain_loss.__wrapped__(name, street_set), plain_loss(name, street_set))


@pytest.mark.slow
@every_method
def test_sketches_can_be_drawn_and_change_nothing(name: str, street_set: str) -> None:
    objective = build(name, street_set).eval()
    before = {n: value.clone() for n, value in objective.state_dict().items()}
    whole = street_batch(name, street_set)
    odd = degenerate_batches(whole)
    for case in ("whole", "one point", "no pairs", "no matches", "no cluster", "all ground"):
        batch = whole if case == "whole" else odd.get(case)
        if batch is None:
            continue
        state = torch.get_rng_state()
        with torch.no_grad():
            sketches = objective.sketches(first_sample(batch))
        assert torch.equal(torch.get_rng_state(), state), f"{case}: looking drew random numbers"
        for sketch in sketches.values():
            assert draw(sketch).shape[2] == 3
    assert all(torch.equal(value, before[n]) for n, value in objective.state_dict().items())


@pytest.mark.slow
@every_method
def test_under_bfloat16(name: str, street_set: str) -> None:
    objective = build(name, street_set)
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = objective(street_batch(name, street_set))
    terms.total.backward()
    check_finite(terms, objective)
    assert terms.total.dtype == torch.float32
    assert float(terms.total.detach()) == pytest.approx(float(plain_loss(name, street_set)), rel=0.2, abs=0.05)


@pytest.mark.slow
@every_method
def test_diverged_weights_give_a_loss_and_no_error(name: str, street_set: str) -> None:
    """The engine skips and counts such updates by their loss; an error on the way would end the run instead."""
    objective = build(name, street_set)
    for parameter in trainable(objective).values():
        parameter.data.fill_(torch.nan)
    assert step(objective, street_batch(name, street_set, (0, 1))).total.shape == ()
