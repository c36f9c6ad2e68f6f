"""Pixel contrast: places by re-projection, the loss against a slow reference, degenerate batches, two processes."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from data.sample import Batch
from data.views.augment import AugmentConfig, PixelTransform, draw_pixel_transform
from models.contrast.losses import info_nce
from models.image.fpn import ResNetFpnConfig
from models.image.unet import ResNetUnetConfig
from models.methods import METHODS
from models.methods.pixel_contrast import PixelContrast, PixelContrastConfig, draw_places
from tests.helpers.distributed import run_distributed
from tests.helpers.learning import assert_mean_of_ranks
from tests.helpers.toy_batches import toy_batch, with_changed
from tests.helpers.toy_images import PatchConfig
from tests.reference.contrast import bilinear_at

STORED, SIZE = (90, 140), (48, 80)


def _method(**settings) -> PixelContrast:
    torch.manual_seed(0)
    return PixelContrastConfig(**({"image_backbone": PatchConfig(stride=4), "num_places": 12} | settings)).build()


def _view(images: list[np.ndarray], moves: list[PixelTransform]) -> tuple[Tensor, Tensor]:
    """Augmented images and what was done to them."""
    pixels = [
        torch.from_numpy(move.image(image).copy()).movedim(-1, 0) for image, move in zip(images, moves, strict=True)
    ]
    return torch.stack(pixels), torch.from_numpy(np.stack([move.affine[:2] for move in moves]).astype(np.float32))


def two_views(samples: list[int]) -> Batch:
    """One smooth random image a sample, twice cropped and mirrored."""
    images, moves = [], ([], [])
    for number in samples:
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (10, 15, 3)).astype(np.uint8)
        images.append(cv2.resize(coarse, STORED[::-1], interpolation=cv2.INTER_CUBIC))
        for view in moves:
            view.append(draw_pixel_transform(rng, np.zeros((0, 2)), STORED, SIZE, AugmentConfig(min_pairs=1)))
    (first, affine), (second, affine_second) = (_view(images, view) for view in moves)
    batch = toy_batch(samples, images_each=1, superpixels=False)
    other = dataclasses.replace(with_changed(batch, cameras={"affine": affine_second}), images=second)
    return dataclasses.replace(with_changed(batch, cameras={"affine": affine}), images=first, second=other)


def _apart(batch: Batch) -> Batch:
    """The second view of each image lies far from the first."""
    moved = batch.second.cameras.affine.clone()
    moved[:, :, 2] += 1000
    return dataclasses.replace(batch, second=with_changed(batch.second, cameras={"affine": moved}))


def test_registry_and_defaults():
    assert METHODS["pixel_contrast"] is PixelContrastConfig
    config = PixelContrastConfig()
    assert isinstance(config.image_backbone, ResNetUnetConfig)
    assert (config.image_backbone.preset, config.image_backbone.channels) == ("resnet18", 16)
    assert (config.temperature, config.negatives) == (0.07, "both_views")
    assert config.batch_spec().second_images


# ---- places


def test_places_are_the_same_in_the_stored_image():
    rng = np.random.default_rng(0)
    moves = [
        [draw_pixel_transform(rng, np.zeros((0, 2)), STORED, SIZE, AugmentConfig(min_pairs=1)) for _ in range(8)]
        for _ in range(2)
    ]
    affine, affine_second = (torch.from_numpy(np.stack([m.affine[:2] for m in view])).float() for view in moves)
    torch.manual_seed(0)
    image, uv, uv_second = draw_places(affine, affine_second, SIZE, SIZE, 200)
    assert torch.equal(torch.bincount(image), torch.full((8,), 200))
    assert any(m.mirrored for m in moves[0] + moves[1])
    for number in range(8):
        mine = image == number
        stored = _stored(moves[0][number], uv[mine].numpy())
        np.testing.assert_allclose(moves[1][number].uv(stored), uv_second[mine].numpy(), atol=1e-3)
        assert moves[0][number].inside(uv[mine].numpy()).all()
        # Evenly over the whole common part: in quarters of it a quarter each.
        place = (uv[mine] - uv[mine].amin(dim=0)) / (uv[mine].amax(dim=0) - uv[mine].amin(dim=0))
        for half in (place[:, 0] < 0.5, place[:, 1] < 0.5):
            assert 0.35 < half.float().mean() < 0.65


def _stored(move: PixelTransform, uv: np.ndarray) -> np.ndarray:
    """Back to the stored image, by the transform's own words."""
    u = move.out_size[1] - 1 - uv[:, 0] if move.mirrored else uv[:, 0]
    return np.stack(
        (
            (u + 0.5) * move.width / move.out_size[1] - 0.5 + move.left,
            (uv[:, 1] + 0.5) * move.height / move.out_size[0] - 0.5 + move.top,
        ),
        axis=1,
    )


