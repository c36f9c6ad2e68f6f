"""SimIPU: losses against slow references, matching, projection, where gradients go, degenerate batches, two ranks."""

import dataclasses

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from data.batch_spec import SecondCloud
from data.sample import Batch
from engine.sync_bn import convert_sync_batchnorm
from models.image.resnet_encoder import ResNetEncoderConfig
from models.lidar.ball_pooling import PointSet
from models.lidar.pointnet2 import PointNet2Config
from models.lidar.res16unet import Res16UNetConfig
from models.methods import METHODS
from models.methods.simipu import Simipu, SimipuConfig
from models.visuals import MatchSketch, PointSketch, ProjectionSketch
from tests.helpers.degenerate_batches import degenerate_batches
from tests.helpers.distributed import run_distributed
from tests.helpers.learning import assert_mean_of_ranks, learn_by_heart
from tests.helpers.toy_batches import PointwiseConfig, on_axes, toy_batch, with_changed
from tests.reference.contrast import bilinear_at, info_nce_loop

TINY = ResNetEncoderConfig(preset="resnet10_tiny")


def _model(**settings) -> Simipu:
    torch.manual_seed(0)
    defaults = {
        "backbone": PointwiseConfig(in_channels=3),
        "image_backbone": TINY,
        "num_centres": 12,
        "embedding_dim": 8,
    }
    return SimipuConfig(**(defaults | settings)).build()


def _batch(samples: list[int], dtype: torch.dtype = torch.float32) -> Batch:
    return toy_batch(samples, calibration=True, superpixels=False, second="cloud", dtype=dtype)


def _points_as_voxels(batch: Batch) -> Batch:
    """Each point its own voxel with its place and a number as input: what PointNet++ needs."""

    def change(view: Batch) -> Batch:
        cells = (view.points / 0.05).floor().int()
        sample = view.point_sample[:, None].int()
        coords, voxel = torch.unique(torch.cat([sample, cells], dim=1), dim=0, return_inverse=True)
        features = torch.zeros(len(coords), 4)
        features[voxel] = torch.cat([view.points, view.points[:, :1] % 1], dim=1)
        return dataclasses.replace(view, voxel_coords=coords, voxel_features=features, point_voxel=voxel)

    return dataclasses.replace(change(batch), second=change(batch.second))


def _transform(batch: Batch, sample: int) -> Tensor:
    return batch.second.T_aug_lidar[sample].double() @ torch.linalg.inv(batch.T_aug_lidar[sample].double())


def test_registry_and_the_papers_values():
    assert METHODS["simipu"] is SimipuConfig
    config = SimipuConfig()
    spec = config.batch_spec()
    assert (spec.images, spec.only_seen, spec.second_cloud) == (True, True, SecondCloud(source="same"))
    assert (config.temperature, config.embedding_dim, config.intra_weight, config.inter_weight) == (0.07, 128, 1.0, 1.0)
    assert (config.backbone.preset, config.image_backbone.preset, config.matching) == (
        "simipu_released",
        "resnet50",
        "hungarian",
    )


def test_networks_have_the_papers_sizes():
    with torch.device("meta"):
        model = SimipuConfig().build()
    assert model.intra_head.layers[0].in_features == model.point_head.layers[0].in_features == 1024
    assert model.pixel_head.layers[0].in_features == 2048
    assert model.image_backbone.stride == 32


