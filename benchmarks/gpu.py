"""What one GPU does with Tandem, in ten minutes: an entry for the lab book.

    python -m benchmarks.gpu --out entry.md                 # on a machine with a GPU
    python -m benchmarks.gpu --shards runs/nuscenes/shards  # on samples of yours instead of drawn ones
    python -m benchmarks.gpu --device cpu --short           # tries every line of it on tiny shapes

A whole step of SLidR as its paper runs it, split by stage, at several batch sizes, precisions and back-ends; the
teacher in other ways (bf16, channels-last, CUDA graph); neighbour maps by level; each back-end of sparse convolution
layer by layer against one dense product of as many rows as it has pairs; JPEG decoding (on the GPU with --gpu-jpeg,
where torchcodec is installed). No row begins when the time is spent; those left are named. Kernels of spconv-triton
are compiled and tuned when a layer's shape first comes, which takes long: its layers come last ("first" is the seconds
of that call), and the whole step, which has some twenty shapes, only with --triton-step.
Exit code 1 if a row failed; the others are there.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from benchmarks.common import seconds_of, setting
from benchmarks.gpu_report import Budget, NotMeasuredError, Outcome, Table, entry
from benchmarks.gpu_step import NUSCENES, SHORT, STAGES, config_of, step_row, write_set
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from engine.distributed import World, init_distributed, shutdown
from launchers.runs.provenance import installed_packages
from models.image.resnet import ResNetName, ResNetTeacherConfig
from models.lidar import neighbors
from models.lidar.neighbors import KernelMap, pack
from models.lidar.sparse import Backend, load_backend, sparse_tensor

BACKENDS = ("spconv", "torch", "native", "triton")
_VOXEL_M = 0.1


_clock = functools.partial(seconds_of, clock=time.perf_counter)


@dataclass(frozen=True)
class Bench:
    """What all tables share."""

    options: argparse.Namespace
    world: World
    shards: str
    folder: Path

    @property
    def device(self) -> torch.device:
        """That is measured."""
        return self.world.device

    @property
    def short(self) -> bool:
        """Tiny shapes."""
        return bool(self.options.short)

    @property
    def repeat(self) -> int:
        """Timed calls, of which the median counts."""
        return 1 if self.short else 7

    def ms(self, call: Callable[[], object]) -> float:
        """Milliseconds of a call after one that is not counted, median."""
        call()
        return 1e3 * float(np.median([_clock(call) for _ in range(self.repeat)]))

    def need_cuda(self) -> None:
        """Refuse a row that only a GPU has."""
        if self.device.type != "cuda":
            raise NotMeasuredError("no CUDA")

    def backend(self, name: str) -> Backend:
        """A back-end that can train here."""
        try:
            backend = load_backend(name, self.device.type)
        except ImportError:
            raise NotMeasuredError("not installed") from None
        if not backend.available(self.device):
            raise NotMeasuredError(f"cannot train on {self.device.type}")
        return backend

    @functools.cached_property
    def coords(self) -> Tensor:
        """Voxels of the first samples, (sample, x, y, z), sorted."""
        reader, parts = SampleReader(load_manifest(self.shards)), []
        for sample in range(min(2 if self.short else 4, len(reader.manifest))):
            points = reader.read(sample, images=False, labels=False).points_lidar
            cells = np.unique(np.floor(points / _VOXEL_M).astype(np.int32), axis=0)
            parts.append(np.concatenate([np.full((len(cells), 1), sample, np.int32), cells], axis=1))
        return torch.from_numpy(np.concatenate(parts))


# ---- the step
def steps(bench: Bench) -> Table:
    """A whole step, by precision, batch and back-end."""
    workers = 1 if bench.short else max(1, min(12, (os.cpu_count() or 2) - 2))
    cases = [("bf16", 4, "auto"), ("fp32", 4, "auto"), ("bf16", 1, "auto"), ("bf16", 8, "auto"), ("bf16", 16, "auto")]
    if bench.short:
        cases = [("bf16", 2, "auto")]
    names = BACKENDS if not bench.short else ("spconv", "triton")  # the others run under "auto"
    cases += [("bf16", cases[0][1], name) for name in names]

    def row(precision: str, batch: int, backend: str) -> Sequence[str]:
        if backend != "auto":
            bench.backend(backend)
        if backend == "triton" and not bench.options.triton_step:
            raise NotMeasuredError("--triton-step was not given")
        config = config_of(
            bench.shards,
            str(bench.folder / "run"),
            device=bench.device.type,
            short=bench.short,
            precision=precision,
            batch=batch,
            backend=backend,
            workers=workers,
        )
        return step_row(config, bench.world, 1 if bench.short else 8)

    return Table(
        "A step of SLidR",
        ("", "first, s", "step, ms", *(f"{stage}, ms" for stage in STAGES), "GiB"),
        {f"{case[0]}, batch {case[1]}, {case[2]}": functools.partial(row, *case) for case in cases},
        "Stages are waited for one by one, so they add up to more than the step. GiB: peak of "
        + ("the GPU's memory." if bench.device.type == "cuda" else "the process."),
    )


# ---- the teacher
def teacher(bench: Bench) -> Table:
    """The teacher alone, one batch of images."""
    name: ResNetName = "resnet10_tiny" if bench.short else "resnet50"
    num, size = (2, (48, 96)) if bench.short else (24, (224, 416))
    generator = torch.Generator().manual_seed(bench.options.seed)
    images = torch.randint(0, 256, (num, 3, *size), generator=generator, dtype=torch.uint8).to(bench.device)
    network = ResNetTeacherConfig(name=name).build().to(bench.device)

    def call(bf16: bool) -> Tensor:
        with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            out: Tensor = network(images)
            return out

    def graphed(bf16: bool) -> Callable[[], object]:
        bench.need_cuda()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call(bf16)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = call(bf16)
        graph.replay()
        torch.testing.assert_close(out, call(bf16), rtol=0.05, atol=0.05)
        return graph.replay

    def row(bf16: bool, channels_last: bool, graph: bool) -> Sequence[str]:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        network.to(memory_format=memory_format)  # type: ignore[call-overload]
        run = graphed(bf16) if graph else functools.partial(call, bf16)
        return [f"{bench.ms(run):.2f}"]

    rows: dict[str, Callable[[], Sequence[str]]] = {}
    for way in itertools.product((False, True), repeat=3):
        graph, bf16, channels_last = way
        words = ["bf16" if bf16 else "fp32", *["channels-last"] * channels_last, *["CUDA graph"] * graph]
        rows[", ".join(words)] = functools.partial(row, bf16, channels_last, graph)
    return Table(f"Teacher: {name}, {num} images of {size[0]} x {size[1]}", ("", "ms"), rows)


# ---- maps
def maps(bench: Bench) -> Table:
    """Neighbour maps, level by level of a U-Net."""
    rows: dict[str, Callable[[], Sequence[str]]] = {}

    def row(keys: Tensor) -> Sequence[str]:
        on_device = keys.to(bench.device)
        found = neighbors.submanifold_map(on_device, 3)
        cells = [f"{len(keys):,}", f"{found.num_pairs + len(keys):,}"]
        for build in (neighbors.submanifold_map_by_torch, neighbors.submanifold_map):
            cells.append(f"{bench.ms(functools.partial(build, on_device, 3)):.2f}")
        cells.append(f"{bench.ms(functools.partial(neighbors.strided_map, on_device, 2)):.2f}")
        cells.append(f"{bench.ms(functools.partial(neighbors.submanifold_map, keys, 3)):.2f}")
        return cells

    keys = pack(bench.coords)
    for level in range(5):
        rows[f"stride {2**level}"] = functools.partial(row, keys)
        keys = neighbors.strided_map(keys, 2)[0]
    header = ("", "voxels", "pairs", "3³ by torch, ms", "3³ as chosen, ms", "2³ stride 2, ms", "3³ on the CPU, ms")
    return Table("Neighbour maps", header, rows)


# ---- layers
def _dense(bench: Bench, pairs: int, channels: int, dtype: torch.dtype) -> list[float]:
    """Milliseconds of one product of as many rows as there are pairs: forward, gradient of input, of weight."""
    rows, grads = (torch.randn(pairs, channels, device=bench.device).to(dtype) for _ in range(2))
    weight = torch.randn(channels, channels, device=bench.device).to(dtype)
    calls = (lambda: rows @ weight, lambda: grads @ weight.t(), lambda: rows.t() @ grads)
    return [bench.ms(call) for call in calls]


def _layer(
    bench: Bench, backend: Backend, kernel_map: KernelMap, channels: int, dtype: torch.dtype
) -> tuple[float, list[float]]:
    """Seconds of the first forward and backward pass, and milliseconds of the three passes."""
    features = torch.randn(kernel_map.num_in, channels, device=bench.device).to(dtype)
    weight = (torch.randn(len(kernel_map.counts), channels, channels, device=bench.device) / channels).to(dtype)
    grad = torch.randn(kernel_map.num_out, channels, device=bench.device).to(dtype)

    def forward() -> Tensor:
        return backend.convolve(features, weight, kernel_map)

    def both() -> None:
        torch.autograd.backward(forward(), grad)

    def gradient(leaf: Tensor) -> float:
        features.requires_grad_(leaf is features)
        weight.requires_grad_(leaf is weight)
        spent = []
        for _ in range(bench.repeat + 1):
            out = forward()
            spent.append(_clock(functools.partial(torch.autograd.backward, out, grad)))
            leaf.grad = None
        return 1e3 * float(np.median(spent[1:]))

    for leaf in (features, weight):
        leaf.requires_grad_()
    first = _clock(both)
    with torch.no_grad():
        times = [bench.ms(forward)]
    return first, [*times, gradient(features), gradient(weight)]


def layers(bench: Bench, name: str) -> Table:
    """A back-end's 3 x 3 x 3 submanifold convolution by width and type."""
    widths = (16, 32) if bench.short else (32, 64, 96, 128, 256)
    grid = sparse_tensor(bench.coords, torch.ones(len(bench.coords), 1), int(bench.coords[-1, 0]) + 1)[0].grid

    def row(channels: int, dtype: torch.dtype) -> Sequence[str]:
        backend = bench.backend(name)
        fine = grid if channels < 192 else grid.coarser(2)[0].coarser(2)[0]
        kernel_map = neighbors.submanifold_map(fine.keys.to(bench.device), 3)
        pairs = kernel_map.num_pairs + kernel_map.num_in
        first, times = _layer(bench, backend, kernel_map, channels, dtype)
        dense = _dense(bench, pairs, channels, dtype)
        cells = [f"{mine:.2f} ({mine / bound:.2f})" for mine, bound in zip(times, dense, strict=True)]
        return [f"{kernel_map.num_in:,}", f"{pairs:,}", f"{first:.1f}", *cells]

    header = ("", "voxels", "pairs", "first, s", "forward, ms", "gradient of input", "gradient of weight")
    return Table(
        f"Layers: {name}",
        header,
        {
            f"{str(dtype)[6:]}, {channels}": functools.partial(row, channels, dtype)
            for channels in widths
            for dtype in (torch.bfloat16, torch.float32)
        },
        "In brackets: times the dense product.",
    )


