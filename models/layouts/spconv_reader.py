"""Layers to rebuild a network of another project from a file's tensors: spconv 2's, and dense ones of plain torch.

They are functions of a state dict, so that a reader of a layout can be written from that project's documentation line
by line. Kernels are spconv 2's [C_out, k0, k1, k2, C_in], voxels its (sample, a0, a1, a2), and which of x, y, z an axis
is belongs to the reader. Nothing here comes from `models.lidar`: what both sides shared could be wrong on both.

spconv's CPU build is enough. It computes forwards only and refuses biases, which are added after it.

Source: spconv 2.3.8, documentation and impulse responses on its CPU build.

Letters: M voxels, B samples, C channels, k0 k1 k2 cells of a kernel, a0 a1 a2 of a grid.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from models.lidar.neighbors import Triple

State = Mapping[str, Shaped[Tensor, "..."]]
Kernel = Float[Tensor, "C_out k0 k1 k2 C_in"]


def spconv_library() -> Any:
    """`spconv.pytorch`.

    Raises:
        ValueError: it is not installed; says how.
    """
    try:
        with warnings.catch_warnings():
            # spconv 2.3.8 calls names on import that Python and torch have marked as old.
            warnings.simplefilter("ignore", category=DeprecationWarning)
            warnings.simplefilter("ignore", category=FutureWarning)
            import spconv.pytorch
    except ImportError as error:
        raise ValueError(
            f"spconv is not there ({error}), and without it the file cannot be proven: pip install spconv==2.3.8 (or, "
            "with CUDA, Tandem's extra [cu126])"
        ) from error
    return spconv.pytorch


def voxels(features: Float[Tensor, "M C"], cells: Int[Tensor, "M 4"], shape: Triple, num_samples: int) -> Any:
    """A tensor of voxels as spconv has it.

    Args:
        features: of each voxel.
        cells: (sample, a0, a1, a2), from 0 on.
        shape: cells of the grid along a0, a1, a2.
        num_samples: samples.
    """
    return spconv_library().SparseConvTensor(features.contiguous(), cells.int().contiguous(), list(shape), num_samples)


def submanifold(x: Any, kernel: Kernel, *, bias: Float[Tensor, " C_out"] | None = None, key: str | None = None) -> Any:
    """A submanifold convolution: output voxels are the input's. Layers of one `key` share their pairs of voxels."""
    spconv = spconv_library()
    sizes = kernel.shape[1:4]
    layer = spconv.SubMConv3d(
        kernel.shape[4],
        kernel.shape[0],
        list(sizes),
        padding=[size // 2 for size in sizes],
        bias=False,
        indice_key=key,
    )
    return _run(layer, x, kernel, bias)


def strided(
    x: Any,
    kernel: Kernel,
    *,
    stride: Triple,
    padding: Triple,
    bias: Float[Tensor, " C_out"] | None = None,
    key: str | None = None,
) -> Any:
    """A convolution that makes output voxels wherever it reaches an input voxel; stride and padding along a0, a1, a2.

    The rows of its result are in spconv's order. `key`: by which `inverse` finds the way back.
    """
    spconv = spconv_library()
    layer = spconv.SparseConv3d(
        kernel.shape[4],
        kernel.shape[0],
        list(kernel.shape[1:4]),
        stride=list(stride),
        padding=list(padding),
        bias=False,
        indice_key=key,
    )
    return _run(layer, x, kernel, bias)


def inverse(x: Any, kernel: Kernel, *, key: str, bias: Float[Tensor, " C_out"] | None = None) -> Any:
    """Back to the voxels, and to the order of rows, from which the strided convolution of this `key` came."""
    spconv = spconv_library()
    layer = spconv.SparseInverseConv3d(
        kernel.shape[4], kernel.shape[0], list(kernel.shape[1:4]), indice_key=key, bias=False
    )
    return _run(layer, x, kernel, bias)


def dense(x: Any) -> Float[Tensor, "B C a0 a1 a2"]:
    """The whole grid, zeros where there is no voxel. spconv 2.3.8's own indexes in a way that torch 2.13 warns of."""
    cells = x.indices.long().unbind(1)
    grid: Tensor = x.features.new_zeros(x.batch_size, *x.spatial_shape, x.features.shape[1])
    grid[cells] = x.features
    return grid.movedim(-1, 1)


def norm_relu(x: Any, state: State, name: str, *, eps: float, relu: bool = True) -> Any:
    """BatchNorm by running statistics of the tensors `name`.weight, .bias, .running_mean, .running_var; then ReLU."""
    features = batch_norm(x.features, state, name, eps=eps)
    return x.replace_feature(F.relu(features) if relu else features)


def batch_norm(features: Float[Tensor, "M C *cells"], state: State, name: str, *, eps: float) -> Tensor:
    """BatchNorm by running statistics, of rows or of maps."""
    mean, var, weight, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(features, mean, var, weight, bias, training=False, eps=eps)


def _run(layer: nn.Module, x: Any, kernel: Kernel, bias: Float[Tensor, " C_out"] | None) -> Any:
    own = layer.get_parameter("weight")
    if own.shape != kernel.shape:
        raise ValueError(f"spconv expects a kernel {tuple(own.shape)}, got {tuple(kernel.shape)}")
    with torch.no_grad():
        own.copy_(kernel)
        out = layer.eval()(x)
    return out if bias is None else out.replace_feature(out.features + bias)
