"""What a run is made of: composes the dataclasses that live beside each part, and checks what concerns several.

`PRETRAIN_CHOICES` says which sections can be one of several dataclasses, chosen by their `name`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from common.ranges import RangeError, at_least, below, different, expect, one_of
from configs.load import Choices, ConfigError
from data.loading.fractions import FractionConfig
from data.loading.image_evaluation import ImageTruthConfig
from data.loading.loader import DataConfig
from data.storage.remote.shard_cache import CacheConfig
from data.views.augment import PointAugmentConfig
from engine.deepspeed_config import EngineConfig
from engine.downstream.protocols import PROTOCOLS, ProtocolsConfig
from engine.downstream.runner import TOWER_TITLES, Tower
from engine.settings import PretrainSettings
from models.image.encoders import IMAGE_ENCODERS
from models.image.teachers import TEACHERS
from models.lidar.backbones import BACKBONES
from models.methods import METHODS
from models.methods.base import MethodConfig
from models.methods.slidr import SlidrConfig

PRETRAIN_CHOICES: Choices = {
    "method": METHODS,
    "method.backbone": BACKBONES,
    "method.teacher": TEACHERS,
    "method.point_backbone": BACKBONES,
    "method.image_backbone": IMAGE_ENCODERS,
    "method.pixel_network": IMAGE_ENCODERS,
}


@dataclass(frozen=True, kw_only=True)
class FollowConfig:
    """What follows a pre-training run: evaluations, and detectors that are trained from it.

    Attributes:
        configs: YAML files of downstream protocols, for example configs/downstream/street.yaml, or of detectors'
            trainings, for example configs/finetune/second_street.yaml; (): nothing follows.
        overrides: `section.field=value`, for each file of protocols.
        detector_overrides: the same, for each file of a detector.
        fractions: numbers of labelled sweeps, drawn at random, that fine-tuning and detectors are repeated with; 0:
            all; (): the choice that each file makes itself.
        seeds: of detectors' trainings and of their draws of labels, a training each; (): the run's own seed.
        every: updates between the checkpoints that the best is looked for among; 0: only the last is evaluated. They
            are compared on logs held out from the train split, never on the test split.
        select_by: protocol that compares them.
    """

    configs: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    detector_overrides: tuple[str, ...] = ()
    fractions: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    every: int = 0
    select_by: str = "linear_probe"

    def __post_init__(self) -> None:
        different(self, "configs", "fractions", "seeds")
        at_least(self, "0: all", fractions=0)
        at_least(self, "0: off", every=0)
        at_least(self, seeds=0)
        one_of(self, select_by=PROTOCOLS)
        useful = bool(self.configs) or not self.every
        expect(self, "every", useful, "0: configs is empty, there is nothing to compare checkpoints by")


FIRST_STAGE = "tandem:first"
"""As a weight file in a method's section: the network that the first stage trains."""


@dataclass(frozen=True, kw_only=True)
class FirstStageConfig:
    """A run that is trained before this one, which is built with its network (`weights: tandem:first`).

    Attributes:
        config: YAML file of that run. Its seed and its shards are those of this run.
        overrides: `section.field=value`, for that file; stronger than what this run hands on.
        run_dir: its folder; runs that name the same one share it. None: this run's folder with "-first" behind it.
    """

    config: str
    overrides: tuple[str, ...] = ()
    run_dir: str | None = None


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(PretrainSettings):
    """One pre-training run (with the fields of `PretrainSettings`; its seed is also that of weights, order and views).

    Attributes:
        run_dir: folder of checkpoints, logs and pictures; a run found there is continued.
        data: shards, batches, augmentation, voxels.
        method: what is learnt; `method.name` chooses.
        evaluate: what is measured when the run is over; it changes nothing of the run itself.
        first: a run that this one builds on; None for runs of one stage.
    """

    run_dir: str
    data: DataConfig
    method: MethodConfig = field(default_factory=SlidrConfig)
    evaluate: FollowConfig = field(default_factory=FollowConfig)
    first: FirstStageConfig | None = None

    def __post_init__(self) -> None:
        """Check what concerns several sections."""
        every, kept = self.evaluate.every, self.checkpoint.keep_every
        if every and (kept == 0 or every % kept):
            raise ConfigError(
                f"evaluate.every: got {every}, expected a multiple of checkpoint.keep_every={kept}: only those "
                f"checkpoints stay on disk until they are evaluated (set checkpoint.keep_every={every})"
            )
        judged = PROTOCOLS[self.evaluate.select_by].tower
        if every and not self.has_tower(judged):
            possible = (name for name, p in PROTOCOLS.items() if p.tower != "objective" and self.has_tower(p.tower))
            raise ConfigError(
                f"evaluate.select_by: got {self.evaluate.select_by}, which measures a {TOWER_TITLES[judged]}, and "
                f"{type(self.method).__name__} has none; expected one of " + ", ".join(possible)
            )
        if (self.first is not None) != _holds(self.method, FIRST_STAGE):
            raise ConfigError(
                "first: the method has no weight file `tandem:first`, so the first stage would be trained for nothing"
                if self.first is not None
                else f"method: {FIRST_STAGE!r} is the network of a first stage, and there is no section `first`; "
                "expected first.config=<YAML file>, or a weight file"
            )
        check_waits(self.engine, self.data)
        check_inputs("method", self.method, self.data)

    def has_tower(self, tower: Tower) -> bool:
        """Whether the method has the network that a protocol measures."""
        return tower == "objective" or self.method.tower(tower) is not None


