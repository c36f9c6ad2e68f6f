"""NCLR: parts against slow references, poses that are known, degenerate and refused batches, one and two processes."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from data.sample import Batch
from models.image.fpn import ResNetFpnConfig
from models.lidar.res16unet import Res16UNetConfig
from models.methods import METHODS
from models.methods.nclr import Nclr, NclrConfig
from models.pairing import FeatureMap
from models.pose.alignment import LearnableAlignment, near_far_nce, soft_match
from models.pose.calibration import cell_pixels, covered_cells, project_all, sample_tokens
from models.pose.fusion import FusionLayer, sinusoidal
from models.visuals import MatchSketch
from tests.helpers.degenerate_batches import degenerate_batches, selected
from tests.helpers.distributed import run_distributed
from tests.helpers.learning import assert_mean_of_ranks
from tests.helpers.toy_batches import PointwiseConfig, on_axes, toy_batch, with_changed
from tests.helpers.toy_images import PatchConfig
from tests.reference.calibration import covered_loop, near_far_nce_loop, pixel_of, soft_match_loop

SMALL = {"tokens": 40, "contrast_points": 32, "pose_points": 24, "embedding_dim": 16, "fusion_layers": 1}


def _nclr(**settings) -> Nclr:
    torch.manual_seed(0)
    towers = {"backbone": PointwiseConfig(in_channels=3), "image_backbone": PatchConfig()}
    return NclrConfig(**(towers | SMALL | settings)).build()


def _batch(samples: list[int], *, turn: bool = True, dtype: torch.dtype = torch.float32, **settings) -> Batch:
    """One image a sample; the cloud turned and moved as the loader does it."""
    batch = toy_batch(samples, images_each=1, calibration=True, dtype=dtype, **settings)
    T = torch.eye(4).repeat(len(samples), 1, 1)
    for i, number in enumerate(samples if turn else []):
        generator = torch.Generator().manual_seed(number)
        angle = float(torch.rand((), generator=generator) * 2 * math.pi)
        T[i, :2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        T[i, :2, 3] = torch.rand(2, generator=generator) * 30 - 15
    T = T.to(dtype)
    points = torch.einsum("nij,nj->ni", T[batch.point_sample, :3, :3], batch.points) + T[batch.point_sample, :3, 3]
    cameras = {
        "K": batch.cameras.K.to(dtype),
        "T_cam_points": batch.cameras.T_cam_points.to(dtype) @ torch.linalg.inv(T),
    }
    return dataclasses.replace(with_changed(batch, cameras=cameras), points=points, T_aug_lidar=T)


@pytest.mark.parametrize(("least", "sees"), [(1.0, False), (0.1, True)])
def test_points_near_a_camera_are_seen_where_its_set_says_so(least, sees):
    batch = _batch([0, 1])
    batch = with_changed(batch, cameras={"min_depth_m": torch.full_like(batch.cameras.min_depth_m, least)})
    uv, seen = project_all(batch, on_axes(batch, 0.5)[:, None])
    assert (seen.tolist(), bool(uv.isfinite().all())) == ([[sees], [sees]], True)


def test_registry_and_the_papers_values():
    assert METHODS["nclr"] is NclrConfig
    config = NclrConfig()
    assert (config.contrast_weight, config.overlap_weight, config.pose_weight, config.temperature) == (
        1,
        0.5,
        0.2,
        0.07,
    )
    assert (config.alignment, config.overlap, config.pose) == ("learnable", True, True)
    assert config.batch_spec().images
    assert not config.batch_spec().superpixels
    assert isinstance(config.image_backbone, ResNetFpnConfig)


# ---- parts


def test_learnable_alignment_is_symmetric_positive_and_starts_as_the_cosine():
    align = LearnableAlignment(6).double()
    rows = torch.randn(2, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(align.metric, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(align(rows), torch.nn.functional.normalize(rows, dim=-1))
    with torch.no_grad():
        align.change.normal_(0, 0.5)
    W = align.metric
    torch.testing.assert_close(W, W.T)
    assert torch.linalg.eigvalsh(W).min() > -1e-12
    units = torch.nn.functional.normalize(rows, dim=-1)
    torch.testing.assert_close(align(rows[0]) @ align(rows[1]).T, units[0] @ W @ units[1].T)


def test_near_far_nce_equals_the_slow_reference():
    torch.manual_seed(1)
    logits = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    near, far = torch.rand(2, 5, 7) < 0.25, torch.rand(2, 5, 7) < 0.5
    far &= ~near
    near[0, 1], far[0, 2] = False, False  # a row without positive, one without negative
    got, want = near_far_nce(logits, near, far), near_far_nce_loop(logits, near, far)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, logits), torch.autograd.grad(want, logits))
    nothing = near_far_nce(logits, near & False, far)
    assert nothing.item() == 0
    assert (torch.autograd.grad(nothing, logits)[0] == 0).all()


def test_soft_match_equals_the_slow_reference():
    logits, kept = torch.randn(2, 3, 12, dtype=torch.float64), torch.rand(2, 12) < 0.5
    cells = cell_pixels(FeatureMap(logits.new_zeros(1, 1, 3, 4), 4, 1.5), like=logits)
    got = soft_match(logits, cells, kept)
    for i in range(2):
        for k in range(3):
            torch.testing.assert_close(got[i, k], soft_match_loop(logits[i, k], cells, kept[i]))
    assert torch.isfinite(soft_match(logits, cells, torch.zeros_like(kept))).all()


def test_tokens_and_covered_cells_equal_the_slow_reference():
    batch = _batch([0, 3], dtype=torch.float64)
    tokens = sample_tokens(batch, 30)
    for i in range(2):
        assert len(set(tokens.voxel[i].tolist())) == 30
        for k in range(30):
            mine = batch.points[batch.point_voxel == tokens.voxel[i, k]]
            assert (batch.point_sample[batch.point_voxel == tokens.voxel[i, k]] == i).all()
            centre = mine.mean(dim=0) if len(mine) else torch.zeros(3).double()
            torch.testing.assert_close(tokens.points[i, k], centre)
            pixel = pixel_of(centre, batch.cameras.K[i], batch.cameras.T_cam_points[i], (32, 48))
            assert bool(tokens.seen[i, k]) == (pixel is not None)
            if pixel is not None:
                torch.testing.assert_close(tokens.uv[i, k], torch.tensor(pixel).double())
    covered = covered_cells(batch, FeatureMap(torch.zeros(1, 1, 8, 12), 4, 1.5))
    for i in range(2):
        every = [
            pixel_of(p, batch.cameras.K[i], batch.cameras.T_cam_points[i], (32, 48))
            for p in batch.points[batch.point_sample == i]
        ]
        assert torch.equal(covered[i], covered_loop([p for p in every if p], (8, 12), 4, 1.5))


def test_positions_are_told_apart_and_padding_is_not_looked_at():
    codes = sinusoidal(torch.rand(20, 3) * 100, 16, shortest=1.0, longest=200.0)
    assert codes.shape == (20, 16)
    assert torch.pdist(codes).min() > 1e-3
    torch.manual_seed(0)
    layer = FusionLayer(8, 2)
    points, cells, valid = torch.randn(2, 5, 8), torch.randn(2, 6, 8), torch.ones(2, 5, dtype=torch.bool)
    valid[0, 3:] = False
    other = points.clone()
    other[0, 3:] = 100.0
    (p, c), (q, d) = layer(points, cells, valid), layer(other, cells, valid)
    torch.testing.assert_close(p[0, :3], q[0, :3])
    torch.testing.assert_close(c, d)
    short_p, short_c = layer(points[:1, :3], cells[:1], valid[:1, :3])
    torch.testing.assert_close(p[:1, :3], short_p)
    torch.testing.assert_close(c[:1], short_c)


# ---- objective


def test_contrast_equals_the_slow_reference():
    model, batch = _nclr(overlap=False, pose=False).double(), _batch([0, 1], dtype=torch.float64)
    terms = model(batch)
    tokens = sample_tokens(batch, 40)
    sides = model._sides(batch, tokens)
    losses = []
    for i in range(2):
        rows = tokens.seen[i].nonzero()[:32, 0]
        logits = sides.points[i, rows] @ sides.cells[i].T / 0.07
        distance = (tokens.uv[i, rows][:, None] - sides.cell_uv).norm(dim=2)
        near, far = (distance <= 4)[None], (distance > 8)[None]
        ways = [(logits[None], near, far), (logits.T[None], near.mT, far.mT)]
        losses += [near_far_nce_loop(*way) for way in ways]
    wanted = torch.stack(losses).mean()
    torch.testing.assert_close(terms.total, wanted)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for got, want in zip(
        torch.autograd.grad(terms.total, parameters, retain_graph=True),
        torch.autograd.grad(wanted, parameters),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


def test_true_matches_give_the_true_pose_and_no_loss():
    model, batch = _nclr().double(), _batch([0, 1], dtype=torch.float64)
    tokens = sample_tokens(batch, 40)
    pose = model._pose(batch, tokens.points, tokens.uv, tokens.seen)
    assert pose.valid.all()
    torch.testing.assert_close(pose.rotation, batch.cameras.T_cam_points[:, :3, :3], atol=1e-6, rtol=0)
    torch.testing.assert_close(pose.translation_m, batch.cameras.T_cam_points[:, :3, 3], atol=1e-5, rtol=0)


def test_pose_gradients_reach_both_towers():
    model, batch = _nclr(contrast_weight=0.0, overlap_weight=0.0), _batch([0, 1])
    terms = model(batch)
    assert terms.watch["pose_found"] == 1
    terms.total.backward()
    for tower in (model.backbone, model.image_backbone, model.fusion, model.alignment):
        for name, parameter in tower.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        assert any((p.grad != 0).any() for p in tower.parameters())


@pytest.mark.parametrize("alignment", ["learnable", "identity"])
def test_gradients_reach_everything(alignment: str):
    model = _nclr(contrast_on="both", alignment=alignment)
    model(_batch([0, 1])).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_pose_joins_at_its_start_and_remembers_it():
    model, batch = _nclr(pose_start=0.5), _batch([0])
    assert model(batch).parts["pose"] == 0
    model.after_update(0.5)
    assert model(batch).parts["pose"] > 0
    resumed = _nclr(pose_start=0.5)
    resumed.load_state_dict(model.state_dict())
    assert torch.equal(resumed(batch).total, model(batch).total)


def test_the_order_of_points_and_the_company_of_samples_do_not_matter():
    model, batch = _nclr().double(), _batch([0, 1], dtype=torch.float64)
    plain = model(batch).total
    order = torch.cat([torch.randperm(80), 80 + torch.randperm(80)])
    moved = dataclasses.replace(batch, points=batch.points[order], point_voxel=batch.point_voxel[order])
    torch.testing.assert_close(model(moved).total, plain)
    alone = [model(_batch([n], dtype=torch.float64)).total for n in (0, 1)]
    torch.testing.assert_close((alone[0] + alone[1]) / 2, plain)
    fewer = selected(batch, ~((batch.point_sample == 0) & (batch.point_voxel % 3 == 0)))  # padding of one sample
    first = selected(_batch([0], dtype=torch.float64), batch.point_voxel[:80] % 3 != 0)
    second = selected(_batch([1], dtype=torch.float64), torch.ones(80, dtype=torch.bool))
    torch.testing.assert_close(model(fewer).total, (model(first).total + model(second).total) / 2)


def test_several_images_of_a_sample_are_registered_each_on_its_own():
    batch = toy_batch([0], images_each=2, calibration=True)
    flipped = torch.tensor([[-1.0, 0.0, 47.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    K = batch.cameras.K.clone()
    K[1] = flipped @ K[1]
    batch = with_changed(batch, cameras={"K": K})
    found = _nclr().estimate_pose(batch)
    assert found.T_cam_points.shape == (2, 4, 4)
    assert found.match_image.unique().tolist() == [0, 1]


def test_an_estimate_does_not_look_at_the_truth():
    model, batch = _nclr(overlap_threshold=0.1), _batch([0, 1])
    found = model.estimate_pose(batch)
    blind = model.estimate_pose(with_changed(batch, cameras={"T_cam_points": torch.eye(4).repeat(2, 1, 1)}))
    for name in ("T_cam_points", "valid", "match_soft_uv", "match_hard_uv", "match_kept"):
        assert torch.equal(getattr(found, name), getattr(blind, name)), name


def test_what_scores_low_is_matched_only_where_nothing_scores_high():
    model = _nclr(pose_points=6, overlap_threshold=0.5)
    score = torch.linspace(-3, 1, 40)[None].expand(2, -1).clone()
    score[1] -= 5.0
    valid = torch.ones(2, 40, dtype=torch.bool)
    valid[1, 39] = False
    kept = model._kept(score, valid)
    assert torch.equal(kept[0], score[0] > 0)
    assert kept[1].nonzero()[:, 0].tolist() == [33, 34, 35, 36, 37, 38]
    assert model._kept(score[:, :3], valid[:, :3] & False).sum() == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_degenerate_batches_give_a_finite_loss_and_gradient(precision: str):
    start = _batch([0, 1])
    cases = degenerate_batches(start)
    cases["no overlap"] = dataclasses.replace(start, points=start.points + 1000.0)
    cases["a plane"] = dataclasses.replace(start, points=start.points * torch.tensor([1.0, 1.0, 0.0]))
    cases["five points"] = selected(start, torch.arange(160) < 5)
    for name, batch in cases.items():
        model = _nclr()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            terms = model(batch)
        assert terms.total.dtype == torch.float32, name
        assert terms.total.isfinite(), name
        terms.total.backward()
        for parameter, value in model.named_parameters():
            assert value.grad is not None, (name, parameter)
            assert value.grad.isfinite().all(), (name, parameter)
        assert all(value.isfinite() for value in terms.watch.values()), name
        found = model.estimate_pose(batch)
        assert torch.isfinite(found.T_cam_points).all(), name
        assert torch.isfinite(found.match_soft_uv).all(), name
        assert model.sketches(batch), name
    none = _nclr()(cases["no overlap"])
    assert none.parts["contrast"] == none.parts["pose"] == none.watch["pose_found"] == 0


def test_pictures():
    sketches = _nclr().sketches(_batch([0]))
    assert set(sketches) == {
        "matches_hard",
        "matches_soft",
        "projection_before",
        "projection_estimated",
        "projection_true",
        "overlap_points",
        "overlap_pixels",
    }
    matches = sketches["matches_soft"]
    assert isinstance(matches, MatchSketch)
    assert len(matches.found) == len(matches.true) > 10
    before, true = sketches["projection_before"], sketches["projection_true"]
    assert len(true.uv) > len(before.uv)  # a moved cloud is mostly outside of where it was
    assert "overlap_points" not in _nclr(overlap=False, pose=False).sketches(_batch([0]))


def test_refused_batches():
    model, batch = _nclr(), _batch([0])
    with pytest.raises(ValueError, match="needs calibrated images"):
        model(dataclasses.replace(batch, cameras=None))
    for factor in (torch.tensor([1.1, 1.1, 1.1, 1.0]), torch.tensor([-1.0, 1.0, 1.0, 1.0])):
        with pytest.raises(ValueError, match=r"sample-000: T_aug_lidar scales or mirrors.*points\.flip=false"):
            model(dataclasses.replace(batch, T_aug_lidar=torch.diag(factor)[None]))
    with pytest.raises(ValueError, match=r"augment\.image\.flip=false"):
        model(with_changed(batch, cameras={"K": batch.cameras.K * torch.tensor([-1.0, 1.0, 1.0])[:, None]}))


@pytest.mark.parametrize(
    "settings",
    [
        {"embedding_dim": 2},
        {"heads": 3},
        {"temperature": 0.0},
        {"match_temperature": 0.0},
        {"near_px": 9.0},
        {"tokens": 0},
        {"pose_points": 5},
        {"overlap_threshold": 1.0},
        {"pose_start": -0.1},
        {"pose_weight": -1.0},
        {"overlap": False},
    ],
    ids=str,
)
def test_refused_settings(settings: dict):
    with pytest.raises(ValueError, match=next(iter(settings))):
        NclrConfig(**settings)


def test_refused_image_networks():
    with pytest.raises(ValueError, match="near_px = 4: the image network has a cell every 8 pixels"):
        _nclr(image_backbone=PatchConfig(stride=8))
    with pytest.raises(ValueError, match="multiple of the image network's stride 4"):
        _nclr(attention_stride=6)


def test_with_the_real_networks():
    model = _nclr(
        backbone=Res16UNetConfig(preset="res16unet_tiny", in_channels=3, backend="torch"),
        image_backbone=ResNetFpnConfig(preset="resnet10_tiny", channels=16),
    )
    terms = model(_batch([0, 1]))
    terms.total.backward()
    assert terms.total.isfinite()
    for tower in (model.backbone, model.image_backbone):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in tower.parameters())


def test_it_learns_a_batch_by_heart():
    # At a weight of 1 the pose's metres leave the contrast little of the clipped gradient: what it learns is luck.
    model, batch = _nclr(match_temperature=0.02, translation_weight=0.1), _batch([0, 1])
    # A point's own pixels tell it: its input is the pixel's colour, which changes smoothly over the image.
    ramp = torch.stack(torch.meshgrid(torch.arange(32) * 8, torch.arange(48) * 5, indexing="ij"))
    images = torch.stack([ramp[0], ramp[1], (ramp[0] + ramp[1]) // 2]).to(torch.uint8)[None].expand(2, -1, -1, -1)
    one_each = torch.arange(160) % 80 < 40
    voxel = torch.where(one_each, torch.arange(160) % 80 + torch.arange(160) // 80 * 40, batch.point_voxel)
    batch = selected(dataclasses.replace(batch, point_voxel=voxel, images=images.contiguous()), one_each)
    tokens = sample_tokens(batch, 40)
    features = torch.zeros_like(batch.voxel_features)
    features[tokens.voxel.flatten(), :2] = tokens.uv.flatten(0, 1) / 24 - 1
    batch = dataclasses.replace(batch, voxel_features=features)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.95))
    first = model(batch)
    for step in range(60):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1.0, 2 * (60 - step) / 60)
        terms = model(batch)
        optimizer.zero_grad()
        terms.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert terms.parts["contrast"] < 0.5 * first.parts["contrast"]
    assert terms.parts["pose"] < 0.5 * first.parts["pose"]
    assert (model.alignment.metric - torch.eye(16)).abs().max() > 0.01


# ---- two processes


def _rank_step(rank: int, world_size: int, shares: list[list[int]]) -> tuple[Tensor, dict[str, Tensor]]:
    return _step(shares[rank])


def _step(samples: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    model = _nclr(contrast_on="both").double()
    loss = model(_batch(samples, dtype=torch.float64)).total
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.slow
def test_two_processes_equal_one_with_the_global_batch():
    shares = [[0, 3], [1, 2]]
    assert_mean_of_ranks(run_distributed(_rank_step, 2, shares), _step(shares[0] + shares[1]), gradient=(1e-7, 1e-10))
