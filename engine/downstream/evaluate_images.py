"""Protocols on image networks: every initialisation under the same budget.

depth               a decoder for dense depth, trained together with the network
depth_frozen        the same with the network left as it is
image_linear_probe  classes of pixels from a linear layer on the frozen network's pyramid, all labels
image_finetune      classes of pixels from a decoder, trained together with the network

Nothing but the first weights differs between initialisations: same images, same label draws, same rates tried, same
updates; BatchNorm statistics are estimated anew for each in the same way.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    Tuned,
    calibrate_batch_norm,
    hold_out,
    thin,
    tune_rate,
)
from engine.downstream.confusion import ConfusionMatrix
from engine.downstream.depth import MAIN_METRIC, DepthTask
from engine.downstream.evaluate import ProtocolsConfig, check_draws
from engine.downstream.image_protocol import (
    DecoderMaker,
    DenseNetwork,
    DenseTask,
    DenseTrainingConfig,
    Images,
    Measure,
    Truth,
    build_dense,
    images_of,
    per_seed,
    pyramid_of,
    score_dense,
    train_dense,
)
from engine.downstream.image_segmentation import (
    ImageSegmentationTask,
    PixelConfusion,
    Resample,
    extract_pixel_bank,
    score_probes,
)
from engine.downstream.linear_probe import fit_linear, tune_linear
from engine.downstream.metrics import METRICS
from engine.downstream.protocols import DRAWN, Initialisation, Planned, ProtocolName, of_tower
from engine.downstream.results import Result, describe_machine, now, software_versions

TRUTHS: dict[ProtocolName, Truth] = {
    "depth": "depth",
    "depth_frozen": "depth",
    "image_linear_probe": "labels",
    "image_finetune": "labels",
}
"""Protocol -> ground truth that it needs."""
_SECTIONS: dict[ProtocolName, str] = {"depth_frozen": "depth"}  # the rest: as the protocol
"""Protocol -> section of its settings, where that has another name."""


@dataclass(frozen=True, kw_only=True)
class ImageParts:
    """What the launcher hands in, because this package knows no network.

    Attributes:
        images: reader of images with ground truth.
        decoder: makes decoders.
        resample: reads a map at every pixel.
    """

    images: Images
    decoder: DecoderMaker
    resample: Resample


Keep = Callable[[str, ProtocolName, DenseNetwork], None]
"""Told (initialisation, protocol, network of the first seed) before the network is thrown away, to draw pictures."""


def evaluate_images(
    inits: Sequence[Initialisation],
    parts: ImageParts,
    splits: Splits,
    dataset: str,
    classes: SegmentationTask | None,
    config: ProtocolsConfig,
    *,
    draws: Mapping[ProtocolName, LabelDraws],
    context: Mapping[str, Any],
    device: torch.device | str = "cpu",
    known: Sequence[Result] = (),
    progress: Callable[[float, str], None] | None = None,
    keep: Keep | None = None,
) -> Iterator[Result]:
    """Measure initialisations with the chosen protocols of image networks.

    Args:
        inits: what to compare, normally a pre-trained network and the random baseline.
        parts: reader, decoder.
        splits: which samples are for what.
        dataset: name of the set.
        classes: of its pixels; not needed for depth.
        config: protocols.
        draws: labelled samples of each protocol that trains on draws.
        context: what else shapes the numbers (identity of the data, image size, network); JSON values.
        device: where networks run.
        known: earlier results; what they already hold is not measured again but given back, labelled anew.
        progress: told the share done (0 to 1) and what is going on.
        keep: see `Keep`.

    Yields:
        One record for each initialisation and protocol, as soon as it is there.

    Raises:
        LabelError: no ground truth, or labels that do not fit the classes.
        ValueError: draws that do not fit the seeds, or classes missing.
        DivergenceError: training diverged at every learning rate.
    """
    protocols = of_tower(config.protocols, "image_backbone")
    for protocol in protocols:
        if protocol in DRAWN:
            recipe = _recipe(config, protocol)
            check_draws(draws.get(protocol), splits, config.validation_share, recipe.seeds, recipe.tune_seeds)
        if TRUTHS[protocol] == "labels" and classes is None:
            raise ValueError(f"{protocol} needs class names, and the set has none")
    job = _Job(parts, splits, dataset, classes, config, draws, context, device, keep)
    earlier = {result.identity: result for result in known}
    plan = []
    for init in inits:
        identities = {p: job.planned(p).blank(init).identity for p in protocols}
        yield from (init.labelled(earlier[identity]) for identity in identities.values() if identity in earlier)
        plan.append((init, [p for p, identity in identities.items() if identity not in earlier]))
    meter = Meter(sum(job.work(init, p) for init, todo in plan for p in todo), progress)
    for init, todo in plan:
        for protocol in todo:
            measure = _dense if protocol in DRAWN else _linear_probe
            yield measure(job, init, protocol, meter)


@dataclass(frozen=True)
class _Job:
    """What stays the same for all initialisations."""

    parts: ImageParts
    splits: Splits
    dataset: str
    classes: SegmentationTask | None
    config: ProtocolsConfig
    draws: Mapping[ProtocolName, LabelDraws]
    context: Mapping[str, Any]
    device: torch.device | str
    keep: Keep | None

    def prepared(self, init: Initialisation, network: int) -> nn.Module:
        """A network of the initialisation on the device, with BatchNorm statistics of the train split."""
        encoder = init.networks[network]().to(self.device)
        chosen = thin(self.splits.train, self.config.calibration_sweeps)
        if len(chosen):
            calibrate_batch_norm(
                encoder,
                self.parts.images(chosen.tolist(), truth=None, batch_size=1),
                self.device,
                run=lambda net, batch: pyramid_of(net, images_of(batch)),
            )
        return encoder.eval()

    def halves(self) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
        """The train split's parts to fit on and to tune on."""
        return hold_out(self.splits.train, self.splits.train_logs, self.config.validation_share)

    def task(self, protocol: ProtocolName) -> DenseTask:
        """What a protocol's decoder learns."""
        if TRUTHS[protocol] == "depth":
            return DepthTask(self.config.depth)
        assert self.classes is not None  # checked by `evaluate_images`
        return ImageSegmentationTask(self.classes, self.config.image_finetune)

    def planned(self, protocol: ProtocolName) -> Planned:
        """The record's fixed part."""
        tree = dataclasses.asdict(self.config)
        section = tree[_SECTIONS.get(protocol, protocol)]
        settings = {name: value for name, value in section.items() if name != "seeds"}
        shared = ["validation_share", "calibration_sweeps"] + (["tune_sweeps"] if protocol in DRAWN else [])
        settings |= {name: tree[name] for name in shared}
        settings |= {"train_samples": len(self.splits.train), "test_samples": len(self.splits.test)}
        if protocol in DRAWN:
            settings["draws"] = dict(self.draws[protocol].settings)
        classes = list(self.classes.class_names) if self.classes is not None and TRUTHS[protocol] == "labels" else []
        return Planned(
            protocol=protocol,
            dataset=self.dataset,
            labels=self.draws[protocol].text if protocol in DRAWN else "all",
            seeds=self.config.seeds(protocol),
            metric="miou" if TRUTHS[protocol] == "labels" else MAIN_METRIC,
            settings=settings,
            context=self.context,
            task=[self.dataset, classes, self.splits.train.tolist(), self.splits.test.tolist()],
        )

    def result(
        self,
        init: Initialisation,
        protocol: ProtocolName,
        metrics: Mapping[str, tuple[float | None, ...]],
        tuned: Sequence[Tuned],
        seconds: float,
    ) -> Result:
        """The finished record."""
        blank = self.planned(protocol).blank(init)
        return dataclasses.replace(
            blank,
            metrics=metrics,
            lr=tuple(t.lr for t in tuned),
            tuning=_mean_table(tuned, scale=METRICS[blank.metric].sign),
            lr_at_edge=any(t.at_edge for t in tuned),
            seconds=round(seconds, 1),
            versions=software_versions(),
            machine=describe_machine(self.device),
            date=now(),
        )

    def work(self, init: Initialisation, protocol: ProtocolName) -> int:
        """Estimate in samples through the network, for the progress bar."""
        train, test = len(self.splits.train), len(self.splits.test)
        if protocol not in DRAWN:
            return min(len(init.networks), len(self.config.seeds(protocol))) * (train + test)
        recipe = _recipe(self.config, protocol)
        trials = len(recipe.lrs) * len(recipe.tune_seeds) if len(recipe.lrs) > 1 else 0
        runs = len(recipe.seeds)
        held = len(thin(self.halves()[1], self.config.tune_sweeps))
        return (runs + trials) * 3 * recipe.steps * recipe.batch_size + runs * test + trials * held


