"""What frozen features know of depth, without a decoder: of `benchmarks.depth_gain`.

Features of all four maps are read at pixels of known depth. The target is log depth less the mean of its place (camera
and cell), for which no picture is needed. R2, the share of the target's variance on the test split that a head on these
features explains:

- ridge regression in closed form, which has no rate and no schedule, the penalty chosen on held-out logs;
- a perceptron with one hidden layer, for a hundred updates, AdamW with a rate of `RATE` along a half cosine; after a
  thousand it has learnt the training pixels by heart.

And how many directions the features of each map use: their effective rank, the exponential of the entropy of the
eigenvalues of their covariance (Roy and Vetterli 2007), beside the number of channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from benchmarks.depth_networks import read
from data.sample import Batch
from engine.downstream.depth import START_DEPTH_M, DepthTask, depth_of
from engine.downstream.runner import Initialisation, Job
from models.pairing import read_pixels

CELL_PX = 8
"""Side of the cells that a place is."""
PIXELS_PER_IMAGE = 200
PENALTIES = tuple(10.0**power for power in range(-5, 3))
"""Of ridge regression on standardised features, relative to the number of pixels."""
FEW_FRAMES = 8
FEW_DRAWS = 3
HIDDEN, UPDATES, PIXELS_PER_UPDATE, RATE = 128, 100, 1024, 3e-3
HEADS = (
    "row of the pixel, ridge",
    "log depth, ridge",
    "less its place, ridge",
    f"less its place, ridge, {FEW_FRAMES} frames",
    "less its place, perceptron",
)


class Places:
    """Mean log(depth / START_DEPTH_M) of each cell of each camera."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        sums: dict[int, Tensor] = {}
        counts: dict[int, Tensor] = {}
        for batch in batches:
            for camera, depth in zip(_cameras_of(batch), depth_of(batch), strict=True):
                known = depth > 0
                logs = torch.where(known, depth, START_DEPTH_M).div(START_DEPTH_M).log().double()
                for table, values in ((sums, logs), (counts, known.double())):
                    cells = _by_cell(values)
                    table[camera] = table[camera] + cells if camera in table else cells
        total = sum(float(s.sum()) for s in sums.values()) / sum(float(c.sum()) for c in counts.values())
        self.means = {c: torch.where(counts[c] > 0, sums[c] / counts[c].clamp_min(1), total) for c in sums}

    def maps(self, batch: Batch) -> Float[Tensor, "I H W"]:
        """The prediction for each pixel."""
        height, width = depth_of(batch).shape[-2:]
        cells = torch.stack([self.means[camera] for camera in _cameras_of(batch)])
        full = cells.float().repeat_interleave(CELL_PX, 1).repeat_interleave(CELL_PX, 2)
        return full[:, :height, :width]

    def metrics(self, job: Job[Any]) -> dict[str, float]:
        """Of this prediction, on the test split."""
        measured = DepthTask(job.section("depth")).measure()
        for batch in read(job, job.splits.test):
            measured.update(self.maps(batch).unsqueeze(1), batch)
        return measured.metrics()


def _by_cell(values: Float[Tensor, "H W"]) -> Float[Tensor, "rows columns"]:
    height, width = values.shape
    padded = nn.functional.pad(values, (0, -width % CELL_PX, 0, -height % CELL_PX))
    cells: Tensor = padded.unflatten(1, (-1, CELL_PX)).unflatten(0, (-1, CELL_PX)).sum((1, 3))
    return cells


def _cameras_of(batch: Batch) -> list[int]:
    """Number of the camera of each image within its sample."""
    samples = batch.need("cameras", by="places").sample.tolist()
    return [place - samples.index(sample) for place, sample in enumerate(samples)]


class Pixels(NamedTuple):
    """Pixels of known depth."""

    features: Float[Tensor, "n C"]
    targets: Float[Tensor, "n 3"]  # row, log depth, log depth less the mean of its place
    frame: Int[Tensor, " n"]

    def among(self, keep: Bool[Tensor, " n"]) -> Pixels:
        """Some of them."""
        return Pixels(*(part[keep] for part in self))


