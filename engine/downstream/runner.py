"""One flow for all downstream protocols: what is known is given back, the rest is measured, record by record.

A protocol is an entry of `engine.downstream.protocols.PROTOCOLS`: its facts and its measuring function, which need not
know of records, known results or progress over several initialisations. Those of one tower are measured in one call of
`measure`; protocols with the same measuring function are handed to it together, so that they share its passes.

Comparisons are fair because nothing but the first weights differs between initialisations: same samples, same label
draws (made before any network is built), same rates tried on samples held out from the *train* split, same number of
updates, BatchNorm statistics estimated in the same way.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from common.ranges import at_least, at_most, positive
from engine.downstream.common import (
    LabelDraws,
    ProgressMeter,
    Reader,
    Samples,
    SegmentationTask,
    Splits,
    Truth,
    Tuned,
    calibrate_batch_norm,
    hold_out,
    kept_as_it_is,
    thin,
    tune_rate,
)
from engine.downstream.confusion import AbsentClass, ConfusionMatrix, absent_class_of
from engine.downstream.results import LeakLevel, Result, describe_machine, fingerprint, now, software_versions

Tower = Literal["backbone", "image_backbone", "objective"]
"""The part of a method that a protocol measures, by its attribute's name in configs and objectives; or all of it."""

TOWER_TITLES: dict[Tower, str] = {
    "backbone": "3D network",
    "image_backbone": "image network",
    "objective": "whole method",
}
"""Tower -> name in messages."""


@dataclass(frozen=True, kw_only=True)
class SharedConfig:
    """Which protocols run, and the settings that they share.

    Attributes:
        protocols: any of `engine.downstream.protocols.PROTOCOLS`.
        validation_share: share of the train split's logs that learning rates are tuned on.
        tune_sweeps: at most this many of those sweeps tune fine-tuning (the linear probe uses all: they cost it
            nothing).
        voxels_per_sweep: labelled voxels of each train sweep in the feature bank, at random; null for all.
        calibration_sweeps: train sweeps that BatchNorm statistics are estimated on again, for every initialisation; 0
            leaves them alone.
        absent_class: what a class counts as in mIoU that neither the true nor the predicted classes of the test split
            have; "benchmark": as in the set's own tool (`absent_class_of`); "one" is what SLidR's code does.
    """

    protocols: tuple[str, ...] = ("linear_probe", "knn", "finetune")
    validation_share: float = 0.2
    tune_sweeps: int = 12
    voxels_per_sweep: int | None = 800
    calibration_sweeps: int = 32
    absent_class: Literal["benchmark", AbsentClass] = "benchmark"

    def __post_init__(self) -> None:
        positive(self, "validation_share")
        at_most(self, validation_share=0.5)
        at_least(self, tune_sweeps=1, calibration_sweeps=0)
        at_least(self, "null: all", voxels_per_sweep=1)

    def absent_class_of(self, dataset: str) -> AbsentClass:
        """The choice for a set by its name."""
        return absent_class_of(dataset) if self.absent_class == "benchmark" else self.absent_class


