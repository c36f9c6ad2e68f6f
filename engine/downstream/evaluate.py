"""The protocols together: every initialisation under the same budget, the expensive passes shared.

For each initialisation: build its networks, estimate BatchNorm statistics, run once over the train split (feature
bank), fit probes and kNN banks, run once over the test split; then fine-tune. Nothing but the first weights differs
between initialisations: same sweeps, same voxels in the bank, same label draws, same rates tried, same updates.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from engine.downstream.features import FeatureBank, Predictor, extract_bank, score
from engine.downstream.finetune import FinetuneConfig, finetune
from engine.downstream.knn import KnnClassifier, KnnConfig
from engine.downstream.linear_probe import LinearProbeConfig, fit_linear, tune_linear
from engine.downstream.metrics import ConfusionMatrix
from engine.downstream.protocol import (
    Meter,
    SegmentationTask,
    Splits,
    Sweeps,
    Tuned,
    calibrate_batch_norm,
    draw_labelled,
    hold_out,
    thin,
    tune_rate,
)
from engine.downstream.results import LeakLevel, Result, describe_machine, fingerprint, now, software_versions

ProtocolName = Literal["linear_probe", "knn", "finetune"]
ORDER: tuple[ProtocolName, ...] = ("linear_probe", "knn", "finetune")


@dataclass(frozen=True, kw_only=True)
class ProtocolsConfig:
    """Which protocols run, and what they share."""

    protocols: tuple[Literal["linear_probe", "knn", "finetune"], ...] = ("linear_probe", "knn", "finetune")
    """Any of linear_probe, knn, finetune."""
    validation_share: float = 0.2
    """Share of the train split's logs that learning rates are tuned on."""
    tune_sweeps: int = 12
    """At most so many of those sweeps tune fine-tuning (the linear probe uses all: they cost it nothing)."""
    voxels_per_sweep: int | None = 800
    """Labelled voxels of each train sweep in the feature bank, at random; null for all."""
    calibration_sweeps: int = 32
    """Train sweeps that BatchNorm statistics are estimated on anew, for every initialisation; 0 leaves them alone."""
    linear_probe: LinearProbeConfig = field(default_factory=LinearProbeConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)

    def __post_init__(self) -> None:
        if not self.protocols or len(set(self.protocols)) != len(self.protocols):
            raise ValueError(f"protocols = {self.protocols}: expected one or more different ones of {', '.join(ORDER)}")
        if not 0.0 < self.validation_share <= 0.5:
            raise ValueError(f"validation_share = {self.validation_share}: expected above 0 and at most 0.5")
        if self.tune_sweeps < 1 or self.calibration_sweeps < 0:
            raise ValueError(
                f"tune_sweeps = {self.tune_sweeps}, calibration_sweeps = {self.calibration_sweeps}: "
                "expected at least 1 and 0"
            )
        if self.voxels_per_sweep is not None and self.voxels_per_sweep < 1:
            raise ValueError(f"voxels_per_sweep = {self.voxels_per_sweep}: expected at least 1, or null for all")

    def seeds(self, protocol: str) -> tuple[int, ...]:
        """Seeds of one protocol."""
        seeds = {"linear_probe": self.linear_probe.seeds, "knn": self.knn.seeds, "finetune": self.finetune.seeds}
        return seeds[protocol]

    def frozen(self) -> tuple[str, ...]:
        """The chosen protocols that work on frozen features."""
        return tuple(p for p in ORDER if p in self.protocols and p != "finetune")


@dataclass(frozen=True, kw_only=True)
class Initialisation:
    """Where a network's weights come from.

    Attributes:
        name: for tables: the method's name, or "random".
        pretrained: False for the random baseline.
        networks: makers of the backbone, in evaluation-ready form on the CPU; the r-th seed of a protocol uses number
            r modulo their count. One for a single checkpoint; several for repeated pre-training or random draws.
        checkpoint: identity of each network's weights; empty for random ones.
        teacher: image network that taught it, "" for none.
        leak: label-leak level.
    """

    name: str
    pretrained: bool
    networks: tuple[Callable[[], nn.Module], ...]
    checkpoint: tuple[str, ...] = ()
    teacher: str = ""
    leak: LeakLevel = "none"


