"""Dense depth from one image: loss, metrics and the protocol of the KITTI Eigen split.

The decoder's channel is log(depth / START_DEPTH_M). Loss, with d = log prediction - log truth over the n pixels of an
image whose depth is known:

    D = 1/n sum d^2 - lambda / n^2 (sum d)^2           mean over the images

lambda = 0 is the squared error of logs, lambda = 1 does not see the scale at all; the default is the paper's 0.5.
Later work takes alpha sqrt(D) instead, with D over all known pixels of the batch together, alpha = 10, lambda = 0.85
(`root_scale`).

Metrics are taken for each image and averaged over the images (with at least one known pixel), on pixels whose true
depth lies between `min_depth_m` and `cap_m`; predictions are clipped to that range. Which part of the image counts
(Garg's or Eigen's crop) is a matter of the data: `images.depth_area`.

Source: Eigen, Puhrsch and Fergus, "Depth Map Prediction from a Single Image using a Multi-Scale Deep Network",
NeurIPS 2014, eq. 4 and section 4. Of the root: Lee et al., "From Big to Small" (2019), section 3.4, in the form of
Bhat et al., AdaBins (CVPR 2021), released code: Var(d) + (1 - lambda) mean(d)^2. The paper of SimIPU prints the second
term with a plus sign; that would punish the scale twice.

Letters: I images, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.ranges import above, below, positive, share
from engine.downstream.common import ProgressMeter, Truth
from engine.downstream.confusion import LabelError
from engine.downstream.dense import (
    DenseTrainingConfig,
    ImageBatch,
    ImageParts,
    measure_dense,
    per_seed,
)
from engine.downstream.metrics import METRICS
from engine.downstream.runner import Initialisation, Job, Measured

START_DEPTH_M = 10.0
"""Depth that an output of 0 means; where training starts."""

MAIN_METRIC = "rmse_log"
"""By which rates are tuned and rows compared. Abs rel, which tables usually begin with, rewards depths that are too
small: on a small test part of the street world a constant 4 m has 0.54, a network after 100 updates 0.68; their errors
of logs are 1.12 and 0.60."""

_LEAST_D = 1e-12
"""Below this the root's gradient is taken as 0: at 0 it has none."""

METRIC_NAMES = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3")


@dataclass(frozen=True, kw_only=True)
class DepthConfig(DenseTrainingConfig):
    """Recipe, loss and limits (with the fields of `DenseTrainingConfig`).

    Attributes:
        scale_invariance: lambda of the loss, 0 to 1.
        root_scale: alpha of the loss's root form (10 in papers); null: D itself.
        min_depth_m: pixels with a smaller true depth are not counted.
        cap_m: nor are those with a larger one.
    """

    scale_invariance: float = 0.5
    root_scale: float | None = None
    min_depth_m: float = 1e-3
    cap_m: float = 80.0

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "scale_invariance")
        positive(self, "min_depth_m", "root_scale")
        above(self, "min_depth_m", cap_m=self.min_depth_m)
        below(self, cap_m=math.inf)


