"""The back-end on spconv-triton: its tables against a slow reading of them, its kernels in Triton's interpreter.

The interpreter needs `pip install spconv-triton==1.0.0 triton`; the kernels on a GPU are in `test_sparse.py`, `-m gpu`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from models.lidar import backend_spconv, backend_torch, sparse
from models.lidar.neighbors import KernelMap, Window
from models.lidar.sparse import load_backend, sparse_tensor
from tests.models.lidar.test_sparse import needs_spconv, scene

HAS_PACKAGE = all(importlib.util.find_spec(name) is not None for name in ("spconv_triton", "triton"))
BACKEND = "models.lidar.backend_triton"
MAPS = ("1", "3", "5", "2 stride 2", "2 stride 2 back", "3 stride 2", "box")


def map_of(kind: str, counts: tuple[int, ...] = (12, 0, 9)) -> KernelMap:
    coords, features, num = scene(counts)
    grid = sparse_tensor(coords, features, num)[0].grid
    if kind == "box":
        return grid.coarser(Window(kernel=(3, 1, 2), stride=(1, 1, 2), padding=(1, 0, 0), cells=(9, 9, 9)))[1]
    if "stride" in kind:
        kernel_map = grid.coarser(int(kind[0]))[1]
        return kernel_map.transposed if kind.endswith("back") else kernel_map
    return grid.submanifold_map(int(kind))


def gather(rows: Tensor, weight: Tensor, table: Tensor, masks: list[Tensor], order: list[Tensor]) -> Tensor:
    """[K, M] table of partners, weight [K, C_in, C_out], row by row; offsets that a mask lacks are skipped."""
    out = rows.new_zeros(table.shape[1], weight.shape[2])
    for place in range(table.shape[1]):
        row = int(order[0][place]) if order else place
        for k, partner in enumerate(table[:, row].tolist()):
            if (not masks or int(masks[0][place]) >> k & 1) and partner >= 0:
                out[row] += rows[partner] @ weight[k]
    return out


def implicit_gemm(
    features: Tensor, filters: Tensor, pairs: Tensor, masks: Any, order: Any, num: int, *_: Any
) -> tuple[Tensor, Tensor, int]:
    """What `spconv_triton.pytorch.ops.implicit_gemm` is documented to compute; filters are [C_out, K, C_in]."""
    assert pairs.shape == (filters.shape[1], num)
    return gather(features, filters.permute(1, 2, 0), pairs, masks, order), torch.empty(0), -1


def implicit_gemm_backward(
    features: Tensor,
    filters: Tensor,
    grad: Tensor,
    pairs: Tensor,
    back: Tensor,
    _masks: Any,
    back_masks: Any,
    _order: Any,
    back_order: Any,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """The same of its gradients."""
    of_features = gather(grad, filters.permute(1, 0, 2), back, back_masks, back_order)
    of_filters = torch.zeros_like(filters)
    for k, row in (pairs >= 0).nonzero().tolist():
        of_filters[:, k] += torch.outer(grad[row], features[int(pairs[k, row])])
    return of_features, of_filters


@pytest.fixture(scope="module")
def module() -> Iterator[ModuleType]:
    """The back-end, imported on stand-ins where the package is not installed, and forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        if not HAS_PACKAGE:
            package, pytorch, ops = (ModuleType(f"spconv_triton{end}") for end in ("", ".pytorch", ".pytorch.ops"))
            pytorch.ops = ops  # type: ignore[attr-defined]
            for each in (package, pytorch, ops):
                patch.setitem(sys.modules, each.__name__, each)
        elif not torch.cuda.is_available():
            patch.setenv("TRITON_INTERPRET", "1")
        yield importlib.import_module(BACKEND)
        sys.modules.pop(BACKEND)


