"""What supervised training of a detector or a segmenter is made of (`tandem finetune`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from common.ranges import at_least, different, expect
from configs.load import Choices, ConfigError
from configs.schema import FirstStageConfig, FollowConfig, check_inputs, check_waits
from data.loading.loader import DataConfig
from engine.downstream.runner import Tower
from engine.settings import PretrainSettings
from models.detection import DETECTORS
from models.image.encoders import IMAGE_ENCODERS
from models.lidar.backbones import BACKBONES
from models.methods.base import MethodConfig
from models.segmentation import SEGMENTERS
from models.supervised import SupervisedConfig

MODELS: dict[str, type[SupervisedConfig]] = {**DETECTORS, **SEGMENTERS}
"""Name -> the settings of a network that learns from labels: detectors, then networks that segment points."""

FINETUNE_CHOICES: Choices = {
    "model": MODELS,
    "model.backbone": BACKBONES,
    "model.image_backbone": IMAGE_ENCODERS,
}

RANDOM = "random"
"""As `init`: fresh weights everywhere."""

TowerName = Literal["backbone", "image_backbone"]
TOWERS: tuple[TowerName, ...] = get_args(TowerName)
"""Networks of a detector that a pre-training run can fill."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """How a network is judged while it is trained, and by `tandem evaluate --detector` afterwards.

    Attributes:
        benchmarks: metrics: of a detector, those of `engine.detection.judge.BENCHMARKS`; of a segmenter, those of
            `engine.segmentation.judge.BENCHMARKS`; (): it is not judged.
        every_epochs: epochs between two judgements; 0: only at the end of the run, and after `every_steps`.
        every_steps: updates between two judgements, beside those by epochs; 0: none but those. For few labels, whose
            epochs are a handful of updates, with every_epochs=0.
        shards: folder or URL of a prepared set with labels; None for the set that the network is trained on.
        split: of that set.
        limit: use at most this many frames, evenly spread; None for all.
        batch_size: frames that a process looks at at a time.
        num_workers: processes that read frames ahead; 0: none.
    """

    benchmarks: tuple[str, ...] = ()
    every_epochs: int = 1
    every_steps: int = 0
    shards: str | None = None
    split: str = "val"
    limit: int | None = None
    batch_size: int = 4
    num_workers: int = 0

    def __post_init__(self) -> None:
        different(self, "benchmarks")
        at_least(self, "0: only at the end", every_epochs=0, every_steps=0)
        at_least(self, limit=1, batch_size=1, num_workers=0)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(PretrainSettings):
    """One run that trains a detector or a segmenter on labels (with the fields of `PretrainSettings`).

    Attributes:
        run_dir: folder of checkpoints, logs and pictures; a run found there is continued.
        data: labelled shards, batches, augmentation, voxels.
        model: the network; `model.name` chooses.
        init: what it starts from: "random", the folder of a run or of a checkpoint, a file that `tandem export` wrote,
            or `<layout>:<file>` for files of other projects (docs/detection.md).
        init_towers: which of the detector's networks `init` fills, "backbone" (3D), "image_backbone"; (): all that it
            trained and the detector has.
        judge: how it is judged.
    """

    run_dir: str
    data: DataConfig
    model: SupervisedConfig
    init: str = RANDOM
    init_towers: tuple[str, ...] = ()
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        """Check what concerns several sections."""
        if not self.init:
            raise ConfigError(f"init: got '', expected {RANDOM!r}, a run's folder or a file of weights")
        different(self, "init_towers")
        there = [name for name in TOWERS if self.model.tower(name) is not None]
        expect(
            self, "init_towers", {*self.init_towers} <= {*there}, f"some of {', '.join(there)}, which the network has"
        )
        check_waits(self.engine, self.data)
        check_inputs("model", self.model, self.data)

    @property
    def method(self) -> MethodConfig:
        """What is trained, by the name that it has in every kind of run."""
        return self.model

    def has_tower(self, tower: Tower) -> bool:
        """Whether what is trained has the network that a protocol measures, and that works without the rest."""
        return tower == "objective" or (self.model.tower(tower) is not None and tower not in self.model.FED_BY_METHOD)

    @property
    def evaluate(self) -> FollowConfig:
        """What follows the run: nothing, since it is judged while it trains."""
        return FollowConfig()

    @property
    def first(self) -> FirstStageConfig | None:
        """The stage before this one: none, `init` names a run that is there."""
        return None
