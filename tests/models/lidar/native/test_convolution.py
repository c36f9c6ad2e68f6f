"""The compiled sparse convolution against sums in double precision, in all builds of it."""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common import native
from models.lidar import backend_native, backend_torch, sparse
from models.lidar.native import convolution, library
from models.lidar.neighbors import KernelMap
from models.lidar.sparse import SubmanifoldConv3d, VoxelGrid, load_backend
from tests.models.lidar.test_sparse import as_tensor, scene

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")

RELATIVE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2.0**-8}
"""Greatest error beside the greatest number of a result; of bf16 half a unit in the last place of that number."""


def grid(counts: tuple[int, ...] = (150, 0, 90)) -> VoxelGrid:
    return as_tensor(*scene(counts)).grid


def maps(counts: tuple[int, ...] = (150, 0, 90)) -> dict[str, KernelMap]:
    """Every kind of map that the networks use."""
    voxels = grid(counts)
    return {
        "1": voxels.submanifold_map(1),
        "3": voxels.submanifold_map(3),
        "5": voxels.submanifold_map(5),
        "2 stride 2": voxels.coarser(2)[1],
        "3 stride 2": voxels.coarser(3)[1],
        "2 inverse": voxels.coarser(2)[1].transposed,
        "3 inverse": voxels.coarser(3)[1].transposed,
    }


