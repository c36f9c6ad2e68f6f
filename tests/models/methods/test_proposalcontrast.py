"""ProposalContrast: proposals, encoder and losses against slow references, degenerate batches, two processes."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.fidelity import paper_config
from data.sample import Batch
from engine.sync_bn import convert_sync_batchnorm
from models.lidar.res16unet import Res16UNetConfig
from models.methods import METHODS
from models.methods.proposalcontrast import ProposalContrast, ProposalContrastConfig, ProposalEncoder
from models.visuals import PointSketch
from tests.helpers.degenerate_batches import degenerate_batches, with_matches
from tests.helpers.distributed import run_distributed
from tests.helpers.learning import assert_mean_of_ranks, learn_by_heart
from tests.helpers.toy_batches import PointwiseConfig, toy_points
from tests.reference.contrast import info_nce_loop
from tests.reference.point_contrast import sinkhorn_loop


def _model(**settings) -> ProposalContrast:
    torch.manual_seed(0)
    defaults = {
        "backbone": PointwiseConfig(in_channels=3),
        "num_proposals": 12,
        "num_neighbors": 6,
        "hidden_dim": 10,
        "embedding_dim": 8,
        "num_prototypes": 5,
        "neighbors": "nearest",
    }
    return ProposalContrastConfig(**(defaults | settings)).build()


def _batch(samples: list[int]) -> Batch:
    return toy_points(samples, second=True, ground=True)


def _double(batch: Batch) -> Batch:
    def change(view: Batch) -> Batch:
        return dataclasses.replace(view, voxel_features=view.voxel_features.double(), points=view.points.double())

    return dataclasses.replace(change(batch), second=change(batch.second))


def test_registry_and_the_papers_values():
    assert METHODS["proposalcontrast"] is ProposalContrastConfig
    config = ProposalContrastConfig()
    spec = config.batch_spec()
    assert (spec.images, spec.second_cloud.source, spec.ground.kind) == (False, "same", "plane")
    assert (config.num_proposals, config.radius_m, config.num_neighbors) == (2048, 1.0, 16)
    assert (config.temperature, config.embedding_dim, config.num_prototypes) == (0.1, 128, 128)


def test_centres_are_off_the_ground_far_apart_and_in_both_clouds():
    model, batch = _model(num_proposals=10), _batch([0, 1])
    match = model.sample(batch, batch.matches.first)
    centre = batch.matches.first[match]
    assert len(match) == 20
    assert not batch.ground[centre].any()
    assert torch.bincount(batch.point_sample[centre]).tolist() == [10, 10]
    # Greedy farthest points, written out for the first sample, height ignored.
    mine = [int(p) for p in batch.matches.first if batch.point_sample[p] == 0 and not batch.ground[p]]
    chosen = [mine[0]]
    while len(chosen) < 10:
        gaps = [min(float((batch.points[p, :2] - batch.points[c, :2]).norm()) for c in chosen) for p in mine]
        chosen.append(mine[max(range(len(mine)), key=gaps.__getitem__)])
    assert set(centre[:10].tolist()) == set(chosen)


@pytest.mark.parametrize("neighbors", ["random", "nearest"])
def test_neighbours_lie_in_the_ball_and_off_the_ground(neighbors: str):
    model, batch = _model(num_neighbors=80, neighbors=neighbors, radius_m=1.0), _batch([0, 1])
    centre = batch.matches.first[model.sample(batch, batch.matches.first)]
    found = model.gather_neighbors(batch, centre)
    for c, row in zip(centre.tolist(), found.tolist(), strict=True):
        near = (batch.points - batch.points[c]).norm(dim=1) < 1.0
        wanted = near & (batch.point_sample == batch.point_sample[c]) & ~batch.ground
        assert {n for n in row if n >= 0} == set(wanted.nonzero().flatten().tolist())


def test_random_neighbours_repeat_with_the_generators_state_and_only_in_training():
    model, batch = _model(num_neighbors=2, neighbors="random", radius_m=3.0), _batch([0])
    centre = batch.matches.first[model.sample(batch, batch.matches.first)]
    state = torch.get_rng_state()
    a = model.gather_neighbors(batch, centre)
    b = model.gather_neighbors(batch, centre)
    torch.set_rng_state(state)
    assert torch.equal(a, model.gather_neighbors(batch, centre))
    assert not torch.equal(a, b)
    model.eval()
    state = torch.get_rng_state()
    model.gather_neighbors(batch, centre)
    assert torch.equal(state, torch.get_rng_state())


def _encoder_loop(
    encoder: ProposalEncoder, centres: Tensor, neighbors: Tensor, offsets: Tensor, real: Tensor
) -> Tensor:
    rows = []
    for r in range(len(centres)):
        logits, values = [], []
        for k in range(neighbors.shape[1]):
            if real[r, k]:
                e = encoder.position(offsets[r, k])
                logits.append(encoder.attention(encoder.query(centres[r]) - encoder.key(neighbors[r, k]) + e))
                values.append(encoder.value(neighbors[r, k]) + e)
        mixed = torch.zeros(encoder.out.in_features, dtype=centres.dtype)
        for channel in range(len(mixed)):
            if logits:
                weights = torch.softmax(torch.stack([row[channel] for row in logits]), dim=0)
                mixed[channel] = sum(w * v[channel] for w, v in zip(weights, values, strict=True))
        rows.append(centres[r] + encoder.out(mixed))
    return torch.stack(rows)


def test_encoder_equals_loops_in_value_and_gradient():
    torch.manual_seed(0)
    encoder = ProposalEncoder(8, 4).double()
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 8), (5, 3, 8), (5, 3, 3))]
    real = torch.rand(5, 3) > 0.4
    real[0] = False
    # The attention works in single precision.
    got, want = encoder(*inputs, real), _encoder_loop(encoder, *inputs, real)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got[0], inputs[0][0])
    seed = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad(got, inputs, seed, retain_graph=True), torch.autograd.grad(want, inputs, seed), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("within_view", [False, True])
def test_loss_and_gradient_equal_the_slow_reference(within_view: bool):
    """With the weight of the paper's run, the cluster loss is the sum of both directions."""
    weight = paper_config("proposalcontrast_waymo").method.cluster_weight
    model = _model(within_view=within_view, proposal_weight=0.5, cluster_weight=weight).double()
    batch = _double(_batch([0, 1]))
    terms = model(batch)

    match = model.sample(batch, batch.matches.first)
    encoded = []
    for view, points in ((batch, batch.matches.first[match]), (batch.second, batch.matches.second[match])):
        voxels = model.backbone(view.voxel_coords, view.voxel_features, 2)
        neighbor = model.gather_neighbors(view, points)
        real, neighbor = neighbor >= 0, neighbor.clamp(min=0)
        offsets = view.points[points][:, None] - view.points[neighbor]
        encoded.append(
            _encoder_loop(
                model.encoder, voxels[view.point_voxel[points]], voxels[view.point_voxel[neighbor]], offsets, real
            )
        )
    hidden = model.shared(torch.cat(encoded))
    u = F.normalize(model.proposal_norm(model.proposal_linear(hidden)), dim=1)
    w = F.normalize(model.cluster_linear(hidden), dim=1)
    scores = w @ F.normalize(model.prototypes.weight, dim=1).T
    n = len(match)
    if within_view:
        losses = []
        for i in range(2 * n):
            partner = i + n if i < n else i - n
            terms_i = [torch.exp(u[i] @ u[j] / 0.1) for j in range(2 * n) if j != i]
            losses.append(torch.log(sum(terms_i)) - u[i] @ u[partner] / 0.1)
        proposals = torch.stack(losses).mean()
    else:
        proposals = (info_nce_loop(u[:n], u[n:], 0.1) + info_nce_loop(u[n:], u[:n], 0.1)) / 2
    clusters = torch.zeros((), dtype=torch.float64)
    for mine, other in ((scores[:n], scores[n:]), (scores[n:], scores[:n])):
        q = sinkhorn_loop(other.detach(), 0.03, 3)
        for i in range(n):
            clusters = clusters - (q[i] * torch.log(torch.softmax(mine[i] / 0.1, dim=0))).sum() / n
    wanted = 0.5 * proposals + clusters
    torch.testing.assert_close(terms.parts["proposals"], proposals.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(2 * terms.parts["clusters"].double(), clusters.detach(), rtol=1e-4, atol=1e-4)
    parameters = list(model.parameters())
    for got, want in zip(
        torch.autograd.grad(terms.total, parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_order_of_matches_does_not_matter():
    model, batch = _model(), _batch([0, 1])
    order = torch.randperm(len(batch.matches.first), generator=torch.Generator().manual_seed(3))
    # The first of each sample's matches starts the sampling; it stays first.
    starts = [int((batch.point_sample[batch.matches.first] == s).nonzero()[0]) for s in (0, 1)]
    order = torch.tensor([*starts, *(int(n) for n in order if int(n) not in starts)])
    moved = with_matches(batch, order)
    torch.testing.assert_close(model(moved).total, model(batch).total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"neighbors": "random", "within_view": True}], ids=str)
def test_degenerate_batches_give_a_finite_loss_and_gradient(settings: dict):
    for case, batch in degenerate_batches(_batch([0, 1])).items():
        model = _model(**settings)
        terms = model(batch)
        terms.total.backward()
        assert terms.total.isfinite(), case
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (case, name)
            assert parameter.grad.isfinite().all(), (case, name)
        assert all(b.isfinite().all() for b in model.buffers()), case
        assert all(value.isfinite() for value in terms.watch.values()), case
        if case in ("no matches", "all ground"):
            assert terms.total == 0, case


def test_refused():
    with pytest.raises(ValueError, match="needs a second view"):
        _model()(toy_points([0], ground=True))
    with pytest.raises(ValueError, match="ground"):
        _model()(toy_points([0], second=True))
    for settings in (
        {"num_proposals": 0},
        {"radius_m": 0.0},
        {"num_prototypes": 1},
        {"proposal_weight": -1.0},
        {"within_view": True, "gather_negatives": True},
        {"chunk_rows": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(settings))):
            ProposalContrastConfig(**settings)


def test_sketches():
    model, batch = _model().eval(), _batch([0])
    with torch.no_grad():
        sketches = model.sketches(batch)
    proposals, agreement = sketches["proposals"], sketches["agreement"]
    assert isinstance(proposals, PointSketch)
    assert proposals.marked.sum() == 12 == len(agreement.values)
    assert (proposals.values[proposals.marked] >= 0).all()
    assert (proposals.values[batch.ground] == -1).all()
    assert agreement.values.isfinite().all()


def test_with_the_real_network_under_autocast():
    model = _model(backbone=Res16UNetConfig(preset="res16unet_tiny", in_channels=3, backend="torch"))
    batch = _batch([0, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = model(batch)
    terms.total.backward()
    assert terms.total.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_it_learns_a_batch_by_heart():
    model, batch = _model(hidden_dim=32, embedding_dim=16), _batch([0, 1])
    first, terms = learn_by_heart(model, batch, steps=80, lr=1e-2)
    assert terms.parts["proposals"] < 0.5 * first.parts["proposals"]
    assert terms.parts["clusters"] < first.parts["clusters"]
    assert terms.watch["contrastive_accuracy"] > first.watch["contrastive_accuracy"] + 0.2


# ---- two processes


def _step(samples: list[int]) -> tuple:
    model = _model(gather_negatives=True, num_proposals=10).double()
    convert_sync_batchnorm(model)
    loss = model(_double(_batch(samples))).total
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def _rank_step(rank: int, world_size: int, shares: list[list[int]]) -> tuple:
    return _step(shares[rank])


@pytest.mark.slow
def test_two_processes_equal_one_with_the_global_batch():
    shares = [[0], [1, 2]]
    assert_mean_of_ranks(
        run_distributed(_rank_step, 2, shares), _step(shares[0] + shares[1]), loss=(1e-5, 1e-6), gradient=(1e-4, 1e-6)
    )
