"""The frozen teacher: frozen in every mode, its own normalisation, its fingerprint."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from models.image.resnet import ResNet
from models.image.teacher import FrozenTeacher, TeacherConfig, build_teacher
from models.image.unet import ResNetUnetConfig
from tests.helpers.image_networks import write_checkpoint

LITE = TeacherConfig(name="efficientnet_lite0", weights="imagenet")


def _images(height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_nothing_changes_whatever_mode_the_owner_is_in():
    teacher = build_teacher(TeacherConfig(name="resnet18"))
    owner = torch.nn.Sequential(teacher).train()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    out = owner(_images())
    assert not any(module.training for module in teacher.modules())
    assert not out.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_features_may_stand_in_a_graph():
    teacher = build_teacher(LITE)
    head = torch.nn.Conv2d(teacher.num_features, 4, 1)
    head(teacher(_images())).sum().backward()
    assert head.weight.grad is not None


def test_normalisation():
    images = _images()
    resnet = build_teacher(TeacherConfig(name="resnet18"))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(resnet(images), resnet.encoder((images / 255 - mean) / std), rtol=1e-3, atol=1e-3)
        lite = build_teacher(LITE)
        torch.testing.assert_close(lite(images), lite.encoder((images.float() - 127) / 128), rtol=1e-3, atol=1e-3)


def test_random_weights_follow_their_seed_and_leave_the_global_state_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again = (build_teacher(TeacherConfig(name="resnet18", random_seed=1)) for _ in range(2))
    other = build_teacher(TeacherConfig(name="resnet18", random_seed=2))
    assert torch.equal(state, torch.get_rng_state())
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_fingerprint_tells_weights_and_settings_apart_and_not_where_they_lay(tmp_path: Path):
    torch.manual_seed(0)
    state = ResNet("resnet18").state_dict()
    prints = []
    for name in ("a.pth", "b.pth"):
        torch.save(state, tmp_path / name)
        config = TeacherConfig(name="resnet18", weights=f"torchvision:{tmp_path / name}")
        prints.append(build_teacher(config).fingerprint())
    assert prints[0] == prints[1]
    others = [
        LITE,
        TeacherConfig(name="efficientnet_lite0"),
        TeacherConfig(name="efficientnet_lite0", weights="imagenet", levels=(8, 16)),
        TeacherConfig(name="efficientnet_lite0", weights="imagenet", upscale=2),
    ]
    prints += [build_teacher(config).fingerprint() for config in others]
    assert len(set(prints)) == 5


@pytest.mark.parametrize("upscale", [1, 2, 4])
def test_upscaling_puts_cells_closer_and_keeps_their_place(upscale: int):
    teacher = build_teacher(
        TeacherConfig(name="efficientnet_lite0", weights="imagenet", upscale=upscale, levels=(8, 16))
    )
    assert teacher.stride == 8 // upscale
    assert teacher(_images()).shape == (2, 152, 8 * upscale, 8 * upscale)
    # The centre of cell 0 lies on pixel 7 of the enlarged image.
    assert (teacher.origin_px + 0.5) * upscale - 0.5 == pytest.approx(7)


def test_fingerprints_of_before_still_hold():
    """What stood in the settings when caches were first written, hashed with the tensors."""
    teacher = build_teacher(TeacherConfig(name="resnet18", dilated=False))
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


@pytest.mark.parametrize("name", ["resnet10_tiny", "resnet18_levels", "resnet10_tiny_unet"])
def test_the_other_networks(name: str):
    teacher = build_teacher(TeacherConfig(name=name, dilated=False, levels=(8, 16)))
    features, stride = {"resnet10_tiny": (128, 32), "resnet18_levels": (384, 8), "resnet10_tiny_unet": (16, 1)}[name]
    assert (teacher.num_features, teacher.stride, teacher.origin_px) == (features, stride, 0.0)
    images = _images()
    assert teacher(images).shape == (2, features, 64 // stride, 64 // stride)
    assert not any(module.training for module in teacher.train().modules())


def test_a_unet_is_not_normalised_twice(tmp_path: Path):
    torch.manual_seed(3)
    network = ResNetUnetConfig(preset="resnet10_tiny").build().eval()
    write_checkpoint(tmp_path, 4, network)
    teacher = build_teacher(TeacherConfig(name="resnet10_tiny_unet", weights=f"tandem:{tmp_path}"))
    with torch.no_grad():
        assert torch.equal(teacher(_images()), network(_images()))


def test_a_resnet_of_our_own_runs(tmp_path: Path):
    torch.manual_seed(3)
    network = ResNetUnetConfig(preset="resnet10_tiny").build()
    write_checkpoint(tmp_path, 4, network)
    teacher = build_teacher(TeacherConfig(name="resnet10_tiny", weights=f"tandem:{tmp_path}"))
    assert torch.equal(teacher.encoder.state_dict()["conv1.weight"], network.network.conv1.weight)
    with pytest.raises(ValueError, match="network's tensors match, expected at least 100%"):
        build_teacher(TeacherConfig(name="resnet18", weights=f"tandem:{tmp_path}"))


def test_bad_settings_are_named():
    for settings, message in (
        ({"name": "resnet18", "weights": "imagenet"}, "teacher.weights = 'imagenet'"),
        ({"name": "resnet18", "weights": "moco_v2:"}, "teacher.weights = 'moco_v2:'"),
        (
            {"name": "efficientnet_lite0", "weights": "dino:/a"},
            "expected for efficientnet_lite0 one of random, imagenet",
        ),
        ({"levels": (8, 4)}, "teacher.levels"),
        ({"name": "resnet50_levels", "levels": (2, 4)}, "strides out of 4, 8, 16, 32"),
        ({"name": "vit_small_14", "weights": "tandem:/a"}, "expected for vit_small_14 one of random, dino"),
        ({"name": "resnet18_unet", "weights": "dino:/a"}, "expected for resnet18_unet one of random, tandem"),
        ({"name": "vit_small_14", "upscale": 4}, "divisor of the network's stride 14"),
        ({"upscale": 3}, "divisor of the network's stride 4"),
        ({"min_match": 1.5}, "teacher.min_match"),
    ):
        with pytest.raises(ValueError, match=message):
            TeacherConfig(**settings)
    with pytest.raises(ValueError, match="is not a file"):
        build_teacher(TeacherConfig(name="resnet18", weights="dino:/nowhere.pth"))


def test_resnet50_is_the_papers_teacher():
    config = TeacherConfig()
    assert config.name == "resnet50"
    assert config.dilated
    teacher = build_teacher(config)
    assert isinstance(teacher, FrozenTeacher)
    assert (teacher.num_features, teacher.stride, teacher.origin_px) == (2048, 4, 0.0)
