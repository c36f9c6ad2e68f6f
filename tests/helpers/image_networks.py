"""Image networks for tests of where their cells lie, and checkpoints of runs that trained one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.image.base import DenseNetwork
from models.image.teacher import TeacherConfig
from models.image.teachers import TEACHERS


def teacher_config(name: str = "resnet50", **settings: Any) -> TeacherConfig:
    """Settings of a teacher, of its family."""
    return TEACHERS[name](name=name, **settings)


def in_use(network: nn.Module) -> nn.Module:
    """Random BatchNorm statistics, so that nothing is the identity by accident; evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.3, 0.7, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
    return network.eval()


def mirrored_kernels(network: nn.Module) -> nn.Module:
    """Make every convolution blind to left and right."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = (parameter.data + parameter.data.flip(-1)) / 2
    return network


def symmetric_image(width: int, height: int = 64) -> Tensor:
    """One image that is its own mirror image."""
    half = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    half[..., : width // 2] = half[..., width - width // 2 :].flip(-1)
    return half


def write_checkpoint(run_dir: Path, step: int, network: nn.Module, prefix: str = "image_backbone.") -> Path:
    """What `engine.checkpoint` leaves of a run, as far as it concerns weights."""
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    tensors = {prefix + name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(tensors | {"point_head.linear.weight": torch.zeros(2, 2)}, folder / "weights.safetensors")
    files = {}
    (folder / "config.json").write_text(json.dumps({"method": {"name": "pixel_contrast"}}))
    for path in folder.iterdir():
        files[path.name] = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (folder / "files.json").write_text(json.dumps(files))
    return folder


class RecordedTeacher(DenseNetwork):
    """What a frozen network said about these images, said again."""

    def __init__(self, teacher: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.num_features, self.stride, self.origin_px = teacher.num_features, teacher.stride, teacher.origin_px
        self.said = teacher(images)

    def forward(self, images: Tensor) -> Tensor:
        """Whatever the images."""
        return self.said
