"""A network from a file of weights alone, without a run's folder: what it is, what it is fed, how it is filled."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from common.files import file_sha256
from configs.find import find_config
from configs.load import UNREADABLE, ConfigError, load, required_settings
from configs.runs import RunConfig, read_run
from configs.schema import PRETRAIN_CHOICES, EvaluateConfig, PretrainConfig
from data.batch_spec import VoxelConfig
from engine.downstream.protocols import PROTOCOLS, of_tower
from engine.downstream.results import LeakLevel
from engine.downstream.runner import TOWER_TITLES, Initialisation, Tower
from launchers.evaluation.networks import describe_origin, random_network
from launchers.runs.files import CONFIG_FILE
from models.image.resnet import NETWORK_PREFIX, ResNetName
from models.layouts.back_in import stated, taken, unwrapped
from models.layouts.base import Fed, Layout
from models.layouts.intensity import with_intensity_times
from models.layouts.known import LAYOUTS
from models.lidar.backbones import BACKBONES
from models.lidar.base import BackboneConfig
from models.lidar.inputs import SLIDR_VOXELS, PointInput
from models.lidar.minkowski import from_minkowski
from models.lidar.res16unet import Preset
from models.weights import (
    IMAGE_FORMATS,
    compare,
    load_state,
    read_backbone_metadata,
    read_checkpoint,
    slidr_input,
    slidr_metadata,
    slidr_points,
)

_State = Callable[[nn.Module], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class StatedByHand:
    """What the caller knows of a file; None: as the file says, or as is usual for its layout.

    Attributes:
        preset: of the network; None where the file does not say it: the one that it fits.
        leak: how much human labelling the weights brought along.
        like: of layouts that say nothing of it: a config whose 3D network is the file's, and is fed what that is fed.
        intensity_scale: of 3D networks of other projects, see `models.lidar.inputs.PointInput`.
        intensity_offset: the same.
    """

    preset: str | None = None
    leak: LeakLevel | None = None
    like: RunConfig | None = None
    intensity_scale: float | None = None
    intensity_offset: float | None = None


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A file and the network in it.

    Attributes:
        path: of the file.
        identity: of the network: the file's name, the beginning of its sha256, and what makes another network of the
            same tensors: the layout, and a scale that was given by hand.
        tower: what its network is.
        run: settings in the place of a run's: the set, the voxels that the network is fed, and the network, as a method
            with such a tower has it; nothing else of them is looked at.
        state: the file's tensors by the names of a given network; those without a place keep their own names.
        teacher: see `Result`.
        leak: see `Result`.
        origin: what is known of the pre-training, for tables.
    """

    path: Path
    identity: str
    tower: Tower
    run: PretrainConfig
    state: _State
    teacher: str
    leak: LeakLevel
    origin: str

    def initialisation(self) -> Initialisation:
        """The network for the protocols.

        Building it raises a ConfigError where the file's tensors are not finite.
        """

        def build() -> nn.Module:
            network = random_network(self.run, self.tower, 0)
            try:
                load_state(network, self.state(network), source=str(self.path), min_match=1.0)
            except ValueError as error:
                raise ConfigError(str(error)) from error
            return network

        return Initialisation(
            name=self.path.name,
            pretrained=True,
            networks=(build,),
            checkpoint=(self.identity,),
            teacher=self.teacher,
            leak=self.leak,
            pretraining=self.origin,
        )


def open_weight_file(path: Path, layout: str, config: EvaluateConfig, by_hand: StatedByHand) -> WeightFile:
    """Recognise a file, and check that its network can be filled and measured.

    Args:
        path: the file.
        layout: how its tensors are named: "tandem", "slidr", or one of `models.layouts.known.LAYOUTS` or of
            `models.weights.IMAGE_FORMATS`.
        config: names the set and the protocols.
        by_hand: what the file does not say.

    Raises:
        ConfigError: no set is named; the file is missing, unreadable, or its tensors are not those of the preset, which
            is answered with the nearest one; protocols that measure something else.
    """
    if config.data.shards is None:
        raise ConfigError("data.shards: got null, and a file of weights names no set; expected a prepared set")
    if not path.is_file():
        raise ConfigError(f"--weights: {path} is not a file; expected a file of weights")
    try:
        read = read_file(path, layout, by_hand)
        preset = _fitting_preset(path, read, by_hand.preset or read.preset, config.data.shards)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    unfit = [name for name in config.protocols if PROTOCOLS[name].tower != read.tower]
    if unfit:
        raise ConfigError(
            f"protocols: {', '.join(unfit)} cannot measure {path}, because it holds no more than one "
            f"{TOWER_TITLES[read.tower]}; expected any of {', '.join(of_tower(PROTOCOLS, read.tower))}"
        )
    run = read.run(preset, config.data.shards)
    teacher, leak = (read.metadata.get("teacher", ""), read.metadata.get("leak", "unknown"))
    if read.tower == "image_backbone":
        teacher, leak = describe_origin(run.method)
    known = [f"{name} {read.metadata[name]}" for name in ("run", "step") if name in read.metadata]
    digest = (file_sha256(path) or "")[:12]
    read_as = layout if by_hand.intensity_scale is None else f"{layout}, intensity to {by_hand.intensity_scale:g}"
    return WeightFile(
        path=path,
        identity=f"{path.name} {digest} {read_as}",
        tower=read.tower,
        run=run,
        state=read.state,
        teacher=teacher,
        leak=by_hand.leak or (leak if leak in get_args(LeakLevel) else "unknown"),  # type: ignore[arg-type]
        origin=", ".join((f"a file of layout {read_as}", f"sha256 {digest}", *known)),
    )


