"""The sources that a detector can start from: runs, files of weights, files of other projects."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.files import file_sha256
from common.nearby import nearby
from common.run_files import SUMS_FILE, WEIGHTS_FILE, list_checkpoints
from configs.detection import RANDOM, TOWERS, FinetuneConfig, TowerName
from configs.load import ConfigError, load
from data.batch_spec import VoxelConfig
from engine.checkpoint import load_weights
from engine.downstream.results import LeakLevel
from engine.downstream.runner import TOWER_TITLES
from engine.errors import CheckpointError
from launchers.evaluation.networks import open_source, origin_of
from launchers.evaluation.weight_file import read_file
from launchers.runs.settings import setting_of
from launchers.training.restore import find_checkpoint_folder
from models.layouts.back_in import stated, taken, unwrapped
from models.layouts.base import Layout
from models.layouts.known import LAYOUTS
from models.lidar.inputs import PointInput
from models.methods.base import MethodConfig, Objective
from models.weights import compare, read_checkpoint

logger = logging.getLogger("tandem.pretrain")

OWN_LAYOUTS = ("tandem", "slidr")
"""Of files that say, or have always the same, input; the first needs no name."""
WHOLE = ""
"""As a part of a detector: all of it."""


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
        left_out: sub-networks of the source's towers that the detector does not have.
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
    left_out: tuple[str, ...] = ()
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
        parts += [f"left out: {', '.join(self.left_out)}"] if self.left_out else []
        parts += [f"assumed: {self.assumed}"] if self.assumed else []
        return "; ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Weights to start from, read.

    Attributes:
        title: for messages.
        start: what is known before anything is filled.
        voxels: that its 3D network was fed.
        parts: parts of the detector that it fills, its towers or the whole (""), each with the tensors for it.
    """

    title: str
    start: Start
    voxels: VoxelConfig
    parts: Mapping[str, Callable[[nn.Module], Mapping[str, Tensor]]]


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


def open_init(config: FinetuneConfig, detector: Objective) -> Source:
    """Read what a detector's `init` names.

    Raises:
        CheckpointError, ValueError: nothing there, damaged, or of another kind than the detector's networks.
    """
    layout, path = _named(config.init)
    if not layout and not path.exists():
        layouts = ", ".join(dict.fromkeys((*OWN_LAYOUTS, *LAYOUTS)))
        raise CheckpointError(
            f"{path} does not exist; expected {RANDOM!r}, the folder of a run or of a checkpoint, a file that tandem "
            f"export wrote, or LAYOUT:FILE with one of the layouts {layouts}"
            f"{nearby(path, lambda folder: bool(list_checkpoints(folder)))}"
        )
    if layout in LAYOUTS and layout not in OWN_LAYOUTS:
        return _open_theirs(path, LAYOUTS[layout], config, detector)
    if layout or (path.is_file() and path.name != WEIGHTS_FILE):
        return _open_file(path, layout or OWN_LAYOUTS[0], config)
    return _open_run(path.parent if path.is_file() else path, config)


def _open_run(path: Path, config: FinetuneConfig) -> Source:
    """A run's checkpoint: a detector of the same settings is taken whole, else the towers that both have."""
    opened = open_source(path)
    checkpoint, run = opened.checkpoint, opened.config
    same = isinstance(run, FinetuneConfig) and run.model == config.model and not config.init_towers
    weights = {
        part: load_weights(checkpoint, prefix=f"{part}." if part else "")
        for part in ((WHOLE,) if same else shared_towers(run.method, config))
    }
    teacher, leak = origin_of(run)
    start = Start(
        source=config.init,
        identity=opened.identity,
        name=opened.method + (f", {' and '.join(config.init_towers)} only" if config.init_towers else ""),
        pretraining=f"{opened.steps} steps, seed {run.seed}",
        setting=setting_of(run),
        pretrain_seeds=(run.seed,),
        sha256=_checkpoint_sha256(checkpoint),
        teacher=teacher,
        leak=leak,
    )
    return Source(
        title=str(checkpoint),
        start=start,
        voxels=run.data.voxel,
        parts={part: lambda _, state=state: state for part, state in weights.items()},  # type: ignore[misc]
    )


def _open_file(path: Path, layout: str, config: FinetuneConfig) -> Source:
    _check_takes_files(config)
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
    title = f"{path} (layout {layout})"
    return Source(title=title, start=start, voxels=voxels, parts={"backbone": content.state})


def _open_theirs(path: Path, layout: Layout, config: FinetuneConfig, detector: Objective) -> Source:
    """A file of another project: the whole detector where the layout has it and all heads fit, else the 3D network."""
    _check_takes_files(config)
    content = read_checkpoint(path)
    theirs = unwrapped(layout, content, str(path))
    sha256, said = _sha256(path), stated(content)
    part = WHOLE if not config.init_towers and _fits_whole(layout, theirs, detector) else "backbone"
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
    return Source(title=title, start=start, voxels=voxels, parts={part: lambda _: took.state})


def _check_takes_files(config: FinetuneConfig) -> None:
    """Refuse a file of weights for a detector, or for a tower, that such files do not hold."""
    if config.model.tower("backbone") is None or (config.init_towers and config.init_towers != ("backbone",)):
        raise ConfigError(
            f"init={config.init}: a file of weights fills `backbone` (3D network), the detector "
            f"{type(config.model).__name__} wants another; expected a run, or "
            "model.image_backbone.weights=<format>:FILE"
        )


def _fits_whole(layout: Layout, theirs: Mapping[str, Tensor], detector: Objective) -> bool:
    """Whether a file holds such a detector, head and all: heads of other classes have other shapes."""
    try:
        report = compare(detector, taken(layout, theirs, detector).state, source=layout.name)
    except ValueError:
        return False
    return not report.mismatched and not report.unused


def shared_towers(method: MethodConfig, config: FinetuneConfig) -> tuple[TowerName, ...]:
    """Towers that a method trains, the detector has and `init_towers` does not leave out.

    Raises:
        ConfigError: none; names those of both.
    """
    theirs = [name for name in TOWERS if method.tower(name) is not None]
    ours = [name for name in TOWERS if config.model.tower(name) is not None]
    shared = tuple(name for name in ours if name in theirs and name in (config.init_towers or TOWERS))
    lacking = [name for name in config.init_towers if name not in theirs]
    if lacking or not shared:
        raise ConfigError(
            f"init={config.init}: {type(method).__name__} trains {_titles(theirs)}, the detector "
            f"{type(config.model).__name__} has {_titles(ours)}; expected "
            + (f"a run with {_titles(lacking)}, or init_towers without" if lacking else "one that both have")
        )
    return shared


def _titles(towers: Sequence[str]) -> str:
    """Towers for a message."""
    return " and ".join(f"`{name}` ({TOWER_TITLES[name]})" for name in towers) or "no network"  # type: ignore[index]


def _sha256(path: Path) -> str:
    digest = file_sha256(path)
    if digest is None:
        raise CheckpointError(f"{path} cannot be read; expected a file of weights")
    return digest


def _checkpoint_sha256(checkpoint: Path) -> str:
    """As its list of files states it: finding the checkpoint has compared the two."""
    return str(json.loads((checkpoint / SUMS_FILE).read_text())[WEIGHTS_FILE]["sha256"])
