"""Files in the layouts of other projects, each proven by rebuilding the network from it before anybody gets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.files import replace_file
from data.batch_spec import VoxelConfig
from engine.errors import CheckpointError
from launchers.exporting.formats import finite, save
from launchers.exporting.proof import TOLERANCE, random_voxels
from models.detection.base import Detector
from models.detection.bird_eye import BirdEyeDetector
from models.layouts.base import Fed, Layout, from_theirs, to_theirs
from models.layouts.result import result
from models.lidar.pillars import Pillars
from models.lidar.voxelnet import VoxelNet
from models.methods.base import Objective
from models.weight_files import read_checkpoint

_BLOB = (12, 14, 10)
"""Cells along x, y, z within which random voxels lie, dense enough that most have neighbours."""
_PER_BLOB = 200


@dataclass(frozen=True)
class Proven:
    """What the proof of a file showed.

    Attributes:
        tensors: in the file.
        added: of these, those that the network here does without.
        difference: of the features, over the largest of them.
    """

    tensors: int
    added: int
    difference: float


def text_beside(path: Path) -> Path:
    """Where the instructions of a file lie."""
    return path.with_name(f"{path.name}.md")


def left_behind(layout: Layout, objective: Objective) -> str:
    """What of a run a file does not hold, in a sentence; "" if it is nothing that anybody would look for there."""
    if not isinstance(objective, Detector) or layout.network(objective) is objective:
        return ""
    kind = type(objective).__name__
    return (
        f"only the 3D network: of the heads of a {kind}, names and order of axes in {layout.title} are not known here"
    )


def write_layout(path: Path, layout: Layout, network: nn.Module, fed: Fed, metadata: Mapping[str, str]) -> Proven:
    """Write a network in a layout, with a text beside it, and prove the file.

    `network` is what `Layout.network` gives of a run, or `launchers.exporting.scale` of that.

    Raises:
        ValueError: the project has no counterpart, a tensor is not finite, or what the proof needs is not installed.
            Nothing is left then, as at the next.
        CheckpointError: read back, the file gives other tensors or features.
    """
    network.eval()
    instructions = layout.instructions(network, fed)
    state = finite(to_theirs(layout, network))
    save(path, layout.wrap(state, metadata))
    try:
        difference = prove(path, layout, network, random_inputs(network, fed))
        replace_file(text_beside(path), instructions.encode(), durable=False)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return Proven(len(state), len(layout.added(network)), difference)


def prove(
    path: Path, layout: Layout, network: nn.Module, inputs: tuple[Int[Tensor, "M 4"], Float[Tensor, "M F"], int]
) -> float:
    """Compare what a file holds with the network that it was made of.

    Returns:
        The largest difference of features over the largest feature.

    Raises:
        CheckpointError: a tensor does not come back, or features differ.
    """
    theirs = layout.unwrap(read_checkpoint(path))
    back, strangers = from_theirs(layout, theirs, network)
    ours = network.state_dict()
    wrong = [key for key, value in ours.items() if key not in back or not torch.equal(back[key], value.detach().cpu())]
    if wrong or strangers:
        raise CheckpointError(
            f"{path}: read back, {len(wrong)} tensors are not the run's ({', '.join(wrong[:3])}), and {len(strangers)} "
            f"have no place ({', '.join(strangers[:3])}); the file was removed"
        )
    with torch.no_grad():
        expected, found = result(network, inputs), layout.features(theirs, network, inputs)
    if expected.shape != found.shape:
        raise CheckpointError(
            f"{path}: rebuilt from the file, features are {tuple(found.shape)}, those of the run "
            f"{tuple(expected.shape)}; the file was removed"
        )
    difference = float((expected - found).abs().max() / expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
    if not difference <= TOLERANCE:  # true of NaN, too
        raise CheckpointError(
            f"{path}: rebuilt from the file, features differ by {difference:g} of the largest from the run's, expected "
            f"at most {TOLERANCE:g}; the file was removed"
        )
    return difference


def random_inputs(network: nn.Module, fed: Fed) -> tuple[Int[Tensor, "M 4"], Float[Tensor, "M F"], int]:
    """Random voxels of two samples in the network's range, with places in metres where it is fed those."""
    inner = network.backbone if isinstance(network, BirdEyeDetector) else network
    box = _box(inner, fed.voxels)
    width = fed.voxels.num_features
    if box is None:
        coords, features, num_samples = random_voxels(width)
    else:
        coords, num_samples = _in_corners(*box), 2
        features = torch.rand(len(coords), width, generator=torch.Generator().manual_seed(1))
    features = fed.points.scale_features(features)
    if fed.points.features.startswith("xyz"):
        size = fed.voxels.size if fed.voxels.kind == "cartesian" else (0.1, 0.1, 0.1)
        features[:, :3] = (coords[:, 1:] + features[:, :3]) * torch.tensor(size)
    return coords, features, num_samples


def _box(network: nn.Module, voxels: VoxelConfig) -> tuple[Int[Tensor, "3"], Int[Tensor, "3"]] | None:
    """Lowest cell and first cell beyond of what a network sees; None: all cells."""
    if isinstance(network, VoxelNet):
        low = torch.tensor(network.grid_min)
        return low, low + torch.tensor(network.grid_size)
    if isinstance(network, Pillars):
        size = torch.tensor(voxels.size)
        return (
            (torch.tensor(network.config.range_min_m) / size).ceil().long(),
            (torch.tensor(network.config.range_max_m) / size).floor().long(),
        )
    return None


def _in_corners(low: Int[Tensor, "3"], high: Int[Tensor, "3"]) -> Int[Tensor, "M 4"]:
    """Voxels in the lowest and the highest corner of a box and in between, so that its rims are seen, too."""
    generator = torch.Generator().manual_seed(0)
    extent = torch.minimum(torch.tensor(_BLOB), high - low)
    places = [low, (low + high - extent) // 2, high - extent]
    cells = [
        (place + (torch.rand(_PER_BLOB, 3, generator=generator) * extent).long()).clamp(max=high - 1)
        for place in places
    ]
    sample = torch.randint(0, 2, (len(places) * _PER_BLOB, 1), generator=generator)
    coords: Tensor = torch.unique(torch.cat([sample, torch.cat(cells)], dim=1), dim=0)
    return coords.int()