def finetune_draws(splits: Splits, config: ProtocolsConfig) -> dict[int, Int[np.ndarray, " n"]]:
    """Labelled sweeps of each seed of fine-tuning.

    Random frames come from the part of the train split that no rate is tuned on; the fixed lists of the literature
    from all of it, so that they stay the lists of the literature.
    """
    budget = config.finetune.labels
    pool = hold_out(splits, config.validation_share)[0] if budget.kind == "frames" else splits.train
    logs = _logs_of(splits, pool)
    return {seed: draw_labelled(budget, pool, logs, seed) for seed in config.finetune.seeds}


def evaluate(
    inits: Sequence[Initialisation],
    sweeps: Sweeps,
    splits: Splits,
    task: SegmentationTask,
    config: ProtocolsConfig,
    *,
    context: Mapping[str, Any],
    device: torch.device | str = "cpu",
    known: Sequence[Result] = (),
    progress: Callable[[float, str], None] | None = None,
) -> Iterator[Result]:
    """Measure initialisations.

    Args:
        inits: what to compare, normally a pre-trained network and the random baseline.
        sweeps: reader of labelled sweeps.
        splits: which sweeps are for what.
        task: classes.
        config: protocols.
        context: what else shapes the numbers (identity of the data, voxels, backbone); JSON values.
        device: where networks run.
        known: earlier results; what they already hold is not measured again.
        progress: told the share done (0 to 1) and what is going on.

    Yields:
        One record for each initialisation and protocol, as soon as it is complete.

    Raises:
        ValueError: unlabelled sweeps or labels that do not fit the task.
        DivergenceError: training diverged at every learning rate.
    """
    job = _Job(sweeps, splits, task, config, context, device)
    done = {result.identity for result in known}
    plan = [
        (init, [p for p in ORDER if p in config.protocols and job.blank(init, p).identity not in done])
        for init in inits
    ]
    meter = Meter(sum(job.work(init, protocols) for init, protocols in plan), progress)
    for init, protocols in plan:
        frozen = [p for p in protocols if p != "finetune"]
        if frozen:
            yield from _frozen_protocols(job, init, frozen, meter)
        if "finetune" in protocols:
            yield _finetune_protocol(job, init, meter)


