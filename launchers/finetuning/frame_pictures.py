"""Pictures of one frame as a network sees it, while it trains and afterwards."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from common.files import replace_file
from configs.detection import FinetuneConfig
from configs.runs import RunConfig
from data.batch_spec import BatchSpec
from data.sample import Batch
from data.storage.reader import SampleError
from data.storage.shard import ShardError
from launchers.drawing.canvas import RgbImage, jpeg_bytes
from launchers.finetuning.judged_set import JudgedSet
from launchers.finetuning.kinds import check_benchmarks, kind_of
from launchers.runs.files import PICTURES_FOLDER
from launchers.training.supervision import Supervised

logger = logging.getLogger("tandem.pretrain")

Draw = Callable[[nn.Module, Batch, int], dict[str, RgbImage]]


def shown_set(config: FinetuneConfig) -> JudgedSet:
    """The frames that the network is judged on; those that it is trained on where nothing judges it."""
    if not config.judge.benchmarks:
        own = dataclasses.replace(
            config.judge, shards=None, split=config.data.split or "train", limit=config.data.limit
        )
        config = dataclasses.replace(config, judge=own)
    check_benchmarks(config)
    return JudgedSet.of(config)


def pictures_of_network(config: RunConfig, _: BatchSpec, run: Supervised) -> Draw:
    """Draws the frame in the middle of those that are judged; where it is damaged, the next one.

    The newest pictures are also kept in the run's folder.
    """
    assert isinstance(config, FinetuneConfig)
    shown: list[JudgedSet] = []

    def draw(objective: nn.Module, _: Batch, step: int) -> dict[str, RgbImage]:
        if not shown:
            shown.append(shown_set(config))
        frame = _middle(objective, shown[0], config)
        pictures = kind_of(config).views(frame, title_of(frame.key, step, config))
        if run.world.is_main:
            keep_pictures(Path(config.run_dir), pictures)
        return pictures

    return draw


def _middle(network: nn.Module, shown: JudgedSet, config: FinetuneConfig) -> Any:
    for index in np.roll(shown.indices, -(len(shown.indices) // 2)).tolist():
        try:
            return kind_of(config).marked(network, shown, index, config)
        except SampleError as error:
            logger.warning("no picture of a damaged frame: %s", error)
    raise ShardError(f"{shown.manifest.set_name}: none of the {len(shown.indices)} frames to draw can be read")


def title_of(key: str, step: int, config: FinetuneConfig) -> str:
    """Caption of a frame's pictures."""
    judge = f"judged as by {config.judge.benchmarks[0]}" if config.judge.benchmarks else "not judged"
    return f"step {step}: {kind_of(config).shown} of {key}, {judge}"


def keep_pictures(run_dir: Path, pictures: Mapping[str, RgbImage]) -> None:
    """Write the newest pictures into the run's folder, over the earlier ones."""
    folder = run_dir / PICTURES_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        replace_file(folder / f"{name}.jpg", jpeg_bytes(picture), durable=False)
