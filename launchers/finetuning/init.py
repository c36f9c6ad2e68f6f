"""What a detector starts from: a pre-training run, another detector's run, or a file of weights.

A detector has a 3D network, an image network, or both: its towers. A run fills those that it trained, a file of weights
the 3D network. Sub-networks of a tower are taken whole or not at all. One that the source lacks entirely, such as
SECOND's 2D network where the sparse encoder alone was pre-trained, keeps its random weights, and one that the detector
lacks, such as the decoder of an image network, is left out; log and record name both. Half a sub-network or another
shape is an error, and so is a tower of another kind, unless `init_towers` leaves it out. Where a detector feeds its 3D
network with something else than voxels' own features, that network's first layer counts as a sub-network and stays
random.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from configs.detection import RANDOM, FinetuneConfig
from configs.load import ConfigError
from data.batch_spec import VoxelConfig
from engine.errors import CheckpointError
from launchers.evaluation.networks import describe_origin, without_weights
from launchers.finetuning.sources import WHOLE, Source, Start, open_init, shared_towers
from models.lidar.inputs import PointInput
from models.methods.base import MethodConfig, Objective
from models.weights import compare, load_state

logger = logging.getLogger("tandem.pretrain")


@dataclass(frozen=True)
class _Names:
    """Names of sub-networks: that the source fills, that it lacks entirely, that the detector lacks entirely."""

    filled: tuple[str, ...] = ()
    random: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __add__(self, other: _Names) -> _Names:
        return _Names(
            filled=self.filled + other.filled,
            random=self.random + other.random,
            left_out=self.left_out + other.left_out,
        )


def fill(detector: Objective, config: FinetuneConfig) -> Start:
    """Fill a detector with what `config.init` names; its own weights stay where that has none.

    Raises:
        ConfigError: nothing there, damaged, or its weights or input do not fit; names the setting.
    """
    if config.init == RANDOM:
        return _from_nothing(detector, config)
    try:
        source = open_init(config, detector)
    except (CheckpointError, ValueError) as error:
        raise ConfigError(f"init={config.init}: {error}") from error
    _check_input(source, config)
    names = _Names()
    for part in source.parts:
        names += _fill_part(detector.get_submodule(part), part, source, config)
    others = () if WHOLE in source.parts else tuple(n for n in _children(detector) if n not in source.parts)
    other_grid = _feeds_voxels(source, config) and source.voxels != config.data.voxel
    if other_grid:
        logger.warning("init=%s: it learnt from other voxels than this detector is fed: %s", config.init, source.voxels)
    return dataclasses.replace(
        source.start,
        filled=names.filled,
        random=(*names.random, *others),
        left_out=names.left_out,
        grid=dataclasses.asdict(source.voxels) if other_grid else None,
    )


def _from_nothing(detector: Objective, config: FinetuneConfig) -> Start:
    """Random weights, but for image networks that the detector's own section fills (`weights`)."""
    networks = config.model.image_networks()
    filled = tuple(name for name in _children(detector) if name in networks and networks[name].weights != "random")
    random = tuple(name for name in _children(detector) if name not in filled)
    teacher, leak = describe_origin(config.model)
    return Start(source=RANDOM, identity=RANDOM, filled=filled, random=random, teacher=teacher, leak=leak)


def check_fits(method: MethodConfig, voxels: VoxelConfig, config: FinetuneConfig) -> None:
    """Refuse a detector that a pre-training run's networks could not fill, before they are trained.

    Args:
        method: of the run.
        voxels: that its 3D network is fed.
        config: of the detector, whose `init` is the run.

    Raises:
        ConfigError: no tower in common, or its weights or input would not fit; names the setting.
    """
    states: dict[str, Mapping[str, Tensor]] = {}
    networks: dict[str, nn.Module] = {}
    for name in shared_towers(method, config):
        theirs, ours = method.tower(name), config.model.tower(name)
        assert theirs is not None
        assert ours is not None
        states[name] = without_weights(theirs).build().state_dict()
        networks[name] = without_weights(ours).build()
    source = Source(
        title=config.init,
        start=Start(source=config.init, identity=config.init),
        voxels=voxels,
        parts={name: lambda _, state=state: state for name, state in states.items()},  # type: ignore[misc]
    )
    _check_input(source, config)
    for part, network in networks.items():
        _names(network, part, source, config)


def _feeds_voxels(source: Source, config: FinetuneConfig) -> bool:
    """Whether a 3D network is filled, whose voxels were those of the source's network, or others."""
    return "backbone" in source.parts or (WHOLE in source.parts and config.model.tower("backbone") is not None)


def _check_input(source: Source, config: FinetuneConfig) -> None:
    """Refuse a network that learnt from features of another meaning: it would give other ones without any error."""
    if not _feeds_voxels(source, config) or "backbone" in config.model.FED_BY_METHOD:
        return
    theirs, ours = PointInput.of(source.voxels), PointInput.of(config.data.voxel)
    for field in dataclasses.fields(PointInput):
        expected, got = getattr(theirs, field.name), getattr(ours, field.name)
        if expected != got:
            raise ConfigError(
                f"data.voxel.{field.name}: got {got}, expected {expected}: init={config.init} learnt from {theirs}"
            )


def _fill_part(module: nn.Module, part: str, source: Source, config: FinetuneConfig) -> _Names:
    """Copy the weights of a part; what became of its sub-networks."""
    names = _names(module, part, source, config)
    try:
        load_state(module, _state(module, part, source, config), source=source.title, min_match=0.0)
    except ValueError as error:
        raise ConfigError(f"init={config.init}: {error}") from error
    return names


def _state(module: nn.Module, part: str, source: Source, config: FinetuneConfig) -> Mapping[str, Tensor]:
    """The source's tensors for a part, without a first layer that is fed something else here than there."""
    state, first = source.parts[part](module), config.model.FED_BY_METHOD.get(part)
    return state if first is None else {k: value for k, value in state.items() if not k.startswith(f"{first}.")}


def _names(module: nn.Module, part: str, source: Source, config: FinetuneConfig) -> _Names:
    """What becomes of the sub-networks of a part.

    Raises:
        ConfigError: the source fills none, or one of them by half.
    """
    report = compare(module, _state(module, part, source, config), source=source.title)
    first = config.model.FED_BY_METHOD.get(part, "")
    filled, random, left_out = (
        {first if first and name.startswith(f"{first}.") else name.split(".")[0] for name in names}
        for names in (report.matched, report.missing, report.unused)
    )
    if not filled or random & filled or left_out & (filled | random) or report.mismatched:
        where = f"model.{part}" if part else "model"
        others = [name for name in source.parts if name != part]
        instead = f", leave it random (init_towers={json.dumps(others)})" if others else ""
        raise ConfigError(
            f"init={config.init}: its weights are not those of {where} as it is set; set {where} as the source has it "
            f"(preset, in_channels, grid){instead}, or start from another\n{report.text()}"
        )
    prefix = f"{part}." if part else ""
    return _Names(*(tuple(f"{prefix}{name}" for name in sorted(names)) for names in (filled, random, left_out)))


def _children(module: nn.Module) -> tuple[str, ...]:
    """Sub-networks that have weights."""
    return tuple(name for name, child in module.named_children() if any(True for _ in child.parameters()))