@pytest.mark.parametrize("settings", [{}, {"intra_weight": 0.5, "inter_weight": 2.0, "symmetric": True}], ids=str)
def test_loss_and_gradient_equal_the_slow_reference(settings: dict):
    model, batch = _model(**settings).double(), _batch([0, 1], torch.float64)
    terms = model(batch)

    first, other = model.centres(batch, batch.second)
    rows, partners, a0, b0 = [], [], 0, 0
    for sample in range(2):
        T = _transform(batch, sample)
        a1, b1 = a0 + int(first.counts[sample]), b0 + int(other.counts[sample])
        cost = torch.zeros(a1 - a0, b1 - b0)
        for i in range(a0, a1):
            for j in range(b0, b1):
                cost[i - a0, j - b0] = torch.linalg.vector_norm(
                    T[:3, :3] @ first.points[i].double() + T[:3, 3] - other.points[j].double()
                )
        found = linear_sum_assignment(cost.numpy())
        rows += (found[0] + a0).tolist()
        partners += (found[1] + b0).tolist()
        a0, b0 = a1, b1
    z = model.intra_head(torch.cat([first.features, other.features]))
    zb = z[len(first.points) :]
    intra = info_nce_loop(z[rows], zb[partners], 0.07)

    cells = model.image_backbone(batch.images)
    read, seen = [], []
    for n in range(len(first.points)):
        sample = 0 if n < int(first.counts[0]) else 1
        for image in (batch.cameras.sample == sample).nonzero().flatten().tolist():
            T, K = batch.cameras.T_cam_points[image].double(), batch.cameras.K[image].double()
            in_camera = T[:3, :3] @ first.points[n].double() + T[:3, 3]
            u, v, depth = K @ in_camera
            u, v = float(u / depth), float(v / depth)
            if depth > 1 and 1 <= u <= 46 and 1 <= v <= 30:
                read.append(
                    bilinear_at(cells[image], u, v, model.image_backbone.stride, model.image_backbone.origin_px)
                )
                seen.append(n)
                break
    assert 8 < len(seen) < len(first.points)
    pixels = model.pixel_head(torch.stack(read))
    points = model.point_head(first.features[seen].detach())
    inter = info_nce_loop(pixels, points, 0.07)
    if settings:
        intra = (intra + info_nce_loop(zb[partners], z[rows], 0.07)) / 2
        inter = (inter + info_nce_loop(points, pixels, 0.07)) / 2
    wanted = settings.get("intra_weight", 1) * intra + settings.get("inter_weight", 1) * inter
    # The pixel's place is rounded to single precision on its way.
    torch.testing.assert_close(terms.parts["intra"], intra.detach())
    torch.testing.assert_close(terms.parts["inter"], inter.detach(), rtol=1e-5, atol=1e-5)
    parameters = list(model.parameters())
    for got, want in zip(
        torch.autograd.grad(terms.total, parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("least", "num_seen"), [(1.0, 0), (0.1, 1)])
def test_centres_near_a_camera_are_seen_where_its_set_says_so(least, num_seen):
    batch = toy_batch([0], images_each=1, calibration=True, superpixels=False)
    batch = with_changed(batch, cameras={"min_depth_m": torch.full((1,), least)})
    centre = on_axes(batch, 0.5)
    assert len(_model().project(PointSet(centre, centre, torch.tensor([1])), batch)[0]) == num_seen


def test_projection_is_where_the_loader_puts_the_pairs():
    model, batch = _model(), _batch([0, 1])
    counts = torch.bincount(batch.point_sample)
    point, image, uv = model.project(PointSet(batch.points, batch.points, counts), batch)
    pairs = {
        (int(p), int(i)): where
        for p, i, where in zip(batch.pairs.point, batch.pairs.image, batch.pairs.uv, strict=True)
    }
    both = [n for n in range(len(point)) if (int(point[n]), int(image[n])) in pairs]
    assert len(both) > 30
    for n in both:
        torch.testing.assert_close(uv[n], pairs[int(point[n]), int(image[n])], rtol=1e-4, atol=1e-3)
    assert len(torch.unique(point)) == len(point)  # one image each


def test_matching_undoes_the_transform():
    """The same centres in both clouds match each other, whatever was done to either cloud."""
    model, batch = _model(), _batch([0, 1])
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([12, 8])
    scaled = torch.diag(torch.tensor([1.2, -1.2, 1.2, 1.0]))
    T = torch.stack([_transform(batch, 0), _transform(batch, 1) @ scaled.double()])
    sample = torch.arange(2).repeat_interleave(counts)
    moved = (T[sample, :3, :3] @ points[:, :, None].double()).squeeze(2) + T[sample, :3, 3]
    order = torch.cat([torch.randperm(12), 12 + torch.randperm(8)])
    first = PointSet(points, points, counts)
    second = PointSet(moved[order].float(), points, counts)
    rows, partners = model.match(first, second, T)
    assert torch.equal(order[partners], rows)
    greedy_rows, greedy_partners = _model(matching="greedy").match(first, second, T)
    assert torch.equal(order[greedy_partners], greedy_rows)


def test_a_gate_leaves_far_centres_alone():
    points = torch.tensor([[0.0, 0, 0], [10, 0, 0]])
    moved = torch.tensor([[0.1, 0, 0], [20, 0, 0]])
    counts = torch.tensor([2])
    sets = PointSet(points, points, counts), PointSet(moved, moved, counts)
    eye = torch.eye(4, dtype=torch.float64)[None]
    assert _model().match(*sets, eye)[0].tolist() == [0, 1]
    assert _model(match_gate_m=1.0).match(*sets, eye)[0].tolist() == [0]


def test_both_views_may_be_augmented():
    """Turning and scaling the first cloud with its matrices changes nothing that the geometry decides."""
    model, batch = _model(), _batch([0, 1])
    turn = torch.tensor([[0.0, -1.5, 0, 0], [1.5, 0, 0, 0], [0, 0, 1.5, 0], [0, 0, 0, 1]])
    moved = dataclasses.replace(
        with_changed(batch, cameras={"T_cam_points": batch.cameras.T_cam_points @ torch.linalg.inv(turn)}),
        points=batch.points @ turn[:3, :3].T,
        T_aug_lidar=turn @ batch.T_aug_lidar,
    )
    torch.testing.assert_close(model(moved).total, model(batch).total, rtol=1e-3, atol=1e-3)


def test_who_learns_from_what():
    model, batch = _model(), _batch([0, 1])
    towers = {name: list(getattr(model, name).parameters()) for name in dict(model.named_children())}

    def moved(intra: float, inter: float, **settings) -> set[str]:
        own = _model(intra_weight=intra, inter_weight=inter, **settings)
        own.load_state_dict(model.state_dict())
        own(batch).total.backward()
        return {
            name
            for name in towers
            if any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in getattr(own, name).parameters())
        }

    assert moved(1.0, 0.0) == {"backbone", "intra_head"}
    assert moved(0.0, 1.0) == {"image_backbone", "pixel_head", "point_head"}
    assert moved(0.0, 1.0, train_point_head=False) == {"image_backbone", "pixel_head"}
    assert moved(1.0, 1.0) == set(towers)


