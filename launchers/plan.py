"""`tandem plan`: what a run would cost, without a cluster."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from configs.find import find_config
from configs.load import UNREADABLE, ConfigError, required_settings
from configs.runs import RunConfig
from data.loading.in_use import NEWEST_ORDER
from data.loading.labelled import with_fraction
from data.preparing.superpixels import SuperpixelConfig
from data.storage.mixture import open_sets
from engine.deepspeed_config import BUCKET_NUMEL
from engine.optim import peak_lr, state_numbers
from engine.schedule import total_steps
from launchers.cli import guarded
from launchers.options.plan import parser
from launchers.planning.arithmetic import FP32, Data, Model, PlannedRun
from launchers.planning.figures import Plan, StepTime
from launchers.planning.measure import measured_writing, step_here, step_of_run
from launchers.planning.tables import sections
from launchers.planning.warnings import warnings
from launchers.runs.terminal import terminal
from launchers.training.stages import method_without_files
from launchers.training.train import load_run, resolved_yaml
from models.methods.base import Objective


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    options = parser().parse_intermixed_args(argv)  # overrides may stand between options
    config = load_run(options.config, [*blanks(options), *options.overrides])
    if options.show_config:
        print(resolved_yaml(config), end="")
        return 0
    objective = method_without_files(config).build()
    plan = make_plan(config, objective, options)
    if options.json:
        figures = {name: {row.name: row.value for row in rows} for name, rows in sections(plan).items()}
        print(json.dumps(figures | {"warnings": warnings(plan)}, indent=1))
    else:
        show(plan, terminal())
    return 0


def blanks(options: argparse.Namespace) -> list[str]:
    """Overrides for what a config asks for and a plan can do without: the shards under --samples, weight files."""
    try:
        asked = required_settings(find_config(options.config, "pretrain"))
    except (OSError, *UNREADABLE):
        return []  # `load_run` says it better
    stand_ins = {name: "random" for name in asked if name.endswith(".weights")}
    if options.samples is not None and "data.shards" in asked:
        stand_ins["data.shards"] = "none"
    return [f"{name}={stand_in}" for name, stand_in in stand_ins.items()]


# ---- sizes


def make_plan(config: RunConfig, objective: Objective, options: argparse.Namespace) -> Plan:
    """Gather counts and measurements; the objective is built from the config, for its sizes.

    Raises:
        ConfigError: settings that do not fit, or a run without metrics.
        ShardError: no prepared set, and no --samples.
    """
    data, cameras, num_segments = data_sizes(config, options)
    world_size = options.nodes * options.gpus_per_node
    global_batch = config.data.micro_batch_size * config.engine.accumulation_steps * world_size
    try:
        num_steps = total_steps(config.schedule, samples_per_epoch=data.samples, global_batch_size=global_batch)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    step = None
    if options.step_time_s is not None:
        step = StepTime(seconds=options.step_time_s, source="as given")
    elif options.from_run is not None:
        step = step_of_run(options.from_run, config)
    elif options.measure:
        step = step_here(config, objective, cameras)
    run = dataclasses.replace(
        run_settings(config, options, num_steps, cameras, num_segments),
        lr_factor=peak_lr(config.optim, global_batch) / config.optim.lr,
        checkpoint_every_s=checkpoint_interval_s(config, step),
    )
    written = options.write_mb_s * 1e6 if options.write_mb_s else measured_writing(Path(config.run_dir))
    return Plan(
        model=model_sizes(objective, config.engine.zero3_persistent_numel),
        data=data,
        run=run,
        step=step,
        write_bytes_per_s=written,
        network_bytes_per_s=options.network_gb_s * 1e9 if options.network_gb_s else None,
        gpu_hours_per_failure=options.gpu_hours_per_failure,
        restart_s=options.restart_s,
    )


def model_sizes(objective: nn.Module, persistent_numel: int) -> Model:
    """Count an objective's parameters and buffers; ZeRO-3 leaves those with fewer than `persistent_numel` whole."""
    parameters = dict(objective.named_parameters())
    trainable = [p.numel() for p in parameters.values() if p.requires_grad]
    # What SyncBatchNorm and all dimensions derive from.
    norms = [m for m in objective.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return Model(
        trainable=sum(trainable),
        whole_numel=sum(count for count in trainable if count < persistent_numel),
        frozen=sum(p.numel() for p in parameters.values() if not p.requires_grad),
        buffer_bytes=sum(b.nbytes for name, b in objective.state_dict().items() if name not in parameters),
        norm_channels=tuple(m.num_features for m in norms if any(p.requires_grad for p in m.parameters())),
    )


def data_sizes(config: RunConfig, options: argparse.Namespace) -> tuple[Data, int, int]:
    """The split's sizes, its cameras a sample and superpixels an image: from the manifest, or from options and config.

    Where no set records it, superpixels are as many as the run expects, or as `tandem prepare` makes by default.
    """
    expected = config.data.expected_superpixels
    num_segments = (expected and expected.num_segments) or SuperpixelConfig().num_segments
    if options.samples is not None:
        if options.bytes_per_sample is None:
            raise ConfigError("--samples needs --bytes-per-sample; `tandem inspect SHARDS` shows it for a prepared set")
        data = Data(samples=options.samples, bytes_per_sample=options.bytes_per_sample)
        return data, config.data.cameras_per_sample or options.cameras or 1, num_segments
    opened = with_fraction(open_sets(config.data.sets, warn=True), config.data.fraction)
    manifest = opened.reader.manifest
    sizes = [sum(int(piece.sum()) for piece in part.values("sample_size")) for part in opened.sets]
    weighted = [(s.weight * size, s.weight * s.num) for s, size in zip(opened.stretches, sizes, strict=True)]
    data = Data(
        samples=sum(stretch.per_epoch for stretch in opened.stretches),
        bytes_per_sample=sum(size for size, _ in weighted) / sum(num for _, num in weighted),
        shards=len(np.unique(opened.blocks.shard)),
    )
    return data, config.data.cameras_per_sample or len(manifest.camera_names), opened.num_segments or num_segments


def run_settings(
    config: RunConfig, options: argparse.Namespace, num_steps: int, cameras: int, num_segments: int
) -> PlannedRun:
    """The settings that cost something, from the config and the machine."""
    gathers = bool(config.method.gather_negatives)
    return PlannedRun(
        nodes=options.nodes,
        processes_per_node=options.gpus_per_node,
        micro_batch_size=config.data.micro_batch_size,
        accumulation_steps=config.engine.accumulation_steps,
        num_steps=num_steps,
        zero_stage=config.engine.zero_stage,
        weight_bytes=2 if config.engine.precision == "bf16_native" else FP32,
        optimizer_numbers=state_numbers(config.optim),
        workers=config.data.num_workers,
        prefetch=config.data.prefetch,
        shards_per_group=config.data.shards_per_group,
        sync_bn=config.engine.sync_bn,
        contrast_rows=config.data.micro_batch_size * cameras * num_segments if gathers else 0,
        embedding_dim=config.method.embedding_dim,
        bucket_numel=BUCKET_NUMEL,
        overlap=config.engine.device != "cpu",
        epochs=config.schedule.epochs if config.schedule.steps is None else None,
        warmup_steps=config.schedule.warmup_steps,
        keep=config.checkpoint.keep,
        chunk_rows=config.method.chunk_rows,
        order=config.data.order or NEWEST_ORDER,
    )


def checkpoint_interval_s(config: RunConfig, step: StepTime | None) -> float | None:
    """Seconds between checkpoints that the config asks for."""
    intervals = [config.checkpoint.every_min * 60] if config.checkpoint.every_min else []
    if config.checkpoint.every_steps and step is not None:
        intervals.append(config.checkpoint.every_steps * step.seconds)
    return min(intervals, default=None)


def show(plan: Plan, console: Console) -> None:
    """Print a plan."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold", style="dim")
    for number, (title, rows) in enumerate(sections(plan).items()):
        if number:
            table.add_row("")
        table.add_row(f"[bold]{escape(title)}[/bold]")
        for row in rows:
            table.add_row(escape(row.name), escape(row.text), escape(row.note))
    console.print(table)
    if remarks := warnings(plan):
        console.print("\n[bold]mind[/bold]")
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False, style="yellow")
        for text in remarks:
            table.add_row("-", escape(text))
        console.print(table)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