def _recipe(config: ProtocolsConfig, protocol: ProtocolName) -> DenseTrainingConfig:
    recipe: DenseTrainingConfig = getattr(config, _SECTIONS.get(protocol, protocol))
    return recipe


# --- a decoder ---


def _dense(job: _Job, init: Initialisation, protocol: ProtocolName, meter: Meter) -> Result:
    config, task, began = _recipe(job.config, protocol), job.task(protocol), time.perf_counter()
    frozen = protocol == "depth_frozen"
    draws, held = job.draws[protocol], thin(job.halves()[1], job.config.tune_sweeps)
    # One network a seed at most: the r-th seed starts from number r modulo their count.
    encoders = {n: job.prepared(init, n) for n in range(min(len(config.seeds), len(init.networks)))}

    def train(indices: Int[np.ndarray, " n"], network: int, lr: float, seed: int, text: str) -> DenseNetwork:
        start = build_dense(encoders[network], task, config, job.parts.decoder, seed=seed, frozen=frozen)
        return train_dense(
            start,
            job.parts.images,
            indices,
            task,
            config,
            lr=lr,
            seed=seed,
            device=job.device,
            # As planned: the last batch of an epoch may be smaller.
            on_step=lambda _: meter.advance(3 * config.batch_size, text),
        )

    def score(network: DenseNetwork, indices: Int[np.ndarray, " m"], text: str) -> Measure:
        batches = job.parts.images(indices.tolist(), truth=task.truth, batch_size=1)
        return score_dense(network, batches, task, device=job.device, on_samples=lambda n: meter.advance(n, text))

    def validate(lr: float) -> float:
        text = f"{init.name}: tuning {protocol}, rate {lr:g}"
        pairs = zip(config.tune_seeds, draws.tuning, strict=True)
        values = [score(train(drawn, 0, lr, s, text), held, text).metrics()[task.metric] for s, drawn in pairs]
        return METRICS[task.metric].sign * float(np.mean(values))

    tuned = tune_rate(config.lrs, validate)
    found = []
    for number, (seed, drawn) in enumerate(zip(config.seeds, draws.runs, strict=True)):
        text = f"{init.name}: {protocol}, run {number + 1} of {len(config.seeds)}"
        network = train(drawn, number % len(init.networks), tuned.lr, seed, text)
        found.append(score(network, job.splits.test, text))
        if number == 0 and job.keep is not None:
            job.keep(init.name, protocol, network)
    metrics = per_seed([measure.metrics() for measure in found])
    done = job.result(init, protocol, metrics, [tuned] * len(found), time.perf_counter() - began)
    matrices = [measure.matrix for measure in found if isinstance(measure, PixelConfusion)]
    return dataclasses.replace(done, class_iou=_class_iou(job.classes, matrices))


