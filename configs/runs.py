"""The kinds of runs that the engine trains, and their configs where it may be any of them.

A resolved config says of which kind it is: a detector's run has the section `model`, a pre-training run `method`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.small_files import DamagedFileError, read_text
from configs.detection import FINETUNE_CHOICES, FinetuneConfig
from configs.dump import dump
from configs.find import KINDS, PACKAGED, config_names
from configs.load import Choices, load
from configs.schema import PRETRAIN_CHOICES, PretrainConfig

RunConfig = PretrainConfig | FinetuneConfig

SECTIONS: Mapping[type[RunConfig], str] = {PretrainConfig: "method", FinetuneConfig: "model"}
"""Kind of run -> the section that says what is trained."""

_CHOICES: Mapping[type[RunConfig], Choices] = {PretrainConfig: PRETRAIN_CHOICES, FinetuneConfig: FINETUNE_CHOICES}


def dump_run(config: RunConfig) -> str:
    """A run's config as YAML that `read_run` reads back to an equal object."""
    return dump(config, choices=_CHOICES[type(config)])


def read_run(
    path: str | Path | None,
    overrides: Sequence[str] = (),
    *,
    defaults: Mapping[str, object] | None = None,
    kind: type[RunConfig] | None = None,
) -> RunConfig:
    """The config of a run, see `configs.load.load`.

    Args:
        path: YAML file, or its name in `configs/pretrain` or `configs/finetune`; None: `defaults` are all of it.
        overrides: `section.field=value`.
        defaults: weaker than the file.
        kind: of the run; None: as the content says.

    Raises:
        ConfigError: it cannot be used.
    """
    kind = kind or _kind(path, defaults or {})
    return load(kind, path, overrides, choices=_CHOICES[kind], defaults=defaults)


def is_detectors(path: str | Path) -> bool:
    """Whether a YAML file, or the name of one that comes with Tandem, is that of a detector's training."""
    return _kind(path, {}) is FinetuneConfig


def trained(resolved: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Of a resolved config, the name of the section that says what is trained, and the section; ("method", {}) if none.

    It looks at nothing else and takes configs of any version.
    """
    for name in SECTIONS.values():
        if resolved.get(name):
            return name, resolved[name]
    return "method", {}


def _kind(path: str | Path | None, defaults: Mapping[str, object]) -> type[RunConfig]:
    if path is None:
        return FinetuneConfig if "model" in defaults else PretrainConfig
    given, own = Path(path), KINDS["FinetuneConfig"].folder
    if not given.is_file() and given.parent == Path("."):
        return FinetuneConfig if given.stem in config_names(own) else PretrainConfig
    if not given.is_file() and given.parts[0] == PACKAGED.name:
        given = PACKAGED.parent / given
    try:
        tree = yaml.safe_load(read_text(given) or "")
    except (yaml.YAMLError, DamagedFileError, OSError, ValueError, RecursionError):
        return PretrainConfig  # reading it says what is wrong
    return FinetuneConfig if isinstance(tree, dict) and "model" in tree else PretrainConfig
