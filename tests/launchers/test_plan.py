"""`tandem plan`: its arithmetic against real checkpoints, real collectives, the real order of samples, and by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.run_files import WEIGHTS_FILE
from data.order import Order, SampleOrder, batch_positions
from data.shard_order import Blocks, ShardOrder
from data.storage.manifest import load_manifest
from data.storage.manifest_writer import write_manifest
from data.storage.superpixel_record import SuperpixelRecord
from engine.checkpoint import newest_intact, read_rank_state
from engine.distributed import World
from launchers.cli import main as tandem
from launchers.plan import model_sizes, parser, run_settings
from launchers.planning import arithmetic, storage
from launchers.planning.arithmetic import Data, Model, PlannedRun
from launchers.planning.figures import Plan, StepTime
from launchers.planning.measure import measured_writing
from launchers.planning.tables import spoken
from launchers.planning.warnings import warnings
from launchers.training.train import load_run
from tests.helpers.pretrain_run import CONFIGS, UNCACHED, arguments, pretrain_here, spawn_ranks
from tests.helpers.samples import write_toy_set
from tests.helpers.toy_run import finish
from tests.helpers.warm import Child, rank_variables

NUSCENES = CONFIGS / "slidr_nuscenes.yaml"

RUN = PlannedRun(
    nodes=2,
    processes_per_node=4,
    micro_batch_size=4,
    accumulation_steps=1,
    num_steps=10_000,
    zero_stage=0,
    optimizer_numbers=1,
    workers=2,
    prefetch=2,
    shards_per_group=8,
    sync_bn=False,
    checkpoint_every_s=1200.0,
    keep=2,
)
MODEL = Model(trainable=1_000_000, frozen=500_000, buffer_bytes=1000)
DATA = Data(samples=160_000, bytes_per_sample=1e6, shards=320)
PLAN = Plan(
    model=MODEL,
    data=DATA,
    run=RUN,
    step=StepTime(seconds=0.5, source="test", data_wait_share=0.0, teacher_share=0.0),
    write_bytes_per_s=1e9,
    network_bytes_per_s=1e10,
)


def run(**changes: Any) -> PlannedRun:
    return dataclasses.replace(RUN, **changes)


# ---- against real runs
@pytest.mark.parametrize(
    ("stage", "optimizer"),
    [(0, ("optim.name=sgd", "optim.momentum=0.9")), (0, ("optim.name=adamw",)), (1, ("optim.name=adamw",))],
    ids=["0-sgd", "0-adamw", "1-adamw"],
)
def test_predicted_checkpoint_is_the_real_one(
    stage: int, optimizer: tuple[str, ...], toy_set: str, tmp_path: Path, world: World, one_thread: None
) -> None:
    overrides = (*UNCACHED, f"engine.zero_stage={stage}", *optimizer, "schedule.steps=1")
    pretrain_here(tmp_path / "run", toy_set, *overrides)
    path, *rest = arguments(tmp_path / "run", toy_set, *overrides)
    config = load_run(path, rest)
    options = parser().parse_args([path])
    settings = run_settings(config, options, num_steps=1, cameras=2, num_segments=150)
    model = model_sizes(config.method.build(), config.engine.zero3_persistent_numel)
    predicted = storage.checkpoint(model, settings)

    folder = newest_intact(tmp_path / "run")
    assert folder is not None
    real = {file.name: file.stat().st_size for file in folder.iterdir()}
    ranks = sum(size for name, size in real.items() if name.startswith("rank_"))
    assert real[WEIGHTS_FILE] == pytest.approx(predicted.weights, rel=0.02)
    assert ranks == pytest.approx(predicted.optimizer, rel=0.02)
    assert len(real) == predicted.files

    # The same tensors are what ZeRO holds in memory: to the byte, padding and step counters aside.
    memory = arithmetic.memory(model, settings)
    held = tensor_bytes(read_rank_state(folder, 0)["shard"])
    assert held == pytest.approx(memory.masters + memory.optimizer, rel=1e-3)


def tensor_bytes(tree: Any) -> int:
    if isinstance(tree, dict):
        return sum(map(tensor_bytes, tree.values()))
    if isinstance(tree, list | tuple):
        return sum(map(tensor_bytes, tree))
    return tree.numel() * tree.element_size() if hasattr(tree, "numel") else 0


@pytest.mark.slow
def test_predicted_shares_of_two_processes(toy_set: str, tmp_path: Path) -> None:
    """Each rank's file at stages 1 to 3 on two real processes."""
    jobs = [
        arguments(tmp_path / f"stage{s}", toy_set, *UNCACHED, f"engine.zero_stage={s}", "schedule.steps=1")
        for s in (1, 2, 3)
    ]
    finish(spawn_ranks(jobs, world_size=2))
    for path, *rest in jobs:
        config = load_run(path, rest)
        settings = run_settings(
            config, parser().parse_args([path, "--gpus-per-node", "2"]), num_steps=1, cameras=2, num_segments=150
        )
        predicted = storage.checkpoint(model_sizes(config.method.build(), 0), settings)
        folder = newest_intact(Path(config.run_dir))
        assert folder is not None
        for rank in (0, 1):
            size = (folder / f"rank_{rank:04d}.pt").stat().st_size
            assert size == pytest.approx(predicted.optimizer / 2, rel=0.02), (config.engine.zero_stage, rank)