@pytest.fixture
def on_cpu(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The same, taking tensors of the CPU."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    return module


@pytest.fixture
def slow(on_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The same on the slow functions above in place of the package's."""
    for function in (implicit_gemm, implicit_gemm_backward):
        monkeypatch.setattr(on_cpu.ops, function.__name__, function, raising=False)
    return on_cpu


@pytest.fixture
def interpreted(on_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The same on the package's kernels in Triton's interpreter, each with its smallest tiles."""
    gemm = importlib.import_module("spconv_triton.pytorch._impl.gemm")
    # Tile sizes are chosen by timing on a GPU, and how far sums are split by its size.
    for kernel, tile in ((gemm._gather_gemm_kernel, "BLOCK_M"), (gemm._dweight_masked_kernel, "BLOCK_P")):
        monkeypatch.setattr(kernel, "configs", [min(kernel.configs, key=lambda c, tile=tile: c.kwargs[tile])])
    monkeypatch.setattr(gemm, "_multiprocessor_count", lambda device: 1)
    return on_cpu


def results(backend: Any, kernel_map: KernelMap, dtype: torch.dtype) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    features = torch.randn(kernel_map.num_in, 5, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(len(kernel_map.counts), 5, 6, generator=g).to(dtype).requires_grad_()
    out = backend.convolve(features, weight, kernel_map)
    direction = torch.randn(out.shape, generator=g).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, [features, weight], direction)]


def compare(backend: Any, kernel_map: KernelMap, dtype: torch.dtype, tolerance: float) -> None:
    for found, expected in zip(
        results(backend, kernel_map, dtype), results(backend_torch, kernel_map, dtype), strict=True
    ):
        assert found.dtype is expected.dtype
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", MAPS)
def test_tables_give_the_convolution_and_its_gradients(kind: str, slow: ModuleType) -> None:
    compare(slow, map_of(kind), torch.float32, 1e-4)


@pytest.mark.parametrize("counts", [(0,), (1,)])
@pytest.mark.parametrize("kind", ["3", "2 stride 2", "2 stride 2 back"])
def test_few_voxels(kind: str, counts: tuple[int, ...], slow: ModuleType) -> None:
    compare(slow, map_of(kind, counts), torch.float32, 1e-4)


def test_masks_say_which_offsets_a_row_has(slow: ModuleType) -> None:
    kernel_map = map_of("3")
    outputs, inputs = slow._sides(kernel_map)
    assert slow._sides(kernel_map)[0] is outputs  # made once for all layers of a stage
    for side in (outputs, inputs):
        (masks,), (order,) = side.masks, side.order
        assert (masks[1:] >= masks[:-1]).all()
        assert order.sort().values.tolist() == list(range(kernel_map.num_out))
        for mask, row in zip(masks.tolist(), order.tolist(), strict=True):
            assert mask == sum(1 << k for k in range(27) if side.partners[k, row] >= 0)
    assert outputs.partners[13].tolist() == list(range(kernel_map.num_out))
    assert slow._sides(map_of("5"))[0].masks == []  # 125 offsets do not fit


def test_refused_types_and_devices(slow: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_map = map_of("1")
    rows, weight = torch.zeros(kernel_map.num_in, 2).double(), torch.zeros(1, 2, 2).double()
    with pytest.raises(ValueError, match="float64, backend='triton' expects one of"):
        slow.convolve(rows, weight, kernel_map)
    monkeypatch.setattr(torch.Tensor, "is_cuda", False)
    with pytest.raises(ValueError, match="features are on cpu, backend='triton' is for GPUs"):
        slow.convolve(rows.float(), weight.float(), kernel_map)


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [("cpu", (9, 0), False), ("cuda", (7, 5), False), ("cuda", (8, 0), True), ("cuda", (9, 4), True)],
)
def test_who_gets_it_by_auto(
    device: str, capability: tuple[int, int], expected: bool, slow: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert slow.available(torch.device(device)) is expected


def test_auto_takes_it_on_cuda_where_spconv_is_missing(slow: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow, "available", lambda device: device.type == "cuda")
    monkeypatch.setitem(sys.modules, "models.lidar.backend_spconv", None)  # as if spconv could not be imported
    monkeypatch.setattr(sparse, "load_backend", load_backend.__wrapped__)  # without what was found before
    assert sparse.load_backend("auto", "cuda") is slow
    assert sparse.load_backend("auto", "cpu") is not slow


def test_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, BACKEND, raising=False)
    for name in ("spconv_triton", "spconv_triton.pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ImportError, match=r"backend is 'triton'.*spconv_triton.*install tandem-pretrain with \[triton\]"
    ):
        load_backend.__wrapped__("triton", "cpu")


@needs_spconv
def test_spconv_computes_outside_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its function would cast to float16 under autocast to bf16, whose range is larger.
    seen = []

    def apply(features: Tensor, filters: Tensor, *rest: Any) -> Tensor:
        seen.append((features.dtype, torch.is_autocast_enabled("cpu")))
        return features.new_zeros(rest[2], filters.shape[0])

    monkeypatch.setattr(backend_spconv.SparseConvFunction, "apply", apply)
    kernel_map = map_of("3")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        rows, weight = torch.zeros(kernel_map.num_in, 2).bfloat16(), torch.zeros(27, 2, 3).bfloat16()
        out = backend_spconv.convolve(rows, weight, kernel_map)
    assert seen == [(torch.float32, False)]
    assert out.dtype is torch.bfloat16


@pytest.mark.skipif(not HAS_PACKAGE, reason="spconv-triton and triton are not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU: -m gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # not bf16, which the interpreter cannot compute
@pytest.mark.parametrize("kind", [m for m in MAPS if m != "5"])
def test_kernels_in_the_interpreter_equal_torch(kind: str, dtype: torch.dtype, interpreted: ModuleType) -> None:
    compare(interpreted, map_of(kind), dtype, 1e-4 if dtype is torch.float32 else 2e-2)
