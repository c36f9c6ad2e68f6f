"""What finished trainings of detectors and segmenters gained, as records like those of all other downstream results.

A record is what a detector reached at the end of its training by one benchmark: the first of its headline figures.
Runs that differ in nothing but the seed are one record; those that differ in nothing but their start are compared.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from common.run_files import json_lines
from common.small_files import DamagedFileError, read_json, read_text
from configs.detection import RANDOM
from data.loading.fractions import FractionConfig
from engine.downstream.metrics import METRICS
from engine.downstream.results import Result, fingerprint
from launchers.evaluation.common import describe_fraction
from launchers.runs.attempts import is_finished
from launchers.runs.files import DETECTIONS_FILE, INIT_FILE, read_config
from launchers.runs.settings import setting_of_tree

logger = logging.getLogger("tandem.report")

PROTOCOL = "detection, "
"""What the protocols of these records begin with; the network and the benchmark follow."""
_METRICS = ("detection_", "segmentation_")
_NOT_COMPARED = frozenset({"num_workers", "cache", "shards_per_group", "order", "maps_in_workers"})
"""Settings of `data` that change no number of a training."""
_START = frozenset({"init", "init_towers"})
"""Settings of what a training starts from, which are compared."""


def detection_results(folders: Iterable[Path], damaged: dict[Path, str]) -> list[Result]:
    """Records of the finished trainings of detectors among some runs.

    Args:
        folders: of runs of any kind.
        damaged: files that cannot be read are noted here, with what is wrong.
    """
    found: list[Result] = []
    for folder in folders:
        try:
            found += _of_run(folder)
        except (AttributeError, DamagedFileError, KeyError, TypeError, ValueError) as error:
            damaged[folder / DETECTIONS_FILE] = f"{folder}: its verdicts cannot be read: {error}"
    together: dict[tuple[object, ...], list[Result]] = {}
    for result in found:
        key = (result.protocol, result.dataset, result.labels, result.init, result.checkpoint, result.fingerprint)
        together.setdefault(key, []).append(result)
    return [_of_seeds(results) for results in together.values()]


def _of_run(folder: Path) -> list[Result]:
    """A record for each benchmark; none of other runs, or of one that is not finished."""
    config = read_config(folder)
    if not config.get("model") or not is_finished(folder):
        return []
    lines = list(json_lines((read_text(folder / DETECTIONS_FILE) or "").splitlines()))
    start = read_json(folder / INIT_FILE, {})
    if not lines or start is None:
        return []
    records = []
    for benchmark, verdict in lines[-1]["benchmarks"].items():
        title, value = next(iter(verdict["headline"].items()))
        metric = next((f"{kind}{benchmark}" for kind in _METRICS if f"{kind}{benchmark}" in METRICS), None)
        if metric is None:
            continue
        if value is None:
            logger.warning("%s: no %s of %s: nothing to judge it by", folder, title, benchmark)
            continue
        percent = value * (1 if verdict["unit"] == "%" else 100)
        records.append(_record(config, start, lines[-1], benchmark, metric, percent))
    return records


def _record(
    config: Mapping[str, Any],
    start: Mapping[str, Any],
    line: Mapping[str, Any],
    benchmark: str,
    metric: str,
    value: float,
) -> Result:
    fraction = FractionConfig(**config["data"]["fraction"])
    labelled = {"train_sweeps": fraction.count} if fraction.kind == "random" else {}
    random = start["identity"] == RANDOM
    return Result(
        protocol=f"{PROTOCOL}{_detector(config)}, {benchmark}",
        dataset=line["set"],
        labels=describe_fraction(fraction),
        init=start["name"],
        pretrained=not random,
        teacher=start["teacher"],
        leak=start["leak"],
        pretraining=start["pretraining"],
        setting=start["setting"],
        pretrain_seeds=tuple(start["pretrain_seeds"]),
        seeds=(config["seed"],),
        metrics={metric: (value,)},
        metric=metric,
        lr=(config["optim"]["lr"],),
        seconds=line["seconds"],
        checkpoint=() if random else (start["identity"],),
        settings={"test_sweeps": line["frames"], **labelled},
        fingerprint=_fingerprint(config, line, benchmark),
        date=datetime.fromtimestamp(line["time"], timezone.utc).isoformat(timespec="seconds"),
    )


def _detector(config: Mapping[str, Any]) -> str:
    backbone = config["model"].get("backbone") or {}
    return " on ".join(name for name in (config["model"]["name"], backbone.get("preset")) if name)


def _fingerprint(config: Mapping[str, Any], line: Mapping[str, Any], benchmark: str) -> str:
    """Identity of all that shapes the figure but the start and the seed."""
    data = {name: value for name, value in config["data"].items() if name not in _NOT_COMPARED}
    data["fraction"] = {**data["fraction"], "seed": 0}
    if config["judge"]["shards"] is None:
        del data["shards"]  # the same set as the judged one, wherever it lies
    compared = {name: value for name, value in config.items() if name not in _START} | {"data": data}
    judged = {name: line[name] for name in ("set", "data", "split", "frames", "left_out")}
    return fingerprint({"setting": setting_of_tree(compared), "judged": judged, "benchmark": benchmark})


def _of_seeds(results: Sequence[Result]) -> Result:
    """Trainings of one detector from the same weights; of those with the same seed, the newest counts."""
    by_seed = {seed: r for r in sorted(results, key=lambda r: r.date) for seed in r.seeds}
    first = results[0]
    return dataclasses.replace(
        first,
        seeds=tuple(sorted(by_seed)),
        metrics={first.metric: tuple(by_seed[seed].values[0] for seed in sorted(by_seed))},
        seconds=sum(r.seconds for r in by_seed.values()),
        date=max(r.date for r in by_seed.values()),
    )
