"""Results of downstream evaluations: typed records, and a `results.json` that several runs can add to.

Shares are in percent, other units as in `engine.downstream.metrics`. Standard deviations are those of a sample
(n - 1); with one seed there is none.

A record has one main metric, by which rows are compared, and any number of others. Files of schema version 1, which
knew mIoU and accuracy only, are read as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from common.file_lock import FileLock
from common.files import replacing
from common.small_files import DamagedFileError, Kind, checked, is_kind, parse_json, read_text, shown
from engine.downstream.metrics import METRICS, Metric

SCHEMA_VERSION = 2
_POLL_S = 0.05
"""Between tries to get the lock of a results file, which is held for as long as a write takes."""
_READABLE = (1, 2)

LeakLevel = Literal[
    "none", "ssl-teacher", "supervised-teacher", "class-agnostic-masks", "class-name-prompts", "unknown"
]
"""How much human labelling reached the pre-training through the teacher, rising: no teacher or a random one; a teacher
trained without labels; one trained with labels (ImageNet classes); masks without classes; names of the very classes."""


class ResultsError(ValueError):
    """A results file that cannot be read or a record that makes no sense."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of the table: one protocol on one set from one initialisation.

    Attributes:
        protocol: name as in `engine.downstream.protocols.PROTOCOLS`.
        dataset: name of the set.
        labels: which labels were used, e.g. "all" or "1 frame".
        init: name of the initialisation, e.g. "slidr" or "random".
        pretrained: whether that is a pre-trained network (False: the random baseline).
        teacher: the image network that taught it; "" for none.
        leak: label-leak level.
        pretraining: how the weights were made, for people, e.g. "600 steps, seed 0".
        setting: identity of the pre-training's settings, its seed left out: records with the same one are repetitions;
            "" where that is unknown.
        pretrain_seeds: seed of each pre-training run.
        chosen: how the checkpoint was chosen among those of its run: "last", "best", both if they are one; () if it was
            simply named.
        seeds: one run each.
        metrics: value of each seed by metric, names as in `METRICS`, the main one among them; None where one of the
            others is not defined.
        metric: the main one.
        class_iou: by class name, mean over the seeds, percent; None for classes that no test point has and none is
            predicted as; empty where no classes are predicted.
        lr: the tuned learning rate of each seed's network; empty where nothing is trained.
        tuning: the main metric on validation data (None = diverged) by learning rate, averaged over networks; empty if
            untuned.
        lr_at_edge: the best rate was at the grid's end, so a wider grid might do better.
        kept_frozen: the network was frozen, and after its passes every parameter and buffer was found bit for bit as
            before; False: it learnt, or an earlier version, which does not say, measured it.
        seconds: wall-clock time of all seeds together, tuning included.
        checkpoint: identity of the evaluated weights, one a network; empty for random ones.
        settings: the protocol's settings that shape the number.
        fingerprint: identity of task and settings: only rows with the same one are compared.
        versions: of the software.
        machine: what it ran on.
        date: when it ended, ISO 8601 with time zone.
    """

    protocol: str
    dataset: str
    labels: str
    init: str
    pretrained: bool
    teacher: str = ""
    leak: LeakLevel = "none"
    pretraining: str = ""
    setting: str = ""
    pretrain_seeds: tuple[int, ...] = ()
    chosen: tuple[str, ...] = ()
    seeds: tuple[int, ...]
    metrics: Mapping[str, tuple[float | None, ...]]
    metric: str = "miou"
    class_iou: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    lr: tuple[float, ...] = ()
    tuning: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    lr_at_edge: bool = False
    kept_frozen: bool = False
    seconds: float = 0.0
    checkpoint: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    machine: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        whose = f"{self.protocol} of {self.init!r}"
        if self.metric not in self.metrics:
            raise ResultsError(f"{whose}: metric = {self.metric!r} is not among {', '.join(self.metrics) or 'none'}")
        for name, values in self.metrics.items():
            if name not in METRICS:
                raise ResultsError(f"{whose}: unknown metric {name!r}; written by another version?")
            if not self.seeds or len(self.seeds) != len(values):
                raise ResultsError(
                    f"{whose}: {len(self.seeds)} seeds, {len(values)} values of {name}; expected one for each seed, "
                    "and at least one seed"
                )
            high = METRICS[name].high
            if not all(0.0 <= v <= high if v is not None else name != self.metric for v in values):
                expected = "in percent" if high == 100.0 else "a number of at least 0"
                raise ResultsError(f"{whose}: {name} {values} is not {expected}")
        if self.leak not in get_args(LeakLevel):
            raise ResultsError(f"leak = {self.leak!r}: expected one of {', '.join(get_args(LeakLevel))}")

    @property
    def measure(self) -> Metric:
        """What the main metric is."""
        return METRICS[self.metric]

    @property
    def values(self) -> tuple[float, ...]:
        """The main metric of each seed."""
        return tuple(v for v in self.metrics[self.metric] if v is not None)  # the main one is never None

    @property
    def mean(self) -> float:
        """Mean of the main metric over the seeds."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Its sample standard deviation over the seeds; None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def goodness(self) -> float:
        """Rises with the quality of the main metric's mean, whichever way that metric goes."""
        return self.measure.sign * self.mean

    def mean_of(self, metric: str) -> float | None:
        """Mean of any metric over the seeds that have it; None if none has."""
        have = [v for v in self.metrics.get(metric, ()) if v is not None]
        return statistics.fmean(have) if have else None

    @property
    def identity(self) -> tuple[object, ...]:
        """Two records with the same identity are measurements of the same thing: the newer replaces the older."""
        return (self.protocol, self.dataset, self.labels, self.init, self.checkpoint, self.seeds, self.fingerprint)


