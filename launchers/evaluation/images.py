"""What protocols of image networks read and need: images with ground truth, decoders, and pictures of predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from configs.schema import EvaluateConfig
from data.loading.image_evaluation import ImageTruthBatches, ImageTruthSpec
from data.sample import Batch
from data.storage.manifest import Manifest
from data.storage.reader import SampleReader
from engine.downstream.common import LabelDraws, Samples, Splits
from engine.downstream.dense import DecoderMaker, DecoderName, DenseNetwork, ImageParts
from engine.downstream.protocols import PROTOCOLS
from launchers.drawing.predictions import draw_predictions, write_predictions
from launchers.evaluation.common import Evaluation, drawn_sample, workers_for
from models.image.decoder import DenseDepthDecoder, UNetDecoder
from models.pairing import upsample_to_pixels

DECODERS: Mapping[DecoderName, DecoderMaker] = {
    "unet": lambda levels, num_outputs, width: UNetDecoder(levels, num_outputs, width=width),
    "densedepth": lambda levels, num_outputs, width: DenseDepthDecoder(levels, num_outputs, width=width),
}
"""Decoders by their names in configs."""


def image_parts(evaluation: Evaluation, splits: Splits, draws: Mapping[str, LabelDraws]) -> ImageParts:
    """For the protocols of `tower="image_backbone"`; each leaves a picture of its predictions for a test sample."""
    read = LabelledImages(evaluation.manifest, evaluation.config, evaluation.image_size)

    def keep(init: str, protocol: str, network: DenseNetwork) -> None:
        batch = drawn_sample(read, splits, PROTOCOLS[protocol].truth)
        if batch is None:
            return
        images = batch.need("images", by="a network of images")
        with torch.inference_mode():
            output = network.eval()(images.to(evaluation.device)).float().cpu()
        picture = draw_predictions(batch, output, evaluation.config.depth, evaluation.manifest.class_names)
        write_predictions(evaluation.folder, f"{protocol} {draws[protocol].text} {init}", picture)

    return ImageParts(read=read, decoders=DECODERS, resample=upsample_to_pixels, keep=keep)


@dataclass(frozen=True)
class LabelledImages:
    """Reads images with ground truth (the engine's `Reader`)."""

    manifest: Manifest
    config: EvaluateConfig
    size: tuple[int, int]

    def __call__(self, samples: Samples) -> Iterator[Batch]:
        """Batches in the given order."""
        batches = ImageTruthBatches(
            reader=SampleReader(self.manifest),
            indices=np.asarray(samples.indices, dtype=np.int64),
            config=self.config.images,
            size=self.size,
            truth=ImageTruthSpec(depth=samples.truth == "depth", labels=samples.truth == "labels"),
            batch_size=samples.batch_size,
            augment=samples.augment,
            seed=samples.seed,
            epoch=samples.epoch,
        )
        return batches.batches(workers_for(samples, self.config))