@dataclass(frozen=True)
class _Job:
    """What stays the same for all initialisations."""

    sweeps: Sweeps
    splits: Splits
    task: SegmentationTask
    config: ProtocolsConfig
    context: Mapping[str, Any]
    device: torch.device | str

    def prepared(self, init: Initialisation, network: int) -> nn.Module:
        """A network of the initialisation on the device, with BatchNorm statistics of the train split."""
        backbone = init.networks[network]().to(self.device)
        chosen = thin(self.splits.train, self.config.calibration_sweeps)
        if len(chosen):
            calibrate_batch_norm(backbone, self.sweeps(chosen.tolist(), batch_size=1), self.device)
        return backbone.eval()

    def labels(self, protocol: str) -> str:
        """Which labels a protocol may use, for tables."""
        return self.config.finetune.labels.describe() if protocol == "finetune" else "all"

    def settings(self, protocol: str) -> dict[str, Any]:
        """All that shapes a protocol's number, seeds aside."""
        tree = dataclasses.asdict(self.config)
        own: dict[str, Any] = {k: v for k, v in tree.pop(protocol).items() if k != "seeds"}
        shared = ["validation_share", "calibration_sweeps"]
        shared += ["tune_sweeps"] if protocol == "finetune" else ["voxels_per_sweep"]
        counts = {"train_sweeps": len(self.splits.train), "test_sweeps": len(self.splits.test)}
        return {**own, **{k: tree[k] for k in shared}, **counts}

    def blank(self, init: Initialisation, protocol: str) -> Result:
        """The record of a protocol before it is measured: who, what, how."""
        settings = self.settings(protocol)
        task = [self.task.dataset, list(self.task.class_names), self.splits.train.tolist(), self.splits.test.tolist()]
        seeds = self.config.seeds(protocol)
        return Result(
            protocol=protocol,
            dataset=self.task.dataset,
            labels=self.labels(protocol),
            init=init.name,
            pretrained=init.pretrained,
            teacher=init.teacher,
            leak=init.leak,
            seeds=seeds,
            miou=(0.0,) * len(seeds),
            accuracy=(0.0,) * len(seeds),
            class_iou={},
            checkpoint=init.checkpoint,
            settings=settings,
            fingerprint=fingerprint({"settings": settings, "context": dict(self.context), "task": task}),
        )

    def result(
        self,
        init: Initialisation,
        protocol: str,
        matrices: Sequence[ConfusionMatrix],
        tuned: Sequence[Tuned],
        seconds: float,
    ) -> Result:
        """The record of a protocol from one confusion matrix (and one rate) a seed."""
        per_class = torch.stack([m.iou() for m in matrices]).nanmean(0) * 100
        class_iou = {
            name: None if value != value else value  # NaN: no test point has this class
            for name, value in zip(self.task.class_names, per_class.tolist(), strict=True)
        }
        return dataclasses.replace(
            self.blank(init, protocol),
            miou=tuple(100 * m.miou() for m in matrices),
            accuracy=tuple(100 * m.accuracy() for m in matrices),
            class_iou=class_iou,
            lr=tuple(t.lr for t in tuned),
            tuning=_mean_table(tuned),
            lr_at_edge=any(t.at_edge for t in tuned),
            seconds=round(seconds, 1),
            versions=software_versions(),
            machine=describe_machine(self.device),
            date=now(),
        )

    def work(self, init: Initialisation, protocols: Sequence[str]) -> int:
        """Estimate in sweeps through the network, for the progress bar."""
        total = 0
        for network in _networks_in_use(init, self.config, [p for p in protocols if p != "finetune"]):
            total += len(self.splits.train)
            total += self._test_units(protocols) * len(self.splits.test)
            total += self._probe_units() * len(_own_seeds(init, self.config, "linear_probe", network))
        if "finetune" in protocols:
            recipe = self.config.finetune
            held = hold_out(self.splits, self.config.validation_share)[1]
            runs = len(recipe.seeds)
            trials = len(recipe.lrs) * len(recipe.tune_seeds) if len(recipe.lrs) > 1 else 0
            total += (runs + trials) * 3 * recipe.steps * recipe.batch_size
            total += runs * len(self.splits.test) + trials * len(thin(held, self.config.tune_sweeps))
        return total

    def _test_units(self, protocols: Sequence[str]) -> int:
        return 2 if "knn" in protocols else 1  # the search costs about as much as the forward pass

    def _probe_units(self) -> int:
        return self.config.linear_probe.steps // 10  # ten updates of a probe cost about one sweep


# --- frozen features ---


def _frozen_protocols(job: _Job, init: Initialisation, protocols: Sequence[str], meter: Meter) -> Iterator[Result]:
    matrices: dict[tuple[str, int], ConfusionMatrix] = {}
    tuned: dict[int, Tuned] = {}
    began = time.perf_counter()
    for network in _networks_in_use(init, job.config, protocols):
        backbone = job.prepared(init, network)
        bank = extract_bank(
            backbone,
            job.sweeps(job.splits.train.tolist(), batch_size=1),
            job.task,
            voxels_per_sweep=job.config.voxels_per_sweep,
            seed=0,
            device=job.device,
            on_sweeps=lambda n: meter.advance(n, f"{init.name}: features of the train split"),
        )
        predictors: dict[str, Predictor] = {}
        if "linear_probe" in protocols:
            tuned |= _fit_probes(job, init, network, bank, predictors, meter)
        if "knn" in protocols:
            for seed in _own_seeds(init, job.config, "knn", network):
                classifier = KnnClassifier(bank, job.task, job.config.knn, seed=seed, device=job.device)
                predictors[f"knn/{seed}"] = classifier.predict
        units = job._test_units(protocols)
        scored = score(
            backbone,
            job.sweeps(job.splits.test.tolist(), batch_size=1),
            predictors,
            job.task,
            device=job.device,
            on_sweeps=lambda n, units=units: meter.advance(
                n * units, f"{init.name}: {', '.join(protocols)} on the test split"
            ),  # type: ignore[misc]
        )
        matrices |= {(name.split("/")[0], int(name.split("/")[1])): m for name, m in scored.items()}
    seconds = time.perf_counter() - began
    for protocol in protocols:
        seeds = job.config.seeds(protocol)
        rates = [tuned[s] for s in seeds] if protocol == "linear_probe" else []
        yield job.result(init, protocol, [matrices[protocol, s] for s in seeds], rates, seconds)