@dataclass(frozen=True)
class DepthTask:
    """Depth as a `DenseTask`."""

    config: DepthConfig
    truth: Truth = "depth"
    num_outputs: int = 1
    metric: str = MAIN_METRIC

    def loss(
        self, output: Float[Tensor, "I 1 H W"], batch: ImageBatch, generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """See the module's text; 0 (with gradient) where no depth is known."""
        truth, scale_invariance = depth_of(batch), self.config.scale_invariance
        known = self.known(truth)
        if self.config.root_scale is None:
            return silog_loss(output[:, 0], truth, known, scale_invariance)
        return self.config.root_scale * root_silog_loss(output[:, 0], truth, known, scale_invariance)

    def known(self, depth_m: Float[Tensor, "I H W"]) -> Bool[Tensor, "I H W"]:
        """Which pixels count."""
        return (depth_m > self.config.min_depth_m) & (depth_m < self.config.cap_m)

    def measure(self) -> DepthMeasure:
        """An empty measurement."""
        return DepthMeasure(self)


class DepthMeasure:
    """Sums of the metrics over images."""

    def __init__(self, task: DepthTask) -> None:
        self.task = task
        self.sums = torch.zeros(len(METRIC_NAMES), dtype=torch.float64)
        self.num_images = 0

    def update(self, output: Float[Tensor, "I 1 H W"], batch: ImageBatch) -> None:
        """Take in a batch."""
        truth, limits = depth_of(batch), self.task.config
        known = self.task.known(truth)
        # Up to the cap before the exponential, which would overflow; down to the minimum likewise.
        predicted = predicted_depth(output[:, 0].double(), low=limits.min_depth_m, high=limits.cap_m)
        for guess, true, keep in zip(predicted, truth.double(), known, strict=True):
            if bool(keep.any()):
                self.sums += depth_metrics(guess[keep], true[keep]).cpu()
                self.num_images += 1

    def metrics(self) -> dict[str, float]:
        """Means over the images.

        Raises:
            LabelError: not one image had a pixel of known depth.
        """
        if self.num_images == 0:
            raise LabelError("depth metrics of nothing: not one pixel of known depth; has the split any?")
        return dict(zip(METRIC_NAMES, (self.sums / self.num_images).tolist(), strict=True))


def predicted_depth(output: Float[Tensor, "*dims"], *, low: float, high: float) -> Float[Tensor, "*dims"]:
    """Metres from the decoder's channel, clipped to `low` to `high`."""
    return START_DEPTH_M * output.clamp(math.log(low / START_DEPTH_M), math.log(high / START_DEPTH_M)).exp()


def depth_of(batch: ImageBatch) -> Float[Tensor, "I H W"]:
    """The batch's true depth.

    Raises:
        LabelError: it has none.
    """
    if batch.image_depth_m is None:
        raise LabelError(f"samples {', '.join(batch.keys[:3])} have no depth; this protocol needs a set with depth")
    return batch.image_depth_m


def silog_loss(
    output: Float[Tensor, "I H W"],
    depth_m: Float[Tensor, "I H W"],
    known: Bool[Tensor, "I H W"],
    scale_invariance: float,
) -> Float[Tensor, ""]:
    """Scale-invariant error of log depth, mean over the images with a known pixel; 0 (with gradient) if none has one.

    Source: Eigen et al. 2014, eq. 4.

    Args:
        output: log(prediction / START_DEPTH_M).
        depth_m: truth.
        known: pixels that count.
        scale_invariance: lambda.
    """
    target = torch.where(known, depth_m, START_DEPTH_M).float().div(START_DEPTH_M).log()
    d = torch.where(known, output.float() - target, 0.0).flatten(1)
    count = known.flatten(1).sum(1)
    n = count.clamp_min(1).float()
    per_image = d.square().sum(1) / n - scale_invariance * (d.sum(1) / n).square()
    return per_image.sum() / (count > 0).sum().clamp_min(1)


def root_silog_loss(
    output: Float[Tensor, "I H W"],
    depth_m: Float[Tensor, "I H W"],
    known: Bool[Tensor, "I H W"],
    scale_invariance: float,
) -> Float[Tensor, ""]:
    """Square root of D over the known pixels of all images together; without gradient where D is 0.

    Arguments as of `silog_loss`. Released code divides the variance by n - 1, here it is n.
    """
    output, depth_m, known = (plane.flatten(0, 1).unsqueeze(0) for plane in (output, depth_m, known))
    return silog_loss(output, depth_m, known, scale_invariance).clamp_min(_LEAST_D).sqrt()


def depth_metrics(predicted_m: Float[Tensor, " n"], depth_m: Float[Tensor, " n"]) -> Float[Tensor, " k"]:
    """Metrics of one image in the order of `METRIC_NAMES`; deltas in percent, `silog` times 100.

    Args:
        predicted_m: of the pixels that count, at least one.
        depth_m: truth.
    """
    error = predicted_m - depth_m
    d = predicted_m.log() - depth_m.log()
    ratio = torch.maximum(predicted_m / depth_m, depth_m / predicted_m)
    return torch.stack(
        [
            (error.abs() / depth_m).mean(),
            (error.square() / depth_m).mean(),
            error.square().mean().sqrt(),
            d.square().mean().sqrt(),
            d.abs().mean() / math.log(10),
            100 * (d.square().mean() - d.mean().square()).clamp_min(0).sqrt(),
            *(100 * (ratio < 1.25**power).to(error.dtype).mean() for power in (1, 2, 3)),
        ]
    )


def measure_depth(
    job: Job[ImageParts], init: Initialisation, names: Sequence[str], meter: ProgressMeter, *, frozen: bool = False
) -> dict[str, Measured]:
    """The measuring function of "depth" and, with the network left as it is, of "depth_frozen"."""
    measured = {}
    for name in names:
        measures, tuned = measure_dense(job, init, name, meter, DepthTask(job.section(name)), frozen=frozen)
        metrics = per_seed([measure.metrics() for measure in measures])
        measured[name] = Measured(metrics=metrics, tuned=tuned, scale=METRICS[MAIN_METRIC].sign)
    return measured
