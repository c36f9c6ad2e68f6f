"""Maps by merging: the lists that searching gives, in content and order, whatever the voxels and the threads."""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.lidar import neighbors
from models.lidar.native import maps
from models.lidar.native.library import SOURCE
from models.lidar.neighbors import COORD_LIMIT, MAX_SIZE, KernelMap, Window, pack

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")


def random_voxels(counts: tuple[int, ...], span: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Keys of voxels about the origin, a sample for each count."""
    g = torch.Generator().manual_seed(seed)
    parts = []
    for sample, count in enumerate(counts):
        xyz = torch.stack([torch.randint(-n, n, (count,), generator=g) for n in span], 1)
        parts.append(torch.cat([torch.full((count, 1), sample), xyz], 1))
    return torch.unique(pack(torch.cat(parts)))


def street_like(seed: int = 0) -> Tensor:
    """Two sweeps: ground in rings that thin out, walls, poles; more voxels than a piece of the work has."""
    g = torch.Generator().manual_seed(seed)
    parts = []
    for sample in range(2):
        angle, ring = 6.2832 * torch.rand(9000, generator=g), 1.15 ** (1 + 30 * torch.rand(9000, generator=g)).floor()
        ground = torch.stack([ring * angle.cos(), ring * angle.sin(), 0.1 * torch.randn(9000, generator=g)], 1)
        wall = torch.stack([60 * torch.rand(3000, generator=g) - 30, torch.full((3000,), 9.5), torch.zeros(3000)], 1)
        wall[:, 2] = 4 * torch.rand(3000, generator=g)
        cells = (torch.cat([ground, wall]) / 0.3).floor().long()
        parts.append(torch.cat([torch.full((len(cells), 1), sample), cells], 1))
    return torch.unique(pack(torch.cat(parts)))


def rim() -> Tensor:
    """The corners of the range, and neighbours of them inside it."""
    edge = COORD_LIMIT - 1
    cells = torch.cartesian_prod(*[torch.tensor([-COORD_LIMIT, 1 - COORD_LIMIT, 0, edge - 1, edge])] * 3)
    return torch.unique(pack(torch.cat([torch.cat([torch.full((len(cells), 1), s), cells], 1) for s in (0, 4095)])))


SCENES = {
    "random": random_voxels((300, 0, 250), (8, 7, 6)),
    "dense": random_voxels((4000,), (6, 6, 6)),
    "street": street_like(),
    "plane": random_voxels((9000,), (1, 200, 40)),  # one piece of work cannot be cut along x
    "empty": torch.empty(0, dtype=torch.int64),
    "one": pack(torch.tensor([[3, -1, -2, -3]])),
    "rim": rim(),
}


@pytest.fixture(params=SCENES)
def keys(request: pytest.FixtureRequest) -> Tensor:
    return SCENES[request.param]


@pytest.fixture(params=[1, 3], ids=["one_thread", "three_threads"])
def _threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "threads", lambda: request.param)
    monkeypatch.setattr(maps, "_CHUNK", 1000)


def assert_same(found: KernelMap, expected: KernelMap) -> None:
    assert torch.equal(found.in_rows, expected.in_rows)
    assert torch.equal(found.out_rows, expected.out_rows)
    assert found.counts == expected.counts
    assert (found.num_in, found.num_out, found.center) == (expected.num_in, expected.num_out, expected.center)
    assert found.in_rows.dtype is found.out_rows.dtype is torch.int32


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("size", [1, 3, 5])
def test_submanifold_maps_by_merging_are_those_by_searching(keys: Tensor, size: int) -> None:
    assert maps.usable(keys)
    assert_same(neighbors.submanifold_map(keys, size), neighbors.submanifold_map_by_torch(keys, size))


@pytest.mark.usefixtures("_threads")
def test_the_largest_kernel() -> None:
    keys = SCENES["random"]
    assert_same(neighbors.submanifold_map(keys, MAX_SIZE), neighbors.submanifold_map_by_torch(keys, MAX_SIZE))


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("size", [2, 3])
def test_strided_maps_by_merging_are_those_by_searching(keys: Tensor, size: int) -> None:
    (found_keys, found), (expected_keys, expected) = (
        make(keys, size) for make in (neighbors.strided_map, neighbors.strided_map_by_torch)
    )
    assert torch.equal(found_keys, expected_keys)
    assert_same(found, expected)


WINDOWS = {
    "second": Window(kernel=(3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1), cells=(4, 4, 3)),
    "no padding along z": Window(kernel=(3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 0), cells=(50, 100, 2)),
    "along z alone": Window(kernel=(1, 1, 3), stride=(1, 1, 2), padding=(0, 0, 0), cells=(8, 7, 2)),
    "stride 1": Window(kernel=(3, 2, 3), stride=(1, 1, 1), padding=(1, 0, 1), cells=(30, 30, 5)),
    "stride above the kernel": Window(kernel=(2, 1, 2), stride=(3, 2, 5), padding=(0, 0, 1), cells=(9, 9, 2)),
    "wide": Window(kernel=(5, 4, 7), stride=(2, 3, 2), padding=(4, 0, 3), cells=(20, 20, 20)),
}


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS.keys())
def test_bounded_maps_by_merging_are_those_by_searching(keys: Tensor, window: Window) -> None:
    (found_keys, found), (expected_keys, expected) = (
        make(keys, window) for make in (neighbors.bounded_map, neighbors.bounded_map_by_torch)
    )
    assert torch.equal(found_keys, expected_keys)
    assert_same(found, expected)


def test_too_large_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 128 offsets along x and y"):
        maps.strided_lists(SCENES["one"], (12, 12, 1), (1, 1, 1), (0, 0, 0))


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    main = tmp_path / "main.cpp"
    main.write_text(
        textwrap.dedent(f"""
        #include "{SOURCE.with_name("maps.h")}"
        #include <random>
        #include <vector>
        int main() {{
            std::mt19937 random(0);
            for (int64_t num : {{0, 1, 2, 40, 3000}}) {{
                std::vector<int64_t> keys;
                for (int64_t i = 0; i < num; ++i)
                    keys.push_back(((((int64_t(i % 2) << 17 | (random() % 30 + 65520)) << 17 |
                                      (random() % 20 + 65530)) << 17) | (random() % 9 + 65535)));
                std::sort(keys.begin(), keys.end());
                keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
                num = int64_t(keys.size());
                for (int size : {{1, 3, 5}}) {{
                    const int64_t half = size * size * size / 2, pieces = (num + 99) / 100;
                    std::vector<int32_t> found(2 * half * num), in(2 * half * num), out(2 * half * num);
                    std::vector<int64_t> counts(half * pieces), starts(2 * half + 1);
                    for (int64_t k = 0; k < 2 * half + 1; ++k) starts[k] = (k - (k > half)) * num;
                    tandem_find_neighbours(keys.data(), num, size, 100, found.data(), counts.data(), 3);
                    tandem_list_neighbours(num, size, 100, found.data(), counts.data(), starts.data(), in.data(),
                                           out.data(), 3);
                }}
                for (int kernel : {{1, 2, 3, 5}}) {{
                    const tandem::Strided s = {{
                        {{kernel, kernel, kernel}}, {{2, 2, 2}}, {{1, 1, 1}}, {{0, -9, -9}}, {{9, 9, 9}}}};
                    const int64_t pieces = num / 100 + 1;
                    std::vector<tandem::Found> found(pieces);
                    std::vector<int64_t> counts(s.offsets());
                    const int64_t cells =
                        tandem_find_strided(keys.data(), num, &s, pieces, found.data(), counts.data(), 3);
                    int64_t pairs = 0;
                    for (int64_t count : counts) pairs += count;
                    std::vector<int64_t> out_keys(cells);
                    std::vector<int32_t> in(pairs), out(pairs);
                    tandem_list_strided(found.data(), pieces, s.offsets(), out_keys.data(), in.data(), out.data(), 3);
                }}
            }}
            return 0;
        }}
        """)
    )
    program = tmp_path / "main"
    flags = ["-std=c++17", "-O0", "-g", "-march=native", "-fsanitize=address,undefined", "-pthread"]
    subprocess.run(["c++", *flags, str(main), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