# --- a linear layer ---


def _linear_probe(job: _Job, init: Initialisation, protocol: ProtocolName, meter: Meter) -> Result:
    assert job.classes is not None  # checked by `evaluate_images`
    classes, config, began = job.classes, job.config.image_linear_probe, time.perf_counter()
    matrices: dict[int, ConfusionMatrix] = {}
    tuned: dict[int, Tuned] = {}
    for network in range(min(len(config.seeds), len(init.networks))):
        own = [s for r, s in enumerate(config.seeds) if r % len(init.networks) == network]
        encoder = job.prepared(init, network)
        fit, held = (
            extract_pixel_bank(
                encoder,
                job.parts.images(part.tolist(), truth="labels", batch_size=1),
                classes,
                job.parts.resample,
                pixels_per_image=config.pixels_per_image,
                seed=number,
                device=job.device,
                on_samples=lambda n: meter.advance(n, f"{init.name}: features of the train split"),
            )
            for number, part in enumerate(job.halves())
        )
        best = tune_linear(fit, held, classes, config, seed=own[0], device=job.device)
        bank = fit.joined(held)
        heads = {s: fit_linear(bank, classes, config, lr=best.lr, seed=s, device=job.device) for s in own}
        tuned |= dict.fromkeys(own, best)
        matrices |= score_probes(
            encoder,
            job.parts.images(job.splits.test.tolist(), truth="labels", batch_size=1),
            heads,
            classes,
            job.parts.resample,
            device=job.device,
            on_samples=lambda n: meter.advance(n, f"{init.name}: linear probe on the test split"),
        )
    ordered = [matrices[s] for s in config.seeds]
    metrics: dict[str, tuple[float | None, ...]] = {
        "miou": tuple(100 * m.miou() for m in ordered),
        "accuracy": tuple(100 * m.accuracy() for m in ordered),
    }
    rates = [tuned[s] for s in config.seeds]
    # The probe is tuned on mIoU from 0 to 1.
    rates = [Tuned(t.lr, {lr: 100 * value for lr, value in t.table.items()}) for t in rates]
    done = job.result(init, protocol, metrics, rates, time.perf_counter() - began)
    return dataclasses.replace(done, class_iou=_class_iou(classes, ordered))


def _class_iou(classes: SegmentationTask | None, matrices: Sequence[ConfusionMatrix]) -> dict[str, float | None]:
    """Mean over the seeds in percent by class; None where no test pixel has it, {} without classes."""
    if classes is None or not matrices:
        return {}
    per_class = (torch.stack([m.iou() for m in matrices]).nanmean(0) * 100).tolist()
    return {n: None if v != v else v for n, v in zip(classes.class_names, per_class, strict=True)}


def _mean_table(tuned: Sequence[Tuned], *, scale: int) -> dict[str, float | None]:
    """The main metric on validation data by rate, averaged; None where any network diverged."""
    rates = sorted({lr for t in tuned for lr in t.table})
    means = {lr: float(np.mean([t.table[lr] for t in tuned])) for lr in rates}
    return {f"{lr:g}": None if mean != mean else scale * mean for lr, mean in means.items()}
