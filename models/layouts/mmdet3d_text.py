"""The text beside a file for mmdetection3d: lines for its config, what to feed, what its loader should say."""

from __future__ import annotations

from torch import nn

from models.layouts.base import Fed
from models.layouts.second_parts import bev_sizes, stages_of
from models.lidar.bev import BevBackbone
from models.lidar.pillars import Pillars
from models.lidar.res16unet import ResidualBlock
from models.lidar.voxelnet import VoxelNet


def refuse_without_places(fed: Fed) -> None:
    """Refuse what mmdetection3d cannot feed.

    Raises:
        ValueError: features of a voxel that do not begin with x, y, z.
    """
    if not fed.points.features.startswith("xyz"):
        raise ValueError(
            f"mmdetection3d feeds x, y, z of a point first, and this network was fed {fed.points.features}: train with "
            "data.voxel.features=xyz_intensity (and in_channels=4)"
        )


def mmdet3d_text(network: nn.Module, fed: Fed, num_tensors: int) -> str:
    """The text.

    Args:
        network: a 3D network of voxels or pillars.
        fed: what it was fed.
        num_tensors: in the file.

    Raises:
        ValueError: mmdetection3d cannot feed what the network was fed.
    """
    refuse_without_places(fed)
    if isinstance(network, VoxelNet):
        lines, notes = _voxelnet(network, fed)
    else:
        assert isinstance(network, Pillars)
        lines, notes = _pillars(network)
    if fed.points.intensity_offset:
        notes.append(f"Add {fed.points.intensity_offset:g} to the intensity there: no tensor can do that.")
    top = fed.points.intensity_offset + fed.points.intensity_scale
    return "\n".join(
        [
            "# For mmdetection3d",
            "",
            f"Set `load_from = 'FILE'`. Of the file's {num_tensors} tensors the log should name none as unexpected and",
            "none of another size; missing are the heads alone. In CenterPoint, whose parts are",
            "called `pts_voxel_encoder`, `pts_middle_encoder`, `pts_backbone`, `pts_neck`, rename them in the file:",
            "",
            "```python",
            "content = torch.load('FILE', weights_only=True)",
            "content['state_dict'] = {f'pts_{key}': value for key, value in content['state_dict'].items()}",
            "torch.save(content, 'FILE')",
            "```",
            "",
            "Sparse kernels lie as [k0, k1, k2, C_in, C_out]: mmdetection3d turns them on loading to what spconv 2",
            "wants. Code that fills spconv's modules without its loader has to do the same.",
            "",
            "## Lines for the model's config",
            "",
            "```python",
            *lines,
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
            "the one there (1e-3). Its momentum, which has no part in features, is what the config there says.",
            "",
        ]
    )


_Text = tuple[list[str], list[str]]


def _voxelnet(network: VoxelNet, fed: Fed) -> _Text:
    encoder, size = network.encoder, fed.voxels.size
    lows = [low * edge for low, edge in zip(network.grid_min, size, strict=True)]
    highs = [(low + n) * edge for low, n, edge in zip(network.grid_min, network.grid_size, size, strict=True)]
    x, y, z = network.grid_size
    first, *others = encoder.level_features
    residual = any(isinstance(layer, ResidualBlock) for _, layer in stages_of(encoder, "").stages[0])
    if residual:
        nexts = (*others, None)
        channels = tuple(
            (own, own) if after is None else (own, own, after)
            for own, after in zip(encoder.level_features, nexts, strict=True)
        )
        shape: tuple[str, ...] = (
            f"    encoder_channels={channels},",
            "    encoder_paddings=((0, 0, 1), (0, 0, 1), (0, 0, (0, 1, 1)), (0, 0)),",
            "    block_type='basicblock'),",
        )
    else:
        shape = (
            f"    encoder_channels={((first,), *((width,) * 3 for width in others))},",
            "    encoder_paddings=((1,), (1, 1, 1), (1, 1, 1), ((0, 1, 1), 1, 1)),",
            "    block_type='conv_module'),",
        )
    points = 1 if fed.points.reduce == "first" else 5
    lines = [
        "voxel_layer=dict(",
        f"    max_num_points={points},",
        f"    point_cloud_range={_numbers((*lows, *highs))},",
        f"    voxel_size={_numbers(size)}),",
        f"voxel_encoder=dict(type='HardSimpleVFE', num_features={fed.voxels.num_features}),",
        "middle_encoder=dict(",
        "    type='SparseEncoder',",
        f"    in_channels={fed.voxels.num_features},",
        f"    sparse_shape=[{z + 1}, {y}, {x}],",
        "    order=('conv', 'norm', 'act'),",
        "    norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.01),",
        f"    base_channels={first},",
        f"    output_channels={encoder.num_features // encoder.out_size[2]},",
        *shape,
        *_bev(network.bev_backbone, encoder.num_features),
    ]
    note = (
        "A voxel's features are those of its first point here: max_num_points=1 makes HardSimpleVFE do that."
        if points == 1
        else "A voxel's features are the mean of all its points here, of at most max_num_points there."
    )
    return lines, [note]