@dataclass(frozen=True, kw_only=True)
class Initialisation:
    """Where a network's weights come from.

    Attributes:
        name: in tables: the method's name, or "random".
        pretrained: False for the random baseline.
        networks: makers of the tower, in evaluation-ready form on the CPU; the r-th seed of a protocol uses number
            r modulo their count. One for a single checkpoint; several for repeated pre-training or random draws.
        checkpoint: identity of each network's weights; empty for random ones.
        teacher: image network that taught it, "" for none.
        leak: label-leak level.
        pretraining: how it was made, as tables show it, e.g. "600 steps, seed 0".
        setting, pretrain_seeds, chosen: see `Result`.
    """

    name: str
    pretrained: bool
    networks: tuple[Callable[[], nn.Module], ...]
    checkpoint: tuple[str, ...] = ()
    teacher: str = ""
    leak: LeakLevel = "none"
    pretraining: str = ""
    setting: str = ""
    pretrain_seeds: tuple[int, ...] = ()
    chosen: tuple[str, ...] = ()

    def labelled(self, result: Result) -> Result:
        """A record of these weights with what is known of them now; no number changes."""
        return dataclasses.replace(result, setting=self.setting, pretrain_seeds=self.pretrain_seeds, chosen=self.chosen)

    def in_use(self, seeds: Sequence[int]) -> range:
        """Numbers of the networks that runs with these seeds use."""
        return range(min(len(seeds), len(self.networks)))

    def seeds_of(self, network: int, seeds: Sequence[int]) -> list[int]:
        """Those of the seeds whose runs use one network."""
        return [seed for run, seed in enumerate(seeds) if run % len(self.networks) == network]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a measuring function found out about one protocol.

    Attributes:
        metrics: value of each seed by metric; None where it is not defined.
        tuned: outcome of tuning for each seed; empty where nothing is tuned.
        scale: the tuned values times this are the main metric as the record states it (in percent, errors positive).
        class_iou: see `Result`.
    """

    metrics: Mapping[str, tuple[float | None, ...]]
    tuned: Sequence[Tuned] = ()
    scale: int = 1
    class_iou: Mapping[str, float | None] = dataclasses.field(default_factory=dict)

    def tuning(self) -> dict[str, float | None]:
        """The main metric on validation data by rate, averaged over the seeds; None where any network diverged."""
        rates = sorted({lr for t in self.tuned for lr in t.table})
        means = {lr: float(np.mean([t.table[lr] for t in self.tuned])) for lr in rates}
        return {f"{lr:g}": None if math.isnan(mean) else self.scale * mean for lr, mean in means.items()}


BatchT = TypeVar("BatchT")


@dataclass(frozen=True, kw_only=True)
class Parts(Generic[BatchT]):
    """What the launcher hands in for the protocols of a tower, because this package knows no data and no network.

    Attributes:
        read: reader of samples with their ground truth.
    """

    read: Reader[BatchT]

    def calibration(self, indices: Sequence[int]) -> Iterable[BatchT]:
        """Batches that BatchNorm statistics are estimated on."""
        return self.read(Samples(indices, truth=None))

    def run(self, network: nn.Module, batch: Any) -> object:
        """Run the tower on a batch of its device."""
        raise NotImplementedError


def described(job: Job[Any], name: str) -> tuple[dict[str, Any], list[Any]]:
    """All that shapes a protocol's number, seeds, data and network aside.

    Returns:
        Settings, and the task: what is predicted and on which samples. JSON values.
    """
    protocol, unit = job.protocols[name], _UNITS[job.protocols[name].tower]
    settings = {key: value for key, value in dataclasses.asdict(job.section(name)).items() if key != "seeds"}
    settings = {key: value for key, value in settings.items() if key not in LATER or value != LATER[key]}
    shared = ("validation_share", "calibration_sweeps", *(("tune_sweeps",) if protocol.drawn else ()), *protocol.shared)
    settings |= {key: getattr(job.config, key) for key in shared}
    settings |= {f"train_{unit}": len(job.splits.train), f"test_{unit}": len(job.splits.test)}
    if protocol.drawn:
        settings["draws"] = dict(job.draws[name].settings)
    classes: list[str] = []
    if protocol.truth == "labels":
        classes = list(job.task().class_names)
        settings["absent_class"] = job.task().absent_class
    return settings, [job.dataset, classes, job.splits.train.tolist(), job.splits.test.tolist()]


LATER: Mapping[str, object] = {
    "optimizer": "adamw",
    "momentum": 0.9,
    "dampening": 0.1,
    "epochs": None,
    "warmup_share": 0.1,
    "bn_momentum": None,
    "voxel_label": "majority",
    "head": "linear",
    "schedule": "cosine",
    "decoder": "unet",
    "root_scale": None,
}
"""Settings of protocols that records of earlier versions lack -> what those were measured with. Left out of a record
where they have this value, so that known results stay known."""
_UNITS: dict[Tower, str] = {"backbone": "sweeps", "image_backbone": "samples", "objective": "sweeps"}
"""What samples are called in settings; a record's fingerprint depends on it."""


