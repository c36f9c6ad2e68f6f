"""Runs that differ in their pre-training seed alone, taken together: one row with mean and spread over the runs.

Each run counts once, with the mean over its protocol's own seeds (label draws, probe initialisations). The gain is the
mean of the paired differences to random initialisation over all runs and all seeds, and so is its spread.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from engine.downstream.results import Difference, Result, baseline_of, mean_difference, paired_difference

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
        row = runs[0] if len(runs) == 1 else _merged(runs)
        parts = (row.init, labels.get(row.setting, ""), _CHOICES.get(choice, ""))
        name = ", ".join(part for part in parts if part)
        rows.append((dataclasses.replace(row, init=name), gain_of(runs, results)))
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


def gain_of(runs: Sequence[Result], results: Sequence[Result]) -> Difference | None:
    """Over random initialisation, whose records are looked for in `results`; None where a run has none to pair with."""
    gains = []
    seeds: set[int] = set()
    for run in runs:
        baseline = baseline_of(run, results) if run.pretrained else None
        gain = paired_difference(run, baseline) if baseline is not None else None
        if gain is None:
            return None
        assert baseline is not None
        seeds |= set(run.seeds) & set(baseline.seeds)
        gains.append(gain)
    # Runs that are each paired on a seed of their own share no draw.
    mean = mean_difference(gains)
    return mean if len(runs) == 1 else dataclasses.replace(mean, independent=min(len(runs), len(seeds)))


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
        kept_frozen=all(run.kept_frozen for run in runs),
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
