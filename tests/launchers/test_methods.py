"""What holds for all methods on several ranks: none waits in vain. Whole runs are in test_resume_methods.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.distributed as dist

from engine.interfaces import FollowsUpdates
from engine.sync_bn import convert_sync_batchnorm
from models.methods import METHODS
from tests.helpers.degenerate_batches import degenerate_batches
from tests.helpers.distributed import run_distributed
from tests.helpers.street_run import street_batch, street_config, street_objective

NAMES = sorted(METHODS)


Buffers = dict[str, torch.Tensor]


def _odd_on_one(rank: int, world_size: int, name: str, shards: str) -> tuple[list[str], Buffers]:
    """Rank 0 has whole batches, rank 1 odd ones; what was not finite, and what is kept between updates."""
    config = street_config(name, shards)
    if config.method.gather_negatives is not None:
        method = dataclasses.replace(config.method, gather_negatives=True)  # type: ignore[call-arg]
        config = dataclasses.replace(config, method=method)
    objective = street_objective(config)
    convert_sync_batchnorm(objective)
    whole = street_batch(name, shards, (2 * rank, 2 * rank + 1))
    cases = {"whole": whole, **degenerate_batches(whole)}
    wrong: list[str] = []
    for case, odd in cases.items():
        objective.zero_grad(set_to_none=True)
        terms = objective(whole if rank == 0 else odd)
        terms.total.backward()
        if not terms.total.isfinite():
            wrong.append(f"{case}: loss {terms.total.detach()}")
        for key, parameter in objective.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                wrong.append(f"{case}: no gradient of {key}")
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            if not parameter.grad.isfinite().all():
                wrong.append(f"{case}: gradient of {key} is not finite")
        if isinstance(objective, FollowsUpdates):
            objective.after_update(0.1)
    return wrong, dict(objective.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_rank_with_an_odd_batch_does_not_stop_the_others(name: str, street_set: str) -> None:
    """All ranks run the same collectives whatever they hold, and keep the same state between updates."""
    (wrong_0, kept_0), (wrong_1, kept_1) = run_distributed(_odd_on_one, 2, name, street_set)
    assert not wrong_0, "\n".join(wrong_0)
    assert not wrong_1, "\n".join(wrong_1)
    for key, value in kept_0.items():
        torch.testing.assert_close(kept_1[key], value, msg=f"{key} differs between the ranks")
