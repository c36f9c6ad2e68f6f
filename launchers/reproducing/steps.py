"""From a paper's steps to commands: where everything lies, and what is missing for them. Light.

<root>/
shards/<step>/              prepared sets, which papers share
<paper>/<step>/             runs of `tandem pretrain` and `tandem finetune`
<paper>/<run>/evaluation/<step>/results.json, <paper>/baselines/<step>/results.json     of `tandem evaluate`
<paper>/queued.json, code/, logs/       of what was queued
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from common.nearby import nearest
from configs.load import ConfigError
from configs.paper_tables import GENERATED, PLACEHOLDER, Asked, ReproduceConfig, StepConfig, packaged_file
from data.storage.store import is_url
from launchers.runs.files import BASELINES, EVALUATIONS
from models.image.published import PAGE, PUBLISHED, PublishedWeights

RAW_VARIABLE = "TANDEM_RAW"
"""Environment: a folder that holds the raw sets, each in a folder of its name; also of the scripts in slurm/."""
WEIGHTS_VARIABLE = "TANDEM_WEIGHTS"
"""Environment: a folder that holds published files of weights under their own names."""
ROOT = "runs/reproduce"
_SHOWN_RAW, _SHOWN_WEIGHTS = "/data", "/weights"
"""What stands in a printed command for a folder that was not named."""
_LINE = 116


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where things lie on the user's machine.

    Attributes:
        root: of all that is made.
        data: raw set -> its folder.
        raw: folder with raw sets under their names, for those that `data` does not have; None: not named.
        weights: folder with files of weights under their published names; None: not named.
        shards: step -> folder of a set that was prepared elsewhere.
    """

    root: Path = Path(ROOT)
    data: Mapping[str, str] = field(default_factory=dict)
    raw: str | None = None
    weights: str | None = None
    shards: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step as a command on this machine.

    Attributes:
        name: in the paper's file.
        config: what that says.
        subject: what stands between verb and settings: the config; of an evaluation, the run before it; of a set, the
            raw data and the folder behind it.
        settings: overrides.
        options: behind them.
        processes: of the training.
        folder: what it makes: shards, a run, or the folder of results.json.
        missing: why it cannot be done now, each with what to do; () where it can.
    """

    name: str
    config: StepConfig
    subject: tuple[str, ...]
    settings: tuple[str, ...]
    options: tuple[str, ...]
    processes: int
    folder: Path
    missing: tuple[str, ...]

    @property
    def trains(self) -> bool:
        """Whether it is a run of `tandem pretrain` or `tandem finetune`."""
        return self.config.verb in ("pretrain", "finetune")

    @property
    def arguments(self) -> list[str]:
        """Of `tandem`, the verb first."""
        return [self.config.verb, *self.subject, *self.settings, *self.options]

    @property
    def words(self) -> list[str]:
        """The command to type."""
        if self.processes == 1:
            return ["tandem", *self.arguments]
        verb, *rest = self.arguments
        return ["torchrun", "--nproc-per-node", str(self.processes), "-m", f"launchers.{verb}", *rest]

    def command(self) -> str:
        """The command, on several lines where it is long."""
        lines, line = [], ""
        for word in self._units():
            if line and len(line) + len(word) >= _LINE - 2:
                lines.append(line)
                line = "   "
            line += f" {word}" if line else word
        return " \\\n".join([*lines, line])

    def _units(self) -> list[str]:
        """The words, an option with its value as one."""
        units: list[str] = []
        for word in map(shlex.quote, self.words):
            if units and units[-1].startswith("--") and " " not in units[-1] and not word.startswith("-"):
                units[-1] += f" {word}"
            else:
                units.append(word)
        return units


def steps_of(asked: Asked, places: Places, processes: int | None = None) -> list[Step]:
    """The commands for what is asked for, in order.

    Args:
        asked: the part of the paper.
        places: where things lie.
        processes: at most so many for a run; its updates are then made of several parts, so that the batch stays.

    Raises:
        ConfigError: a place was named that nothing reads, or a number of processes that does not divide a run's.
    """
    _check_names(asked.config, places)
    return [_step(asked, name, places, processes) for name in asked.steps]


def _check_names(config: ReproduceConfig, places: Places) -> None:
    sets = {name for step in config.steps.values() for name in step.raw()}
    prepares = {name for name, step in config.steps.items() if step.verb == "prepare"}
    for option, given, known in (("--data", places.data, sets), ("--shards", places.shards, prepares)):
        for name in given:
            if name not in known:
                expected = f"one of {', '.join(sorted(known))}{nearest(name, known)}"
                raise ConfigError(f"{option}: got {name!r}, expected {expected}")


def _step(asked: Asked, name: str, places: Places, most: int | None) -> Step:
    config, own, missing = asked.config.steps[name], places.root / asked.name, list[str]()
    settings = [_filled(text, own, places, missing) for text in config.overrides]
    subject: tuple[str, ...] = (config.config,)
    options: tuple[str, ...] = ()
    processes = 1
    if config.verb == "prepare":
        folder = _shards(name, places)
        subject = (config.config, _source(config.data, places, missing), str(folder))
        if name in places.shards:  # what is there already needs no raw data
            there = is_url(str(folder)) or folder.is_dir()
            missing = [] if there else [f"the shards of {name}: no folder {folder} (--shards)"]
    elif config.verb == "evaluate":
        folder = own / BASELINES / name if config.random else own / config.start / EVALUATIONS / name
        subject = (str(own / config.start), config.config)
        options = ("--out", str(folder), *(("--random-only",) if config.random else ()))
    else:
        folder, processes = own / name, min(config.processes, most or config.processes)
        if config.processes % processes:
            raise ConfigError(f"--gpus: got {most}, expected a divisor of {config.processes}, the number of {name}")
        settings[:0] = [f"run_dir={_setting(folder)}"]
        if config.verb == "finetune":
            settings.insert(1, f"init={_setting(own / config.start) if config.start else 'random'}")
        if processes < config.processes:
            parts = config.processes // processes * _accumulation(config)
            settings.insert(1, f"engine.accumulation_steps={parts}")
    if config.shards:
        settings[:0] = [f"data.shards={_setting(_shards(config.shards, places))}"]
    return Step(
        name=name,
        config=config,
        subject=subject,
        settings=tuple(settings),
        options=options,
        processes=processes,
        folder=folder,
        missing=tuple(missing),
    )


def _accumulation(config: StepConfig) -> int:
    """Parts of an update that the step's config has already."""
    tree = yaml.safe_load(packaged_file(config).read_text(encoding="utf-8"))
    return int((tree.get("engine") or {}).get("accumulation_steps", 1))


