"""What protocols of image networks read and need: images with ground truth, decoders, and pictures of predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from configs.schema import EvaluateConfig
from data.loading.image_evaluation import ImageTruthBatches, ImageTruthConfig, ImageTruthSpec
from data.sample import Batch
from data.storage.manifest import Manifest
from data.storage.reader import SampleReader
from engine.downstream.common import LabelDraws, Splits, Truth
from engine.downstream.dense import DenseNetwork, ImageParts
from engine.downstream.protocols import PROTOCOLS
from launchers.drawing.predictions import draw_predictions, write_predictions
from launchers.evaluation.common import Evaluation
from models.image.decoder import UNetDecoder
from models.pairing import FeatureMap, upsample_to_pixels

_LONG_PASS = 64
"""Samples from which on reading ahead in other processes is worth starting them."""


def image_parts(evaluation: Evaluation, splits: Splits, draws: Mapping[str, LabelDraws]) -> ImageParts:
    """For the protocols of `tower="image_backbone"`; each leaves a picture of its predictions for a test sample."""
    images = LabelledImages(evaluation.manifest, evaluation.config, evaluation.image_size)

    def keep(init: str, protocol: str, network: DenseNetwork) -> None:
        batch = next(iter(images(splits.test[:1].tolist(), truth=PROTOCOLS[protocol].truth, batch_size=1)))
        output = output_of(network, batch, evaluation.device)
        picture = draw_predictions(batch, output, evaluation.config.depth)
        write_predictions(evaluation.folder, f"{init} {protocol} {draws[protocol].text}", picture)

    return ImageParts(read=images, decoder=make_decoder, resample=read_map, keep=keep)


def make_decoder(levels: Sequence[int], num_outputs: int, width: int) -> nn.Module:
    """The engine's `DecoderMaker`."""
    return UNetDecoder(levels, num_outputs, width=width)


def read_map(feature_map: FeatureMap, size: tuple[int, int]) -> Float[Tensor, "I C H W"]:
    """The engine's `Resample`."""
    return upsample_to_pixels(feature_map, size)


def output_of(network: DenseNetwork, batch: Batch, device: torch.device) -> Float[Tensor, "I C H W"]:
    """The network's channels for each pixel of a batch, on the CPU."""
    images = batch.need("images", by="a network of images")
    with torch.inference_mode():
        output: Tensor = network.eval()(images.to(device))
    return output.float().cpu()


@dataclass(frozen=True)
class LabelledImages:
    """Reads images with ground truth (the engine's `Reader`)."""

    manifest: Manifest
    config: EvaluateConfig
    size: tuple[int, int]

    def __call__(
        self,
        indices: Sequence[int],
        *,
        truth: Truth | None,
        batch_size: int,
        augment: bool = False,
        seed: int = 0,
        epoch: int = 0,
    ) -> Iterator[Batch]:
        """Batches in the given order."""
        images: ImageTruthConfig = self.config.images
        made = ImageTruthBatches(
            reader=SampleReader(self.manifest),
            indices=np.asarray(indices, dtype=np.int64),
            config=images,
            size=self.size,
            truth=ImageTruthSpec(depth=truth == "depth", labels=truth == "labels"),
            batch_size=batch_size,
            augment=augment,
            seed=seed,
            epoch=epoch,
        )
        return made.batches(self.config.data.num_workers if len(indices) >= _LONG_PASS else 0)
