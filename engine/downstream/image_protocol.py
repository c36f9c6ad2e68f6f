"""What the protocols for image networks share: batches, the network, the recipe, and one training run.

A run trains a decoder, and the encoder with it unless that is frozen, on the drawn samples. The protocol around it
(`engine.downstream.evaluate_images`) gives every initialisation the same draws, tunes the rate for each on samples of
the train split that no draw contains, and spends the same number of updates.

Letters: I images, C channels, H W pixels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from engine.downstream.common import check_rates, check_seeds
from engine.downstream.confusion import LabelError
from engine.downstream.fit import train_updates
from engine.interfaces import BatchLike

Truth = Literal["depth", "labels"]


@runtime_checkable
class ImageBatch(BatchLike, Protocol):
    """Images with ground truth. Fields as in `data.sample.Batch`."""

    @property
    def images(self) -> UInt8[Tensor, "I 3 H W"] | None:
        """RGB."""
        ...

    @property
    def image_depth_m(self) -> Float[Tensor, "I H W"] | None:
        """Depth along the optical axis, 0 where unknown."""
        ...

    @property
    def image_labels(self) -> UInt8[Tensor, "I H W"] | None:
        """Class of each pixel, or the ignore label."""
        ...

    def to(self, device: torch.device | str) -> ImageBatch:
        """The same batch on another device."""
        ...


@runtime_checkable
class Images(Protocol):
    """Reads images with ground truth by sample, in the given order."""

    def __call__(
        self,
        indices: Sequence[int],
        *,
        truth: Truth | None,
        batch_size: int,
        augment: bool = False,
        seed: int = 0,
        epoch: int = 0,
    ) -> Iterable[ImageBatch]:
        """Batches of at most `batch_size` samples; augmentations are a function of (seed, epoch, sample)."""
        ...


@runtime_checkable
class Measure(Protocol):
    """Collects what is needed for the metrics of one pass."""

    def update(self, output: Float[Tensor, "I C H W"], batch: ImageBatch) -> None:
        """Take in a batch."""
        ...

    def metrics(self) -> dict[str, float]:
        """Values by the names of `engine.downstream.metrics.METRICS`."""
        ...


@runtime_checkable
class DenseTask(Protocol):
    """A quantity for each pixel: what is learnt, from what, and how it is judged."""

    @property
    def truth(self) -> Truth:
        """Ground truth that it needs."""
        ...

    @property
    def num_outputs(self) -> int:
        """Channels that the decoder has."""
        ...

    @property
    def metric(self) -> str:
        """The main metric."""
        ...

    def loss(
        self, output: Float[Tensor, "I C H W"], batch: ImageBatch, generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """To be minimised."""
        ...

    def measure(self) -> Measure:
        """An empty measurement."""
        ...


DecoderMaker = Callable[[Sequence[int], int, int], nn.Module]
"""(channels of the pyramid's maps, channels of the result, width) -> decoder with random weights, called with
(pyramid, (height, width))."""


@dataclass(frozen=True, kw_only=True)
class DenseTrainingConfig:
    """Recipe of training a decoder, with or without the encoder."""

    lrs: tuple[float, ...] = (0.0001, 0.0004, 0.0016)
    """AdamW learning rates of the encoder to try, for each initialisation separately."""
    decoder_lr_scale: float = 5.0
    """The new decoder's rate = this x the encoder's: it starts from nothing. Also where the encoder is frozen."""
    weight_decay: float = 0.01
    """Of AdamW, relative to the learning rate."""
    steps: int = 200
    """Updates; linear warm-up over the first tenth, then a half cosine to 0."""
    batch_size: int = 2
    """Samples an update, each with all of its images."""
    augment: bool = True
    """Mirror (...) the training images, as the reader's settings say."""
    clip_norm: float = 10.0
    """Largest gradient norm."""
    width: int = 32
    """Channels of the decoder's finest step."""
    seeds: tuple[int, ...] = (0,)
    """One run each: draw of labelled samples, decoder, order, augmentations; a random network is drawn anew, too."""
    tune_seeds: tuple[int, ...] = (1000,)
    """Draws that learning rates are compared on (shared by all initialisations; the mean decides)."""

    def __post_init__(self) -> None:
        check_rates(self.lrs)
        check_seeds(self.seeds)
        check_seeds(self.tune_seeds)
        for name in ("decoder_lr_scale", "steps", "batch_size", "clip_norm", "width"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected above 0")
        if self.weight_decay < 0.0:
            raise ValueError(f"weight_decay = {self.weight_decay}: expected at least 0")


class DenseNetwork(nn.Module):
    """An encoder with a decoder on its pyramid."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, *, frozen: bool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.frozen = encoder, decoder, frozen
        for parameter in encoder.parameters():
            parameter.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> DenseNetwork:
        """A frozen encoder keeps its BatchNorm statistics."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, images: UInt8[Tensor, "I 3 H W"]) -> Float[Tensor, "I C H W"]:
        """The decoder's channels for each pixel."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            pyramid = pyramid_of(self.encoder, images)
        output: Tensor = self.decoder(pyramid, (images.shape[-2], images.shape[-1]))
        return output


def pyramid_of(encoder: nn.Module, images: UInt8[Tensor, "I 3 H W"]) -> Sequence[Any]:
    """Maps of an encoder, each with `values`, `stride` and `origin_px`; finest first.

    Raises:
        ValueError: the network has no pyramid.
    """
    pyramid = getattr(encoder, "pyramid", None)
    if pyramid is None:
        raise ValueError(f"{type(encoder).__name__} has no method pyramid: it is no image network")
    maps: Sequence[Any] = pyramid(images)
    return maps


def images_of(batch: ImageBatch) -> UInt8[Tensor, "I 3 H W"]:
    """The batch's pixels.

    Raises:
        LabelError: it has none.
    """
    if batch.images is None:
        raise LabelError(f"samples {', '.join(batch.keys[:3])} have no images")
    return batch.images


def build_dense(
    encoder: nn.Module, task: DenseTask, config: DenseTrainingConfig, make: DecoderMaker, *, seed: int, frozen: bool
) -> DenseNetwork:
    """A copy of the encoder with a new decoder; the caller's random state is left alone.

    Raises:
        ValueError: the network has no pyramid.
    """
    levels = getattr(encoder, "level_features", None)
    if levels is None:
        raise ValueError(f"{type(encoder).__name__} has no attribute level_features: it is no image network")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = make(levels, task.num_outputs, config.width)
    return DenseNetwork(copy.deepcopy(encoder), decoder, frozen=frozen)


def train_dense(
    network: DenseNetwork,
    images: Images,
    indices: Int[np.ndarray, " n"],
    task: DenseTask,
    config: DenseTrainingConfig,
    *,
    lr: float,
    seed: int,
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] | None = None,
) -> DenseNetwork:
    """Train in place on labelled samples.

    Args:
        network: as `build_dense` makes it.
        images: reader.
        indices: the labelled samples.
        task: what is learnt.
        config: recipe.
        lr: the encoder's learning rate.
        seed: of the order, the augmentations and the loss's choice of pixels.
        device: where to train.
        on_step: told the number of samples after each update.

    Returns:
        The network, in evaluation mode.

    Raises:
        DivergenceError: the loss is not finite.
        LabelError: the drawn samples have no ground truth.
    """
    network.to(device).train()
    groups = [
        {"params": [p for p in network.encoder.parameters() if p.requires_grad], "lr": lr},
        {"params": list(network.decoder.parameters()), "lr": lr * config.decoder_lr_scale},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    train_updates(
        network,
        optimizer,
        _stream(images, indices, task, config, seed),
        lambda batch: task.loss(network(images_of(batch)), batch, generator),
        steps=config.steps,
        clip_norm=config.clip_norm,
        what=f"{task.metric} at learning rate {lr:g}",
        device=device,
        on_step=on_step,
    )
    return network.eval()


def score_dense(
    network: DenseNetwork,
    batches: Iterable[ImageBatch],
    task: DenseTask,
    *,
    device: torch.device | str = "cpu",
    on_samples: Callable[[int], None] | None = None,
) -> Measure:
    """The measurement of one pass.

    Raises:
        LabelError: no ground truth.
    """
    network.eval()
    measure = task.measure()
    for batch in batches:
        on_device = batch.to(device)
        with torch.inference_mode():
            measure.update(network(images_of(on_device)).float(), on_device)
        if on_samples is not None:
            on_samples(batch.num_samples)
    return measure


def _stream(
    images: Images, indices: Int[np.ndarray, " n"], task: DenseTask, config: DenseTrainingConfig, seed: int
) -> Iterator[ImageBatch]:
    """Endless batches: each labelled sample once an epoch, in an order that depends on (seed, epoch) alone."""
    epoch = 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(indices).tolist()
        yield from images(
            order, truth=task.truth, batch_size=config.batch_size, augment=config.augment, seed=seed, epoch=epoch
        )
        epoch += 1


def per_seed(found: Sequence[Mapping[str, float]]) -> dict[str, tuple[float | None, ...]]:
    """Metrics of several runs as a record holds them; None where a number is not defined."""
    return {name: tuple(run[name] if math.isfinite(run[name]) else None for run in found) for name in found[0]}
