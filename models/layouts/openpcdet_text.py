"""The text beside a file for OpenPCDet: lines for its YAML, what to feed, what its loader should say."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from models.detection.bird_eye import BirdEyeDetector
from models.layouts.base import Fed
from models.layouts.second_parts import bev_sizes
from models.lidar.bev import BevBackbone
from models.lidar.pillars import Pillars
from models.lidar.pointnet2 import PointNet2, SetAbstraction
from models.lidar.res16unet import ResidualBlock
from models.lidar.voxelnet import VoxelNet

_OWN_WIDTHS = ((16, 32, 64, 64, 128), (16, 32, 64, 128, 128))
"""Of VoxelBackBone8x and VoxelResBackBone8x, in whose code they stand."""
_CHANNELS = {
    "xyz_intensity": ("x", "y", "z", "intensity"),
    "xyz_intensity_time": ("x", "y", "z", "intensity", "timestamp"),
    "xyz_intensity_elongation": ("x", "y", "z", "intensity", "elongation"),
}
"""Ours -> their names of the features of a point."""


def openpcdet_text(network: nn.Module, fed: Fed, num_tensors: int) -> str:
    """The text.

    Args:
        network: a detector or a 3D network.
        fed: what it was fed.
        num_tensors: in the file.

    Raises:
        ValueError: OpenPCDet cannot feed what the network was fed.
    """
    inner = network.backbone if isinstance(network, BirdEyeDetector) else network
    channels = _CHANNELS.get(fed.points.features)
    if channels is None:
        raise ValueError(
            f"OpenPCDet feeds x, y, z of a point first, and this network was fed {fed.points.features}: train with "
            "data.voxel.features=xyz_intensity (and in_channels=4)"
        )
    names = ", ".join(f"'{name}'" for name in channels)
    if isinstance(inner, VoxelNet):
        lines, notes = _voxelnet(inner, fed)
    elif isinstance(inner, Pillars):
        lines, notes = _pillars(inner)
    else:
        assert isinstance(inner, PointNet2)
        lines, notes = _pointnet(inner)
    if fed.points.intensity_offset:
        notes.append(
            f"Add {fed.points.intensity_offset:g} to the intensity: no tensor can do that (see Tandem's weights page)."
        )
    if isinstance(network, BirdEyeDetector):
        notes.append(
            "The file holds `dense_head`, too: classes, anchors and target settings there must be those of the run."
        )
    top = fed.points.intensity_offset + fed.points.intensity_scale
    return "\n".join(
        [
            "# For OpenPCDet",
            "",
            "Give the file to `tools/train.py --pretrained_model FILE` (or `tools/test.py --ckpt FILE`).",
            f"Its log should say `Done (loaded {num_tensors}/N)`: {num_tensors} tensors are in the file, and the lines",
            "`Not updated weight` should name only parts that the file lacks (heads).",
            "",
            "## Lines for the config",
            "",
            "```yaml",
            "DATA_CONFIG:",
            *lines[0],
            "    POINT_FEATURE_ENCODING:",
            "        encoding_type: absolute_coordinates_encoding",
            f"        used_feature_list: [{names}]",
            f"        src_feature_list: [{names}]  # as your files have them",
            "MODEL:",
            *lines[1],
            "```",
            "",
            "## Input",
            "",
            f"- {fed.points}.",
            f"- Intensity runs from {fed.points.intensity_offset:g} to {top:g}. Where your data set has another",
            "  range (nuScenes: 0 to 255), export with `--intensity-scale`, or bring it to this one there.",
            *(f"- {note}" for note in notes),
            "",
            "## What was checked",
            "",
            "Rebuilt from this file on spconv and plain torch, the network gave the run's features. BatchNorm's eps is",
            "the one there. Its momentum, which has no part in features, is the class's own there.",
            "",
        ]
    )


_Lines = tuple[list[str], list[str]]


def _voxelnet(network: VoxelNet, fed: Fed) -> tuple[_Lines, list[str]]:
    size = fed.voxels.size
    cells = [(low, low + n) for low, n in zip(network.grid_min, network.grid_size, strict=True)]
    limits = [
        *(low * edge for (low, _), edge in zip(cells, size, strict=True)),
        *(high * edge for (_, high), edge in zip(cells, size, strict=True)),
    ]
    encoder = network.encoder
    widths = (*encoder.level_features, encoder.num_features // encoder.out_size[2])
    residual = any(isinstance(layer, ResidualBlock) for layer in encoder.layers)
    points = 1 if fed.points.reduce == "first" else 5
    data = [
        f"    POINT_CLOUD_RANGE: {_numbers(limits)}",
        "    DATA_PROCESSOR:  # the entry transform_points_to_voxels",
        "        - NAME: transform_points_to_voxels",
        f"          VOXEL_SIZE: {_numbers(size)}",
        f"          MAX_POINTS_PER_VOXEL: {points}",
    ]
    model = [
        "    VFE:",
        "        NAME: MeanVFE",
        "    BACKBONE_3D:",
        f"        NAME: {'VoxelResBackBone8x' if residual else 'VoxelBackBone8x'}",
        "    MAP_TO_BEV:",
        "        NAME: HeightCompression",
        f"        NUM_BEV_FEATURES: {encoder.num_features}",
        *_bev(network.bev_backbone),
    ]
    notes = [
        "A voxel's features are those of its first point here: MAX_POINTS_PER_VOXEL 1 makes MeanVFE do that."
        if points == 1
        else "A voxel's features are the mean of all its points here, of at most MAX_POINTS_PER_VOXEL there."
    ]
    if residual:
        notes.append(
            "The residual blocks' biases are 0: here there are none, there they stand in front of a BatchNorm."
        )
    if widths != _OWN_WIDTHS[residual]:
        notes.append(
            f"**Widths.** The class has {_numbers(_OWN_WIDTHS[residual])} in its code, and this network "
            f"{_numbers(widths)} (strides 1, 2, 4, 8, output): change them there, or train second or centerpoint."
        )
    return (data, model), notes


def _pillars(network: Pillars) -> tuple[_Lines, list[str]]:
    config = network.config
    height = config.range_max_m[2] - config.range_min_m[2]
    widths = _widths(network.pillar_encoder)
    filters = [*(2 * width for width in widths[:-1]), widths[-1]]
    data = [
        f"    POINT_CLOUD_RANGE: {_numbers((*config.range_min_m, *config.range_max_m))}",
        "    DATA_PROCESSOR:  # in place of the entry transform_points_to_voxels",
        "        - NAME: transform_points_to_voxels_placeholder",
        f"          VOXEL_SIZE: {_numbers((config.pillar_size_m, config.pillar_size_m, height))}",
    ]
    model = [
        "    VFE:",
        "        NAME: DynPillarVFE",
        "        WITH_DISTANCE: False",
        "        USE_ABSLOTE_XYZ: True",
        "        USE_NORM: True",
        f"        NUM_FILTERS: {_numbers(filters)}",
        "    MAP_TO_BEV:",
        "        NAME: PointPillarScatter",
        f"        NUM_BEV_FEATURES: {filters[-1]}",
        *_bev(network.bev_backbone),
    ]
    notes = [
        "DynPillarVFE takes all points of a pillar, as Tandem does. The file loads into PillarVFE, too (same names), "
        "but that fills each pillar up with zeros and takes the maximum over them as well: other features.",
        "The last column of the first layer, for the offset of z, is 0: Tandem has no such input.",
    ]
    return (data, model), notes


def _pointnet(network: PointNet2) -> tuple[_Lines, list[str]]:
    down = [layer for layer in network.abstraction if isinstance(layer, SetAbstraction)]
    up = [_widths(layer) for layer in reversed(network.propagation)]
    model = [
        "    BACKBONE_3D:",
        "        NAME: PointNet2MSG",
        "        SA_CONFIG:",
        f"            NPOINTS: {[layer.samplers[0][1] for layer in down]}",
        f"            RADIUS: {[[scale.radius_m for scale in layer.scales] for layer in down]}",
        f"            NSAMPLE: {[[scale.neighbors for scale in layer.scales] for layer in down]}",
        f"            MLPS: {[[_widths(chain) for chain in layer.networks] for layer in down]}",
        f"        FP_MLPS: {up}",
    ]
    notes = [
        "Points are the voxels that come in here; there, sample_points chooses them. Of a full ball the first points "
        "count, so features depend on the order of points."
    ]
    return ([], model), notes


def _widths(module: nn.Module) -> list[int]:
    return [part.out_features for part in module.modules() if isinstance(part, nn.Linear)]


def _bev(backbone: BevBackbone | None) -> list[str]:
    if backbone is None:
        return []
    sizes = bev_sizes(backbone)
    return [
        "    BACKBONE_2D:",
        "        NAME: BaseBEVBackbone",
        f"        LAYER_NUMS: {_numbers(sizes.layers)}",
        f"        LAYER_STRIDES: {_numbers(sizes.strides)}",
        f"        NUM_FILTERS: {_numbers(sizes.filters)}",
        f"        UPSAMPLE_STRIDES: {_numbers(sizes.up_strides)}",
        f"        NUM_UPSAMPLE_FILTERS: {_numbers(sizes.up_filters)}",
    ]


def _numbers(values: Sequence[float | int]) -> str:
    return f"[{', '.join(f'{value:.10g}' for value in values)}]"