def test_views_turned_against_each_other_keep_what_both_show():
    turned = torch.tensor([[[0.0, -1.0, 60.0], [1.0, 0.0, -10.0]]])  # a quarter turn
    same = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    image, uv, uv_second = draw_places(same, turned, SIZE, SIZE, 50)
    assert len(image) == 50
    torch.testing.assert_close(uv_second, torch.stack((60 - uv[:, 1], uv[:, 0] - 10), dim=1))


def test_no_common_part_no_places():
    batch = _apart(two_views([0, 1]))
    image, uv, uv_second = draw_places(batch.cameras.affine, batch.second.cameras.affine, SIZE, SIZE, 10)
    assert image.shape == (0,)
    assert uv.shape == uv_second.shape == (0, 2)


# ---- loss


def _slow(a: Tensor, b: Tensor, temperature: float, both: bool) -> Tensor:
    """Anchor by anchor, negative by negative."""
    losses = []
    for mine, other in ((a, b), (b, a)):
        for p in range(len(mine)):
            total = sum(torch.exp(torch.dot(mine[p], other[q]) / temperature) for q in range(len(mine)))
            if both:
                total = total + sum(
                    torch.exp(torch.dot(mine[p], mine[q]) / temperature) for q in range(len(mine)) if q != p
                )
            losses.append(torch.log(total) - torch.dot(mine[p], other[p]) / temperature)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("negatives", ["both_views", "other_view"])
