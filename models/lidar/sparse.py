"""Sparse tensors and the few operations on them that 3D networks need.

A `SparseTensor` is a list of occupied voxels with one feature row each. Rows are kept sorted by (sample, x, y, z):
neighbour search is then a binary search, memory access is local and results do not depend on the caller's row order.
Coordinates are counted in cells of the tensor's own stride (a strided convolution halves them by floor division).

Neighbour maps belong to the `VoxelGrid`, are built on first use and shared by all layers that run on the same voxels.
The arithmetic is done by a back-end, a module `models/lidar/backend_<name>.py` with the two functions of `Backend`;
to add a faster one, write that file and put its name into `BackendName` and, if it should be chosen by itself, into
`_AUTO_ORDER`.

Letters: B samples, M voxels, C channels, K kernel offsets, P pairs.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor, nn

from common.ranges import one_of
from models.lidar.base import BackboneConfig
from models.lidar.neighbors import (
    MAX_SIZE,
    KernelMap,
    Window,
    bounded_map,
    check_range,
    pack,
    strided_map,
    submanifold_map,
    unpack,
)

BackendName = Literal["auto", "torch", "spconv", "triton", "native"]

_AUTO_ORDER = ("spconv", "triton", "native", "torch")
_ON_GPUS_ALONE = ("spconv", "triton")
_EXTRAS = {"spconv": "[cu126] or [cu120]", "triton": "[triton], beside a torch for CUDA or ROCm"}


@runtime_checkable
class Backend(Protocol):
    """What a file `backend_<name>.py` offers."""

    def available(self, device: torch.device) -> bool:
        """Whether it can run forward and backward on a device; "auto" asks this."""
        ...

    def convolve(
        self, features: Float[Tensor, "M_in C_in"], weight: Float[Tensor, "K C_in C_out"], kernel_map: KernelMap
    ) -> Float[Tensor, "M_out C_out"]:
        """out[o] = sum over the map's pairs (i, o, k) of features[i] @ weight[k], differentiable in both tensors.

        Where `kernel_map.center` is set, every voxel also meets itself with weight[center], unlisted. Both tensors
        have one floating type, which is also the result's. No bias. Anything that a back-end derives from the map
        may be kept in the map's `__dict__`.
        """
        ...


@functools.cache
def load_backend(name: str, device_type: str) -> Backend:
    """The back-end of a name; "auto": the first one that can train on the device.

    Raises:
        ValueError: no back-end of this name.
        ImportError: its library is not installed.
    """
    if name != "auto":
        if name not in _AUTO_ORDER:
            raise ValueError(f"backend is {name!r}, expected 'auto' or one of {_AUTO_ORDER}")
        try:
            return cast(Backend, importlib.import_module(f"models.lidar.backend_{name}"))
        except ImportError as error:
            if name not in _EXTRAS:
                raise
            raise ImportError(
                f"backend is {name!r}, whose library cannot be imported ({error}): install tandem-pretrain with "
                f"{_EXTRAS[name]}, or use backend='auto'"
            ) from error
    for candidate in _AUTO_ORDER:
        if candidate in _ON_GPUS_ALONE and device_type != "cuda":
            continue  # spconv takes half a second to import
        try:
            backend = cast(Backend, importlib.import_module(f"models.lidar.backend_{candidate}"))
        except ImportError:
            continue  # an optional library; the last one, torch, is always there
        if backend.available(torch.device(device_type)):
            return backend
    raise AssertionError("the torch back-end is always available")


@dataclass(frozen=True, kw_only=True, eq=False)
class VoxelGrid:
    """The voxels of a sparse tensor and the neighbour maps on them."""

    coords: Int32[Tensor, "M 4"]  # (sample, x, y, z) of each voxel in cells of `stride`, sorted, unique
    keys: Int64[Tensor, " M"]  # the same, packed
    num_samples: int  # B; samples without voxels count
    stride: int = 1  # edge length of a cell in cells of the finest grid
    same: dict[int, KernelMap] = field(default_factory=dict, repr=False)  # maps built so far, by kernel size
    coarse: dict[int | Window, tuple[VoxelGrid, KernelMap]] = field(default_factory=dict, repr=False)

    def submanifold_map(self, size: int) -> KernelMap:
        """Pairs of a stride-1 convolution on these voxels; built once."""
        if size not in self.same:
            self.same[size] = submanifold_map(self.keys, size)
        return self.same[size]

    def coarser(self, kernel: int | Window) -> tuple[VoxelGrid, KernelMap]:
        """Voxels and pairs of a strided convolution; built once. A coarse grid does not refer back to its finer one
        (a cycle would keep the memory of a batch until the garbage collector runs).

        `kernel`: size of one of stride 2; or a window, whose input box holds all voxels.
        """  # noqa: D205
        if kernel not in self.coarse:
            if isinstance(kernel, Window):
                keys, kernel_map = bounded_map(self.keys, kernel)
            else:
                keys, kernel_map = strided_map(self.keys, kernel)
            stride = self.stride * step_of(kernel)
            grid = VoxelGrid(coords=unpack(keys), keys=keys, num_samples=self.num_samples, stride=stride)
            self.coarse[kernel] = (grid, kernel_map)
        return self.coarse[kernel]

    @functools.cached_property
    def voxels_per_sample(self) -> tuple[int, ...]:
        """Voxels of each sample."""
        edges = torch.arange(self.num_samples + 1, device=self.coords.device, dtype=torch.int32)
        bounds = torch.searchsorted(self.coords[:, 0].contiguous(), edges)
        return tuple(bounds.diff().tolist())


def step_of(kernel: int | Window | None) -> int:
    """How many cells along x (y, if they differ and more) one of the next level's grid is; 1 without a next level."""
    return 1 if kernel is None else max(kernel.stride[:2]) if isinstance(kernel, Window) else 2


