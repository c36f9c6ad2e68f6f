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
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from engine.downstream.common import (
    LabelDraws,
    Meter,
    SegmentationTask,
    Splits,
    Sweeps,
    Tuned,
    calibrate_batch_norm,
    hold_out,
    thin,
    tune_rate,
)
from engine.downstream.confusion import ConfusionMatrix
from engine.downstream.depth import DepthConfig
from engine.downstream.features import FeatureBank, Predictor, extract_bank, score
from engine.downstream.finetune import FinetuneConfig, finetune
from engine.downstream.image_segmentation import ImageFinetuneConfig, ImageProbeConfig
from engine.downstream.knn import KnnClassifier, KnnConfig
from engine.downstream.linear_probe import LinearProbeConfig, fit_linear, tune_linear
from engine.downstream.protocols import DRAWN, ORDER, Initialisation, Planned, ProtocolName, Tower, of_tower
from engine.downstream.registration import RegistrationConfig
from engine.downstream.results import Result, describe_machine, now, software_versions


@dataclass(frozen=True, kw_only=True)
class ProtocolsConfig:
    """Which protocols run, and what they share."""

    protocols: tuple[ProtocolName, ...] = ("linear_probe", "knn", "finetune")
    """Any of `engine.downstream.protocols.ProtocolName`."""
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
    depth: DepthConfig = field(default_factory=DepthConfig)
    image_linear_probe: ImageProbeConfig = field(default_factory=ImageProbeConfig)
    image_finetune: ImageFinetuneConfig = field(default_factory=ImageFinetuneConfig)
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)

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
        seeds = {
            "linear_probe": self.linear_probe.seeds,
            "knn": self.knn.seeds,
            "finetune": self.finetune.seeds,
            "depth": self.depth.seeds,
            "depth_frozen": self.depth.seeds,
            "image_linear_probe": self.image_linear_probe.seeds,
            "image_finetune": self.image_finetune.seeds,
            "registration": self.registration.seeds,
        }
        return seeds[protocol]

    def undrawn(self, tower: Tower) -> tuple[ProtocolName, ...]:
        """The chosen protocols of a tower that use all labels, or none: one pass through the sets serves them all."""
        return tuple(p for p in of_tower(self.protocols, tower) if p not in DRAWN)

    def drawn(self) -> tuple[ProtocolName, ...]:
        """The chosen protocols that train on drawn samples."""
        return tuple(p for p in ORDER if p in self.protocols and p in DRAWN)


