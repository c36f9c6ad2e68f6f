"""Ball pooling: against a slow reference, empty balls, samples without points."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.lidar.ball_pooling import BallPooling, PointSet, Scale, scattered
from models.lidar.neighbors import pack
from tests.reference.detection_roi import largest_in_ball


def _points(counts: list[int]) -> PointSet:
    generator = torch.Generator().manual_seed(0)
    number = sum(counts)
    places = 2 * torch.rand(number, 3, generator=generator, dtype=torch.float64)
    return PointSet(places, torch.randn(number, 4, generator=generator, dtype=torch.float64), torch.tensor(counts))


@pytest.mark.parametrize("offsets", [True, False], ids=["offsets", "features alone"])
def test_the_largest_response_in_each_ball(offsets: bool) -> None:
    torch.manual_seed(0)
    x, counts = _points([20, 0, 30]), [6, 2, 4]
    centres = 3 * torch.rand(12, 3, dtype=torch.float64) - 0.5
    scales = (Scale(0.5, 3, (5,)), Scale(1.0, 8, (6, 7)))
    pooling = BallPooling(4, scales, offsets=offsets).double().eval()
    assert pooling.num_features == 12
    found = pooling.around(centres, torch.tensor(counts), x).detach()

    starts = {0: (0, 20), 1: (20, 20), 2: (20, 50)}
    sample = np.repeat([0, 1, 2], counts)
    for row, centre in enumerate(centres):
        first, end = starts[int(sample[row])]
        places, features = x.points[first:end], x.features[first:end]
        rows = torch.cat([places - centre, features], dim=1) if offsets else features
        expected = [
            largest_in_ball(
                centre.tolist(), places.numpy(), network(rows).detach().numpy(), scale.radius_m, scale.neighbors
            )
            for scale, network in zip(scales, pooling.networks, strict=True)
        ]
        np.testing.assert_allclose(found[row], np.concatenate(expected), rtol=1e-10, atol=1e-12)
    assert not found[6:8].any(), "a sample without points"


def test_nothing_around_no_centres_and_no_points_keep_the_graph_whole() -> None:
    pooling = BallPooling(4, (Scale(0.5, 3, (5,)),))
    nothing = PointSet(torch.zeros(0, 3), torch.zeros(0, 4), torch.tensor([0]))
    for centres in (torch.zeros(0, 3), torch.zeros(2, 3)):
        found = pooling.around(centres, torch.tensor([len(centres)]), nothing)
        assert found.shape == (len(centres), 5)
        pooling.zero_grad()
        found.sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in pooling.parameters())


def test_the_scattered_order_keeps_samples_together_and_forgets_places() -> None:
    cells = torch.cartesian_prod(torch.arange(2), torch.arange(20), torch.arange(20), torch.arange(2)).int()
    order = scattered(pack(cells))
    torch.testing.assert_close(order.sort().values, torch.arange(len(cells)))
    assert (cells[order, 0].diff() >= 0).all()
    first = cells[order[:800], 1].double()
    assert abs(float(first[:400].mean() - first[400:].mean())) < 1
    back = scattered(pack(cells.flip(0)))
    torch.testing.assert_close(cells.flip(0)[back], cells[order])
