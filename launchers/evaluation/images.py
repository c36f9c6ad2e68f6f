"""The family of protocols that measure image networks: dense depth, and classes of pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from configs.schema import EvaluateConfig
from data.loading.image_evaluation import ImageTruthConfig, ImageTruthSpec, image_truth_batches
from data.sample import Batch
from data.storage.shards import Manifest, SampleReader
from engine.downstream.common import LabelDraws
from engine.downstream.evaluate_images import TRUTHS, ImageParts, evaluate_images
from engine.downstream.image_protocol import DenseNetwork, DenseTrainingConfig, Truth
from engine.downstream.protocols import DRAWN, Initialisation, ProtocolName, of_tower
from engine.downstream.results import Result
from launchers.drawing.predictions import draw_predictions, write_predictions
from launchers.evaluation.common import Evaluation, draws_of, fitting, splits_of, write_lists
from launchers.evaluation.sweeps import task_of
from models.image.decoder import UNetDecoder
from models.pairing import FeatureMap, upsample_to_pixels

_LONG_PASS = 64
"""Samples from which on reading ahead in other processes is worth starting them."""


def measure_images(inits: Sequence[Initialisation], evaluation: Evaluation) -> Iterator[Result]:
    """Depth and segmentation of images; a `launchers.evaluation.common.Family`."""
    manifest, config = evaluation.manifest, evaluation.config
    protocols = of_tower(config.protocols, "image_backbone")
    size = config.images.size or evaluation.run.data.image_size
    images = LabelledImages(manifest, config, size)
    draws: dict[ProtocolName, LabelDraws] = {}
    with fitting(manifest):
        splits = splits_of(manifest, config, labelled=False)
        classes = task_of(manifest) if any(TRUTHS[p] == "labels" for p in protocols) else None
        for protocol in protocols:
            if protocol in DRAWN:
                recipe = recipe_of(config, protocol)
                drawn = draws_of(manifest, splits, config, recipe.seeds, recipe.tune_seeds)
                draws[protocol] = dataclasses.replace(drawn, settings={"fraction": drawn.settings["fraction"]})
    for protocol, drawn in draws.items():
        recipe = recipe_of(config, protocol)
        write_lists(evaluation.folder, manifest, drawn, recipe.seeds, recipe.tune_seeds, what=protocol)

    def keep(init: str, protocol: ProtocolName, network: DenseNetwork) -> None:
        batch = next(iter(images(splits.test[:1].tolist(), truth=TRUTHS[protocol], batch_size=1)))
        output = output_of(network, batch, evaluation.device)
        text = draws[protocol].text
        write_predictions(evaluation.folder, f"{init} {protocol} {text}", draw_predictions(batch, output, config.depth))

    context = evaluation.context("image_backbone")
    yield from evaluate_images(
        inits,
        ImageParts(images=images, decoder=make_decoder, resample=read_map),
        splits,
        manifest.set_name,
        classes,
        config,
        draws=draws,
        context={**context, "image_size": list(size), "images": dataclasses.asdict(config.images)},
        device=evaluation.device,
        known=evaluation.known,
        progress=evaluation.progress,
        keep=keep,
    )


def recipe_of(config: EvaluateConfig, protocol: ProtocolName) -> DenseTrainingConfig:
    """Settings of a protocol that trains a decoder."""
    return config.image_finetune if protocol == "image_finetune" else config.depth


def make_decoder(levels: Sequence[int], num_outputs: int, width: int) -> nn.Module:
    """The engine's `DecoderMaker`."""
    return UNetDecoder(levels, num_outputs, width=width)


def read_map(feature_map: FeatureMap, size: tuple[int, int]) -> Float[Tensor, "I C H W"]:
    """The engine's `Resample`."""
    return upsample_to_pixels(feature_map, size)


def output_of(network: DenseNetwork, batch: Batch, device: torch.device) -> Float[Tensor, "I C H W"]:
    """The network's channels for each pixel of a batch, on the CPU."""
    assert batch.images is not None
    with torch.inference_mode():
        output: Tensor = network.eval()(batch.images.to(device))
    return output.float().cpu()


@dataclass(frozen=True)
class LabelledImages:
    """Reads images with ground truth (the engine's `Images`)."""

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
        return image_truth_batches(
            SampleReader(self.manifest),
            np.asarray(indices, dtype=np.int64),
            images,
            size=self.size,
            wanted=ImageTruthSpec(depth=truth == "depth", labels=truth == "labels"),
            batch_size=batch_size,
            augment=augment,
            seed=seed,
            epoch=epoch,
            num_workers=self.config.data.num_workers if len(indices) >= _LONG_PASS else 0,
        )