def _fit_probes(
    job: _Job, init: Initialisation, network: int, bank: FeatureBank, predictors: dict[str, Predictor], meter: Meter
) -> dict[int, Tuned]:
    """Tune on the first of the network's seeds, then train one probe a seed on the whole bank."""
    config, seeds = job.config.linear_probe, _own_seeds(init, job.config, "linear_probe", network)
    if not seeds:
        return {}
    held = hold_out(job.splits, job.config.validation_share)[1]
    is_held = torch.from_numpy(np.isin(job.splits.train, held))[bank.sweep]
    tuned = tune_linear(bank, is_held, job.task, config, seed=seeds[0], device=job.device)
    for seed in seeds:
        head = fit_linear(bank, job.task, config, lr=tuned.lr, seed=seed, device=job.device)
        predictors[f"linear_probe/{seed}"] = head.predict
        meter.advance(job._probe_units(), f"{init.name}: linear probe")
    return dict.fromkeys(seeds, tuned)


# --- fine-tuning ---


def _finetune_protocol(job: _Job, init: Initialisation, meter: Meter) -> Result:
    config, began = job.config.finetune, time.perf_counter()
    networks = {n: job.prepared(init, n) for n in _networks_in_use(init, job.config, ["finetune"])}
    fit, held = hold_out(job.splits, job.config.validation_share)
    held = thin(held, job.config.tune_sweeps)

    def run(
        indices: Int[np.ndarray, " n"], network: int, lr: float, seed: int, test: Int[np.ndarray, " m"], text: str
    ) -> ConfusionMatrix:
        trained = finetune(
            networks[network],
            job.sweeps,
            indices,
            job.task,
            config,
            lr=lr,
            seed=seed,
            device=job.device,
            on_step=lambda n: meter.advance(3 * n, text),
        )
        return score(
            trained.backbone,
            job.sweeps(test.tolist(), batch_size=1),
            {"finetune": trained.predict},
            job.task,
            device=job.device,
            on_sweeps=lambda n: meter.advance(n, text),
        )["finetune"]

    def validation_miou(lr: float) -> float:
        logs, values = _logs_of(job.splits, fit), []
        for seed in config.tune_seeds:
            indices = draw_labelled(config.labels, fit, logs, seed)
            text = f"{init.name}: tuning fine-tuning, rate {lr:g}"
            values.append(run(indices, 0, lr, seed, held, text).miou())
        return float(np.mean(values))

    tuned = tune_rate(config.lrs, validation_miou)
    matrices = []
    for position, (seed, indices) in enumerate(finetune_draws(job.splits, job.config).items()):
        text = f"{init.name}: fine-tuning, run {position + 1} of {len(config.seeds)}"
        matrices.append(run(indices, position % len(init.networks), tuned.lr, seed, job.splits.test, text))
    return job.result(init, "finetune", matrices, [tuned] * len(matrices), time.perf_counter() - began)


# --- small helpers ---


def _logs_of(splits: Splits, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    log = dict(zip(splits.train.tolist(), splits.train_logs.tolist(), strict=True))
    return np.array([log[i] for i in indices.tolist()], dtype=np.int64)


def _networks_in_use(init: Initialisation, config: ProtocolsConfig, protocols: Sequence[str]) -> list[int]:
    longest = max((len(config.seeds(p)) for p in protocols), default=0)
    return list(range(min(longest, len(init.networks))))


def _own_seeds(init: Initialisation, config: ProtocolsConfig, protocol: str, network: int) -> list[int]:
    return [s for r, s in enumerate(config.seeds(protocol)) if r % len(init.networks) == network]


def _mean_table(tuned: Sequence[Tuned]) -> dict[str, float | None]:
    """Validation mIoU in percent by rate, averaged; None where any network diverged."""
    rates = sorted({lr for t in tuned for lr in t.table})
    means = {lr: float(np.mean([t.table[lr] for t in tuned])) for lr in rates}
    return {f"{lr:g}": None if mean != mean else 100 * mean for lr, mean in means.items()}