def _pillars(network: Pillars) -> _Text:
    config = network.config
    size = (config.pillar_size_m, config.pillar_size_m, config.range_max_m[2] - config.range_min_m[2])
    limits = _numbers((*config.range_min_m, *config.range_max_m))
    widths = [part.out_features for part in network.pillar_encoder.modules() if isinstance(part, nn.Linear)]
    x, y = config.num_pillars
    lines = [
        "voxel_type='dynamic',",
        "voxel_layer=dict(",
        f"    max_num_points=-1, point_cloud_range={limits}, voxel_size={_numbers(size)}, max_voxels=(-1, -1)),",
        "voxel_encoder=dict(",
        "    type='DynamicPillarFeatureNet',",
        f"    in_channels={config.in_channels},",
        f"    feat_channels={widths},",
        "    with_distance=False,",
        f"    voxel_size={_numbers(size)},",
        f"    point_cloud_range={limits},",
        "    norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.01)),",
        f"middle_encoder=dict(type='PointPillarsScatter', in_channels={widths[-1]}, output_shape=[{y}, {x}]),",
        *_bev(network.bev_backbone, widths[-1]),
    ]
    notes = [
        "DynamicPillarFeatureNet takes all points of a pillar, as Tandem does. PillarFeatureNet is another network: it "
        "fills each pillar up with zeros and takes the maximum over them as well. To start it from this file all the "
        "same, rename `pfn_layers.N.0.` to `pfn_layers.N.linear.` and `pfn_layers.N.1.` to `pfn_layers.N.norm.`, and "
        "set `legacy=False`: its default overwrites x, y, z by their offsets to the pillar's centre.",
        "The last column of the first layer, for the offset of z, is 0: Tandem has no such input.",
    ]
    return lines, notes


def _bev(backbone: BevBackbone | None, in_channels: int) -> list[str]:
    if backbone is None:
        return []
    sizes = bev_sizes(backbone)
    return [
        "backbone=dict(",
        "    type='SECOND',",
        f"    in_channels={in_channels},",
        f"    layer_nums={list(sizes.layers)},",
        f"    layer_strides={list(sizes.strides)},",
        f"    out_channels={list(sizes.filters)},",
        "    norm_cfg=dict(type='BN', eps=1e-3, momentum=0.01)),",
        "neck=dict(",
        "    type='SECONDFPN',",
        f"    in_channels={list(sizes.filters)},",
        f"    upsample_strides={list(sizes.up_strides)},",
        f"    out_channels={list(sizes.up_filters)},",
        "    norm_cfg=dict(type='BN', eps=1e-3, momentum=0.01)),",
    ]


def _numbers(values: tuple[float | int, ...]) -> str:
    return f"[{', '.join(f'{value:.10g}' for value in values)}]"