_known: ContextVar[tuple[VoxelGrid, ...]] = ContextVar("_known", default=())


@contextmanager
def known_grids(grids: tuple[VoxelGrid, ...]) -> Iterator[None]:
    """While inside, `sparse_tensor` takes one of these grids where its voxels are the tensor's."""
    token = _known.set(grids)
    try:
        yield
    finally:
        _known.reset(token)


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """Features on a set of voxels: one row a voxel, in the grid's order."""

    features: Float[Tensor, "M C"]
    grid: VoxelGrid

    @property
    def coords(self) -> Int32[Tensor, "M 4"]:
        """(sample, x, y, z) of each row, in cells of `stride`."""
        return self.grid.coords

    @property
    def stride(self) -> int:
        """Edge length of a cell in cells of the finest grid."""
        return self.grid.stride

    @property
    def num_samples(self) -> int:
        """B."""
        return self.grid.num_samples

    def with_features(self, features: Float[Tensor, "M C"]) -> SparseTensor:
        """Other features on the same voxels."""
        return SparseTensor(features, self.grid)


def sparse_tensor(
    coords: Int[Tensor, "M 4"], features: Float[Tensor, "M C"], num_samples: int
) -> tuple[SparseTensor, Int64[Tensor, " M"] | None]:
    """Sort voxels into a sparse tensor of stride 1.

    `coords` are (sample, x, y, z) of each voxel, in any order; x, y, z may be negative. Later samples may be without
    voxels.

    Returns:
        The tensor, and for each input row its row in the tensor (None: the rows already were in order). So
        `tensor.features[rows]` is in the caller's order.

    Raises:
        ValueError: a voxel comes twice, or a coordinate or sample is out of range.
    """
    check_range(coords, num_samples)
    keys = pack(coords)
    rows = None
    if not bool((keys[1:] > keys[:-1]).all()):
        keys, order = torch.sort(keys)
        repeated = (keys[1:] == keys[:-1]).nonzero()
        if len(repeated):
            voxel = unpack(keys[repeated[0]])[0].tolist()
            raise ValueError(
                f"{len(repeated)} voxels come more than once, the first is (sample, x, y, z) = {voxel}: "
                "expected unique coordinates, as `voxelize` makes them"
            )
        coords, features = coords[order], features[order]
        rows = torch.empty_like(order)
        rows[order] = torch.arange(len(order), device=order.device)
    for grid in _known.get():
        if grid.num_samples == num_samples and grid.keys.shape == keys.shape and torch.equal(grid.keys, keys):
            return SparseTensor(features, grid), rows
    return SparseTensor(features, VoxelGrid(coords=coords.int(), keys=keys, num_samples=num_samples)), rows


@dataclass(frozen=True, kw_only=True)
class SparseBackboneConfig(BackboneConfig):
    """Settings that the networks of sparse convolutions share.

    Attributes:
        backend: sparse convolution back-end; "auto": on CUDA spconv where it is installed, else triton (spconv-triton;
            also AMD) where that is; on the CPU native (kernels compiled on first use) where there is a C++ compiler;
            else torch. With "torch" torch normalises, too.
    """

    backend: BackendName = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, backend=BackendName)


