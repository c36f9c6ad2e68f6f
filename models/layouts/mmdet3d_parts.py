"""How mmdetection3d's files hold kernels of sparse convolutions.

With spconv 2, mmdetection3d 1.4 turns every sparse kernel on loading, last axis to the front, unless the state dict's
own record says version 2 for that layer; a plain dict has no such record, nor has what its `init_cfg` cuts out of a
file by a prefix. So a file holds kernels as [k0, k1, k2, C_in, C_out], as spconv 1 did, and every way of loading ends
with spconv 2's [C_out, k0, k1, k2, C_in].

Source: mmdetection3d 1.4.0, run with spconv 2.3.8: loading of plain, safetensors and versioned state dicts.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.layouts.base import AnyTensor

_LARGEST_KERNEL = 7
"""Cells along an axis; its networks have no layer of so few channels."""


def to_file(state: Mapping[str, AnyTensor]) -> dict[str, AnyTensor]:
    """A state dict with kernels [C_out, k0, k1, k2, C_in] as a file has it."""
    return {key: _last_first(value, back=True) if value.ndim == 5 else value for key, value in state.items()}


def from_file(state: Mapping[str, object]) -> dict[str, AnyTensor]:
    """The tensors of a file's state dict, kernels as [C_out, k0, k1, k2, C_in].

    Files that mmdetection3d itself has written with spconv 2 hold them so already, and say it in a record that is no
    tensor; the shape says it, too, because kernels have fewer cells along an axis than layers have channels.
    """
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    return {key: _last_first(value) if _turned(value) else value for key, value in tensors.items()}


def _turned(tensor: AnyTensor) -> bool:
    return tensor.ndim == 5 and max(tensor.shape[:3]) <= _LARGEST_KERNEL


def _last_first(kernel: AnyTensor, *, back: bool = False) -> AnyTensor:
    return kernel.permute(1, 2, 3, 4, 0).contiguous() if back else kernel.permute(4, 0, 1, 2, 3).contiguous()