PartsT = TypeVar("PartsT", bound=Parts[Any])
MeasuringFunction = Callable[[Any, Initialisation, Sequence[str], ProgressMeter], Mapping[str, Measured]]
"""Measures one initialisation with the named protocols of a `Job` of its tower: all those that name this function."""
WorkEstimate = Callable[[Any, Initialisation, Sequence[str]], int]
"""Work of that call in samples through the network, for the progress bar."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """All that is stated of one protocol: an entry of `engine.downstream.protocols.PROTOCOLS`.

    Attributes:
        title: in tables and reports.
        remark: what its main metric is taken over, below tables.
        idea: what is trained on what, for people who do not know it; "" where the remark says it.
        tower: what it measures.
        metric: the main metric.
        truth: the ground truth that it reads; a pose comes from the calibration and is no label.
        section: field of `ProtocolsConfig` with its settings, a dataclass with `seeds`.
        measure: measures it.
        work: what that costs.
        frozen: the network stays as it is; `measure` must compare it with itself afterwards (`kept_as_it_is`).
        drawn: it trains on drawn samples, with a number of labels of its own; else it uses all labels, or none. Its
            settings have `tune_seeds`, `lrs`, `steps` and `batch_size`.
        shared: shared settings that shape its number, beside those that every protocol's (or every drawn one's)
            depends on.
        describe: all that shapes its number, see `described`.
    """

    title: str
    remark: str
    tower: Tower
    metric: str
    truth: Truth
    section: str
    measure: MeasuringFunction
    work: WorkEstimate
    idea: str = ""
    frozen: bool = False
    drawn: bool = False
    shared: tuple[str, ...] = ()
    describe: Callable[[Any, str], tuple[dict[str, Any], list[Any]]] = described


@dataclass(frozen=True, kw_only=True)
class Job(Generic[PartsT]):
    """What stays the same for all initialisations of a call.

    Attributes:
        protocols: those to be measured, in the order of their records; all of one tower.
        parts: how the tower's samples are read, and what else its protocols need.
        splits: which samples are for what.
        dataset: name of the set.
        classes: its classes; None where no protocol predicts any.
        config: settings of the protocols.
        draws: labelled samples of each drawn protocol.
        context: what else shapes the numbers (identity of the data, of the network); JSON values.
        device: where networks run.
    """

    protocols: Mapping[str, Protocol]
    parts: PartsT
    splits: Splits
    dataset: str
    classes: SegmentationTask | None
    config: SharedConfig
    draws: Mapping[str, LabelDraws] = dataclasses.field(default_factory=dict)
    context: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    device: torch.device | str = "cpu"

    def check(self) -> None:
        """Refuse what would stop in the middle of the work.

        Raises:
            ValueError: classes missing, or draws that are missing, not one for each seed, empty, outside of the train
                split, or tuned on what rates are compared on.
        """
        for name, protocol in self.protocols.items():
            if protocol.truth == "labels" and self.classes is None:
                raise ValueError(f"{name} needs class names, and the set has none")
            if protocol.drawn:
                self._check_draws(name, self.draws.get(name))

    def _check_draws(self, name: str, draws: LabelDraws | None) -> None:
        if draws is None:
            raise ValueError(f"{name} needs draws of labelled samples, got none")
        expected = (len(self.section(name).seeds), len(self.section(name).tune_seeds))
        if (len(draws.runs), len(draws.tuning)) != expected:
            raise ValueError(
                f"{name}: {len(draws.runs)} draws and {len(draws.tuning)} tuning draws, expected one for each seed: "
                f"{expected[0]} and {expected[1]}"
            )
        for drawn in (*draws.runs, *draws.tuning):
            if len(drawn) == 0 or not np.isin(drawn, self.splits.train).all():
                raise ValueError(
                    f"{name}: a draw of labelled samples is empty or not all of it lies in the train split"
                )
        held = self.fit_and_held()[1]
        if any(np.isin(drawn, held).any() for drawn in draws.tuning):
            raise ValueError(f"{name}: a tuning draw contains samples that learning rates are compared on")

    def section(self, name: str) -> Any:
        """Settings of a protocol."""
        return getattr(self.config, self.protocols[name].section)

    def task(self) -> SegmentationTask:
        """The classes of the set."""
        assert self.classes is not None, "checked by `check`"
        return self.classes

    def fit_and_held(self) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
        """The train split's parts to fit on and to tune on."""
        return hold_out(self.splits.train, self.splits.train_logs, self.config.validation_share)

    def calibration(self) -> Int[np.ndarray, " n"]:
        """Train samples that BatchNorm statistics are estimated on; none: statistics stay."""
        return thin(self.splits.train, self.config.calibration_sweeps)

    def prepared(self, init: Initialisation, network: int) -> nn.Module:
        """A network of the initialisation on the device, with BatchNorm statistics of the train split."""
        built = init.networks[network]().to(self.device)
        if len(chosen := self.calibration()):
            batches = self.parts.calibration(chosen.tolist())
            calibrate_batch_norm(built, batches, self.device, run=self.parts.run)
        return built.eval()

    @contextmanager
    def frozen(self, init: Initialisation, network: int) -> Iterator[nn.Module]:
        """A network like `prepared`, which must leave the block bit for bit as it entered it.

        Raises:
            ChangedError: it did not.
        """
        built = self.prepared(init, network)
        with kept_as_it_is(built, f"{init.name}, {', '.join(self.protocols)}"):
            yield built

    def blank(self, init: Initialisation, name: str) -> Result:
        """The record of a protocol before it is measured: who, what, how."""
        protocol, seeds = self.protocols[name], self.section(name).seeds
        described_as, task = protocol.describe(self, name)
        settings = json.loads(json.dumps(described_as))  # lists for tuples, as results.json gives them back
        # Records of earlier versions lack it, and mean the same by their mIoU unless `_other_mean` says otherwise.
        identity = {key: value for key, value in settings.items() if (key, value) != ("absent_class", "left-out")}
        labels = self.draws[name].text if protocol.drawn else "none" if protocol.truth == "pose" else "all"
        result = Result(
            protocol=name,
            dataset=self.dataset,
            labels=labels,
            init=init.name,
            pretrained=init.pretrained,
            teacher=init.teacher,
            leak=init.leak,
            pretraining=init.pretraining,
            seeds=seeds,
            metric=protocol.metric,
            metrics={protocol.metric: (0.0,) * len(seeds)},
            checkpoint=init.checkpoint,
            settings=settings,
            fingerprint=fingerprint({"settings": identity, "context": dict(self.context), "task": task}),
        )
        return init.labelled(result)


