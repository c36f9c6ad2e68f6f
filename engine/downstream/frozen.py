"""Linear probe and kNN on a frozen 3D network, together: its passes are the expensive part, and both use the same ones.

For each network of an initialisation: one pass over the train split (feature bank), one probe and one kNN bank for each
of its seeds, one pass over the test split that scores them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from torch import nn

from engine.downstream.common import ProgressMeter, Samples, Tuned
from engine.downstream.confusion import ConfusionMatrix
from engine.downstream.features import FeatureBank, Predictor, SweepParts, extract_bank, score
from engine.downstream.knn import KnnClassifier
from engine.downstream.linear_probe import fit_linear, tune_linear
from engine.downstream.runner import Initialisation, Job, Measured, segmentation_measured


def measure_frozen(
    job: Job[SweepParts], init: Initialisation, names: Sequence[str], meter: ProgressMeter
) -> dict[str, Measured]:
    """The measuring function of "linear_probe" and "knn"."""
    matrices: dict[tuple[str, int], ConfusionMatrix] = {}
    tuned: dict[int, Tuned] = {}
    text, work = f"{init.name}: {', '.join(names)} on the test split", _test_work(names)
    for network in _in_use(job, init, names):
        with job.frozen(init, network) as backbone:
            fit, held = (
                _bank(job, init, backbone, part, number, meter) for number, part in enumerate(job.fit_and_held())
            )
            predictors: dict[tuple[str, int], Predictor] = {}
            if "linear_probe" in names:
                tuned |= _fit_probes(job, init, network, fit, held, predictors, meter)
            if "knn" in names:
                bank, config = fit.joined(held), job.section("knn")
                for seed in init.seeds_of(network, config.seeds):
                    classifier = KnnClassifier(bank, job.task(), config, seed=seed, device=job.device)
                    predictors["knn", seed] = classifier.predict
            matrices |= score(
                backbone,
                job.parts.read(Samples(job.splits.test.tolist(), truth="labels")),
                predictors,
                job.task(),
                device=job.device,
                threads=job.parts.threads,
                on_sweeps=lambda n: meter.advance(n * work, text),
            )
            if network == 0 and job.parts.keep is not None:
                for name in names:
                    job.parts.keep(init.name, name, backbone, predictors[name, job.section(name).seeds[0]])
    measured = {}
    for name in names:
        seeds = job.section(name).seeds
        rates = [tuned[s] for s in seeds] if name == "linear_probe" else []
        measured[name] = segmentation_measured(job.task(), [matrices[name, s] for s in seeds], rates, scale=100)
    return measured


def frozen_work(job: Job[SweepParts], init: Initialisation, names: Sequence[str]) -> int:
    """Work of `measure_frozen`."""
    total = 0
    for network in _in_use(job, init, names):
        total += len(job.splits.train) + _test_work(names) * len(job.splits.test)
        if "linear_probe" in names:
            total += _probe_work(job) * len(init.seeds_of(network, job.section("linear_probe").seeds))
    return total


def _in_use(job: Job[SweepParts], init: Initialisation, names: Sequence[str]) -> range:
    return init.in_use(max((job.section(name).seeds for name in names), key=len))


def _test_work(names: Sequence[str]) -> int:
    return 2 if "knn" in names else 1  # the search costs about as much as the forward pass


def _probe_work(job: Job[SweepParts]) -> int:
    return int(job.section("linear_probe").steps) // 10  # ten updates of a probe cost about one sweep


def _bank(
    job: Job[SweepParts],
    init: Initialisation,
    backbone: nn.Module,
    part: Int[np.ndarray, " n"],
    number: int,
    meter: ProgressMeter,
) -> FeatureBank:
    return extract_bank(
        backbone,
        job.parts.read(Samples(part.tolist(), truth="labels")),
        job.task(),
        voxels_per_sweep=job.config.voxels_per_sweep,
        seed=number,
        device=job.device,
        threads=job.parts.threads,
        on_sweeps=lambda n: meter.advance(n, f"{init.name}: features of the train split"),
    )


def _fit_probes(
    job: Job[SweepParts],
    init: Initialisation,
    network: int,
    fit: FeatureBank,
    held: FeatureBank,
    predictors: dict[tuple[str, int], Predictor],
    meter: ProgressMeter,
) -> dict[int, Tuned]:
    """Tune with the first of the network's seeds, then train one probe a seed on both parts."""
    config = job.section("linear_probe")
    seeds = init.seeds_of(network, config.seeds)
    if not seeds:  # kNN has more seeds than the probe, and more networks than that are there
        return {}
    tuned = tune_linear(fit, held, job.task(), config, seed=seeds[0], device=job.device)
    bank = fit.joined(held)
    for seed in seeds:
        head = fit_linear(bank, job.task(), config, lr=tuned.lr, seed=seed, device=job.device)
        predictors["linear_probe", seed] = head.predict
        meter.advance(_probe_work(job), f"{init.name}: linear probe")
    return dict.fromkeys(seeds, tuned)