@dataclass(frozen=True)
class Difference:
    """Main metric of one initialisation minus that of another under the same budget, in the metric's unit.

    Attributes:
        deltas: of each pair (same seed, same draw); where several pre-training runs are one initialisation, those of
            one run after those of the other.
        independent: how many of the pairs say something of their own. Pairs of one run share its weights, and pairs of
            one seed their draw and their random network, so it is the number of runs or of seeds, whichever is
            smaller.
        value: mean of the first initialisation over the pairs; its other seeds do not count.
        reference: that of the other one.
    """

    deltas: tuple[float, ...]
    independent: int
    value: float
    reference: float

    @property
    def num_pairs(self) -> int:
        """How many pairs there are, independent or not."""
        return len(self.deltas)

    @property
    def mean(self) -> float:
        """Mean over the pairs."""
        return statistics.fmean(self.deltas)

    @property
    def std(self) -> float | None:
        """Sample standard deviation of the paired differences; None for one pair."""
        return statistics.stdev(self.deltas) if len(self.deltas) > 1 else None


def paired_difference(result: Result, baseline: Result) -> Difference | None:
    """Difference seed by seed, which the large spread between draws does not touch; None without a common seed.

    Raises:
        ResultsError: the two were measured with different tasks or settings.
    """
    if (result.protocol, result.fingerprint) != (baseline.protocol, baseline.fingerprint):
        raise ResultsError(
            f"{result.init!r} and {baseline.init!r} were measured differently ({result.protocol} "
            f"{result.fingerprint} and {baseline.protocol} {baseline.fingerprint}); they cannot be paired"
        )
    other = dict(zip(baseline.seeds, baseline.values, strict=True))
    pairs = [(value, other[seed]) for seed, value in zip(result.seeds, result.values, strict=True) if seed in other]
    if not pairs:
        return None
    return Difference(
        deltas=tuple(value - reference for value, reference in pairs),
        independent=len(pairs),
        value=statistics.fmean(value for value, _ in pairs),
        reference=statistics.fmean(reference for _, reference in pairs),
    )


def mean_difference(differences: Sequence[Difference]) -> Difference:
    """Of several runs of one initialisation, each paired with the same baseline."""
    independent = [d.independent for d in differences]
    return Difference(
        deltas=tuple(delta for difference in differences for delta in difference.deltas),
        independent=min(*independent, len(differences)) if len(differences) > 1 else independent[0],
        value=statistics.fmean(d.value for d in differences),
        reference=statistics.fmean(d.reference for d in differences),
    )


def baseline_of(result: Result, results: Sequence[Result]) -> Result | None:
    """The newest random-initialisation record under the same protocol, task and settings, or None."""
    same = [
        r for r in results if not r.pretrained and (r.protocol, r.fingerprint) == (result.protocol, result.fingerprint)
    ]
    return max(same, key=lambda r: r.date, default=None)


