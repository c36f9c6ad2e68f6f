"""Semantic segmentation of images: a decoder that is fine-tuned with the network, and a linear probe on its pyramid.

The probe's features of a pixel are those of all maps of the pyramid, read bilinearly where the pixel lies and put side
by side. It is trained on a random part of the labelled pixels of the train split and applied at every pixel of the
test split. Because it is linear, it is applied to each map and the scores are up-sampled and added: the same numbers as
reading the features at every pixel, at a fraction of the memory.

Letters: I images, C channels of all maps, K classes, R rows of the bank, H W pixels, h w cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.ranges import RangeError, at_least
from engine.downstream.common import ProgressMeter, Samples, SegmentationTask, Truth, Tuned
from engine.downstream.confusion import ConfusionMatrix, LabelError
from engine.downstream.dense import (
    DenseTrainingConfig,
    ImageBatch,
    ImageParts,
    Resample,
    images_of,
    measure_dense,
    pyramid_of,
)
from engine.downstream.features import FeatureBank
from engine.downstream.linear_probe import LinearHead, LinearProbeConfig, fit_linear, tune_linear
from engine.downstream.losses import SegmentationLossConfig, segmentation_loss
from engine.downstream.runner import Initialisation, Job, Measured, segmentation_measured


@dataclass(frozen=True, kw_only=True)
class ImageProbeConfig(LinearProbeConfig):
    """Settings of the linear probe on pixels (with the fields of `LinearProbeConfig`).

    Attributes:
        pixels_per_image: labelled pixels of each train image in the feature bank, at random.
    """

    pixels_per_image: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, pixels_per_image=1)


@dataclass(frozen=True, kw_only=True)
class ImageFinetuneConfig(DenseTrainingConfig):
    """Recipe and loss of fine-tuning (with the fields of `DenseTrainingConfig`).

    Attributes:
        loss: as of the linear probe, but for its balance of classes, which must be 0.
        pixels_per_image: labelled pixels of each image that the loss looks at, at random: the Lovász term sorts them.
    """

    loss: SegmentationLossConfig = field(default_factory=SegmentationLossConfig)
    pixels_per_image: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, pixels_per_image=1)
        if self.loss.class_balance > 0.0:
            raise RangeError(
                f"loss.class_balance: got {self.loss.class_balance:g}, expected 0: not implemented for images"
            )


@dataclass(frozen=True)
class ImageSegmentationTask:
    """Fine-tuning as a `DenseTask`."""

    task: SegmentationTask
    config: ImageFinetuneConfig
    truth: Truth = "labels"
    metric: str = "miou"

    @property
    def num_outputs(self) -> int:
        """K."""
        return self.task.num_classes

    def loss(
        self, output: Float[Tensor, "I K H W"], batch: ImageBatch, generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """Cross-entropy and Lovász-softmax over random pixels."""
        labels = labels_of(batch)
        images, pixels = choose_pixels(labels, self.task.ignore_label, self.config.pixels_per_image, generator)
        logits = output.flatten(2)[images, :, pixels]
        chosen = labels.flatten(1)[images, pixels]
        return segmentation_loss(logits, chosen, None, self.config.loss, self.task.ignore_label)

    def measure(self) -> PixelConfusion:
        """An empty measurement."""
        return PixelConfusion(self.task)


class PixelConfusion:
    """Confusion of classes over pixels."""

    def __init__(self, task: SegmentationTask) -> None:
        self.matrix = task.confusion()

    def update(self, output: Float[Tensor, "I K H W"], batch: ImageBatch) -> None:
        """Take in a batch."""
        self.matrix.update(output.argmax(1).flatten(), labels_of(batch).long().flatten())

    def metrics(self) -> dict[str, float]:
        """Both in percent."""
        return {"miou": 100 * self.matrix.miou(), "accuracy": 100 * self.matrix.accuracy()}


def measure_image_finetune(
    job: Job[ImageParts], init: Initialisation, names: Sequence[str], meter: ProgressMeter
) -> dict[str, Measured]:
    """The measuring function of "image_finetune"."""
    (name,) = names
    task = ImageSegmentationTask(job.task(), job.section(name))
    measures, tuned = measure_dense(job, init, name, meter, task)
    return {name: segmentation_measured(job.task(), [measure.matrix for measure in measures], tuned, scale=1)}


def labels_of(batch: ImageBatch) -> Int[Tensor, "I H W"]:
    """The batch's classes.

    Raises:
        LabelError: it has none.
    """
    if batch.image_labels is None:
        raise LabelError(f"samples {', '.join(batch.keys[:3])} have no classes of pixels; this protocol needs them")
    return batch.image_labels.long()


def choose_pixels(
    labels: Int[Tensor, "I H W"], ignore_label: int, limit: int, generator: torch.Generator
) -> tuple[Int[Tensor, " R"], Int[Tensor, " R"]]:
    """At most `limit` random labelled pixels of each image: image and flat pixel of each."""
    order = torch.rand(labels.shape[0], labels[0].numel(), generator=generator).to(labels.device)
    order = torch.where(labels.flatten(1) == ignore_label, 2.0, order)  # above every random number: taken last
    lowest, pixels = order.topk(min(limit, order.shape[1]), dim=1, largest=False)
    images = torch.arange(len(labels), device=labels.device)[:, None].expand_as(pixels)
    keep = lowest < 2.0
    return images[keep], pixels[keep]


# ---- linear probe


def extract_pixel_bank(
    encoder: nn.Module,
    batches: Iterable[ImageBatch],
    task: SegmentationTask,
    resample: Resample,
    *,
    pixels_per_image: int,
    seed: int,
    device: torch.device | str = "cpu",
    on_samples: Callable[[int], None] = lambda count: None,
) -> FeatureBank:
    """Features of random labelled pixels as a frozen network, put into evaluation mode, sees them.

    Which pixels are kept depends on the seed and the position of the sample alone.

    Raises:
        LabelError: unlabelled images, or not one labelled pixel in all of them.
    """
    encoder.eval()
    features: list[Tensor] = []
    classes: list[Tensor] = []
    done = 0
    for batch in batches:
        on_device = batch.to(device)
        labels = labels_of(on_device)
        generator = torch.Generator().manual_seed(int(np.random.default_rng([seed, done]).integers(2**31)))
        images, pixels = choose_pixels(labels, task.ignore_label, pixels_per_image, generator)
        size = (labels.shape[1], labels.shape[2])
        with torch.inference_mode():
            maps = pyramid_of(encoder, images_of(on_device))
            # One map after another: side by side at full size they would fill the memory.
            read = [resample(m, size).flatten(2)[images, :, pixels].half().cpu() for m in maps]
        features.append(torch.cat(read, dim=1))
        classes.append(labels.flatten(1)[images, pixels].cpu())
        done += batch.num_samples
        on_samples(batch.num_samples)
    if not classes or sum(map(len, classes)) == 0:
        raise LabelError(f"not one labelled pixel in {done} train samples of {task.dataset!r}")
    return FeatureBank(torch.cat(features).clone(), torch.cat(classes).clone())


def probe_pyramid(
    head: LinearHead, maps: Sequence[Any], size: tuple[int, int], resample: Resample
) -> Float[Tensor, "I K H W"]:
    """Scores of a probe of all maps side by side, at every pixel of an image of this height and width."""
    # Standardisation and layer as one affine map.
    weight = head.linear.weight * head.inverse_std
    bias = head.linear.bias - weight @ head.mean
    total: Tensor | None = None
    start = 0
    for m in maps:
        width = m.values.shape[1]
        part = torch.einsum("ichw,kc->ikhw", m.values.float(), weight[:, start : start + width])
        up = resample(type(m)(part, m.stride, m.origin_px), size)
        total = up if total is None else total + up
        start += width
    assert total is not None
    return total + bias[:, None, None]


def score_probes(
    encoder: nn.Module,
    batches: Iterable[ImageBatch],
    heads: Mapping[int, LinearHead],
    task: SegmentationTask,
    resample: Resample,
    *,
    device: torch.device | str = "cpu",
    on_samples: Callable[[int], None] = lambda count: None,
) -> dict[int, ConfusionMatrix]:
    """Confusion of each probe (by seed) over every labelled pixel, in one pass.

    Raises:
        LabelError: unlabelled images.
    """
    encoder.eval()
    confusions = {seed: PixelConfusion(task) for seed in heads}
    for batch in batches:
        on_device = batch.to(device)
        with torch.inference_mode():
            images = images_of(on_device)
            maps = pyramid_of(encoder, images)
            for seed, head in heads.items():
                scores = probe_pyramid(head, maps, (images.shape[-2], images.shape[-1]), resample)
                confusions[seed].update(scores, on_device)
        on_samples(batch.num_samples)
    return {seed: confusion.matrix for seed, confusion in confusions.items()}


def measure_image_probe(
    job: Job[ImageParts], init: Initialisation, names: Sequence[str], meter: ProgressMeter
) -> dict[str, Measured]:
    """The measuring function of "image_linear_probe"."""
    (name,) = names
    classes, config, parts = job.task(), job.section(name), job.parts
    matrices: dict[int, ConfusionMatrix] = {}
    tuned: dict[int, Tuned] = {}
    for network in init.in_use(config.seeds):
        seeds = init.seeds_of(network, config.seeds)
        with job.frozen(init, network) as encoder:
            fit, held = (
                extract_pixel_bank(
                    encoder,
                    parts.read(Samples(part.tolist(), truth="labels")),
                    classes,
                    parts.resample,
                    pixels_per_image=config.pixels_per_image,
                    seed=number,
                    device=job.device,
                    on_samples=lambda n: meter.advance(n, f"{init.name}: features of the train split"),
                )
                for number, part in enumerate(job.fit_and_held())
            )
            best = tune_linear(fit, held, classes, config, seed=seeds[0], device=job.device)
            bank = fit.joined(held)
            heads = {s: fit_linear(bank, classes, config, lr=best.lr, seed=s, device=job.device) for s in seeds}
            # In percent already here: a mean over networks of scaled values differs in the last digit.
            tuned |= dict.fromkeys(seeds, Tuned(best.lr, {lr: 100 * value for lr, value in best.table.items()}))
            matrices |= score_probes(
                encoder,
                parts.read(Samples(job.splits.test.tolist(), truth="labels")),
                heads,
                classes,
                parts.resample,
                device=job.device,
                on_samples=lambda n: meter.advance(n, f"{init.name}: linear probe on the test split"),
            )
    seeds = list(config.seeds)
    rates = [tuned[s] for s in seeds]
    return {name: segmentation_measured(classes, [matrices[s] for s in seeds], rates, scale=1)}


def image_probe_work(job: Job[ImageParts], init: Initialisation, names: Sequence[str]) -> int:
    """Work of `measure_image_probe`."""
    samples = len(job.splits.train) + len(job.splits.test)
    return sum(len(init.in_use(job.section(name).seeds)) * samples for name in names)
