"""BatchNorm + residual + ReLU in one native operation, against torch's operations one after another in double."""

from __future__ import annotations

import copy
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import native
from models.lidar import layers
from models.lidar.layers import norm_act
from models.lidar.native import normalization
from models.lidar.native.library import FLAGS
from models.lidar.res16unet import Res16UNetConfig
from models.lidar.sparse import SparseBackboneConfig
from models.lidar.spvcnn import SpvcnnConfig
from models.lidar.voxelnet import VoxelNetConfig

PROBE = Path(__file__).with_name("norm_probe.cpp")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")


def norm_of(channels: int, *, training: bool = True, momentum: float | None = 0.3) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(channels, momentum=momentum, eps=1e-3)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm.train(training)


def by_torch(norm: nn.Module, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    out: Tensor = norm(x)
    out = out if residual is None else out + residual
    return F.relu(out) if relu else out


def assert_near(got: Tensor | None, expected: Tensor | None, tolerance: float) -> None:
    assert got is not None
    assert expected is not None
    scale = max(float(expected.detach().abs().max()), 1.0)
    assert float((got.detach().double() - expected.detach().double()).abs().max()) <= tolerance * scale


def compare(
    rows: int, channels: int, dtype: torch.dtype, *, added: bool, relu: bool, training: bool, mean: float = 5.0
) -> None:
    """Result, all gradients and running statistics against the same in double."""
    torch.manual_seed(rows + channels)
    norm = norm_of(channels, training=training)
    exact = copy.deepcopy(norm).double()
    x, residual, grad = (torch.randn(rows, channels) for _ in range(3))
    x, residual, grad = (x * 3 + mean).to(dtype), residual.to(dtype), grad.to(dtype)
    inputs = [t.clone().requires_grad_() for t in (x, residual)]
    exact_inputs = [t.double().requires_grad_() for t in (x, residual)]
    assert layers._native(norm, inputs[0], inputs[1] if added else None)

    out = norm_act(norm, inputs[0], residual=inputs[1] if added else None, relu=relu)
    expected = by_torch(exact, exact_inputs[0], exact_inputs[1] if added else None, relu)
    # What lies within rounding of the ReLU's edge may fall on either side of it: no gradient comes from there.
    grad[(expected.detach().abs() < 1e-4 * (1 + abs(mean))) & relu] = 0
    out.backward(grad)
    expected.backward(grad.double())

    # Two rows may lie so close that the rounding of their mean counts.
    tolerance = TOLERANCE[dtype] * max(1.0, abs(mean) / 50, 50.0 if rows == 2 else 0.0)
    assert out.dtype is dtype
    assert_near(out, expected, tolerance)
    for got, wanted in zip(inputs[: 1 + added], exact_inputs, strict=False):
        assert got.grad is not None
        assert got.grad.dtype is dtype
        assert_near(got.grad, wanted.grad, tolerance)
    assert_near(norm.weight.grad, exact.weight.grad, TOLERANCE[torch.float32] * rows**0.5)
    assert_near(norm.bias.grad, exact.bias.grad, TOLERANCE[torch.float32] * rows**0.5)
    assert_near(norm.running_mean, exact.running_mean, 1e-6)
    assert_near(norm.running_var, exact.running_var, 1e-6 * max(1.0, abs(mean) / 50))
    assert norm.num_batches_tracked == exact.num_batches_tracked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("added", [True, False], ids=["residual", "alone"])
def test_result_gradients_and_statistics(added: bool, relu: bool, training: bool, dtype: torch.dtype) -> None:
    for channels in (1, 3, 16, 20, 96, 196):  # less than a vector, whole vectors, and a last one that overlaps
        for rows in (2, 17, 1000):
            compare(rows, channels, dtype, added=added, relu=relu, training=training)


@pytest.mark.parametrize("mean", [-1e4, 1e3])
def test_a_large_mean_cancels_nothing(mean: float) -> None:
    compare(3000, 32, torch.float32, added=False, relu=False, training=True, mean=mean)


def results(norm: nn.BatchNorm1d, x: Tensor, residual: Tensor, grad: Tensor) -> list[Tensor]:
    norm, x, residual = copy.deepcopy(norm), x.clone().requires_grad_(), residual.clone().requires_grad_()
    out = norm_act(norm, x, residual=residual)
    out.backward(grad)
    found = [out.detach(), x.grad, residual.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
    assert all(t is not None for t in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equal_to_the_last_bit_at_any_number_of_threads(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = norm_of(48)
    x, residual, grad = (torch.randn(5000, 48).to(dtype) for _ in range(3))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 7, 2):
            torch.set_num_threads(threads)
            found.append(results(norm, x, residual, grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
def test_running_statistics_move_as_torchs(momentum: float | None) -> None:
    torch.manual_seed(1)
    norm = norm_of(24, momentum=momentum)
    reference = copy.deepcopy(norm)
    for rows in (2, 30, 999):
        x = torch.randn(rows, 24) * 2 + 1
        norm_act(norm, x)
        reference(x)
        torch.testing.assert_close(norm.running_mean, reference.running_mean, rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(norm.running_var, reference.running_var, rtol=2e-6, atol=2e-6)
        assert norm.num_batches_tracked == reference.num_batches_tracked


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_norms_without_parameters_or_running_statistics(options: dict[str, bool], training: bool) -> None:
    norm = nn.BatchNorm1d(20, **options).train(training)
    reference = copy.deepcopy(norm)
    x = torch.randn(50, 20)
    assert layers._native(norm, x, None)
    torch.testing.assert_close(norm_act(norm, x), F.relu(reference(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows_meet_the_running_statistics(rows: int) -> None:
    norm = norm_of(16)
    before = copy.deepcopy(norm.state_dict())
    x = torch.randn(rows, 16, requires_grad=True)
    out = norm_act(norm, x, relu=False)
    torch.testing.assert_close(out, copy.deepcopy(norm).eval()(x), rtol=1e-5, atol=1e-5)
    out.sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is not None
    assert torch.equal(norm.bias.grad, torch.full((16,), float(rows)))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
def test_maps_of_either_memory_format(memory_format: torch.memory_format) -> None:
    torch.manual_seed(2)
    norm = nn.BatchNorm2d(24)
    reference = copy.deepcopy(norm)
    x = torch.randn(2, 24, 9, 7).contiguous(memory_format=memory_format).requires_grad_()
    y = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    assert layers._native(norm, x, None) is (memory_format is torch.channels_last)
    got, expected = norm_act(norm, x), F.relu(reference(y))
    grad = torch.randn_like(expected)
    got.backward(grad)
    expected.backward(grad)
    assert got.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)


def test_what_is_no_number_is_seen_behind_the_relu() -> None:
    x = torch.randn(40, 16)
    x[3, 5] = float("nan")
    out = norm_act(norm_of(16), x)
    assert out[:, 5].isnan().all()
    assert not out[:, :5].isnan().any()
    half = norm_act(norm_of(16), x.bfloat16())
    assert half[:, 5].isnan().all()


def test_rows_cut_out_of_wider_ones() -> None:
    torch.manual_seed(3)
    wide, grad = torch.randn(60, 50), torch.randn(30, 20).t().contiguous().t()
    norm = norm_of(20)
    x = wide[::2, 7:27].requires_grad_()
    y = x.detach().clone().requires_grad_()
    norm_act(norm, x).backward(grad)
    norm_act(copy.deepcopy(norm), y).backward(grad.contiguous())
    assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("which", ["float64", "float16 parameters", "wider residual"])
def test_other_types_go_through_torch_and_keep_their_types(which: str) -> None:
    norm = norm_of(8)
    x = torch.randn(30, 8)
    residual = torch.randn(30, 8)
    if which == "float64":
        norm, x, residual = norm.double(), x.double(), residual.double()
    elif which == "float16 parameters":
        norm, x, residual = norm.bfloat16(), x.bfloat16(), residual.bfloat16()
    else:
        x = x.bfloat16()
    assert not layers._native(norm, x, residual)
    expected = by_torch(copy.deepcopy(norm), x, residual, True)
    got = norm_act(norm, x, residual=residual)
    assert got.dtype is expected.dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize("training", [True, False])
def test_finite_differences_in_double(training: bool) -> None:
    torch.manual_seed(4)
    norm = norm_of(5, training=training).double()
    x, residual = (torch.randn(6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def call(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        fresh = copy.deepcopy(norm)
        del fresh.weight, fresh.bias
        fresh.weight, fresh.bias = weight, bias
        return norm_act(fresh, x, residual=residual)

    assert torch.autograd.gradcheck(call, (x, residual, norm.weight, norm.bias))


def test_a_norm_with_hooks_is_called() -> None:
    """ZeRO-3 gathers weights when a module is called."""
    norm = norm_of(16)
    seen: list[int] = []
    norm.register_forward_pre_hook(lambda *_: seen.append(1))
    norm_act(norm, torch.randn(9, 16))
    assert seen == [1]


@pytest.mark.parametrize("added", [True, False], ids=["residual", "alone"])
def test_kept_for_the_gradient(added: bool) -> None:
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    x = torch.randn(1000, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        norm_act(norm_of(16), x, residual=torch.randn(1000, 16, requires_grad=True) if added else None)
    assert sum(kept.values()) == (2 if added else 1) * x.numel() + 4 * 16  # the result, if at all, and four rows


@pytest.mark.parametrize("config", [Res16UNetConfig, SpvcnnConfig, VoxelNetConfig])
def test_the_torch_backend_normalises_by_torch(config: type[SparseBackboneConfig]) -> None:
    norms = {}
    for backend in ("torch", "native"):
        net = config(backend=backend).toy()
        net = replace(net, backend=backend).build()
        norms[backend] = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d)]
    x = torch.randn(9, 16)
    assert all(not layers._native(norm, x[:, :1].expand(-1, norm.num_features), None) for norm in norms["torch"])
    assert all(layers._native(norm, x[:, :1].expand(-1, norm.num_features), None) for norm in norms["native"])
    assert not layers._native(copy.deepcopy(norms["torch"][0]), x.new_zeros(3, norms["torch"][0].num_features), None)


def test_a_network_gives_what_it_gives_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    net = Res16UNetConfig(preset="res16unet_tiny", backend="native").build()
    coords = torch.unique(torch.randint(0, 12, (700, 3)), dim=0)
    coords = F.pad(coords, (1, 0)).int()
    features = torch.randn(len(coords), 1)

    def step() -> list[Tensor]:
        run = copy.deepcopy(net)
        out = run(coords, features, 1)
        out.square().mean().backward()
        return [out.detach(), *(p.grad for p in run.parameters() if p.grad is not None), *run.buffers()]

    got = step()
    monkeypatch.setattr(layers, "works_on", lambda *_: False)
    expected = step()
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert_near(a, b, 2e-4)


SANITIZERS = [("thread", "-O1"), ("address,undefined", "-O0")]
"""With checks of memory, optimising takes the compiler three times as long."""


@contextmanager
def build_with(flags: tuple[str, ...]) -> Iterator[None]:
    """The operation of another build, one that takes half as long to make."""
    library = native.load(PROBE, flags=(*FLAGS, "-O1", *flags))
    with pytest.MonkeyPatch.context() as patch:
        for name, arguments in (("forward", normalization.FORWARD), ("backward", normalization.BACKWARD)):
            function = library[f"tandem_norm_{name}"]
            function.argtypes, function.restype = list(arguments), None
            patch.setattr(normalization, f"_{name}", lambda function=function: function)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("-mno-avx512f",), ("-mno-avx512f", "-mno-avx2", "-mno-fma")], ids=["avx2", "plain"])
def test_builds_for_other_processors(flags: tuple[str, ...]) -> None:
    with build_with(flags):
        for dtype in TOLERANCE:
            for channels in (1, 5, 16, 20, 96):
                compare(1000, channels, dtype, added=True, relu=True, training=True)
                compare(1000, channels, dtype, added=False, relu=True, training=False)


@pytest.mark.slow
@pytest.mark.parametrize(("sanitizer", "level"), SANITIZERS, ids=["threads", "memory"])
def test_sanitizers_find_nothing(sanitizer: str, level: str, tmp_path: Path) -> None:
    main = tmp_path / "main.cpp"
    main.write_text(
        textwrap.dedent(f"""
        #include "{PROBE}"
        #include <vector>
        using Floats = std::vector<float>;
        void call(int rows, int n, int half, int relu, int added, int training) {{
            const size_t bytes = size_t(rows) * n * (half ? 2 : 4);
            std::vector<char> x(bytes, 1), residual(bytes), out(bytes), dx(bytes), dr(bytes);
            for (size_t i = 0; i < bytes; i += 3) x[i] = char(i % 31);
            Floats c(n, 1), mean(n), var(n, 1), s(2 * n), dw(n), db(n);
            tandem_norm_forward(
                x.data(), added ? residual.data() : nullptr, out.data(), rows, n, half, relu, c.data(), c.data(),
                mean.data(), var.data(), 0.1, 1e-5, training, s.data(), 3);
            tandem_norm_backward(
                x.data(), x.data(), added ? out.data() : nullptr, dx.data(), added && relu ? dr.data() : nullptr,
                rows, n, half, relu, c.data(), c.data(), s.data(), training, dw.data(), db.data(), 3);
        }}
        int main() {{
            for (int channels : {{1, 7, 16, 20, 64, 196}})
                for (int rows : {{2, 90, 1500}})
                    for (int kind = 0; kind < 16; ++kind)
                        call(rows, channels, kind & 1, kind >> 1 & 1, kind >> 2 & 1, kind >> 3 & 1);
            return 0;
        }}
        """)
    )
    program = tmp_path / "main"
    subprocess.run(
        [
            "c++",
            "-std=c++17",
            level,
            "-march=native",
            "-g",
            f"-fsanitize={sanitizer}",
            "-pthread",
            str(main),
            "-o",
            program,
        ],
        check=True,
    )
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[:2000]
    assert "runtime error" not in done.stderr
