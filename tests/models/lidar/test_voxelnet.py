"""VoxelNet: bounded convolutions and the bird's-eye view against dense ones, structure."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batch_spec import VoxelConfig
from models.lidar.bev import BevBackbone, BevLayout, read_bev, to_bev
from models.lidar.bounded import BoundedConv3d
from models.lidar.neighbors import pack
from models.lidar.res16unet import ResidualBlock
from models.lidar.sparse import SubmanifoldConv3d, load_backend, sparse_tensor
from models.lidar.sparse_encoder import ConvNormReLU3d, EncoderLayout, SparseEncoder
from models.lidar.voxelnet import STRIDE, VoxelNet, VoxelNetConfig
from tests.models.lidar.test_sparse import assert_same_gradients, needs_spconv
from tests.reference import dense_conv

SIZE = (6, 4, 7)


def boxed(counts: tuple[int, ...], size: tuple[int, int, int] = SIZE, channels: int = 3, seed: int = 0):
    """Voxels of a box with corner 0, in shuffled order."""
    g = torch.Generator().manual_seed(seed)
    parts = []
    for sample, count in enumerate(counts):
        cells = torch.randperm(size[0] * size[1] * size[2], generator=g)[:count]
        xyz = torch.stack([cells // (size[1] * size[2]), cells // size[2] % size[1], cells % size[2]], 1)
        parts.append(torch.cat([torch.full((count, 1), sample), xyz], 1))
    coords = torch.cat(parts)
    coords = coords[torch.randperm(len(coords), generator=g)].int()
    return coords, torch.randn(len(coords), channels, generator=g, dtype=torch.float64), len(counts)


# ---- bounded convolutions


@pytest.mark.parametrize("counts", [(30, 0, 40), (1,), (6 * 4 * 7,)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
        ((3, 3, 3), (2, 2, 2), (1, 1, 0)),
        ((1, 1, 3), (1, 1, 2), (0, 0, 0)),
        ((2, 3, 1), (2, 1, 1), (0, 1, 0)),
    ],
)
def test_bounded_convolution_equals_dense(kernel, stride, padding, counts) -> None:
    coords, features, num = boxed(counts)
    features.requires_grad_()
    shape = {"stride": stride, "padding": padding}
    conv = BoundedConv3d(3, 4, SIZE, kernel_size=kernel, **shape).double()
    x = sparse_tensor(coords, features, num)[0]
    out = conv(x)
    cells, expected = dense_conv.bounded(x.coords, x.features, conv.weight, num, size=SIZE, kernel=kernel, **shape)
    assert torch.equal(out.coords.long(), cells)
    dense = nn.Conv3d(1, 1, kernel, **shape)
    assert conv.out_size == dense(torch.zeros(1, 1, *SIZE)).shape[2:]
    assert_same_gradients(out.features, expected, [features, conv.weight])


@needs_spconv
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((3, 3, 3), (2, 2, 2), (1, 1, 1)), ((3, 3, 3), (2, 2, 2), (1, 1, 0)), ((1, 1, 3), (1, 1, 2), (0, 0, 0))],
)
def test_bounded_convolution_equals_spconvs_own(kernel, stride, padding) -> None:
    """SECOND's strided layers in the library that its published weights come from: voxels and features."""
    load_backend("spconv", "cpu")  # imports spconv with its deprecation warnings put aside
    import spconv.pytorch as spconv

    coords, features, num = boxed((60, 0, 80), channels=8)
    x = sparse_tensor(coords, features.float(), num)[0]
    mine = BoundedConv3d(8, 5, SIZE, kernel_size=kernel, stride=stride, padding=padding)
    theirs = spconv.SparseConv3d(8, 5, kernel, stride, padding, bias=False)
    with torch.no_grad():
        weight = mine.weight.view(*reversed(kernel), 8, 5)
        theirs.weight.copy_(weight.permute(4, 2, 1, 0, 3))  # z, y, x -> spconv's x, y, z
        expected = theirs(spconv.SparseConvTensor(x.features, x.coords, list(SIZE), num))
        for backend in ("torch", "spconv"):
            mine.backend = backend  # type: ignore[assignment]
            out = mine(x)
            order = pack(expected.indices).argsort()
            assert torch.equal(out.coords, expected.indices[order])
            torch.testing.assert_close(out.features, expected.features[order], rtol=1e-4, atol=1e-5)


def test_a_box_too_small_for_the_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a box of \(4, 4, 2\) cells is too small"):
        BoundedConv3d(1, 1, (4, 4, 2), kernel_size=(1, 1, 3), padding=(0, 0, 0))


# ---- bird's-eye view