# ---- JPEG
def jpeg(bench: Bench) -> Table:
    """Decoding the images of the first samples."""
    reader = SampleReader(load_manifest(bench.shards))
    views = [view for sample in range(min(4, len(reader.manifest))) for view in reader.read(sample).cameras]
    images = [view.image for view in views if view.image is not None]
    files = [simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=90) for image in images]

    def on_cpu() -> Sequence[str]:
        return [f"{bench.ms(lambda: [simplejpeg.decode_jpeg(file) for file in files]) / len(files):.2f}"]

    def on_gpu() -> Sequence[str]:
        if not bench.options.gpu_jpeg:
            raise NotMeasuredError("--gpu-jpeg was not given")
        bench.need_cuda()
        try:
            from torchcodec.decoders import decode_jpeg
        except ImportError:
            raise NotMeasuredError("torchcodec is not installed, or not for this CUDA") from None
        sources = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
        return [f"{bench.ms(lambda: decode_jpeg(sources, device=bench.device)) / len(files):.2f}"]

    rows: dict[str, Callable[[], Sequence[str]]] = {"libjpeg-turbo, one core": on_cpu, "torchcodec, GPU": on_gpu}
    height, width = images[0].shape[:2]
    return Table(f"JPEG decoding: {len(files)} images of {height} x {width}", ("", "ms an image"), rows)


