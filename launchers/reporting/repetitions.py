"""Runs that differ in their pre-training seed alone, taken together: one row with mean and spread over the runs.

Each run counts once, with the mean over its protocol's own seeds (label draws, probe initialisations). The gain is the
mean of the runs' paired differences to random initialisation, whose rows all runs share: its spread is that of
pre-training, not of the baseline.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from engine.downstream.results import Difference, Result, baseline_of, paired_difference

_CHOICES = {("best",): "best step", ("last",): "last step", ("best", "last"): "best and last step"}
"""How the checkpoint was chosen -> for tables."""


def rows_of(
    members: Sequence[Result], results: Sequence[Result], labels: Mapping[str, str]
) -> tuple[tuple[Result, ...], tuple[Difference | None, ...]]:
    """Comparable records with repetitions merged, and the gain of each over random initialisation.

    Random initialisation comes first, then from worse to better. The baselines are found in `results`, all records;
    `labels` maps settings to texts that tell them apart.
    """
    rows: list[tuple[Result, Difference | None]] = []
    for choice, runs in _repetitions(members):
        gains = [gain for run in runs if (gain := _gain(run, results)) is not None]
        row = runs[0] if len(runs) == 1 else _merged(runs)
        parts = (row.init, labels.get(row.setting, ""), _CHOICES.get(choice, ""))
        name = ", ".join(part for part in parts if part)
        rows.append((dataclasses.replace(row, init=name), _mean_gain(gains) if len(gains) == len(runs) else None))
    rows.sort(key=lambda row: (row[0].pretrained, row[0].goodness))
    return tuple(record for record, _ in rows), tuple(gain for _, gain in rows)


def _repetitions(members: Sequence[Result]) -> list[tuple[tuple[str, ...], list[Result]]]:
    """(choice of the checkpoint, runs) of each row."""
    alone: list[tuple[tuple[str, ...], list[Result]]] = []
    sets: dict[tuple[str, str], dict[int, Result]] = {}
    for result in members:
        if not result.pretrained or not result.setting or len(result.pretrain_seeds) != 1:
            alone.append((result.chosen, [result]))
            continue
        seed = result.pretrain_seeds[0]
        for choice in result.chosen or ("",):
            runs = sets.setdefault((result.setting, choice), {})
            if seed not in runs or result.date >= runs[seed].date:
                runs[seed] = result
    merged: dict[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], list[Result]]] = {}
    for (_, choice), runs in sorted(sets.items()):
        ordered = [runs[seed] for seed in sorted(runs)]
        weights = tuple(run.checkpoint for run in ordered)
        before = merged[weights][0] if weights in merged else ()
        merged[weights] = (tuple(c for c in (*before, choice) if c), ordered)  # "best" and "last" of the same steps
    return [*alone, *merged.values()]


def _gain(result: Result, results: Sequence[Result]) -> Difference | None:
    baseline = baseline_of(result, results) if result.pretrained else None
    return paired_difference(result, baseline) if baseline is not None else None


def _mean_gain(gains: Sequence[Difference]) -> Difference | None:
    if len(gains) == 1:
        return gains[0]
    if not gains:
        return None
    means = [gain.mean for gain in gains]
    return Difference(
        mean=statistics.fmean(means),
        std=statistics.stdev(means),
        num_pairs=len(means),
        value=statistics.fmean(gain.value for gain in gains),
        reference=statistics.fmean(gain.reference for gain in gains),
    )


def _merged(runs: Sequence[Result]) -> Result:
    first = runs[0]
    seeds = tuple(run.pretrain_seeds[0] for run in runs)
    steps = dict.fromkeys(run.pretraining.partition(",")[0] for run in runs)
    return dataclasses.replace(
        first,
        pretraining=f"{' or '.join(steps)}, {len(runs)} runs, seeds {', '.join(map(str, seeds))}",
        pretrain_seeds=seeds,
        seeds=seeds,
        metrics={name: tuple(run.mean_of(name) for run in runs) for name in first.metrics},
        class_iou=_mean_by_class(runs),
        lr=tuple(lr for run in runs for lr in run.lr),
        lr_at_edge=any(run.lr_at_edge for run in runs),
        checkpoint=tuple(identity for run in runs for identity in run.checkpoint),
        seconds=sum(run.seconds for run in runs),
        date=max(run.date for run in runs),
    )


def _mean_by_class(runs: Sequence[Result]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in dict.fromkeys(name for run in runs for name in run.class_iou):
        values = [value for run in runs if (value := run.class_iou.get(name)) is not None]
        means[name] = statistics.fmean(values) if values else None
    return means