def pixels_of(network: nn.Module, batches: Iterator[Batch], places: Places, generator: torch.Generator) -> Pixels:
    """Pixels that depend on the generator alone, with a network's features."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    frames = 0
    for batch in batches:
        depth, means = depth_of(batch), places.maps(batch)
        maps = network.pyramid(batch.images)  # type: ignore[operator]
        for number, sample in enumerate(batch.need("cameras", by="pixels").sample.tolist()):
            v, u = torch.nonzero(depth[number] > 0, as_tuple=True)
            chosen = torch.randperm(len(v), generator=generator)[:PIXELS_PER_IMAGE]
            v, u = v[chosen], u[chosen]
            uv, image = torch.stack((u, v), 1).float(), torch.full_like(u, number)
            logs = (depth[number][v, u] / START_DEPTH_M).log()
            targets = torch.stack((v.float(), logs, logs - means[number][v, u]), 1)
            features = torch.cat([read_pixels(one, image, uv) for one in maps], 1)
            found.append((features, targets, torch.full_like(u, frames + sample)))
        frames += batch.num_samples
    return Pixels(*(torch.cat(parts) for parts in zip(*found, strict=True)))


class Probed(NamedTuple):
    """What the probe says of one network."""

    explained: list[float]  # by `HEADS`
    ranks: list[float]  # effective rank of each map
    channels: tuple[int, ...]


def probe(job: Job[Any], init: Initialisation, places: Places) -> list[Probed]:
    """Of each of an initialisation's networks."""
    fit, held = job.fit_and_held()
    found = []
    for number in range(len(init.networks)):
        network = job.prepared(init, number)
        generator = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            parts = [pixels_of(network, read(job, part), places, generator) for part in (fit, held, job.splits.test)]
        of_fit, of_held, of_test = (Pixels(*(one.clone() for one in part)) for part in parts)
        channels = tuple(network.level_features)  # type: ignore[arg-type]
        ranks = [effective_rank(features) for features in of_fit.features.split(list(channels), 1)]
        found.append(Probed(_heads(of_fit, of_held, of_test), ranks, channels))
    return found


def effective_rank(features: Float[Tensor, "n C"]) -> float:
    """Directions that the rows use, 1 to C."""
    values = torch.linalg.eigvalsh(torch.cov(features.double().T)).clamp_min(0)
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def _heads(fit: Pixels, held: Pixels, test: Pixels) -> list[float]:
    few = []
    for draw in range(FEW_DRAWS):
        drawn = torch.randperm(int(fit.frame.max()) + 1, generator=torch.Generator().manual_seed(draw))[:FEW_FRAMES]
        few.append(ridge(fit.among(torch.isin(fit.frame, drawn)), held, test)[2])
    return [*ridge(fit, held, test), float(np.mean(few)), perceptron(fit, test)]


def ridge(fit: Pixels, held: Pixels, test: Pixels) -> list[float]:
    """R2 of each target on the test pixels, of ridge regression with the penalty that is best on the held ones."""
    x, of_held, of_test = _standard(fit, fit), _standard(fit, held), _standard(fit, test)
    targets = fit.targets.double()
    gram, moment = x.T @ x, x.T @ targets
    eye = torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.stack([torch.linalg.solve(gram + penalty * len(x) * eye, moment) for penalty in PENALTIES])
    scores = torch.stack([_r2(of_held @ one, held.targets) for one in weights])
    best = weights[scores.argmax(0), :, torch.arange(targets.shape[1])].T
    return [float(value) for value in _r2(of_test @ best, test.targets)]


def perceptron(fit: Pixels, test: Pixels) -> float:
    """R2 of the last target on the test pixels."""
    x, of_test = _standard(fit, fit).float(), _standard(fit, test).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        optimizer = torch.optim.AdamW(head.parameters(), lr=RATE)
        for update in range(UPDATES):
            optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * update / UPDATES))
            rows = torch.randint(len(x), (PIXELS_PER_UPDATE,))
            loss = (head(x[rows])[:, 0] - fit.targets[rows, -1]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return float(_r2(head(of_test).double(), test.targets[:, -1:])[0])


def _standard(fit: Pixels, pixels: Pixels) -> Float[Tensor, "n C1"]:
    """Features less the mean and by the deviation of those that are fitted, and a column of ones."""
    mean, std = fit.features.mean(0), fit.features.std(0).clamp_min(1e-6)
    rows = ((pixels.features - mean) / std).double()
    return torch.cat((rows, rows.new_ones(len(rows), 1)), 1)


def _r2(predicted: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    targets = targets.double()
    return 1 - (predicted - targets).square().mean(0) / (targets - targets.mean(0)).square().mean(0)
