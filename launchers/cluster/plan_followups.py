"""What follows a pre-training run: choosing a checkpoint, downstream elements, random-initialisation rows, the report.

The protocols' settings are resolved when a job is made and travel in it, so that a YAML file edited later changes
nothing.

One element is those protocols of one downstream file that use all labels, or none, for one network of the method; or
one protocol that trains on drawn samples, with one number of labels. Linear probe and kNN stay together because they
share the costly part, two passes through the sets. Seeds stay together because the learning rate is tuned once for an
initialisation and then used for all of its seeds: elements of one seed each would tune again, and a mean over them
would be another number wherever tuning is not repeatable to the bit.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from configs.dump import dump
from configs.load import ConfigError, load
from configs.runs import RunConfig, dump_run, is_detectors
from configs.schema import EvaluateConfig, FollowConfig
from data.loading.fractions import FractionConfig
from data.storage.manifest import Manifest, load_manifest
from engine.downstream.protocols import PROTOCOLS
from engine.downstream.results import fingerprint
from engine.downstream.runner import TOWER_TITLES
from launchers.cluster.evaluation_jobs import BaselineJob, EvaluationJob, SelectBestJob
from launchers.evaluation.common import describe_fraction, measured_on
from launchers.runs.files import BASELINES

logger = logging.getLogger("tandem.followup")


def evaluation_jobs(run_dir: Path, config: RunConfig) -> list[EvaluationJob]:
    """The downstream elements of a run (`config.evaluate` names them), one job each; its folder need not exist yet.

    Raises:
        ConfigError: a downstream file or an override that cannot be used.
    """
    return [
        EvaluationJob(run_dir=str(run_dir), name=name, settings=dump(element), select=config.evaluate.every > 0)
        for name, element in _elements(config).items()
    ]


def selection_job(run_dir: Path, config: RunConfig) -> SelectBestJob | None:
    """The job that chooses the best checkpoint, before the downstream elements; None if `evaluate.every` is off.

    Raises:
        ConfigError: a downstream file or an override that cannot be used.
    """
    follow = config.evaluate
    if follow.every == 0:
        return None
    settings = []
    files = _protocols(config)
    if not files:
        raise ConfigError(
            f"evaluate.every: got {follow.every}, expected 0: no file of protocols in evaluate.configs compares "
            "checkpoints, and detectors start from the last one"
        )
    for protocols in files.values():
        held = dataclasses.replace(protocols.data, holdout=True)
        settings.append(dump(dataclasses.replace(protocols, protocols=(follow.select_by,), data=held, random=False)))
    return SelectBestJob(run_dir=str(run_dir), settings=tuple(settings), every=follow.every, by=follow.select_by)


def baseline_jobs(configs: Sequence[RunConfig], folder: Path) -> list[BaselineJob]:
    """Random-initialisation rows for the elements of some runs, each once however many runs share it.

    `folder` holds the run folders; the rows go to `baselines/<key>` inside it.

    Raises:
        ConfigError: a downstream file or an override that cannot be used.
        ShardError: a labelled set that is not there.
    """
    # A sweep has many runs and few downstream files and sets: each is read once.
    elements: dict[FollowConfig, dict[str, EvaluateConfig]] = {}
    manifests: dict[str, Manifest] = {}
    made: dict[str, BaselineJob] = {}
    for config in configs:
        if config.evaluate not in elements:
            elements[config.evaluate] = _elements(config)
        run = dump_run(config)
        for name, element in elements[config.evaluate].items():
            shards = element.data.shards or config.data.shards
            if shards not in manifests:
                manifests[shards] = load_manifest(shards)
            tower = PROTOCOLS[element.protocols[0]].tower
            key = baseline_key(measured_on(manifests[shards], yaml.safe_load(run), tower), element)
            place = str(folder / BASELINES / key)
            made.setdefault(key, BaselineJob(key=key, element=name, folder=place, run=run, settings=dump(element)))
    return list(made.values())


def baseline_key(context: Mapping[str, Any], protocols: EvaluateConfig) -> str:
    """Identity of random-initialisation rows: same key, same numbers.

    `context` is the data and the network (`launchers.evaluation.common.measured_on`). Where an element runs and writes
    has no part in the key.
    """
    settings = dataclasses.asdict(dataclasses.replace(protocols, random=True, results=None, device="auto"))
    data = {key: value for key, value in settings.pop("data").items() if key not in {"shards", "num_workers", "cache"}}
    return fingerprint({"context": dict(context), "settings": settings, "data": data})


def named_files(paths: Iterable[str]) -> dict[str, str]:
    """YAML files by short names."""
    named: dict[str, str] = {}
    for path in paths:
        stem = safe_name(Path(path).stem)
        # Files in two folders may share a name.
        named[next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, 100))) if n not in named)] = path
    return named


def _protocols(config: RunConfig) -> dict[str, EvaluateConfig]:
    """Each downstream file by a short name; detectors are not among them."""
    files = named_files(path for path in config.evaluate.configs if not is_detectors(path))
    return {name: load(EvaluateConfig, path, config.evaluate.overrides) for name, path in files.items()}


def _elements(config: RunConfig) -> dict[str, EvaluateConfig]:
    """Downstream elements by name."""
    elements: dict[str, EvaluateConfig] = {}
    for stem, protocols in _protocols(config).items():
        alone = dataclasses.replace(protocols, random=False)
        for tower in TOWER_TITLES:
            if together := alone.undrawn(tower):
                elements[safe_name("-".join((stem, *together)))] = dataclasses.replace(alone, protocols=together)
        if config.evaluate.fractions and not alone.drawn():
            logger.warning("evaluate.fractions has no effect on %s: it does no fine-tuning", stem)
        for protocol in alone.drawn():
            own = alone.fraction
            drawn = [_fraction(own, count) for count in config.evaluate.fractions]
            for fraction in drawn or [own]:
                name = safe_name(f"{stem}-{protocol}-{describe_fraction(fraction)}")
                elements[name] = dataclasses.replace(alone, protocols=(protocol,), fraction=fraction)
    return elements


def _fraction(own: FractionConfig, count: int) -> FractionConfig:
    """So many drawn samples; 0: all."""
    return dataclasses.replace(own, kind="random", count=count) if count else dataclasses.replace(own, kind="all")


def safe_name(text: str) -> str:
    """The text with everything but letters, digits, dots and hyphens replaced, for file and job names."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "x"