def evaluate(
    inits: Sequence[Initialisation],
    sweeps: Sweeps,
    splits: Splits,
    task: SegmentationTask,
    config: ProtocolsConfig,
    *,
    draws: LabelDraws | None = None,
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
        draws: labelled sweeps of fine-tuning; not needed without it.
        context: what else shapes the numbers (identity of the data, voxels, backbone); JSON values.
        device: where networks run.
        known: earlier results; what they already hold is not measured again but given back, labelled anew.
        progress: told the share done (0 to 1) and what is going on.

    Yields:
        One record for each initialisation and protocol, as soon as it is there.

    Raises:
        LabelError: unlabelled sweeps, or labels that do not fit the task.
        ValueError: draws that do not fit the seeds.
        DivergenceError: training diverged at every learning rate.
    """
    if "finetune" in config.protocols:
        check_draws(draws, splits, config.validation_share, config.finetune.seeds, config.finetune.tune_seeds)
    job = _Job(sweeps, splits, task, config, draws, context, device)
    earlier = {result.identity: result for result in known}
    plan = []
    for init in inits:
        identities = {p: job.blank(init, p).identity for p in of_tower(config.protocols, "backbone")}
        yield from (init.labelled(earlier[identity]) for identity in identities.values() if identity in earlier)
        plan.append((init, [p for p, identity in identities.items() if identity not in earlier]))
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
    draws: LabelDraws | None
    context: Mapping[str, Any]
    device: torch.device | str

    def prepared(self, init: Initialisation, network: int) -> nn.Module:
        """A network of the initialisation on the device, with BatchNorm statistics of the train split."""
        backbone = init.networks[network]().to(self.device)
        chosen = thin(self.splits.train, self.config.calibration_sweeps)
        if len(chosen):
            calibrate_batch_norm(backbone, self.sweeps(chosen.tolist(), batch_size=1), self.device)
        return backbone.eval()

    def parts(self) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
        """The train split's parts to fit on and to tune on."""
        return hold_out(self.splits.train, self.splits.train_logs, self.config.validation_share)

    def labels(self, protocol: str) -> str:
        """Which labels a protocol may use, for tables."""
        return self.draws.text if protocol == "finetune" and self.draws is not None else "all"

    def settings(self, protocol: str) -> dict[str, Any]:
        """All that shapes a protocol's number, seeds aside."""
        tree = dataclasses.asdict(self.config)
        own: dict[str, Any] = {k: v for k, v in tree.pop(protocol).items() if k != "seeds"}
        shared = ["validation_share", "calibration_sweeps"]
        shared += ["tune_sweeps"] if protocol == "finetune" else ["voxels_per_sweep"]
        if protocol == "finetune" and self.draws is not None:
            own["draws"] = dict(self.draws.settings)
        counts = {"train_sweeps": len(self.splits.train), "test_sweeps": len(self.splits.test)}
        return {**own, **{k: tree[k] for k in shared}, **counts}

    def blank(self, init: Initialisation, protocol: ProtocolName) -> Result:
        """The record of a protocol before it is measured: who, what, how."""
        task = [self.task.dataset, list(self.task.class_names), self.splits.train.tolist(), self.splits.test.tolist()]
        return Planned(
            protocol=protocol,
            dataset=self.task.dataset,
            labels=self.labels(protocol),
            seeds=self.config.seeds(protocol),
            metric="miou",
            settings=self.settings(protocol),
            context=self.context,
            task=task,
        ).blank(init)

    def result(
        self,
        init: Initialisation,
        protocol: ProtocolName,
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
            metrics={
                "miou": tuple(100 * m.miou() for m in matrices),
                "accuracy": tuple(100 * m.accuracy() for m in matrices),
            },
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
            total += self.test_units(protocols) * len(self.splits.test)
            total += self.probe_units() * len(_own_seeds(init, self.config, "linear_probe", network))
        if "finetune" in protocols:
            recipe = self.config.finetune
            held = self.parts()[1]
            runs = len(recipe.seeds)
            trials = len(recipe.lrs) * len(recipe.tune_seeds) if len(recipe.lrs) > 1 else 0
            total += (runs + trials) * 3 * recipe.steps * recipe.batch_size
            total += runs * len(self.splits.test) + trials * len(thin(held, self.config.tune_sweeps))
        return total

    def test_units(self, protocols: Sequence[str]) -> int:
        """Work of one test sweep."""
        return 2 if "knn" in protocols else 1  # the search costs about as much as the forward pass

    def probe_units(self) -> int:
        """Work of one probe."""
        return self.config.linear_probe.steps // 10  # ten updates of a probe cost about one sweep


# --- frozen features ---


def _frozen_protocols(
    job: _Job, init: Initialisation, protocols: Sequence[ProtocolName], meter: Meter
) -> Iterator[Result]:
    matrices: dict[tuple[str, int], ConfusionMatrix] = {}
    tuned: dict[int, Tuned] = {}
    began = time.perf_counter()
    for network in _networks_in_use(init, job.config, protocols):
        backbone = job.prepared(init, network)
        fit, held = (_bank(job, init, backbone, part, number, meter) for number, part in enumerate(job.parts()))
        predictors: dict[str, Predictor] = {}
        if "linear_probe" in protocols:
            tuned |= _fit_probes(job, init, network, fit, held, predictors, meter)
        if "knn" in protocols:
            bank = fit.joined(held)
            for seed in _own_seeds(init, job.config, "knn", network):
                classifier = KnnClassifier(bank, job.task, job.config.knn, seed=seed, device=job.device)
                predictors[f"knn/{seed}"] = classifier.predict
        units = job.test_units(protocols)
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


def _bank(
    job: _Job, init: Initialisation, backbone: nn.Module, part: Int[np.ndarray, " n"], number: int, meter: Meter
) -> FeatureBank:
    return extract_bank(
        backbone,
        job.sweeps(part.tolist(), batch_size=1),
        job.task,
        voxels_per_sweep=job.config.voxels_per_sweep,
        seed=number,
        device=job.device,
        on_sweeps=lambda n: meter.advance(n, f"{init.name}: features of the train split"),
    )


def _fit_probes(
    job: _Job,
    init: Initialisation,
    network: int,
    fit: FeatureBank,
    held: FeatureBank,
    predictors: dict[str, Predictor],
    meter: Meter,
) -> dict[int, Tuned]:
    """Tune with the first of the network's seeds, then train one probe a seed on both parts."""
    config, seeds = job.config.linear_probe, _own_seeds(init, job.config, "linear_probe", network)
    if not seeds:
        return {}
    tuned = tune_linear(fit, held, job.task, config, seed=seeds[0], device=job.device)
    bank = fit.joined(held)
    for seed in seeds:
        head = fit_linear(bank, job.task, config, lr=tuned.lr, seed=seed, device=job.device)
        predictors[f"linear_probe/{seed}"] = head.predict
        meter.advance(job.probe_units(), f"{init.name}: linear probe")
    return dict.fromkeys(seeds, tuned)


# --- fine-tuning ---


def _finetune_protocol(job: _Job, init: Initialisation, meter: Meter) -> Result:
    config, began = job.config.finetune, time.perf_counter()
    networks = {n: job.prepared(init, n) for n in _networks_in_use(init, job.config, ["finetune"])}
    assert job.draws is not None  # checked by `evaluate`
    draws, held = job.draws, thin(job.parts()[1], job.config.tune_sweeps)

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
        text = f"{init.name}: tuning fine-tuning, rate {lr:g}"
        pairs = zip(config.tune_seeds, draws.tuning, strict=True)
        return float(np.mean([run(indices, 0, lr, seed, held, text).miou() for seed, indices in pairs]))

    tuned = tune_rate(config.lrs, validation_miou)
    matrices = []
    for number, (seed, indices) in enumerate(zip(config.seeds, draws.runs, strict=True)):
        text = f"{init.name}: fine-tuning, run {number + 1} of {len(config.seeds)}"
        matrices.append(run(indices, number % len(init.networks), tuned.lr, seed, job.splits.test, text))
    return job.result(init, "finetune", matrices, [tuned] * len(matrices), time.perf_counter() - began)


# --- small helpers ---


def check_draws(
    draws: LabelDraws | None,
    splits: Splits,
    validation_share: float,
    seeds: Sequence[int],
    tune_seeds: Sequence[int],
) -> None:
    """Refuse draws of labelled samples that do not fit the splits or the seeds.

    Raises:
        ValueError: none, not one a seed, empty, outside of the train split, or tuned on what rates are compared on.
    """
    if draws is None:
        raise ValueError("fine-tuning needs draws of labelled sweeps, got none")
    wanted = (len(seeds), len(tune_seeds))
    if (len(draws.runs), len(draws.tuning)) != wanted:
        raise ValueError(
            f"{len(draws.runs)} draws and {len(draws.tuning)} tuning draws, expected one a seed: "
            f"{wanted[0]} and {wanted[1]}"
        )
    held = hold_out(splits.train, splits.train_logs, validation_share)[1]
    for drawn in (*draws.runs, *draws.tuning):
        if len(drawn) == 0 or not np.isin(drawn, splits.train).all():
            raise ValueError("a draw of labelled sweeps is empty or not all of it lies in the train split")
    if any(np.isin(drawn, held).any() for drawn in draws.tuning):
        raise ValueError("a tuning draw contains sweeps that learning rates are compared on")


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
