"""What a detector starts from: a pre-training run, another detector's run, or a file of weights.

Sub-networks are taken whole or not at all. A part that the source lacks entirely, such as SECOND's 2D network where
the sparse encoder alone was pre-trained, keeps its random weights, and log and record name it; half a part, another
shape or a tensor without a place is an error.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.files import file_sha256
from common.run_files import SUMS_FILE, WEIGHTS_FILE
from configs.detection import RANDOM, FinetuneConfig
from configs.load import ConfigError, load
from data.batch_spec import VoxelConfig
from engine.checkpoint import load_weights
from engine.downstream.results import LeakLevel
from engine.errors import CheckpointError
from launchers.evaluation.networks import open_source, origin_of
from launchers.evaluation.weight_file import read_file
from launchers.runs.settings import setting_of
from launchers.training.restore import find_checkpoint_folder
from models.detection.base import Detector
from models.layouts.back_in import stated, taken, unwrapped
from models.layouts.base import Layout
from models.layouts.known import LAYOUTS
from models.lidar.base import BackboneConfig
from models.lidar.inputs import PointInput
from models.weights import compare, load_state, read_checkpoint

logger = logging.getLogger("tandem.pretrain")

OWN_LAYOUTS = ("tandem", "slidr")
"""Of files that say, or have always the same, input; the first needs no name."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a detector started from.

    Attributes:
        source: as the config names it.
        identity: run, step and beginning of the weights' sha256, or those of a file; "random".
        name: of what the weights were trained by, for tables: a method, a detector, or the file.
        pretraining: how, for people, e.g. "600 steps, seed 0"; "" where that is unknown.
        setting: see `engine.downstream.results.Result`.
        pretrain_seeds: the same.
        sha256: of the file of weights; "" for random ones.
        teacher: what the source's networks learnt from, see `engine.downstream.results.Result`.
        leak: the same.
        filled: sub-networks with the source's weights.
        random: sub-networks with fresh weights.
        assumed: what the file does not say, and was taken for granted.
        grid: voxels of the source, where the detector is fed others; None: the same, or random.
    """

    source: str
    identity: str
    name: str = RANDOM
    pretraining: str = ""
    setting: str = ""
    pretrain_seeds: tuple[int, ...] = ()
    sha256: str = ""
    teacher: str = ""
    leak: LeakLevel = "none"
    filled: tuple[str, ...] = ()
    random: tuple[str, ...] = ()
    assumed: str = ""
    grid: Mapping[str, Any] | None = None

    def to_text(self) -> str:
        """For init.json in the run's folder."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    def __str__(self) -> str:
        """For the log."""
        parts = [f"starts from {self.identity}"]
        parts += [f"filled: {', '.join(self.filled)}"] if self.filled else []
        parts += [f"random: {', '.join(self.random)}"] if self.random else []
        parts += [f"assumed: {self.assumed}"] if self.assumed else []
        return "; ".join(parts)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Weights to start from, read.

    Attributes:
        title: for messages.
        start: what is known before anything is filled.
        voxels: that its network was fed.
        state: tensors for a given part of the detector: the whole of it ("") or its "backbone".
        part: which of the two it fills.
    """

    title: str
    start: Start
    voxels: VoxelConfig
    state: Callable[[nn.Module], Mapping[str, Tensor]]
    part: str = "backbone"


def fill(detector: Detector, config: FinetuneConfig) -> Start:
    """Fill a detector with what `config.init` names; its random weights stay where that has none.

    Raises:
        ConfigError: nothing there, damaged, or its weights or input do not fit; names the setting.
    """
    if config.init == RANDOM:
        return Start(source=RANDOM, identity=RANDOM, random=_children(detector))
    try:
        source = _open(config, detector)
    except (CheckpointError, ValueError) as error:
        raise ConfigError(f"init={config.init}: {error}") from error
    _check_input(source, config)
    part = detector.get_submodule(source.part)
    filled, empty = _fill_part(part, source, config)
    prefix = f"{source.part}." if source.part else ""
    others = tuple(name for name in _children(detector) if name != source.part) if source.part else ()
    other_grid = source.voxels != config.data.voxel
    if other_grid:
        logger.warning("init=%s: it learnt from other voxels than this detector is fed: %s", config.init, source.voxels)
    return dataclasses.replace(
        source.start,
        filled=tuple(f"{prefix}{name}" for name in filled),
        random=(*(f"{prefix}{name}" for name in empty), *others),
        grid=dataclasses.asdict(source.voxels) if other_grid else None,
    )


def check_fits(backbone: BackboneConfig, voxels: VoxelConfig, config: FinetuneConfig) -> None:
    """Refuse a detector that a pre-training run's network could not fill, before that is trained.

    Args:
        backbone: the run's 3D network.
        voxels: that it is fed.
        config: of the detector, whose `init` is the run.

    Raises:
        ConfigError: its weights or input would not fit; names the setting.
    """
    source = _Source(
        title=config.init,
        start=Start(source=config.init, identity=config.init),
        voxels=voxels,
        state=lambda _: backbone.build().state_dict(),
    )
    _check_input(source, config)
    tower = config.model.tower("backbone")
    assert isinstance(tower, BackboneConfig)
    _parts(tower.build(), source, config)


def sha256_of(init: str) -> str | None:
    """SHA-256 of the weights that `init` names now, "random" for none; None where they are gone."""
    if init == RANDOM:
        return RANDOM
    layout, path = _named(init)
    try:
        return _sha256(path) if layout or path.is_file() else _checkpoint_sha256(find_checkpoint_folder(path))
    except (CheckpointError, OSError):
        return None


def _named(init: str) -> tuple[str, Path]:
    """Layout and path; "" where none is given."""
    layout, colon, path = init.partition(":")
    return (layout, Path(path)) if colon and layout in (*OWN_LAYOUTS, *LAYOUTS) else ("", Path(init))


def _open(config: FinetuneConfig, detector: Detector) -> _Source:
    layout, path = _named(config.init)
    if layout in LAYOUTS and layout not in OWN_LAYOUTS:
        return _open_theirs(path, LAYOUTS[layout], config, detector)
    if layout or (path.is_file() and path.name != WEIGHTS_FILE):
        return _open_file(path, layout or OWN_LAYOUTS[0], config)
    return _open_run(path.parent if path.is_file() else path, config)


def _open_run(path: Path, config: FinetuneConfig) -> _Source:
    """A run's checkpoint: a detector of the same settings is taken whole, else the 3D network."""
    opened = open_source(path)
    checkpoint, run = opened.checkpoint, opened.config
    part = "" if isinstance(run, FinetuneConfig) and run.model == config.model else "backbone"
    weights = load_weights(checkpoint, prefix="backbone." if part else "")
    teacher, leak = origin_of(run)
    start = Start(
        source=config.init,
        identity=opened.identity,
        name=opened.method,
        pretraining=f"{opened.steps} steps, seed {run.seed}",
        setting=setting_of(run),
        pretrain_seeds=(run.seed,),
        sha256=_checkpoint_sha256(checkpoint),
        teacher=teacher,
        leak=leak,
    )
    return _Source(title=str(checkpoint), start=start, voxels=run.data.voxel, state=lambda _: weights, part=part)