# ---- layouts


@dataclass(frozen=True, kw_only=True)
class FileContent:
    """What is in a file of a layout.

    Attributes:
        tower: what the network is.
        method: section `method` of a run that has such a tower, without the preset.
        voxels: section `data.voxel`.
        preset: that the file states; None: none.
        presets: that the layout can hold.
        state: see `WeightFile`.
        metadata: that the file states.
    """

    tower: Tower
    method: Mapping[str, Any]
    voxels: Mapping[str, Any]
    preset: str | None
    presets: tuple[str, ...]
    state: _State
    metadata: Mapping[str, str]

    def run(self, preset: str, shards: str) -> PretrainConfig:
        """Settings in the place of a run's."""
        method = {**self.method, self.tower: {**self.method[self.tower], "preset": preset}}
        tree = {"run_dir": "none", "data": {"shards": shards, "voxel": dict(self.voxels)}, "method": method}
        return load(PretrainConfig, None, choices=PRETRAIN_CHOICES, defaults=tree)


def read_file(path: Path, layout: str, by_hand: StatedByHand | None = None) -> FileContent:
    """Read a file in one of the layouts of `open_weight_file`.

    Raises:
        ValueError: it is missing, damaged, or in another layout.
    """
    readers = {**dict.fromkeys(LAYOUTS, _theirs), "tandem": _tandem, "slidr": _slidr}
    return readers.get(layout, _images)(path, layout, by_hand or StatedByHand())


def _tandem(path: Path, layout: str, by_hand: StatedByHand) -> FileContent:
    _refuse_scale(layout, by_hand)
    metadata = read_backbone_metadata(path)
    backbone = _section(path, metadata, "backbone")
    preset = backbone.get("preset")
    if not isinstance(preset, str):
        raise ValueError(f"weights: {path}: its metadata names no preset of the network; export it again")
    tensors = load_file(str(path))
    return FileContent(
        tower="backbone",
        method={"name": "slidr", "backbone": backbone},  # any method with a 3D network would do
        voxels=_section(path, metadata, "voxel"),
        preset=preset,
        presets=tuple(dict.fromkeys((by_hand.preset or preset, preset))),
        state=lambda network: tensors,
        metadata=metadata,
    )


def _slidr(path: Path, layout: str, by_hand: StatedByHand) -> FileContent:
    content = read_checkpoint(path)
    metadata, theirs = slidr_metadata(content), slidr_points(content)
    stem = theirs.get("conv0p1s1.kernel")
    if stem is None or stem.ndim != 3:
        raise ValueError(
            f"weights: {path} has no conv0p1s1.kernel of shape [offsets, in, out], so it is not in SLidR's layout; its "
            f"tensors: {', '.join([*theirs][:3]) or 'none'}"
        )
    fed = slidr_input(content)
    scale, offset = by_hand.intensity_scale, by_hand.intensity_offset
    fed = dataclasses.replace(
        fed,
        intensity_scale=fed.intensity_scale if scale is None else scale,
        intensity_offset=fed.intensity_offset if offset is None else offset,
    )
    if metadata:
        backbone, voxels = _section(path, metadata, "backbone"), _section(path, metadata, "voxel")
    else:
        backbone = {"name": "res16unet", "in_channels": stem.shape[1]}
        voxels = json.loads(json.dumps(dataclasses.asdict(SLIDR_VOXELS)))

    def state(network: nn.Module) -> dict[str, Tensor]:
        found, others = from_minkowski(theirs, network.state_dict(), fed=fed)
        return found | {key: theirs[key] for key in others if not key.startswith("final.")}

    return FileContent(
        tower="backbone",
        method={"name": "slidr", "backbone": backbone},
        voxels={**voxels, "intensity_offset": fed.scaled(1 / fed.intensity_scale).intensity_offset},
        preset=backbone.get("preset"),
        presets=tuple(name for name in get_args(Preset) if name.startswith("res16unet")),  # one convolution as stem
        state=state,
        metadata=metadata,
    )


