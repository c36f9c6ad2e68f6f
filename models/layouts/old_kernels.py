"""The orders of axes in which the versions of spconv keep a kernel, told from each other by a file's shapes.

spconv 2.2 and later: [C_out, k0, k1, k2, C_in]; 1.x, and the copy in mmcv: [k0, k1, k2, C_in, C_out]; 2.0 and 2.1:
[k0, k1, k2, C_out, C_in]. A kernel with as many channels in as out has the same shape in the last two, so the order is
decided for all kernels of a file together, by those that fit in one order alone. It is never guessed.

Source: spconv's notes on breaking changes from 1.x to 2.x; OpenPCDet's loader.

Letters: k0 k1 k2 cells of a kernel, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping

from models.layouts.base import AnyTensor

ORDERS: dict[str, tuple[int, ...]] = {
    "spconv 2.2 or later": (0, 1, 2, 3, 4),
    "spconv 1.x or mmcv": (4, 0, 1, 2, 3),
    "spconv 2.0 or 2.1": (3, 0, 1, 2, 4),
}
"""Name -> where the axes of [C_out, k0, k1, k2, C_in] lie in it."""

CURRENT = "spconv 2.2 or later"


def order_of(theirs: Mapping[str, AnyTensor], expected: Mapping[str, tuple[int, ...]]) -> str:
    """In which order a file keeps its kernels; `CURRENT` where it has none, or none fits whatever the order.

    Args:
        theirs: the file's tensors.
        expected: shapes of all tensors in the current order.

    Raises:
        ValueError: more than one order fits all kernels.
    """
    kernels = {
        key: tuple(theirs[key].shape)
        for key, shape in expected.items()
        if len(shape) == 5 and key in theirs and theirs[key].ndim == 5
    }
    fitting = [
        name
        for name, axes in ORDERS.items()
        if kernels and all(tuple(shape[axis] for axis in axes) == expected[key] for key, shape in kernels.items())
    ]
    if len(fitting) > 1:
        shapes = ", ".join(f"{key} {shape}" for key, shape in [*kernels.items()][:3])
        raise ValueError(
            f"its kernels may lie as in {' or in '.join(fitting)}: all have as many channels in as out ({shapes}), so "
            "their shapes do not say which; save it again with the spconv that it is from, at version 2.2 or later"
        )
    return fitting[0] if fitting else CURRENT


def in_current_order(
    theirs: Mapping[str, AnyTensor], expected: Mapping[str, tuple[int, ...]], order: str
) -> dict[str, AnyTensor]:
    """A file's tensors with the kernels among them turned to spconv 2.2's order."""
    axes = ORDERS[order]
    return {
        key: value.permute(axes).contiguous() if value.ndim == 5 and len(expected.get(key, ())) == 5 else value
        for key, value in theirs.items()
    }