def measure(
    inits: Sequence[Initialisation],
    job: Job[Any],
    *,
    known: Sequence[Result] = (),
    progress: Callable[[float, str], None] | None = None,
) -> Iterator[Result]:
    """Measure initialisations, normally a pre-trained network and the random baseline, with all protocols of a job.

    Args:
        inits: what to compare.
        job: protocols, samples, settings.
        known: earlier results; what they already hold is not measured again but given back, with its labels renewed.
        progress: called with the share done (0 to 1) and the piece of work at hand.

    Yields:
        One record for each initialisation and protocol, as soon as it is there.

    Raises:
        LabelError: no ground truth, or labels that do not fit the classes.
        UnsuitableError: a network that the protocol cannot measure.
        ValueError: draws that do not fit the seeds, or classes missing.
        DivergenceError: training diverged at every learning rate.
    """
    job.check()
    earlier = {result.identity: result for result in known if not _other_mean(result)}
    calls: list[tuple[Initialisation, dict[str, Result]]] = []
    for init in inits:
        blanks = {name: job.blank(init, name) for name in job.protocols}
        yield from (init.labelled(earlier[b.identity]) for b in blanks.values() if b.identity in earlier)
        # Protocols with the same function are measured in one call, so that they share its passes.
        together: dict[MeasuringFunction, dict[str, Result]] = {}
        for name, blank in blanks.items():
            if blank.identity not in earlier:
                together.setdefault(job.protocols[name].measure, {})[name] = blank
        calls += [(init, group) for group in together.values()]
    entries = [job.protocols[next(iter(group))] for _, group in calls]  # any of a group: they differ in nothing here
    work = [entry.work(job, init, list(group)) for entry, (init, group) in zip(entries, calls, strict=True)]
    meter = ProgressMeter(sum(work), progress)
    for entry, (init, group) in zip(entries, calls, strict=True):
        began = time.perf_counter()
        measured = entry.measure(job, init, list(group), meter)
        seconds = round(time.perf_counter() - began, 1)
        for name, blank in group.items():
            values = measured[name]
            yield dataclasses.replace(
                blank,
                metrics=values.metrics,
                class_iou=values.class_iou,
                lr=tuple(t.lr for t in values.tuned),
                tuning=values.tuning(),
                lr_at_edge=any(t.at_edge for t in values.tuned),
                kept_frozen=entry.frozen,  # else it has raised
                seconds=seconds,
                versions=software_versions(),
                machine=describe_machine(job.device),
                date=now(),
            )


def _other_mean(result: Result) -> bool:
    """Whether a record's mIoU may have left out a class that was predicted, as earlier versions did: it counts 0."""
    return "absent_class" not in result.settings and None in result.class_iou.values()


