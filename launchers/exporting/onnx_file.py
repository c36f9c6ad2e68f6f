"""Dense networks as ONNX, run in onnxruntime and compared before anybody gets the file.

A 3D network with a bird's-eye view leaves its 2D part as ONNX; what comes before is written beside it as a list of
operations (`models.layouts.sequence`), and both together have to give the run's map.

Letters: B samples or images, C channels, H W pixels or cells.
"""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor, nn

from common.files import replace_file
from engine.errors import CheckpointError
from launchers.exporting.formats import finite
from launchers.exporting.layouts import random_inputs, text_beside
from models.image.base import DenseNetwork, describe_input
from models.image.frozen import Frozen
from models.image.resnet import ResNet
from models.image.resnet_encoder import ResNetEncoder
from models.layouts.base import Fed
from models.layouts.result import result
from models.layouts.sequence import run, sequence_of
from models.lidar.layers import leave_to_torch
from models.methods.base import Objective

Part = Literal["backbone", "image_backbone", "teacher"]
PARTS: tuple[Part, ...] = ("backbone", "image_backbone", "teacher")
"""Of a run, in the order in which they are looked for."""

TOLERANCE = 1e-4
"""Of features in float32, over the largest of them: onnxruntime adds up in another order through all layers."""
OPSET = 18
IMAGE_SIZE = (224, 224)
"""Height and width of images for a network whose file has a fixed size."""


@dataclass(frozen=True)
class ProvenOnnx:
    """What the proof of a file showed.

    Attributes:
        part: of the run.
        difference: of the features, over the largest of them.
        beside: further files.
    """

    part: Part
    difference: float
    beside: tuple[Path, ...]


def onnx_files(path: Path) -> tuple[Path, ...]:
    """All files that may come of an export, itself first: the text, and the operations before a map."""
    return path, text_beside(path), path.with_suffix(".json"), path.with_suffix(".safetensors")


def write_onnx(
    path: Path, objective: Objective, part: Part | None, fed: Fed, image_size: tuple[int, int]
) -> ProvenOnnx:
    """Write a network of a run as ONNX, with a text beside it, and prove the file.

    Args:
        path: of the file.
        objective: the run's.
        part: which network; None: the first of `PARTS` that the run has.
        fed: what the run's 3D network is fed, where it has one.
        image_size: height and width for networks of images, which those keep whose file has a fixed size.

    Raises:
        ValueError: no such network, none that ONNX can hold, not finite, or a package is missing.
        CheckpointError: the file gives other features; it was removed, and what lay beside it.
    """
    found = (name for name in PARTS if objective.part(name) is not None)
    chosen: Part = part if part is not None else next(found, PARTS[0])
    network = objective.part(chosen)
    if network is None:
        raise ValueError(f"{type(objective).__name__} has no part {chosen!r}; expected one of {', '.join(PARTS)}")
    files = onnx_files(path)
    try:
        if chosen == "backbone":
            difference = _write_points(path, network, fed)
            beside = files[1:]
        else:
            difference, beside = _write_images(path, network, image_size), files[1:2]
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
    return ProvenOnnx(chosen, difference, beside)


def _write_points(path: Path, network: nn.Module, fed: Fed) -> float:
    sequence, tensors, dense = sequence_of(network.eval())
    first = dense.blocks[0]
    assert isinstance(first, nn.Sequential)
    convolution = first[0].get_submodule("conv")
    assert isinstance(convolution, nn.Conv2d)
    save_onnx(path, dense, torch.rand(2, convolution.in_channels, 16, 24), sizes_vary=True)
    named = {**sequence, "input": json.loads(fed.points.to_text()), "tensors": path.with_suffix(".safetensors").name}
    named["map"] = path.name
    replace_file(path.with_suffix(".json"), (json.dumps(named, indent=1) + "\n").encode(), durable=False)
    replace_file(path.with_suffix(".safetensors"), save(finite(tensors)), durable=False)
    inputs = random_inputs(network, fed)
    with torch.no_grad():
        expected = result(network, inputs)
        bev = run(
            json.loads(path.with_suffix(".json").read_text()), load_file(path.with_suffix(".safetensors")), inputs
        )
    difference = _difference(path, expected, run_onnx(path, bev))
    replace_file(text_beside(path), _points_text(path, fed).encode(), durable=False)
    return difference