def _open_file(path: Path, layout: str, config: FinetuneConfig) -> _Source:
    content = read_file(path, layout)
    sha256 = _sha256(path)
    start = Start(
        source=config.init,
        identity=f"{path.name} {sha256[:12]} {layout}",
        name=path.stem,
        sha256=sha256,
        teacher=content.metadata.get("teacher", ""),
        leak=content.metadata.get("leak", "unknown"),  # type: ignore[arg-type]
    )
    voxels = load(VoxelConfig, None, defaults=dict(content.voxels))
    return _Source(title=f"{path} (layout {layout})", start=start, voxels=voxels, state=content.state)


def _open_theirs(path: Path, layout: Layout, config: FinetuneConfig, detector: Detector) -> _Source:
    """A file of another project: the whole detector where the layout has it and all heads fit, else the 3D network."""
    content = read_checkpoint(path)
    theirs = unwrapped(layout, content, str(path))
    sha256, said = _sha256(path), stated(content)
    part = "" if _fits_whole(layout, theirs, detector) else "backbone"
    took = taken(layout, theirs, detector.get_submodule(part))
    if str(took):
        logger.warning("init=%s: %s", config.init, took)
    voxels = load(VoxelConfig, None, defaults=json.loads(said["voxel"])) if "voxel" in said else config.data.voxel
    assumed = "" if "voxel" in said else f"it learnt from what this detector is fed: {PointInput.of(voxels)}; {voxels}"
    if assumed:
        logger.warning("init=%s: a file of this layout does not say what it was fed; assumed: %s", config.init, assumed)
    start = Start(
        source=config.init,
        identity=f"{path.name} {sha256[:12]} {layout.name}",
        name=path.stem,
        sha256=sha256,
        teacher=said.get("teacher", ""),
        leak=said.get("leak", "unknown"),  # type: ignore[arg-type]
        assumed=assumed,
    )
    title = f"{path} (layout {layout.name})"
    return _Source(title=title, start=start, voxels=voxels, state=lambda _: took.state, part=part)


