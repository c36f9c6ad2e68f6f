"""Golden run: 20 steps of SLidR with all its real parts on a toy set give the losses that are stored.

A change here means that training has changed. If that is intended, say so in the commit and renew the file:

    TANDEM_RENEW_GOLDEN=1 python -m pytest tests/launchers/test_golden.py
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest
import torch

from engine.distributed import World
from tests.helpers.pretrain_run import UNCACHED, pretrain_here
from tests.helpers.samples import write_toy_set
from tests.helpers.toy_run import losses

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "slidr_toy.json"
STEPS = 20
# Paper's optimizer, image network in every step, all augmentations, samples met again in five epochs of 16. A low rate:
# rounding differs from processor to processor, and must not grow beyond the tolerance in 20 steps. The first
# version of the order of samples, with which the losses were recorded: runs that began with it go on with it.
OPTIONS = (
    *UNCACHED,
    "method.backbone.backend=torch",
    "data.order=1",
    "optim.name=sgd",
    "optim.lr=0.0003",
    "optim.momentum=0.9",
    f"schedule.steps={STEPS}",
    "seed=11",
)


def here() -> dict[str, str]:
    """What the last bits depend on."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        model = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line), ""
        )
    return {"torch": torch.__version__, "cpu": model, "capability": torch.backends.cpu.get_cpu_capability()}


def test_golden_run(world: World, one_thread: None, tmp_path: Path) -> None:
    """Exactly on the same torch and processor, to 1e-4 elsewhere."""
    root = write_toy_set(tmp_path / "set", num_logs=5, frames_per_log=4)
    pretrain_here(tmp_path / "run", root, *OPTIONS)
    got = losses(tmp_path / "run")
    if os.environ.get("TANDEM_RENEW_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps({"where": here(), "options": OPTIONS, "losses": got}, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert tuple(golden["options"]) == OPTIONS, "the run has been changed: renew the file (see above)"
    assert len(got) == STEPS
    if golden["where"] == here():
        assert got == golden["losses"]
    else:
        assert got == pytest.approx(golden["losses"], rel=1e-4)


def test_compiled_kernels_give_the_losses_of_torch(world: World, one_thread: None, tmp_path: Path) -> None:
    """The golden run's first steps by either back-end of sparse convolution: they round otherwise and no more."""
    root = write_toy_set(tmp_path / "set", num_logs=5, frames_per_log=4)
    runs = {}
    for backend in ("torch", "auto"):
        options = [o for o in OPTIONS if not o.startswith(("schedule.steps", "method.backbone.backend"))]
        pretrain_here(tmp_path / backend, root, *options, f"method.backbone.backend={backend}", "schedule.steps=4")
        runs[backend] = losses(tmp_path / backend)
    assert len(runs["auto"]) == 4
    assert runs["auto"] == pytest.approx(runs["torch"], rel=1e-5)