# ---- what several measuring functions share

TrainedT = TypeVar("TrainedT")
ScoreT = TypeVar("ScoreT")


def train_on_draws(
    job: Job[Any],
    init: Initialisation,
    name: str,
    meter: ProgressMeter,
    *,
    train: Callable[[nn.Module, Int[np.ndarray, " n"], float, int, Callable[[int], None]], TrainedT],
    score: Callable[[TrainedT, Int[np.ndarray, " m"], Callable[[int], None]], ScoreT],
    goodness: Callable[[ScoreT], float],
    keep: Callable[[TrainedT], None] | None = None,
) -> tuple[list[ScoreT], list[Tuned]]:
    """A drawn protocol on one initialisation: tune the rate on the tuning draws, then train and score one run a seed.

    Args:
        job: the job.
        init: the initialisation.
        name: of the protocol.
        meter: progress.
        train: (start, labelled samples, rate, seed, listener to updates) -> trained network; the start stays as it is.
        score: (trained network, samples, listener to samples) -> its measurement.
        goodness: of a measurement, by which rates are compared; higher is better.
        keep: given the trained network of the first seed.

    Returns:
        The measurement and the tuned rate of each seed.

    Raises:
        DivergenceError: training diverged at every learning rate.
    """
    recipe, draws, title = job.section(name), job.draws[name], job.protocols[name].title
    starts = [job.prepared(init, network) for network in init.in_use(recipe.seeds)]
    held = thin(job.fit_and_held()[1], job.config.tune_sweeps)

    def run(
        start: nn.Module, drawn: Int[np.ndarray, " n"], lr: float, seed: int, text: str
    ) -> tuple[TrainedT, Callable[[int], None]]:
        # As planned, whatever an update really holds: the last batch of an epoch may be smaller.
        trained = train(start, drawn, lr, seed, lambda _: meter.advance(3 * recipe.batch_size, text))
        return trained, lambda n: meter.advance(n, text)

    def validate(lr: float) -> float:
        text = f"{init.name}: tuning {title}, rate {lr:g}"
        values = []
        for seed, drawn in zip(recipe.tune_seeds, draws.tuning, strict=True):
            trained, advance = run(starts[0], drawn, lr, seed, text)
            values.append(goodness(score(trained, held, advance)))
        return float(np.mean(values))

    tuned = tune_rate(recipe.lrs, validate)
    scores = []
    for number, (seed, drawn) in enumerate(zip(recipe.seeds, draws.runs, strict=True)):
        text = f"{init.name}: {title}, run {number + 1} of {len(recipe.seeds)}"
        trained, advance = run(starts[number % len(starts)], drawn, tuned.lr, seed, text)
        scores.append(score(trained, job.splits.test, advance))
        if number == 0 and keep is not None:
            keep(trained)
    return scores, [tuned] * len(scores)


def drawn_work(job: Job[Any], init: Initialisation, names: Sequence[str]) -> int:
    """Work of `train_on_draws`."""
    total = 0
    for name in names:
        recipe = job.section(name)
        runs, held = len(recipe.seeds), len(thin(job.fit_and_held()[1], job.config.tune_sweeps))
        trials = len(recipe.lrs) * len(recipe.tune_seeds) if len(recipe.lrs) > 1 else 0
        updates = [recipe.updates(len(drawn)) for drawn in job.draws[name].runs]
        tuned = [recipe.updates(len(drawn)) for drawn in job.draws[name].tuning] if trials else []
        total += 3 * recipe.batch_size * (sum(updates) + len(recipe.lrs) * sum(tuned))
        total += runs * len(job.splits.test) + trials * held
    return total


def segmentation_measured(
    task: SegmentationTask, matrices: Sequence[ConfusionMatrix], tuned: Sequence[Tuned], *, scale: int
) -> Measured:
    """Metrics of a segmentation from one confusion matrix a seed."""
    per_class = (torch.stack([m.iou() for m in matrices]).nanmean(0) * 100).tolist()
    return Measured(
        metrics={
            "miou": tuple(100 * m.miou() for m in matrices),
            "accuracy": tuple(100 * m.accuracy() for m in matrices),
        },
        tuned=tuned,
        scale=scale,
        # NaN: no test point has this class, and none is predicted.
        class_iou={n: None if math.isnan(v) else v for n, v in zip(task.class_names, per_class, strict=True)},
    )