def _fits_whole(layout: Layout, theirs: Mapping[str, Tensor], detector: Detector) -> bool:
    """Whether a file holds such a detector, head and all: heads of other classes have other shapes."""
    try:
        report = compare(detector, taken(layout, theirs, detector).state, source=layout.name)
    except ValueError:
        return False
    return not report.mismatched and not report.unused


def _check_input(source: _Source, config: FinetuneConfig) -> None:
    """Refuse a network that learnt from features of another meaning: it would give other ones without any error."""
    theirs, ours = PointInput.of(source.voxels), PointInput.of(config.data.voxel)
    for field in dataclasses.fields(PointInput):
        expected, got = getattr(theirs, field.name), getattr(ours, field.name)
        if expected != got:
            raise ConfigError(
                f"data.voxel.{field.name}: got {got}, expected {expected}: init={config.init} learnt from {theirs}"
            )


def _fill_part(part: nn.Module, source: _Source, config: FinetuneConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Copy the weights; names of the sub-networks that were filled, and of those that the source lacks entirely."""
    names = _parts(part, source, config)
    try:
        load_state(part, source.state(part), source=source.title, min_match=0.0)
    except ValueError as error:
        raise ConfigError(f"init={config.init}: {error}") from error
    return names


def _parts(part: nn.Module, source: _Source, config: FinetuneConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the sub-networks that the source fills, and of those that it lacks entirely.

    Raises:
        ConfigError: it fills none, or anything else does not fit.
    """
    report = compare(part, source.state(part), source=source.title)
    present = {name.split(".")[0] for name in report.matched}
    lacking = {name.split(".")[0] for name in report.missing}
    if not present or lacking & present or report.mismatched or report.unused:
        where = "model.backbone" if source.part else "model"
        raise ConfigError(
            f"init={config.init}: its weights are not those of {where} as it is set; set {where} as the source has it "
            f"(preset, in_channels, grid), or start from another\n{report.text()}"
        )
    return tuple(sorted(present)), tuple(sorted(lacking))


def _children(module: nn.Module) -> tuple[str, ...]:
    """Sub-networks that have weights."""
    return tuple(name for name, child in module.named_children() if any(True for _ in child.parameters()))


def _sha256(path: Path) -> str:
    digest = file_sha256(path)
    if digest is None:
        raise CheckpointError(f"{path} cannot be read; expected a file of weights")
    return digest


def _checkpoint_sha256(checkpoint: Path) -> str:
    """As its list of files states it: finding the checkpoint has compared the two."""
    return str(json.loads((checkpoint / SUMS_FILE).read_text())[WEIGHTS_FILE]["sha256"])