class SparseConvolution(nn.Module):
    """Weight [K, C_in, C_out] (offsets in the order of `neighbors.kernel_offsets`: x fastest), optional bias.

    `num_offsets`: K, cells of the kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_offsets: int,
        *,
        bias: bool = False,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.backend: BackendName = backend
        self.weight = nn.Parameter(torch.empty(num_offsets, in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights of variance 2 / (K C_out), bias 0.

        Source: He et al. 2015, "Delving deep into rectifiers", eq. 14 (backward form, as the Minkowski networks).
        """
        nn.init.normal_(self.weight, std=(2.0 / (len(self.weight) * self.out_channels)) ** 0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        bias = self.bias is not None
        return f"{self.in_channels}, {self.out_channels}, num_offsets={len(self.weight)}, bias={bias}"

    def _convolve(self, features: Float[Tensor, "M_in C_in"], kernel_map: KernelMap) -> Float[Tensor, "M_out C_out"]:
        weight: Tensor = self.weight
        device_type = features.device.type
        if torch.is_autocast_enabled(device_type) and features.dtype is not torch.float64:
            dtype = torch.get_autocast_dtype(device_type)
            features, weight = features.to(dtype), weight.to(dtype)
        if features.shape[1] != self.in_channels or features.dtype is not weight.dtype:
            raise ValueError(
                f"features are {features.dtype} with {features.shape[1]} channels, "
                f"expected {weight.dtype} with {self.in_channels}"
            )
        out = load_backend(self.backend, device_type).convolve(features, weight, kernel_map)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _Submanifold(SparseConvolution):
    """Of stride 1, on its input's voxels. `kernel_size`: 1, 3, 5, ..., centred."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        bias: bool = False,
        backend: BackendName = "auto",
    ) -> None:
        if kernel_size not in range(1, MAX_SIZE + 1, 2):
            raise ValueError(f"kernel_size is {kernel_size}, expected an odd number from 1 to {MAX_SIZE}")
        super().__init__(in_channels, out_channels, kernel_size**3, bias=bias, backend=backend)
        self.kernel_size = kernel_size


class SubmanifoldConv3d(_Submanifold):
    """Convolution of stride 1 whose output voxels are its input voxels. `kernel_size`: 1, 3, 5, ..., centred.

    Source: Graham, Engelcke, van der Maaten, "3D semantic segmentation with submanifold sparse convolutional
    networks", CVPR 2018, section 3.
    """

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve."""
        return x.with_features(self._convolve(x.features, x.grid.submanifold_map(self.kernel_size)))


class SubmanifoldRows(_Submanifold):
    """The same from rows to rows of features, for layers outside of a 3D network.

    ZeRO-3 gathers the weights of such a layer by the tensors that it takes and gives, and does not see those within a
    `SparseTensor`; a 3D network is gathered as a whole.
    """

    def forward(self, features: Float[Tensor, "M C_in"], grid: VoxelGrid) -> Float[Tensor, "M C_out"]:
        """Convolve features of the grid's voxels, in its order."""
        return self._convolve(features, grid.submanifold_map(self.kernel_size))


class _StridedConvolution(SparseConvolution):
    """Between a grid and the one of twice its stride."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 2,
        *,
        bias: bool = False,
        backend: BackendName = "auto",
    ) -> None:
        if kernel_size not in (2, 3):
            raise ValueError(f"kernel_size is {kernel_size}, expected 2 or 3")
        super().__init__(in_channels, out_channels, kernel_size**3, bias=bias, backend=backend)
        self.kernel_size = kernel_size


class StridedConv3d(_StridedConvolution):
    """Convolution of stride 2. `kernel_size` 2: each output cell is made of the 8 cells inside it (offsets 0, 1);
    3: offsets -1, 0, 1 about the cell at twice its coordinates (padding 1 of a dense convolution, on an unbounded
    grid); it makes output voxels wherever it reaches an input voxel.
    """  # noqa: D205

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve to the coarser grid."""
        grid, kernel_map = x.grid.coarser(self.kernel_size)
        return SparseTensor(self._convolve(x.features, kernel_map), grid)


class InverseConv3d(_StridedConvolution):
    """Transposed convolution from a coarse grid back to the voxels that a `StridedConv3d` of the same kernel size
    came from: the same pairs and offset numbers, input and output swapped.
    """  # noqa: D205

    def forward(self, x: SparseTensor, finer: SparseTensor) -> SparseTensor:
        """Convolve to the finer grid.

        `finer` is any tensor on the voxels to go back to (in a U-Net the skip connection); its features are not read.

        Raises:
            ValueError: `x` does not lie on the grid that a strided convolution makes of `finer`'s.
        """
        grid, kernel_map = finer.grid.coarser(self.kernel_size)
        if grid is not x.grid:
            raise ValueError(
                f"the tensor of stride {x.stride} was not made from this finer one of stride {finer.stride} by a "
                f"StridedConv3d of kernel size {self.kernel_size}"
            )
        return finer.with_features(self._convolve(x.features, kernel_map.transposed))
