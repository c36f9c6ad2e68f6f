"""Networks that `benchmarks.depth_gain` measures: of runs, and ImageNet's, each with random ones beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from configs.runs import RunConfig
from configs.schema import EvaluateConfig
from data.sample import Batch
from data.storage.manifest import load_manifest
from engine.downstream.common import Samples
from engine.downstream.runner import Initialisation, Job, Tower
from launchers.evaluation.common import Evaluation, device_of
from launchers.evaluation.measure import job_of
from launchers.evaluation.networks import check_alike, open_source, pretrained_initialisation, random_initialisation
from models.image.efficientnet import EfficientNetLite0, load_lite0_weights
from models.pairing import FeatureMap

TOWER: Tower = "image_backbone"
SEEDS = (0, 1, 2)


class Lite0(nn.Module):
    """EfficientNet-Lite0 as an image network for these protocols."""

    level_features = (24, 40, 112, 320)

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0(levels=(4, 8, 16, 32))

    def pyramid(self, images: UInt8[Tensor, "I 3 H W"]) -> tuple[FeatureMap, ...]:
        """Maps of strides 4 to 32; a cell lies on the last pixel of its first stride (padding `SAME`)."""
        maps = self.network.pyramid((images.float() - 127) / 128)
        return tuple(FeatureMap(maps[stride], stride, stride - 1.0) for stride in self.network.levels)


def lite0(seed: int, *, imagenet: bool) -> Lite0:
    """With ImageNet's weights, or the seed's random ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Lite0()
    if imagenet:
        load_lite0_weights(network.network)
    return network


class Family(NamedTuple):
    """Networks of one architecture: pre-trained, and random."""

    pretrained: Initialisation
    random: Initialisation
    run: RunConfig  # whose images and set are used


def family_of(runs: Sequence[Path], config: EvaluateConfig) -> Family:
    """Of repetitions of one method."""
    sources = [open_source(path) for path in runs]
    check_alike(sources)
    run = sources[0].config
    return Family(pretrained_initialisation(sources, TOWER), random_initialisation(run, config, TOWER), run)


def lite0_family(run: RunConfig) -> Family:
    """ImageNet's network, with the images of a run."""
    pretrained = Initialisation(
        name="imagenet",
        pretrained=True,
        networks=(partial(lite0, 0, imagenet=True),),
        checkpoint=("efficientnet_lite0 imagenet",),
        leak="supervised-teacher",
    )
    random = tuple(partial(lite0, seed, imagenet=False) for seed in SEEDS)
    return Family(pretrained, Initialisation(name="random", pretrained=False, networks=random), run)


def job_for(family: Family, shards: str, config: EvaluateConfig, folder: Path) -> Job[Any]:
    """The job of `tandem evaluate`; lists and pictures go to the folder."""
    evaluation = Evaluation(
        manifest=load_manifest(shards), run=family.run, config=config, folder=folder, device=device_of("cpu")
    )
    return job_of(evaluation, TOWER)


def read(job: Job[Any], indices: Int[np.ndarray, " n"]) -> Iterator[Batch]:
    """Images with depth, not augmented."""
    return iter(job.parts.read(Samples(indices.tolist(), truth="depth", batch_size=2)))
