"""Which checkpoint of a run is the best: compared on logs held out from the train split, never on the test split.

Pre-training has seen the sweeps of those logs, but none of their labels; the final numbers come from the test split,
for the best and for the last checkpoint. `selection/selection.json` holds the outcome, `selection/scores.json` beside
it the records that it was made from.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from common.files import replace_file
from common.run_files import list_checkpoints, step_of
from common.small_files import Kind, is_kind, read_json
from configs.load import ConfigError
from configs.schema import EvaluateConfig
from data.storage.manifest import load_manifest
from engine.checkpoint import newest_intact
from engine.downstream.metrics import METRICS, Metric
from engine.downstream.protocols import PROTOCOLS
from engine.downstream.results import now
from engine.errors import CheckpointError
from launchers.evaluation.common import splits_of
from launchers.evaluation.measure import Progressing, evaluate_runs
from launchers.evaluation.networks import identity_of
from launchers.runs.files import SELECTION
from launchers.training.restore import load_run_config

_OUTCOME = "selection.json"
_SCORES = "scores.json"  # not results.json: these are no numbers for a table


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The outcome.

    Attributes:
        step: of the best checkpoint.
        last: identity of the newest checkpoint that took part, see `launchers.evaluation.networks.identity_of`.
        by: protocol that compared them.
        split: what they were measured on, in words.
        scores: main metric by step, mean over the downstream configs (and their seeds).
        metric: the metric.
        settings: identity of the protocols' settings.
        date: when, ISO 8601.
    """

    step: int
    last: str
    by: str
    split: str
    scores: Mapping[int, float]
    settings: str
    metric: str = "miou"
    date: str = ""

    @property
    def measure(self) -> Metric:
        """What the scores are."""
        return METRICS[self.metric]


def read_selection(run_dir: Path) -> Selection | None:
    """The outcome of a run's selection; None if there was none.

    Raises:
        ConfigError: the file is damaged.
    """
    path = run_dir / SELECTION / _OUTCOME
    texts: dict[str, Kind] = dict.fromkeys(("last", "by", "split", "settings"), "text")
    try:
        tree = read_json(
            path, {"step": "count", "scores": "mapping", **texts}, optional={"metric": "text", "date": "text"}
        )
        if tree is None:
            return None
        if not all(is_kind(score, "number") for score in tree["scores"].values()):
            raise ValueError("scores: expected numbers")
        if tree.get("metric", "miou") not in METRICS:
            raise ValueError(f"metric: got {tree['metric']!r}, expected one of {', '.join(METRICS)}")
        scores = {int(step): float(score) for step, score in tree["scores"].items()}
        return Selection(**{**{name: value for name, value in tree.items() if value is not None}, "scores": scores})
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: not the outcome of a selection ({error}); remove it and select again") from error


def select_best(
    run_dir: Path,
    configs: Sequence[EvaluateConfig],
    *,
    every: int,
    by: str,
    settings: str,
    progress: Progressing | None = None,
) -> Selection:
    """Measure a run's milestones and its last checkpoint on held-out logs, and write down which is best.

    What an earlier call measured is not measured again. Checkpoints of every `every` updates take part; the mean over
    the configs (downstream protocols with `data.holdout`, whose identity is `settings`) decides.

    Raises:
        CheckpointError: the run has no intact checkpoint.
        ConfigError, ShardError, DivergenceError: as `launchers.evaluation.measure.evaluate_runs`.
    """
    last = newest_intact(run_dir)
    if last is None:
        raise CheckpointError(f"{run_dir}: no checkpoint, so there is none to choose; was the run ever trained?")
    folder = run_dir / SELECTION
    folder.mkdir(exist_ok=True)
    taking_part = [c for c in reversed(list_checkpoints(run_dir)) if step_of(c) % every == 0 and c != last]
    scores = {}
    for checkpoint in (*taking_part, last):
        measured = []
        for config in configs:
            held = dataclasses.replace(config, results=str(folder / _SCORES))
            measured += evaluate_runs([checkpoint], held, progress=progress)
        scores[step_of(checkpoint)] = fmean(r.mean for r in measured)
    metric = measured[0].metric  # one protocol, so all records have the same
    best = max(scores, key=lambda step: (METRICS[metric].sign * scores[step], step))  # of equal ones the later
    outcome = Selection(
        step=best,
        last=identity_of(last),
        by=by,
        split=" and ".join(dict.fromkeys(_describe_split(last, config) for config in configs)),
        scores=scores,
        settings=settings,
        metric=metric,
        date=now(),
    )
    content = json.dumps(dataclasses.asdict(outcome), indent=1) + "\n"
    replace_file(folder / _OUTCOME, content.encode())
    return outcome


def _describe_split(checkpoint: Path, config: EvaluateConfig) -> str:
    manifest = load_manifest(config.data.shards or load_run_config(checkpoint).data.shards)
    held = splits_of(manifest, config, PROTOCOLS[config.protocols[0]].tower).test
    logs = len(set(manifest.sample_log[held].tolist()))
    return (
        f"{len(held)} sweep{'s' if len(held) > 1 else ''} of {logs} log{'s' if logs > 1 else ''} "
        f"held out from {manifest.set_name}'s {config.data.train_split} split"
    )
