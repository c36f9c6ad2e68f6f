"""Dense prediction from images: what the protocols of image networks share.

A run trains a decoder, and the encoder with it unless that is frozen, on the drawn samples;
`engine.downstream.runner.train_on_draws` says how runs are compared. What is predicted is a `DenseTask`.

Letters: I images, C channels, H W pixels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from common.ranges import positive
from engine.downstream.common import ProgressMeter, Reader, Samples, Truth, Tuned, UnsuitableError, kept_as_it_is
from engine.downstream.confusion import LabelError
from engine.downstream.fit import TrainingConfig, train_updates, training_stream
from engine.downstream.metrics import METRICS
from engine.downstream.runner import Initialisation, Job, Parts, train_on_draws
from engine.interfaces import BatchLike


@runtime_checkable
class ImageBatch(BatchLike, Protocol):
    """Images with ground truth. Fields as in `data.sample.Batch`."""

    @property
    def images(self) -> UInt8[Tensor, "I 3 H W"] | None:
        """RGB."""

    @property
    def image_depth_m(self) -> Float[Tensor, "I H W"] | None:
        """Depth along the optical axis, 0 where unknown."""

    @property
    def image_labels(self) -> UInt8[Tensor, "I H W"] | None:
        """Class of each pixel, or the ignore label."""


@runtime_checkable
class Measure(Protocol):
    """Collects what is needed for the metrics of one pass."""

    def update(self, output: Float[Tensor, "I C H W"], batch: ImageBatch) -> None:
        """Take in a batch."""

    def metrics(self) -> dict[str, float]:
        """Values by the names of `engine.downstream.metrics.METRICS`."""


MeasureT_co = TypeVar("MeasureT_co", bound=Measure, covariant=True)
MeasureT = TypeVar("MeasureT", bound=Measure)


@runtime_checkable
class DenseTask(Protocol[MeasureT_co]):
    """A quantity for each pixel: what is learnt, from what, and how it is judged."""

    @property
    def truth(self) -> Truth:
        """Ground truth that it needs."""

    @property
    def num_outputs(self) -> int:
        """Channels that the decoder has."""

    @property
    def metric(self) -> str:
        """The main metric."""

    def loss(
        self, output: Float[Tensor, "I C H W"], batch: ImageBatch, generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """To be minimised."""

    def measure(self) -> MeasureT_co:
        """An empty measurement."""


DecoderName = Literal["unet", "densedepth"]
DecoderMaker = Callable[[Sequence[int], int, int], nn.Module]
"""(channels of the pyramid's maps, channels of the result, width) -> decoder with random weights, called with
(pyramid, (height, width))."""


@dataclass(frozen=True, kw_only=True)
class DenseTrainingConfig(TrainingConfig):
    """Recipe of training a decoder, with or without the encoder (with the fields of `TrainingConfig`).

    Attributes:
        decoder_lr_scale: the new decoder's rate = this x the encoder's: it starts from nothing. Also where the encoder
            is frozen.
        decoder: "unet", small and for batches of a few images, or "densedepth", that of papers on depth.
        width: channels of the decoder's finest step.
    """

    lrs: tuple[float, ...] = (0.0001, 0.0004, 0.0016)
    steps: int = 200
    batch_size: int = 2
    seeds: tuple[int, ...] = (0,)
    decoder_lr_scale: float = 5.0
    decoder: DecoderName = "unet"
    width: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "decoder_lr_scale", "width")


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
        if self.frozen:  # BatchNorm uses its running statistics and leaves them as they are
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
        UnsuitableError: the network has no pyramid.
    """
    pyramid = getattr(encoder, "pyramid", None)
    if pyramid is None:
        raise UnsuitableError(f"{type(encoder).__name__} has no method pyramid: it is no image network")
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
    encoder: nn.Module,
    task: DenseTask[Measure],
    config: DenseTrainingConfig,
    make: DecoderMaker,
    *,
    seed: int,
    frozen: bool,
) -> DenseNetwork:
    """A copy of the encoder with a new decoder; the caller's random state is left alone.

    Raises:
        UnsuitableError: the network has no pyramid.
    """
    levels = getattr(encoder, "level_features", None)
    if levels is None:
        raise UnsuitableError(f"{type(encoder).__name__} has no attribute level_features: it is no image network")
    with torch.random.fork_rng(devices=[]):  # decoders take no generator, they draw from torch's own
        torch.manual_seed(seed)
        decoder = make(levels, task.num_outputs, config.width)
    return DenseNetwork(copy.deepcopy(encoder), decoder, frozen=frozen)


