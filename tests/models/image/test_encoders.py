"""Image networks that train: where their cells lie, what fills them, and that frozen ones stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from engine.checkpoint import newest_intact
from models.image.base import ImageEncoder
from models.image.encoders import IMAGE_ENCODERS
from models.image.fpn import ResNetFpnConfig
from models.image.frozen import FrozenEncoder, frozen_encoder
from models.image.resnet import ResNet
from models.image.resnet_encoder import ResNetEncoderConfig
from models.image.resnet_levels import ResNetLevels
from models.image.unet import ResNetUnetConfig
from models.weights import own_weights_file, read_own_weights
from tests.helpers.image_networks import in_use, mirrored_kernels, symmetric_image, write_checkpoint

TINY = [
    ResNetEncoderConfig(preset="resnet10_tiny"),
    ResNetEncoderConfig(preset="resnet10_tiny", dilated=True),
    ResNetFpnConfig(preset="resnet10_tiny", channels=24),
    ResNetUnetConfig(preset="resnet10_tiny"),
]
NAMES = ["resnet", "dilated", "fpn", "unet"]


def _built(config: ResNetEncoderConfig, seed: int = 0) -> ImageEncoder:
    torch.manual_seed(seed)
    return config.build()


def test_registry():
    assert list(IMAGE_ENCODERS) == ["resnet", "resnet_fpn", "resnet_unet"]
    assert IMAGE_ENCODERS["resnet"]().preset == "resnet50"
    assert IMAGE_ENCODERS["resnet_unet"]().channels == 16


@pytest.mark.parametrize("size", [(64, 96), (70, 90), (33, 31)])
@pytest.mark.parametrize("config", TINY, ids=NAMES)
def test_shapes_are_as_announced(config: ResNetEncoderConfig, size: tuple[int, int]):
    encoder = _built(config).eval()
    images = torch.zeros(2, 3, *size, dtype=torch.uint8)
    height, width = (-(-side // encoder.stride) for side in size)
    assert encoder(images).shape == (2, encoder.num_features, height, width)
    levels = encoder.pyramid(images)
    assert [level.stride for level in levels] == ([4] * 4 if config.dilated else [4, 8, 16, 32])
    for level, channels in zip(levels, encoder.level_features, strict=True):
        assert level.values.shape == (2, channels, *(-(-side // level.stride) for side in size))


@pytest.mark.parametrize("config", TINY, ids=NAMES)
def test_cells_lie_where_they_are_said_to(config: ResNetEncoderConfig):
    """Networks blind to left and right, an image symmetric about pixel 80: each map is symmetric about it too."""
    encoder = mirrored_kernels(in_use(_built(config)))
    image = symmetric_image(161)
    with torch.no_grad():
        maps = [(encoder(image), encoder.stride, encoder.origin_px)]
        maps += [(level.values, level.stride, level.origin_px) for level in encoder.pyramid(image)]
    for values, stride, origin in maps:
        cells = origin + stride * torch.arange(values.shape[-1])
        torch.testing.assert_close(cells.flip(0), 160 - cells)  # so the mirrored cell is the last, next to last, ...
        assert values.std() > 1e-4
        torch.testing.assert_close(values, values.flip(-1), rtol=1e-3, atol=1e-3 * float(values.abs().max()))


@pytest.mark.parametrize("config", TINY, ids=NAMES)
def test_moved_images_give_moved_maps(config: ResNetEncoderConfig):
    """By a multiple of all strides, away from the borders."""
    encoder = in_use(_built(config))
    image = torch.randint(0, 256, (1, 3, 32, 640), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        still, moved = encoder(image), encoder(image.roll(64, dims=-1))
    cells = 64 // encoder.stride
    middle = slice(288 // encoder.stride, 416 // encoder.stride)
    wanted = still.roll(cells, dims=-1)[..., middle]
    torch.testing.assert_close(moved[..., middle], wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_normalisation_is_inside_and_types_of_images_do_not_matter():
    encoder = _built(TINY[0]).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), encoder.network((images / 255 - mean) / std), rtol=1e-3, atol=1e-3)
        assert torch.equal(encoder(images), encoder(images.float()))
    assert "mean" not in encoder.state_dict()


@pytest.mark.parametrize("config", TINY, ids=NAMES)
def test_all_that_is_built_learns(config: ResNetEncoderConfig):
    encoder = _built(config).train()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    encoder(images).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_decoders_against_their_definition():
    fpn = in_use(_built(TINY[2]))
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)

    def doubled(x: torch.Tensor) -> torch.Tensor:
        """Cell 2i is cell i, cell 2i + 1 the mean of its neighbours, the last one repeated."""
        for dim in (2, 3):
            following = torch.cat((x.narrow(dim, 1, x.shape[dim] - 1), x.narrow(dim, x.shape[dim] - 1, 1)), dim)
            x = torch.stack((x, (x + following) / 2), dim + 1).flatten(dim, dim + 1)
        return x

    with torch.no_grad():
        maps = fpn.network.maps(fpn.normalise(images))[1:]
        level = fpn.lateral[3](maps[3])
        for index in (2, 1, 0):
            level = fpn.lateral[index](maps[index]) + doubled(level)
        torch.testing.assert_close(fpn(images), fpn.smooth(level), rtol=1e-4, atol=1e-5)

        unet = in_use(_built(TINY[3]))
        *skips, x = unet.network.maps(unet.normalise(images))
        for index, step in enumerate(unet.steps):
            x = x if index == 0 else F.elu(x)
            x = doubled(F.elu(step.before(x)))
            if skips:
                x = torch.cat((x, skips.pop()), dim=1)
            x = step.after(x)
        torch.testing.assert_close(unet(images), x, rtol=1e-4, atol=1e-5)
    assert [step.after.out_channels for step in unet.steps] == [256, 128, 64, 32, 16]


def test_levels_beside_each_other():
    torch.manual_seed(0)
    whole = in_use(ResNetLevels("resnet10_tiny", levels=(4, 8, 32), normalise_levels=False))
    assert list(whole.state_dict()) == list(ResNet("resnet10_tiny").state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features, maps = whole(images), whole.maps(images)
    assert (whole.num_features, whole.stride) == (16 + 32 + 128, 4)
    assert features.shape == (1, 176, 16, 24)
    # Each level's own cells are found unchanged among the finest ones.
    torch.testing.assert_close(features[:, :16], maps[1])
    torch.testing.assert_close(features[:, 16:48, ::2, ::2], maps[2])
    torch.testing.assert_close(features[:, 48:, ::8, ::8], maps[4])
    normal = in_use(ResNetLevels("resnet10_tiny", levels=(8, 16)))
    with torch.no_grad():
        values = normal(images)[:, :32]
    torch.testing.assert_close(values.mean(dim=1), torch.zeros(1, 8, 12), atol=1e-5, rtol=0)
    for levels in ((), (8, 4), (2, 4)):
        with pytest.raises(ValueError, match="levels: got"):
            ResNetLevels("resnet10_tiny", levels=levels)


# ---- weights


@pytest.mark.parametrize("config", TINY, ids=NAMES)
def test_public_weights_fill_the_resnet(tmp_path: Path, config: ResNetEncoderConfig):
    torch.manual_seed(7)
    state = ResNet("resnet10_tiny").state_dict()
    torch.save(state, tmp_path / "r.pth")
    encoder = type(config)(preset="resnet10_tiny", weights=f"torchvision:{tmp_path / 'r.pth'}").build()
    assert encoder.report is not None
    assert encoder.report.share == 1
    for name, value in state.items():
        assert torch.equal(encoder.network.state_dict()[name], value), name


@pytest.mark.parametrize("config", TINY, ids=NAMES)
def test_weights_of_our_own_runs(tmp_path: Path, config: ResNetEncoderConfig):
    source = _built(config, seed=5)
    write_checkpoint(tmp_path, 10, _built(config, seed=6))
    folder = write_checkpoint(tmp_path, 20, source)
    for place in (tmp_path, folder, folder / "weights.safetensors"):
        options = {"preset": "resnet10_tiny", "dilated": config.dilated, "weights": f"tandem:{place}"}
        options |= {"channels": config.channels} if isinstance(config, ResNetFpnConfig) else {}
        encoder = type(config)(**options).build()
        for name, value in source.state_dict().items():
            assert torch.equal(encoder.state_dict()[name], value), name


def test_own_weights_between_families(tmp_path: Path):
    plain, fpn, unet = (_built(TINY[n], seed=n) for n in (0, 2, 3))
    for name, network in (("plain", plain), ("fpn", fpn), ("unet", unet)):
        write_checkpoint(tmp_path / name, 1, network)
    taken = ResNetUnetConfig(preset="resnet10_tiny", weights=f"tandem:{tmp_path / 'plain'}").build()
    assert torch.equal(taken.network.conv1.weight, plain.network.conv1.weight)
    taken = ResNetEncoderConfig(preset="resnet10_tiny", weights=f"tandem:{tmp_path / 'unet'}").build()
    assert torch.equal(taken.network.conv1.weight, unet.network.conv1.weight)
    with pytest.raises(ValueError, match=r"only .* of the network's tensors match"):
        ResNetUnetConfig(preset="resnet10_tiny", weights=f"tandem:{tmp_path / 'fpn'}").build()
    with pytest.raises(ValueError, match=r"only .* of the network's tensors match"):
        ResNetEncoderConfig(preset="resnet18", weights=f"tandem:{tmp_path / 'plain'}").build()


def test_the_newest_intact_checkpoint_is_the_one_a_run_continues_from(tmp_path: Path):
    network = _built(TINY[0])
    folders = [write_checkpoint(tmp_path, step, network) for step in (90, 100, 110, 120)]
    assert own_weights_file(tmp_path).parent == newest_intact(tmp_path) == folders[3]
    (folders[3] / "files.json").unlink()  # never finished
    damaged = bytearray((folders[2] / "weights.safetensors").read_bytes())
    damaged[-1] ^= 1
    (folders[2] / "weights.safetensors").write_bytes(damaged)
    assert own_weights_file(tmp_path).parent == newest_intact(tmp_path) == folders[1]
    with pytest.raises(ValueError, match="is damaged or unfinished"):
        own_weights_file(folders[2])
    with pytest.raises(ValueError, match="expected a run's folder"):
        own_weights_file(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no name begins with 'teacher\.'; the run's method has: image_backbone, poi"):
        read_own_weights(folders[1], "teacher.")


def test_a_frozen_network_stays_as_it_is(tmp_path: Path):
    write_checkpoint(tmp_path, 1, _built(TINY[3], seed=5))
    frozen = frozen_encoder(ResNetUnetConfig(preset="resnet10_tiny", weights=f"tandem:{tmp_path}"))
    assert isinstance(frozen, FrozenEncoder)
    assert (frozen.num_features, frozen.stride, frozen.origin_px) == (16, 1, 0.0)
    owner = torch.nn.Sequential(frozen).train()
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    out = owner(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    assert not out.requires_grad
    assert not any(module.training for module in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())
    for key, value in frozen.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_refused_settings():
    for kind, settings, message in (
        (ResNetEncoderConfig, {"weights": "imagenet"}, "weights: got 'imagenet', expected random"),
        (ResNetEncoderConfig, {"weights": "tandem:"}, "weights: got 'tandem:'"),
        (ResNetEncoderConfig, {"min_match": -1.0}, "min_match"),
        (ResNetFpnConfig, {"channels": 0}, "channels: got 0"),
        (ResNetFpnConfig, {"dilated": True}, "dilated"),
        (ResNetUnetConfig, {"channels": 0}, "channels: got 0"),
        (ResNetUnetConfig, {"dilated": True}, "dilated"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(**settings)