# ---- the entry
def tables(bench: Bench) -> list[Table]:
    """All, in the order of what is wanted first; what is compiled on first use comes last."""
    first = [steps(bench), teacher(bench), maps(bench), jpeg(bench)]
    triton_step = [name for name in first[0].rows if name.endswith(", triton")]
    last = Table(
        f"{first[0].title}: triton", first[0].header, {n: first[0].rows[n] for n in triton_step}, first[0].note
    )
    kept = {name: row for name, row in first[0].rows.items() if name not in triton_step}
    first[0] = Table(first[0].title, first[0].header, kept, first[0].note)
    return [*first, *(layers(bench, name) for name in BACKENDS), last]


def title(bench: Bench) -> str:
    """Head of the entry."""
    name = "no GPU"
    if bench.device.type == "cuda":
        about = torch.cuda.get_device_properties(bench.device)
        name = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
    date, machine = setting(bench.options.seed).split(", ", 1)
    data = "samples of the given set" if bench.options.shards else "drawn samples"
    packages = installed_packages()
    versions = [
        f"{package} {packages[package]}" for package in ("spconv-cu120", "spconv-cu126", "spconv-triton", "triton")
    ]
    about_torch = f"torch {torch.__version__} (CUDA {torch.version.cuda})"
    return (
        f"## {date} · benchmarks.gpu ({name})\n\n"
        f"`{bench.options.command}`: {machine}; {data}; {', '.join([about_torch, *versions])}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print as it goes; the whole entry goes to --out as well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--short", action="store_true", help="tiny shapes, one repetition: is every line alive?")
    parser.add_argument("--minutes", type=float, default=10.0, help="no row begins after (default: %(default)s)")
    parser.add_argument("--shards", help="a prepared set with superpixels; samples are drawn without")
    parser.add_argument("--gpu-jpeg", action="store_true", help="also decode JPEGs on the GPU, by torchcodec")
    parser.add_argument("--triton-step", action="store_true", help="also a whole step by spconv-triton: many minutes")
    parser.add_argument("--out", type=Path, help="also write the entry to this file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; to try this out on a machine without one: --device cpu --short")
    options.command = shlex.join(["python", "-m", "benchmarks.gpu", *(sys.argv[1:] if argv is None else argv)])
    budget, outcome = Budget(60 * options.minutes), Outcome()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = options.shards or write_set(folder / "shards", SHORT if options.short else NUSCENES, options.seed)
        try:
            bench = Bench(options, init_distributed(options.device), shards, folder)
            parts = [title(bench)]
            print(parts[0], flush=True)
            for part in entry(tables(bench), budget, outcome):
                print(f"\n{part}", flush=True)
                parts.append(part)
                if options.out:
                    options.out.write_text("\n\n".join(parts) + "\n")
        finally:
            shutdown()
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
