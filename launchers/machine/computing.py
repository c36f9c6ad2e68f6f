"""torch, GPUs, sparse convolution and DeepSpeed: tried, not only looked up. Runs in a process of its own (`probe`).

Whatever ends that process, a library made for another processor, say, is then one line of the answer.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launchers.machine.findings import Finding
from launchers.machine.limits import driver_version, has_gpu
from launchers.machine.packages import install_line

TOLERANCE = 1e-3
"""Between two ways to compute one sum of some hundred products of numbers near 1; TF32 included."""
_SOURCES = ("data/views/pairs.c", "data/preparing/fast_slic.c", "data/preparing/slic.c")
"""C sources that preparing and loading use, beside the kernels of sparse convolution."""
_CHOICES = "what settings would run"


def computing_findings() -> Iterator[Finding]:
    """Everything that needs torch, in an order in which each step builds on those before."""
    import torch

    section = "computing"
    build = "CUDA " + torch.version.cuda if torch.version.cuda else "CPU only"
    if getattr(torch.version, "hip", None):
        build = f"ROCm {torch.version.hip}"
    threads = f"{torch.get_num_threads()} thread(s), {torch.backends.cpu.get_cpu_capability()}"
    yield Finding(section=section, name="torch", value=f"{torch.__version__}, {build}, {threads}")
    yield from _gpus(torch)
    yield from _native()
    yield from _backends(torch)
    yield from _deepspeed(torch)
    yield from _precisions(torch)


# ---- GPUs


def _gpus(torch: Any) -> Iterator[Finding]:
    section, driver = "computing", driver_version()
    another_build = "install the build of torch for this machine's driver: https://pytorch.org/get-started/locally/"
    if not torch.cuda.is_available():
        if not has_gpu():
            yield Finding(section=section, name="GPU", value="none; training runs on the CPU", state="note")
        elif not torch.version.cuda and not getattr(torch.version, "hip", None):
            value = f"there is one (driver {driver or 'of AMD'}), and this torch is built for CPUs only"
            yield Finding(section=section, name="GPU", value=value, state="missing", remedy=another_build)
        else:
            value = f"torch finds none it can use (driver {driver or 'of AMD'})"
            remedy = "see nvidia-smi; unset CUDA_VISIBLE_DEVICES, or " + another_build
            yield Finding(section=section, name="GPU", value=value, state="missing", remedy=remedy)
        return
    if driver is not None:
        yield Finding(section=section, name="driver", value=f"NVIDIA {driver}")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        value = (
            f"{properties.name}, capability {properties.major}.{properties.minor}, "
            f"{properties.total_memory / 2**30:.1f} GiB, {properties.multi_processor_count} multiprocessors"
        )
        wrong = _fails_to_multiply(torch, index)
        yield Finding(
            section=section,
            name=f"GPU {index}",
            value=f"{value}; a product fails: {wrong}" if wrong else value,
            state="broken" if wrong else "fine",
            remedy=another_build if wrong else "",
        )


def _fails_to_multiply(torch: Any, index: int) -> str:
    """What goes wrong with a product on a GPU; "" if nothing does."""
    left = torch.linspace(-1.0, 1.0, 64 * 64).view(64, 64)
    try:
        difference = float(((left.to(f"cuda:{index}") @ left.to(f"cuda:{index}").T).cpu() - left @ left.T).abs().max())
    except RuntimeError as error:
        return _first_line(error)
    return "" if difference < 64 * TOLERANCE else f"differs from the CPU's by {difference:.3g}"


# ---- kernels


def _native() -> Iterator[Finding]:
    """Compile what is compiled on first use, as a run would."""
    from common import native
    from models.lidar.native.library import FLAGS, SOURCE

    section, root = "computing", Path(__file__).resolve().parents[2]
    sources: list[tuple[Path, tuple[str, ...]]] = [(root / name, ()) for name in _SOURCES]
    for title, chosen in (("C kernels", sources), ("C++ kernels", [(SOURCE, FLAGS)])):
        try:
            compiler = native.compiler_version(chosen[0][0].suffix)
            for source, flags in chosen:
                native.load(source, flags=flags)
        except native.BuildError as error:
            slower = "numpy prepares superpixels, ten times slower" if chosen is sources else "torch convolves instead"
            value = f"cannot be built, {slower}: {error}"
            yield Finding(section=section, name=title, value=value, state="missing", remedy="apt install g++")
            continue
        yield Finding(section=section, name=title, value=f"built by {compiler}")


def _backends(torch: Any) -> Iterator[Finding]:
    """Which back-ends of sparse convolution work, and which one "auto" takes on each device."""
    from models.lidar.sparse import load_backend

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for name in ("native", "spconv", "triton"):
        yield _backend_finding(torch, name, devices)
    for device in devices:
        backend = load_backend("auto", device)
        taken = str(getattr(backend, "__name__", "")).rpartition("backend_")[2]
        wrong = _fails_to_convolve(torch, taken, device)
        slow = not wrong and taken == "torch"
        cuda = f"{install_line('cu126')}, or {install_line('triton')}"
        remedy = cuda if device == "cuda" else "apt install g++; on a cluster: module load gcc"
        yield Finding(
            section=_CHOICES,
            name=f"backend=auto on {device}",
            value=f"{taken}, {'which fails: ' + wrong if wrong else 'forward and backward tried'}",
            state="broken" if wrong else "missing" if slow else "fine",
            remedy=f"backend=torch of the network, or {remedy}" if wrong else remedy if slow else "",
        )


def _backend_finding(torch: Any, name: str, devices: list[str]) -> Finding:
    section = "sparse convolution"
    try:
        backend = importlib.import_module(f"models.lidar.backend_{name}")
    except ImportError as error:
        cuda = "cuda" in devices
        remedy = {"spconv": "cu126", "triton": "triton"}.get(name, "") if cuda else ""
        value = f"not installed ({_first_line(error)})"
        return Finding(
            section=section, name=name, value=value, state="note", remedy=install_line(remedy) if remedy else ""
        )
    usable = [device for device in devices if backend.available(torch.device(device))]
    on = ", ".join("GPUs" if device == "cuda" else "the CPU" for device in usable)
    value = f"trains on {on}" if usable else "installed, and trains on nothing that this machine has"
    if name == "native" and usable:
        from models.lidar.native.library import kernels

        library = kernels()
        assert library is not None  # `available` has built it
        value += f" ({library.tandem_instructions().decode()})"
    return Finding(section=section, name=name, value=value, state="fine" if usable else "note")


def _fails_to_convolve(torch: Any, name: str, device: str) -> str:
    """What goes wrong when a back-end convolves and goes back, compared with torch's; "" if nothing does."""
    try:
        difference = convolution_error(torch, name, device)
    except Exception as error:  # of a library: any kind
        return f"{type(error).__name__}: {_first_line(error)}"
    return "" if difference < TOLERANCE else f"it differs from backend=torch on the CPU by {difference:.3g}"