def train_dense(
    network: DenseNetwork,
    read: Reader[ImageBatch],
    indices: Int[np.ndarray, " n"],
    task: DenseTask[Measure],
    config: DenseTrainingConfig,
    *,
    lr: float,
    seed: int,
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] = lambda count: None,
) -> DenseNetwork:
    """Train a network of `build_dense` in place on labelled samples.

    Args:
        network: left in evaluation mode.
        read: reader.
        indices: the labelled samples.
        task: what is learnt.
        config: recipe.
        lr: the encoder's learning rate.
        seed: of the order, the augmentations and the loss's choice of pixels.
        device: where to train.
        on_step: called with the number of samples after each update.

    Raises:
        DivergenceError: the loss is not finite.
        LabelError: the drawn samples have no ground truth.
    """
    network.to(device).train()
    groups = [
        {"params": [p for p in network.encoder.parameters() if p.requires_grad], "lr": lr},
        {"params": list(network.decoder.parameters()), "lr": lr * config.decoder_lr_scale},
    ]
    generator = torch.Generator().manual_seed(seed)
    with kept_as_it_is(network.encoder, task.metric, frozen=network.frozen):
        train_updates(
            network,
            config.build([g for g in groups if g["params"]]),
            training_stream(read, indices, config, truth=task.truth, seed=seed),
            lambda batch: task.loss(network(images_of(batch)), batch, generator),
            config,
            num_samples=len(indices),
            what=f"{task.metric} at learning rate {lr:g}",
            device=device,
            on_step=on_step,
        )
    return network.eval()


def score_dense(
    network: DenseNetwork,
    batches: Iterable[ImageBatch],
    task: DenseTask[MeasureT],
    *,
    device: torch.device | str = "cpu",
    on_samples: Callable[[int], None] = lambda count: None,
) -> MeasureT:
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
        on_samples(batch.num_samples)
    return measure


def per_seed(runs: Sequence[Mapping[str, float]]) -> dict[str, tuple[float | None, ...]]:
    """Metrics of several runs as a record holds them; None where a number is not defined."""
    return {name: tuple(run[name] if math.isfinite(run[name]) else None for run in runs) for name in runs[0]}


# ---- the part that all protocols of image networks have in common

Resample = Callable[[Any, tuple[int, int]], Float[Tensor, "I C H W"]]
"""(map of a pyramid, (height, width)) -> the map read bilinearly at every pixel."""
Keep = Callable[[str, str, DenseNetwork], None]
"""Called with (initialisation, protocol, network of the first seed) before the network is thrown away, to draw
pictures."""


@dataclass(frozen=True, kw_only=True)
class ImageParts(Parts[ImageBatch]):
    """What protocols of image networks need.

    Attributes:
        decoders: makers of decoders.
        resample: reads a map at every pixel.
        keep: see `Keep`.
    """

    decoders: Mapping[DecoderName, DecoderMaker]
    resample: Resample
    keep: Keep | None = None

    def run(self, network: nn.Module, batch: ImageBatch) -> object:
        """The batch's pyramid."""
        return pyramid_of(network, images_of(batch))


def measure_dense(
    job: Job[ImageParts],
    init: Initialisation,
    name: str,
    meter: ProgressMeter,
    task: DenseTask[MeasureT],
    *,
    frozen: bool = False,
) -> tuple[list[MeasureT], list[Tuned]]:
    """Train decoders on the protocol's draws and score them: what `train_on_draws` gives back."""
    config, parts, sign = job.section(name), job.parts, METRICS[task.metric].sign
    make = parts.decoders[config.decoder]

    def train(
        start: nn.Module, drawn: Int[np.ndarray, " n"], lr: float, seed: int, on_step: Callable[[int], None]
    ) -> DenseNetwork:
        network = build_dense(start, task, config, make, seed=seed, frozen=frozen)
        return train_dense(
            network, parts.read, drawn, task, config, lr=lr, seed=seed, device=job.device, on_step=on_step
        )

    def score(network: DenseNetwork, samples: Int[np.ndarray, " m"], on_samples: Callable[[int], None]) -> MeasureT:
        batches = parts.read(Samples(samples.tolist(), truth=task.truth))
        return score_dense(network, batches, task, device=job.device, on_samples=on_samples)

    keep = parts.keep
    return train_on_draws(
        job,
        init,
        name,
        meter,
        train=train,
        score=score,
        goodness=lambda measure: sign * measure.metrics()[task.metric],
        keep=None if keep is None else lambda network: keep(init.name, name, network),
    )