@pytest.mark.slow
def test_predicted_traffic_is_what_two_processes_send() -> None:
    output, _ = finish([Child("tests.helpers.traffic_run", env=rank) for rank in rank_variables(2)])
    found = json.loads(output.splitlines()[-1])
    assert len(found) == 8
    for stage, accumulation_steps, trainable, received, _ in found:
        here = run(nodes=1, processes_per_node=2, zero_stage=stage, accumulation_steps=accumulation_steps)
        predicted = arithmetic.traffic(Model(trainable=trainable), here)
        gradients = received.get("reduce-scatter" if stage == 3 else "all-reduce", 0.0)
        assert gradients == pytest.approx(predicted.gradients, rel=0.01), (stage, accumulation_steps)
        assert received.get("all-gather", 0.0) == pytest.approx(predicted.weights, rel=0.01), (
            stage,
            accumulation_steps,
        )


@pytest.mark.parametrize("version", [1, 2])
def test_a_window_of_the_stream_touches_no_more_shards_than_predicted(version: int) -> None:
    """The real order of samples: the shards of all samples in flight, and how often readers change files."""
    settings = run(nodes=4, processes_per_node=4, micro_batch_size=4)
    data = Data(samples=32_000, bytes_per_sample=1.0, shards=160)
    predicted = storage.reading(data, settings)
    assert predicted.in_flight == 16 * 4 * (1 + 2 * 2)
    rows = np.arange(32_000)
    order: Order = SampleOrder(rows, rows // 200, seed=1, shards_per_group=8)
    if version == 2:
        order = ShardOrder(Blocks.of_rows(rows, rows // 200), seed=1, shards_per_group=8)
    shards = [order.at(p)[1] // 200 for p in range(32_000)]
    assert predicted.shards_open is not None
    for start in range(0, 32_000 - predicted.in_flight, 999):
        assert len(set(shards[start : start + predicted.in_flight])) <= predicted.shards_open

    opens = reads = 0
    for rank in range(16):
        for worker in range(2):
            seen: dict[int, None] = {}  # least recently used first, as the reader keeps its files
            for step in range(worker, 32_000 // 64, 2):
                for position in batch_positions(step, rank=rank, world_size=16, micro_batch_size=4):
                    reads += 1
                    opens += shards[position] not in seen
                    seen.pop(shards[position], None)
                    seen[shards[position]] = None
                    if len(seen) > data.open_limit:
                        seen.pop(next(iter(seen)))
    assert opens / reads == pytest.approx(predicted.opens_per_sample, rel=0.1)


# ---- by hand
def test_memory_by_hand() -> None:
    """ZeRO's table for 8 processes, a million fp32 parameters, AdamW."""
    rows = {s: arithmetic.memory(MODEL, run(zero_stage=s, optimizer_numbers=2)) for s in (0, 1, 2, 3)}
    assert [m.weights for m in rows.values()] == [4e6, 4e6, 4e6, 4.5e6]
    assert [m.gradients for m in rows.values()] == [4e6, 4e6, 0.5e6, 0.5e6]
    assert [m.masters for m in rows.values()] == [0, 0.5e6, 0.5e6, 0.5e6]
    assert [m.optimizer for m in rows.values()] == [8e6, 1e6, 1e6, 1e6]
    native = arithmetic.memory(MODEL, run(zero_stage=1, weight_bytes=2))
    assert (native.weights, native.gradients, native.masters) == (2e6, 2e6, 0.5e6)


def test_large_models_are_gathered_twice() -> None:
    large = Model(trainable=arithmetic.GATHERED_ONCE_NUMEL)
    small = Model(trainable=arithmetic.GATHERED_ONCE_NUMEL - 8)
    volumes = [arithmetic.traffic(model, run(zero_stage=3)).weights for model in (small, large)]
    assert volumes[1] == pytest.approx(2 * volumes[0], rel=1e-6)
    assert arithmetic.memory(large, run(zero_stage=3)).weights == 4e9 / 8


def test_norms_and_negatives_by_hand() -> None:
    model = dataclasses.replace(MODEL, norm_channels=(16, 32))
    sent = arithmetic.traffic(model, run(sync_bn=True, accumulation_steps=2, contrast_rows=100, embedding_dim=8))
    assert sent.small_collectives == 12
    assert sent.norms == pytest.approx(2 * 2 * 7 / 8 * 4 * (4 * 48 + 2))
    block = 100 * 8 * 4
    assert sent.negatives == pytest.approx(2 * (7 * block + 2 * 7 / 8 * 8 * block))
    assert arithmetic.traffic(model, run(sync_bn=True, nodes=1, processes_per_node=1)).total == 0.0
    assert arithmetic.similarity_bytes(run(contrast_rows=100)) == 4 * 100 * 800
    assert arithmetic.similarity_bytes(run(contrast_rows=100, chunk_rows=10)) == 4 * 10 * 800


def test_youngs_interval_loses_least() -> None:
    best = storage.best_interval_s(20.0, 90_000.0)
    assert best == pytest.approx(math.sqrt(2 * 20 * 90_000))
    losses = [storage.lost_share(20.0, best * factor, 90_000.0, 300.0) for factor in (0.5, 0.9, 1.0, 1.1, 2.0)]
    assert min(losses) == losses[2]


def test_times_follow_from_the_step() -> None:
    assert PLAN.samples_per_s is not None
    assert PLAN.step_s == pytest.approx(0.5 + 2 * 7 / 8 * 4e6 / 1e10)
    assert PLAN.samples_per_s == pytest.approx(32 / 0.5007)
    assert PLAN.steps_per_epoch == 5000
    assert PLAN.checkpoint_s == pytest.approx((4 * 1.5e6 + 1000 + 4e6) / 1e9)
    assert PLAN.between_failures_s == 50_000 * 3600 / 8


# ---- warnings
WARNED: list[tuple[str, dict[str, Any]]] = [
    ("fewer shards than readers", {"data": dataclasses.replace(DATA, shards=15)}),
    ("share each open shard", {"run": run(nodes=128, workers=8, prefetch=1, shards_per_group=1)}),
    ("in flight", {"data": dataclasses.replace(DATA, samples=150)}),
    ("more than the 20 samples", {"data": dataclasses.replace(DATA, samples=20)}),
    ("an epoch is 12.5 updates", {"data": dataclasses.replace(DATA, samples=400)}),
    ("under 1000", {"run": run(num_steps=900)}),
    ("no whole number of updates", {"run": run(epochs=1, num_steps=5100)}),
    ("without warm-up", {"run": run(lr_factor=64.0)}),
    ("further than", {"run": run(lr_factor=64.0, warmup_steps=100)}),
    ("similarities a process", {"run": run(contrast_rows=20_000)}),
    ("ZeRO-3 keeps", {"run": run(zero_stage=3)}),
    ("prefer stage 1", {"run": run(zero_stage=2, accumulation_steps=4)}),
    ("no step time", {"step": None}),
    ("waits for data", {"step": StepTime(seconds=0.5, source="", data_wait_share=0.2)}),
    ("teacher's forward pass is 60%", {"step": StepTime(seconds=0.5, source="", teacher_share=0.6)}),
    ("communication is", {"network_bytes_per_s": 1e7}),
    ("no checkpoints but the last", {"run": run(checkpoint_every_s=None)}),
    ("would lose the least", {"run": run(nodes=2048, num_steps=100_000)}),
    ("writing checkpoints takes", {"run": run(checkpoint_every_s=0.1)}),
]


@pytest.mark.parametrize(("text", "changes"), WARNED, ids=[text for text, _ in WARNED])
def test_each_warning_has_its_cause(text: str, changes: dict[str, Any]) -> None:
    assert warnings(PLAN) == []
    assert any(text in line for line in warnings(dataclasses.replace(PLAN, **changes)))


# ---- command line
def test_a_plan_without_a_set_or_weights(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = ["--samples", "28130", "--bytes-per-sample", "2e6", "--step-time-s", "0.5", "--write-mb-s", "1000"]
    machine = ["--nodes", "4", "--gpus-per-node", "8"]
    assert tandem(["plan", str(NUSCENES), *machine, *numbers, "data.num_workers=4", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["batches"]["processes"] == 32
    assert figures["batches"]["samples per update"] == 128
    assert figures["batches"]["updates"] == -(-50 * 28130 // 128)
    assert figures["batches"]["learning rate x"] == 32
    assert figures["reading"]["read, all processes"] == pytest.approx(128 / 0.5 * 2e6)
    assert 30e6 < figures["memory a process"]["trainable parameters"] < 50e6  # SLidR's network has 38 million
    assert figures["time"]["GPU-hours"] == pytest.approx(10989 * 0.5 / 3600 * 32, rel=1e-3)
    assert any("without warm-up" in line for line in figures["warnings"])
    for given in ([], ["method.image_backbone.weights=torchvision:/absent/resnet18.pth"]):
        assert tandem(["plan", "pixel_contrast_scannet", *numbers, *given, "--json"]) == 0
        assert "memory a process" in json.loads(capsys.readouterr().out)


def test_a_plan_of_a_prepared_set_from_a_run(
    toy_set: str, tmp_path: Path, world: World, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain_here(tmp_path / "run", toy_set, *UNCACHED, "data.micro_batch_size=1", "schedule.steps=4")
    capsys.readouterr()
    path, *rest = arguments(tmp_path / "run", toy_set, *UNCACHED, "data.micro_batch_size=3", "schedule.steps=4")
    assert tandem(["plan", path, *rest, "--from-run", str(tmp_path / "run"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    middle = sorted(line["time/step_s"] for line in lines[1:])[1]
    assert figures["time"]["an update"] == pytest.approx(3 * middle)
    assert figures["batches"]["samples per epoch"] == 12
    assert figures["reading"]["shards"] == 3


def test_negatives_are_those_of_the_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Thirty superpixels an image bring a fifth of the negatives of 150; a run that expects 150 refuses such a set."""
    root = write_toy_set(tmp_path / "set", num_logs=2, frames_per_log=2)

    def plan(num_segments: int | None, *more: str) -> int:
        record = None if num_segments is None else SuperpixelRecord(method="slic", num_segments=num_segments)
        write_manifest(dataclasses.replace(load_manifest(root), superpixels=record))
        argv = arguments(tmp_path / "run", root, *UNCACHED, "method.gather_negatives=true", *more)
        return tandem(["plan", *argv, "--nodes", "2", "--gpus-per-node", "8", "--json"])

    sent = {}
    for num_segments in (30, 150, None):
        assert plan(num_segments) == 0
        figures = json.loads(capsys.readouterr().out)
        sent[num_segments] = figures["network, each process"]["negatives an update"]
    assert sent[150] == pytest.approx(5 * sent[30])
    assert sent[None] == sent[150], "what `tandem prepare` makes by default"
    assert plan(30, "data.expected_superpixels.num_segments=150") == 1
    assert "num_segments 30 (expected 150)" in capsys.readouterr().err


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem(["plan", str(NUSCENES)]) == 2
    assert "data.shards" in capsys.readouterr().err
    assert tandem(["plan", str(NUSCENES), "--samples", "100"]) == 2
    assert "--bytes-per-sample" in capsys.readouterr().err
    sizes = ["--samples", "100", "--bytes-per-sample", "1e6"]
    assert tandem(["plan", str(NUSCENES), *sizes, "--from-run", str(tmp_path)]) == 2
    assert "no metrics.jsonl" in capsys.readouterr().err
    for wrong in (["--nodes", "0"], ["--step-time-s", "-1"]):
        with pytest.raises(SystemExit):
            tandem(["plan", str(NUSCENES), *wrong])
        assert "expected" in capsys.readouterr().err


def test_writing_is_measured_where_the_run_will_lie(tmp_path: Path) -> None:
    speed = measured_writing(tmp_path / "not" / "yet")
    assert speed is not None
    assert 1e6 < speed < 1e11
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0421, "42 ms"), (7.5, "7.5 s"), (720.0, "12.0 min"), (1e4, "2.8 h"), (4e5, "4.6 days")]
)
def test_spoken(seconds: float, text: str) -> None:
    assert spoken(seconds) == text


@pytest.mark.slow
def test_a_plan_that_measures_here(toy_set: str, tmp_path: Path) -> None:
    argv = arguments(tmp_path / "run", toy_set, *UNCACHED)
    (output,) = finish([Child("launchers.plan", *argv, "--measure", "--json")])
    figures = json.loads(output[output.index("\n{\n") :])
    assert 0.01 < figures["time"]["an update"] < 60
    assert not (tmp_path / "run").exists()