def _shards(step: str, places: Places) -> Path:
    given = places.shards.get(step)
    return Path(given or places.root / "shards" / step)


def _setting(path: str | Path) -> str:
    """A path as the value of a setting: quoted where YAML would read something else."""
    text = str(path)
    return text if all(c.isalnum() or c in "/._-+" for c in text) and not text.isdigit() else json.dumps(text)


def _source(name: str, places: Places, missing: list[str]) -> str:
    if name == GENERATED:
        return "-"
    how = f"--data {name}=FOLDER, or {RAW_VARIABLE} for a folder that holds {name}"
    given = places.data.get(name) or (None if places.raw is None else os.path.join(places.raw, name))
    if given is None:
        missing.append(f"the raw data of {name}: not named; give {how} (docs/datasets.md)")
        return f"{_SHOWN_RAW}/{name}"
    if "://" not in given and not Path(given).exists():
        missing.append(f"the raw data of {name}: no folder {given}; give {how} (docs/datasets.md)")
    return given


def _filled(text: str, own: Path, places: Places, missing: list[str]) -> str:
    """An override with paths in place of what stands for them."""

    def fill(found: re.Match[str]) -> str:
        kind, name = found.groups()
        if kind == "run":
            return str(own / name)
        if kind == "data":
            return _source(name, places, missing)
        published = published_file(name)
        path = Path(places.weights or _SHOWN_WEIGHTS) / name
        if places.weights is None or not path.is_file():
            where = "not named" if places.weights is None else f"no file {path}"
            how = f"give --weights FOLDER, or {WEIGHTS_VARIABLE}, for a folder that holds it"
            missing.append(f"{name}: {where}; {how} ({PAGE} says where it comes from)")
        return f"{published.file_format}:{path}"

    return PLACEHOLDER.sub(fill, text)


def published_file(name: str) -> PublishedWeights:
    """The entry of a file of weights.

    Raises:
        ConfigError: it is not among those that are known.
    """
    found = next((entry for entry in PUBLISHED if entry.file == name), None)
    if found is None:
        raise ConfigError(f"weights:{name}: expected a file of `tandem weights list`")
    return found