def convolution_error(torch: Any, name: str, device: str) -> float:
    """Largest difference from torch's back-end on the CPU, of features and gradients, as a share of the largest number.

    On a block of 6 x 6 x 6 voxels with every third one missing, 16 channels.
    """
    from models.lidar.sparse import SubmanifoldConv3d, sparse_tensor

    axis = torch.arange(6)
    coords = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), axis, axis, axis)
    coords = coords[torch.arange(len(coords)) % 3 != 0]
    rows = torch.arange(len(coords), dtype=torch.float32)[:, None]
    features = torch.sin(0.1 * rows * torch.arange(1, 17, dtype=torch.float32))
    results = []
    for backend, place in (("torch", "cpu"), (name, device)):
        layer = SubmanifoldConv3d(16, 16, backend=backend)  # type: ignore[arg-type]
        weight = torch.cos(torch.arange(layer.weight.numel(), dtype=torch.float32)).view_as(layer.weight) / 16
        layer.load_state_dict({"weight": weight})
        layer = layer.to(place)
        inputs = features.to(place).requires_grad_()
        out = layer(sparse_tensor(coords.to(place), inputs, 1)[0]).features
        out.square().sum().backward()
        parts: tuple[Any, ...] = (out, inputs.grad, layer.weight.grad)
        results.append([part.detach().float().cpu() for part in parts])
    pairs = zip(*results, strict=True)
    return max(float((one - other).abs().max() / one.abs().max()) for one, other in pairs)


# ---- the rest


def _deepspeed(torch: Any) -> Iterator[Finding]:
    from engine.deepspeed_config import import_deepspeed

    section, name = "computing", "DeepSpeed"
    try:
        deepspeed = import_deepspeed("cuda" if torch.cuda.is_available() else "cpu")
    except Exception as error:  # of a library: any kind
        value = f"cannot be imported, {type(error).__name__}: {_first_line(error)}"
        yield Finding(section=section, name=name, value=value, state="broken", remedy=install_line())
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    here = torch.distributed.is_available() and getattr(torch.distributed, f"is_{backend}_available")()
    yield Finding(
        section=section,
        name=name,
        value=f"{deepspeed.__version__}, {backend} between processes{'' if here else ' is missing in this torch'}",
        state="fine" if here else "broken",
        remedy="" if here else "install a build of torch with torch.distributed",
    )


def _precisions(torch: Any) -> Iterator[Finding]:
    """The device, and each precision on it."""
    from engine.precision import bf16_units

    cuda = torch.cuda.is_available()
    device = f"CUDA, {torch.cuda.device_count()} process(es) on this machine at most" if cuda else "the CPU"
    yield Finding(section=_CHOICES, name="engine.device=auto", value=device)
    units = bf16_units(torch.device("cuda" if cuda else "cpu"))
    emulated = "emulated, slower than fp16 on this GPU" if cuda else "emulated, slower than fp32 on this processor"
    bf16 = f"in hardware ({', '.join(units)})" if units else emulated
    yield Finding(section=_CHOICES, name="engine.precision=auto", value="bf16" if units else "fp32")
    yield Finding(section=_CHOICES, name="engine.precision=fp32", value="yes (the default)")
    yield Finding(section=_CHOICES, name="engine.precision=bf16", value=bf16)
    fp16 = "yes" if cuda else "no: needs a GPU"
    yield Finding(section=_CHOICES, name="engine.precision=fp16", value=fp16, state="fine" if cuda else "note")
    native = f"{bf16}; with engine.zero_stage 1 to 3, networks without BatchNorm"
    yield Finding(section=_CHOICES, name="engine.precision=bf16_native", value=native)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
