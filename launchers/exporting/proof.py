"""The proof of an export: what the file gives, read back, on random inputs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from engine.errors import CheckpointError
from launchers.exporting.formats import Format
from models.weights import LoadReport

TOLERANCE = 1e-5
"""Of features in float32, over the largest of them: both sides add up the same products in another order."""


def check(path: Path, file_format: Format, network: nn.Module, inputs: tuple[Any, ...]) -> tuple[LoadReport, float]:
    """Fill a copy with scrambled weights from the file, and compare it with the original.

    Returns:
        The report of the load, and the largest difference of the features.

    Raises:
        CheckpointError: the difference is larger than rounding, or that of the network rebuilt from the file alone is;
            the file is removed.
    """
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.fill_(1)  # whatever the file does not fill will show
    report = file_format.read(path, copied)
    with torch.no_grad():
        features = network.eval()(*inputs)
        difference = float((features - copied.eval()(*inputs)).abs().max())
        largest = float(features.abs().max())
        if not difference <= file_format.tolerance * largest:  # true of NaN, too
            path.unlink()
            raise CheckpointError(
                f"{path}: read back, its features differ by {difference} from the run's; the file was removed"
            )
        if file_format.rebuild is not None:
            rebuilt = float((features - file_format.rebuild(path, inputs)).abs().max())
            if not rebuilt <= TOLERANCE * largest:
                path.unlink()
                raise CheckpointError(
                    f"{path}: rebuilt as the other code reads it, its features differ by {rebuilt} from the run's; the "
                    "file was removed"
                )
    return report, difference


def random_voxels(in_channels: int) -> tuple[Int[Tensor, "M 4"], Float[Tensor, "M F"], int]:
    """Some hundred random voxels of two samples, negative coordinates among them, and the 2; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(-12, 12, (600, 3), generator=generator)
    sample = torch.randint(0, 2, (600, 1), generator=generator)
    coords = torch.unique(torch.cat([sample, cells], dim=1), dim=0).int()
    return coords, torch.rand(len(coords), in_channels, generator=generator), 2


def random_image() -> tuple[Float[Tensor, "1 3 H W"]]:
    """A random image; the same at every call."""
    return (torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)),)
