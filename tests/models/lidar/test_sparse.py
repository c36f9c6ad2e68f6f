"""Sparse operations against dense ones, and the promises of the sparse tensor."""

from __future__ import annotations

import importlib.util
import shutil

import pytest
import torch
from torch import Tensor

from models.lidar import backend_torch, sparse
from models.lidar.neighbors import COORD_LIMIT, kernel_offsets, pack, unpack
from models.lidar.sparse import (
    InverseConv3d,
    SparseTensor,
    StridedConv3d,
    SubmanifoldConv3d,
    load_backend,
    sparse_tensor,
)
from tests.reference import dense_conv

HAS_SPCONV = importlib.util.find_spec("spconv") is not None
needs_spconv = pytest.mark.skipif(not HAS_SPCONV, reason="spconv is not installed")
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")


@pytest.fixture(params=["torch", pytest.param("native", marks=needs_compiler)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What "auto" chooses."""
    name: str = request.param
    monkeypatch.setattr(
        sparse, "load_backend", lambda asked, device: load_backend(name if asked == "auto" else asked, device)
    )
    return name


on_every_backend = pytest.mark.usefixtures("backend")


def scene(counts: tuple[int, ...] = (60, 0, 35), channels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, int]:
    """Voxels about the origin (negative ones too) in shuffled order; the second sample is empty."""
    g = torch.Generator().manual_seed(seed)
    parts = []
    for sample, count in enumerate(counts):
        cells = torch.randperm(8 * 7 * 6, generator=g)[:count]
        xyz = torch.stack([cells // 42 - 5, cells // 6 % 7 - 3, cells % 6 - 4], 1)
        parts.append(torch.cat([torch.full((count, 1), sample), xyz], 1))
    coords = torch.cat(parts)
    coords = coords[torch.randperm(len(coords), generator=g)].int()
    return coords, torch.randn(len(coords), channels, generator=g, dtype=torch.float64), len(counts)


def as_tensor(coords: Tensor, features: Tensor, num_samples: int) -> SparseTensor:
    return sparse_tensor(coords, features, num_samples)[0]


def assert_same_gradients(out: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(out, expected)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=out.dtype)
    got = torch.autograd.grad(out, leaves, direction, retain_graph=True)
    for a, b in zip(got, torch.autograd.grad(expected, leaves, direction), strict=True):
        torch.testing.assert_close(a, b)
        assert b.abs().sum() > 0


SCENES = [(60, 0, 35), (1,), (2, 1)]


@on_every_backend
@pytest.mark.parametrize("counts", SCENES)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_submanifold_equals_dense(size: int, counts: tuple[int, ...]) -> None:
    coords, features, num = scene(counts)
    features.requires_grad_()
    conv = SubmanifoldConv3d(3, 4, size, bias=True).double()
    torch.nn.init.normal_(conv.bias)
    out = conv(as_tensor(coords, features, num))
    expected = dense_conv.submanifold(out.coords, _sorted(coords, features), conv.weight, size, num) + conv.bias
    assert_same_gradients(out.features, expected, [features, conv.weight, conv.bias])


@on_every_backend
@pytest.mark.parametrize("counts", SCENES)
@pytest.mark.parametrize("size", [2, 3])
def test_strided_equals_dense(size: int, counts: tuple[int, ...]) -> None:
    coords, features, num = scene(counts)
    features.requires_grad_()
    conv = StridedConv3d(3, 4, size).double()
    x = as_tensor(coords, features, num)
    out = conv(x)
    out_coords, expected = dense_conv.strided(x.coords, x.features, conv.weight, size, num)
    assert torch.equal(out.coords.long(), out_coords)
    assert out.stride == 2
    assert_same_gradients(out.features, expected, [features, conv.weight])


@on_every_backend
@pytest.mark.parametrize("counts", SCENES)
@pytest.mark.parametrize("size", [2, 3])
def test_inverse_equals_dense_transposed(size: int, counts: tuple[int, ...]) -> None:
    coords, features, num = scene(counts)
    down, up = StridedConv3d(3, 5, size).double(), InverseConv3d(5, 4, size).double()
    x = as_tensor(coords, features, num)
    coarse = down(x)
    values = coarse.features.detach().requires_grad_()
    out = up(coarse.with_features(values), x)
    assert out.grid is x.grid
    expected = dense_conv.transposed(coarse.coords, values, up.weight, size, x.coords, num)
    assert_same_gradients(out.features, expected, [values, up.weight])


@on_every_backend
def test_weight_order_is_x_fastest_and_reads_at_plus_offset() -> None:
    # An impulse at (1, 0, 0): the voxel at the origin sees it under offset (+1, 0, 0) = number 14 of 27.
    coords = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]])
    conv = SubmanifoldConv3d(1, 1).double()
    with torch.no_grad():
        conv.weight.copy_(torch.arange(27.0).view(27, 1, 1))
    out = conv(as_tensor(coords, torch.tensor([[0.0], [1.0]]).double(), 1))
    assert kernel_offsets(3)[14] == (1, 0, 0)
    assert out.features[:, 0].tolist() == [14.0, 13.0]
    assert kernel_offsets(2)[:3] == [(0, 0, 0), (1, 0, 0), (0, 1, 0)]


def test_floor_division_below_zero() -> None:
    coords = torch.tensor([[0, -1, -2, -3], [0, 0, 0, 0]])
    out = StridedConv3d(1, 1)(as_tensor(coords, torch.ones(2, 1), 1))
    assert out.coords.tolist() == [[0, -1, -1, -2], [0, 0, 0, 0]]


@pytest.mark.parametrize("kind", ["submanifold", "strided", "inverse"])
def test_gradcheck(kind: str, backend: str) -> None:
    coords, features, num = scene((7, 5), channels=2)
    x = as_tensor(coords, features, num)
    if kind == "submanifold":
        kernel_map = x.grid.submanifold_map(3)
    else:
        kernel_map = x.grid.coarser(2)[1]
        kernel_map = kernel_map.transposed if kind == "inverse" else kernel_map
    rows = torch.randn(kernel_map.num_in, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(kernel_map.counts), 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda r, w: load_backend(backend, "cpu").convolve(r, w, kernel_map), (rows, weight)
    )


@on_every_backend
@pytest.mark.parametrize("num_samples", [0, 2])
def test_empty_input(num_samples: int) -> None:
    features = torch.zeros(0, 3, requires_grad=True)
    x = as_tensor(torch.zeros(0, 4, dtype=torch.int32), features, num_samples)
    same, down, up = SubmanifoldConv3d(3, 4, bias=True), StridedConv3d(4, 5), InverseConv3d(5, 4)
    fine = same(x)
    out = up(down(fine), fine)
    assert out.features.shape == (0, 4)
    assert len(out.grid.voxels_per_sample) == num_samples
    out.features.sum().backward()
    assert same.weight.grad is not None
    assert not same.weight.grad.any()


@on_every_backend
def test_rows_follow_their_voxels() -> None:
    coords, features, num = scene()
    conv = SubmanifoldConv3d(3, 4).double()
    shuffle = torch.randperm(len(coords), generator=torch.Generator().manual_seed(3))
    outs = []
    for order in (torch.arange(len(coords)), shuffle):
        tensor, rows = sparse_tensor(coords[order], features[order], num)
        assert rows is not None
        outs.append(conv(tensor).features[rows])
        assert torch.equal(tensor.coords[rows], coords[order])
    assert torch.equal(outs[0][shuffle], outs[1])


def test_sorted_input_needs_no_reordering() -> None:
    coords, features, num = scene()
    tensor = as_tensor(coords, features, num)
    again, rows = sparse_tensor(tensor.coords, tensor.features, num)
    assert rows is None
    assert again.features is tensor.features


@on_every_backend
def test_samples_do_not_see_each_other() -> None:
    coords, features, _ = scene((40, 40))
    conv = SubmanifoldConv3d(3, 4).double()
    together = conv(as_tensor(coords, features, 2))
    for sample in (0, 1):
        mine = coords[:, 0] == sample
        alone = conv(as_tensor(coords[mine] * torch.tensor([0, 1, 1, 1]), features[mine], 1))
        assert torch.equal(alone.features, together.features[together.coords[:, 0] == sample])


@on_every_backend
def test_two_runs_are_bit_equal() -> None:
    coords, features, num = scene((300, 0, 200), channels=16)
    features = features.float().requires_grad_()
    conv = SubmanifoldConv3d(16, 16)

    def run() -> list[Tensor]:
        out = conv(as_tensor(coords, features, num)).features
        return [out, *torch.autograd.grad(out.square().sum(), [features, conv.weight])]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@on_every_backend
def test_float32_is_float32() -> None:
    # The torch back-end may route float32 products through oneDNN; reduced precision would be off by about 1e-2.
    coords, features, num = scene((300, 0, 200), channels=32)
    conv = SubmanifoldConv3d(32, 48)
    results = []
    for dtype in (torch.float64, torch.float32):
        leaf = features.to(dtype).requires_grad_()
        out = conv.to(dtype)(as_tensor(coords, leaf, num)).features
        grads = torch.autograd.grad(out.square().sum(), [leaf, conv.weight])
        results.append([t.double() for t in (out.detach(), *grads)])
    for exact, single in zip(*results, strict=True):
        assert (exact - single).abs().max() < 1e-5 * exact.abs().max()
    switch = getattr(torch.backends.mkldnn, "matmul", None)
    assert getattr(switch, "fp32_precision", "none") != "bf16"  # the permission is taken back


def test_products_have_few_lengths() -> None:
    lengths = [backend_torch._padded(n) for n in range(1, 5000)]
    assert all(0 <= p - n <= max(15, 0.25 * n) for n, p in enumerate(lengths, start=1))
    assert len(set(lengths)) < 40


def test_maps_are_shared_by_the_layers_of_a_stage() -> None:
    coords, features, num = scene()
    x = as_tensor(coords, features.float(), num)
    y = SubmanifoldConv3d(3, 3)(x)
    assert y.grid is x.grid
    assert y.grid.submanifold_map(3) is x.grid.submanifold_map(3)
    assert StridedConv3d(3, 3)(y).grid is StridedConv3d(3, 3)(x).grid


@on_every_backend
def test_scratch_of_inference_mode_can_be_used_in_training() -> None:
    coords, features, num = scene()
    conv = SubmanifoldConv3d(3, 4).double()
    with torch.inference_mode():
        frozen = conv(as_tensor(coords, features, num)).features.clone()
    out = conv(as_tensor(coords, features.requires_grad_(), num)).features
    out.sum().backward()
    assert torch.equal(out, frozen)


@on_every_backend
def test_autocast_computes_in_bf16_and_trains_float32_weights() -> None:
    coords, features, num = scene((200, 100), channels=16)
    conv = SubmanifoldConv3d(16, 16, bias=True)
    x = as_tensor(coords, features.float(), num)
    exact = conv(x).features
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(x).features
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)
    out.float().sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.dtype is torch.float32


def test_voxels_are_counted_by_sample() -> None:
    assert as_tensor(*scene((5, 0, 3))).grid.voxels_per_sample == (5, 0, 3)


def test_keys_keep_coordinates_and_order() -> None:
    g = torch.Generator().manual_seed(0)
    xyz = torch.randint(-COORD_LIMIT, COORD_LIMIT, (500, 3), generator=g)
    coords = torch.cat([torch.randint(0, 4096, (500, 1), generator=g), xyz], 1).int()
    keys = pack(coords)
    assert torch.equal(unpack(keys), coords)
    assert coords[keys.argsort()].tolist() == sorted(coords.tolist())


def test_neighbors_at_the_rim_of_the_range() -> None:
    edge = COORD_LIMIT - 1
    coords = torch.tensor([[0, 0, 0, edge], [0, 0, 1, -COORD_LIMIT], [1, -COORD_LIMIT, 0, 0]])
    assert as_tensor(coords, torch.ones(3, 1), 2).grid.submanifold_map(5).num_pairs == 0


@pytest.mark.parametrize(
    ("coords", "num_samples", "message"),
    [
        ([[0, 1, 2, 3], [0, 0, 0, 0], [0, 1, 2, 3]], 1, r"more than once, the first is .* \[0, 1, 2, 3\]"),
        ([[0, 0, 0, 0], [0, 0, 0, 0]], 1, "more than once"),
        ([[1, 0, 0, 0]], 1, "samples in coords run from 1 to 1"),
        ([[-1, 0, 0, 0]], 1, "samples in coords run from -1"),
        ([[0, 0, COORD_LIMIT, 0]], 1, "voxel coordinates run from 0 to"),
        ([[0, 0, 0, 0]], 5000, "num_samples is 5000"),
    ],
)
def test_refused_voxels(coords: list[list[int]], num_samples: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sparse_tensor(torch.tensor(coords), torch.ones(len(coords), 1), num_samples)


def test_refused_layers_and_features() -> None:
    with pytest.raises(ValueError, match="expected an odd number"):
        SubmanifoldConv3d(1, 1, 2)
    for layer in (StridedConv3d, InverseConv3d):
        with pytest.raises(ValueError, match="expected 2 or 3"):
            layer(1, 1, 4)
    coords, features, num = scene()
    x = as_tensor(coords, features, num)
    with pytest.raises(ValueError, match=r"float64 with 3 channels, expected torch.float32 with 3"):
        SubmanifoldConv3d(3, 4)(x)
    with pytest.raises(ValueError, match=r"with 3 channels, expected .* with 2"):
        SubmanifoldConv3d(2, 4).double()(x)
    other = as_tensor(coords, features, num)
    with pytest.raises(ValueError, match="was not made from this finer one"):
        InverseConv3d(3, 3).double()(StridedConv3d(3, 3).double()(other), x)
    with pytest.raises(ValueError, match="expected 'auto' or one of"):
        load_backend("cudnn", "cpu")


@needs_spconv
@pytest.mark.parametrize("counts", [(200, 0, 150), (1,), (0,)])
def test_spconv_forward_equals_torch(counts: tuple[int, ...]) -> None:
    coords, features, num = scene(counts, channels=8)
    x = as_tensor(coords, features.float(), num)
    same, down, up = SubmanifoldConv3d(8, 8, bias=True), StridedConv3d(8, 16), InverseConv3d(16, 4)
    results = []
    for backend in ("torch", "spconv"):
        for layer in (same, down, up):
            layer.backend = backend
        with torch.no_grad():
            results.append(up(down(same(x)), x).features)
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


@needs_spconv
def test_spconv_layers_of_its_own_equal_torch() -> None:
    """Against spconv's own modules and neighbour search, not only its arithmetic on our maps."""
    load_backend("spconv", "cpu")  # imports spconv with its deprecation warnings put aside
    import spconv.pytorch as spconv

    coords, features, num = scene((200, 150), channels=8)
    x = as_tensor(coords, features.float(), num)
    same, down, up = SubmanifoldConv3d(8, 6), StridedConv3d(6, 5), InverseConv3d(5, 4)
    theirs = [
        spconv.SubMConv3d(8, 6, 3, padding=1, bias=False, indice_key="same"),
        spconv.SparseConv3d(6, 5, 2, stride=2, bias=False, indice_key="down"),
        spconv.SparseInverseConv3d(5, 4, 2, bias=False, indice_key="down"),
    ]
    with torch.no_grad():
        for mine, layer in zip((same, down, up), theirs, strict=True):
            size = mine.kernel_size
            w = mine.weight.view(size, size, size, mine.in_channels, mine.out_channels)
            layer.weight.copy_(w.permute(4, 2, 1, 0, 3))  # z, y, x -> spconv's x, y, z
        shifted = x.coords.clone()
        shifted[:, 1:] += 16  # a multiple of the total stride, to coordinates >= 0
        t = spconv.SparseConvTensor(x.features, shifted, [40, 40, 40], num)
        for layer in theirs:
            t = layer(t)
        expected = sparse_tensor(t.indices - torch.tensor([0, 16, 16, 16]), t.features, num)[0]
        out = up(down(same(x)), x)
    assert torch.equal(out.coords, expected.coords)
    torch.testing.assert_close(out.features, expected.features, rtol=1e-4, atol=1e-5)


@needs_spconv
def test_spconv_refuses_cpu_gradients() -> None:
    coords, features, num = scene(channels=3)
    with pytest.raises(RuntimeError, match="no backward pass: use backend='torch'"):
        SubmanifoldConv3d(3, 4, backend="spconv")(as_tensor(coords, features.float(), num))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("backend", ["torch", "spconv", "triton"])
def test_cuda_equals_cpu(backend: str, autocast: bool) -> None:
    if backend == "spconv" and not load_backend("spconv", "cuda").available(torch.device("cuda")):
        pytest.skip("spconv's CUDA build is not installed")
    if backend == "triton":
        pytest.importorskip("spconv_triton", reason="spconv-triton is not installed")
    coords, features, num = scene((300, 0, 200), channels=16)
    layers = torch.nn.ModuleList([SubmanifoldConv3d(16, 16), StridedConv3d(16, 32), InverseConv3d(32, 8)])
    results = []
    for device, name in (("cpu", "torch"), ("cuda", backend)):
        layers.to(device)
        for layer in layers:
            layer.backend = name
        leaf = features.float().to(device).requires_grad_()
        x = as_tensor(coords.to(device), leaf, num)
        with torch.autocast(device, torch.bfloat16, enabled=autocast and device == "cuda"):
            out = layers[2](layers[1](layers[0](x)), x).features
        assert out.dtype is (torch.bfloat16 if autocast and device == "cuda" else torch.float32)
        grads = torch.autograd.grad(out.float().square().sum(), [leaf, *layers.parameters()])
        results.append([t.float().cpu() for t in (out.detach(), *grads)])
    for a, b in zip(*results, strict=True):
        if autocast:
            assert (a - b).norm() < 0.03 * a.norm()
        else:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def _sorted(coords: Tensor, features: Tensor) -> Tensor:
    return features[pack(coords).argsort()]