def fingerprint(value: Mapping[str, Any]) -> str:
    """Short identity of nested settings; independent of key order."""
    text = json.dumps(value, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def software_versions() -> dict[str, str]:
    """Versions that a number may depend on; Tandem's own only where it is installed, not in a bare checkout."""
    versions = {"python": platform.python_version()}
    for name in ("tandem-pretrain", "torch", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def describe_machine(device: torch.device | str) -> str:
    """Processor or GPU, cores and threads, for people."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def now() -> str:
    """The time in UTC, ISO 8601, whole seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def write_results(path: str | Path, results: Sequence[Result]) -> list[Result]:
    """Add records to a results file, replacing older ones of the same identity.

    Safe against a crash (written beside, then renamed) and against other processes that write at the same time (an
    advisory lock on `<path>.lock`).

    Returns:
        All records that the file now holds.

    Raises:
        ResultsError: the file exists and is damaged; it is left as it is.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")) as lock:
        while not lock.take():
            time.sleep(_POLL_S)
        merged = {r.identity: r for r in (read_results(path) if path.exists() else [])}
        merged.update({r.identity: r for r in results})
        tree = {"schema_version": SCHEMA_VERSION, "results": [_to_json(r) for r in merged.values()]}
        with replacing(path, durable=True) as temporary:
            temporary.write_text(json.dumps(tree, indent=1, allow_nan=False) + "\n")
    return list(merged.values())


def read_results(path: str | Path) -> list[Result]:
    """The records of a results file.

    Raises:
        ResultsError: no such file, no JSON, another schema, or a record that makes no sense.
    """
    try:
        text = read_text(Path(path))
        if text is None:
            raise ValueError(f"{path}: no such file")
        tree = parse_json(text)
    except DamagedFileError as error:
        raise ResultsError(str(error)) from error
    except ValueError as error:
        raise ResultsError(f"{path}: {error}") from error
    version = tree.get("schema_version") if isinstance(tree, dict) else None
    if version not in _READABLE:
        raise ResultsError(
            f"{path}: schema_version is {version!r}, expected {SCHEMA_VERSION} or an earlier one; written by another "
            "version?"
        )
    records = tree.get("results")
    if not isinstance(records, list):
        raise ResultsError(f"{path}: no list of results")
    return [_from_json(record, f"{path}: result {i}") for i, record in enumerate(records)]


def _to_json(result: Result) -> dict[str, Any]:
    tree = dataclasses.asdict(result)
    # For people and scripts that read the file; recomputed, never read back.
    return {**tree, f"{result.metric}_mean": result.mean, f"{result.metric}_std": result.std}


def _from_json(record: object, where: str) -> Result:
    if not isinstance(record, dict):
        raise ResultsError(f"{where}: expected an object, got {type(record).__name__}")
    names = {f.name for f in dataclasses.fields(Result)}
    known = {name: value for name, value in record.items() if name in names and value is not None}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
    if "metrics" not in values:  # schema version 1
        values["metrics"] = {name: record.get(name) for name in ("miou", "accuracy")}
    try:
        checked(values, _FIELDS, _OPTIONAL)
        for name, kind in _ITEMS.items():
            items = values.get(name, ())
            items = items.values() if isinstance(items, dict) else items
            bad = [v for v in items if not is_kind(v, kind) and not (v is None and name in _WITH_GAPS)]
            if not isinstance(values.get(name, ()), dict if name in _WITH_GAPS else tuple) or bad:
                raise ValueError(f"{name}: got {shown(bad[0] if bad else values[name])} in place of a {kind}")
        metrics = {name: tuple(column) for name, column in values["metrics"].items()}
        if not all(v is None or (is_kind(v, "number") and math.isfinite(v)) for c in metrics.values() for v in c):
            raise ValueError(f"metrics {shown(metrics)} are not finite numbers")
        return Result(**{**values, "metrics": metrics})
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{where}: {error}") from error


_FIELDS: Mapping[str, Kind] = {
    **dict.fromkeys(("protocol", "dataset", "labels", "init"), "text"),
    "pretrained": "flag",
    "metrics": "mapping",
}
_OPTIONAL: Mapping[str, Kind] = {
    **dict.fromkeys(("teacher", "leak", "pretraining", "setting", "metric", "fingerprint", "machine", "date"), "text"),
    **dict.fromkeys(("class_iou", "tuning", "settings", "versions"), "mapping"),
    **dict.fromkeys(("lr_at_edge", "kept_frozen"), "flag"),
    "seconds": "number",
}
_ITEMS: Mapping[str, Kind] = {
    **dict.fromkeys(("seeds", "pretrain_seeds"), "count"),
    **dict.fromkeys(("chosen", "checkpoint"), "text"),
    **dict.fromkeys(("lr", "class_iou", "tuning"), "number"),
}
"""What the entries of lists and mappings are."""
_WITH_GAPS = ("class_iou", "tuning")
"""Mappings whose values may be null."""