def _write_images(path: Path, network: nn.Module, size: tuple[int, int]) -> float:
    inner: Any = network.encoder if isinstance(network, Frozen) else network
    if type(inner) is ResNetEncoder:
        inner = inner.network
    assert isinstance(inner, DenseNetwork)
    varies = isinstance(inner, ResNet | ResNetEncoder)
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    save_onnx(path, inner, images, sizes_vary=varies)
    shown = [images, images[:1, :, : size[0] // 2 + 1, : size[1] // 2 + 1]] if varies else [images, images[:1]]
    with torch.no_grad():
        difference = max(_difference(path, inner.eval()(one), run_onnx(path, one)) for one in shown)
    replace_file(text_beside(path), _images_text(path, inner, size, varies=varies).encode(), durable=False)
    return difference


def _difference(path: Path, expected: Float[Tensor, "B C H W"], found: Float[Tensor, "B C H W"]) -> float:
    if expected.shape != found.shape:
        raise CheckpointError(f"{path}: gives features {tuple(found.shape)}, expected {tuple(expected.shape)}")
    difference = float((expected - found).abs().max() / expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
    if not difference <= TOLERANCE:  # true of NaN, too
        raise CheckpointError(
            f"{path}: in onnxruntime, features differ by {difference:g} of the largest from the run's, expected at "
            f"most {TOLERANCE:g}; the file was removed"
        )
    return difference


# ---- onnx


def save_onnx(path: Path, network: nn.Module, example: Float[Tensor, "B C H W"], *, sizes_vary: bool) -> None:
    """Write a network of one input and one output, whole or not at all. The number of samples is open.

    Args:
        path: of the file.
        network: any.
        example: an input.
        sizes_vary: whether height and width are open, too.

    Raises:
        ValueError: not finite, or a package is missing.
    """
    _library("onnx")
    _library("onnxscript")
    finite(network.state_dict())
    copied = copy.deepcopy(network).cpu().eval()
    leave_to_torch(copied)  # ONNX knows none of the native operations
    auto, open_batch = torch.export.Dim.AUTO, torch.export.Dim("batch")
    axes = {0: open_batch, 2: auto, 3: auto} if sizes_vary else {0: open_batch}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's own old calls
        program = torch.onnx.export(
            copied,
            (example,),
            input_names=["input"],
            output_names=["features"],
            opset_version=OPSET,
            dynamic_shapes=(axes,),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, program.model_proto.SerializeToString(), durable=False)


def run_onnx(path: Path, inputs: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
    """What a file gives in onnxruntime on the CPU.

    Raises:
        ValueError: onnxruntime is missing.
    """
    session = _library("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0])


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{name} is not there ({error}): pip install -e '.[onnx]'") from error


# ---- the texts beside a file


def _images_text(path: Path, network: DenseNetwork, size: tuple[int, int], *, varies: bool) -> str:
    sides = "any height and width" if varies else f"height {size[0]} and width {size[1]}"
    fed = "RGB from 0 to 255" if hasattr(network, "normalise") else describe_input(network)
    return f"""# {path.name}

ONNX, opset {OPSET}, weights inside.

- `input`: float32 [batch, 3, height, width], {sides}, any batch; {fed}.
- `features`: float32 [batch, {network.num_features}, rows, columns]; a cell every {network.stride} pixels.
"""


def _points_text(path: Path, fed: Fed) -> str:
    return f"""# {path.name}

The 2D part of a 3D network as ONNX, opset {OPSET}; what comes before it is no ONNX.

- `{path.with_suffix(".json").name}`: the operations before it, in their order.
- `{path.with_suffix(".safetensors").name}`: their tensors.
- `input`: float32 [batch, channels, y, x], the map that the operations end in; y and x multiples of the coarsest
  block's stride.
- `features`: float32 [batch, channels, y, x], the map for detection heads.
- A voxel's features: {fed.points}.
- Voxels: {fed.voxels.kind}, {", ".join(f"{size:g}" for size in fed.voxels.size)}.
"""
