"""Res16UNet weights in the layout of MinkowskiEngine code bases (SLidR and its relatives), and back.

A renaming, and the scale of intensity in the first kernel (`models.lidar.inputs`): kernels are [offsets, in, out] in
both, offsets with the first axis fastest, odd kernels centred, even ones at offsets 0 and 1; only 1 x 1 kernels lose
the axis of offsets. MinkowskiEngine puts a BatchNorm into a wrapper, hence `norm1.bn.weight`. Their network has its
linear head inside, as `final`.

Not run against MinkowskiEngine itself, which cannot be built for present versions of torch: the order of kernel offsets
(see `models.lidar.neighbors.kernel_offsets`) is that of its source, `src/kernel_region.hpp`.

Source: published SLidR checkpoints (Sautier et al., CVPR 2022): key names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jaxtyping import Shaped
from torch import Tensor

from models.lidar.inputs import PointInput

_STATE = Mapping[str, Shaped[Tensor, "..."]]

_BLOCK_PARTS = {
    "conv1.weight": "conv1.kernel",
    "conv2.weight": "conv2.kernel",
    "shortcut.weight": "downsample.0.kernel",
}
_NORMS = {"norm1": "norm1.bn", "norm2": "norm2.bn", "shortcut_norm": "downsample.1.bn"}


def minkowski_key(key: str) -> str:
    """Their name of one of our backbone's tensors.

    Raises:
        ValueError: no tensor of a Res16UNet has this name.
    """
    if key.startswith("stem2"):
        raise ValueError(f"weights: {key!r}: SLidR's layout has one convolution as stem, this network two")
    if key == "stem.weight":
        return "conv0p1s1.kernel"
    if found := re.fullmatch(r"stem_norm\.(\w+)", key):
        return f"bn0.bn.{found[1]}"
    found = re.fullmatch(r"(encoder|decoder)\.([0-3])\.(.+)", key)
    if found is None:
        raise ValueError(f"weights: {key!r} is no tensor of a Res16UNet")
    encoder, stage, part = found[1] == "encoder", int(found[2]), found[3]
    if encoder and part == "down.weight":
        return f"conv{stage + 1}p{2**stage}s2.kernel"
    if not encoder and part == "up.weight":
        return f"convtr{stage + 4}p{16 >> stage}s2.kernel"
    if found := re.fullmatch(r"norm\.(\w+)", part):
        return f"{f'bn{stage + 1}' if encoder else f'bntr{stage + 4}'}.bn.{found[1]}"
    block = f"block{stage + (1 if encoder else 5)}"
    if (found := re.fullmatch(r"blocks\.(\d+)\.(.+)", part)) and found[2] in _BLOCK_PARTS:
        return f"{block}.{found[1]}.{_BLOCK_PARTS[found[2]]}"
    if (found := re.fullmatch(r"blocks\.(\d+)\.(\w+)\.(\w+)", part)) and found[2] in _NORMS:
        return f"{block}.{found[1]}.{_NORMS[found[2]]}.{found[3]}"
    raise ValueError(f"weights: {key!r} is no tensor of a Res16UNet")


STEM = "stem.weight"
"""Our name of the first kernel, the only one that sees the input."""


def to_minkowski(
    backbone: _STATE,
    head: tuple[Shaped[Tensor, "out in"], Shaped[Tensor, " out"]] | None = None,
    *,
    fed: PointInput | None = None,
) -> dict[str, Tensor]:
    """State dict of a `Res16UNet` -> theirs.

    Args:
        backbone: takes intensity from 0 to 1.
        head: weight and bias of the linear point head; their `final`, left out if None.
        fed: what the other code will feed; None: the same as here.

    Raises:
        ValueError: a tensor that no Res16UNet has.
    """
    state = {minkowski_key(key): value.squeeze(0) if _pointwise(key) else value for key, value in backbone.items()}
    if fed is not None:
        state["conv0p1s1.kernel"] = fed.fold(backbone[STEM], 1 / fed.intensity_scale)
    if head is not None:
        state |= {"final.kernel": head[0].T.contiguous(), "final.bias": head[1][None].contiguous()}
    return state


def from_minkowski(
    theirs: _STATE, ours: _STATE, *, fed: PointInput | None = None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Their state dict -> tensors by our names, of a network that takes intensity from 0 to 1.

    Args:
        theirs: a file's `model_points`.
        ours: state of the network to fill, which says which names there are.
        fed: what theirs was fed; None: the same as here.

    Returns:
        What was found of our names, to be handed to `models.weights.load_state`; and their keys without a place here
        (`final.*`, the head, among them).
    """
    names = {minkowski_key(key): key for key in ours}
    state = {
        names[key]: value.unsqueeze(0) if _pointwise(names[key]) else value
        for key, value in theirs.items()
        if key in names
    }
    if fed is not None and STEM in state:
        state[STEM] = fed.fold(state[STEM], fed.intensity_scale)
    return state, tuple(key for key in theirs if key not in names)


def _pointwise(key: str) -> bool:
    """Kernels of one offset: theirs have no axis for it."""
    return key.endswith("shortcut.weight")
