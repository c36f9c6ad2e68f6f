"""`tandem export --format onnx`: the dense network in onnxruntime, and the operations before it, give the run's map.

Exports run in a process of their own: torch traces a network with open sizes, and the tests' check of shapes would fix
them.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from data.sample import Batch
from engine.errors import CheckpointError
from launchers.exporting.layouts import random_inputs
from launchers.exporting.onnx_file import onnx_files, run_onnx, save_onnx, write_onnx
from models.layouts.result import result
from models.layouts.sequence import run, sequence_of
from models.lidar.base import Backbone
from models.lidar.pillars import PillarsConfig
from models.lidar.res16unet import Res16UNetConfig
from models.lidar.voxelnet import VoxelNetConfig
from models.methods.base import LossTerms, Objective
from tests.helpers.weight_layouts import CELL_M, GRID_MAX, GRID_MIN, fed, stirred

for library in ("onnx", "onnxruntime", "onnxscript", "spconv"):
    pytest.importorskip(library)


def voxelnet(preset: str = "second_tiny") -> Backbone:
    return VoxelNetConfig(
        preset=preset,  # type: ignore[arg-type]
        in_channels=4,
        grid_min=GRID_MIN,
        grid_max=GRID_MAX,
        voxel_size_m=CELL_M,
    ).build()


def pillars(preset: str = "pillars_tiny") -> Backbone:
    return PillarsConfig(
        preset=preset,  # type: ignore[arg-type]
        pillar_size_m=0.1,
        range_min_m=(0.0, -1.6, -1.2),
        range_max_m=(2.4, 1.6, 1.2),
    ).build()


NETWORKS = {
    "second_tiny": voxelnet,
    "centerpoint": lambda: voxelnet("centerpoint"),
    "pillars_tiny": pillars,
    "centerpoint_waymo": lambda: pillars("centerpoint_waymo"),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_operations_before_the_map_give_the_map(name: str) -> None:
    """As JSON says them; a kernel with x and z swapped, another eps, another padding are seen."""
    network = stirred(NETWORKS[name]())
    sequence, tensors, dense = sequence_of(network)
    sequence = json.loads(json.dumps(sequence))
    inputs = random_inputs(network, fed())
    expected = result(network, inputs)
    with torch.no_grad():
        found = dense(run(sequence, tensors, inputs))
        assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
        for wrong in _wrong(sequence):
            changed = dense(run(wrong, tensors, inputs))
            assert not torch.allclose(changed, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)
        if name == "second_tiny":
            kernel = tensors["encoder.layers.1.conv.weight"]
            cube = kernel.reshape(3, 3, 3, *kernel.shape[1:])
            swapped = {**tensors, "encoder.layers.1.conv.weight": cube.transpose(0, 2).reshape(kernel.shape)}
            changed = dense(run(sequence, swapped, inputs))
            assert not torch.allclose(changed, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)


def _wrong(sequence: dict[str, object]) -> list[dict[str, object]]:
    other = copy.deepcopy(sequence)
    first = next(op for op in other["operations"] if "eps" in op)  # type: ignore[attr-defined]
    first["eps"] = 1.0
    return [other]


def test_a_network_without_a_dense_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a Res16UNet without a dense 2D part, and ONNX has no sparse convolutions"):
        sequence_of(Res16UNetConfig(preset="res16unet_tiny").build())


class _Run(Objective):
    """A run's objective, as far as exporting looks at it."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, batch: Batch) -> LossTerms:
        raise NotImplementedError


SCRIPT = """
import sys
from pathlib import Path
import torch
from launchers.exporting.onnx_file import write_onnx
from models.image.fpn import ResNetFpnConfig
from models.image.resnet_encoder import ResNetEncoderConfig
from models.image.unet import ResNetUnetConfig
from tests.helpers.weight_layouts import fed, stirred
from tests.launchers.test_export_onnx import _Run, voxelnet
torch.manual_seed(0)
out = Path(sys.argv[1])
runs = {
    "points": _Run(backbone=stirred(voxelnet())),
    "images": _Run(image_backbone=stirred(ResNetEncoderConfig(preset="resnet10_tiny").build())),
    "images-fpn": _Run(image_backbone=stirred(ResNetFpnConfig(preset="resnet10_tiny", channels=8).build())),
    "images-unet": _Run(image_backbone=stirred(ResNetUnetConfig(preset="resnet10_tiny").build())),
}
for name, run in runs.items():
    proven = write_onnx(out / f"{name}.onnx", run, None, fed(), (64, 96))
    print(name, proven.part, proven.difference)
"""


@pytest.mark.slow
def test_files_give_the_run_s_features(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row.split()[0]: row.split() for row in done.stdout.splitlines() if row.startswith(("points", "images"))}
    assert (rows["points"][1], rows["images"][1]) == ("backbone", "image_backbone")
    assert max(float(row[2]) for row in rows.values()) < 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"images{kind}.onnx{end}" for kind in ("", "-fpn", "-unet") for end in ("", ".md")),
        *(path.name for path in onnx_files(tmp_path / "points.onnx")),
    }
    # The batch and the size are open, whatever they were when the file was written.
    assert run_onnx(tmp_path / "images.onnx", torch.rand(3, 3, 32, 160)).shape == (3, 128, 1, 5)
    assert run_onnx(tmp_path / "images-fpn.onnx", torch.rand(3, 3, 33, 160)).shape == (3, 8, 9, 40)
    assert run_onnx(tmp_path / "images-unet.onnx", torch.rand(3, 3, 33, 160)).shape[2:] == (33, 160)
    listed = json.loads((tmp_path / "points.json").read_text())
    assert listed["map"] == "points.onnx"
    assert listed["operations"][0]["weight"] in load_file(tmp_path / listed["tensors"])


def test_a_missing_package_and_a_wrong_file_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = _Run(backbone=stirred(voxelnet()))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"onnxscript is not there .*\[onnx\]"):
        write_onnx(tmp_path / "a.onnx", objective, None, fed(), (64, 64))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"has no part 'teacher'; expected one of backbone, image_backbone, teacher"):
        write_onnx(tmp_path / "a.onnx", objective, "teacher", fed(), (64, 64))

    def another(path: Path, network: nn.Module, example: torch.Tensor, *, sizes_vary: bool) -> None:
        path.write_bytes(b"a file")

    monkeypatch.setattr("launchers.exporting.onnx_file.save_onnx", another)
    monkeypatch.setattr("launchers.exporting.onnx_file.run_onnx", lambda path, inputs: torch.zeros(2, 96, 8, 6))
    with pytest.raises(CheckpointError, match=r"in onnxruntime, features differ by 1 of the largest"):
        write_onnx(tmp_path / "a.onnx", objective, None, fed(), (64, 64))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"not finite"):
        save_onnx(tmp_path / "b.onnx", _nan(), torch.rand(1, 3, 8, 8), sizes_vary=False)


def _nan() -> nn.Module:
    layer = nn.Conv2d(3, 2, 1)
    nn.init.constant_(layer.weight, float("nan"))
    return layer