def check_waits(engine: EngineConfig, data: DataConfig) -> None:
    """Refuse to take a process that waits for storage for one that hangs.

    Raises:
        ConfigError: names both settings.
    """
    if engine.stall_min <= data.retry_min:
        raise ConfigError(
            f"engine.stall_min: got {engine.stall_min:g}, expected more than data.retry_min={data.retry_min:g}: a "
            "process that waits for storage would be taken for one that hangs"
        )


def check_inputs(section: str, method: MethodConfig, data: DataConfig) -> None:
    """Refuse 3D networks that cannot work on the voxels that they are given.

    Args:
        section: name of the method's section, for the message.
        method: what is trained.
        data: what it is trained on.

    Raises:
        ConfigError: names the network and the setting.
    """
    try:
        method.check_voxels(data.voxel)
    except ValueError as error:
        raise ConfigError(f"{section}.{error}") from error


def _holds(section: Any, value: str) -> bool:
    """Whether a field of a section, or of a section in it, has a value."""
    parts = [getattr(section, f.name) for f in fields(section)] if is_dataclass(section) else []
    return any(part == value or _holds(part, value) for part in parts)


@dataclass(frozen=True, kw_only=True)
class EvaluateDataConfig:
    """The labelled set that is evaluated on.

    Attributes:
        shards: folder or URL of a prepared set; None for the set that the network was pre-trained on.
        train_split: labels to learn from; learning rates are tuned on part of it.
        test_split: what the final numbers are measured on.
        holdout: measure on logs held out from the train split (`validation_share` of them) and learn from the others,
            to choose between checkpoints; the test split is not read.
        limit_train: use at most this many train sweeps, evenly spread; None for all.
        limit_test: the same for the test split.
        num_workers: processes that read sweeps ahead in long passes; 0: none.
        cache: where shards of a set behind a URL are kept; None: as in pre-training.
    """

    shards: str | None = None
    train_split: str = "train"
    test_split: str = "val"
    holdout: bool = False
    limit_train: int | None = None
    limit_test: int | None = None
    num_workers: int = 0
    cache: CacheConfig | None = None

    def __post_init__(self) -> None:
        at_least(self, limit_train=2, limit_test=1, num_workers=0)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ProtocolsConfig):
    """One downstream evaluation (with the fields of `ProtocolsConfig`).

    Attributes:
        data: the labelled set. Voxels are those that the network was pre-trained with.
        fraction: which train sweeps fine-tuning may use with their labels; each seed of `finetune.seeds` is added to
            `fraction.seed`, so that it draws its own where the choice is random.
        augment: of the labelled sweeps in fine-tuning.
        images: how images and their ground truth are made, for the protocols of image networks.
        random: measure random initialisation beside it, under the same budget.
        results: file that the results are added to; None for results.json in the run's folder.
        device: where networks run; "auto": a GPU if there is one.
    """

    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    fraction: FractionConfig = field(default_factory=FractionConfig)
    augment: PointAugmentConfig = field(default_factory=PointAugmentConfig)
    images: ImageTruthConfig = field(default_factory=ImageTruthConfig)
    random: bool = True
    results: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What one job asks SLURM for.

    Attributes:
        partition: None for the cluster's default one.
        nodes: machines.
        gpus_per_node: 0 asks for none (runs on CPU).
        tasks_per_node: processes a machine; None: one a GPU, or one.
        cpus_per_task: cores of a process; its loader workers share them.
        mem_gb: memory a machine, GB; None for the partition's default.
        time_min: limit, minutes. A pre-training that meets it writes a checkpoint and queues again.
    """

    partition: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int | None = None
    cpus_per_task: int = 1
    mem_gb: float | None = None
    time_min: int = 1440

    def __post_init__(self) -> None:
        at_least(self, nodes=1, gpus_per_node=0, tasks_per_node=1, cpus_per_task=1, mem_gb=0.01, time_min=1)

    @property
    def tasks(self) -> int:
        """Processes a machine."""
        return self.tasks_per_node or max(1, self.gpus_per_node)


@dataclass(frozen=True, kw_only=True)
class SlurmConfig(ResourcesConfig):
    """A cluster and what a pre-training run asks of it (with the fields of `ResourcesConfig`).

    Attributes:
        name: of the cluster, in messages and jobs.json.
        account: who pays; None where the cluster does not ask.
        qos: quality of service; None for the default.
        signal_s: seconds before the limit at which the processes get the signal to write a checkpoint; more than a
            step and a checkpoint take.
        array_parallelism: runs of a sweep at the same time, at most.
        setup: shell lines before the processes start (modules, network variables).
        sbatch: further options of sbatch, long name -> value ("true" for one without a value).
        evaluate: what an evaluation asks for; without a partition of its own it goes to the same one.
    """

    name: str = "cluster"
    account: str | None = None
    qos: str | None = None
    signal_s: int = 120
    array_parallelism: int = 16
    setup: tuple[str, ...] = ()
    sbatch: dict[str, str] = field(default_factory=dict)
    evaluate: ResourcesConfig = field(default_factory=ResourcesConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, array_parallelism=1, signal_s=1)
        below(self, "time_min, in seconds", signal_s=60 * self.time_min)
        if self.evaluate.nodes * self.evaluate.tasks != 1:
            raise ValueError(
                f"evaluate asks for {self.evaluate.nodes * self.evaluate.tasks} processes, expected 1: an evaluation "
                "runs in one process (set evaluate.tasks_per_node=1)"
            )


_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+.]{0,47}")


@dataclass(frozen=True, kw_only=True)
class SweepRunConfig:
    """One of a sweep's runs that start from different files.

    Attributes:
        base: YAML file of a pre-training run.
        overrides: `section.field=value` for this one, stronger than the sweep's own.
    """

    base: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Many pre-training runs that differ in some settings, with their evaluations and one report.

    Attributes:
        base: YAML file of a pre-training run that all points start from; None with `runs`.
        root: folder of the sweep; a point is a run folder in it.
        overrides: `section.field=value` for all points.
        points: lists of overrides that go together, a list for each setting of `base`.
        runs: name -> run with a file of its own, in place of `base` and `points`: methods that are compared.
        grid: dotted name -> values; every combination of them is run, at each of `points` or `runs`.
        evaluate: queue the evaluations that the base config asks for, and a report.
        cluster: YAML file of the cluster; None: named on the command line.
    """

    base: str | None = None
    root: str
    overrides: tuple[str, ...] = ()
    points: tuple[tuple[str, ...], ...] = ()
    runs: dict[str, SweepRunConfig] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    evaluate: bool = True
    cluster: str | None = None

    def __post_init__(self) -> None:
        """Check that there is something to sweep over, and no name twice."""
        for name, values in self.grid.items():
            if not isinstance(values, tuple) or not values:
                raise RangeError(f"grid.{name}: got {values!r}, expected a list of at least one value")
        if (self.base is None) != bool(self.runs):
            raise ValueError(f"base={self.base!r} and {len(self.runs)} runs; expected either a base or runs")
        if self.runs and self.points:
            raise ValueError("points belong to a base; expected the overrides of runs in runs.<name>.overrides")
        if not self.grid and not self.points and not self.runs:
            raise ValueError("neither grid nor points nor runs is given, so there is nothing to sweep over")
        for name in self.runs:
            if not _RUN_NAME.fullmatch(name):
                raise ValueError(f"runs.{name}: expected a name of letters, digits, '_', '+' and '.'")
        listed = (*self.points, *(run.overrides for run in self.runs.values()))
        named = {override.partition("=")[0] for point in listed for override in point}
        both = sorted(named & set(self.grid))
        if both:
            where = "runs" if self.runs else "points"
            raise ValueError(f"{both[0]} is in {where} and in grid; expected one of them to set it")
