"""What mmdetection3d's loader does to kernels of spconv 2, and files that come out right through it.

With spconv 2 its layers turn every sparse kernel on loading, the last axis to the front, unless the state dict's
`_metadata` calls the layer's version 2. That mark is lost on one of its two ways of loading (`init_cfg` with a prefix
builds a plain dict; `load_from` keeps it), and where input and output channels are as many as cells or as each other a
turned kernel still fits. So files are written without the mark and with kernels as [k0, k1, k2, C_in, C_out], which
either way of loading turns into spconv's [C_out, k0, k1, k2, C_in].

Source: mmdetection3d 1.4, `mmdet3d/models/layers/spconv/overwrite_spconv/write_spconv2.py`; mmengine
`runner/checkpoint.py`.

Letters: C channels, k0 k1 k2 cells of a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.layouts.base import AnyTensor

_MOST_CELLS = 7
"""Of an edge of a kernel; a first axis that is longer is channels."""


def for_loader(state: Mapping[str, AnyTensor]) -> dict[str, Tensor]:
    """A state dict in spconv 2's layout as mmdetection3d's loader takes it: kernels [k0, k1, k2, C_in, C_out]."""
    return {
        key: value.permute(1, 2, 3, 4, 0).contiguous() if value.ndim == 5 else value for key, value in state.items()
    }


def as_loaded(state: Mapping[str, AnyTensor]) -> dict[str, Tensor]:
    """Any state dict of mmdetection3d in spconv 2's layout, kernels [C_out, k0, k1, k2, C_in].

    Checkpoints saved there with spconv 2 have these, older ones and exports the others; the shape says which.
    """
    return {
        key: value.permute(4, 0, 1, 2, 3).contiguous() if value.ndim == 5 and len(value) <= _MOST_CELLS else value
        for key, value in state.items()
    }
