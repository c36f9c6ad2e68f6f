"""Linear probe: one linear layer on frozen features, trained on all labels. How much can be read off the features?

The features are standardised with the mean and deviation of the training rows first. Together with the layer that is
still one affine map, but one learning-rate grid then fits networks whose features differ in scale.

Cost on one CPU core: about 6 ms an update of 2048 rows x 48 features x 14 classes, half of it the sorting of the
Lovász term. The forward passes are shared with kNN (see `features`).

Letters: C feature width, K classes, M voxels, R rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.ranges import at_least
from engine.downstream.common import SegmentationTask, Tuned, check_rates, check_seeds, tune_rate
from engine.downstream.features import FeatureBank
from engine.downstream.losses import SegmentationLossConfig, class_weights, segmentation_loss
from engine.eager_optim import AdamW
from engine.errors import DivergenceError


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig:
    """Settings of the linear probe.

    Attributes:
        lrs: AdamW learning rates to try; the best on held-out train sweeps is used.
        weight_decay: of AdamW, relative to the learning rate.
        steps: updates; the rate falls along a half cosine to 0.
        batch_size: voxels an update.
        seeds: one probe each: first weights and order of the rows. A random network is drawn again for each.
    """

    lrs: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    weight_decay: float = 1e-4
    steps: int = 500
    batch_size: int = 2048
    seeds: tuple[int, ...] = (0,)
    loss: SegmentationLossConfig = field(default_factory=SegmentationLossConfig)

    def __post_init__(self) -> None:
        check_rates(self, "lrs")
        check_seeds(self, "seeds")
        at_least(self, steps=1, batch_size=1, weight_decay=0)


class LinearHead(nn.Module):
    """Standardisation by fixed statistics, then a linear layer."""

    mean: Float[Tensor, " C"]
    inverse_std: Float[Tensor, " C"]

    def __init__(self, features: Float[Tensor, "R C"], num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        std, mean = torch.std_mean(features, dim=0, correction=0)
        self.register_buffer("mean", mean)
        # A feature that is constant over the bank carries nothing; it must not be blown up on other sweeps.
        self.register_buffer("inverse_std", torch.where(std > 1e-4 * std.max(), 1.0 / std, 0.0))
        self.linear = nn.Linear(features.shape[1], num_classes)
        bound = 1.0 / math.sqrt(features.shape[1])
        nn.init.uniform_(self.linear.weight, -bound, bound, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Float[Tensor, "M C"]) -> Float[Tensor, "M K"]:
        """Scores of each class."""
        logits: Tensor = self.linear((features - self.mean) * self.inverse_std)
        return logits

    def predict(self, features: Float[Tensor, "M C"]) -> Int[Tensor, " M"]:
        """Class with the highest score."""
        best: Tensor = self(features).argmax(1)
        return best


def fit_linear(
    bank: FeatureBank,
    task: SegmentationTask,
    config: LinearProbeConfig,
    *,
    lr: float,
    seed: int,
    device: torch.device | str,
) -> LinearHead:
    """Train one probe.

    Raises:
        DivergenceError: the loss is not finite.
    """
    features, labels = bank.features.to(device).float(), bank.labels.to(device)
    generator = torch.Generator().manual_seed(seed)
    head = LinearHead(features.cpu(), task.num_classes, generator).to(device)
    weights = None
    if config.loss.class_balance > 0.0:
        weights = class_weights(bank.class_counts(task.num_classes), config.loss.class_balance).to(device)
    optimizer = AdamW(head.parameters(), lr=lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for _ in range(config.steps):
        rows = torch.randint(len(labels), (min(config.batch_size, len(labels)),), generator=generator).to(device)
        loss = segmentation_loss(head(features[rows]), labels[rows], weights, config.loss, task.ignore_label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if not math.isfinite(float(loss.detach())):
        raise DivergenceError(f"linear probe: loss {float(loss.detach())} at learning rate {lr:g}; try smaller rates")
    return head


def tune_linear(
    fit: FeatureBank,
    held: FeatureBank,
    task: SegmentationTask,
    config: LinearProbeConfig,
    *,
    seed: int,
    device: torch.device | str,
) -> Tuned:
    """Train on `fit` with each learning rate and keep the one with the best mIoU over the voxels of `held`."""
    held_features = held.features.to(device).float()

    def validation_miou(lr: float) -> float:
        head = fit_linear(fit, task, config, lr=lr, seed=seed, device=device)
        matrix = task.confusion()
        with torch.inference_mode():
            matrix.update(head.predict(held_features), held.labels.to(device))
        return matrix.miou()

    return tune_rate(config.lrs, validation_miou)
