"""Pixel to point: against a slow reference, what learns and what does not, degenerate and refused batches."""

import dataclasses

import pytest
import torch

from models.image.unet import ResNetUnetConfig
from models.lidar.res16unet import Res16UNetConfig
from models.methods import METHODS
from models.methods.pixel_to_point import PixelToPoint, PixelToPointConfig
from tests.helpers.degenerate_batches import degenerate_batches
from tests.helpers.toy_batches import PointwiseConfig, toy_batch
from tests.reference.contrast import info_nce_loop


def _method(**settings) -> PixelToPoint:
    torch.manual_seed(0)
    network = ResNetUnetConfig(preset="resnet10_tiny")
    defaults = {"backbone": PointwiseConfig(in_channels=3), "pixel_network": network, "num_pairs": None}
    return PixelToPointConfig(**(defaults | settings)).build()


def test_registry_and_defaults():
    assert METHODS["pixel_to_point"] is PixelToPointConfig
    config = PixelToPointConfig()
    assert (config.num_pairs, config.temperature) == (4096, 0.07)
    assert isinstance(config.backbone, Res16UNetConfig)
    assert isinstance(config.pixel_network, ResNetUnetConfig)
    assert config.pixel_network.channels == 16  # the paper's width
    spec = config.batch_spec()
    assert (spec.images, spec.superpixels, spec.second_images) == (True, False, False)


def test_loss_and_gradient_equal_the_slow_reference():
    method, batch = _method().double(), toy_batch([0, 1], dtype=torch.float64)
    terms = method(batch)
    maps = method.pixel_network(batch.images)
    features = method.point_head.linear(method.backbone(batch.voxel_coords, batch.voxel_features, 2))
    points, pixels = [], []
    for point, image, (u, v) in zip(batch.pairs.point, batch.pairs.image, batch.pairs.uv.long(), strict=True):
        row = features[batch.point_voxel[point]]
        points.append(row / row.norm())
        pixel = maps[image, :, v, u]  # whole pixels, and the network has one cell a pixel
        pixels.append(pixel / pixel.norm())
    wanted = info_nce_loop(torch.stack(points), torch.stack(pixels), 0.07)
    torch.testing.assert_close(terms.total, wanted)
    learnt = [p for p in method.parameters() if p.requires_grad]
    for got, want in zip(torch.autograd.grad(terms.total, learnt), torch.autograd.grad(wanted, learnt), strict=True):
        torch.testing.assert_close(got, want)


def test_the_image_network_stays_as_it_is():
    method = _method().train()
    before = {name: value.clone() for name, value in method.pixel_network.state_dict().items()}
    method(toy_batch([0, 1])).total.backward()
    assert all(p.grad is None for p in method.pixel_network.parameters())
    assert all(p.grad is not None for p in [*method.backbone.parameters(), *method.point_head.parameters()])
    assert all(torch.equal(value, before[name]) for name, value in method.pixel_network.state_dict().items())


def test_pairs_are_drawn_from_the_generator_that_checkpoints_hold():
    method, batch = _method(num_pairs=50), toy_batch([0, 1])
    torch.manual_seed(5)
    first, second = method(batch).total, method(batch).total
    torch.manual_seed(5)
    assert method(batch).total == first
    assert second != first


@pytest.mark.parametrize("name", sorted(degenerate_batches(toy_batch([0, 1]))))
def test_degenerate_batches_give_a_finite_loss_and_gradient(name):
    method = _method()
    total = method(degenerate_batches(toy_batch([0, 1]))[name]).total
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_refused_settings_and_batches():
    with pytest.raises(ValueError, match="num_pairs: got 1, expected at least 2"):
        PixelToPointConfig(num_pairs=1)
    with pytest.raises(ValueError, match="temperature: got 0"):
        PixelToPointConfig(temperature=0.0)
    with pytest.raises(ValueError, match="needs images"):
        _method()(dataclasses.replace(toy_batch([0]), images=None))


def test_sketch_and_pixel_embeddings():
    method, batch = _method().eval(), toy_batch([0])
    sketch = method.sketches(batch)["agreement"]
    assert sketch.values.shape == sketch.uv.shape[:1]
    assert bool((sketch.values.abs() <= 1 + 1e-5).all())
    assert method.pixel_embeddings(batch.images).shape == (2, 16, 32, 48)
    assert method.sketches(dataclasses.replace(batch, images=None)) == {}
