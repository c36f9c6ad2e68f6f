"""The frozen teacher: frozen in every mode, its own normalisation, its fingerprint."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models.image.resnet import ResNet
from models.image.teacher import FrozenTeacher
from models.image.teachers import TEACHERS
from models.image.unet import ResNetUnetConfig
from tests.helpers.image_networks import teacher_config, write_checkpoint

LITE = teacher_config(name="efficientnet_lite0", weights="imagenet")


def _images(height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_nothing_changes_whatever_mode_the_owner_is_in():
    teacher = teacher_config(name="resnet18").build()
    owner = torch.nn.Sequential(teacher).train()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    out = owner(_images())
    assert not any(module.training for module in teacher.modules())
    assert not out.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_features_may_stand_in_a_graph():
    teacher = LITE.build()
    head = torch.nn.Conv2d(teacher.num_features, 4, 1)
    head(teacher(_images())).sum().backward()
    assert head.weight.grad is not None


def test_normalisation():
    images = _images()
    resnet = teacher_config(name="resnet18").build()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(resnet(images), resnet.encoder((images / 255 - mean) / std), rtol=1e-3, atol=1e-3)
        lite = LITE.build()
        torch.testing.assert_close(lite(images), lite.encoder((images.float() - 127) / 128), rtol=1e-3, atol=1e-3)


def test_random_weights_follow_their_seed_and_leave_the_global_state_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again = (teacher_config(name="resnet18", random_seed=1).build() for _ in range(2))
    other = teacher_config(name="resnet18", random_seed=2).build()
    assert torch.equal(state, torch.get_rng_state())
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_fingerprint_tells_weights_and_settings_apart_and_not_where_they_lay(tmp_path: Path):
    torch.manual_seed(0)
    state = ResNet("resnet18").state_dict()
    prints = []
    for name in ("a.pth", "b.pth"):
        torch.save(state, tmp_path / name)
        config = teacher_config(name="resnet18", weights=f"torchvision:{tmp_path / name}")
        prints.append(config.build().fingerprint())
    assert prints[0] == prints[1]
    others = [
        LITE,
        teacher_config(name="efficientnet_lite0"),
        teacher_config(name="efficientnet_lite0", weights="imagenet", levels=(8, 16)),
        teacher_config(name="efficientnet_lite0", weights="imagenet", upscale=2),
    ]
    prints += [config.build().fingerprint() for config in others]
    assert len(set(prints)) == 5


@pytest.mark.parametrize("upscale", [1, 2, 4])
def test_upscaling_puts_cells_closer_and_keeps_their_place(upscale: int):
    teacher = teacher_config(name="efficientnet_lite0", weights="imagenet", upscale=upscale, levels=(8, 16)).build()
    assert teacher.stride == 8 // upscale
    assert teacher(_images()).shape == (2, 152, 8 * upscale, 8 * upscale)
    # The centre of cell 0 lies on pixel 7 of the enlarged image.
    assert (teacher.origin_px + 0.5) * upscale - 0.5 == pytest.approx(7)


def test_fingerprints_of_before_still_hold():
    """What stood in the settings when caches were first written, hashed with the tensors."""
    teacher = teacher_config(name="resnet18", dilated=False).build()
    settings = {
        "name": "resnet18",
        "dilated": False,
        "levels": (4, 8, 16),
        "normalise_levels": True,
        "upscale": 1,
    }
    digest = hashlib.sha256(json.dumps([1, settings], sort_keys=True).encode())
    for name in sorted(ResNet("resnet18").state_dict()):
        digest.update(name.encode())
        digest.update(teacher.encoder.state_dict()[name].numpy().tobytes())
    assert teacher.fingerprint() == digest.hexdigest()[:32]


@pytest.mark.parametrize(
    ("name", "settings"),
    [("resnet10_tiny", {"dilated": False}), ("resnet18_levels", {"levels": (8, 16)}), ("resnet10_tiny_unet", {})],
)
def test_the_other_networks(name: str, settings: dict[str, Any]):
    teacher = teacher_config(name, **settings).build()
    features, stride = {"resnet10_tiny": (128, 32), "resnet18_levels": (384, 8), "resnet10_tiny_unet": (16, 1)}[name]
    assert (teacher.num_features, teacher.stride, teacher.origin_px) == (features, stride, 0.0)
    images = _images()
    assert teacher(images).shape == (2, features, 64 // stride, 64 // stride)
    assert not any(module.training for module in teacher.train().modules())


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18_levels", "resnet10_tiny"])
def test_maps_have_the_channels_of_a_cell_side_by_side(name: str):
    """As convolutions and heads read them fastest; the numbers do not depend on it."""
    teacher = teacher_config(name).build()
    got = teacher(_images())
    assert got.is_contiguous(memory_format=torch.channels_last)
    pixels = (_images().float() - teacher.mean) / teacher.std
    with torch.no_grad():
        torch.testing.assert_close(got, teacher.encoder(pixels), rtol=1e-4, atol=1e-5)


def test_a_unet_is_not_normalised_twice(tmp_path: Path):
    torch.manual_seed(3)
    network = ResNetUnetConfig(preset="resnet10_tiny").build().eval()
    write_checkpoint(tmp_path, 4, network)
    teacher = teacher_config(name="resnet10_tiny_unet", weights=f"tandem:{tmp_path}").build()
    with torch.no_grad():
        torch.testing.assert_close(teacher(_images()), network(_images()), rtol=1e-4, atol=1e-5)


def test_a_resnet_of_our_own_runs(tmp_path: Path):
    torch.manual_seed(3)
    network = ResNetUnetConfig(preset="resnet10_tiny").build()
    write_checkpoint(tmp_path, 4, network)
    teacher = teacher_config(name="resnet10_tiny", weights=f"tandem:{tmp_path}").build()
    assert torch.equal(teacher.encoder.state_dict()["conv1.weight"], network.network.conv1.weight)
    with pytest.raises(ValueError, match="network's tensors match, expected at least 100%"):
        teacher_config(name="resnet18", weights=f"tandem:{tmp_path}").build()


def test_bad_settings_are_named():
    for settings, message in (
        ({"name": "resnet18", "weights": "imagenet"}, "weights: got 'imagenet'"),
        ({"name": "resnet18", "weights": "moco_v2:"}, "weights: got 'moco_v2:'"),
        (
            {"name": "efficientnet_lite0", "weights": "dino:/a"},
            "expected for efficientnet_lite0 one of random, imagenet",
        ),
        ({"name": "efficientnet_lite0", "weights": "imagenet:/a"}, "weights: got 'imagenet:/a'"),
        ({"name": "efficientnet_lite0", "levels": (8, 4)}, "levels"),
        ({"name": "resnet50_levels", "levels": (2, 4)}, "strides out of 4, 8, 16, 32"),
        ({"name": "vit_small_14", "weights": "tandem:/a"}, "expected for vit_small_14 one of random, dino"),
        ({"name": "resnet18_unet", "weights": "dino:/a"}, "expected for resnet18_unet one of random, tandem"),
        ({"name": "vit_small_14", "upscale": 4}, "divisor of the network's stride 14"),
        ({"upscale": 3}, "divisor of the network's stride 4"),
        ({"min_match": 1.5}, "min_match: got"),
    ):
        with pytest.raises(ValueError, match=message):
            teacher_config(**settings)
    with pytest.raises(ValueError, match="is not a file"):
        teacher_config(name="resnet18", weights="dino:/nowhere.pth").build()


def test_every_name_belongs_to_the_family_that_knows_it():
    for name, family in TEACHERS.items():
        assert family(name=name).name == name
    with pytest.raises(TypeError, match="dilated"):
        teacher_config("efficientnet_lite0", dilated=False)


def test_resnet50_is_the_papers_teacher():
    config = teacher_config()
    assert config.name == "resnet50"
    assert config.dilated
    teacher = config.build()
    assert isinstance(teacher, FrozenTeacher)
    assert (teacher.num_features, teacher.stride, teacher.origin_px) == (2048, 4, 0.0)
