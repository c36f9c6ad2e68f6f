"""`benchmarks.gpu`: every line of it that needs no GPU, and what it does when time or memory is out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_step
from benchmarks.gpu_report import Budget, NotMeasuredError, Outcome, Table, entry
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader


def test_rows_that_fail_or_cannot_be_measured_cost_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    def no_cuda() -> Sequence[str]:
        raise NotMeasuredError("no CUDA")

    def too_large() -> Sequence[str]:
        raise torch.OutOfMemoryError("16 GiB")

    def broken() -> Sequence[str]:
        raise KeyError("weight")

    rows = {"a": no_cuda, "b": too_large, "c": broken, "d": lambda: ["1.5"]}
    outcome = Outcome()
    text = "\n".join(entry([Table("Layers", ("", "ms"), rows, "A note.")], Budget(60), outcome))
    assert "### Layers" in text
    assert "| d | 1.5 |" in text
    assert "- a: not measured: no CUDA\n- b: out of memory" in text
    assert "A note." in text
    assert "Failed: Layers: c: KeyError." in text
    assert (outcome.skipped, outcome.failed) == ([], ["Layers: c: KeyError"])
    assert "KeyError: 'weight'" in capsys.readouterr().err


def test_no_row_begins_when_the_time_is_spent() -> None:
    begun: list[str] = []

    def row(name: str) -> Sequence[str]:
        begun.append(name)
        return ["1"]

    outcome, budget = Outcome(), Budget(15, clock=lambda: 10.0 * len(begun))  # a row takes 10 s
    maps = Table("Maps", ("", "ms"), {name: functools.partial(row, name) for name in ("a", "b", "c")})
    text = "\n".join(entry([maps, Table("JPEG", ("", "ms"), {"d": lambda: row("d")})], budget, outcome))
    assert begun == ["a", "b"]
    assert outcome.skipped == ["Maps: c", "JPEG: d"]
    assert "Not run, as 15 s were spent: Maps: c; JPEG: d." in text


def test_drawn_set_has_the_shape_that_it_states(tmp_path: Path) -> None:
    shape = gpu_step.Shape(samples=2, cameras=3, image_size=(52, 100), segments=(2, 5), beams=(4, 50))
    reader = SampleReader(load_manifest(gpu_step.write_set(tmp_path / "set", shape, seed=0)))
    assert len(reader.manifest) == 2
    sample = reader.read(1)
    assert sample.points_lidar.shape == (200, 3)
    assert len(sample.cameras) == 3
    for view in sample.cameras:
        assert view.image_size == (52, 100)
        assert view.superpixels is not None
        assert np.array_equal(np.unique(view.superpixels), np.arange(10))
    below = sample.points_lidar[:50]  # of the lowest beam, which meets the ground or a wall before it
    assert np.median(below[:, 2]) == pytest.approx(-1.8, abs=0.1)


def test_without_cuda_it_says_how_to_try(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--device cpu --short" in capsys.readouterr().err


@pytest.mark.slow
def test_every_line_runs_on_tiny_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "entry.md"
    assert gpu.main(["--device", "cpu", "--short", "--gpu-jpeg", "--triton-step", "--out", str(out)]) == 0
    text = out.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert text.startswith("## 20")
    for head in ("A step of SLidR", "Teacher", "Neighbour maps", "JPEG decoding", "Layers: torch", "Layers: native"):
        assert f"### {head}" in text
    assert "| bf16, batch 2, auto |" in text
    assert "- fp32, CUDA graph: not measured: no CUDA" in text
    assert "- torchcodec, GPU: not measured: no CUDA" in text
    assert "Not run" not in text
    assert "Failed" not in text


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_line_runs_on_a_gpu() -> None:
    assert gpu.main(["--device", "cuda", "--short", "--gpu-jpeg"]) == 0
