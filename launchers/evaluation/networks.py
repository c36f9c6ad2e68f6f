"""Networks for downstream evaluation: pre-trained ones from checkpoints, random ones of the same architecture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import nn

from common.run_files import CHECKPOINT_CONFIG, CHECKPOINTS_FOLDER, SUMS_FILE, WEIGHTS_FILE
from common.small_files import DamagedFileError, Kind, read_json, shown
from configs.detection import FinetuneConfig
from configs.load import ConfigError
from configs.runs import RunConfig, trained
from configs.schema import EvaluateConfig
from engine.checkpoint import load_weights, read_state
from engine.downstream.protocols import PROTOCOLS, of_tower
from engine.downstream.results import LeakLevel
from engine.downstream.runner import TOWER_TITLES, Initialisation, Tower
from engine.errors import CheckpointError
from launchers.runs.settings import setting_of
from launchers.training.restore import find_checkpoint_folder, load_run_config
from models.image.base import ImageEncoderConfig
from models.image.teacher import TeacherConfig
from models.lidar.base import BackboneConfig
from models.methods.base import MethodConfig
from models.segmentation.base import SegmenterConfig
from models.weights import OWN_FORMAT, own_weights_file

Section = MethodConfig | BackboneConfig | ImageEncoderConfig
"""Settings of something that a protocol measures."""
SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True)
class Source:
    """A pre-trained network on disk.

    Attributes:
        checkpoint: its folder.
        config: of the run.
        method: its name.
        identity: run, step and beginning of the weights' sha256.
        steps: updates of pre-training, and of how many where the run has not got to its end.
    """

    checkpoint: Path
    config: RunConfig
    method: str
    identity: str
    steps: str


def open_source(path: Path) -> Source:
    """Find and check a checkpoint.

    Raises:
        CheckpointError: nothing there, damaged, or written by another version.
    """
    folder = find_checkpoint_folder(path)
    return Source(
        checkpoint=folder,
        config=load_run_config(folder),
        method=method_name(folder),
        identity=identity_of(folder),
        steps=_steps_text(read_state(folder)),
    )


def _steps_text(state: Mapping[str, Any]) -> str:
    step, total = int(state["step"]), state.get("num_steps")
    return f"{step} of {total}" if isinstance(total, int) and step < total else str(step)


def method_name(checkpoint: Path) -> str:
    """Name of the method that a checkpoint was written by.

    Raises:
        CheckpointError: its config is missing or damaged.
    """
    path = checkpoint / CHECKPOINT_CONFIG
    section, settings = trained(_small_file(path, {}))
    name = settings.get("name") if isinstance(settings, Mapping) else None
    if not isinstance(name, str):
        raise CheckpointError(f"{path}: {section}.name is {shown(name)}, expected a text")
    return name


def _small_file(path: Path, fields: dict[str, Kind]) -> dict[str, Any]:
    try:
        tree = read_json(path, fields)
    except DamagedFileError as error:
        raise CheckpointError(f"{error}; name another checkpoint or the run's folder") from error
    if tree is None:
        raise CheckpointError(f"{path} is missing; name another checkpoint or the run's folder")
    return dict(tree)


def identity_of(checkpoint: Path) -> str:
    """Name of a checkpoint's weights in results, see `Source.identity`; the weights are not read.

    Raises:
        CheckpointError: its list of files is missing or damaged.
    """
    sha256 = _small_file(checkpoint / SUMS_FILE, {WEIGHTS_FILE: "mapping"})[WEIGHTS_FILE].get("sha256")
    if not isinstance(sha256, str):
        raise CheckpointError(f"{checkpoint / SUMS_FILE}: no sha256 of {WEIGHTS_FILE}; name another checkpoint")
    return f"{run_folder_of(checkpoint).name}/{checkpoint.name} {sha256[:12]}"


def run_folder_of(path: Path) -> Path:
    """The run that a folder belongs to: <run>/checkpoints/step_... or the run itself."""
    resolved = path.resolve()
    return resolved.parent.parent if resolved.parent.name == CHECKPOINTS_FOLDER else resolved


def check_alike(sources: Sequence[Source]) -> None:
    """Repetitions of one method differ in their seed and their folder, in nothing that shapes the network.

    Raises:
        CheckpointError: names what differs.
    """
    for other in sources[1:]:
        for what in ("method", "config.method", "config.data.voxel"):
            value = attrgetter(what)
            if value(sources[0]) != value(other):
                raise CheckpointError(
                    f"{other.checkpoint}: {what.removeprefix('config.')} differs from that of "
                    f"{sources[0].checkpoint}; checkpoints of one call are repetitions of one method. Evaluate them in "
                    "separate calls"
                )


def check_tower(config: RunConfig, tower: Tower, protocols: Sequence[str]) -> None:
    """Refuse protocols that measure a network that the run's method does not have, or that does nothing without it.

    Raises:
        ConfigError: names the protocols, what they need, and those that would do.
    """
    if config.has_tower(tower):
        return
    there = [t for t in TOWER_TITLES if t != "objective" and config.has_tower(t)]
    possible = ", ".join(p for t in there for p in of_tower(PROTOCOLS, t))
    have = " and ".join(f"{'an' if TOWER_TITLES[t][0] == 'i' else 'a'} {TOWER_TITLES[t]}" for t in there) or "none"
    raise ConfigError(
        f"protocols: {', '.join(of_tower(protocols, tower))} measure the method's {TOWER_TITLES[tower]}, but "
        f"{type(config.method).__name__} has no section `{tower}` that works alone (it has {have}); expected any of "
        f"{possible or 'none'}"
    )


def pretrained_initialisation(sources: Sequence[Source], tower: Tower, chosen: tuple[str, ...] = ()) -> Initialisation:
    """The pre-trained networks."""
    first = sources[0]
    teacher, leak = origin_of(first.config)
    seeds = tuple(s.config.seed for s in sources)
    steps = "/".join(sorted({s.steps for s in sources}))
    settings = {setting_of(s.config) for s in sources}
    return Initialisation(
        name=first.method,
        pretrained=True,
        networks=tuple(lambda s=s: pretrained_network(s, tower) for s in sources),  # type: ignore[misc]
        checkpoint=tuple(s.identity for s in sources),
        teacher=teacher,
        leak=leak,
        pretraining=f"{steps} steps, seed{'s' if len(sources) > 1 else ''} {', '.join(map(str, seeds))}",
        setting=settings.pop() if len(settings) == 1 else "",
        pretrain_seeds=seeds,
        chosen=chosen,
    )


def random_initialisation(config: RunConfig, protocols: EvaluateConfig, tower: Tower) -> Initialisation:
    """Random networks of a run's architecture, one a seed."""
    count = max(len(protocols.seeds(p)) for p in of_tower(protocols.protocols, tower))
    networks = tuple(lambda n=n: random_network(config, tower, n) for n in range(count))
    return Initialisation(name="random", pretrained=False, networks=networks)