@pytest.mark.parametrize("chunk_rows", [None, 5])
def test_loss_equals_the_slow_reference(negatives: str, chunk_rows: int | None):
    model, batch = _method(negatives=negatives, chunk_rows=chunk_rows).double(), two_views([0, 1])
    torch.manual_seed(1)
    terms = model(batch)
    torch.manual_seed(1)
    image, *places = draw_places(batch.cameras.affine, batch.second.cameras.affine, SIZE, SIZE, 12)
    rows = []
    for images, uv in zip((batch.images, batch.second.images), places, strict=True):
        maps = model.image_backbone(images)
        features = [bilinear_at(maps[i], u, v, 4, 1.5) for i, (u, v) in zip(image, uv.tolist(), strict=True)]
        rows.append(torch.stack([feature / feature.norm() for feature in features]))
    wanted = _slow(rows[0], rows[1], 0.07, negatives == "both_views")
    torch.testing.assert_close(terms.total, wanted, rtol=1e-6, atol=1e-7)
    parameters = list(model.parameters())
    for got, want in zip(
        torch.autograd.grad(terms.total, parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)


def test_order_of_the_views_does_not_matter():
    model = _method().double()
    a, b = (torch.nn.functional.normalize(torch.randn(9, 10, dtype=torch.float64), dim=1) for _ in range(2))
    for negatives in ("both_views", "other_view"):
        model = _method(negatives=negatives)
        torch.testing.assert_close(model._contrast(a, b), model._contrast(b, a))
    # More negatives, more to tell apart.
    assert _method()._contrast(a, b) > info_nce(a, b, temperature=0.07, symmetric=True)


@pytest.mark.parametrize("family", ["unet", "fpn"])
def test_with_real_networks_all_that_trains_learns(family: str):
    config = {"unet": ResNetUnetConfig, "fpn": ResNetFpnConfig}[family](preset="resnet10_tiny")
    model = _method(image_backbone=config).train()
    terms = model(two_views([0, 1]))
    terms.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # What BatchNorm or a softmax takes away again (biases before them) has no gradient but rounding errors.
        assert name.endswith("bias") or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("negatives", ["both_views", "other_view"])
@pytest.mark.parametrize("case", ["no place", "one place", "same features", "same views"])
def test_degenerate_batches_give_a_finite_loss_and_gradient(case: str, negatives: str):
    model, batch = _method(negatives=negatives, num_places=1 if case == "one place" else 12), two_views([0])
    if case == "no place":
        batch = _apart(batch)
    elif case == "same views":
        batch = dataclasses.replace(batch, second=dataclasses.replace(batch, second=None))
    elif case == "same features":
        grey = torch.full_like(batch.images, 128)
        batch = dataclasses.replace(batch, images=grey, second=dataclasses.replace(batch.second, images=grey))
    terms = model(batch)
    terms.total.backward()
    if case in ("no place", "one place"):
        assert terms.total.item() == pytest.approx(0, abs=1e-6)
    if case == "same features":
        others = 2 * 12 - 1 if negatives == "both_views" else 12
        assert terms.total.item() == pytest.approx(math.log(others), rel=1e-4)
    if case == "same views":
        assert terms.watch["alignment"] > 0.999
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(value.isfinite() for value in terms.watch.values())


def test_refused_batches_and_settings():
    batch = two_views([0])
    with pytest.raises(ValueError, match="needs a second view"):
        _method()(dataclasses.replace(batch, second=None))
    with pytest.raises(ValueError, match="needs calibrated images"):
        _method()(dataclasses.replace(batch, cameras=None))
    for settings in ({"num_places": 0}, {"temperature": 0.0}, {"chunk_rows": 0}, {"watch_rows": 1}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            PixelContrastConfig(**settings)


def test_the_draw_is_that_of_the_checkpointed_generator():
    model, batch = _method(), two_views([0, 1])
    state = torch.get_rng_state()
    first = model(batch).total
    assert model(batch).total != first
    torch.set_rng_state(state)
    assert model(batch).total == first


def test_it_learns_to_find_places_again():
    model, batch = _method(num_places=64), two_views([0, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    values = []
    for _ in range(60):
        terms = model(batch)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        values.append((float(terms.total.detach()), float(terms.watch["contrastive_accuracy"])))
    (first, _), (last, accuracy) = values[0], values[-1]
    assert last < 0.8 * first
    assert accuracy > 0.2


def test_under_autocast():
    model, batch = _method(), two_views([0, 1])
    torch.manual_seed(1)
    plain = model(batch).total
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = model(batch).total
    assert under.dtype == torch.float32
    assert under.item() == pytest.approx(plain.item(), rel=0.05)


@torch.no_grad()
def test_sketches():
    model, batch = _method().eval(), two_views([0, 1])
    sketches = model.sketches(batch)
    similarity, matches = sketches["similarity"], sketches["matches"]
    assert similarity.values.shape == SIZE
    assert similarity.values[24, 40] == pytest.approx(1, abs=1e-5)
    assert len(matches.found) == len(matches.true) > 10
    assert matches.true.amax() <= 80
    alone = model.sketches(dataclasses.replace(batch, second=None))
    assert set(alone) == {"similarity"}
    # Two views that are one, with a colour for each place: features of single pixels find each where it is.
    sharp = _method(image_backbone=PatchConfig(stride=1)).eval()
    v, u = torch.meshgrid(torch.linspace(0, 255, SIZE[0]), torch.linspace(0, 255, SIZE[1]), indexing="ij")
    colours = torch.stack([u, v, 255 - u]).to(torch.uint8).expand(2, -1, -1, -1)
    one = dataclasses.replace(batch, images=colours, second=None)
    found = sharp.sketches(dataclasses.replace(one, second=one))["matches"]
    assert (found.found - found.true).norm(dim=1).median() < 1.0


# ---- two processes


def _step(samples: list[int], skipped: int, negatives: str) -> tuple[Tensor, dict[str, Tensor | None]]:
    model = _method(negatives=negatives, gather_negatives=True).double()
    torch.manual_seed(1)
    torch.rand(skipped, 12, 2)  # what the images of the ranks before draw
    loss = model(two_views(samples)).total
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def _rank_steps(rank: int, world_size: int, shares: list[list[int]]) -> list[tuple]:
    skipped = sum(len(share) for share in shares[:rank])
    return [_step(shares[rank], skipped, negatives) for negatives in ("both_views", "other_view")]


@pytest.mark.slow
def test_two_processes_equal_one_with_the_global_batch():
    ranks = run_distributed(_rank_steps, 2, [[0], [1, 2]])
    for number, negatives in enumerate(("both_views", "other_view")):
        assert_mean_of_ranks(
            [rank[number] for rank in ranks], _step([0, 1, 2], 0, negatives), loss=(1e-6, 1e-7), gradient=(1e-5, 1e-7)
        )