def test_detached_targets_have_no_gradient():
    grads = {}
    for detach in (False, True):
        model, batch = _model(inter_weight=0.0, detach_targets=detach).eval(), _batch([0])
        batch.second.voxel_features.requires_grad_()
        model(batch).total.backward()
        grads[detach] = batch.second.voxel_features.grad
    assert grads[False].abs().sum() > 0
    assert grads[True].abs().sum() == 0


@pytest.mark.parametrize("matching", ["hungarian", "greedy"])
def test_degenerate_batches_give_a_finite_loss_and_gradient(matching: str):
    for case, batch in degenerate_batches(_batch([0, 1])).items():
        model = _model(matching=matching)
        terms = model(batch)
        terms.total.backward()
        assert terms.total.isfinite(), case
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (case, name)
            assert parameter.grad.isfinite().all(), (case, name)
        assert all(b.isfinite().all() for b in model.buffers()), case
        assert all(value.isfinite() for value in terms.watch.values()), case
        if case == "one point":
            assert terms.total == 0


def test_nothing_seen_is_a_loss_of_zero():
    model, batch = _model(intra_weight=0.0), _batch([0])
    away = torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0])) @ batch.cameras.T_cam_points
    terms = model(with_changed(batch, cameras={"T_cam_points": away}))
    terms.total.backward()
    assert terms.total == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.image_backbone.parameters())


def test_refused():
    batch = _batch([0])
    with pytest.raises(ValueError, match="needs calibrated images"):
        _model()(dataclasses.replace(batch, cameras=None))
    with pytest.raises(ValueError, match="needs a second view"):
        _model()(dataclasses.replace(batch, second=None))
    for settings in (
        {"num_centres": 0},
        {"temperature": 0.0},
        {"intra_weight": -1.0},
        {"match_gate_m": 0.0},
        {"watch_rows": 1},
    ):
        with pytest.raises(ValueError, match=next(iter(settings))):
            SimipuConfig(**settings)
    with pytest.raises(ValueError, match="not all 0"):
        SimipuConfig(intra_weight=0.0, inter_weight=0.0)


def test_sketches():
    model, batch = _model().eval(), _batch([0])
    with torch.no_grad():
        sketches = model.sketches(batch)
    assert isinstance(sketches["matched_centres"], PointSketch)
    assert isinstance(sketches["pixel_agreement"], ProjectionSketch)
    matches = sketches["matches"]
    assert isinstance(matches, MatchSketch)
    assert 0 < len(matches.found) == len(matches.true) <= 12
    assert all(s.values.isfinite().all() for name, s in sketches.items() if name != "matches")


@pytest.mark.parametrize("family", ["simipu_tiny", "pointnet2_tiny", "res16unet"])
def test_with_real_networks_under_autocast(family: str):
    if family != "res16unet":
        model = _model(backbone=PointNet2Config(preset=family))
        batch = _points_as_voxels(_batch([0, 1]))
    else:
        model = _model(backbone=Res16UNetConfig(preset="res16unet_tiny", in_channels=3, backend="torch"))
        batch = _batch([0, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = model(batch)
    terms.total.backward()
    assert terms.total.dtype == torch.float32
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name


def test_it_learns_a_batch_by_heart():
    # Dilated, because two cells an image are too few to tell centres apart.
    model, batch = _model(image_backbone=dataclasses.replace(TINY, dilated=True)), _batch([0, 1])
    first, terms = learn_by_heart(model, batch, steps=60, lr=3e-3)
    for part in ("intra", "inter"):
        assert terms.parts[part] < 0.6 * first.parts[part], part
    assert terms.watch["contrastive_accuracy"] > first.watch["contrastive_accuracy"] + 0.2


# ---- two processes


def _step(samples: list[int]) -> tuple:
    model = _model(gather_negatives=True).double()
    convert_sync_batchnorm(model)
    loss = model(_batch(samples, torch.float64)).total
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def _rank_step(rank: int, world_size: int, shares: list[list[int]]) -> tuple:
    return _step(shares[rank])


@pytest.mark.slow
def test_two_processes_equal_one_with_the_global_batch():
    shares = [[0], [1, 2]]
    assert_mean_of_ranks(run_distributed(_rank_step, 2, shares), _step(shares[0] + shares[1]), gradient=(1e-7, 1e-10))