def test_map_holds_each_row_at_its_cell() -> None:
    coords, features, num = boxed((20, 0, 30))
    bev = to_bev(features, coords, num, SIZE)
    assert bev.shape == (3, 3 * 7, 4, 6)
    dense = torch.zeros(num, 3, *SIZE, dtype=torch.float64)
    for (b, x, y, z), row in zip(coords.tolist(), features, strict=True):
        dense[b, :, x, y, z] = row
    # The layout of SECOND: channels, then layers of z.
    expected = dense.permute(0, 1, 4, 3, 2).reshape(num, -1, 4, 6)
    assert torch.equal(bev, expected)


def test_reading_equals_grid_sample() -> None:
    g = torch.Generator().manual_seed(0)
    bev = torch.randn(2, 3, 5, 7, generator=g, dtype=torch.float64, requires_grad=True)
    xy = torch.rand(40, 2, generator=g, dtype=torch.float64) * 10 - 2  # some beyond each rim
    sample = torch.randint(0, 2, (40,), generator=g)
    scaled = 2 * xy / torch.tensor([6.0, 4.0]) - 1
    every = torch.stack([F.grid_sample(bev, scaled.expand(2, 1, 40, 2), "bilinear", "border", True)[i] for i in (0, 1)])
    expected = every[sample, :, 0, torch.arange(40)]
    assert_same_gradients(read_bev(bev, sample, xy), expected, [bev])
    assert torch.autograd.gradcheck(lambda m: read_bev(m, sample, xy), (bev,))


def test_2d_backbone_brings_all_blocks_to_one_stride() -> None:
    layout = BevLayout(
        convolutions=(1, 0, 1), strides=(2, 2, 2), channels=(4, 6, 8), up_channels=(3, 5, 7), out_stride=4
    )
    out = BevBackbone(2, layout, bn_momentum=0.01)(torch.randn(2, 2, 16, 24))
    assert out.shape == (2, layout.num_features, 4, 6)
    assert layout.total_stride == 8


@pytest.mark.parametrize("shape", [(0, 2, 8, 8), (1, 2, 1, 1)])
def test_2d_backbone_on_hardly_any_cell(shape: tuple[int, ...]) -> None:
    layout = BevLayout(convolutions=(1,), strides=(1,), channels=(4,), up_channels=(4,), out_stride=1)
    net = BevBackbone(2, layout, bn_momentum=0.5)
    out = net(torch.randn(shape))
    out.sum().backward()
    assert out.isfinite().all()
    assert not net.blocks[0][0].norm.running_mean.any()  # one cell has no statistics


# ---- networks

GRID = {"grid_min": (-16, -16, -10), "grid_max": (16, 16, 14)}


def build(**settings: object) -> VoxelNet:
    torch.manual_seed(0)
    defaults: dict[str, object] = {"preset": "second_tiny", "in_channels": 4, **GRID}
    return VoxelNetConfig(**(defaults | settings)).build()  # type: ignore[arg-type]


def cloud(counts: tuple[int, ...] = (150, 90)) -> tuple[Tensor, Tensor, int]:
    coords, features, num = boxed(counts, (32, 32, 24), channels=4)
    return coords + torch.tensor([0, -16, -16, -10], dtype=torch.int32), features.float(), num


@pytest.mark.parametrize(
    ("preset", "encoder", "bev", "features"),
    [
        # 0.712 M: the figure of OpenPCDet's VoxelBackBone8x with four input channels.
        ("voxelbackbone8x", 711_872, 0, 256),
        # With its 2D backbone: 5.29 of SECOND's 5.33 M, of which 0.04 M are its head.
        ("second", 711_872, 4_576_768, 512),
        ("centerpoint", 2_693_920, 4_576_768, 512),
    ],
)
def test_published_sizes(preset: str, encoder: int, bev: int, features: int) -> None:
    with torch.device("meta"):
        net = VoxelNetConfig(preset=preset, in_channels=4).build()  # type: ignore[arg-type]
    assert sum(p.numel() for p in net.encoder.parameters()) == encoder
    assert net.encoder.out_size == (128, 128, 2)
    assert sum(p.numel() for p in net.parameters()) - encoder == bev
    assert net.num_features == features