def inputs(kernel_map: KernelMap, channels: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features, weight and gradient of the result."""
    g = torch.Generator().manual_seed(5)
    shapes = ((kernel_map.num_in, channels[0]), (len(kernel_map.counts), *channels), (kernel_map.num_out, channels[1]))
    features, weight, grad = (torch.randn(*shape, generator=g).to(dtype) for shape in shapes)
    return features, weight, grad


def by_the_pair(kernel_map: KernelMap, features: Tensor, weight: Tensor, grad: Tensor) -> list[Tensor]:
    """Result and both gradients in double precision, one offset after another."""
    features, weight, grad = features.double(), weight.double(), grad.double()
    out = torch.zeros(kernel_map.num_out, weight.shape[2], dtype=torch.float64)
    grad_features, grad_weight = torch.zeros_like(features), torch.zeros_like(weight)
    blocks = list(kernel_map.blocks)
    if kernel_map.center is not None:
        rows = torch.arange(kernel_map.num_out, dtype=torch.int32)
        blocks.append((kernel_map.center, rows, rows))
    for k, i, o in blocks:
        out.index_add_(0, o, features[i] @ weight[k])
        grad_features.index_add_(0, i, grad[o] @ weight[k].T)
        grad_weight[k] = features[i].T @ grad[o]
    return [out, grad_features, grad_weight]


def compiled(kernel_map: KernelMap, features: Tensor, weight: Tensor, grad: Tensor) -> list[Tensor]:
    leaves = [features.clone().requires_grad_(), weight.clone().requires_grad_()]
    out = backend_native.convolve(*leaves, kernel_map)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_exact(kernel_map: KernelMap, channels: tuple[int, int], dtype: torch.dtype) -> None:
    tensors = inputs(kernel_map, channels, dtype)
    for found, exact in zip(compiled(kernel_map, *tensors), by_the_pair(kernel_map, *tensors), strict=True):
        assert found.dtype is dtype
        assert found.shape == exact.shape
        error = (found.double() - exact).abs().max() if exact.numel() else torch.zeros(())
        assert error <= RELATIVE[dtype] * (exact.abs().max() if exact.numel() else 0)


SPAN = 4096  # kSmallestSpan of convolve_weight.h
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bf16": torch.bfloat16}
CHANNELS = [(1, 1), (3, 4), (16, 32), (48, 33), (70, 130), (130, 17)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", maps((1,)))
def test_every_kernel_is_exact(kind: str, dtype: str) -> None:
    for channels in CHANNELS:
        assert_exact(maps()[kind], channels, DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows_are_exact(dtype: str) -> None:
    """More than one tile, and more than one span of the gradient of the weight."""
    kernel_map = _wide().submanifold_map(3)
    assert kernel_map.num_in > 2 * SPAN
    assert_exact(kernel_map, (20, 24), DTYPES[dtype])


@functools.cache
def _wide() -> VoxelGrid:
    g = torch.Generator().manual_seed(2)
    cells = torch.randperm(40 * 40 * 10, generator=g)[:9000]
    coords = torch.stack([torch.zeros_like(cells), cells // 400, cells // 10 % 40, cells % 10], 1)
    return as_tensor(coords.int(), torch.ones(len(coords), 1), 1).grid


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counts", [(0,), (1,), (2, 1)], ids=str)
def test_hardly_any_voxels(counts: tuple[int, ...], dtype: str) -> None:
    for kernel_map in maps(counts).values():
        assert_exact(kernel_map, (5, 7), DTYPES[dtype])


def test_no_pairs() -> None:
    none = torch.zeros(0, dtype=torch.int32)
    kernel_map = KernelMap(in_rows=none, out_rows=none, counts=(0,) * 8, num_in=3, num_out=5)
    results = compiled(kernel_map, *inputs(kernel_map, (4, 6), torch.float32))
    assert [tuple(r.shape) for r in results] == [(5, 6), (3, 4), (8, 4, 6)]
    assert not any(r.any() for r in results)


def test_pairs_in_any_order_and_several_of_a_row() -> None:
    """Maps of the networks ascend in both rows, but nothing in `KernelMap` says that they must."""
    g = torch.Generator().manual_seed(0)
    counts = (50, 0, 70, 9)
    rows = [torch.randint(0, n, (sum(counts),), generator=g).int() for n in (30, 20)]
    kernel_map = KernelMap(in_rows=rows[0], out_rows=rows[1], counts=counts, num_in=30, num_out=20)
    tensors = inputs(kernel_map, (6, 5), torch.float64)
    out = torch.zeros(20, 5, dtype=torch.float64)
    expected = [tensors[0].clone().requires_grad_(), tensors[1].clone().requires_grad_()]
    offset = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    products = torch.einsum("pc,pcd->pd", expected[0][rows[0]], expected[1][offset])
    out = out.index_add(0, rows[1], products)
    exact = [out.detach(), *torch.autograd.grad(out, expected, tensors[2])]
    for found, reference in zip(compiled(kernel_map, *tensors), exact, strict=True):
        torch.testing.assert_close(found, reference)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_equal_to_the_bit_at_any_number_of_threads(dtype: str) -> None:
    small, wide = maps((2, 1)), _wide()
    for kernel_map in (small["3"], small["2 inverse"], wide.submanifold_map(3), wide.coarser(2)[1]):
        tensors = inputs(kernel_map, (20, 24), DTYPES[dtype])
        before = torch.get_num_threads()
        results = []
        try:
            for count in (1, 2, 3, 16):
                torch.set_num_threads(count)
                results.append(compiled(kernel_map, *tensors))
        finally:
            torch.set_num_threads(before)
        for others in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@pytest.mark.parametrize("kind", ["3", "2 stride 2", "2 inverse"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    kernel_map = maps((7, 5))[kind]
    features, weight, _ = inputs(kernel_map, (2, 3), torch.float64)
    leaves = (features.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda f, w: backend_native.convolve(f, w, kernel_map), leaves)


def test_only_the_gradients_that_are_needed_and_no_second_ones() -> None:
    kernel_map = maps()["3"]
    features, weight, _ = inputs(kernel_map, (3, 4), torch.float32)
    weight.requires_grad_()
    out = backend_native.convolve(features, weight, kernel_map)
    (grad,) = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_strided_tensors_are_read_right() -> None:
    kernel_map = maps()["3"]
    features, weight, grad = inputs(kernel_map, (6, 6), torch.float32)
    plain = compiled(kernel_map, features, weight, grad)
    turned = [features.T.contiguous().T, weight.transpose(1, 2).contiguous().transpose(1, 2), grad.T.contiguous().T]
    assert not any(t.is_contiguous() for t in turned)
    assert all(torch.equal(a, b) for a, b in zip(plain, compiled(kernel_map, *turned), strict=True))


def test_float16_runs_in_torch() -> None:
    kernel_map = maps()["3"]
    features, weight, _ = inputs(kernel_map, (3, 4), torch.float16)
    assert torch.equal(
        backend_native.convolve(features, weight, kernel_map), backend_torch.convolve(features, weight, kernel_map)
    )


def test_auto_takes_it_on_the_cpu() -> None:
    assert load_backend("auto", "cpu") is backend_native
    assert not backend_native.available(torch.device("cuda"))


def test_where_it_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself torch runs instead; who asks for it by name is told why not."""
    monkeypatch.setenv("CXX", "no_such_compiler")
    monkeypatch.setattr(backend_native, "kernels", lambda: None)
    assert sparse.load_backend.__wrapped__("auto", "cpu") is backend_torch
    conv = SubmanifoldConv3d(3, 4, backend="native").double()
    with pytest.raises(native.BuildError, match=r"no compiler found .*no_such_compiler"):
        conv(as_tensor(*scene()))


def test_on_a_gpu_by_name_is_refused() -> None:
    kernel_map = maps()["1"]
    features, weight, _ = inputs(kernel_map, (3, 4), torch.float32)
    with pytest.raises(ValueError, match="features are on meta, backend='native' is for the CPU"):
        backend_native.convolve(features.to("meta"), weight.to("meta"), kernel_map)


PROBE = Path(__file__).with_name("convolve_probe.cpp")
BUILDS = {
    "AVX2": ("-mno-avx512f",),
    "portable": ("-mno-avx2", "-mno-fma", "-mno-avx"),
    "tiles": ("-DTANDEM_TILES_EMULATED",),
}
CALLS = (convolution._convolve, convolution._weight_gradient, convolution._ascends)


@pytest.fixture(params=BUILDS)
def other_build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kernels as they are compiled for another processor, but for -O1: half the time."""
    if platform.machine() != "x86_64":
        pytest.skip("the flags are x86's")
    built = native.load(PROBE, flags=(*library.FLAGS, "-O1", *BUILDS[request.param]))
    monkeypatch.setattr(library, "kernels", lambda: built)
    for call in CALLS:
        call.cache_clear()
    yield request.param
    for call in CALLS:
        call.cache_clear()


@pytest.mark.slow
def test_other_builds_are_exact_and_equal_at_any_number_of_threads(other_build: str) -> None:
    for dtype in DTYPES.values():
        for kernel_map in maps().values():
            for channels in CHANNELS:
                assert_exact(kernel_map, channels, dtype)
        assert_exact(_wide().submanifold_map(3), (20, 24), dtype)
    tensors = inputs(_wide().submanifold_map(3), (20, 24), torch.bfloat16)
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(compiled(_wide().submanifold_map(3), *tensors))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="Intel's instructions")
def test_matrix_tiles_compile(tmp_path: Path) -> None:
    """For processors with AMX; whether the instructions are there, as no test machine runs them."""
    flags = (*library.FLAGS, "-O2", "-march=sapphirerapids", "-S", "-o", str(tmp_path / "out.s"))
    done = subprocess.run(["c++", *flags, str(PROBE)], capture_output=True, text=True)
    if "bad value" in done.stderr:
        pytest.skip("the compiler knows no Sapphire Rapids")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out.s").read_text()
    for instruction in ("tdpbf16ps", "tileloadd", "tilestored", "ldtilecfg", "sttilecfg"):
        assert instruction in text


DRIVER = """
#include "{probe}"
#include <cstdio>
#include <vector>

// A map of 8 offsets over rows in order, some of them without pairs, and one over whole rows.
int main() {{
    using namespace tandem;
    for (int type = 0; type < 3; ++type)
        for (int64_t rows : {{0, 1, 40, 700}})
            for (int64_t channels : {{1, 5, 70}})
                for (int64_t center : {{-1, 3}}) {{
                    const int64_t other = 7 + channels / 2;
                    std::vector<int64_t> starts{{0}};
                    std::vector<int32_t> in, out;
                    for (int k = 0; k < 8; ++k) {{
                        for (int64_t r = 0; k != center && k != 5 && r < rows; r += 1 + k)
                            in.push_back(int32_t(r)), out.push_back(int32_t(r));
                        starts.push_back(int64_t(in.size()));
                    }}
                    const size_t bytes = type == 0 ? 4 : type == 1 ? 8 : 2;
                    const auto numbers = [&](int64_t count) {{ return std::vector<char>(size_t(count) * bytes); }};
                    const auto features = numbers(rows * channels), weight = numbers(8 * channels * other);
                    auto result = numbers(rows * other), back = numbers(rows * channels);
                    auto grad = numbers(8 * channels * other);
                    if (!tandem_ascends(8, starts.data(), out.data())) return 1;
                    for (int threads : {{rows < 700 ? 1 : 3}}) {{
                        if (tandem_convolve(type, 8, starts.data(), in.data(), out.data(), center, features.data(),
                                            channels, weight.data(), 0, result.data(), rows, other, threads)) return 2;
                        if (tandem_convolve(type, 8, starts.data(), in.data(), out.data(), center, result.data(),
                                            other, weight.data(), 1, back.data(), rows, channels, threads)) return 3;
                        if (tandem_convolve_weight_gradient(type, 8, starts.data(), in.data(), out.data(), center,
                                                            features.data(), channels, result.data(), rows, other,
                                                            grad.data(), threads)) return 4;
                    }}
                }}
    return 0;
}}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizer", "flags"),
    [("address,undefined", "-O0"), ("address,undefined", "-O0 -DTANDEM_TILES_EMULATED"), ("thread", "-O1")],
    ids=["memory", "memory-tiles", "threads"],
)
def test_sanitizers_find_nothing(sanitizer: str, flags: str, tmp_path: Path) -> None:
    main, program = tmp_path / "main.cpp", tmp_path / "main"
    main.write_text(DRIVER.format(probe=PROBE))
    options = ["-g", "-march=native", f"-fsanitize={sanitizer}", *library.FLAGS, *flags.split()]
    subprocess.run(["c++", *options, str(main), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sys.platform != "linux" or not done.stderr