def random_network(config: RunConfig, tower: Tower, seed: int) -> nn.Module:
    """A network of the run with fresh weights; the caller's random state is left alone.

    Weights that an image network was filled with before pre-training are left out.

    Raises:
        ConfigError: the method has no such network.
    """
    section = _section(config, tower)
    if section is None:
        raise ConfigError(
            f"{type(config.method).__name__} has no section `{tower}`: there is no {TOWER_TITLES[tower]} to evaluate"
        )
    section = without_weights(section)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built: nn.Module = section.build()
    return built


def _section(config: RunConfig, tower: Tower) -> Section | None:
    """Settings of a tower; None where the method has no such tower."""
    return config.method if tower == "objective" else config.method.tower(tower)


def without_weights(section: SectionT) -> SectionT:
    """Settings that build a network without what its image networks were filled with."""
    if isinstance(section, ImageEncoderConfig):
        return dataclasses.replace(section, weights="random")
    if isinstance(section, MethodConfig):
        empty = {name: dataclasses.replace(net, weights="random") for name, net in section.image_networks().items()}
        return dataclasses.replace(section, **empty)
    return section


def pretrained_network(source: Source, tower: Tower) -> nn.Module:
    """A network of the run with its trained weights, all of them.

    Raises:
        CheckpointError: the weights do not fit the network.
    """
    network = random_network(source.config, tower, 0)
    weights = load_weights(source.checkpoint, prefix="" if tower == "objective" else f"{tower}.")
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise CheckpointError(
            f"{source.checkpoint}: {len(lines)} kinds of mismatch between the weights and the run's network, first: "
            f"{lines[0] if lines else error}; was it trained with another version?"
        ) from error
    return network


def origin_of(run: RunConfig) -> tuple[str, LeakLevel]:
    """What a run's networks learnt from beside the data; a detector's from labels."""
    if isinstance(run, FinetuneConfig):
        labelled = "points" if isinstance(run.model, SegmenterConfig) else "boxes"
        return f"labels of {labelled}", "supervised-teacher"
    return describe_origin(run.method)


def describe_origin(method: MethodConfig) -> tuple[str, LeakLevel]:
    """What a method's networks learnt from beside the data: teachers, and what image networks started from."""
    sources: list[TeacherConfig | ImageEncoderConfig] = [*method.teachers().values()]
    sources += [network for network in method.image_networks().values() if network.weights != "random"]
    described = [describe_teacher(source) for source in sources]
    levels: list[LeakLevel] = [leak for _, leak in described]
    return " + ".join(name for name, _ in described), max(levels, key=get_args(LeakLevel).index, default="none")


_LEAK: dict[str, LeakLevel] = {
    "random": "none",
    "imagenet": "supervised-teacher",
    "torchvision": "supervised-teacher",
    "moco_v1": "ssl-teacher",
    "moco_v2": "ssl-teacher",
    "moco_v3": "ssl-teacher",
    "dino": "ssl-teacher",
    "dinov2": "ssl-teacher",
}
"""How much human labelling weights of each format brought along."""


def describe_teacher(teacher: TeacherConfig | ImageEncoderConfig | None) -> tuple[str, LeakLevel]:
    """Name for tables, and how much human labelling the teacher brought along."""
    if teacher is None:
        return "", "none"
    return f"{teacher.architecture} ({teacher.weights.partition(':')[0]})", leak_of_weights(teacher.weights)


def leak_of_weights(weights: str) -> LeakLevel:
    """How much human labelling an image network's weights brought along.

    Our own runs use no labels, but what their image network started from, and their own teacher, may have seen some.

    Args:
        weights: as in a config, `random`, `imagenet` or `<format>:<path>`.
    """
    kind, _, path = weights.partition(":")
    if kind != OWN_FORMAT:
        return _LEAK.get(kind, "unknown")
    try:
        method = json.loads((own_weights_file(Path(path)).parent / CHECKPOINT_CONFIG).read_text())["method"]
        sources = [part["weights"] for part in method.values() if isinstance(part, dict) and "weights" in part]
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"
    levels: list[LeakLevel] = ["ssl-teacher", *(leak_of_weights(str(source)) for source in sources)]
    return max(levels, key=get_args(LeakLevel).index)
