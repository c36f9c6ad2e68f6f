"""Fine-tuning on few labels: the whole network and a linear head, on the drawn sweeps only.

One run = one learning rate, one seed, one draw of labelled sweeps; `engine.downstream.runner.train_on_draws` says how
runs are compared.

Letters: C feature width, K classes, M voxels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.ranges import at_most, between, positive
from engine.downstream.common import (
    ProgressMeter,
    Reader,
    Samples,
    SegmentationTask,
    VoxelLabel,
    feature_width,
    kept_as_it_is,
    run_backbone,
    voxel_labels,
)
from engine.downstream.confusion import ConfusionMatrix, LabelError
from engine.downstream.features import SweepParts, score
from engine.downstream.fit import TrainingConfig, train_updates, training_stream
from engine.downstream.losses import SegmentationLossConfig, class_weights, segmentation_loss
from engine.downstream.runner import Initialisation, Job, Measured, segmentation_measured, train_on_draws
from engine.interfaces import PointBatch
from engine.tower_optim import layer_scales


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """Settings of fine-tuning (with the fields of `TrainingConfig`).

    Attributes:
        head_lr_scale: the new head's rate = this x the backbone's: it starts from nothing.
        head: "linear", or "norm_linear": BatchNorm before the linear layer.
        bn_momentum: of the backbone's BatchNorm layers; null: as they are built.
        voxel_label: which label a voxel is trained with, see `VoxelLabel`; scores are of points in any case.
        layer_decay: a layer of the backbone has the backbone's rate x this to the power of the layers above it; 1: all
            alike. The backbone must number its layers (`engine.interfaces.HasLayers`).
    """

    lrs: tuple[float, ...] = (0.0005, 0.002, 0.008)
    steps: int = 80
    batch_size: int = 1
    seeds: tuple[int, ...] = (0, 1, 2)
    head_lr_scale: float = 5.0
    head: Literal["linear", "norm_linear"] = "linear"
    bn_momentum: float | None = None
    voxel_label: VoxelLabel = "majority"
    layer_decay: float = 1.0
    loss: SegmentationLossConfig = field(default_factory=SegmentationLossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "head_lr_scale", "layer_decay")
        at_most(self, layer_decay=1)
        between(self, "null: as built", bn_momentum=(0, 1))


class SegmentationNetwork(nn.Module):
    """A backbone and a linear head on its voxel features. A frozen backbone stays in evaluation mode."""

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        generator: torch.Generator,
        *,
        head: Literal["linear", "norm_linear"] = "linear",
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.frozen = backbone, frozen
        width = feature_width(backbone)
        linear = nn.Linear(width, num_classes)
        bound = 1.0 / math.sqrt(width)
        nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
        nn.init.zeros_(linear.bias)
        self.head = linear if head == "linear" else nn.Sequential(nn.BatchNorm1d(width), linear)
        for parameter in backbone.parameters():  # whatever pre-training had frozen
            parameter.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> SegmentationNetwork:
        """A frozen backbone keeps its BatchNorm statistics."""
        super().train(mode)
        self.backbone.train(mode and not self.frozen)
        return self

    def forward(self, batch: PointBatch) -> Float[Tensor, "M K"]:
        """Scores of each voxel."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = run_backbone(self.backbone, batch)
        logits: Tensor = self.head(features)
        return logits

    def predict(self, features: Float[Tensor, "M C"]) -> Int[Tensor, " M"]:
        """Class of each voxel from the backbone's features."""
        logits: Tensor = self.head(features)
        return logits.argmax(1)


