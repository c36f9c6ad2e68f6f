"""The frozen teacher: frozen in every mode, its own normalisation, its fingerprint."""

from pathlib import Path

import pytest
import torch

from models.image.resnet import ResNet
from models.image.teacher import FrozenTeacher, TeacherConfig, build_teacher

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


def test_bad_settings_are_named():
    for settings, message in (
        ({"name": "resnet18", "weights": "imagenet"}, "teacher.weights = 'imagenet'"),
        ({"name": "resnet18", "weights": "moco_v2:"}, "teacher.weights = 'moco_v2:'"),
        (
            {"name": "efficientnet_lite0", "weights": "dino:/a"},
            "expected for efficientnet_lite0 one of random, imagenet",
        ),
        ({"levels": (8, 4)}, "teacher.levels"),
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