@pytest.mark.parametrize("residual", [False, True])
def test_encoder_equals_a_dense_one(residual: bool) -> None:
    """Every layer as a dense convolution on the grid, kept to the cells where the sparse one has voxels."""
    torch.manual_seed(0)
    size = (8, 8, 25)
    layout = EncoderLayout(channels=(2, 3, 4, 5), out=4, residual=residual)
    encoder = SparseEncoder(VoxelNetConfig(in_channels=3), layout, size).double().eval()
    g = torch.Generator().manual_seed(2)
    for m in encoder.modules():
        if isinstance(m, nn.BatchNorm1d):
            m.running_mean.copy_(0.1 * torch.randn(m.num_features, generator=g, dtype=torch.float64))
    coords, features, num = boxed((30, 40), (8, 8, 24))
    features.requires_grad_()
    x = sparse_tensor(coords, features, num)[0]
    out = encoder(x)
    grid = dense_conv._dense(x.coords, x.features, torch.zeros(3, dtype=torch.long), list(size), num)
    grid, mask = _dense_encoder(encoder, grid, grid.ne(0).any(1, keepdim=True).double())
    assert grid.shape[2:] == encoder.out_size == (1, 1, 1)
    c = out.coords.long()
    assert torch.equal(mask[:, 0].nonzero(), c)
    expected = grid.permute(0, 2, 3, 4, 1)[c[:, 0], c[:, 1], c[:, 2], c[:, 3]]
    assert_same_gradients(out.features, expected, [features, encoder.layers[0].conv.weight])