def finetune(
    backbone: nn.Module,
    read: Reader[PointBatch],
    indices: Int[np.ndarray, " n"],
    task: SegmentationTask,
    config: FinetuneConfig,
    *,
    lr: float,
    seed: int,
    frozen: bool = False,
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] = lambda count: None,
) -> SegmentationNetwork:
    """Train a copy of the backbone and a new head on labelled sweeps.

    Args:
        backbone: starting point; is not changed.
        read: reader.
        indices: the labelled sweeps.
        task: classes.
        config: recipe.
        lr: the backbone's learning rate.
        seed: of the head's first weights, the order and the augmentations.
        frozen: only the head learns.
        device: where to train.
        on_step: called with the number of sweeps after each update.

    Returns:
        The trained network, in evaluation mode.

    Raises:
        DivergenceError: the loss is not finite.
        LabelError: the drawn sweeps hold no labelled point.
        ChangedError: a frozen backbone changed.
    """
    generator = torch.Generator().manual_seed(seed)
    network = SegmentationNetwork(copy.deepcopy(backbone), task.num_classes, generator, head=config.head, frozen=frozen)
    network.to(device).train()
    if config.bn_momentum is not None:
        for module in network.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = config.bn_momentum
    weights = _balance(read, indices, task, config, device)

    def loss_of(batch: PointBatch) -> Float[Tensor, ""]:
        labels = voxel_labels(batch, task, config.voxel_label)
        return segmentation_loss(network(batch), labels, weights, config.loss, task.ignore_label)

    what = f"{'linear probe' if frozen else 'fine-tuning'} at learning rate {lr:g}"
    with kept_as_it_is(network.backbone, what, frozen=frozen):
        train_updates(
            network,
            config.build(rate_groups(network, config, lr)),
            training_stream(read, indices, config, truth="labels", seed=seed),
            loss_of,
            config,
            num_samples=len(indices),
            what=what,
            device=device,
            on_step=on_step,
        )
    return network.eval()


def rate_groups(network: SegmentationNetwork, config: FinetuneConfig, lr: float) -> list[dict[str, Any]]:
    """Parameters that learn, with their rates: the backbone's, `lr` in its last layer, then the head's.

    Raises:
        ValueError: layer decay for a backbone that does not number its layers.
    """
    decay = config.layer_decay
    scale = layer_scales(network, "backbone", decay) if decay != 1.0 else lambda _: 1.0
    by_scale: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if name.startswith("backbone.") and parameter.requires_grad:
            by_scale.setdefault(scale(name), []).append(parameter)
    groups: list[dict[str, Any]] = [{"params": layer, "lr": lr * factor} for factor, layer in by_scale.items()]
    return [*groups, {"params": list(network.head.parameters()), "lr": lr * config.head_lr_scale}]


def _balance(
    read: Reader[PointBatch],
    indices: Int[np.ndarray, " n"],
    task: SegmentationTask,
    config: FinetuneConfig,
    device: torch.device | str,
) -> Float[Tensor, " K"] | None:
    """Class weights from the labelled sweeps' voxels; None where all classes weigh alike."""
    if config.loss.class_balance == 0.0:
        return None
    counts = torch.zeros(task.num_classes, dtype=torch.int64)
    for batch in read(Samples(indices.tolist(), truth="labels")):
        labels = voxel_labels(batch, task, config.voxel_label)
        counts += torch.bincount(labels[labels != task.ignore_label].cpu(), minlength=task.num_classes)
    if not bool(counts.any()):
        raise LabelError(f"the labelled sweeps {indices.tolist()[:5]} of {task.dataset!r} hold no labelled point")
    return class_weights(counts, config.loss.class_balance).to(device)


def measure_finetune(
    job: Job[SweepParts], init: Initialisation, names: Sequence[str], meter: ProgressMeter, *, frozen: bool = False
) -> dict[str, Measured]:
    """The measuring function of "finetune" and, with the network left as it is, of "sweep_probe"."""

    def train(
        start: nn.Module, drawn: Int[np.ndarray, " n"], lr: float, seed: int, on_step: Callable[[int], None]
    ) -> SegmentationNetwork:
        return finetune(
            start, read, drawn, task, config, lr=lr, seed=seed, frozen=frozen, device=job.device, on_step=on_step
        )

    def confusion(
        network: SegmentationNetwork, samples: Int[np.ndarray, " m"], on_sweeps: Callable[[int], None]
    ) -> ConfusionMatrix:
        batches = read(Samples(samples.tolist(), truth="labels"))
        predictors = {"head": network.predict}
        return score(network.backbone, batches, predictors, task, device=job.device, on_sweeps=on_sweeps)["head"]

    def keep(network: SegmentationNetwork) -> None:
        if job.parts.keep is not None:
            job.parts.keep(init.name, name, network.backbone, network.predict)

    (name,) = names
    read, task, config = job.parts.read, job.task(), job.section(name)
    with job.parts.threads():
        matrices, tuned = train_on_draws(
            job, init, name, meter, train=train, score=confusion, goodness=ConfusionMatrix.miou, keep=keep
        )
    return {name: segmentation_measured(task, matrices, tuned, scale=100)}
