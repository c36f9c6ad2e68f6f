"""EfficientNet-Lite0: sizes, real weights, and where its cells lie."""

import pytest
import torch
import torch.nn.functional as F

from models.image.efficientnet import EfficientNetLite0, SameConv2d, imagenet_weights_path, load_lite0_weights

ALL_LEVELS = (2, 4, 8, 16, 32)


@pytest.fixture(scope="module")
def trained() -> EfficientNetLite0:
    network = EfficientNetLite0(levels=ALL_LEVELS, normalise_levels=False)
    load_lite0_weights(network)
    return network.eval()


def test_parameter_count():
    # 4,652,008 published with classifier (1,281,000) and its 320 -> 1280 convolution with BatchNorm (412,160).
    whole = EfficientNetLite0(levels=ALL_LEVELS)
    assert sum(p.numel() for p in whole.parameters()) == 4_652_008 - 1_281_000 - 412_160


def test_the_packages_weights_fill_everything_and_are_finite():
    for levels, dropped in ((ALL_LEVELS, 8), ((4, 8, 16), 8 + 5 * 18)):
        report = load_lite0_weights(EfficientNetLite0(levels=levels))
        assert report.share == 1
        assert report.unused == ()
        assert len(report.dropped) == dropped
    state = torch.load(imagenet_weights_path(), weights_only=True)
    assert all(value.isfinite().all() for value in state.values())


def test_features_of_a_fixed_image(trained: EfficientNetLite0):
    # Equal to the last bit, at all strides, to the independent PyPI package efficientnet_lite_pytorch 0.1.0 with
    # dynamic padding; its numbers for this image are kept here so that it need not be installed.
    v, u = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    image = torch.stack([torch.sin(u / 7), torch.cos(v / 5), torch.sin((u + v) / 11)])[None]
    with torch.no_grad():
        features = trained.pyramid(image)
    got = {stride: (float(x.mean()), float(x.std())) for stride, x in features.items() if stride > 2}
    wanted = {4: (0.1156, 11.4284), 8: (-0.335, 10.2543), 16: (0.2478, 5.8925), 32: (0.0422, 2.9808)}
    for stride, moments in wanted.items():
        assert got[stride] == pytest.approx(moments, rel=1e-3, abs=1e-3)


def test_shapes_and_channels():
    for levels, channels in (((4, 8, 16), 176), ((8, 16), 152), ((8,), 40), ((16, 32), 432)):
        network = EfficientNetLite0(levels=levels).eval()
        assert network.num_features == channels
        assert network(torch.zeros(1, 3, 64, 96)).shape == (1, channels, 64 // levels[0], 96 // levels[0])


def test_refused_levels_and_sizes():
    for levels in ((), (8, 4), (4, 5), (4, 4)):
        with pytest.raises(ValueError, match="levels: got"):
            EfficientNetLite0(levels=levels)
    with pytest.raises(ValueError, match="100x96 pixels"):
        EfficientNetLite0(levels=(4, 16))(torch.zeros(1, 3, 100, 96))


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 2, 8), (5, 2, 8), (3, 2, 7), (3, 1, 6), (5, 2, 9)])
def test_same_padding(kernel: int, stride: int, size: int):
    """Against zero padding by hand: the odd row goes to the end."""
    conv = SameConv2d(2, 3, kernel, stride=stride, bias=False)
    x = torch.randn(1, 2, size, size)
    out_size = -(-size // stride)
    total = max((out_size - 1) * stride + kernel - size, 0)
    padded = torch.zeros(1, 2, size + total, size + total)
    begin = total // 2
    padded[:, :, begin : begin + size, begin : begin + size] = x
    torch.testing.assert_close(conv(x), F.conv2d(padded, conv.weight, stride=stride))


@pytest.mark.parametrize("level", [2, 4, 8, 16])
def test_each_level_lies_where_the_pixels_are(level: int):
    """An impulse's response at each level has its centre of mass on the impulse."""
    network = EfficientNetLite0(levels=(2, level) if level > 2 else (2,), normalise_levels=False).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data.abs_()
            # Symmetric kernels; centre-heavy enough not to saturate anything.
            module.weight.data = (module.weight.data + module.weight.data.flip(-1, -2)) / 2
            module.weight.data /= module.weight.data.sum(dim=(1, 2, 3), keepdim=True)
    centres = []
    pixels = range(128, 128 + level)
    for pixel in pixels:  # every phase of the grid: a single impulse falls between cells
        image = torch.zeros(1, 3, 32, 256)
        image[..., pixel] = 1.0
        with torch.no_grad():
            response = network(image)[0, -1].sum(dim=0).double()
        places = network.origin_px + network.stride * torch.arange(len(response), dtype=torch.float64)
        centres.append(float((response * places).sum() / response.sum()))
    assert sum(centres) / len(centres) == pytest.approx(sum(pixels) / len(pixels), abs=0.3)


def test_normalised_levels_have_similar_weight(trained: EfficientNetLite0):
    network = EfficientNetLite0(levels=(4, 8, 16)).eval()
    load_lite0_weights(network)
    v, u = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    image = torch.stack([torch.sin(u / 7), torch.cos(v / 5), torch.sin((u + v) / 11)])[None]

    def spread(parts) -> float:
        sizes = [float(part.square().mean()) for part in parts]
        return max(sizes) / min(sizes)

    with torch.no_grad():
        parts = network(image).split((24, 40, 112), dim=1)
        plain = [trained.pyramid(image)[level] for level in (4, 8, 16)]
    assert spread(plain) > 3
    assert spread(parts) < 1.5
    # The finest level is not resampled: exactly zero mean, unit variance in each cell.
    torch.testing.assert_close(parts[0].square().mean(dim=1), torch.ones(1, 16, 24), rtol=1e-3, atol=1e-3)