def _theirs(path: Path, layout: str, by_hand: StatedByHand) -> FileContent:
    """A 3D network in a layout of another project, which says neither how it is built nor what it is fed."""
    content = read_checkpoint(path)
    theirs = unwrapped(LAYOUTS[layout], content, str(path))
    metadata = stated(content)
    if metadata:
        backbone, voxels = _section(path, metadata, "backbone"), _section(path, metadata, "voxel")
    elif by_hand.like is not None:
        backbone, voxels = _like(by_hand.like)
    else:
        raise ValueError(
            f"weights: {path}: files of layout {layout} do not say what their network is fed; expected --like CONFIG, "
            "a pre-training config whose method.backbone and data.voxel are those of the file"
        )
    preset = backbone.get("preset")
    if not isinstance(preset, str):
        raise ValueError(f"weights: {path}: no preset of the network is stated; expected --like CONFIG")
    scale, offset = by_hand.intensity_scale or 1.0, by_hand.intensity_offset or 0.0
    read = load(VoxelConfig, None, defaults=voxels)
    points = dataclasses.replace(PointInput.of(read), intensity_scale=scale, intensity_offset=offset)
    fed = Fed(points=points, voxels=read)
    state = functools.partial(_theirs_as_ours, LAYOUTS[layout], theirs, fed)
    return FileContent(
        tower="backbone",
        method={"name": "slidr", "backbone": backbone},
        voxels=voxels if by_hand.intensity_offset is None else {**voxels, "intensity_offset": offset / scale},
        preset=preset,
        presets=tuple(dict.fromkeys((by_hand.preset or preset, preset))),
        state=state,
        metadata=metadata,
    )


def _theirs_as_ours(layout: Layout, theirs: Mapping[str, Tensor], fed: Fed, network: nn.Module) -> Mapping[str, Tensor]:
    state = taken(layout, theirs, network).state
    scale = fed.points.intensity_scale
    return state if scale == 1 else with_intensity_times(state, network, fed, scale)


def like_config(text: str) -> RunConfig:
    """What `--like` names: a run's folder, or a config of pre-training by file or name; what it asks for may be absent.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    if Path(text).is_dir():
        return read_run(Path(text) / CONFIG_FILE)
    try:
        asked = required_settings(find_config(text, "pretrain"))
    except (OSError, *UNREADABLE):
        asked = []  # reading it says it better
    return read_run(text, [f"{name}=random" for name in asked], defaults={"run_dir": "none"})


def _like(config: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of its 3D network and of its voxels."""
    tower = config.method.tower("backbone")
    family = next((name for name, kind in BACKBONES.items() if kind is type(tower)), None)
    if not isinstance(tower, BackboneConfig) or family is None:
        raise ValueError(f"--like: {type(config.method).__name__} has no 3D network")
    settings = json.loads(json.dumps([dataclasses.asdict(tower), dataclasses.asdict(config.data.voxel)]))
    return {"name": family, **settings[0]}, settings[1]


def _images(path: Path, layout: str, by_hand: StatedByHand) -> FileContent:
    _refuse_scale(layout, by_hand)
    tensors = {
        NETWORK_PREFIX + key: value for key, value in IMAGE_FORMATS[layout].select(read_checkpoint(path))[0].items()
    }
    return FileContent(
        tower="image_backbone",
        method={"name": "moco", "image_backbone": {"name": "resnet", "weights": f"{layout}:{path}"}},
        voxels={},
        preset=None,
        presets=get_args(ResNetName),
        state=lambda network: tensors,
        metadata={},
    )


def _refuse_scale(layout: str, by_hand: StatedByHand) -> None:
    if (by_hand.intensity_scale, by_hand.intensity_offset) != (None, None):
        raise ValueError(
            "--intensity-scale and --intensity-offset are for 3D networks of other projects, whose files do not say "
            f"it; got layout {layout}"
        )


def _section(path: Path, metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """A section of a config in a file's metadata."""
    try:
        tree = json.loads(metadata[name])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"weights: {path}: its metadata has no readable {name!r} ({error}); export it again"
        ) from error
    if not isinstance(tree, dict):
        raise ValueError(f"weights: {path}: {name!r} in its metadata is no mapping; export it again")
    return tree


def _fitting_preset(path: Path, read: FileContent, asked: str | None, shards: str) -> str:
    """The preset asked for, or the first that the file fills wholly.

    Raises:
        ValueError: the file does not fill it; names the tensors that do not fit, and the nearest preset.
    """
    if asked is not None and asked not in read.presets:
        raise ValueError(f"--backbone: got {asked!r}, expected one of {', '.join(read.presets)} for {path}")
    reports = {}
    for preset in (asked, *read.presets) if asked is not None else read.presets:
        with torch.device("meta"):
            network = random_network(read.run(preset, shards), read.tower, 0)
        reports[preset] = compare(network, read.state(network), source=f"{path} as {preset}")
        if reports[preset].share == 1 and not reports[preset].unused:
            if asked in (None, preset):
                return preset
            break
    nearest = max(reports, key=lambda name: (reports[name].share, -len(reports[name].unused)))
    shown = reports[asked or nearest]
    hint = f"; nearest is --backbone {nearest} ({reports[nearest].share:.0%} match)" if nearest != asked else ""
    if not any(report.matched for report in reports.values()):
        hint = "; nothing in it fits, so it has another layout: `tandem weights check FILE` says which"
    raise ValueError(f"--backbone {asked or 'of any preset'}: the file has other tensors{hint}\n{shown.text()}")