def _dense_encoder(encoder: SparseEncoder, grid: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    def norm(bn: nn.BatchNorm1d, t: Tensor) -> Tensor:
        return F.batch_norm(t, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)

    def same(conv: SubmanifoldConv3d, t: Tensor) -> Tensor:
        return F.conv3d(t, dense_conv.dense_weight(conv.weight, 3), padding=1)

    for layer in encoder.layers:
        if isinstance(layer, ResidualBlock):
            inner = mask * norm(layer.norm1, same(layer.conv1, grid)).relu()
            grid = mask * (norm(layer.norm2, same(layer.conv2, inner)) + grid).relu()
            continue
        assert isinstance(layer, ConvNormReLU3d)
        conv = layer.conv
        if isinstance(conv, BoundedConv3d):
            x, y, z = conv.window.kernel
            weight = conv.weight.view(z, y, x, *conv.weight.shape[1:]).permute(4, 3, 2, 1, 0)
            shape = {"stride": conv.window.stride, "padding": conv.window.padding}
            grid = F.conv3d(grid, weight, **shape)
            mask = (F.conv3d(mask, mask.new_ones(1, 1, *conv.window.kernel), **shape) > 0).double()
        else:
            grid = same(conv, grid)
        grid = mask * norm(layer.norm, grid).relu()
    return grid, mask


def test_voxels_read_the_map_at_their_place() -> None:
    net = build(preset="voxelbackbone8x").eval()
    coords, features, num = cloud()
    with torch.no_grad():
        out = net(coords, features, num)
        bev = net.bird_eye_view(coords, features, num)
    shifted = coords + torch.tensor([0, 16, 16, 10], dtype=torch.int32)
    assert bev.shape == (2, net.num_features, 4, 4)
    on_centre = ((shifted[:, 1] % STRIDE == 0) & (shifted[:, 2] % STRIDE == 0)).nonzero()[:, 0]
    assert len(on_centre) > 0
    for i in on_centre.tolist():
        b, x, y, _ = shifted[i].tolist()
        torch.testing.assert_close(out[i], bev[b, :, y // STRIDE, x // STRIDE])


def test_voxels_outside_do_not_enter_and_read_the_rim() -> None:
    net = build().eval()
    coords, features, num = cloud((80,))
    far = torch.tensor([[0, 500, -15, 0], [0, 3, 3, 100]], dtype=torch.int32)
    with torch.no_grad():
        alone = net(coords, features, num)
        out = net(torch.cat([coords, far]), torch.cat([features, torch.full((2, 4), 1e6)]), num)
        rim = net.bird_eye_view(coords, features, num)
    assert torch.equal(out[:80], alone)
    assert out.isfinite().all()
    torch.testing.assert_close(out[80], torch.lerp(rim[0, :, 0, -1], rim[0, :, 1, -1], 1 / STRIDE))


# ---- settings


Voxels = functools.partial(
    VoxelConfig,
    kind="cartesian",
    size=(0.1, 0.1, 0.2),
    features="xyz_intensity",
    range_min=(-51.2, -51.2, -5.0),
    range_max=(51.2, 51.2, 3.0),
)


def test_voxels_must_be_those_of_the_grid() -> None:
    config = VoxelNetConfig()
    config.check_voxels(Voxels())  # SLidR's, on nuScenes
    kitti = VoxelNetConfig(preset="second", grid_min=(0, -800, -30), grid_max=(1408, 800, 10))
    kitti.check_voxels(Voxels(size=(0.05, 0.05, 0.1), range_min=(0.0, -40.0, -3.0), range_max=(70.4, 40.0, 1.0)))
    for voxels, message in (
        (Voxels(kind="cylindrical"), r"bounded Cartesian grid, got data.voxel.kind='cylindrical'"),
        (Voxels(range_min=None, range_max=None), "range_min=None: set data.voxel.kind"),
        (Voxels(range_max=(51.25, 51.2, 3.0)), "no whole number of cells"),
        (Voxels(range_min=(-51.2, -51.2, -3.0)), r"set method.backbone.grid_min=\[-512, -512, -15\]"),
    ):
        with pytest.raises(ValueError, match=message):
            config.check_voxels(voxels)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("backend", "me", "backend: got 'me'"),
        ("grid_max", (508, 512, 15), "has 1020 x 1024 cells along x and y, expected multiples of 8"),
        ("grid_max", (512, -512, 15), "has 1024 x 0 cells"),
        ("grid_max", (512, 512, 10), "has 35 cells along z, expected 24, 40, 56"),
    ],
)
def test_refused_settings(name: str, value: object, message: str) -> None:
    config = VoxelNetConfig()
    object.__setattr__(config, name, value)
    with pytest.raises(ValueError, match=message):
        config.__post_init__()


# ---- levels


def test_levels_are_voxels_at_the_middle_of_the_cells_that_they_were_made_of() -> None:
    net = build(voxel_size_m=(0.1, 0.2, 0.5)).eval()
    coords, features, num = cloud((300, 0, 40))
    with torch.no_grad():
        found = net.levels(coords, features, num)
        torch.testing.assert_close(found.bev, net.bird_eye_view(coords, features, num))
    assert found.folded.shape == (3, net.encoder.num_features, 4, 4)
    # Of each level: the strided convolutions on the way to it, each (kernel, padding along x and y, padding along z).
    ways: list[list[tuple[int, int]]] = [[], [(1, 1)], [(1, 1)] * 2, [(1, 1)] * 2 + [(1, 0)]]
    shifted = coords + torch.tensor([0, 16, 16, 10], dtype=torch.int32)
    x = sparse_tensor(shifted, features, num)[0]
    with torch.no_grad():
        levels = net.encoder.levels(x)
    for level, way, points, width in zip(levels, ways, found.levels, net.encoder.level_features, strict=False):
        assert points.counts.tolist() == list(level.grid.voxels_per_sample)
        assert points.features.shape[1] == width
        expected = []
        for _, *cell in level.coords.tolist():
            middle = []
            for axis, (position, low, edge) in enumerate(zip(cell, net.grid_min, (0.1, 0.2, 0.5), strict=True)):
                first = last = position
                for padding in reversed(way):
                    first, last = 2 * first - padding[axis == 2], 2 * last - padding[axis == 2] + 2
                middle.append((low + (first + last) / 2 + 0.5) * edge)
            expected.append((*(round(place, 4) for place in middle), *level.features[len(expected)].tolist()))
        rows = torch.cat([points.points, points.features], dim=1).tolist()
        assert sorted(tuple(round(v, 4) for v in row[:3]) for row in rows) == sorted(row[:3] for row in expected)
        by_place = {(b, *row[:3]): row[3:] for b, row in zip(level.coords[:, 0].tolist(), expected, strict=True)}
        sample = torch.repeat_interleave(torch.arange(num), points.counts).tolist()
        for b, row in zip(sample, rows, strict=True):
            assert row[3:] == pytest.approx(by_place[(b, *(round(v, 4) for v in row[:3]))], rel=1e-4, abs=1e-6)


def test_the_map_is_read_in_metres_where_voxels_read_it() -> None:
    net = build(preset="voxelbackbone8x", voxel_size_m=(0.1, 0.2, 0.5)).eval()
    coords, features, num = cloud()
    with torch.no_grad():
        bev = net.levels(coords, features, num).bev
        places = (coords[:, 1:3] + 0.5) * torch.tensor([0.1, 0.2])
        torch.testing.assert_close(read_bev(bev, coords[:, 0], net.map_cells(places)), net(coords, features, num))
    low, high = net.limits_m
    assert low == pytest.approx((-1.6, -3.2, -5))
    assert high == pytest.approx((1.6, 3.2, 7))


def test_levels_need_the_size_of_a_cell() -> None:
    coords, features, num = cloud()
    with pytest.raises(ValueError, match="voxel_size_m: got None, expected the edges of a cell in metres"):
        build().levels(coords, features, num)


def test_levels_of_no_voxel() -> None:
    net = build(voxel_size_m=(0.1, 0.2, 0.5))
    found = net.levels(torch.zeros(0, 4, dtype=torch.int32), torch.zeros(0, 4), 2)
    assert [level.counts.tolist() for level in found.levels] == [[0, 0]] * 4
    assert found.bev.shape[0] == 2
